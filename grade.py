"""The exercise's grader (notebook 11): checks a network and a recipe, trains, says in plain words what to fix."""

import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from checks import check_count, check_percent
from plots import parameters_by_layer, plot_layers
from utils import Data, check_target, evaluate, fit, load_mnist, normalize, predict


def grade(
    network: Callable[[], nn.Module],
    recipe: Callable[[nn.Module, int], dict],
    data: Data,
    *,
    max_parameters: int,
    max_epochs: int,
    accuracy: float,
    last: int,
    fully_connected: bool,
    seed: int = 0,
) -> tuple[dict, nn.Module] | None:
    """Check a student's network and recipe, train it, and print in plain words what to fix, if anything.

    It finds mistakes, and the common ways around the rules; it is not proof against somebody who wants to deceive it.

    Args:
        network: makes the network: a class, most often.
        recipe: called with the network and the number of training images; returns the arguments of ``fit`` for them:
            ``optimizer``, ``epochs`` and ``batch_size``, and what else is wanted.
        data: what ``load_mnist()`` or ``load_mnist(validation=True)`` returned.
        max_parameters, max_epochs, accuracy, last: see ``check_target``.
        fully_connected: whether fully connected layers are allowed.
        seed: of the weights, and of the training.

    Returns:
        The record and the trained network; None when something must be fixed before there can be a result.
    """
    check_count("last", last)  # rather than after the training
    check_percent(accuracy)
    torch.manual_seed(seed)
    problems = _problems_of_data(data)
    try:
        if isinstance(network, nn.Module):
            problems.append("Give the class itself, without brackets: the grader makes the network, with its own seed.")
        else:
            model = network()
            problems += _problems_of_network(model, data, max_parameters, fully_connected)
        if not problems:
            layers = str(model)
            settings = recipe(model, len(data.train_labels))
            problems += _problems_of_recipe(settings, data, max_epochs)
            if str(model) != layers:
                problems.append("recipe adds or removes layers; make the whole network in its class.")
            share = evaluate(model, data.test_images, data.test_labels)[1] / len(data.test_labels)
            if share > 0.4:  # without training it guesses, and one guess of ten is right
                problems.append(
                    f"It reads {100 * share:.0f} % of the {data.evaluated_on} images before the training has begun: "
                    "its weights come from elsewhere."
                )
        if not problems:
            run = fit(model, data, name="your-turn", seed=seed, **settings)
    except Exception as error:  # whatever a beginner's code may raise
        problems.append(f"It stops with {_described(error)}")
    if problems:
        print("Not yet. Please fix:")
        for number, problem in enumerate(problems, start=1):
            print(f"{number}. {problem}")
        return None
    limits = {"max_parameters": max_parameters, "max_epochs": max_epochs, "accuracy": accuracy, "last": last}
    if not check_target(run, **limits) and run["data"] == "MNIST" and run["epochs"] >= last:
        print(_advice(run, accuracy, last))
    return run, model


def _described(error: Exception) -> str:
    """Return what an error says, and the line of the student's own code that it comes from."""
    course = [
        Path(__file__).with_name(f"{name}.py")
        for name in ("grade", "utils", "checks", "files", "mnist", "checkpoint", "fast")
    ]
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) not in course
        and not any(Path(frame.filename).is_relative_to(place) for place in (sys.prefix, sys.base_prefix))
    ]
    return f"{type(error).__name__}: {error}" + (f" (in your line: {own[-1].line})" if own and own[-1].line else "")


def _problems_of_network(model: nn.Module, data: Data, max_parameters: int, fully_connected: bool) -> list[str]:
    """Return, in plain words, what is wrong with a network that is not trained yet."""
    if not isinstance(model, nn.Module):
        return [f"The network is {type(model).__name__}, and should be an nn.Module: class MyNetwork(nn.Module)."]
    problems = []

    def hides_layers(value) -> bool:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        return any(isinstance(part, nn.Module) or hides_layers(part) for part in parts)

    own = vars(nn.Module())  # where PyTorch itself keeps the layers, among other things
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in own and hides_layers(value):
                problems.append(
                    f"self.{name} keeps layers in a plain {type(value).__name__}, where PyTorch does not see their "
                    "parameters. Put them into nn.Sequential or nn.ModuleList."
                )
    model.to(data.test_images.device)
    images = data.test_images[:250]
    model.eval()  # fit turns the training mode on again
    try:
        with torch.no_grad():
            logits = model(normalize(images[:8]))
    except Exception as error:  # whatever a layer raises on images that do not fit it
        problems.append(
            f"Given images of shape {(8, *images.shape[1:])}, it stops with {_described(error)}. Follow the shape from "
            "layer to layer: each layer must take what the one before it returns."
        )
        return problems
    # Counted only now: some layers find their size with the first images.
    total = sum(p.numel() for p in model.parameters())
    if total == 0 and not problems:
        problems.append("The network has no parameters: there is nothing to train.")
    if total > max_parameters:
        layers = parameters_by_layer(model)
        largest = max(layers, key=layers.get)
        problems.append(
            f"{total:,} parameters, {total - max_parameters:,} more than the {max_parameters:,} that are allowed. "
            f"Most of them, {layers[largest]:,}, are in {largest}; the bars show all layers."
        )
        plot_layers(model)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if linear and not fully_connected:
        problems.append(
            f"This task allows no fully connected layers, and there is one: {', '.join(linear)}. A 1 x 1 convolution "
            "and an average over the places (notebook 2) do its work."
        )
    if not isinstance(logits, torch.Tensor):
        return [*problems, f"forward returns {type(logits).__name__}, and should return the scores: is there a return?"]
    if logits.shape != (8, 10):
        average = " Average over the places (nn.AdaptiveAvgPool2d(1)), then nn.Flatten()." if logits.dim() == 4 else ""
        problem = (
            f"For 8 images it returns shape {tuple(logits.shape)}, and should return (8, 10): one score per digit."
        )
        return [*problems, problem + average]
    if not logits.isfinite().all():
        return [
            *problems,
            "Before any training it returns NaN or infinity: is there a division, a root or a logarithm?",
        ]
    if (logits >= 0).all() and (logits.sum(1) - 1).abs().max() < 1e-3:
        problems.append(
            "It returns probabilities (they add up to 1). Leave the softmax out: the loss, cross_entropy, has its own, "
            "and with two of them it learns slowly."
        )
    logits, again = predict(model, images), predict(model, images)
    alone = predict(model, images[:1])
    if alone.shape != (1, 10):
        problems.append(
            f"For a single image it returns shape {tuple(alone.shape)} instead of (1, 10): squeeze, perhaps?"
        )
    elif not torch.equal(logits, again):
        problems.append(
            "In evaluation mode the same images give other scores the second time. F.dropout needs "
            "training=self.training; nn.Dropout knows by itself."
        )
    elif not torch.allclose(logits[:1], alone, rtol=1e-3, atol=1e-3):
        problems.append(
            "In evaluation mode the scores of an image depend on the other images of the batch. Is there a BatchNorm "
            "without running statistics, or a mean over the first dimension?"
        )
    return problems


def _problems_of_recipe(settings: dict, data: Data, max_epochs: int) -> list[str]:
    """Return, in plain words, what is wrong with the arguments for ``fit``, as far as ``fit`` does not say it."""
    if not isinstance(settings, dict):
        return [f"recipe returns {type(settings).__name__}, and should return a dict of arguments for fit."]
    if missing := [key for key in ("optimizer", "epochs", "batch_size") if key not in settings]:
        return [f"The dict that recipe returns lacks {', '.join(missing)}."]
    if given := [key for key in ("model", "data", "name", "seed", "checkpoint") if key in settings]:
        return [f"Leave {', '.join(given)} out of the dict that recipe returns: the grader decides about it."]
    problems = []
    for key in ("epochs", "batch_size"):
        if not isinstance(settings[key], int) or settings[key] < 1:
            return [f"{key} is {settings[key]!r}, and should be a whole number, 1 or more."]
    if settings["epochs"] > max_epochs:
        problems.append(f"{settings['epochs']} epochs; at most {max_epochs} are allowed.")
    steps = settings["epochs"] * math.ceil(len(data.train_labels) / settings["batch_size"])
    scheduler = settings.get("scheduler")
    planned = getattr(scheduler, "total_steps", getattr(scheduler, "T_max", steps))
    if planned != steps:
        problems.append(
            f"The scheduler is made for {planned:,} steps, but it is stepped after every batch, {steps:,} times: "
            "epochs times batches in an epoch."
        )
    return problems


def _problems_of_data(data: Data) -> list[str]:
    """Return, in plain words, whether other images are used than those of ``load_mnist``."""
    root = "digits" if data.name == "digits" else None
    genuine = load_mnist(root, validation=data.evaluated_on == "validation", device="cpu")
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    changed = [part for part in parts if not torch.equal(getattr(data, part).cpu(), getattr(genuine, part))]
    if not changed:
        return []
    tests = {image.numpy().tobytes() for image in genuine.test_images}
    among = sum(image.numpy().tobytes() in tests for image in data.train_images.cpu())
    return [
        f"The data are not what load_mnist() returned: {', '.join(changed)} changed"
        + (f", and {among:,} training images are {data.evaluated_on} images. They must stay unseen." if among else ".")
    ]


def _advice(run: dict, accuracy: float, last: int) -> str:
    """Return a sentence on what might help a run that missed the accuracy."""
    counted, trained = run["history"]["test_accuracy"][-last:], run["history"]["train_accuracy"][-1]
    if max(counted) >= accuracy:
        return (
            f"Some of these epochs hold {accuracy:g}: they differ by {max(counted) - min(counted):.2f}. A learning "
            "rate that falls to nearly zero, or averaged weights, make the end calmer (notebook 5)."
        )
    if trained > accuracy:
        return (
            f"The training images are read better ({trained:.2f}) than the target asks: the network overfits. "
            "Augmentation (notebook 4) or a smaller network may help."
        )
    return (
        f"The training images are not read well enough either ({trained:.2f}; augmented ones are harder). The network "
        "may be too small, have too few epochs, or a learning rate that is too low or too high."
    )
