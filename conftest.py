"""What `pytest` and `pytest --nbval` run on, and where the runs that they train are written."""

import os
import shutil
import tempfile

import pytest

from mnist import find_mnist

HEADER = pytest.StashKey[str]()


def pytest_configure(config):
    try:
        folder = find_mnist()
    except (ValueError, FileNotFoundError) as error:
        raise pytest.UsageError(str(error)) from error
    # Every notebook has a process of its own: none of them shall search, or try the network, again.
    os.environ["MNIST_ROOT"] = str(folder.resolve()) if folder else "digits"
    if config.option.nbval and not folder:
        config.option.nbval, config.option.nbval_lax = False, True
    # nbval reads a cell's messages only when the cell ends: a progress bar would pile up in the meantime.
    os.environ["TQDM_DISABLE"] = "1"
    results = tempfile.mkdtemp(prefix="mnist-results-")
    config.add_cleanup(lambda: shutil.rmtree(results, ignore_errors=True))
    os.environ["MNIST_RESULTS"] = results
    config.stash[HEADER] = (
        "data: MNIST; with --nbval, notebooks are retrained and their outputs compared strictly"
        if folder
        else "data: scikit-learn's digits, MNIST is not here; with --nbval, notebooks are executed, NOTHING IS COMPARED"
    )


def pytest_collection_modifyitems(config, items):
    if not (config.option.nbval or config.option.nbval_lax):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes long: only with --nbval"))


def pytest_report_header(config):
    return config.stash[HEADER]


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.write_line(config.stash[HEADER])
