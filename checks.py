"""What ``fit``, ``predict``, ``evaluate`` and every comparison of runs refuse, and what a record says of a training.

The checks raise ValueError, in a sentence that helps, and before the first batch. What their arguments mean is said in
``utils``.
"""

import contextlib
import copy
import inspect
import math
import random
import types
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

WRAPPERS = nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel
COMPILED = "_orig_mod."  # what torch.compile puts into the names of weights
AGAIN = "make the model, the optimizer and the scheduler again, in this order"
COMPARED = {  # what makes accuracies comparable, by its key in a record
    "data": "data",
    "train_count": "number of images",
    "evaluated_on": "evaluation set",
    "epochs": "epochs",
    "precision": "number format",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside ``torch.compile``'s wrapper, or another that adds a prefix to the names of weights."""
    while True:
        if isinstance(model, WRAPPERS):
            model = model.module
        elif "_orig_mod" in getattr(model, "_modules", {}):  # of torch.compile
            model = model._orig_mod
        else:
            return model


def check_count(name: str, value: int) -> None:
    """Raise ValueError unless the value is a whole number, 1 or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"expected {name} to be 1 or more, a whole number, got {value!r}")


def check_percent(accuracy: float) -> None:
    """Raise ValueError unless the accuracy can be one in percent: 0.994 is not, and would be met by anything."""
    if not (1 < accuracy <= 100 or accuracy == 0):
        raise ValueError(f"expected an accuracy in percent, as in 99.4, got {accuracy}")


def check_comparable(runs: list[dict], may_differ: str | tuple[str, ...] = ()) -> list[str]:
    """Raise ValueError if the runs differ in what makes their accuracies comparable, and ``may_differ`` allows it not.

    They must be on the same data, all of it or equally many images, evaluated on the same set, of as many epochs, and
    trained in the same number format. (A record that does not tell its format differs from those that do.)

    Args:
        runs: records.
        may_differ: the keys, of ``COMPARED``, in which they may differ.

    Returns the keys in which they do differ: whoever shows the runs has to show these.
    """
    may_differ = (may_differ,) if isinstance(may_differ, str) else tuple(may_differ)
    if unknown := [key for key in may_differ if key not in COMPARED]:
        raise ValueError(f"expected may_differ to name some of {', '.join(COMPARED)}, got {unknown}")
    found = {key: {} for key in COMPARED}  # of each: its values, and the first run that has it
    counts = {}  # the same for the numbers of images, of each set
    for run in runs:
        for key in ("data", "evaluated_on", "epochs"):
            found[key].setdefault(run[key], run["name"])
        found["precision"].setdefault(number_format(run), run["name"])
        counts.setdefault((run["data"], run["evaluated_on"]), {}).setdefault(image_counts(run), run["name"])
    for of_set in counts.values():  # a validation run has fewer images than one on the test set: that is no difference
        found["train_count"] |= of_set if len(of_set) > 1 else {}
    differing = {key: values for key, values in found.items() if len(values) > 1}
    if wrong := [key for key in differing if key not in may_differ]:
        said = "; ".join(
            f"{COMPARED[key]}: " + ", ".join(f"{value} ({name})" for value, name in differing[key].items())
            for key in wrong
        )
        raise ValueError(
            f"expected runs that can be compared, but they differ in {said}. Take runs that are alike; or, if this is "
            f"meant, say so: may_differ={(*may_differ, *wrong)!r}"
        )
    return list(differing)


def number_format(run: dict) -> str:
    """Return in which number format a run was trained: "bfloat16", "float32", or that its record does not tell."""
    return run.get("precision", "unknown number format").removesuffix(" autocast")


def image_counts(run: dict) -> str:
    """Return on how many images a run was trained and evaluated; in older records, which do not tell, on all."""
    train_count = run.get("train_count", 60_000 if run["evaluated_on"] == "test" else 50_000)
    return f"{train_count:,} training, {run.get('test_count', 10_000):,} {run['evaluated_on']} images"


def legend_label(name: str, runs: list[dict], differing: list[str], *words: str) -> str:
    """Return the name, and in brackets what else a legend says of these runs, each word once.

    That is: the words; the data, if they are not MNIST; and those keys of ``COMPARED`` that differ in the picture.
    """
    said = list(words)
    for run in runs:
        of = {
            "data": run["data"],
            "train_count": image_counts(run),
            "evaluated_on": run["evaluated_on"],
            "epochs": f"{run['epochs']} epochs",
            "precision": number_format(run),
        }
        said += [word for key, word in of.items() if key in differing or (key == "data" and word != "MNIST")]
    return f"{name} ({', '.join(dict.fromkeys(said))})" if said else name


def check_images(images: torch.Tensor) -> None:
    """Raise ValueError unless these are images, ``(N, 1, H, W)``, with pixel values 0 to 255."""
    if not isinstance(images, torch.Tensor):
        raise ValueError(
            f"expected images as a torch tensor, got {type(images).__name__}: torch.from_numpy makes one of an array"
        )
    if images.dim() != 4 or images.shape[1] != 1:
        hint = {2: ": images.view(-1, 1, 28, 28), perhaps", 3: ": images.unsqueeze(1) adds the channel"}
        raise ValueError(
            f"expected images of shape (N, 1, 28, 28), got {tuple(images.shape)}{hint.get(images.dim(), '')}"
        )
    if images.numel() == 0:
        return
    # In one list, because each number that is asked for makes a GPU wait, and augment asks for every batch
    low, high = torch.stack((images.byte() if images.dtype == torch.bool else images).aminmax()).tolist()
    if 0.1 < high <= 16 or (high <= 16 and low < -0.1):  # of any digit, some ink is darker; a blank image is all 0
        raise ValueError(
            f"expected pixel values from 0 to 255, as load_mnist and read_image return them, got {images.dtype} from "
            f"{low:.4g} to {high:.4g}. Scaled or normalised before (by ToTensor, perhaps)? Leave that out: it is done "
            "inside."
        )
    if not (low >= -0.1 and high <= 255.5):  # a little room for interpolation
        raise ValueError(
            f"expected pixel values from 0 to 255, got {images.dtype} from {low:.4g} to {high:.4g}: "
            "images.clamp(0, 255), perhaps"
        )


def check_labels(labels: torch.Tensor, images: torch.Tensor) -> None:
    """Raise ValueError unless these are labels, ``(N,)`` int64 from 0 to 9, one for each image, and at least one."""
    if not isinstance(labels, torch.Tensor) or labels.dim() != 1 or labels.dtype != torch.int64:
        hint = "torch.as_tensor(labels).long(), perhaps"
        if isinstance(labels, torch.Tensor) and labels.dim() != 1:
            one_hot = labels.dim() == 2 and labels.shape[1] == 10
            hint = "one-hot? labels.argmax(1) gives the digits" if one_hot else "labels.flatten(), perhaps"
        got = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, torch.Tensor) else type(labels)
        raise ValueError(f"expected labels of shape (N,), torch.int64, from 0 to 9, got {got}: {hint}")
    if len(labels) != len(images) or len(labels) == 0:
        raise ValueError(
            f"expected a label for each image, one or more, got {len(images)} images, {len(labels)} labels"
        )
    low, high = torch.stack(labels.aminmax()).tolist()
    if low < 0 or high > 9:
        raise ValueError(f"expected labels from 0 to 9, got {low} to {high}")


def check_training(
    model, data, optimizer, epochs, batch_size, scheduler, loss, augmentation, augmented_epochs
) -> list[list[float]]:
    """Raise ValueError if these arguments of ``fit`` make no sense, or do not belong together.

    Returns the learning rates that the scheduler plans, see ``_planned_rates``; none without a scheduler.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected a network, an nn.Module, got {model!r}: write Net8k(), with brackets")
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        check_images(images)
        check_labels(labels, images)
    if before := vars(unwrapped(model)).get("trained_as"):
        raise ValueError(
            f"expected a model that was not trained before, got one that was, as {before!r}: those epochs would be "
            f"missing in the record. To train anew, {AGAIN}; to train for longer, give fit all the epochs at once."
        )
    if loss is not None:
        check_loss(loss)
    check_optimizer(optimizer, model)
    planned = []
    if scheduler is not None:
        planned = check_scheduler(scheduler, optimizer, epochs, math.ceil(len(data.train_labels) / batch_size))
    if augmented_epochs is not None and not (augmentation and 0 <= augmented_epochs <= epochs):
        raise ValueError(
            f"expected augmented_epochs from 0 to {epochs}, with an augmentation, got {augmented_epochs} "
            f"with {augmentation}"
        )
    return planned


def check_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Raise ValueError unless the optimizer is a new one, over all parameters of the model that are not frozen."""
    trainable = {name: p for name, p in unwrapped(model).named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError("expected a model with parameters to train, got one that has none, or has frozen them all")
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in trainable.items() if id(p) not in optimized]
    if len(missing) == len(trainable):
        raise ValueError("expected an optimizer over this model's parameters: make it again after making the model")
    if missing:
        raise ValueError(
            f"expected an optimizer over all of this model's parameters, but {len(missing)}, {missing[0]} first, would "
            "not be trained. Give it model.parameters(); or freeze the others first, by layer.requires_grad_(False)."
        )
    if _asks_for_more(type(optimizer).step):
        raise ValueError(
            f"expected an optimizer whose step needs no argument, got {type(optimizer).__name__}, which has to "
            "compute the loss several times: take SGD or Adam"
        )
    states = [state for state in optimizer.state.values() if isinstance(state, dict)]
    if any(state.get("step", 0) > 0 or state.get("momentum_buffer") is not None for state in states):
        raise ValueError(f"expected an optimizer that has made no step, got one that was used before: {AGAIN}")


def check_scheduler(scheduler: LRScheduler, optimizer: Optimizer, epochs: int, batches: int) -> list[list[float]]:
    """Raise ValueError unless the scheduler is a new one of the optimizer, and makes sense if stepped every batch.

    Returns its learning rates: see ``_planned_rates``.
    """
    name = type(scheduler).__name__
    if getattr(scheduler, "optimizer", None) is not optimizer:
        raise ValueError("expected a scheduler of this optimizer: make it again after making the optimizer")
    if _asks_for_more(type(scheduler).step):
        raise ValueError(
            f"expected a scheduler that is stepped after every batch by itself, got {name}, which waits for a metric, "
            "such as the test loss: take one that is planned beforehand, for example OneCycleLR"
        )
    parts = [scheduler] if hasattr(scheduler, "last_epoch") else getattr(scheduler, "_schedulers", ())
    if any(part.last_epoch > 0 for part in parts):
        raise ValueError(f"expected a scheduler that has made no step, got one that was used before: {AGAIN}")
    stepped = f"fit steps it after every batch, {batches:,} times an epoch, {epochs * batches:,} times in all"
    planned = _planned_rates(scheduler, epochs * batches)
    if 0 < len(planned) < epochs * batches:
        raise ValueError(
            f"expected a scheduler for the whole training, got {name}, which fails after {len(planned):,} steps: "
            f"{stepped}"
        )
    largest = [max(rates) for rates in planned]  # of all groups
    if batches > 1 and planned and _collapses(largest, batches if epochs > 1 else batches // 2):
        raise ValueError(
            f"with {name} the learning rate collapses within the first epoch, from {max(largest):.3g} to "
            f"{largest[batches - 1]:.3g}: {stepped}. If its lengths (step_size, milestones, T_max and the like) are "
            f"meant in epochs, multiply them by {batches:,}, and leave gamma as it is. (ExponentialLR, which has no "
            f"length, needs gamma ** (1 / {batches:,}), and a function of the epoch gets step / {batches:,}.)"
        )
    return planned


def _collapses(rates: list[float], first: int) -> bool:
    """Return whether the rates collapse within the first so many steps, most often those of an epoch.

    They do if in the next so many steps none is above a thousandth of their peak; or if none is above a tenth of it in
    all of these steps but the first fiftieth. (A rate that falls like 1 / sqrt(step) passes.)
    """
    peak, later = max(rates[:first]), rates[first : 2 * first]
    soon = rates[max(1, first // 50) : 2 * first]
    # Rounded up a little, because 0.1 * 0.1 is more than 0.01
    return peak > 0 and bool(later) and (max(later) <= 0.00101 * peak or max(soon) <= 0.101 * peak)


def check_loss(loss: Callable) -> None:
    """Raise ValueError if a loss cannot be called with three arguments, such as nn.CrossEntropyLoss()."""
    try:
        signature = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except ValueError:  # a built-in function, which does not tell
        return
    try:
        signature.bind(None, None, None)
        fits = "weight" not in list(signature.parameters)[2:3]  # as in F.cross_entropy
    except TypeError:
        fits = False
    if not fits:
        raise ValueError(
            "expected a loss that is called with the logits, the labels and the images. If yours takes only logits and "
            "labels: loss=lambda logits, labels, images: yours(logits, labels). For the cross-entropy, leave loss out."
        )


def _asks_for_more(step: Callable) -> bool:
    """Return whether a method of a class needs arguments."""
    try:
        inspect.signature(step).bind(None)  # self
    except TypeError:
        return True
    return False


def _planned_rates(scheduler: LRScheduler, steps: int) -> list[list[float]]:
    """Return the learning rate of each group at each of the next steps; fewer, if the scheduler fails before.

    A copy of scheduler and optimizer is stepped. If there can be none, the list is empty.
    """
    numpy_state, python_state, torch_state = np.random.get_state(), random.getstate(), torch.get_rng_state()
    rates = []
    try:
        twin = copy.deepcopy(scheduler)
        for part in (twin, *getattr(twin, "_schedulers", ())):
            if hasattr(part, "lr_lambdas"):
                part.lr_lambdas = [_twin_of(function) for function in part.lr_lambdas]
    except Exception:  # whatever refuses to be copied, such as a generator
        return []
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")  # that the optimizer has made no step
        for _ in range(steps):
            now = [float(group["lr"]) for group in twin.optimizer.param_groups]
            twin.step()
            rates.append(now)
    np.random.set_state(numpy_state)
    random.setstate(python_state)
    torch.set_rng_state(torch_state)
    return rates


def _twin_of(function: Callable) -> Callable:
    """Return a copy of a function, with copies of what it remembers."""
    if not isinstance(function, types.FunctionType) or not function.__closure__:
        return function
    cells = tuple(types.CellType(copy.deepcopy(cell.cell_contents)) for cell in function.__closure__)
    twin = types.FunctionType(function.__code__, function.__globals__, None, function.__defaults__, cells)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def mark_trained(model: nn.Module, name: str, optimizer: Optimizer) -> None:
    """Let the model bear the name of its training from the optimizer's first step on, even if that is interrupted."""
    optimizer.register_step_post_hook(lambda *_: setattr(model, "trained_as", name))


def training_settings(
    optimizer: Optimizer, scheduler: LRScheduler | None, loss: Callable | None, planned: list[list[float]]
) -> dict:
    """Return, for the record, the classes and the arguments of optimizer and scheduler, and the name of the loss.

    ``planned``: what ``check_training`` returned.
    """
    return {
        "optimizer": _optimizer_settings(optimizer, scheduler, planned),
        "scheduler": scheduler and _scheduler_settings(scheduler),
        "loss": getattr(loss, "__name__", type(loss).__name__) if loss else "cross_entropy",
    }


def _optimizer_settings(optimizer: Optimizer, scheduler: LRScheduler | None, planned: list[list[float]]) -> dict:
    """Return what an optimizer will use: what its groups share, and ``param_groups`` if they differ.

    With a scheduler, which changes it, ``lr`` is its base or its peak; or the largest one that is used, if they are
    far from each other.
    """
    groups = [{key: group[key] for key in optimizer.defaults if key in group} for group in optimizer.param_groups]
    for number, group in enumerate(optimizer.param_groups if planned else ()):
        peak = "max_lr" if "max_lr" in inspect.signature(type(scheduler)).parameters else "initial_lr"
        asked, largest = float(group.get(peak, group["lr"])), max(rates[number] for rates in planned)
        groups[number]["lr"] = asked if 0.8 * asked <= largest <= 1.001 * asked else largest
    groups = [_for_json(group) for group in groups]
    shared = {key: value for key, value in groups[0].items() if all(group.get(key) == value for group in groups)}
    settings = {"class": type(optimizer).__name__, **shared}
    if any(group != shared for group in groups):
        settings["param_groups"] = [
            {"parameters": sum(p.numel() for p in of["params"])}
            | {key: value for key, value in group.items() if key not in shared}
            for of, group in zip(optimizer.param_groups, groups)
        ]
    return settings


def _scheduler_settings(scheduler: LRScheduler) -> dict:
    """Return the class and the arguments of a scheduler, as far as it has kept them."""
    state, groups = vars(scheduler), scheduler.optimizer.param_groups
    kept = {key: value for key, value in state.items() if key[0] != "_" and key not in ("last_epoch", "optimizer")}
    # OneCycleLR keeps its peak with the weights, and the step at which it is reached instead of the share.
    for key in inspect.signature(type(scheduler)).parameters:
        if key in groups[0]:
            values = [_plain(group[key]) for group in groups]
            kept[key] = values[0] if values == values[:1] * len(values) else values
    if phases := state.get("_schedule_phases"):
        kept["pct_start"] = round((phases[0]["end_step"] + 1) / state["total_steps"], 6)
    if "_schedulers" in state:  # of SequentialLR, and the like
        kept["schedulers"] = [_scheduler_settings(part) for part in scheduler._schedulers]
        kept["milestones"] = state.get("_milestones", [])
    return {"class": type(scheduler).__name__} | _for_json(kept)


def _for_json(settings: dict) -> dict:
    """Return the settings as far as JSON has words for them; functions by their names."""
    plain = {key: _plain(value) for key, value in settings.items()}
    return {key: value for key, value in plain.items() if value is not None}


def _plain(value):
    """Return a value as numbers, texts, lists and dicts; None for anything else."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items() if isinstance(key, (str, int, float))}
    if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.numel() == 1):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__name__", None)
