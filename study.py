"""Many runs: trained several at a time, killed and resumed (notebooks 9 and 12)."""

import contextlib
import functools
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import joblib
from torch import nn
from tqdm import tqdm

from checks import number_format
from files import shown
from mnist import ROOT, find_mnist
from utils import RESULTS, check_folder, check_json, check_name, read_record, results_folder, save_run


def run_study(
    study: str, train: Callable[..., tuple[dict, nn.Module]], runs: list[dict], n_jobs: int = -1
) -> list[dict]:
    """Train every run that has no record yet, several at a time, and return the records of all, in the order given.

    Records are looked for where ``save_run`` writes them, and then among the course's own. On the digits these count
    only if all of them are there: runs on MNIST are not mixed with others. (A run that a notebook trained by itself, as
    6 and 7 do, takes the place of the course's only if it is in the same number format.) A run is saved as soon as it
    ends; so a study that was stopped, or killed, goes on where it was when it is started again. (If ``train`` lets
    ``fit`` write checkpoints, so do the runs that were in progress.) joblib does the work. Inside
    ``joblib.parallel_config(backend="dask")``, or ``"ray"`` after ``ray.util.joblib.register_ray()``, the runs go to
    the workers of a cluster. They must be able to import the course's files and to find MNIST, and must share the
    folder of the results. In one process there is never more than one run at a time.

    Dask's own settings make each run twice as slow (they let workers give memory back at once). Before a cluster is
    started on this machine: ``dask.config.set({"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1}})``;
    elsewhere, start the workers without ``MALLOC_TRIM_THRESHOLD_`` in their environment. (Notebook 8 has the times.)

    Args:
        study: the folder of the records.
        train: called as ``train(**run)``, most often in another process, so that it loads the data itself, by
            ``load_mnist()`` without ``root``; returns what ``fit`` returned, and the model.
        runs: the arguments of each run, all of them things that JSON can hold; among them ``name``, ``"study/run"``.
            The record keeps them as ``arguments``.
        n_jobs: how many runs at a time; -1: one on each processor core. A cluster always uses all its workers.

    Raises:
        ValueError: a run has no name of its own in the study's folder, or an argument that JSON cannot hold; a record
            of that name was made with other arguments, or on other data than the rest, or is damaged.
        RuntimeError: some runs failed; all the others were still finished and saved.
        FileNotFoundError: a run was saved elsewhere, by a worker that has another folder for results.
        OSError: the folder for results cannot be written to.
    """
    names = [run.get("name") for run in runs]
    for name in names:
        check_name(name)
        if name.rpartition("/")[0] != study:
            raise ValueError(f"expected the runs of this study to be named '{study}/...', got {name!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"expected every run to have a name of its own, got {names}")
    runs = check_json(runs)
    data_name = "digits" if find_mnist() is None else "MNIST"
    folder = results_folder(data_name)
    paths = _paths(runs, folder)
    instead = [
        name
        for name, path in paths.items()
        if path and (course := RESULTS / f"{name}.json").is_file() and path.resolve() != course.resolve()
    ]
    if instead:
        print(f"{study}: your own runs, from {shown(folder, ROOT)}, instead of the course's: {', '.join(instead)}")
    if missing := [name for name in names if not paths[name]]:
        check_folder(data_name, missing[0])
    _clear_away(names, folder)
    tasks = [joblib.delayed(_train_and_save)(train, run, os.getpid()) for run in runs if not paths[run["name"]]]
    try:
        parallel = joblib.Parallel(n_jobs, return_as="generator_unordered")
    except ValueError:  # Ray's backend, among others, returns all results at the end: then the bar waits, too
        parallel = joblib.Parallel(n_jobs)
    with (
        tqdm(
            total=len(runs), initial=len(runs) - len(tasks), desc=study, unit="run", leave=False, file=sys.stdout
        ) as bar,
        _moving(bar),
    ):
        failures = []
        for failure in parallel(tasks):
            if failure:
                failures.append(failure)
            bar.update()
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(runs)} runs failed, the others are saved; {'; '.join(failures)}")
    paths |= {run["name"]: _find(run, [folder]) for run in runs if not paths[run["name"]]}
    if missing := [name for name in names if not paths[name]]:
        raise FileNotFoundError(
            f"{', '.join(missing)}: trained, but not saved in {folder}. Let MNIST_RESULTS name one folder, and "
            "MNIST_ROOT the same data, for all the workers."
        )
    records = {name: read_record(path) for name, path in paths.items()}
    data = {name: record["data"] for name, record in records.items()}
    if len(set(data.values())) > 1:
        raise ValueError(f"expected records of runs on the same data, got {data}: delete those that do not belong here")
    return list(records.values())


@contextlib.contextmanager
def _moving(bar: tqdm, seconds: float = 5):
    """Let the bar's clock go on while a run takes minutes."""
    ended = threading.Event()

    def move():
        while not ended.wait(seconds):
            bar.refresh()

    thread = threading.Thread(target=move, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _paths(runs: list[dict], folder: Path) -> dict[str, Path | None]:
    """Return where the record of each run is, if it has one: one's own first, but for the digits see ``run_study``."""
    on_mnist = [results_folder("MNIST"), RESULTS]
    if folder in on_mnist:
        return {run["name"]: _find(run, on_mnist) for run in runs}
    own = {run["name"]: _find(run, [folder]) for run in runs}
    others = {run["name"]: _find(run, on_mnist) for run in runs}
    if all(others.values()) and not all(own.values()):
        return others
    return {name: own[name] or others[name] for name in own}


def _find(run: dict, folders: list[Path]) -> Path | None:
    """Return the record of a run with these arguments, from the first of these folders that has it."""
    for path in (folder / f"{run['name']}.json" for folder in folders):
        if not path.is_file():
            continue
        record = read_record(path)
        if "arguments" in record:
            if record["arguments"] != run:
                raise ValueError(
                    f"{path} was made with {record['arguments']}, not with {run}: rename the run, or delete the file"
                )
            return path
        # A notebook that trains one run of a study by itself (6 and 7) saves it without arguments. On another processor
        # it can be in another number format: then it belongs to no study of ours.
        course = RESULTS / f"{run['name']}.json"
        other_format = course.is_file() and number_format(read_record(course)) != number_format(record)
        if not other_format and all(record[key] == run[key] for key in ("seed", "epochs") if key in run):
            return path
    return None


def _clear_away(names: list[str], folder: Path) -> None:
    """Remove what a study that was killed while it wrote could not remove."""
    for name in names:
        for suffix in (".json.*.tmp", ".pt.*.tmp", ".checkpoint.*.tmp"):
            for left in folder.glob(name + suffix):
                left.unlink(missing_ok=True)
        record, checkpoint = folder / f"{name}.json", folder / f"{name}.checkpoint"
        # A newer one is that of a notebook which has begun to train this run again.
        if record.is_file() and checkpoint.is_file() and checkpoint.stat().st_mtime_ns <= record.stat().st_mtime_ns:
            checkpoint.unlink(missing_ok=True)


# The random numbers of torch, and the standard output, are those of a whole process, whatever its threads do.
_one_run = threading.RLock()


def _train_and_save(train: Callable[..., tuple[dict, nn.Module]], run: dict, study_process: int) -> str | None:
    """Train and save one run of a study, without a line; return what went wrong, if anything did."""
    if os.getppid() == study_process:
        _end_with(study_process)
    try:
        with _one_run, contextlib.redirect_stdout(io.StringIO()):
            record, model = train(**run)
        if record["name"] != run["name"]:
            raise ValueError(f"expected train to return a record of that name, got {record['name']!r}")
        save_run(record | {"arguments": run}, model)
    except Exception as error:  # the other runs shall still be trained
        return f"{run['name']}: {type(error).__name__}: {error}"


@functools.cache
def _end_with(parent: int) -> None:
    """End this process, a worker of joblib, when its parent was killed.

    It would go on without it, and the study, started again, would train the same run a second time beside it, into the
    same files. (Windows keeps the number of a parent that has ended; there, a worker ends by itself when it has had
    nothing to do for some minutes.)
    """

    def watch():
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
