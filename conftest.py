"""What `pytest` and `pytest --nbval` run on, and where the runs that they train are written."""

import contextlib
import os
import shutil
import tempfile
import threading
import time

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
    alone = not getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    alone = alone and not config.option.collectonly and not config.option.usepdb
    if _notebooks_run(config) and alone:
        config.pluginmanager.register(Progress(folder is not None))
    config.stash[HEADER] = (
        "data: MNIST; with --nbval, notebooks are retrained and their outputs compared strictly"
        if folder
        else "data: scikit-learn's digits, MNIST is not here; with --nbval, notebooks are executed, NOTHING IS COMPARED"
    )


class Progress:
    """Says which notebook, or which test, has been at work for ten seconds, and about how long the rest will take."""

    def __init__(self, on_mnist: bool):
        import pace  # here: only now are the settings gone that would disturb matplotlib

        self.about, self.minutes_here = pace.about, pace.minutes_here
        self.on_mnist = on_mnist
        self.name, self.since = "", time.monotonic()  # of the notebook, or "tests", at work
        self.item, self.item_since = None, time.monotonic()
        self.taken = self.expected = 0.0  # minutes, of what has ended

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session):
        self.screen = os.dup(1)  # before what a test writes is captured
        names = [self._name(item) for item in session.items]
        self.cells = {name: names.count(name) for name in names}  # in their order
        self.minutes = (
            {name: of for name, of in self.minutes_here().items() if name in self.cells} if self.on_mnist else {}
        )
        ended = threading.Event()
        thread = threading.Thread(target=self._tell, args=(ended,), daemon=True)
        thread.start()
        try:
            return (yield)
        finally:
            ended.set()
            thread.join()
            os.close(self.screen)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        if (name := self._name(item)) != self.name:
            self._finish()
            self.name, self.since, self.number = name, time.monotonic(), 0
            if name != "tests":
                self._line(f"{name}{self._left()}")
        self.number += 1
        self.item, self.item_since = item, time.monotonic()

    @staticmethod
    def _name(item) -> str:
        return item.path.stem if item.path.suffix == ".ipynb" else "tests"

    def _finish(self) -> None:
        if of := self.minutes.pop(self.name, 0):
            self.taken, self.expected = self.taken + (time.monotonic() - self.since) / 60, self.expected + of

    def _left(self) -> str:
        if self.name not in self.minutes:
            return ""
        pace = self.taken / self.expected if self.expected > 0.5 else 1  # what has ended tells how long the rest takes
        this, rest = pace * self.minutes[self.name], pace * sum(self.minutes.values())
        rest -= min(this, (time.monotonic() - self.since) / 60)
        return f" ({self.about(this)} for all of it; left in all: {self.about(rest)})"

    def _tell(self, ended: threading.Event) -> None:
        while not ended.wait(10):
            if self.item and (seconds := time.monotonic() - self.item_since) > 10:
                what = f"{self.name}, cell {self.number} of {self.cells[self.name]}"
                what = self.item.name if self.name == "tests" else what
                self._line(f"{what}: {seconds:.0f} s so far{self._left()}")

    def _line(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(self.screen, f"\n{text}\n".encode())


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
