"""The tools of notebooks 1 to 7, in the order in which the data flows through them:

load (in mnist.py) -> train -> evaluate -> record -> check

``train_epoch`` is the loop of notebook 1; after it comes what later notebooks add to it. Pixel values run from 0
(background) to 255 (ink) until ``normalize``; accuracies are in percent.
"""

import copy
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from checkpoint import Checkpoint, identity, torch_bytes
from checks import (
    COMPILED,
    check_comparable,
    check_count,
    check_images,
    check_labels,
    check_percent,
    check_training,
    mark_trained,
    training_settings,
    unwrapped,
)
from fast import fast_order, free_cores, has_bfloat16, machine, precision
from files import shown, why_not_writable, write_whole
from mnist import ROOT, Data
from mnist import load_mnist as load_mnist  # for the notebooks

RESULTS = ROOT / "notebooks" / "results"
UNWRITABLE = (
    "results cannot be written to {0} ({1}). Make that possible, or let the environment variable MNIST_RESULTS name "
    "another folder, as in os.environ['MNIST_RESULTS'] = 'build'."
)
PROGRESS = ("history", "elapsed", "epoch_threads", "continued_after")  # of a record, in a checkpoint
MEAN, STD = 0.1307, 0.3081  # of the pixels of the 60,000 training images, scaled to 0..1

# --------------------------------------------------------------- train ----


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Return pixel values 0 to 255, of any dtype and shape, as floats of mean 0 and standard deviation 1 (on MNIST)."""
    return (images.float() / 255 - MEAN) / STD


def train_epoch(
    model: nn.Module,
    data: Data,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    *,
    augmentation: dict[str, float] | None = None,
    bfloat16: bool = False,
    loss_function: Callable | None = None,
    scheduler: LRScheduler | None = None,
    average: "Average | None" = None,
    bar: tqdm | None = None,
) -> tuple[float, float]:
    """Train the model for one epoch; return the mean loss and the accuracy, in percent, over its training images.

    This is the loop of notebook 1, word for word. A comment with + says that its line, and the one indented under it,
    are added, and which notebook explains them. The arguments are those of ``fit``.
    """
    device = data.train_images.device
    train_count = len(data.train_labels)
    model.train()
    loss_sum, correct = 0.0, 0
    for batch in torch.randperm(train_count).to(device).split(batch_size):
        images = data.train_images[batch]
        labels = data.train_labels[batch]
        if augmentation:  # + notebook 4
            images = augment(images, **augmentation)
        images = normalize(images)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):  # + notebook 8: shorter numbers
            logits = model(images)
        logits = logits.float()  # + notebook 8: the loss in float32 again
        loss = F.cross_entropy(logits, labels)
        if loss_function:  # + notebook 12
            loss = loss_function(logits, labels, images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler:  # + notebook 5: the learning rate of the next step
            scheduler.step()
        if average:  # + notebook 5: the average of the weights
            average.update(model)
        loss_sum += loss.detach() * len(labels)
        correct += (logits.argmax(1) == labels).sum()
        if bar is not None:  # + notebook 1: the progress bar of fit
            bar.update()
    return loss_sum.item() / train_count, 100 * correct.item() / train_count


def augment(images: torch.Tensor, *, degrees=0.0, translate=0.0, scale=0.0, shear=0.0, elastic=0.0) -> torch.Tensor:
    """Return the images, each moved by its own random map; what comes in from outside is background, 0.

    The map scales, then shears, then rotates about the centre, then shifts, all of the image alike, and then bends it;
    pixels are interpolated bilinearly. Each amount is drawn uniformly, for each image, from minus to plus its argument.

    Args:
        images: ``(N, 1, H, H)``, pixel values 0 to 255, any dtype; that is, before ``normalize``.
        degrees: largest rotation, in degrees.
        translate: largest shift in each direction, as a fraction of the image's side.
        scale: largest change of size, as a fraction below 1 (0.1: from 90 % to 110 %).
        shear: largest horizontal slant, in degrees, below 90.
        elastic: largest shift of 5 x 5 points spread over the image, each in a direction of its own, as a fraction of
            the image's side; what lies between them follows smoothly (after Simard, Steinkraus and Platt, 2003).

    Returns: ``(N, 1, H, H)``, float, 0 to 255.

    Raises:
        ValueError: the images have another shape, or values that no pixel has; an amount is negative or too large.
    """
    if images.dim() != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3]:
        raise ValueError(f"expected square images of shape (N, 1, H, H), got {tuple(images.shape)}")
    check_images(images)
    if min(degrees, translate, scale, shear, elastic) < 0 or max(translate, scale, elastic) >= 1 or shear >= 90:
        raise ValueError(
            "expected amounts of 0 or more, translate, scale and elastic (fractions) below 1, shear below 90 degrees, "
            f"got degrees={degrees}, translate={translate}, scale={scale}, shear={shear}, elastic={elastic}"
        )

    def draw(largest: float) -> torch.Tensor:
        return (torch.rand(len(images), device=images.device) * 2 - 1) * largest

    angle, slant, size = torch.deg2rad(draw(degrees)), torch.tan(torch.deg2rad(draw(shear))), 1 + draw(scale)
    shift = torch.stack([draw(translate), draw(translate)], dim=1).unsqueeze(2) * 2  # the grid spans -1..1
    cos, sin = torch.cos(angle), torch.sin(angle)
    # The grid says where each output pixel comes from, so this is the inverse of the map: unshear, unrotate, unscale.
    rows = [torch.stack([cos + slant * sin, sin - slant * cos], dim=1), torch.stack([-sin, cos], dim=1)]
    linear = torch.stack(rows, dim=1) / size.view(-1, 1, 1)
    grid = F.affine_grid(torch.cat([linear, -linear @ shift], dim=2), images.shape, align_corners=False)
    if elastic:
        points = (torch.rand(len(images), 2, 5, 5, device=images.device) * 2 - 1) * 2 * elastic
        bent = F.interpolate(points, images.shape[2:], mode="bicubic", align_corners=True)
        grid = grid + bent.permute(0, 2, 3, 1)
    return F.grid_sample(images.float(), grid, padding_mode="zeros", align_corners=False)


def one_cycle(optimizer: torch.optim.Optimizer, steps: int, warm_up: float = 0.2) -> OneCycleLR:
    """Return the schedule of notebook 5: the rate rises to the optimizer's ``lr``, and then falls to nearly zero.

    Args:
        optimizer: its ``lr``, one for each parameter group, is the peak.
        steps: of the whole training: epochs × batches in an epoch. ``fit`` steps the schedule after every batch.
        warm_up: the share of the steps, 0 to 1, in which the rate rises, from a tenth of the peak.

    Source: Smith and Topin, "Super-convergence: very fast training of neural networks", 2018.
    """
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=steps,
        pct_start=warm_up + 1e-9 * (warm_up * steps == 1),  # at exactly one step, PyTorch would divide by zero
        div_factor=10,
        final_div_factor=1000,
        cycle_momentum=False,
    )


class Average:
    """An exponential moving average of a model's weights, and of BatchNorm's statistics. Notebook 5.

    At every step it keeps the fraction ``decay`` of itself and takes the rest from the model. At the start it keeps
    less: n / (9 + n) after n steps, so that the untrained weights are soon forgotten.

    Args:
        model: the network that is trained; the average has the same shape.
        decay: the fraction, 0 to 1, that the average keeps at every step in the long run.

    Raises:
        ValueError: ``decay`` is not between 0 and 1.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; the short memory at the
    start is that of TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay <= 1:
            raise ValueError(f"expected an ema_decay from 0 to 1, got {decay}")
        self.module, self.decay, self.steps = copy.deepcopy(model), decay, 0
        self.tensors = None

    def kept(self) -> float:
        """Return the fraction of itself that the average keeps at the next step; the first one only copies."""
        return 0.0 if self.steps == 0 else min(self.decay, self.steps / (9 + self.steps))

    def update(self, model: nn.Module) -> None:
        """Take a share of the model's weights, as they are after a step of the optimizer."""
        # Not AveragedModel.update_parameters, which spends most of its time on sorting the tensors by type.
        self.tensors = self.tensors or self._tensors(self.module)
        get_ema_multi_avg_fn(self.kept())(self.tensors, self._tensors(model), self.steps)
        self.steps += 1

    def network(self, model: nn.Module) -> nn.Module:
        """Return the network with the averaged weights, to be evaluated; whole numbers are the model's latest ones."""
        for kept, latest in zip(self.module.buffers(), model.buffers()):
            if not kept.is_floating_point():
                kept.copy_(latest)
        self.tensors = None  # an evaluation may replace buffers
        return self.module

    def state_dict(self) -> dict:
        return {"module": self.module.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self.module.load_state_dict(state["module"])
        self.steps = state["steps"]

    @staticmethod
    def _tensors(model: nn.Module) -> list[torch.Tensor]:
        """Return what has an average: not whole numbers, such as BatchNorm's count of batches."""
        return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]


def fit(
    model: nn.Module,
    data: Data,
    *,
    name: str,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batch_size: int,
    seed: int,
    scheduler: LRScheduler | None = None,
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    augmentation: dict[str, float] | None = None,
    augmented_epochs: int | None = None,
    ema_decay: float | None = None,
    bfloat16: bool | None = None,
    checkpoint: bool = False,
) -> dict:
    """Train the model in place, printing a line after every epoch, and return the run's record.

    On a processor, every epoch uses as many threads as find a free core (``fast.free_cores``, notebook 8), unless the
    environment variable ``OMP_NUM_THREADS``, or ``torch.set_num_threads``, says how many.

    Args:
        model: one that ``fit`` has not trained before; it maps ``(N, 1, 28, 28)`` normalised images to ``(N, 10)``
            logits. Moved to the data's device. (Of ``torch.compile(model)``, and the like, the network inside is kept.
            If ``load_weights`` has loaded its weights, the record says so.)
        data: what ``load_mnist`` returned.
        name: the run's name, ``"run"`` or ``"study/run"``, and that of its files under ``notebooks/results/``.
        optimizer: a new one, over all parameters that are not frozen (``requires_grad_(False)``).
        epochs, batch_size: the last batch of an epoch may be shorter, and counts like the others.
        seed: of the shuffling, the augmentation and the dropout. (Seed the weights yourself, before making the model.)
        scheduler: a new one of the optimizer; stepped after every *batch*, so that its lengths are counted in batches.
        loss: called with the logits, the labels and the normalised images of a training batch; by default the
            cross-entropy of the first two. (The test's loss is the cross-entropy in any case.)
        augmentation: arguments of ``augment``, which is then applied to every training batch.
        augmented_epochs: augment only in the first so many epochs; the others see the images as they are.
        ema_decay: evaluate, and keep in the end, an ``Average`` of the weights instead of the last ones.
        bfloat16: train in this shorter number format where autocast holds it to be safe (notebook 8); by default only
            on processors that compute in it themselves. Weights, loss and evaluation are in float32 in any case.
        checkpoint: write the state of the training to a file after every epoch, and continue from there if the same
            run (name, settings, starting weights and images) was stopped before. On the same processor, with as many
            threads in each epoch, the weights are then, bit for bit, those of a run that was not stopped. ``save_run``
            removes the file. Functions, such as ``loss`` or those of a ``LambdaLR``, are compared by their names at
            most: after changing one, remove the file.

    Returns:
        The record: see ``save_run``.

    Raises:
        ValueError: images, labels, optimizer, scheduler or another argument are not what is described here, or do not
            belong together (an optimizer or a scheduler of an earlier cell, often); the model was trained by ``fit``
            before; the scheduler waits for a metric, or its learning rate collapses within the first epoch; a setting
            is nothing that JSON, and so the record, can hold (a number of NumPy's, often).
        OSError: the folder for results, in which the run is to be saved, cannot be written to.
        FloatingPointError: the loss is no longer a finite number.
    """
    rates = check_training(model, data, optimizer, epochs, batch_size, scheduler, loss, augmentation, augmented_epochs)
    torch.manual_seed(seed)
    device = data.train_images.device
    network = unwrapped(model).to(device)
    settings = {
        "batch_size": batch_size,
        **training_settings(optimizer, scheduler, loss, rates),
        "augmentation": augmentation,
        "augmented_epochs": augmented_epochs,
        "ema_decay": ema_decay,
        "ema_start": None if ema_decay is None else "short memory",  # older records, without it: constant memory
    }
    shortened = has_bfloat16(device) if bfloat16 is None else bfloat16
    run = _new_record(name, network, data, epochs, seed, settings, shortened)
    check_folder(data.name, name, 16 * run["parameters"])
    started = time.perf_counter()
    batches = math.ceil(len(data.train_labels) / batch_size)
    # The bar shares one stream with the lines, so that a saved page shows the lines alone.
    bar = tqdm(total=epochs * batches, desc=name, unit="batch", mininterval=0.5, leave=False, file=sys.stdout)
    with bar, fast_order(model, device), free_cores(device) as free_threads:
        average = Average(network, ema_decay) if ema_decay is not None else None
        if checkpoint:
            state = _checkpoint(run, data, network, optimizer, scheduler, average, bfloat16)
            started -= _resume(run, state.load(), data)
            bar.update(len(run["elapsed"]) * batches)
        mark_trained(network, name, optimizer)
        added = {"loss_function": loss, "scheduler": scheduler, "average": average, "bfloat16": shortened, "bar": bar}
        for epoch in range(len(run["elapsed"]) + 1, epochs + 1):
            run["epoch_threads"].append(free_threads())
            changes = augmentation if augmented_epochs is None or epoch <= augmented_epochs else None
            train_loss, train_accuracy = train_epoch(model, data, optimizer, batch_size, augmentation=changes, **added)
            tested = average.network(network) if average else model
            test_loss, correct = evaluate(tested, data.test_images, data.test_labels)
            _append(run["history"], epoch, train_loss, train_accuracy, test_loss, 100 * correct / len(data.test_labels))
            run["elapsed"].append(round(time.perf_counter() - started, 2))
            _print_epoch(epoch, run["history"], data)
            if checkpoint:
                state.save({key: run[key] for key in PROGRESS if key in run})
        if average:
            network.load_state_dict(average.module.state_dict())
    run["seconds"] = round(time.perf_counter() - started, 1)
    return run


def _new_record(name: str, model: nn.Module, data: Data, epochs: int, seed: int, settings: dict, shortened) -> dict:
    """Return the record of a run before its first epoch. Raises ValueError if JSON cannot hold a setting."""
    check_json([settings, epochs, seed])  # rather than after the training
    if frozen := sum(p.numel() for p in model.parameters() if not p.requires_grad):
        settings |= {"frozen_parameters": frozen}
    if loaded := vars(model).get("weights_from"):
        settings |= {"weights_from": loaded}
    return {
        "name": name,
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": epochs,
        "seed": seed,
        "data": data.name,
        "train_count": len(data.train_labels),
        "test_count": len(data.test_labels),
        "evaluated_on": data.evaluated_on,
        "settings": settings,
        **machine(data.train_images.device),
        "precision": precision(data.train_images.device, shortened),
        "seconds": 0.0,
        "epoch_threads": [],
        "elapsed": [],
        "history": {"train_loss": [], "train_accuracy": [], "test_loss": [], "test_accuracy": []},
    }


def _checkpoint(run: dict, data: Data, model, optimizer, scheduler, average, bfloat16: bool | None) -> Checkpoint:
    """Return the checkpoint of a training that starts with these images and these objects."""
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "average": average}
    parts = {name: part for name, part in parts.items() if part is not None}
    tensors = [data.train_images, data.train_labels, data.test_images, data.test_labels, *model.state_dict().values()]
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    asked = [run[key] for key in ("name", "data", "evaluated_on", "epochs", "seed", "settings")]
    # The scheduler's whole state, because the settings leave out what JSON cannot hold
    started_as = identity(tensors, [asked, bfloat16, str(model), groups, scheduler and scheduler.state_dict()])
    path = results_folder(data.name) / f"{run['name']}.checkpoint"
    return Checkpoint(path, started_as, parts, data.train_images.device)


def _resume(run: dict, progress: dict | None, data: Data) -> float:
    """Put what a checkpoint says of earlier epochs into the record, print their lines, and return their seconds."""
    if not progress:
        return 0.0
    run |= progress
    trained = len(run["elapsed"])
    for epoch in range(1, trained + 1):
        _print_epoch(epoch, run["history"], data)
    name, epochs = run["name"], run["epochs"]
    if trained < epochs:
        run["continued_after"] = [*run.get("continued_after", []), trained]
        tqdm.write(f"{name} was stopped after epoch {trained} of {epochs}; it goes on from {name}.checkpoint.")
    else:
        tqdm.write(f"{name} was trained to its end, but not saved; here it is again, from {name}.checkpoint.")
    return run["elapsed"][-1]


def _append(history: dict, epoch: int, train_loss, train_accuracy, test_loss, test_accuracy) -> None:
    """Append what an epoch gave. Raises FloatingPointError if its losses are no finite numbers."""
    if not math.isfinite(train_loss + test_loss):
        raise FloatingPointError(
            f"epoch {epoch}: the loss is no longer a finite number (training {train_loss}, evaluation {test_loss}). "
            "Most often the learning rate is too high: try a tenth of it."
        )
    history["train_loss"].append(train_loss)
    history["train_accuracy"].append(train_accuracy)
    history["test_loss"].append(test_loss)
    history["test_accuracy"].append(test_accuracy)


def _print_epoch(epoch: int, history: dict, data: Data) -> None:
    """Print the line of an epoch."""
    train_loss, train_accuracy = history["train_loss"][epoch - 1], history["train_accuracy"][epoch - 1]
    test_loss, test_accuracy = history["test_loss"][epoch - 1], history["test_accuracy"][epoch - 1]
    total = len(data.test_labels)
    tqdm.write(
        f"{epoch:2d}  Train: {train_loss:.4f}, {train_accuracy:.2f}%  {data.evaluated_on.capitalize()} set: "
        f"Average loss: {test_loss:.4f}, Accuracy: {round(test_accuracy * total / 100)}/{total} ({test_accuracy:.2f}%)"
    )


# ------------------------------------------------------------ evaluate ----


def predict(model: nn.Module, images: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
    """Return the logits, ``(N, 10)`` float32, for images of pixel values 0 to 255, ``(N, 1, 28, 28)``.

    The model is run in evaluation mode and then put back as it was: no statistic, gradient or random state changes.

    Args:
        model: maps ``(N, 1, 28, 28)`` normalised images to ``(N, 10)`` logits.
        images: on the model's device.
        batch_size: changes nothing but the speed and the rounding; default 250 on a processor, whose cache holds the
            maps of so many images (notebook 8), and 1,000 elsewhere.

    Raises:
        ValueError: the images have another shape, or values that no pixel has (scaled or normalised before).
    """
    check_images(images)
    check_count("batch_size", 1 if batch_size is None else batch_size)
    if batch_size is None:
        batch_size = 250 if images.device.type == "cpu" else 1000
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            return torch.cat([model(normalize(batch)) for batch in images.split(batch_size)])
    finally:
        for module, mode in modes.items():
            module.training = mode


def evaluate(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Return the mean cross-entropy over all images, and how many of them are classified correctly.

    Args:
        model: see ``predict``.
        images: ``(N, 1, 28, 28)``, pixel values 0 to 255.
        labels: ``(N,)`` int64, 0 to 9.

    Raises:
        ValueError: images or labels are something else, or there are none.
    """
    check_labels(labels, images)
    logits = predict(model, images)  # which checks the images
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).sum().item()


# -------------------------------------------------------------- record ----


def save_run(run: dict, model: nn.Module) -> None:
    """Write the run's record to ``<name>.json`` and the model's weights to ``<name>.pt``, each whole or not at all.

    They go to ``notebooks/results/``, or to the folder that the environment variable ``MNIST_RESULTS`` names, counted
    from the repository's root (it keeps the course's own records as they are, and the tests set it). Runs on the
    digits go to ``digits/`` inside. ``load_run`` and the others look there first. The run's checkpoint is removed.

    The record's keys: ``name, model, parameters, epochs, seed, data, train_count, test_count`` (images; not in older
    records), ``evaluated_on, settings`` (the arguments, also of the optimizer and of the scheduler), ``device, threads,
    precision, versions, seconds`` (training and evaluation), ``epoch_threads`` (how many each epoch used: fewer on a
    busy machine) and ``elapsed`` (the seconds since the start, at the end of each epoch; both not in older records),
    ``continued_after`` (the epochs after which the run was stopped and continued, if it was), ``arguments`` (of runs by
    ``study.run_study``), and ``history``, a list with one value for every epoch of each of ``train_loss,
    train_accuracy`` (means over the epoch, while the weights still moved), ``test_loss`` and ``test_accuracy`` (after
    the epoch).

    Raises:
        ValueError: the name is not a plain file name, or JSON cannot hold what was added to the record.
        OSError: the files cannot be written. The run and the model are as they were: it can be tried again.
    """
    check_name(run["name"])
    path = results_folder(run["data"]) / run["name"]
    state = unwrapped(model).state_dict()
    weights = torch_bytes({key.replace(COMPILED, ""): value.cpu() for key, value in state.items()})
    record = json.dumps(check_json(run), indent=1) + "\n"
    try:
        write_whole({Path(f"{path}.pt"): weights, Path(f"{path}.json"): record.encode()})
    except OSError as error:
        raise OSError(f"{UNWRITABLE.format(path, error.strerror)} Then call save_run again.") from error
    Path(f"{path}.checkpoint").unlink(missing_ok=True)
    Data.in_use = run["data"]  # so that this run is the one that is read


def results_folder(data_name: str) -> Path:
    """Return the folder that runs on this data, ``"MNIST"`` or ``"digits"``, are written to: see ``save_run``."""
    folder = ROOT / Path(os.environ.get("MNIST_RESULTS") or RESULTS).expanduser()
    return folder if data_name == "MNIST" else folder / data_name


def check_folder(data_name: str, name: str, size: int = 0) -> None:
    """Raise OSError, before a run is trained, if ``save_run`` could not write so many bytes for it.

    Raises ValueError if no run can have this name.
    """
    check_name(name)
    for suffix in (".json", ".pt", ".checkpoint"):
        path = results_folder(data_name) / f"{name}{suffix}"
        if reason := why_not_writable(path, size):
            raise OSError(UNWRITABLE.format(path, reason))


def check_name(name: str) -> None:
    """Raise ValueError unless a run can have this name: a plain file name, alone or in the folder of a study."""
    # Not in a study called digits: the runs on the digits are there.
    if not (isinstance(name, str) and re.fullmatch(r"(?!digits/)(\w[\w.-]*/)?\w[\w.-]*", name)):
        raise ValueError(
            "expected a plain file name for a run (letters, digits, '-', '_', '.'), alone or after its study's, as in "
            f"'target-8k/seed0', got {name!r}"
        )


def check_json(settings: object) -> object:
    """Return the settings as a record has them, lists for tuples. Raises ValueError if JSON cannot hold them."""

    def refuse(value):
        raise ValueError(f"expected arguments that JSON can hold (numbers, texts, lists, dicts), got {value!r}")

    return json.loads(json.dumps(settings, allow_nan=False, default=refuse))


def load_run(name: str) -> dict:
    """Return the record of a saved run: ``load_run("steps/lenet5")``.

    It is looked for where ``save_run`` writes, and then among the course's own, in ``notebooks/results/``. A line says
    if it is in another place. A run on the digits is read if these are in use: if they were loaded, or a run on them
    saved, last; or, when nothing was loaded yet, if it is the latest.

    Raises:
        FileNotFoundError: there is no such record.
        ValueError: the file is not a record.
    """
    return read_record(_result(name, ".json"))


def load_runs(study: str) -> list[dict]:
    """Return the records of all saved runs of a study, ordered by their names: ``load_runs("target-8k")``.

    Those where ``save_run`` writes come first, as for ``load_run``; the course's own are added if they have other names
    and are on the same data. A line says how many are in another place.

    Raises:
        FileNotFoundError: there is no such study.
        ValueError: one of its files is not a record.
    """
    names = _names(study, ".json")
    own, on_digits = ([*(results_folder(data) / study).glob("*.json")] for data in ("MNIST", "digits"))
    paths = [*(RESULTS / study).glob("*.json"), *own]
    if on_digits and (_digits_first(own, on_digits) or not paths):
        paths = on_digits
    paths = {path.stem: path for path in paths}  # the later ones count
    if yours := [path for path in paths.values() if path.parent.resolve() != (RESULTS / study).resolve()]:
        place = shown(yours[0].parent, ROOT)
        print(f"{study}: {len(yours)} of these {len(paths)} records are your own, from {place}")
    return [read_record(paths[name]) for name in names if name in paths]


def by_recipe(runs: list[dict]) -> dict[str, list[dict]]:
    """Return the records grouped by recipe: by their names, without the study, and up to ``-seed`` or ``-fold``."""
    recipes = {}
    for run in runs:
        recipes.setdefault(re.split("-seed|-fold", run["name"].rpartition("/")[2])[0], []).append(run)
    return recipes


def read_record(path: Path) -> dict:
    """Return the record in this file. Raises ValueError if it is none."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        run["history"]["test_accuracy"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not the record of a run: delete it, or run its notebook again to write a new one"
        ) from error
    return run


def load_weights(model: nn.Module, name: str) -> nn.Module:
    """Load the final weights of a saved run into the model, and return it in evaluation mode.

    They are looked for like the record: see ``load_run``.

    Raises:
        FileNotFoundError: there are no such weights. (In the course, only runs whose weights something uses have them.)
        ValueError: the file is damaged.
        RuntimeError: they belong to another network.
    """
    path = _result(name, ".pt")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files torch raises whatever it stumbles over
        raise ValueError(f"{path} does not hold weights: run its notebook again to write them anew") from error
    network = unwrapped(model)
    names = {key.replace(COMPILED, ""): key for key in network.state_dict()}
    network.load_state_dict({names.get(key, key): value for key, value in weights.items()})
    network.weights_from = name
    return model.eval()


def _result(name: str, suffix: str) -> Path:
    """Return the file of a saved run. Raises FileNotFoundError with the names that there are in its study."""

    def found(data_name: str) -> list[Path]:  # a record or weights: the two are of one run
        files = [results_folder(data_name) / f"{name}{end}" for end in (".json", ".pt")]
        return [path for path in files if path.is_file()]

    own, on_digits, course = found("MNIST"), found("digits"), RESULTS / f"{name}{suffix}"
    path = results_folder("MNIST") / f"{name}{suffix}" if own else course
    if on_digits and (_digits_first(own, on_digits) or not (own or course.is_file())):
        path = results_folder("digits") / f"{name}{suffix}"
    if not path.is_file():
        study = name.rpartition("/")[0] or name
        names = ", ".join(_names(study, suffix)) or "none at all"
        raise FileNotFoundError(f"no {path.name} in {_places(study)}; there are: {names}")
    if path.resolve() != course.resolve():
        print(f"{name} is your own run: {shown(path, ROOT)}")
    return path


def _digits_first(own: list[Path], on_digits: list[Path]) -> bool:
    """Return whether one's own results on the digits are read: if these are in use, or were written last."""
    if Data.in_use:
        return Data.in_use == "digits"
    latest = [max((path.stat().st_mtime_ns for path in paths), default=0) for paths in (own, on_digits)]
    return latest[0] < latest[1]


def _names(study: str, suffix: str) -> list[str]:
    """Return the names of a study's files that end like this, without the end, and seed10 after seed9."""
    folders = {results_folder("MNIST"), results_folder("digits"), RESULTS}
    if not study or not any(path for folder in folders for path in (folder / study).glob("*.json")):
        studies = {path.parent.name for folder in folders for path in folder.glob("*/*.json")} - {"digits"}
        there = ", ".join(sorted(studies)) or "none at all"
        raise FileNotFoundError(f"no study {study!r} in {_places()}; there are: {there}")
    stems = {path.stem for folder in folders for path in (folder / study).glob(f"*{suffix}")}
    return sorted(
        stems, key=lambda stem: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", stem)]
    )


def _places(study: str = "") -> str:
    """Return where a study is looked for, for an error."""
    return " or ".join(str(folder / study) for folder in dict.fromkeys([results_folder("MNIST"), RESULTS]))


def mean_accuracy(run: dict, last: int = 5) -> float:
    """Return the mean test accuracy over the last ``last`` epochs of a run, in percent."""
    check_count("last", last)
    return float(np.mean(run["history"]["test_accuracy"][-last:]))


def mean_accuracies(
    recipes: dict[str, list[dict]], last: int = 5, *, may_differ: str | tuple[str, ...] = ()
) -> dict[str, list[float]]:
    """Return, for each recipe or network, the ``mean_accuracy`` of each of its runs: what a table or a test compares.

    Args:
        recipes: for each its records, most often of several seeds, all alike.
        last: the number of final epochs.
        may_differ: see ``plots.print_runs``: in what one recipe may differ from another.

    Raises:
        ValueError: a recipe has no records; the runs differ in something that ``may_differ`` does not name.
    """
    for recipe, runs in recipes.items():
        if not runs:
            raise ValueError(f"expected records of {recipe!r}, got none")
        check_comparable(runs)
    check_comparable([run for runs in recipes.values() for run in runs], may_differ)
    return {recipe: [mean_accuracy(run, last) for run in runs] for recipe, runs in recipes.items()}


# --------------------------------------------------------------- check ----


def check_target(run: dict, *, max_parameters: int, max_epochs: int, accuracy: float, last: int) -> bool:
    """Print whether a run on MNIST meets a target, condition by condition, and return whether it meets them all.

    The best epoch counts for nothing: every one of the last ``last`` epochs must hold the accuracy. A run on other
    data, or one that went on with the weights of another, meets no target.

    Args:
        run: a record.
        max_parameters: the most parameters that are allowed.
        max_epochs: the most epochs that are allowed.
        accuracy: in percent; an epoch holds it when its test accuracy is at least this.
        last: number of final epochs that count, 1 or more.

    Raises:
        ValueError: ``last`` is below 1, or the accuracy is no percentage (0.994 would always be met).
    """
    check_count("last", last)
    check_percent(accuracy)
    if run["data"] != "MNIST":
        print(f"no claim: this run is on {run['data']}, and the target is about MNIST")
        return False
    if loaded := run.get("settings", {}).get("weights_from"):
        print(f"no claim: this run began with the weights of {loaded}, whose epochs are not counted")
        return False
    epochs = len(run["history"]["test_accuracy"])
    parameters_over, epochs_over = run["parameters"] - max_parameters, epochs - max_epochs
    counting = "the last epoch" if last == 1 else f"all of the last {last} epochs"
    conditions = {
        f"at most {max_parameters:,} parameters": (
            f"{run['parameters']:,}, {parameters_over:,} too many" if parameters_over > 0 else ""
        ),
        f"at most {max_epochs} epochs": f"{epochs}, {epochs_over} too many" if epochs_over > 0 else "",
        f"{counting} >= {accuracy:.2f} on the {run['evaluated_on']} set": "; ".join(epochs_short(run, accuracy, last)),
    }
    for condition, problem in conditions.items():
        print(f"{condition}: False ({problem})" if problem else f"{condition}: True")
    return not any(conditions.values())


def epochs_short(run: dict, accuracy: float, last: int) -> list[str]:
    """Return in words which of the last ``last`` epochs of a run miss an accuracy, in percent; none if all hold it."""
    counted = run["history"]["test_accuracy"][-last:]
    first = len(run["history"]["test_accuracy"]) - len(counted) + 1
    short = [
        f"epoch {epoch}: {value:.2f}, {accuracy - value:.2f} short"
        for epoch, value in enumerate(counted, start=first)
        if not value >= accuracy
    ]
    return short if len(counted) == last else [*short, f"only {len(counted)} epochs were trained"]
