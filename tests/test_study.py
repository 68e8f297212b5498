"""Studies: several runs at a time, and what is left of them when they are killed."""

import contextlib
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import time
from functools import partialmethod
from pathlib import Path

import dask
import distributed
import joblib
import psutil
import pytest
import torch
from joblib.externals.loky import get_reusable_executor

import utils
from model import Skeleton
from utils import Data, fit, load_mnist, run_study

RUNS = [{"name": f"run-{seed}", "seed": seed, "lr": 0.05} for seed in range(6)]


def train(name, seed, lr, epochs=3):
    """A short run on 250 digits, which loads its own data."""
    torch.set_num_threads(1)  # in every process, because the results are compared bit for bit
    digits = load_mnist("digits", device="cpu")
    few = Data(
        digits.name, "test",
        digits.train_images[:250], digits.train_labels[:250], digits.test_images[:120], digits.test_labels[:120],
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Skeleton(batch_norm=True, dropout=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    run = fit(
        model,
        few,
        name=name,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=50,
        seed=seed,
        ema_decay=0.8,
        checkpoint=True,
    )
    return run | {"process": os.getpid()}, model


def study_to(folder, n_jobs, started=None):
    """The study, in a process of its own."""
    os.environ.update(MNIST_ROOT="digits", MNIST_RESULTS=str(folder))
    if started:
        started.set()
    multiprocessing.set_start_method("fork", force=True)  # the workers share their memory
    with joblib.parallel_config(backend="multiprocessing"):
        run_study("killed", train, RUNS, n_jobs=n_jobs)


def results(folder):
    """What a study left: of each run its history and its weights, and nothing else."""
    folder = folder / "digits"
    names = {run["name"] for run in RUNS}
    assert {path.name for path in folder.iterdir()} == {
        f"{name}{suffix}" for name in names for suffix in (".json", ".pt")
    }
    weights = {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in names}
    return {
        name: (
            json.loads((folder / f"{name}.json").read_text())["history"],
            {key: value.tolist() for key, value in weights[name].items()},
        )
        for name in names
    }


@pytest.fixture(scope="module", autouse=True)
def same_threads():
    """What train sets is undone in pytest's own process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_ROOT", "digits")
    monkeypatch.setenv("MNIST_RESULTS", str(tmp_path))
    monkeypatch.setattr(utils, "RESULTS", tmp_path / "course")
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the study gives when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_ROOT", "digits")
        patch.setenv("MNIST_RESULTS", str(folder))
        run_study("killed", train, RUNS, n_jobs=1)
    return results(folder)


def untrained(name):
    """A run of no epochs, and the process that it was in."""
    return {"name": name, "data": "digits", "history": {"test_accuracy": []}, "process": os.getpid()}, Skeleton()


@pytest.mark.slow
def test_on_the_cores_of_this_machine(place):
    try:
        records = run_study("untrained", untrained, [{"name": f"run-{number}"} for number in range(4)], n_jobs=2)
    finally:
        get_reusable_executor().shutdown()
    assert os.getpid() not in {record["process"] for record in records}


def test_records_say_what_was_asked_and_finished_runs_are_not_repeated(place, capsys):
    records = run_study("few", train, RUNS[:2], n_jobs=1)
    assert "Train:" not in capsys.readouterr().out  # no wall of lines
    assert [record["name"] for record in records] == ["run-0", "run-1"]
    assert [record["arguments"] for record in records] == RUNS[:2]
    assert {record["study"] for record in records} == {"few"}
    times = {path: path.stat().st_mtime_ns for path in (place / "digits").iterdir()}
    assert len(times) == 4

    def never(**run):
        raise AssertionError("trained again")

    assert run_study("few", never, RUNS[1::-1], n_jobs=1) == records[::-1]
    assert {path: path.stat().st_mtime_ns for path in (place / "digits").iterdir()} == times


def test_the_course_own_records_are_used(place, monkeypatch):
    [record] = run_study("few", train, RUNS[:1], n_jobs=1)
    monkeypatch.setattr(utils, "RESULTS", place / "digits")
    monkeypatch.setenv("MNIST_RESULTS", str(place / "elsewhere"))
    assert run_study("few", train, RUNS[:1], n_jobs=1) == [record]
    assert not (place / "elsewhere").exists()


def test_a_record_made_with_other_arguments_is_not_taken_for_the_run(place):
    run_study("few", train, RUNS[:1], n_jobs=1)
    with pytest.raises(ValueError, match=r"run-0.json was made with .*0.05.*, not with .*0.1.*delete the file"):
        run_study("few", train, [RUNS[0] | {"lr": 0.1}], n_jobs=1)
    with pytest.raises(ValueError, match=r"run-0.json was made with .*'seed': 0.*, not with .*'seed': 1"):
        path = place / "digits" / "run-0.json"  # as saved by a notebook, without the study's entries
        record = json.loads(path.read_text())
        path.write_text(json.dumps({key: record[key] for key in record if key not in ("study", "arguments")}))
        run_study("few", train, [RUNS[0] | {"seed": 1}], n_jobs=1)


@pytest.mark.parametrize(
    "runs, complaint",
    [
        ([RUNS[0], RUNS[0]], "a name of its own"),
        ([{"seed": 0}], "plain file name .*None"),
        ([{"name": "a/b"}], "plain file name .*a/b"),
        ([{"name": "path", "folder": Path("here")}], "that JSON can hold .*here"),
        ([{"name": "rate", "lr": math.nan}], "not JSON compliant"),
    ],
)
def test_wrong_runs_are_refused_before_any_is_trained(place, runs, complaint):
    with pytest.raises(ValueError, match=complaint):
        run_study("wrong", None, runs, n_jobs=1)


def test_runs_never_share_a_process(place, undisturbed):
    """Threads would draw each other's random numbers."""
    with joblib.parallel_config(backend="threading"):
        run_study("killed", train, RUNS, n_jobs=3)
    assert results(place) == undisturbed


def test_records_of_other_data_are_not_mixed_in(place, monkeypatch):
    run_study("few", train, RUNS[:1], n_jobs=1)
    path = place / "course" / "run-1.json"
    path.parent.mkdir()
    record = json.loads((place / "digits" / "run-0.json").read_text())
    path.write_text(json.dumps(record | {"name": "run-1", "data": "MNIST", "arguments": RUNS[1]}))
    with pytest.raises(ValueError, match=r"records of runs on the same data.*digits.*MNIST"):
        run_study("few", train, RUNS[:2], n_jobs=1)


def test_a_record_of_another_name_is_an_error(place):
    def renamed(name):
        run, model = untrained(name)
        return run | {"name": "other"}, model

    with pytest.raises(RuntimeError, match="run-0: ValueError: expected train to return a record of that name"):
        run_study("few", renamed, [{"name": "run-0"}], n_jobs=1)


def test_a_run_that_fails_does_not_stop_the_others(place):
    runs = [RUNS[0], RUNS[1] | {"lr": 1e9}, RUNS[2]]
    with pytest.raises(RuntimeError, match=r"1 of 3 runs failed.*run-1: FloatingPointError: epoch 1: the loss"):
        run_study("few", train, runs, n_jobs=1)
    assert sorted(path.stem for path in (place / "digits").glob("*.json")) == ["run-0", "run-2"]


def test_the_bar_shows_the_runs_that_are_left(place, monkeypatch, capsys):
    shown = partialmethod(utils.tqdm.__init__, disable=False)  # whatever TQDM_DISABLE says
    monkeypatch.setattr(utils, "tqdm", type("Shown", (utils.tqdm,), {"__init__": shown}))
    run_study("few", train, RUNS[:1], n_jobs=1)
    capsys.readouterr()
    run_study("few", train, RUNS[:3], n_jobs=1)
    printed = capsys.readouterr().out
    assert "few:  33%" in printed and "1/3 [00:00<?, ?run/s]" in printed


@pytest.fixture(scope="module")
def context():
    """Processes that start fast and share their memory: they are forked from one that has imported everything."""
    if sys.platform != "linux":
        pytest.skip("forking with torch is safe on Linux only")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["utils", "model", "torch._dynamo", "sklearn.model_selection"])
    return context


@pytest.mark.slow
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
            process.join(moments.uniform(0, 0.6) if kills < 20 else 120)
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
            records = set((folder / "digits").glob("*.json"))
            assert finished <= records
            for path in records - finished:
                assert json.loads(path.read_text())["epochs"] == 3  # whole
                assert torch.load(path.with_suffix(".pt"), weights_only=True)
            finished = records
            if process.exitcode != -signal.SIGKILL:
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


@pytest.mark.slow
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
    process.join(120)
    assert process.exitcode == 0 and results(tmp_path) == undisturbed


@pytest.mark.slow
def test_on_a_cluster(tmp_path, undisturbed, context, monkeypatch):
    """The same call on the two workers of a Dask cluster on this machine's loopback address."""
    monkeypatch.setenv("MNIST_ROOT", "digits")
    monkeypatch.setenv("MNIST_RESULTS", str(tmp_path))
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        distributed.LocalCluster(
            2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, env=dict(os.environ)
        ) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config(backend="dask"),
    ):
        run_study("killed", train, RUNS)
        workers = client.run(os.getpid).values()
    records = [json.loads(path.read_text()) for path in (tmp_path / "digits").glob("*.json")]
    assert {record["process"] for record in records} <= set(workers) and len(workers) == 2
    assert results(tmp_path) == undisturbed
