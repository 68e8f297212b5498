"""What `pytest` and `pytest --nbval` run on, and where the runs that they train are written."""

import os
import shutil
import tempfile

import pytest

from mnist import find_mnist

HEADER, RESULTS = pytest.StashKey[str](), pytest.StashKey[str]()


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
    # A shell's or a person's settings would add warnings to the outputs that are compared, or take figures away.
    for name in ("PYTHONWARNINGS", "MPLBACKEND"):
        os.environ.pop(name, None)
    os.environ["MATPLOTLIBRC"] = os.devnull
    results = tempfile.mkdtemp(prefix="mnist-results-")
    config.add_cleanup(lambda: shutil.rmtree(results, ignore_errors=True))
    os.environ["IPYTHONDIR"] = os.path.join(results, "ipython")
    config.stash[RESULTS] = os.environ["MNIST_RESULTS"] = results
    if getattr(config.option, "numprocesses", None):  # pytest-xdist
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # several programs with several threads wait for each other
        if _notebooks_run(config) and config.option.dist in ("load", "worksteal"):
            config.option.dist = "loadscope"  # all cells of a notebook go to one process
    config.stash[HEADER] = (
        "data: MNIST; with --nbval, notebooks are retrained and their outputs compared strictly"
        if folder
        else "data: scikit-learn's digits, MNIST is not here; with --nbval, notebooks are executed, NOTHING IS COMPARED"
    )


def _notebooks_run(config) -> bool:
    return config.option.nbval or config.option.nbval_lax


@pytest.hookimpl(wrapper=True, tryfirst=True)  # the outermost: it has the first and the last word
def pytest_collection_modifyitems(config, items):
    cells = {}  # of each notebook, in order
    for item in items:
        if item.path.suffix == ".ipynb":
            cells.setdefault(item.parent, []).append(item)
        elif item.get_closest_marker("slow") and not _notebooks_run(config):
            item.add_marker(pytest.mark.skip(reason="takes long: only with --nbval"))
    yield
    # Whatever has shuffled or chosen the tests, a cell runs after all cells before it.
    last = {}
    for item in items:
        if item.parent in cells:
            last[item.parent] = max(last.get(item.parent, 0), cells[item.parent].index(item))
    chosen = [cell for notebook, number in last.items() for cell in cells[notebook][: number + 1]]
    items[:] = [*chosen, *(item for item in items if item.parent not in cells)]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    # Before its kernel starts: a notebook reads what it has written, and nothing that another one has.
    apart = [item.path.stem] if item.path.suffix == ".ipynb" else []
    os.environ["MNIST_RESULTS"] = os.path.join(item.config.stash[RESULTS], *apart)


def pytest_report_header(config):
    return config.stash[HEADER]


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.write_line(config.stash[HEADER])
