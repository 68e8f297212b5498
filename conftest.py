"""What `pytest` and `pytest --nbval` run on, and where the runs that they train are written."""

import os
import shutil
import tempfile

import pytest

from utils import load_mnist

DATA = pytest.StashKey[str]()


def pytest_configure(config):
    try:
        name = load_mnist(device="cpu").name
    except (ValueError, FileNotFoundError) as error:
        raise pytest.UsageError(str(error)) from error
    if name == "digits":
        # Every notebook has a process of its own: do not let each of them try the network again.
        os.environ["MNIST_ROOT"] = "digits"
        if config.option.nbval:
            config.option.nbval, config.option.nbval_lax = False, True
    # nbval reads a cell's messages only when the cell ends: a progress bar would pile up in the meantime.
    os.environ["TQDM_DISABLE"] = "1"
    results = tempfile.mkdtemp(prefix="mnist-results-")
    config.add_cleanup(lambda: shutil.rmtree(results, ignore_errors=True))
    os.environ["MNIST_RESULTS"] = results
    config.stash[DATA] = name


def pytest_report_header(config):
    if config.stash[DATA] == "MNIST":
        return "data: MNIST; with --nbval, notebooks are retrained and their outputs compared strictly"
    return "data: scikit-learn's digits, MNIST is not here; with --nbval, notebooks are executed, NOTHING IS COMPARED"
