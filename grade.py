"""The exercise's grader (notebook 11): checks a network and a recipe, trains, says in plain words what to fix."""

import _thread
import contextlib
import io
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from checks import check_count, check_percent
from complaints import Complaints, about_network, about_recipe, about_seed, planned_steps, stopped
from plots import plot_layers
from utils import Data, epochs_short, evaluate, fit, mean_accuracy, predict

TASKS = json.loads(Path(__file__).with_name("tasks.json").read_text(encoding="utf-8"))
CONDITIONS = ("runs", "parameters", "epochs", "accuracy", "last epochs")


class Condition(NamedTuple):
    """What became of a condition of a task.

    ``share``, from 0 to 1, is how much of its points it is worth; ``comment`` says why, in plain words.
    """

    share: float
    comment: str


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
    minutes: float | None = None,
    images: str = "MNIST",
    handed_in: Callable[[dict[str, Condition]], None] | None = None,
) -> tuple[dict[str, Condition], dict | None, nn.Module | None]:
    """Check a student's network and recipe, train it, and print in plain words what to fix, if anything.

    It finds mistakes; it is not proof against somebody who wants to deceive it. (In a class, the locked cells of
    notebook 11 call it by ``hand_in``, in a process of its own. When nbgrader executes the notebook, only they train.)

    Args:
        network: makes the network: a class, most often.
        recipe: called with the network and the number of training images; returns the arguments of ``fit`` for them:
            ``optimizer``, ``epochs`` and ``batch_size``, and what else is wanted.
        data: what ``load_mnist()`` or ``load_mnist(validation=True)`` returned.
        max_parameters, max_epochs, accuracy, last: see ``check_target``.
        fully_connected: whether fully connected layers are allowed.
        seed: of the weights, and of the training.
        minutes: the time after which the student's code is stopped; as long as it takes, by default.
        images: the name of the data that the task is about: on others, the accuracy is no result.
        handed_in: if given, train in spite of complaints, where that is possible at all, so that each condition gets
            its due, and print the epochs alone. It is called with the conditions as far as they are known when the
            network is made, and before it is trained, in case the program ends then.

    Returns:
        Each condition, by its name in ``CONDITIONS``; the record of the training, and the trained network, or None and
        None if there was no training.

    Raises:
        ValueError: ``last`` is below 1, or the accuracy is no percentage.
    """
    check_count("last", last)  # rather than after the training
    check_percent(accuracy)
    if os.environ.get("NBGRADER_EXECUTION") == "autograde":
        print("Here nothing is trained: when a class is graded, only the cells with points train.")
        return {}, None, None
    found, model, settings, run, total = [], None, {}, None, None
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    limits = {"max_parameters": max_parameters, "max_epochs": max_epochs, "accuracy": accuracy, "last": last}

    def conditions() -> dict[str, Condition]:
        return _conditions(found, total, settings.get("epochs"), run, images, **limits)

    with _noted("MyNetwork", found, end):
        model, wrong = _make(network, seed)
        found += wrong
        if model is not None:
            total = sum(p.numel() for p in model.parameters() if not nn.parameter.is_lazy(p))
            if handed_in:
                handed_in(conditions())
            wrong, total = about_network(model, data, max_parameters, fully_connected)
            found += wrong
    if not found or handed_in:
        # Without a network, too, it can be told how many epochs.
        layers, stand_in = str(model), nn.Conv2d(1, 1, 1)
        with _noted("recipe", found, max(end, time.monotonic() + 15)):
            settings, wrong = _settings(recipe, stand_in if model is None else model, data, max_epochs, seed)
            found += wrong
            if str(model) != layers:
                found.append(("advice", "recipe adds or removes layers; make the whole network in its class."))
                wrong, total = about_network(model, data, max_parameters, fully_connected)
                found += [complaint for complaint in wrong if complaint not in found]
    if not found or (handed_in and not _stops(found)):
        with _noted("The training", found, end):
            found += _read_before(model, data)
            if not _stops(found):
                if handed_in:
                    handed_in(conditions())
                    _put_back()
                trained = fit(model, data, name="your-turn", seed=seed, **settings)
                if handed_in and not _is_reproduced(trained, model, data):
                    complaint = "Trained, but evaluated once more, it has another accuracy than after its last epoch"
                    found.append(("runs", f"{complaint}: does your code change functions of the course?"))
                else:
                    run = trained
    if handed_in:
        return conditions(), run, model
    if run is None:
        print("Not yet. Please fix:")
        for number, (_, complaint) in enumerate(found, start=1):
            print(f"{number}. {complaint}")
        if total and total > max_parameters:
            plot_layers(model)
        return conditions(), None, None
    for name, condition in conditions().items():
        print(f"{name}: {condition.share == 1} ({condition.comment})")
    if run["data"] == images and conditions()["last epochs"].share < 1 and run["epochs"] >= last:
        print(_advice(run, accuracy, last))
    return conditions(), run, model


@contextlib.contextmanager
def _noted(what: str, found: Complaints, end: float) -> Iterator[None]:
    """Run a student's code, and add what stops it to the complaints: an error, or that the clock shows ``end``."""
    expired = threading.Event()

    def interrupt():
        expired.set()
        _thread.interrupt_main()

    timer = threading.Timer(max(0.1, end - time.monotonic()), interrupt)  # never at once: "yield" must be reached
    timer.daemon = True
    before = signal.getsignal(signal.SIGINT)
    if end < math.inf:
        # Where a shell has started this in the background, interrupts are ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        timer.start()
    try:
        yield
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # whatever a beginner's code may raise
        if isinstance(error, KeyboardInterrupt) and not expired.is_set():
            raise  # it was the student who pressed the button
        if not _stops(found):
            found.append(("runs", stopped(what, error)))
    finally:
        timer.cancel()
        if end < math.inf:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _make(network: Callable[[], nn.Module], seed: int) -> tuple[nn.Module | None, Complaints]:
    """Return the network, made with this seed, or None; and what is wrong with the way in which it is made."""
    if isinstance(network, nn.Module):
        complaint = "Give the class itself, without brackets: the grader makes the network, with its own seed."
        return None, [("runs", complaint)]
    if network is None:
        complaint = (
            "There is no MyNetwork: its cell was not run, or stops with an error, or the class has another name."
        )
        return None, [("runs", complaint)]
    torch.manual_seed(seed)
    model = network()
    if not isinstance(model, nn.Module):
        complaint = f"The network is {type(model).__name__}, and should be an nn.Module: class MyNetwork(nn.Module)."
        return None, [("runs", complaint)]
    state, found = torch.get_rng_state(), []
    with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):  # a second one, for comparison
        torch.manual_seed(seed + 1)
        other = network()
        found = about_seed(model, other, torch.equal(state, torch.get_rng_state()))
    torch.set_rng_state(state)
    return model, found


def _settings(recipe, model: nn.Module, data: Data, max_epochs: int, seed: int) -> tuple[dict, Complaints]:
    """Return the arguments for ``fit`` that the recipe returns, and what is wrong with them."""
    if recipe is None:
        complaint = (
            "There is no recipe: its cell was not run, or stops with an error, or the function has another name."
        )
        return {}, [("runs", complaint)]
    torch.manual_seed(seed)
    settings = recipe(model, len(data.train_labels))
    found = about_recipe(settings, data, max_epochs)
    if data.evaluated_on == "validation" and not found and (steps := planned_steps(settings)):
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            if planned_steps(recipe(model, 2 * len(data.train_labels))) == steps:
                complaint = f"The scheduler is made for {steps:,} steps, however many images there are."
                more = "Compute them from train_count: when the points are given, there are more images."
                found.append(("advice", f"{complaint} {more}"))
    return settings if isinstance(settings, dict) else {}, found


def _read_before(model: nn.Module, data: Data) -> Complaints:
    """Complain about a network that reads digits before its training; without one it guesses, one of ten right."""
    share = evaluate(model, data.test_images, data.test_labels)[1] / len(data.test_labels)
    if share <= 0.4:
        return []
    complaint = (
        f"It reads {100 * share:.0f} % of the {data.evaluated_on} images before the training has begun: its weights "
        "come from elsewhere."
    )
    return [("runs", complaint)]


def _put_back() -> None:
    """Undo what a student's network or recipe has replaced in the course's modules."""
    for names, original in AS_IMPORTED:
        names.update(original)


def _is_reproduced(run: dict, model: nn.Module, data: Data) -> bool:
    """Return whether the trained network has about the accuracy that its record ends with.

    Of a network whose scores are other ones each time it cannot be told.
    """
    _put_back()
    _, correct = evaluate(model, data.test_images, data.test_labels)
    difference = abs(100 * correct / len(data.test_labels) - run["history"]["test_accuracy"][-1])
    return difference < 3 or not torch.equal(predict(model, data.test_images), predict(model, data.test_images))


def _stops(found: Complaints) -> bool:
    """Return whether nothing can be trained."""
    return any(about == "runs" for about, _ in found)


def _conditions(
    found: Complaints,
    total: int | None,
    epochs: int | None,
    run: dict | None,
    images: str,
    *,
    max_parameters: int,
    max_epochs: int,
    accuracy: float,
    last: int,
) -> dict[str, Condition]:
    """Return what became of each condition, as far as it can be told, whatever became of the others."""
    ended = [(about, text if text[-1] in ".?" else f"{text}.") for about, text in found]
    said = {about: " ".join(text for of, text in ended if of == about) for about, _ in found}
    runs = Condition(float(run is not None), said.get("runs", "It trains to its end." if run else "Not trained yet."))
    if advice := said.get("advice"):
        runs = Condition(runs.share, f"{runs.comment} Advice, which costs no points: {advice}")
    if not total:
        parameters = Condition(0.0, "There is no network whose parameters could be counted.")
    else:
        within = f"{total:,} parameters; at most {max_parameters:,} are allowed."
        met = total <= max_parameters and "parameters" not in said
        parameters = Condition(float(met), said.get("parameters", within))
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        why = "recipe does not come to its end, or does not say it" if epochs is None else f"epochs is {epochs!r}"
        trained = Condition(0.0, f"How many epochs is not known: {why}.")
    else:
        within = f"{epochs} epochs; at most {max_epochs} are allowed."
        trained = Condition(float("epochs" not in said), said.get("epochs", within))
    if run is None or run["data"] != images:
        why = "There is no training that counts."
        if run:
            why = f"No claim: trained on {run['data']}, and the task is about {images}, which was not found."
        reached = held = Condition(0.0, why)
    else:
        reached, held = _reached(run, accuracy, last), _held(run, accuracy, last)
    return dict(zip(CONDITIONS, (runs, parameters, trained, reached, held)))


def _reached(run: dict, accuracy: float, last: int) -> Condition:
    """Return how near the mean of the last epochs comes: all at the accuracy, nothing at three times its errors."""
    mean, errors = round(mean_accuracy(run, last), 6), 100 - accuracy  # a sum of decimals is rarely exact
    counting = "the last epoch" if last == 1 else f"the mean of the last {last} epochs"
    comment = f"{mean:.2f} % of the {run['evaluated_on']} images, {counting}; asked for are {accuracy:.2f} %"
    if mean >= accuracy:
        return Condition(1.0, f"{comment}.")
    share = max(0.0, 1 - (accuracy - mean) / (2 * errors)) if errors else 0.0
    return Condition(share, f"{comment}, {accuracy - mean:.3g} more.")


def _held(run: dict, accuracy: float, last: int) -> Condition:
    """Return whether every one of the last epochs holds the accuracy."""
    short = epochs_short(run, accuracy, last)
    counting = "The last epoch holds" if last == 1 else f"All of the last {last} epochs hold"
    return Condition(float(not short), "; ".join(short) or f"{counting} {accuracy:.2f} %.")


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
            f"The training images are read better ({trained:.2f}) than the target asks: perhaps the network overfits. "
            "Augmentation (notebook 4) or a smaller network may help."
        )
    return (
        f"The training images are not read well enough either ({trained:.2f}; augmented ones are harder). The network "
        "may be too small, have too few epochs, or a learning rate that is too low or too high."
    )


# What the course's modules hold at first: see _put_back.
COURSE = ("checkpoint", "checks", "complaints", "fast", "files", "mnist", "plots", "utils", __name__)
AS_IMPORTED = [(vars(sys.modules[name]), dict(vars(sys.modules[name]))) for name in COURSE]
