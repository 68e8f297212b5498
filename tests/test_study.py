"""Studies: several runs at a time, and what is left of them when they are killed."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import joblib
import pytest
import torch

import utils
from model import Skeleton
from utils import Data, fit, load_mnist, run_study

RUNS = [{"name": f"run-{seed}", "seed": seed, "lr": 0.05} for seed in range(6)]


def train(name, seed, lr, epochs=3):
    """A short run on 250 digits, which loads its own data."""
    torch.set_num_threads(1)
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
    return run, model


def study_to(folder, n_jobs, started=None):
    """The study, in a process of its own."""
    os.environ.update(MNIST_ROOT="digits", MNIST_RESULTS=str(folder), TQDM_DISABLE="1")
    if started:
        started.set()
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
    with pytest.raises(ValueError, match="a name of its own"):
        run_study("few", train, [RUNS[0], RUNS[0]], n_jobs=1)


def test_a_run_that_fails_does_not_stop_the_others(place):
    runs = [RUNS[0], RUNS[1] | {"lr": 1e9}, RUNS[2]]
    with pytest.raises(RuntimeError, match=r"1 of 3 runs failed.*run-1: FloatingPointError: epoch 1: the loss"):
        run_study("few", train, runs, n_jobs=1)
    assert sorted(path.stem for path in (place / "digits").glob("*.json")) == ["run-0", "run-2"]


def test_the_bar_shows_the_runs_that_are_left(place, monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    run_study("few", train, RUNS[:1], n_jobs=1)
    capsys.readouterr()
    run_study("few", train, RUNS[:3], n_jobs=1)
    printed = capsys.readouterr().out
    assert "few:  33%" in printed and "1/3 [00:00<?, ?run/s]" in printed


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_at_any_moment_nothing_is_lost(tmp_path, undisturbed):
    """Twenty times SIGKILL at random moments, each time started again: the result is that of the quiet study."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["utils"])
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
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                process.join()
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
    assert kills >= 20


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_with_its_workers_at_work(tmp_path, undisturbed):
    """The study's own process is killed while two workers train; the workers end by themselves."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_study; test_study.study_to({str(tmp_path)!r}, 2)"
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", code])
        end = time.monotonic() + 60
        while not list(tmp_path.rglob("*.checkpoint")) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        process.kill()
        process.wait()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert results(tmp_path) == undisturbed


def test_on_a_cluster(tmp_path, undisturbed, monkeypatch):
    """The same call on the two workers of a Dask cluster on this machine's loopback address."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("MNIST_ROOT", "digits")
    monkeypatch.setenv("MNIST_RESULTS", str(tmp_path))
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config(backend="dask"),
    ):
        run_study("killed", train, RUNS)
        used = client.run(lambda: "utils" in sys.modules)
    assert len(used) == 2 and all(used.values())
    assert results(tmp_path) == undisturbed
