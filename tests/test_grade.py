"""The grader of notebook 11, on the mistakes that students make."""

import math
from dataclasses import replace
from functools import partial

import nbformat
import pytest
import torch
from helpers import train
from torch import nn

from grade import _advice, _problems_of_data, grade
from plots import parameters_by_layer
from utils import ROOT, load_mnist, one_cycle

TASK = {"max_parameters": 7_999, "max_epochs": 5, "accuracy": 20.0, "last": 2, "fully_connected": False}
MEAN, WIDE = partial(torch.mean, dim=(2, 3)), nn.Sequential(nn.Conv2d(16, 64, 3), nn.Conv2d(64, 10, 1))


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
    data = replace(few, name="MNIST")  # because check_target claims nothing of others
    monkeypatch.setattr("grade.load_mnist", lambda root, validation, device: data)
    return lambda network=Good, recipe=recipe, data=data, **changes: (
        grade(network, recipe, data, **(TASK | changes)), capsys.readouterr().out,
    )  # fmt: skip


def test_valid_submissions_pass(submit):
    (run, model), out = submit()
    assert "Not yet" not in out and "False" not in out and out.count(": True") == 3
    assert run["parameters"] == sum(p.numel() for p in model.parameters()) < 7_999
    again, other = (submit(seed=seed)[0][0] for seed in (0, 1))  # of the weights, and of the training
    assert run["history"] == again["history"] != other["history"] and (again["epochs"], other["seed"]) == (4, 1)
    network = Good(head=nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 10, 1)))
    network.head[1].weight = network.head[0].weight  # which then counts once
    total = sum(parameters_by_layer(network).values())
    assert total == sum(p.numel() for p in network.parameters())
    assert submit(lambda: network, partial(recipe, peak=0.01), max_parameters=total)[0][0]["parameters"] == total
    cells = {cell.id: cell.source for cell in nbformat.read(ROOT / "notebooks" / "11_your_turn.ipynb", 4).cells}
    scope = {"nn": nn, "torch": torch, "math": math, "OneCycleLR": torch.optim.lr_scheduler.OneCycleLR}
    exec(cells["your-network"] + "\n\n" + cells["your-recipe"], scope)  # as shipped
    assert submit(scope["MyNetwork"], scope["recipe"], max_parameters=10_000, fully_connected=True)[0]


but, how, same = partial(partial, Good), partial(partial, recipe), nn.Identity()
NETWORKS = {
    "11,322 parameters, 3,323 more than the 7,999 | Most of them, 9,280, are in head.0 (Conv2d)": but(head=WIDE),
    "no fully connected layers | : head.1.": but(head=nn.Sequential(nn.Flatten(), nn.Linear(400, 10)), mean=same),
    "shape (8, 10, 5, 5) | should return (8, 10) | AdaptiveAvgPool2d": but(mean=same),
    "shape (8, 9) | one score per digit": but(head=nn.Conv2d(16, 9, 1)), "the class itself, without brackets": Good(),
    "add up to 1 | Leave the softmax out": but(last=nn.Softmax(1)), "NaN or infinity": but(last=torch.log),
    "other scores the second time | training=self.training": but(last=nn.functional.dropout),
    "self.a keeps layers in a plain list | nn.ModuleList": but(a=[same]),
    "self._b keeps layers in a plain dict": but(_b={"a": [[same], []]}), "is partial, and should be": lambda: MEAN,
    "returns NoneType | is there a return?": but(last=lambda scores: None),
    "For a single image it returns shape (10,)": but(last=torch.squeeze),
    "of shape (8, 1, 28, 28) | line: return self.last | RuntimeError | layer to layer": but(head=nn.Conv2d(9, 10, 1)),
    "depend on the other images": but(norm=nn.BatchNorm2d(8, track_running_stats=False)),
    "AttributeError | __init__() call": partial(setattr, nn.Module.__new__(nn.Module), "a", same),
    "no parameters": lambda: nn.Sequential(nn.AdaptiveAvgPool2d((1, 10)), nn.Flatten()),
}  # fmt: skip
RECIPES = {
    "made for 4 steps, but it is stepped after every batch, 100 times": how(steps=4), "argument 'rate'": how(rate=1),
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
    result, out = submit(NETWORKS.get(complaints, Good), RECIPES.get(complaints, recipe))
    # Two lines: no second mistake, and none of those that fit prints; nor of these tables, which hold the complaints
    assert result is None and "Not yet. Please fix:\n1. " in out and out.count("\n") == 2 and 'line: "' not in out
    assert not [complaint for complaint in complaints.split(" | ") if complaint not in out]


def test_neither_other_data_nor_training_on_the_test_images_nor_weights_from_elsewhere_pass(submit, few):
    tests, learn = replace(few, train_images=few.test_images, train_labels=few.test_labels), partial(train, epochs=99)
    cheats = {
        "train_images, train_labels changed, and 120 training images are test images": {"data": tests},
        "test_images changed.": {"data": replace(few, test_images=few.test_images.flip(3))},
        "% of the test images before the training": {"network": lambda: learn(few, model=Good())[1]},
        "test images before the training has begun": {"recipe": lambda m, n: learn(tests, model=m) and recipe(m, n)},
    }
    for complaint, cheat in cheats.items():
        result, out = submit(**cheat)
        assert result is None and complaint in out


def test_the_course_s_own_data_may_be_used_and_no_test_image_is_a_training_image(data, digits):
    for own in (data, digits):
        assert not _problems_of_data(own) and _problems_of_data(replace(own, evaluated_on="validation"))
        assert not _problems_of_data(load_mnist("digits" if own is digits else None, validation=True, device="cpu"))
        tests = {image.numpy().tobytes() for image in own.test_images}
        assert not any(image.numpy().tobytes() in tests for image in own.train_images)


def test_a_missed_target_says_by_how_much_where_and_what_may_help_if_anything_is_claimed(submit):
    for wrong, complaint in (({"accuracy": 0.994}, "in percent"), ({"last": 0}, "last to be 1 or more")):
        with pytest.raises(ValueError, match=complaint):
            submit(**wrong)  # rather than after the training
    (run, _), out = submit(accuracy=100.0)
    accuracy = run["history"]["test_accuracy"][-2]
    assert f"epoch 3: {accuracy:.2f}, {100 - accuracy:.2f} short" in out and "are not read well enough either" in out
    _, out = submit(recipe=partial(recipe, epochs=1))
    assert "only 1 epochs were trained" in out and "may help" not in out and "calmer" not in out
    for tested, trained, advice in ((99.5, 99.9, "end calmer"), (99.2, 99.9, "overfits"), (99.2, 99.0, "too small")):
        assert advice in _advice({"history": {"test_accuracy": [99.1, tested], "train_accuracy": [trained]}}, 99.4, 2)
