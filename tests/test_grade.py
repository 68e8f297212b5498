"""The grader of notebook 11, on the mistakes that students make."""

import math
from dataclasses import replace

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
import torch.nn.functional as F
from test_study import first_of
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

import utils
from utils import ROOT, Data, fit, grade, load_run, plot_layers, plot_networks

TASK = {"max_parameters": 7_999, "max_epochs": 5, "accuracy": 20.0, "last": 2, "fully_connected": False}


class Good(nn.Module):
    """A valid submission; each mistake below is made in a class that differs from it in one thing."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3, 2))
        self.head = nn.Conv2d(16, 10, 1)

    def forward(self, images):
        return self.head(self.features(images)).mean((2, 3))


def recipe(model, train_count, epochs=4, batch_size=10, peak=0.05):
    steps = epochs * math.ceil(train_count / batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9)
    return {
        "optimizer": optimizer,
        "scheduler": OneCycleLR(optimizer, max_lr=peak, total_steps=steps, cycle_momentum=False),
        "epochs": epochs,
        "batch_size": batch_size,
    }


@pytest.fixture
def few(digits, monkeypatch) -> Data:
    """250 digits, which load_mnist returns too, under the name of MNIST (check_target claims nothing of others)."""
    few = replace(first_of(digits), name="MNIST")

    def load_mnist(root, *, validation, device):
        return replace(few, evaluated_on="validation", test_images=few.train_images) if validation else few

    monkeypatch.setattr(utils, "load_mnist", load_mnist)
    return few


def test_a_valid_submission_is_trained_and_passes(few, capsys):
    run, model = grade(Good, recipe, few, **TASK)
    out = capsys.readouterr().out
    assert "Not yet" not in out and "False" not in out and out.count(": True") == 3
    assert run["parameters"] == sum(p.numel() for p in model.parameters()) < 7_999
    assert len(run["history"]["test_accuracy"]) == 4


def test_the_seed_makes_the_weights_and_the_training(few):
    one, again, other = (grade(Good, recipe, few, **TASK, seed=seed)[0]["history"] for seed in (1, 1, 2))
    assert one == again != other


class TooLarge(Good):
    def __init__(self):
        super().__init__()
        self.features[3] = nn.Conv2d(8, 16, 7)
        self.extra = nn.Conv2d(16, 40, 3)

    def forward(self, images):
        return super().forward(images) + self.extra(self.features(images)).mean((1, 2, 3))[:, None]


class FullyConnected(Good):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16 * 5 * 5, 10)

    def forward(self, images):
        return self.head(self.features(images).flatten(1))


class NotAveraged(Good):
    def forward(self, images):
        return self.head(self.features(images))


class NineDigits(Good):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(16, 9, 1)


class Softmax(Good):
    def forward(self, images):
        return super().forward(images).softmax(1)


class DropoutInTheTest(Good):
    def forward(self, images):
        return F.dropout(super().forward(images), 0.1)


class PlainList(Good):
    def __init__(self):
        super().__init__()
        self.blocks = [nn.Conv2d(16, 16, 1), nn.ReLU()]


class NestedList(Good):
    def __init__(self):
        super().__init__()
        self._blocks = {"first": [[nn.Conv2d(16, 16, 1)], []]}


class ForgottenReturn(Good):
    def forward(self, images):
        super().forward(images)


class Squeezed(Good):
    def forward(self, images):
        return super().forward(images).squeeze()


class WrongChannels(Good):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(32, 10, 1)


class OwnStatistics(Good):
    def __init__(self):
        super().__init__()
        self.features[2] = nn.BatchNorm2d(8, track_running_stats=False)


class NotANumber(Good):
    def forward(self, images):
        return super().forward(images).sub(1e9).sqrt()


class ForgottenSuper(nn.Module):
    def __init__(self):
        self.head = nn.Conv2d(1, 10, 28)


class NoParameters(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, 300:310]


def one_logit(images):
    return images.mean((2, 3))


@pytest.mark.parametrize(
    "network, complaints",
    [
        (TooLarge, ["12,482 parameters, 4,483 more than the 7,999", "Most of them, 6,288, are in features.3 (Conv2d)"]),
        (FullyConnected, ["no fully connected layers", ": head."]),
        (NotAveraged, ["shape (8, 10, 5, 5)", "should return (8, 10)", "AdaptiveAvgPool2d"]),
        (NineDigits, ["shape (8, 9)", "one score per digit"]),
        (Softmax, ["add up to 1", "Leave the softmax out"]),
        (DropoutInTheTest, ["other scores the second time", "training=self.training"]),
        (PlainList, ["self.blocks keeps layers in a plain list", "nn.ModuleList"]),
        (NestedList, ["self._blocks keeps layers in a plain dict"]),
        (ForgottenReturn, ["returns NoneType", "is there a return?"]),
        (Squeezed, ["For a single image it returns shape (10,)"]),
        (Good(), ["the class itself, without brackets"]),
        (
            WrongChannels,
            ["in your line: return self.head", "images of shape (8, 1, 28, 28)", "RuntimeError", "from layer to layer"],
        ),
        (OwnStatistics, ["depend on the other images"]),
        (NotANumber, ["NaN or infinity"]),
        (ForgottenSuper, ["AttributeError", "__init__() call"]),
        (NoParameters, ["no parameters"]),
        (lambda: one_logit, ["is function, and should be an nn.Module"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_network_is_not_trained_and_the_mistake_is_named(few, network, complaints, capsys, monkeypatch):
    monkeypatch.setattr(utils, "fit", None)
    assert grade(network, recipe, few, **TASK) is None
    out = capsys.readouterr().out
    assert out.startswith("Not yet. Please fix:\n1. ") and "\n2. " not in out
    for complaint in complaints:
        assert complaint in out


def for_another_model(model, train_count):
    return recipe(Good(), train_count)


def schedule_in_epochs(model, train_count):
    settings = recipe(model, train_count)
    optimizer = settings["optimizer"]
    return settings | {"scheduler": OneCycleLR(optimizer, max_lr=0.1, total_steps=settings["epochs"])}


def schedule_of_a_cosine_in_epochs(model, train_count):
    settings = recipe(model, train_count)
    return settings | {"scheduler": CosineAnnealingLR(settings["optimizer"], T_max=settings["epochs"])}


def one_layer_more(model, train_count):
    model.head = nn.Sequential(model.head, nn.Conv2d(10, 10, 1))
    return recipe(model, train_count)


def wrong_key(model, train_count):
    return {"rate": 0.1}["lr"]


@pytest.mark.parametrize(
    "recipe, complaint",
    [
        (schedule_of_a_cosine_in_epochs, "made for 4 steps, but it is stepped after every batch, 100 times"),
        (one_layer_more, "recipe adds or removes layers"),
        (wrong_key, 'KeyError: \'lr\' (in your line: return {"rate": 0.1}["lr"])'),
        (lambda model, count: recipe(model, count) | {"epochs": 0}, "epochs is 0, and should be a whole number"),
        (lambda model, count: recipe(model, count) | {"batch_size": 10.0}, "batch_size is 10.0"),
        (lambda model, count: recipe(model, count) | {"checkpoint": True, "seed": 1}, "Leave seed, checkpoint out"),
        (lambda model, count: recipe(model, count, epochs=6), "6 epochs; at most 5 are allowed"),
        (for_another_model, "optimizer over this model's parameters"),
        (schedule_in_epochs, "made for 4 steps, but it is stepped after every batch, 100 times"),
        (lambda model, count: recipe(model, count, peak=1e9), "no longer a finite number"),
        (lambda model, count: recipe(model, count) | {"learning_rate": 0.1}, "'learning_rate'"),
        (lambda model, count: {"optimizer": torch.optim.Adam(model.parameters())}, "lacks epochs, batch_size"),
        (lambda model, count: None, "should return a dict"),
        (lambda model: {}, "TypeError"),
    ],
)
def test_a_wrong_recipe_is_named(few, recipe, complaint, capsys):
    assert grade(Good, recipe, few, **TASK) is None
    assert complaint in capsys.readouterr().out


def test_training_on_the_test_images_is_seen(few, capsys):
    cheating = replace(
        few,
        train_images=torch.cat([few.train_images, few.test_images]),
        train_labels=torch.cat([few.train_labels, few.test_labels]),
    )
    assert grade(Good, recipe, cheating, **TASK) is None
    out = capsys.readouterr().out
    assert "train_images, train_labels changed" in out and "120 training images are test images" in out
    easier = replace(few, test_images=few.test_images[:20], test_labels=few.test_labels[:20])
    assert grade(Good, recipe, easier, **TASK) is None
    assert "test_images, test_labels changed." in capsys.readouterr().out


def test_weights_that_were_trained_before_are_seen(few, capsys):
    """Be it by another run, or on the test images, by a recipe that trains itself."""
    trained = Good()
    fit(trained, few, name="before", seed=0, **recipe(trained, 250, epochs=20))
    capsys.readouterr()
    assert grade(lambda: trained, recipe, few, **TASK) is None
    assert "before the training has begun" in capsys.readouterr().out

    def learns_by_heart(model, train_count):
        cheating = replace(few, train_images=few.test_images, train_labels=few.test_labels)
        fit(model, cheating, name="cheating", seed=0, **recipe(model, len(few.test_labels), epochs=20))
        return recipe(model, train_count)

    assert grade(Good, learns_by_heart, few, **TASK) is None
    assert "% of the test images before the training has begun" in capsys.readouterr().out


def test_shared_weights_count_once(few):
    class Shared(Good):
        def __init__(self):
            super().__init__()
            self.twice = nn.Conv2d(16, 16, 3, padding=1)
            self.again = nn.Conv2d(16, 16, 3, padding=1)
            self.again.weight = self.twice.weight

        def forward(self, images):
            return self.head(self.again(self.twice(self.features(images)))).mean((2, 3))

    total = sum(p.numel() for p in Shared().parameters())
    assert sum(utils._parameters_by_layer(Shared()).values()) == total
    assert grade(Shared, recipe, few, **(TASK | {"max_parameters": total}))[0]["parameters"] == total


def test_validation_images_may_be_used(few):
    validation = replace(few, evaluated_on="validation", test_images=few.train_images)
    assert not utils._problems_of_data(validation) and utils._problems_of_data(replace(few, evaluated_on="validation"))


def test_no_advice_where_nothing_is_claimed(few, capsys):
    grade(Good, lambda model, count: recipe(model, count, epochs=1), few, **TASK)
    out = capsys.readouterr().out
    assert "only 1 epochs were trained" in out and "may help" not in out and "calmer" not in out


def test_the_courses_digits_are_not_complained_about(digits, place):
    assert not utils._problems_of_data(digits)


def test_no_test_image_of_mnist_is_a_training_image(mnist):
    assert not utils._problems_of_data(mnist)
    tests = {image.numpy().tobytes() for image in mnist.test_images.cpu()}
    assert not any(image.numpy().tobytes() in tests for image in mnist.train_images.cpu())


def test_a_missed_target_says_by_how_much_where_and_what_may_help(few, capsys):
    run, _ = grade(Good, recipe, few, **(TASK | {"accuracy": 100.0}))
    out = capsys.readouterr().out
    missed = [100 - accuracy for accuracy in run["history"]["test_accuracy"][-2:]]
    assert f"epoch 3: {100 - missed[0]:.2f}, {missed[0]:.2f} short" in out
    assert "training images are not read well enough either" in out


@pytest.mark.parametrize(
    "accuracies, trained, advice",
    [([99.3, 99.5], 99.9, "end calmer"), ([99.1, 99.2], 99.9, "overfits"), ([99.1, 99.2], 99.0, "too small")],
)
def test_the_advice_fits_the_curves(accuracies, trained, advice):
    history = {"test_accuracy": accuracies, "train_accuracy": [trained]}
    assert advice in utils._advice({"history": history}, 99.4, 2)


def test_the_pictures(few):
    plt.close("all")
    plot_layers(Good())
    [axis] = plt.gcf().axes
    assert [bar.get_width() for bar in axis.patches] == [208, 16, 1168, 170]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "features.0 (Conv2d)", "features.2 (BatchNorm2d)", "features.3 (Conv2d)", "head (Conv2d)",
    ]  # fmt: skip
    model = Good()
    mine = fit(model, few, name="mine", seed=0, **recipe(model, 250))
    dots = [load_run(f"target-8k-seed{seed}") for seed in range(3)]
    plot_networks({"Net8k": dots}, yours=[mine | {"parameters": 300, "data": "digits"}], last=1, target=98.5)
    [axis] = plt.gcf().axes
    labels = {text.get_text() for text in plt.gcf().legends[0].texts}
    assert labels == {"Net8k (3 seeds)", "mine (digits)", "target 98.5 %"}
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines]
    assert (300, mine["history"]["test_accuracy"][-1]) in points and axis.get_xlim()[0] < 300
    assert (697, 99.03) in points and (215_194, 99.04) in points
    mean = sum(utils.mean_accuracy(run) for run in dots) / 3
    assert any(x == 7_568 and y == pytest.approx(mean) for x, y in points) and len(axis.containers) == 1
    plot_networks({"large": [dots[0] | {"parameters": 10**6}]})
    assert plt.gca().get_xlim()[1] > 10**6
    for wrong in ({}, {"none": []}, {str(number): dots for number in range(8)}):
        with pytest.raises(ValueError, match="one to 7 networks"):
            plot_networks(wrong)
    plt.close("all")


def test_as_shipped_the_notebook_holds_a_valid_submission(few):
    """The two marked cells, on a few digits: nothing is to be fixed."""
    cells = {cell.id: cell.source for cell in nbformat.read(ROOT / "notebooks" / "11_your_turn.ipynb", 4).cells}
    scope = {"nn": nn, "torch": torch, "math": math, "OneCycleLR": OneCycleLR}
    exec(cells["your-network"] + "\n\n" + cells["your-recipe"], scope)
    task = TASK | {"max_parameters": 10_000, "fully_connected": True}
    assert grade(scope["MyNetwork"], scope["recipe"], few, **task)
