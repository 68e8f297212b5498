"""Studies in several processes, which are killed; on Linux, where forking with torch is safe.

They leave the work to other processes, which share their memory where they can: so little is needed at a time.
"""

import contextlib
import gc
import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import signal
import sys
import time
from unittest import mock

import dask
import distributed
import joblib
import psutil
import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from test_study import RUNS, results, train, untrained

from utils import run_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="forking with torch is safe on Linux only"),
]


def study_to(folder, n_jobs, started=None):
    """The study, in a process of its own."""
    os.environ.update(MNIST_ROOT="digits", MNIST_RESULTS=str(folder))
    multiprocessing.set_start_method("fork", force=True)  # the workers share their memory
    gc.freeze()  # a collection would write to every object that they share, and so copy it
    with joblib.parallel_config(backend="multiprocessing"):
        if started:
            started.set()
        run_study("killed", train, RUNS, n_jobs=n_jobs)


def exit_code(process, seconds=120):
    """The code with which the process ends by itself; after so many seconds, it is killed."""
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


def study_on_the_cores():
    try:
        run_study("untrained", untrained, [{"name": f"run-{number}"} for number in range(4)], n_jobs=2)
    finally:
        get_reusable_executor().shutdown()


def test_on_the_cores_of_this_machine(place):
    # In a process of its own: what joblib starts there to look after its files lives as long as that process.
    process = multiprocessing.get_context("fork").Process(target=study_on_the_cores)
    process.start()
    assert exit_code(process) == 0
    processes = [json.loads(path.read_text())["process"] for path in (place / "digits").glob("*.json")]
    assert len(processes) == 4
    assert not {os.getpid(), process.pid} & set(processes)


@pytest.fixture(autouse=True)
def environment():
    """Every test here leaves the environment as it was: the notebooks come next, and inherit it."""
    before = dict(os.environ)
    yield
    changed = set(before.items()) ^ set(os.environ.items())
    assert not {name for name, _ in changed} - {"PYTEST_CURRENT_TEST"}


@pytest.fixture(scope="module")
def context():
    """Processes that start fast and share their memory: they are forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["utils", "model", "torch._dynamo", "sklearn.datasets", "distributed"])
    yield context
    multiprocessing.forkserver._forkserver._stop()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, context):
    """What the study gives when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    process = context.Process(target=study_to, args=(folder, 1))
    process.start()
    assert exit_code(process) == 0
    return results(folder)


def test_killed_at_any_moment_nothing_is_lost(tmp_path, undisturbed, context):
    """Twenty times SIGKILL at random moments, each time started again: the result is that of the quiet study."""
    moments, kills, studies = random.Random(0), 0, 0
    while kills < 20 or studies == 0:
        folder = tmp_path / str(studies)
        finished = set()
        while True:
            started = context.Event()
            process = context.Process(target=study_to, args=(folder, 1, started))
            process.start()
            assert started.wait(60)
            killed = exit_code(process, moments.uniform(0, 0.6) if kills < 20 else 120) == -signal.SIGKILL
            kills += killed
            records = set((folder / "digits").glob("*.json"))
            assert finished <= records
            for path in records - finished:
                assert json.loads(path.read_text())["epochs"] == 3  # whole
                assert torch.load(path.with_suffix(".pt"), weights_only=True)
            finished = records
            if not killed:
                assert process.exitcode == 0
                break
        assert results(folder) == undisturbed
        studies += 1
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    assert any(record["continued_after"] for record in records)


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_killed_with_its_workers_at_work(tmp_path, undisturbed, context):
    """The study's own process is killed while two workers train: they end too, and the study can go on."""
    for _ in range(3):
        process = context.Process(target=study_to, args=(tmp_path, 2))
        process.start()
        started, workers, busy = time.time(), [], False
        while not busy and process.is_alive() and time.time() < started + 60:
            time.sleep(0.01)
            with contextlib.suppress(FileNotFoundError, psutil.Error):  # gone while we look
                busy = any(path.stat().st_mtime > started for path in tmp_path.rglob("*.checkpoint"))
                workers = psutil.Process(process.pid).children()
        assert busy and len(workers) >= 2
        process.kill()
        process.join()
        end = time.time() + 10
        while any(alive(worker) for worker in workers) and time.time() < end:
            time.sleep(0.05)
        assert not any(alive(worker) for worker in workers)
    process = context.Process(target=study_to, args=(tmp_path, 2))
    process.start()
    assert exit_code(process) == 0 and results(tmp_path) == undisturbed


def test_on_a_cluster(place, undisturbed, context):
    """The same call on the two workers of a Dask cluster on this machine's loopback address."""
    with (
        mock.patch.dict(os.environ),  # Dask sets variables there that would slow down the notebooks, which come next
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        distributed.LocalCluster(
            2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, env=dict(os.environ)
        ) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config(backend="dask"),
    ):
        run_study("killed", train, RUNS)
        workers = client.run(os.getpid).values()
    records = [json.loads(path.read_text()) for path in (place / "digits").glob("*.json")]
    assert {record["process"] for record in records} <= set(workers) and len(workers) == 2
    assert results(place) == undisturbed
