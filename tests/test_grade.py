"""The grader of notebook 11, on the mistakes that students make."""

import copy
import math
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import nbformat
import pytest
import torch
from helpers import train
from torch import nn

import grade as grader
import hand_in
from grade import CONDITIONS, _advice, grade
from plots import parameters_by_layer
from utils import ROOT, one_cycle

TASK = {"max_parameters": 7_999, "max_epochs": 5, "accuracy": 20.0, "last": 2, "fully_connected": False}
MEAN, WIDE = partial(torch.mean, dim=(2, 3)), nn.Sequential(nn.Conv2d(16, 64, 3), nn.Conv2d(64, 10, 1))
MEMBER = nn.Conv2d(1, 1, 1)
HUGE, END = nn.Conv2d(16, 10, 5), nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 10, 3))


class Good(nn.Module):  # a valid submission; changes replace a part of it, or add one
    def __init__(self, **changes):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(1, 8, 5, 2), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3, 2)
        self.head, self.mean, self.last = nn.Conv2d(16, 10, 1), MEAN, torch.positive  # which changes nothing
        for name, part in changes.items():
            setattr(self, name, part)

    def forward(self, images):
        return self.last(self.mean(self.head(self.second(self.norm(self.first(images).relu())))))


def recipe(model, train_count, epochs=4, peak=0.05, steps=None, schedule=one_cycle, **changes):
    optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9)
    scheduler = schedule(optimizer, steps or epochs * math.ceil(train_count / 10))
    return {"optimizer": optimizer, "scheduler": scheduler, "epochs": epochs, "batch_size": 10} | changes


@pytest.fixture
def submit(few, monkeypatch, capsys):
    data = replace(few, name="MNIST")  # because nothing is claimed of others
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    return lambda network=Good, recipe=recipe, data=data, **changes: (
        grade(network, recipe, data, **(TASK | changes)), capsys.readouterr().out,
    )  # fmt: skip


def test_valid_submissions_pass(submit):
    (conditions, run, model), out = submit()
    assert "Not yet" not in out and "False" not in out and out.count(": True") == 5
    assert tuple(conditions) == CONDITIONS and {condition.share for condition in conditions.values()} == {1}
    assert run["parameters"] == sum(p.numel() for p in model.parameters()) < 7_999
    again, other = (submit(seed=seed)[0][1] for seed in (0, 1))  # of the weights, and of the training
    assert run["history"] == again["history"] != other["history"] and (again["epochs"], other["seed"]) == (4, 1)
    network = Good(head=nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 10, 1)))
    network.head[1].weight = network.head[0].weight  # which then counts once
    total = sum(parameters_by_layer(network).values())
    assert total == sum(p.numel() for p in network.parameters())
    assert submit(lambda: network, partial(recipe, peak=0.01), max_parameters=total)[0][1]["parameters"] == total
    cells = {cell.id: cell.source for cell in nbformat.read(ROOT / "notebooks" / "11_your_turn.ipynb", 4).cells}
    scope = {"nn": nn, "torch": torch, "math": math, "OneCycleLR": torch.optim.lr_scheduler.OneCycleLR}
    exec(cells["your-network"] + "\n\n" + cells["your-recipe"], scope)  # as shipped
    assert submit(scope["MyNetwork"], scope["recipe"], max_parameters=10_000, fully_connected=True)[0][1]


OUTSIDE = nn.Conv2d(1, 1, 1)


class Outside(Good):
    def forward(self, images):
        return super().forward(OUTSIDE(images))


class InClass(Good):
    extra = OUTSIDE

    def forward(self, images):
        return super().forward(self.extra(images))


class Anew(Good):
    def forward(self, images):
        return super().forward(nn.Conv2d(1, 1, 1)(images))


class Unlisted(Good):
    def __init__(self):
        super().__init__(scales=[nn.Parameter(torch.ones(1))])

    def forward(self, images):
        return super().forward(images * self.scales[0])


class Matrix(Good):
    def __init__(self):
        super().__init__(head=same, mean=same, matrix=nn.Parameter(torch.randn(400, 10) / 20))

    def forward(self, images):
        return super().forward(images).flatten(1) @ self.matrix


class Seeded(Good):
    def __init__(self):
        torch.manual_seed(3)
        super().__init__()


class Folded(Good):
    def __init__(self):
        super().__init__(head=same, mean=same, dense=nn.Conv2d(400, 10, 1))

    def forward(self, images):
        return self.dense(super().forward(images).flatten(1)[:, :, None, None]).flatten(1)


class Sliced(Good):  # what looks like a mistake and is none: layers in a chain that forward makes, or in a list
    def __init__(self):
        super().__init__()
        self.chain = nn.Sequential(self.first, nn.ReLU(), self.norm)
        self.both, self.activations = [self.first, self.norm], [nn.ReLU(), nn.Identity()]

    def forward(self, images):
        maps = nn.Sequential(self.chain[:2], self.norm)(images)
        return self.mean(self.head(self.second(self.activations[1](maps))))


class Asked(Good):  # a place's weight is the likeness of what it holds and what was learnt
    def __init__(self):
        super().__init__(question=nn.Parameter(torch.randn(1, 16)))

    def forward(self, images):
        maps = self.second(self.norm(self.first(images).relu())).flatten(2)
        weights = (self.question @ maps).softmax(2)
        return self.head((maps @ weights.transpose(1, 2))[..., None]).flatten(1)


def unwritten(scores):
    raise NotImplementedError()


def endless(scores):
    while True:
        scores = scores + 0


def but(**changes):  # the parts anew for each network, so that none begins with what another has learnt
    return lambda: Good(**copy.deepcopy(changes))


how, same = partial(partial, recipe), nn.Identity()
NETWORKS = {
    "11,322 parameters, 3,323 more than the 7,999 | Most of them, 9,280, are in head.0 (Conv2d)": but(head=WIDE),
    "no fully connected layers | : head.1.": but(head=nn.Sequential(nn.Flatten(), nn.Linear(400, 10)), mean=same),
    "shape (8, 10, 5, 5) | should return (8, 10) | AdaptiveAvgPool2d": but(mean=same),
    "shape (8, 9) | one score per digit": but(head=nn.Conv2d(16, 9, 1)), "the class itself, without brackets": Good(),
    "add up to 1 | Leave the softmax out": but(last=nn.Softmax(1)), "NaN or infinity": but(last=torch.log),
    "other scores the second time | training=self.training": but(last=nn.functional.dropout),
    "self.a keeps layers in a plain list | nn.ModuleList": but(a=[MEMBER]),
    "self._b keeps layers in a plain dict": but(_b={"a": [[MEMBER], []]}), "is partial, and should be": lambda: MEAN,
    "returns NoneType | is there a return?": but(last=lambda scores: None),
    "For a single image it returns shape (10,)": but(last=torch.squeeze),
    "of shape (8, 1, 28, 28) | line: return self.last | RuntimeError | layer to layer": but(head=nn.Conv2d(9, 10, 1)),
    "depend on the other images": but(norm=nn.BatchNorm2d(8, track_running_stats=False)),
    "AttributeError | __init__() call": partial(setattr, nn.Module.__new__(nn.Module), "a", same),
    "self.scales keeps parameters in a plain list | not trained, though counted here | nn.ParameterList": Unlisted,
    "uses a layer (Conv2d) that is not a part of the network: it is the global variable OUTSIDE. ": Outside,
    "not a part of the network: it stands in the class, outside of __init__. It is not trained": InClass,
    "forward makes a layer (Conv2d) anew at every call": Anew, "__init__ sets the seed of the random numbers": Seeded,
    "ends with a sigmoid, which leaves only scores from 0 to 1. Leave it out": but(last=torch.sigmoid),
    "ends with a ReLU": but(last=torch.relu), "a.weight, a.bias: counted, but no score": but(a=nn.Conv2d(1, 1, 1)),
    "first.weight, first.bias: frozen": but(first=nn.Conv2d(1, 8, 5, 2).requires_grad_(False)),
    "MyNetwork calls sys.exit, exit or quit": but(last=sys.exit), "MyNetwork is not written yet": but(last=unwritten),
    "MyNetwork was not finished in time (in your line: | a loop without an end": but(last=endless),
    "head.weight, of shape (10, 16, 5, 5), over a whole map of 5 x 5, does the same": but(head=HUGE, mean=nn.Flatten()),
    "head.1.weight, of shape (10, 16, 3, 3), over a whole map of 3 x 3": but(head=END, mean=nn.Flatten()),
    "matrix, of shape (400, 10), does the same": Matrix, "3,000 fixed numbers (a)": but(a=torch.ones(3000)),
    "dense.weight, of shape (10, 400, 1, 1), does the same": Folded,
    "no parameters": lambda: nn.Sequential(nn.AdaptiveAvgPool2d((1, 10)), nn.Flatten()),
}  # fmt: skip
RECIPES = {
    "made for 4 steps, but it is stepped after every batch, 100 times": how(steps=4),
    "has 'rate'. Expected are optimizer, epochs, batch_size, scheduler, ": how(rate=1),
    "made for 4 steps, but it is stepped": how(steps=4, schedule=torch.optim.lr_scheduler.CosineAnnealingLR),
    "with StepLR the learning rate collapses | by 25": how(schedule=lambda o, _: torch.optim.lr_scheduler.StepLR(o, 2)),
    "ReduceLROnPlateau, which waits for a": how(schedule=lambda o, _: torch.optim.lr_scheduler.ReduceLROnPlateau(o)),
    "recipe adds or removes layers": lambda m, n: recipe(m.add_module("a", same) or m, n),
    "TypeError: 'NoneType' object is not callable (in your line: scheduler = schedule(": how(schedule=None),
    "epochs is 0, and should be a whole number": lambda m, n: recipe(m, n) | {"epochs": 0},
    "Leave seed, checkpoint out": how(checkpoint=True, seed=1), "a finite number | tenth of it.\n": how(peak=1e9),
    "optimizer over this model's": lambda m, n: recipe(Good(), n), "6 epochs; at most 5 are allowed": how(epochs=6),
    "lacks epochs, batch_size": lambda m, n: {"optimizer": 1}, "should return a dict": lambda m, n: None,
    "takes 1 positional argument but 2 were given": lambda m: {}, "batch_size is 10.0": how(batch_size=10.0),
}  # fmt: skip


@pytest.mark.parametrize("complaints", NETWORKS | RECIPES)
def test_a_mistake_is_named_and_nothing_is_trained(submit, complaints):
    (conditions, *result), out = submit(
        NETWORKS.get(complaints, Good),
        RECIPES.get(complaints, recipe),
        minutes=0.05 if "in time" in complaints else None,
    )
    # Two lines: no second mistake, and none of those that fit prints; nor of these tables, which hold the complaints
    assert result == [None, None] and conditions["runs"].share == 0
    assert "Not yet. Please fix:\n1. " in out and out.count("\n") == 2 and 'line: "' not in out
    assert not [complaint for complaint in complaints.split(" | ") if complaint not in out]


GOOD = {
    "a chain of layers that are owned": Sliced,
    "attention": Asked,
    "a log-softmax": but(last=nn.LogSoftmax(1)),
    "lazy": but(first=nn.LazyConv2d(8, 5, 2)),
    "a filter of the usual size on a map as small": but(
        head=nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 10, 1))
    ),
    "one weight for each channel": but(head=nn.Sequential(nn.Conv2d(16, 16, 5, groups=16), nn.Conv2d(16, 10, 1))),
    "a function": lambda: nn.Sequential(nn.Conv2d(1, 10, 5, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_network_is_not_complained_about(submit, name):
    (_, run, _), out = submit(GOOD[name], partial(recipe, epochs=1, peak=0.001), accuracy=0, last=1)
    assert run, out


def test_the_cells_with_points_train_once_and_again_when_asked(monkeypatch, capsys):
    calls, cell = [], "points(globals(), 'runs', 20, task='warm-up'); points(globals(), 'epochs', 10, task='warm-up')"
    graded = {name: (0.5, "half") for name in hand_in.CONDITIONS}
    monkeypatch.setattr(hand_in, "hand_in", lambda *given: calls.append(given) or graded)
    monkeypatch.delattr(sys, "handed_in", raising=False)
    notebook = {"points": hand_in.points, "MyNetwork": Good, "recipe": recipe}
    exec(cell, notebook)
    assert calls == [(Good, recipe, "warm-up")] and capsys.readouterr().out == "runs: half\n10\nepochs: half\n5\n"
    exec(cell, notebook)
    notebook["recipe"] = None
    exec(cell, notebook)
    assert len(calls) == 3 and hand_in.CONDITIONS == CONDITIONS
    monkeypatch.delattr(sys, "handed_in")


def test_an_end_is_reached_where_interrupts_are_ignored(submit):
    """As a shell lets them be in what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        (conditions, run, _), _ = submit(but(last=endless), minutes=0.02, handed_in=dict)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert run is None and "MyNetwork was not finished in time" in conditions["runs"].comment


def test_what_is_known_before_the_training_is_kept(submit):
    kept = []
    submit(handed_in=kept.append)
    assert [[condition.share for condition in conditions.values()] for conditions in kept] == [
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
    ]


def test_a_number_of_images_that_is_written_into_the_recipe_is_named_while_there_are_fewer(submit, few):
    held_out, fixed = replace(few, name="MNIST", evaluated_on="validation"), partial(recipe, steps=4 * 25)
    (_, run, _), out = submit(recipe=fixed, data=held_out)
    assert run is None and "100 steps, however many images there are. Compute them from train_count" in out
    assert submit(data=held_out)[0][1] and submit(recipe=fixed)[0][1]


@pytest.mark.slow
def test_an_end_that_has_passed_before_the_training_is_an_end(submit):
    def slow(model, train_count):
        try:
            endless(torch.zeros(1))
        except KeyboardInterrupt:
            return recipe(model, train_count)

    (conditions, run, _), _ = submit(recipe=slow, minutes=0.03, handed_in=dict)
    assert run is None and "The training was not finished in time" in conditions["runs"].comment


@pytest.mark.slow
def test_a_line_of_pytorch_is_not_the_student_s_wherever_pytorch_is_installed(tmp_path):
    """In a folder of the user's, for instance, which is no part of the environment."""
    for name in ("torch", "numpy"):
        (tmp_path / name).symlink_to(Path(sys.modules[name].__file__).parent)
    (tmp_path / "own.py").write_text(
        f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "import torch\nfrom complaints import described\n"
        f"assert torch.__file__.startswith({str(tmp_path)!r})\n"
        "try:\n    torch.nn.Conv2d(1, 1, 3)(torch.ones(1, 2, 9, 9))\nexcept RuntimeError as error:\n"
        "    print(described(error))\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "own.py"], capture_output=True, text=True, timeout=120)
    assert "(in your line: torch.nn.Conv2d(1, 1, 3)(torch.ones(1, 2, 9, 9)))" in done.stdout, done.stdout + done.stderr


HANDED_IN = {  # changes, and what each condition is then worth
    "nothing": ({}, (1, 1, 1, 1, 1)),
    "no network": ({"network": None}, (0, 0, 1, 0, 0)),
    "no recipe": ({"recipe": None}, (0, 1, 0, 0, 0)),
    "neither": ({"network": None, "recipe": None}, (0, 0, 0, 0, 0)),
    "too wide": ({"network": but(head=WIDE), "recipe": how(peak=0.01)}, (1, 0, 1, 1, 1)),
    "fully connected": ({"network": but(head=HUGE, mean=nn.Flatten())}, (1, 0, 1, 1, 1)),
    "too long": ({"recipe": how(epochs=6)}, (1, 1, 0, 1, 1)),
    "wide and long": ({"network": but(head=WIDE), "recipe": how(peak=0.01, epochs=6)}, (1, 0, 0, 1, 1)),
    "softmax": ({"network": but(last=nn.Softmax(1))}, (1, 1, 1)),
    "other scores each time": ({"network": but(last=nn.functional.dropout)}, (1, 1, 1)),
    "a layer made anew": ({"network": Anew}, (1, 1, 1)),
    "a layer in a global": ({"network": Outside}, (1, 1, 1)),
    "wrong shape": ({"network": but(mean=same)}, (0, 1, 1, 0, 0)),
    "wrong, wide and long": ({"network": but(head=WIDE, mean=same), "recipe": how(epochs=6)}, (0, 0, 0, 0, 0)),
    "exit": ({"network": but(last=sys.exit)}, (0, 1, 1, 0, 0)),
    "endless": ({"network": but(last=endless), "minutes": 0.05}, (0, 1, 1, 0, 0)),
    "error in the recipe": ({"recipe": how(schedule=None)}, (0, 1, 0, 0, 0)),
    "too high a rate": ({"recipe": how(peak=1e9)}, (0, 1, 1, 0, 0)),
    "digits": ({"images": "digits"}, (1, 1, 1, 0, 0)),
}


@pytest.mark.parametrize("name", HANDED_IN)
def test_of_what_is_handed_in_each_condition_is_judged_by_itself(submit, name):
    changes, shares = HANDED_IN[name]
    (conditions, run, _), out = submit(**changes, handed_in=dict)
    assert tuple(condition.share for condition in conditions.values())[: len(shares)] == shares, conditions
    assert all(condition.comment for condition in conditions.values()) and (run is not None) == shares[0]
    assert "Please fix" not in out and ": True" not in out  # the cells with points say it


def test_accuracy_has_partial_credit_and_only_where_it_counts(submit):
    for accuracy, reached, share in (
        (99.4, 99.4, 1),
        (99.4, 98.8, 0.5),
        (99.4, 98.2, 0),
        (98.5, 98.2, 0.9),
        (100, 99, 0),
    ):
        run = {"history": {"test_accuracy": [99.9, reached, reached]}, "evaluated_on": "test", "epochs": 3}
        assert grader._reached(run, accuracy, 2).share == pytest.approx(share)
        assert grader._held(run, accuracy, 2).share == (reached >= accuracy)


def test_while_a_class_is_graded_only_the_cells_with_points_train(submit, monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    submitted, out = submit()
    assert submitted == ({}, None, None) and "nothing is trained" in out


def test_neither_training_on_the_test_images_nor_weights_from_elsewhere_pass(submit, few):
    tests, learn = replace(few, train_images=few.test_images, train_labels=few.test_labels), partial(train, epochs=99)
    cheats = {
        "% of the test images before the training": {"network": lambda: learn(few, model=Good())[1]},
        "test images before the training has begun": {"recipe": lambda m, n: learn(tests, model=m) and recipe(m, n)},
    }
    for complaint, cheat in cheats.items():
        (conditions, run, _), _ = submit(**cheat, handed_in=dict)
        assert run is None and complaint in conditions["runs"].comment and not conditions["accuracy"].share
        assert submit(**cheat)[0][1] is None


def test_a_missed_target_says_by_how_much_where_and_what_may_help_if_anything_is_claimed(submit):
    for wrong, complaint in (({"accuracy": 0.994}, "in percent"), ({"last": 0}, "last to be 1 or more")):
        with pytest.raises(ValueError, match=complaint):
            submit(**wrong)  # rather than after the training
    (conditions, run, _), out = submit(accuracy=100.0)
    accuracy = run["history"]["test_accuracy"][-2]
    assert conditions["last epochs"].share == conditions["accuracy"].share == 0 < conditions["epochs"].share
    assert f"epoch 3: {accuracy:.2f}, {100 - accuracy:.2f} short" in out and "are not read well enough either" in out
    _, out = submit(recipe=partial(recipe, epochs=1))
    assert "only 1 epochs were trained" in out and "may help" not in out and "calmer" not in out
    for tested, trained, advice in ((99.5, 99.9, "end calmer"), (99.2, 99.9, "overfits"), (99.2, 99.0, "too small")):
        assert advice in _advice({"history": {"test_accuracy": [99.1, tested], "train_accuracy": [trained]}}, 99.4, 2)
