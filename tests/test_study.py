"""Studies: several runs at a time, and what is left of them when they are killed."""

import io
import json
import multiprocessing.forkserver
import os
import random
import time
from functools import partial

import helpers
import joblib
import psutil
import pytest
import torch

from study import _moving, run_study, tqdm
from utils import load_mnist, save_run

RUNS = [{"name": f"few/{n}", "seed": n, "lr": 0.05, "epochs": 2, "ema_decay": 0.8} for n in range(6)]
never = partial(run_study, "few", None, n_jobs=1)  # each run without a record fails: TypeError


def train(**run):
    record, model = helpers.train(helpers.first_of(load_mnist("digits", device="cpu")), **run, checkpoint=True)
    return record | {"process": multiprocessing.current_process().name}, model


def test_finished_runs_are_not_repeated_and_nothing_is_printed(place, monkeypatch, capsys):
    records = run_study("few", train, RUNS[:2], n_jobs=1)
    assert [(record["name"], record["arguments"]) for record in records] == [(run["name"], run) for run in RUNS[:2]]
    assert "Train:" not in capsys.readouterr().out  # no wall of lines
    times = {path: path.stat().st_mtime_ns for path in place.rglob("*.*")}
    assert never(RUNS[1::-1]) == records[::-1]
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*.*")} == times and len(times) == 4
    monkeypatch.setattr("study.RESULTS", place / "digits")
    monkeypatch.setenv("MNIST_RESULTS", str(place / "mine"))
    assert never(RUNS[:2]) == records and not (place / "mine").exists()
    save_run(records[0] | {"seed": 7}, torch.nn.ReLU())  # of another seed
    assert never(RUNS[:2]) == records and "your own" not in capsys.readouterr().out


def test_wrong_runs_are_refused_and_a_record_is_taken_only_for_its_own_run_beside_others_on_the_same_data(place):
    record, model = train(**RUNS[0])
    other = r"0.json was made with .*0.1,.*, not with .*0.05,.*: rename the run, or delete the file"
    wrong = [
        ({}, [RUNS[0], RUNS[0]], "a name of its own"), ({}, [{"seed": 0}], "plain file name .*None"),
        ({}, [{"name": "few/a/b"}], "plain file name .*few/a/b"), ({}, [{"name": "b/a"}], "'few/...', got 'b/a'"),
        ({}, [{"name": "a"}], "'few/...', got 'a'"), ({}, [RUNS[1] | {"lr": float("nan")}], "not JSON compliant"),
        ({}, [RUNS[1] | {"lr": 1j}], "that JSON can hold .*1j"), ({"seed": 7}, RUNS[:1], "TypeError"),
        ({"epochs": 7}, RUNS[:1], "TypeError"), ({"arguments": RUNS[0] | {"lr": 0.1}}, RUNS[:1], other),
    ]  # fmt: skip
    for change, runs, complaint in wrong:
        save_run(record | change, model)
        with pytest.raises((RuntimeError, ValueError), match=complaint):
            never(runs)
    for change in ({"arguments": RUNS[0]}, {}):  # the second one is that of a notebook
        save_run(record | change, model)
        assert never(RUNS[:1]) == [record | change]
    (place / "course" / "few").mkdir(parents=True)
    (place / "course" / "few" / "1.json").write_text(json.dumps(record | RUNS[1] | {"data": "MNIST"}))
    with pytest.raises(ValueError, match=r"records of runs on the same data.*digits.*MNIST"):
        never(RUNS[:2])


def test_one_s_own_runs_come_before_the_course_s_but_on_the_digits_only_all_together(place, monkeypatch, capsys):
    mine, course = [], []
    for run in RUNS[:2]:
        record, model = train(**run)
        mine.append(record | {"seconds": 1})
        course.append(record | {"seconds": 2, "data": "MNIST"})
        (place / "course" / "few").mkdir(parents=True, exist_ok=True)
        (place / "course" / f"{run['name']}.json").write_text(json.dumps(course[-1]))
    assert never(RUNS[:2]) == course and "your own" not in capsys.readouterr().out
    save_run(mine[0], model)
    assert never(RUNS[:2]) == course
    save_run(mine[1], model)
    assert never(RUNS[:2]) == mine and "your own runs, from" in (said := capsys.readouterr().out) and "few/1" in said
    monkeypatch.setattr("study.find_mnist", lambda: place)  # on MNIST
    save_run(course[0] | {"seconds": 3}, model)
    assert [record["seconds"] for record in never(RUNS[:2])] == [3, 2]


def test_a_notebook_s_own_run_in_another_number_format_is_none_of_the_study(place, monkeypatch):
    monkeypatch.setattr("study.find_mnist", lambda: place)  # on MNIST
    record, model = train(**RUNS[0])
    course = record | {"data": "MNIST", "precision": "bfloat16 autocast", "arguments": RUNS[0]}
    (place / "course" / "few").mkdir(parents=True)
    (place / "course" / "few" / "0.json").write_text(json.dumps(course))
    own = record | {"data": "MNIST", "seconds": 3}
    for number_format, counts in (("float32", course), ("bfloat16 autocast", own | {"precision": "bfloat16 autocast"})):
        save_run(own | {"precision": number_format}, model)
        assert never(RUNS[:1]) == [counts]


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_trained(place, monkeypatch):
    (place / "file").touch()
    monkeypatch.setenv("MNIST_RESULTS", str(place / "file"))
    with pytest.raises(OSError, match="MNIST_RESULTS name another"):
        never(RUNS[:2])


def test_the_checkpoint_of_a_training_in_progress_stays(place):
    save_run(*train(**RUNS[0]))
    (checkpoint := place / "digits" / "few" / "0.checkpoint").touch()
    os.utime(checkpoint.with_suffix(".json"), (0, 0))  # so the checkpoint was begun after it
    never(RUNS[:1])
    assert checkpoint.is_file()
    os.utime(checkpoint, (0, 0))  # left, as the other one, by a study that was killed when it had saved the record
    checkpoint.with_suffix(".pt.1.tmp").touch()
    never(RUNS[:1])
    assert {path.name for path in place.rglob("*.*")} == {"0.json", "0.pt"}


def test_a_run_that_fails_does_not_stop_the_others_and_the_bar_shows_those_left(place, monkeypatch, capsys):
    monkeypatch.setattr("study.tqdm", partial(tqdm, disable=False))  # whatever TQDM_DISABLE says
    save_run(*train(**RUNS[0]))
    runs = [RUNS[0], RUNS[1] | {"lr": 1e9}, *RUNS[2:4]]
    failed = r"2 of 4 .*few/1: FloatingPointError: epoch 1: .*few/2: ValueError: .* a record of that name, got 'few/a'"
    with pytest.raises(RuntimeError, match=failed):
        run_study("few", lambda **run: train(**run | ({"name": "few/a"} if run["seed"] == 2 else {})), runs, n_jobs=1)
    assert sorted(path.name for path in place.rglob("*.json")) == ["0.json", "3.json"]
    assert "few:  25%" in (printed := capsys.readouterr().out) and "1/4 [00:00<?, ?run/s]" in printed


def test_the_bar_moves_while_a_run_takes_long():
    with tqdm(total=2, file=(screen := io.StringIO()), disable=False) as bar, _moving(bar, seconds=0.02):
        before = screen.tell()
        time.sleep(0.5)
        assert screen.tell() > before


def test_runs_in_one_process_wait_for_each_other_for_threads_would_share_random_numbers(place, monkeypatch):
    histories = []
    for backend, n_jobs in (("threading", 3), ("multiprocessing", 1)):  # which, like Ray's, returns all in the end
        monkeypatch.setenv("MNIST_RESULTS", str(place / backend))
        with joblib.parallel_config(backend=backend):
            histories.append([record["history"] for record in run_study("few", train, RUNS[:3], n_jobs=n_jobs)])
    assert histories[0] == histories[1]


def results(folder):  # what a study left: of each run its history and its weights, and nothing else
    left = sorted(folder.rglob("*.*"))
    assert [path.name for path in left] == [f"{n}{suffix}" for n in range(6) for suffix in (".json", ".pt")]
    return [path.read_bytes() if path.suffix == ".pt" else json.loads(path.read_text())["history"] for path in left]


def study_to(folder, n_jobs, started):
    os.environ.update(MNIST_ROOT="digits", MNIST_RESULTS=str(folder), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)  # as in the workers, because the results are compared bit for bit
    if n_jobs is None:  # on a Dask cluster on this machine's loopback address
        distributed = pytest.importorskip("distributed")
        client = distributed.Client(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None)
        joblib.parallel_config(backend="dask", client=client)
    started.set()
    run_study("few", train, [run | {"epochs": 20} for run in RUNS], n_jobs=n_jobs)
    joblib.externals.loky.get_reusable_executor().shutdown()  # its workers would wait for minutes


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Trains in a process of its own; whatever happens to it, if it ends, it leaves what the first, quiet one left."""
    psutil.LINUX or pytest.skip("forking with torch is safe on Linux only")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["study", "torch._dynamo", "sklearn.datasets", "distributed"])

    def study(folder, n_jobs=1, seconds=120, watch=None):
        started = context.Event()
        process = context.Process(target=study_to, args=(folder, n_jobs, started))
        process.start()
        assert started.wait(60)
        watch(process) if watch else process.join(seconds)
        process.kill()
        process.join()
        assert process.exitcode == -9 or results(folder) == results(quiet)
        return process.exitcode

    assert study(quiet := tmp_path_factory.mktemp("quiet")) == 0
    yield study
    multiprocessing.forkserver._forkserver._stop()


@pytest.mark.slow
def test_killed_twenty_times_at_random_moments_and_started_again_nothing_is_lost(tmp_path, study):
    moments, kills, code, folder, finished = random.Random(0), 0, None, tmp_path / "0", set()
    while kills < 20 or code != 0:
        code = study(folder, seconds=moments.uniform(0, 0.6) if kills < 20 else 120)
        kills, records = kills + (code == -9), set(folder.rglob("*.json"))
        assert finished <= records and kills <= 20  # rather than started again for ever
        for path in records - finished:  # whole
            assert json.loads(path.read_text())["epochs"] == 20 and torch.load(path.with_suffix(".pt"))
        folder, finished = (folder, records) if code else (tmp_path / str(kills), set())
    assert any("continued_after" in json.loads(path.read_text()) for path in tmp_path.rglob("*.json"))


@pytest.mark.slow
def test_killed_while_two_workers_train_they_end_too_and_the_study_can_go_on(tmp_path, study):
    workers = []

    def until_two_train(process):
        before = set(tmp_path.rglob("*.checkpoint"))
        while len(set(tmp_path.rglob("*.checkpoint")) - before) < 2 and process.is_alive():
            process.join(0.01)
        workers[:] = psutil.Process(process.pid).children()

    for _ in range(2):
        assert study(tmp_path, 2, watch=until_two_train) == -9 and len(workers) >= 2
        assert not psutil.wait_procs(workers, timeout=10)[1]
    assert study(tmp_path, 2) == 0
    assert {json.loads(path.read_text())["process"][:12] for path in tmp_path.rglob("*.json")} == {"LokyProcess-"}


@pytest.mark.slow
def test_on_a_cluster(tmp_path, study):
    assert study(tmp_path, n_jobs=None) == 0
    assert {json.loads(path.read_text())["process"][:11] for path in tmp_path.rglob("*.json")} == {"Dask Worker"}
