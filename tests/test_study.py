"""Studies: several runs at a time, and what is left of them when they are killed."""

import json
import math
import os
from functools import partialmethod
from pathlib import Path

import joblib
import pytest
import torch

import utils
from model import Skeleton
from utils import Data, fit, load_mnist, run_study

RUNS = [{"name": f"run-{seed}", "seed": seed, "lr": 0.05} for seed in range(6)]


def first_of(digits: Data) -> Data:
    """250 training and 120 test digits."""
    return Data(
        digits.name, "test",
        digits.train_images[:250], digits.train_labels[:250], digits.test_images[:120], digits.test_labels[:120],
    )  # fmt: skip


def train(name, seed, lr, epochs=3):
    """A short run on 250 digits, which loads its own data."""
    torch.set_num_threads(1)  # in every process, because the results are compared bit for bit
    few = first_of(load_mnist("digits", device="cpu"))
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


def untrained(name):
    """A run of no epochs, and the process that it was in."""
    return {"name": name, "data": "digits", "history": {"test_accuracy": []}, "process": os.getpid()}, Skeleton()


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


def test_a_run_that_a_notebook_saved_is_not_taken_for_the_study_s(place, monkeypatch):
    [record] = run_study("few", train, RUNS[:1], n_jobs=1)
    monkeypatch.setattr(utils, "RESULTS", place / "digits")
    monkeypatch.setenv("MNIST_RESULTS", str(place / "mine"))
    utils.save_run({key: record[key] for key in record if key != "arguments"} | {"seed": 7}, Skeleton(True, 0.1))
    assert run_study("few", train, RUNS[:1], n_jobs=1) == [record]


def test_a_notebook_s_run_of_a_study_is_not_trained_again(place):
    """As in a clone where a notebook has put its own run in the place of the course's record."""
    [record] = run_study("few", train, RUNS[:1], n_jobs=1)
    (place / "digits" / "run-0.json").unlink()
    saved = {key: record[key] for key in record if key not in ("arguments", "process")}
    utils.save_run(saved, Skeleton(True, 0.1))
    assert run_study("few", None, RUNS[:1], n_jobs=1) == [saved]
    with pytest.raises(RuntimeError, match="run-0: TypeError"):  # of another study, it counts for nothing
        run_study("others", None, RUNS[:1], n_jobs=1)
    utils.save_run(saved | {"seed": 7}, Skeleton(True, 0.1))
    with pytest.raises(RuntimeError, match="run-0: TypeError"):  # nor with another seed
        run_study("few", None, RUNS[:1], n_jobs=1)


def test_the_checkpoint_of_a_training_in_progress_stays(place):
    run_study("few", train, RUNS[:1], n_jobs=1)
    record, checkpoint = (place / "digits" / f"run-0{suffix}" for suffix in (".json", ".checkpoint"))
    checkpoint.touch()
    os.utime(record, (0, 0))  # so the checkpoint was begun after it
    run_study("few", train, RUNS[:1], n_jobs=1)
    assert checkpoint.is_file()
    os.utime(checkpoint, (0, 0))  # the record was saved later, by a study that was killed before it could remove this
    run_study("few", train, RUNS[:1], n_jobs=1)
    assert not checkpoint.is_file()


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


@pytest.mark.slow
def test_runs_never_share_a_process(place, monkeypatch):
    """Threads would draw each other's random numbers."""
    run_study("one after another", train, RUNS, n_jobs=1)
    monkeypatch.setenv("MNIST_RESULTS", str(place / "threads"))
    with joblib.parallel_config(backend="threading"):
        run_study("threads", train, RUNS, n_jobs=3)
    assert results(place / "threads") == results(place)


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
