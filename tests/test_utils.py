"""The tools, from augmenting to checking, each on real images."""

import ast
import copy
import inspect
import json
import math
import os
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import same_weights, train
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import MultiStepLR, StepLR

import utils
from checkpoint import torch_bytes
from files import write_whole
from model import LeNet5, Net8k, Skeleton
from utils import augment, check_target, evaluate, load_run, load_runs, load_weights, normalize, predict, save_run

NO_NAMES = "../x", "", ".hidden", "a/b/c"
ACCURACIES = st.lists(st.sampled_from([99.39, 99.4, 99.4, 99.41, 99.5, math.nan]), max_size=17)
quick = settings(deadline=None, max_examples=40, derandomize=True, suppress_health_check=list(HealthCheck))


@quick
@given(st.integers(0, 99), st.floats(0, 180), st.floats(0, 20), st.floats(0, 0.2), st.floats(0, 0.1))
def test_augment_moves_each_image_by_a_map_of_its_own(seed, degrees, shear, scale, translate):
    places = torch.arange(28) - 13.5
    blot = 255 * torch.exp(-((places[:, None] - 4) ** 2 + (places + 3) ** 2) / 4)  # about (x, y) = (-3, 4)
    torch.manual_seed(seed)
    moved = augment(blot.expand(8, 1, 28, 28), degrees=degrees, shear=shear, scale=scale, translate=translate)[:, 0]
    torch.manual_seed(seed)  # the same draws, each of them from minus to plus its amount
    draws = torch.rand(5, 8) * 2 - 1
    angle, slant, size, right, down = draws * torch.tensor([degrees, shear, scale, translate, translate])[:, None]
    turn = torch.polar(torch.ones(8), angle.deg2rad())  # clockwise on the page, where rows count downwards
    expected = (1 + size) * (-3 + 4 * slant.deg2rad().tan() + 4j) * turn + 28 * (right + 1j * down)
    x, y = ((moved.sum(axis) * places).sum(1) / moved.sum((1, 2)) for axis in (1, 2))
    torch.testing.assert_close(x + 1j * y, expected, atol=0.1, rtol=0)
    torch.testing.assert_close(moved.sum((1, 2)), blot.sum() * (1 + size) ** 2, atol=0, rtol=0.05)


def test_augment_keeps_the_range_and_bends_smoothly_and_no_further_than_asked(few):
    assert torch.allclose(augment(few.test_images), few.test_images.float(), atol=0.01)  # nothing asked
    torch.manual_seed(0)
    ink = torch.full((200, 1, 28, 28), 255, dtype=torch.uint8)
    moved = augment(ink, degrees=20, translate=0.2, scale=0.2, shear=10)
    assert moved.dtype == torch.float32 and moved.shape == ink.shape and moved.min() == 0 and moved.max() <= 255.01
    assert moved[:, :, 0, 0].eq(0).float().mean() > 0.3  # corners come from outside, the background
    assert augment(0 * ink, degrees=20, translate=0.2).eq(0).all()
    places, bars = torch.arange(28) - 13.5, torch.zeros(300, 1, 28, 28)
    bars[..., 13:15] = 255
    for bent in (augment(bars, elastic=0.1)[:, 0], augment(bars.mT, elastic=0.1)[:, 0].mT):  # across and down
        shifts = ((bent * places).sum(2) / bent.sum(2))[:, 4:24]  # of the bar's middle, clear of the border
        assert abs(shifts.mean()) < 0.2 and 1.5 < shifts.abs().quantile(0.95) < 2.8  # a tenth of 28 pixels
        assert (shifts[:, 1:] - shifts[:, :-1]).abs().quantile(0.95) < 1  # neighbours stay together
        assert shifts.std(1).mean() > 0.4  # and the bar is bent, not only moved


def test_train_epoch_is_the_loop_of_notebook_1_word_for_word():
    def has(lines):  # in this order, but for the indentation
        source = (line.strip() for line in inspect.getsource(utils.train_epoch).splitlines())
        return all(line in source for line in lines)

    notebook = json.loads((utils.ROOT / "notebooks" / "01_baseline.ipynb").read_text(encoding="utf-8"))
    [code] = [code for cell in notebook["cells"] if "def train_epoch(" in (code := "".join(cell["source"]))]
    loop = [line.strip() for line in code.partition("def train_epoch(")[2].splitlines()[1:] if line.strip()]
    loop = loop[: 1 + next(i for i, line in enumerate(loop) if line.startswith("return "))]
    assert len(loop) > 10 and has(loop)
    assert not any(has([*loop[:i], f"{loop[i]} # changed", *loop[i + 1 :]]) for i in range(len(loop)))


def test_no_function_is_long_and_few_are_private():
    functions = [node for node in ast.walk(ast.parse(inspect.getsource(utils))) if isinstance(node, ast.FunctionDef)]
    for node in functions:
        start = node.body[0].end_lineno - node.body[0].lineno if ast.get_docstring(node) else -1
        assert node.end_lineno - node.lineno - start <= 60, node.name
    assert sum(node.name.startswith("_") and node.name != "__init__" for node in functions) <= 10


@pytest.mark.parametrize("bfloat16", [False, True])
def test_figures_count_every_image_and_the_average_is_kept(few, capsys, monkeypatch, bfloat16):
    """Worked out from what the loss and the optimizer see, batch by batch; the last one is short."""
    monkeypatch.setattr(utils, "has_bfloat16", lambda device: bfloat16)
    torch.manual_seed(0)
    model, batches, states = Skeleton(True, 0.1).eval(), [], []  # fit must switch to training itself
    model.register_buffer("replaced", torch.zeros(()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer.register_step_post_hook(lambda *_: states.append(copy.deepcopy(model.state_dict())))

    def smooth(logits, labels, images):
        assert model.training and logits.dtype == torch.float32 and images.min() == normalize(torch.zeros(()))
        model.replaced = model.replaced + 1  # not in place, as BatchNorm's buffers are changed
        loss = F.cross_entropy(logits, labels, label_smoothing=0.5)
        batches.append((len(labels), loss.item(), (logits.argmax(1) == labels).sum().item()))
        return loss

    run, _ = train(few, model=model, optimizer=optimizer, schedule=lambda o: StepLR(o, 3), loss=smooth, ema_decay=0.15)
    history, average = run["history"], states[0]
    for share, latest in zip([0.1, 0.15, 0.15, 0.15, 0.15], states[1:]):  # 1 / 10, and then the decay: 2 / 11 is more
        for key, value in latest.items():
            average[key] = share * average[key] + (1 - share) * value if value.is_floating_point() else value
    torch.testing.assert_close(dict(model.state_dict()), dict(average))
    for epoch in (0, 1):
        counts, losses, correct = zip(*batches[3 * epoch : 3 * epoch + 3])
        assert counts == (100, 100, 50) and history["train_accuracy"][epoch] == pytest.approx(sum(correct) / 2.5)
        assert history["train_loss"][epoch] == pytest.approx(np.average(losses, weights=counts))
    logits = model.eval()(normalize(few.test_images))  # their loss is the cross-entropy in any case
    loss, correct = F.cross_entropy(logits, few.test_labels).item(), (logits.argmax(1) == few.test_labels).sum().item()
    assert (history["test_loss"][1], history["test_accuracy"][1]) == pytest.approx((loss, correct / 1.2), rel=1e-4)
    assert f"Test set: Average loss: {loss:.4f}, Accuracy: {correct}/120 (" in capsys.readouterr().out
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0005) and run["settings"]["optimizer"]["lr"] == 0.05
    assert run["precision"] == ("bfloat16 autocast" if bfloat16 else "float32")
    assert run["settings"]["loss"] == "smooth" and train(few)[0]["settings"]["loss"] == "cross_entropy"
    average = utils.Average(model, 0.9)
    kept = [average.kept() for average.steps in (0, 1, 2, 11, 81, 1000)]
    assert kept == [0, 1 / 10, 2 / 11, 11 / 20, 0.9, 0.9]


def test_records_have_the_scheduler_s_arguments_and_nothing_private(few):
    for name, schedule, recorded in (
        ("StepLR", lambda o: StepLR(o, 3), {"step_size": 3, "gamma": 0.1}),
        ("MultiStepLR", lambda o: MultiStepLR(o, [3, 5]), {"milestones": {3: 1, 5: 1}, "gamma": 0.1}),
        ("OneCycleLR", lambda o: utils.one_cycle(o, 6), {"total_steps": 6, "pct_start": 0.2, "cycle_momentum": False}),
    ):
        scheduler = train(few, schedule=schedule)[0]["settings"]["scheduler"]
        assert scheduler["class"] == name and recorded.items() <= scheduler.items()
        assert json.dumps(scheduler).count('"_') == 0 and "last_epoch" not in scheduler
    for file in utils.RESULTS.glob("*/*.json"):  # of the course
        record = file.read_text(encoding="utf-8")
        keys = ("total_steps", "pct_start", "cycle_momentum") if "OneCycleLR" in record else ()
        assert '"_' not in record and all(f'"{key}"' in record for key in keys), file


def test_evaluation_leaves_no_trace_and_the_seed_decides(few):
    model = Skeleton(batch_norm=True, dropout=0.5).train()
    model.layers[1].eval()  # a frozen layer stays frozen

    def state():
        return model.state_dict(), [module.training for module in model.modules()], torch.get_rng_state()

    before = copy.deepcopy(state())
    loss, correct = evaluate(model, few.test_images, few.test_labels)
    assert math.isfinite(loss) and 0 <= correct <= 120
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    guesses = [predict(model, few.test_images, batch_size=size).argmax(1) for size in (7, None)]
    assert torch.equal(*guesses)
    asked = {"augmentation": {"degrees": 10, "translate": 0.05}, "ema_decay": 0.9}
    (first, model), (again, same), (other, _) = (train(few, seed=seed, **asked) for seed in (3, 3, 4))
    assert first["history"] == again["history"] != other["history"] and same_weights(model, same)
    changes = [{}, *({"augmentation": {"degrees": 10}, "augmented_epochs": epochs} for epochs in (0, 1, 2, None))]
    plain, none, some, both, every = (train(few, **change)[0]["history"] for change in changes)
    assert plain == none and both == every and len({str(history) for history in (none, some, both)}) == 3


def test_records_and_weights_come_back_as_they_were(few, place, monkeypatch):
    run, model = train(few)
    known = {"name": "few/short", "model": "Skeleton", "parameters": 16_166, "epochs": 2, "seed": 0, "data": "digits"}
    assert run.items() >= (known | {"evaluated_on": "test"}).items() and 0 < run["seconds"] < 60
    names, folder = ["few/seed9", "few/seed10", "few/short"], place / "digits" / "few"
    for name in names:
        save_run(run | {"name": name}, model)
    old = {file: file.read_bytes() for file in folder.iterdir()}
    assert {file.name for file in old} == {f"{name[4:]}{suffix}" for name in names for suffix in (".json", ".pt")}
    monkeypatch.setattr(utils, "RESULTS", place / "digits")
    assert load_run("few/short") == json.loads(json.dumps(run)) and [run["name"] for run in load_runs("few")] == names
    loaded = load_weights(Skeleton(True, 0.1), "few/short")
    assert same_weights(model, loaded) and not loaded.training
    with pytest.raises(RuntimeError, match="Net8k"):
        load_weights(Net8k(), "few/short")
    for wrong, complaint in (({"seconds": math.nan}, "JSON"), *(({"name": name}, "plain file") for name in NO_NAMES)):
        with pytest.raises(ValueError, match=complaint):
            save_run(run | wrong, model)
    monkeypatch.setattr(os, "replace", lambda *paths: 1 / 0)  # as if the disk were full, or the file open elsewhere
    with pytest.raises(ZeroDivisionError):
        save_run(run | {"seconds": 0.0}, model)
    assert {file: file.read_bytes() for file in folder.iterdir()} == old  # and nothing is left over


def test_what_was_written_is_what_is_read_and_a_line_says_which_file_it_was(few, place, capsys, monkeypatch):
    run, model = train(few)
    other = Skeleton(True, 0.1)

    def read(name="few/0"):
        weights = load_weights(Skeleton(True, 0.1), name)
        return load_run(name)["seed"], "its own" if same_weights(weights, model) else "another's"

    for name in ("few/0", "few/1"):
        record = json.dumps(run | {"name": name, "seed": 1, "data": "MNIST"})
        weights = torch_bytes(other.state_dict())
        write_whole({place / "course" / f"{name}.pt": weights, place / "course" / f"{name}.json": record.encode()})
    capsys.readouterr()
    assert read() == (1, "another's") and len(load_runs("few")) == 2 and capsys.readouterr().out == ""
    save_run(run | {"name": "few/0", "seed": 2}, model)  # of the same name, on the digits
    assert read() == (2, "its own")
    said = capsys.readouterr().out
    assert f"few/0 is your own run: {place / 'digits' / 'few' / '0'}.pt\n" in said and "0.json\n" in said
    assert [run["seed"] for run in load_runs("few")] == [2]  # not beside runs on MNIST
    assert f"few: 1 of these 1 records are your own, from {place / 'digits' / 'few'}\n" == capsys.readouterr().out
    save_run(run | {"name": "few/0", "seed": 3, "data": "MNIST"}, model)  # later than the one on the digits
    assert read() == (3, "its own") and [run["seed"] for run in load_runs("few")] == [3, 1]
    assert f"few: 1 of these 2 records are your own, from {place / 'few'}\n" in capsys.readouterr().out
    assert read("few/1") == (1, "another's") and capsys.readouterr().out == ""  # the course's
    save_run(run | {"name": "few/0", "seed": 5}, model)
    for in_use, seed in ((few.name, 5), ("MNIST", 3), (None, 5)):  # loaded last; None: in a new session
        monkeypatch.setattr("mnist.Data.in_use", in_use)
        assert read() == (seed, "its own") and load_runs("few")[0]["seed"] == seed
    save_run(run | {"name": "mine/0", "seed": 4}, model)
    assert read("mine/0") == (4, "its own") and load_runs("mine")[0]["seed"] == 4
    (place / "few" / "0.pt").unlink()  # never the course's weights beside one's own record
    monkeypatch.setattr("mnist.Data.in_use", "MNIST")
    with pytest.raises(FileNotFoundError, match=r"no 0.pt in"):
        load_weights(Skeleton(True, 0.1), "few/0")
    (place / "link").symlink_to(place / "course")
    capsys.readouterr()
    for same in ("link", "few/../course", "course/"):
        monkeypatch.setenv("MNIST_RESULTS", str(place / same))
        assert read() == (1, "another's") and len(load_runs("few")) == 2 and capsys.readouterr().out == ""
    monkeypatch.setenv("MNIST_RESULTS", str(place))
    with pytest.raises(FileNotFoundError, match=rf"no 2.json in {place}/few or {place}/course/few; there are: 0, 1$"):
        load_run("few/2")


def test_the_folder_for_results_is_tried_before_the_training(few, place, monkeypatch, capsys):
    (place / "file").touch()
    monkeypatch.setenv("MNIST_RESULTS", str(place / "file" / "results"))
    for call in (lambda: train(few), lambda: train(few, checkpoint=True)):
        with pytest.raises(
            OSError, match=r"file/results/digits/few/short.json \(Not a directory\).*MNIST_RESULTS name another"
        ):
            call()
    assert "Train:" not in capsys.readouterr().out
    monkeypatch.setenv("MNIST_RESULTS", str(place))
    for name in ("few/" + 250 * "x", 300 * "x" + "/few", "taken", "folder"):
        (place / "digits" / "folder.json").mkdir(parents=True, exist_ok=True)
        (place / "digits" / "taken").unlink(missing_ok=True)
        with pytest.raises(
            OSError, match=r"\((File name too long|it is a folder|No such file or directory)\).*MNIST_RESULTS"
        ):
            (place / "digits" / "taken").symlink_to(place / "unmounted")
            train(few, name=name + "/run" * (name == "taken"))
    shutil.rmtree(place / "digits")
    train(few, name="few/" + 225 * "x")
    run, model = train(few)
    assert [path.name for path in place.rglob("*")] == ["file"]  # the trial leaves nothing
    (place / "digits").touch()  # in the meantime
    with pytest.raises(OSError, match=r"MNIST_RESULTS name another folder.*Then call save_run again"):
        save_run(run, model)
    monkeypatch.setattr("utils.check_folder", lambda *_: None)
    train(few, checkpoint=True)  # to its end, all the same
    assert capsys.readouterr().out.count("short.checkpoint could not be written (") == 2
    monkeypatch.setenv("HOME", str(place / "home"))
    monkeypatch.setenv("MNIST_RESULTS", "~/runs")
    save_run(run, model)
    assert (place / "home" / "runs" / "digits" / "few" / "short.pt").is_file() and load_run("few/short") == run


def test_runs_of_a_study_are_grouped_by_what_they_share():
    grouped = utils.by_recipe(load_runs("choice-8k"))
    assert list(grouped)[:2] == ["adamw", "average-epoch"] and {len(runs) for runs in grouped.values()} == {2}
    assert all(
        run["name"] == f"choice-8k/{name}-seed{seed}" for name in grouped for seed, run in enumerate(grouped[name])
    )
    assert list(utils.by_recipe([{"name": "folds/best8k-12-fold1-seed0"}, {"name": "plain"}])) == ["best8k-12", "plain"]


def test_missing_and_broken_records_say_what_to_do(place, monkeypatch):
    monkeypatch.setattr(utils, "RESULTS", place)
    weights = torch_bytes(Net8k().state_dict())[:5000]
    files = {"half.json": b'{"name": "half', "list.json": b"[1]", "a.pt": weights, "b.pt": b"", "c.pt": b"no weights"}
    write_whole({place / "few" / name: content for name, content in files.items()})
    load = {"json": load_run, "pt": lambda name: load_weights(Net8k(), name)}
    for stem, suffix in (name.split(".") for name in files):
        with pytest.raises(ValueError, match=rf"{stem}.{suffix} (is not the record of a run|does not hold weights)"):
            load[suffix](f"few/{stem}")
    for suffix, names in (("json", "half, list"), ("pt", "a, b, c")):
        with pytest.raises(FileNotFoundError, match=rf"no lost.{suffix} in .*few; there are: {names}$"):
            load[suffix]("few/lost")
        for load_lost in (load_runs, load[suffix]):
            for name in ("lost", "lost/lost", ""):
                with pytest.raises(FileNotFoundError, match=r"no study .*; there are: few$"):
                    load_lost(name)


def test_what_makes_no_sense_is_refused(few):
    for amount in ({"degrees": -1}, {"elastic": -0.1}, {"scale": 1}, {"shear": 90}):
        with pytest.raises(ValueError, match="expected amounts of 0 or more"):
            augment(few.test_images, **amount)
    for images in (few.test_images[0, 0], few.test_images[:2, :, :20]):
        with pytest.raises(ValueError, match=rf"square images of shape .*{re.escape(str(tuple(images.shape)))}"):
            augment(images)
    other = torch.optim.SGD(LeNet5().parameters(), lr=0.1)
    for complaint, wrong in (
        (r"expected amounts .*\(fractions\) below 1", {"augmentation": {"translate": 2}}),  # pixels
        ("augmented_epochs from 0 to 2", {"augmented_epochs": 1}),
        ("augmented_epochs from 0 to 2", {"augmented_epochs": 3, "augmentation": {"degrees": 1}}),
        ("ema_decay from 0 to 1", {"ema_decay": 1.1}),
        ("optimizer over this model's parameters", {"optimizer": other}),
        ("scheduler of this optimizer", {"schedule": lambda _: StepLR(other, 3)}),
        ("that JSON can hold.*int64", {"seed": np.int64(1)}),
        ("epoch 1: the loss is no longer a finite number.*learning rate", {"lr": 1e9}),
        *(("plain file name", {"name": name}) for name in NO_NAMES),
    ):
        with pytest.raises(FloatingPointError if "lr" in wrong else ValueError, match=complaint):
            train(few, **wrong)
    run = {"name": "a", "history": {"test_accuracy": [99.5]}, "data": "MNIST", "evaluated_on": "test", "epochs": 1}
    for check in (
        lambda: meets_target([9.5], last=0),
        lambda: utils.mean_accuracy(run, 0),
    ):
        with pytest.raises(ValueError, match="last to be 1 or more"):
            check()
    with pytest.raises(ValueError, match=r"in percent, as in 99\.4, got 0\.994"):
        check_target(run, max_parameters=1, max_epochs=1, accuracy=0.994, last=1)


def meets_target(accuracies, parameters=7_568, data="MNIST", last=5):
    run = {"data": data, "evaluated_on": "test", "parameters": parameters, "epochs": 15}  # the accuracies count
    run["history"] = {"test_accuracy": accuracies}
    return check_target(run, max_parameters=7_999, max_epochs=15, accuracy=99.4, last=last)


@quick
@given(ACCURACIES, st.integers(7_998, 8_000), st.integers(1, 6))
def test_a_target_is_met_if_every_condition_is(capsys, accuracies, parameters, last):
    held = len(accuracies) >= last and all(accuracy >= 99.4 for accuracy in accuracies[-last:])
    conditions = [parameters <= 7_999, len(accuracies) <= 15, held]
    assert meets_target(accuracies, parameters, last=last) == all(conditions)
    assert [line.endswith(": True") for line in capsys.readouterr().out.splitlines()] == conditions
    assert not meets_target(accuracies, data="digits", last=last)
    assert capsys.readouterr().out.startswith("no claim")


def test_check_target_names_the_condition_and_the_gap(capsys):
    for accuracies, parameters, problems in (
        ([98.0, 99.0, 99.4, 99.41, 99.4, 99.5, 99.4], 7_568, ("", "", "")),
        ([99.5] * 16, 8_000, ("8,000, 1 too many", "16, 1 too many", "")),
        ([99.5, 99.37, *[99.5] * 4], 7_568, ("", "", "epoch 2: 99.37, 0.03 short")),
        ([99.3, *[99.5] * 3, 99.39], 7_568, ("", "", "epoch 1: 99.30, 0.10 short; epoch 5: 99.39, 0.01 short")),
        ([99.5] * 4 + [math.nan], 7_568, ("", "", "epoch 5: nan, nan short")),
        ([99.5] * 4, 7_568, ("", "", "only 4 epochs were trained")),
    ):
        meets_target(accuracies, parameters)
        asked = "at most 7,999 parameters", "at most 15 epochs", "all of the last 5 epochs >= 99.40 on the test set"
        lines = [f"{of}: False ({problem})" if problem else f"{of}: True" for of, problem in zip(asked, problems)]
        assert capsys.readouterr().out.splitlines() == lines
