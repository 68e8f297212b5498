"""What fit, predict, evaluate and comparisons refuse, and what not, and that a record says what was used."""

import copy
import json
import math
import random
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import same_weights, train
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler as schedulers

from checks import _collapses, _planned_rates, check_comparable, check_images
from model import Net8k, Skeleton
from plots import parameters_by_layer, plot_digits, plot_networks, plot_runs, plot_seeds, print_runs
from utils import (
    augment,
    check_target,
    evaluate,
    load_run,
    load_weights,
    mean_accuracies,
    normalize,
    one_cycle,
    predict,
    save_run,
)

UNITS = {
    "from 0 to 1. .*ToTensor": lambda images: images.float() / 255,
    "from -0.4242 to 2.8": normalize,
    "from -1 to 1": lambda images: images / 127.5 - 1,
    "from 0 to 2": lambda images: images / 127.5,
    "torch.bool from 0 to 1": lambda images: images > 127,
    "uint8 from 0 to 1": lambda images: (images > 127).byte(),
    "from 0 to 16": lambda images: images / 255 * 16,  # scikit-learn's unit
    "from 0 to 510: .*clamp": lambda images: images.int() * 2,
    "from -30 to 225: .*clamp": lambda images: images.float() - 30,
    "nan": lambda images: images * math.nan,
    "tensor, got ndarray: torch.from_numpy": lambda images: images.numpy(),
    r"got \(120, 28, 28\): images.unsqueeze\(1\)": lambda images: images[:, 0],
    r"got \(120, 784\): images.view": lambda images: images.flatten(1),
}
LABELS = {
    r"got torch.float32 of shape \(120, 10\): one-hot\? labels.argmax": lambda labels: F.one_hot(labels, 10).float(),
    "got torch.int32 of shape .*long": lambda labels: labels.int(),
    "got torch.float32 of shape .*long": lambda labels: labels.float(),
    "got <class 'numpy.ndarray'>": lambda labels: labels.numpy(),
    "from 0 to 9, got 1 to 10": lambda labels: labels + 1,
    "120 images, 119 labels": lambda labels: labels[1:],
}


@pytest.mark.parametrize("complaint", UNITS)
def test_images_in_another_unit_or_form_are_refused_wherever_they_are_given(few, complaint):
    model, images = Skeleton(), UNITS[complaint](few.test_images)
    calls = [lambda: predict(model, images), lambda: evaluate(model, images, few.test_labels)]
    calls += [lambda: train(replace(few, test_images=images)), lambda: plot_digits(images)]
    if "shape" not in complaint and "got" not in complaint:
        calls += [
            lambda: train(replace(few, train_images=images, train_labels=few.test_labels)),
            lambda: augment(images),
        ]
    for call in calls:
        with pytest.raises(ValueError, match=f"expected .*{complaint}"):
            call()


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.sampled_from([torch.uint8, torch.int64, torch.float32, torch.float64, torch.bfloat16]), st.integers(17, 255))
def test_pixel_values_of_any_dtype_are_not_refused(dtype, brightest):
    images = torch.randint(0, brightest + 1, (2, 1, 28, 28)).to(dtype)
    images[0, 0, 0, 0] = brightest
    for of in (images, 0 * images, images[:0]):
        check_images(of)
    if dtype.is_floating_point:
        check_images(augment(images, degrees=20, elastic=0.05))


@pytest.mark.parametrize("complaint", LABELS)
def test_labels_in_another_form_are_refused(few, complaint):
    labels = LABELS[complaint](few.test_labels)
    for call in (
        lambda: evaluate(Skeleton(), few.test_images, labels),
        lambda: train(replace(few, test_labels=labels)),
    ):
        with pytest.raises(ValueError, match=f"expected .*{complaint}"):
            call()


@pytest.mark.parametrize(
    "wrong, complaint",
    [
        ({"epochs": 0}, "epochs to be 1 or more, a whole number, got 0"), ({"epochs": 2.0}, "epochs .* got 2.0"),
        ({"batch_size": 0}, "batch_size to be 1 or more"), ({"batch_size": True}, "batch_size .* got True"),
        ({"model": Net8k}, "an nn.Module, got .*brackets"), ({"model": nn.Flatten()}, "parameters to train"),
        ({"loss": nn.CrossEntropyLoss()}, "logits, labels, images: yours"), ({"loss": F.cross_entropy}, "lambda"),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_refused_in_a_sentence(few, wrong, complaint):
    with pytest.raises(ValueError, match=f"expected .*{complaint}"):
        train(few, optimizer=torch.optim.SGD(Skeleton().parameters(), lr=0.1), **wrong)
    empty = replace(few, test_images=few.test_images[:0], test_labels=few.test_labels[:0])
    for call in (lambda: train(empty), lambda: evaluate(Skeleton(), empty.test_images, empty.test_labels)):
        with pytest.raises(ValueError, match="one or more, got 0 images"):
            call()
    with pytest.raises(ValueError, match="batch_size to be 1 or more"):
        predict(Skeleton(), few.test_images, batch_size=0)


def test_a_model_is_trained_once_so_that_its_record_counts_all_epochs(few, place):
    run, model = train(few)
    save_run(run, model)
    stopped, batches = Skeleton(), []

    def interrupted(logits, labels, images):
        batches.append(len(labels))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return F.cross_entropy(logits, labels)

    with pytest.raises(KeyboardInterrupt):
        train(few, model=stopped, loss=interrupted)
    for mistake, complaint in (
        ({"augmentation": {"degree": 1}}, TypeError),
        ({"augmentation": {"scale": 1.5}}, ValueError),
    ):
        with pytest.raises(complaint):  # before the first step: it can be mended, and tried again
            train(few, model=(new := Skeleton()), **mistake)
        train(few, model=new)
    used = torch.optim.SGD((by_hand := Skeleton()).parameters(), lr=0.1, momentum=0.9)
    by_hand(normalize(few.test_images)).sum().backward()
    used.step()
    for again in (model, copy.deepcopy(model), stopped):
        with pytest.raises(ValueError, match="not trained before, got one that was, as 'few/short'"):
            train(few, model=again)
    with pytest.raises(ValueError, match="optimizer that has made no step"):
        train(few, model=by_hand, optimizer=used)

    def stepped(optimizer):
        scheduler = schedulers.StepLR(optimizer, 9)
        optimizer.step()  # without gradients, it does nothing
        scheduler.step()
        return scheduler

    with pytest.raises(ValueError, match="scheduler that has made no step"):
        train(few, schedule=stepped)


def test_weights_that_were_loaded_may_be_trained_further_and_the_record_says_so(few, place, capsys):
    save_run(*train(few))
    model = load_weights(Skeleton(True, 0.1), "few/short")
    run, _ = train(few, model=model, epochs=1, name="few/tuned")
    assert run["settings"]["weights_from"] == "few/short" and "weights_from" not in train(few)[0]["settings"]
    target = {"max_parameters": 20_000, "max_epochs": 1, "accuracy": 2.0, "last": 1}
    assert not check_target(run | {"data": "MNIST"}, **target)
    assert "no claim: this run began with the weights of few/short" in capsys.readouterr().out


class Warmup(schedulers.LRScheduler):
    """The usual form of schedulers that wrap another one, which holds the optimizer, too."""

    def __init__(self, optimizer, after):
        self.after = after
        super().__init__(optimizer)

    def get_lr(self):
        return [rate / 2 for rate in self.base_lrs] if self.last_epoch < 2 else self.after.get_last_lr()

    def step(self):
        if self.last_epoch > 2:
            self.after.step()
        super().step()


def remembering(optimizer):
    seen = []
    return schedulers.LambdaLR(optimizer, lambda step: seen.append(step) or 0.95 ** len(seen))


def drawing(optimizer):
    return schedulers.LambdaLR(optimizer, lambda step: random.uniform(0.5, 1))


def falling(optimizer):
    return schedulers.LambdaLR(optimizer, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4].__getitem__)


WHOLE = {  # for 2 epochs of 3 batches
    "Warmup": lambda o: Warmup(o, schedulers.CosineAnnealingLR(o, 6)),
    "LambdaLR, remembering": remembering, "LambdaLR, drawing": drawing, "LambdaLR, from a table": falling,
    "StepLR": lambda o: schedulers.StepLR(o, 3), "OneCycleLR": lambda o: one_cycle(o, 6),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 6),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 1e-4, 0.1, step_size_up=1, step_size_down=2),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: 0.9**step),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [3, 5]),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, total_iters=2), schedulers.ExponentialLR(o, 0.5)], [2]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler([schedulers.ExponentialLR(o, 0.9), one_cycle(o, 6)]),
}  # fmt: skip
COLLAPSED = {
    "StepLR": lambda o: schedulers.StepLR(o, 1), "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [1, 2]),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.1),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: step < 1),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 1),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o, 1.0), schedulers.ExponentialLR(o, 0.01)], [1]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_a_schedule_for_the_whole_training_passes_and_is_as_it_was(few, name):
    model = Skeleton()
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.05) if name == "StepLR" else 0.05, momentum=0.9)
    scheduler = WHOLE[name](optimizer)

    def state():
        kept = {key: value for key, value in vars(scheduler).items() if key not in ("optimizer", "after", "lr_lambdas")}
        return repr([kept, [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]])

    before, drawn = state(), (random.getstate(), torch.get_rng_state().tolist())
    rates = [rate for [rate] in _planned_rates(scheduler, 6)]
    assert state() == before and drawn == (random.getstate(), torch.get_rng_state().tolist())
    assert len(set(rates)) > 1
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(max(float(g["lr"]) for g in optimizer.param_groups)))
    run, _ = train(few, model=model, optimizer=optimizer, schedule=lambda _: scheduler)
    assert seen == rates or "drawing" in name
    assert run["settings"]["scheduler"]["class"] == name.split(",")[0]


@pytest.mark.parametrize("name", COLLAPSED)
def test_a_rate_that_collapses_within_the_first_epoch_is_named(few, name):
    said = (
        rf"with {name} the learning rate collapses within the first epoch, from 0.05 .* every batch, 3 times an epoch"
    )
    with pytest.raises(ValueError, match=said):
        train(few, schedule=COLLAPSED[name])


def test_a_rate_may_collapse_in_the_only_epoch_but_not_before_its_middle(few):
    train(few, epochs=1, batch_size=25, schedule=lambda o: one_cycle(o, 10))
    train(few, epochs=3, batch_size=250, schedule=lambda o: schedulers.StepLR(o, 1))  # one batch is one epoch
    root = schedulers.LambdaLR(torch.optim.SGD([torch.zeros(1)], lr=1), lambda step: (1 + step) ** -0.5)  # textbooks'
    assert not _collapses([rate for [rate] in _planned_rates(root, 1_876)], 938)
    for milestones in ([1, 2], [1]):
        with pytest.raises(ValueError, match=r"with MultiStepLR .* 10 times an epoch, 10 times in all"):
            train(few, epochs=1, batch_size=25, schedule=lambda o, at=milestones: schedulers.MultiStepLR(o, at))


def test_other_schedulers_are_refused_in_a_sentence(few):
    for schedule, complaint in (
        (schedulers.ReduceLROnPlateau, "by itself, got ReduceLROnPlateau, which waits for a metric"),
        (
            lambda o: one_cycle(o, 5),
            "for the whole training, got OneCycleLR, which fails after 5 steps: .* 6 times in all",
        ),
        (lambda _: one_cycle(torch.optim.SGD(Skeleton().parameters(), lr=1), 6), "a scheduler of this optimizer"),
    ):
        with pytest.raises(ValueError, match=complaint):
            train(few, schedule=schedule)
    with pytest.raises(ValueError, match="step needs no argument, got LBFGS"):
        train(few, model=(model := Skeleton()), optimizer=torch.optim.LBFGS(model.parameters()))


def test_frozen_layers_stay_as_they_are_and_are_counted(few):
    model = Skeleton(True)
    model.layers[0].requires_grad_(False)
    frozen = model.layers[0].weight.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    run, _ = train(few, model=model, optimizer=optimizer, ema_decay=0.5)
    assert torch.equal(model.layers[0].weight, frozen) and run["parameters"] == 16_166
    assert run["settings"]["frozen_parameters"] == sum(p.numel() for p in model.layers[0].parameters())
    assert "frozen_parameters" not in train(few)[0]["settings"]
    model = Skeleton()
    with pytest.raises(ValueError, match=r"but \d+, layers.2.weight first, would not be trained"):
        train(few, model=model, optimizer=torch.optim.SGD(model.layers[0].parameters(), lr=0.1))
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen them all"):
        train(few, model=model)


def test_what_was_used_is_recorded(few):
    def recorded(make, schedule=None, change=None):
        model = Skeleton()
        optimizer = make(list(model.parameters()))
        optimizer.param_groups[0] |= change or {}
        run, _ = train(few, model=model, optimizer=optimizer, schedule=schedule)
        return json.loads(json.dumps(run))["settings"]["optimizer"], run["settings"]["scheduler"]

    sgd = torch.optim.SGD
    plain = {"class": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 0, "nesterov": False}
    assert plain.items() <= recorded(lambda p: sgd(p, lr=0.05, momentum=0.9))[0].items()
    groups, _ = recorded(lambda p: sgd([{"params": p[:1]}, {"params": p[1:], "lr": 0.02, "weight_decay": 0.1}], lr=0.3))
    assert "lr" not in groups and "weight_decay" not in groups and groups["momentum"] == 0
    first, second = groups["param_groups"]
    assert first == {"parameters": 90, "lr": 0.3, "weight_decay": 0} and second["parameters"] == 15_962 - 90
    assert second == second | {"lr": 0.02, "weight_decay": 0.1}
    changed = {"lr": 0.007, "weight_decay": 0.01}
    assert changed.items() <= recorded(lambda p: sgd(p, lr=0.05), change=changed)[0].items()
    assert recorded(lambda p: sgd(p, lr=torch.tensor(0.25)))[0]["lr"] == 0.25
    assert recorded(lambda p: sgd(p, lr=np.float32(0.25)))[0]["lr"] == 0.25
    assert recorded(lambda p: torch.optim.AdamW(p, betas=(0.8, 0.9)))[0]["betas"] == [0.8, 0.9]

    def twice(optimizer):  # as if its cell had run twice
        schedulers.LinearLR(optimizer, total_iters=40)
        return schedulers.LinearLR(optimizer, total_iters=40)

    optimizer, _ = recorded(lambda p: sgd(p, lr=0.25), twice)
    assert optimizer["lr"] == pytest.approx(0.25 * (1 / 3) * (1 / 3 + 2 / 3 * 5 / 40), rel=0.1)
    _, scheduler = recorded(lambda p: sgd(p, lr=0.25), lambda o: schedulers.LambdaLR(o, [lambda step: 0.9**step]))
    assert scheduler["lr_lambdas"] == ["<lambda>"]
    for schedule in (lambda o: schedulers.StepLR(o, 3), lambda o: one_cycle(o, 6), lambda o: schedulers.LinearLR(o)):
        optimizer, scheduler = recorded(lambda p: sgd(p, lr=torch.tensor(0.25)), schedule)
        assert optimizer["lr"] == 0.25 and scheduler.get("max_lr", 0.25) == 0.25
    two = lambda p: sgd([{"params": p[:1], "lr": 0.1}, {"params": p[1:], "lr": 0.2}])  # noqa: E731
    optimizer, scheduler = recorded(two, lambda o: one_cycle(o, 6))
    assert scheduler["max_lr"] == [0.1, 0.2] and [group["lr"] for group in optimizer["param_groups"]] == [0.1, 0.2]
    assert train(few)[0]["train_count"] == 250 and train(few)[0]["test_count"] == 120


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    ],
)
def test_the_network_inside_a_wrapper_is_named_and_saved_and_loaded(few, place, wrap):
    asked = {"ema_decay": 0.5, "augmentation": {"degrees": 10}, "bfloat16": False}
    run, plain = train(few, **asked)
    torch.manual_seed(0)
    wrapped = wrap(Skeleton(True, 0.1))
    same, _ = train(few, model=wrapped, **asked)
    assert (same["model"], same["parameters"]) == ("Skeleton", 16_166)
    for series, values in run["history"].items():
        assert same["history"][series] == pytest.approx(values, rel=1e-3)
    save_run(same, wrapped)
    loaded = load_weights(Skeleton(True, 0.1), "few/short")
    torch.testing.assert_close(dict(loaded.state_dict()), dict(plain.state_dict()))
    again = load_weights(wrap(Skeleton(True, 0.1)), "few/short")
    assert same_weights(again, loaded) or isinstance(again, torch.optim.swa_utils.AveragedModel)
    assert torch.equal(predict(again, few.test_images).argmax(1), predict(loaded, few.test_images).argmax(1))
    assert parameters_by_layer(wrapped) == parameters_by_layer(plain)


def test_a_compiled_part_of_a_network_is_saved_under_the_names_of_the_network(few, place):
    torch.manual_seed(0)
    model = Skeleton(True, 0.1)
    model.layers = torch.compile(model.layers, backend="eager")
    save_run(*train(few, model=model))
    plain = load_weights(Skeleton(True, 0.1), "few/short")
    again = Skeleton(True, 0.1)
    again.layers = torch.compile(again.layers, backend="eager")
    assert same_weights(load_weights(again, "few/short"), plain) and same_weights(model, plain)


OTHERS = {  # than a record of MNIST's test images, of 15 epochs in bfloat16
    "data": {"data": "digits"},
    "train_count": {"train_count": 30_000},
    "evaluated_on": {"evaluated_on": "validation"},
    "epochs": {"epochs": 14},
    "precision": {"precision": "float32"},
}
COMPARISONS = {
    "lines of seeds": lambda runs, **allowed: plot_seeds({run["name"]: [run] for run in runs}, **allowed),
    "a table of runs": print_runs,
    "curves": plot_runs,
    "a picture of networks": lambda runs, **allowed: plot_networks({"Net8k": runs}, **allowed),
    "a picture with one's own": lambda runs, **allowed: plot_networks({"Net8k": runs[:1]}, runs[1:], **allowed),
    "a table of recipes": lambda runs, **allowed: mean_accuracies({run["name"]: [run] for run in runs}, **allowed),
}


@pytest.fixture
def run():
    yield load_run("target-8k/seed0")
    plt.close("all")


@pytest.mark.parametrize("compare", COMPARISONS.values(), ids=COMPARISONS)
def test_runs_that_differ_are_compared_only_if_that_is_asked_for(run, compare):
    compare([run, load_run("target-8k/seed1")])
    for key, change in OTHERS.items():
        other = run | change | {"name": "mine"}
        value = "30,000 training" if key == "train_count" else next(iter(change.values()))
        with pytest.raises(ValueError, match=rf"\(target-8k/seed0\), {value}.* \(mine\).*may_differ=\('{key}',\)"):
            compare([run, other])
        allowed = [allowed for allowed in OTHERS if allowed != key]
        with pytest.raises(ValueError, match=rf"may_differ=\('\w+', .*, '{key}'\)"):  # what is to be added
            compare([run, other], may_differ=allowed)
        compare([run, other], may_differ=key)
    everything = {key: value for change in OTHERS.values() for key, value in change.items()} | {"name": "mine"}
    with pytest.raises(ValueError, match=r"data: .*; evaluation set: .*; epochs: .*; number format: "):  # all at once
        compare([run, run | everything])
    compare([run, run | everything], may_differ=tuple(OTHERS))
    with pytest.raises(ValueError, match=r"may_differ to name some of data, .*precision, got \['format'\]"):
        compare([run, run], may_differ=("format",))


def test_a_record_that_does_not_tell_its_format_and_another_number_of_images_are_differences(run):
    log = load_run("others/assignment-8k")
    with pytest.raises(
        ValueError, match=r"number format: bfloat16 \(target-8k/seed0\), unknown number format \(others"
    ):
        check_comparable([run, log])
    assert check_comparable([run, log], ("precision", "epochs")) == ["precision"]
    counted = run | {"train_count": 60_000, "test_count": 10_000}
    assert check_comparable([run, counted, counted]) == []  # an older record does not tell
    for few in (counted | {"train_count": 600}, counted | {"test_count": 600}):
        with pytest.raises(ValueError, match=r"number of images: 60,000 training, 10,000 test images.* 600 .*\(few\)"):
            check_comparable([run, few | {"name": "few"}])
    held_out = counted | {"train_count": 50_000, "evaluated_on": "validation"}
    assert check_comparable([counted, held_out, run | {"evaluated_on": "validation"}], "evaluated_on") == [
        "evaluated_on"
    ]


def test_what_may_differ_between_recipes_may_not_within_one(run):
    other = run | {"precision": "float32"}
    assert mean_accuracies({"bfloat16": [run], "float32": [other, other]}, may_differ="precision")
    with pytest.raises(ValueError, match=r"number format: bfloat16 .*, float32 "):
        mean_accuracies({"bfloat16": [run, other], "float32": [other]}, may_differ="precision")
    with pytest.raises(ValueError, match=r"expected records of 'float32', got none"):
        mean_accuracies({"bfloat16": [run], "float32": []})


def test_what_differs_is_shown(run, capsys):
    other = run | {"name": "mine", "precision": "float32", "epochs": 14, "evaluated_on": "validation"}
    print_runs([run, load_run("target-8k/seed1")])
    assert "float" not in capsys.readouterr().out  # nothing differs, nothing is said
    print_runs([run, other], may_differ=tuple(OTHERS))
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.endswith("  set         number format") and first.endswith("  test        bfloat16")
    assert second.split()[-2:] == ["validation", "float32"] and "    14 " in second
    plot_runs([run, other], may_differ=tuple(OTHERS))
    legend = {text.get_text() for text in plt.gcf().legends[0].texts}
    assert {"Net8k (test, bfloat16)", "mine (validation, float32)"} <= legend
    plot_networks({"Net8k": [run, run], "wider": [other | {"parameters": 9_000}]}, [other], may_differ=tuple(OTHERS))
    legend = {text.get_text() for text in plt.gcf().legends[0].texts}
    assert "Net8k (2 seeds, test, 15 epochs, bfloat16)" in legend
    assert {"wider (1 seed, validation, 14 epochs, float32)", "mine (validation, 14 epochs, float32)"} <= legend
    plot_networks({"both": [run, run | {"data": "digits", "precision": "float32"}]}, may_differ=tuple(OTHERS))
    legend = {text.get_text() for text in plt.gcf().legends[0].texts}
    assert "both (2 seeds, MNIST, bfloat16, digits, float32)" in legend
    half = run | {"name": "half", "train_count": 30_000}
    print_runs([run, half], may_differ="train_count")
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.endswith("set   number of images") and first.endswith("60,000 training, 10,000 test images")
    assert second.endswith("30,000 training, 10,000 test images")
    plot_runs([run, half], may_differ="train_count")
    legend = {text.get_text() for text in plt.gcf().legends[0].texts}
    assert "half (30,000 training, 10,000 test images)" in legend
