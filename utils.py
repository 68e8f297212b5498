"""The tools of the course, in the order in which the data flows through them:

load -> augment -> train -> evaluate -> record -> plot -> check

Pixel values run from 0 (background) to 255 (ink) until ``normalize``; accuracies are in percent.
"""

import contextlib
import difflib
import functools
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ticker import LogLocator
from PIL import Image, ImageOps
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "notebooks" / "results"

# ---------------------------------------------------------------- load ----

# Mean and standard deviation of the 60,000 training images, with pixels scaled to 0..1.
MEAN, STD = 0.1307, 0.3081

# Size in bytes and MD5 of the four files, as Yann LeCun published them (uncompressed).
MNIST_FILES = {
    "train-images-idx3-ubyte": (47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": (60_008, "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": (7_840_016, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": (10_008, "27ae3e4e09519cfbb04c329615203637"),
}


@dataclass(frozen=True)
class Data:
    """Images to train on and images to evaluate on, all on one device.

    Images are uint8 tensors of shape ``(N, 1, 28, 28)``, 0 (background) to 255; labels are int64 tensors of shape
    ``(N,)``, 0 to 9. ``name`` is ``"MNIST"`` or ``"digits"``. ``evaluated_on`` says what the ``test_`` tensors hold:
    ``"test"``, or ``"validation"`` for training images that were held out.
    """

    name: str
    evaluated_on: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def pick_device() -> torch.device:
    """Return the fastest device here: a CUDA GPU, Apple's MPS, or the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a GPU whose driver is too old for this PyTorch: the CPU will do
        if torch.cuda.is_available():
            return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def load_mnist(
    root: str | Path | None = None, *, validation: bool = False, device: torch.device | str | None = None
) -> Data:
    """Return MNIST, 60,000 training and 10,000 test images, as tensors on ``device``.

    Where ``find_mnist`` finds no files, the 1,797 handwritten digits inside scikit-learn take MNIST's place
    (``name == "digits"``).

    Args:
        root: see ``find_mnist``.
        validation: hold out the last sixth of the training images (10,000 for MNIST) and evaluate on them; the test
            images are then not in the result. For choosing settings.
        device: where the tensors go; default ``pick_device()``.

    Raises:
        ValueError, FileNotFoundError: see ``find_mnist``.
    """
    device = torch.device(device) if device else pick_device()
    folder = find_mnist(root)
    if folder is None:
        name = "digits"
        train, test = _load_digits()
    else:
        name = "MNIST"
        # Imported only here: torchvision loads torch._dynamo, 120 MB that a process needs only if it trains.
        from torchvision.datasets.mnist import read_image_file, read_label_file

        # Not through torchvision.datasets.MNIST, which would prefer an unverified MNIST/processed/ of older versions.
        raw = folder / "MNIST" / "raw"
        train, test = (
            (
                read_image_file(str(raw / f"{part}-images-idx3-ubyte")).unsqueeze(1),
                read_label_file(str(raw / f"{part}-labels-idx1-ubyte")),
            )
            for part in ("train", "t10k")
        )
    if validation:
        held_out = len(train[1]) // 6
        train, test = [t[:-held_out] for t in train], [t[-held_out:] for t in train]
    return Data(name, "validation" if validation else "test", *(t.to(device) for t in (*train, *test)))


def find_mnist(root: str | Path | None = None) -> Path | None:
    """Return the folder that holds MNIST, downloading it if need be; None stands for scikit-learn's digits.

    The four files are looked for in ``root``, then in the folder that the environment variable ``MNIST_ROOT`` names,
    then in ``data/`` beside this file, each laid out as torchvision does (``MNIST/raw/`` inside). Only when none has
    them are they downloaded into ``data/``. Files are trusted only after their MD5 matches.

    Args:
        root: folder to look in first; a relative one counts from the working directory or from the repository's root.
            ``"digits"`` (here or in ``MNIST_ROOT``) asks for scikit-learn's digits at once.

    Raises:
        ValueError: a file is damaged.
        FileNotFoundError: some of the four files are there and others are missing; in ``data/``, only if they cannot be
            downloaded.
    """
    for asked in (root, os.environ.get("MNIST_ROOT")):
        if not asked:
            continue
        if str(asked) == "digits":
            return None
        for folder in (Path(asked).expanduser(), ROOT / asked):
            if _check_files(folder):
                return folder
        print(f"No MNIST files in {Path(asked) / 'MNIST' / 'raw'}; looking further.")
    folder = ROOT / "data"
    incomplete = None
    try:
        if _check_files(folder):
            return folder
    except FileNotFoundError as error:
        incomplete = error  # the course's own folder: download the whole set again
    try:
        _download(folder)
    except OSError as error:
        if incomplete:
            raise incomplete from error
        print(
            f"MNIST could not be downloaded ({error}): using the 1,797 digits of scikit-learn instead, "
            "which say nothing about MNIST."
        )
        return None
    return folder


def _check_files(folder: Path) -> bool:
    """Return whether ``folder`` holds MNIST: False if it has none of the four files, an error if they are not right."""
    raw = folder / "MNIST" / "raw"
    missing = [name for name in MNIST_FILES if not (raw / name).is_file()]
    if len(missing) == len(MNIST_FILES):
        return False
    if missing:
        raise FileNotFoundError(
            f"{raw / missing[0]} is missing, though other files of MNIST are there. "
            f"Copy it there, or delete {raw} to have all four downloaded again."
        )
    for name, (size, md5) in MNIST_FILES.items():
        found = hashlib.md5(usedforsecurity=False)
        with open(raw / name, "rb") as file:
            while block := file.read(1 << 20):  # not the whole file, which would need 47 MB
                found.update(block)
        if found.hexdigest() != md5:
            raise ValueError(
                f"{raw / name} is damaged: expected {size:,} bytes with MD5 {md5}, found "
                f"{(raw / name).stat().st_size:,} bytes with MD5 {found.hexdigest()}. "
                f"Replace it by a good copy, or delete {raw} to have all four files downloaded again."
            )
    return True


def _download(folder: Path, patience: float = 13.0) -> None:
    """Download MNIST through torchvision into ``folder``; nothing is seen there before it is whole and verified.

    Raises:
        OSError: no mirror answered, nothing arrived for ``patience`` seconds, or what arrived was damaged.
    """
    import torchvision

    temporary = Path(tempfile.mkdtemp(prefix="mnist-"))
    errors = []

    def fetch():
        try:
            torchvision.datasets.MNIST(temporary, download=True)
        except Exception as error:
            errors.append(error)

    def received() -> int:
        return sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())

    # torchvision sets no timeout of its own. The thread is a daemon: if even the name look-up hangs, it is left behind.
    default_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(patience / 2)  # a mirror that cannot be reached leaves time for the next one
    try:
        thread = threading.Thread(target=fetch, daemon=True)
        thread.start()
        last_size, last_change = 0, time.monotonic()
        while thread.is_alive():
            thread.join(timeout=0.2)
            if (size := received()) != last_size:
                last_size, last_change = size, time.monotonic()
            elif time.monotonic() - last_change > patience:
                raise TimeoutError(f"nothing arrived for {patience:.0f} seconds")
        if errors:
            reason = str(errors[0]).strip() or type(errors[0]).__name__
            raise ConnectionError(reason.splitlines()[-1]) from errors[0]
        _check_files(temporary)
        raw = folder / "MNIST" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        for name in MNIST_FILES:
            part = raw / f"{name}.{os.getpid()}.tmp"
            shutil.copyfile(temporary / "MNIST" / "raw" / name, part)
            os.replace(part, raw / name)
    except ValueError as error:
        raise OSError("the files that arrived were damaged") from error
    finally:
        socket.setdefaulttimeout(default_timeout)
        shutil.rmtree(temporary, ignore_errors=True)


def _load_digits() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return scikit-learn's 8 x 8 digits, framed as MNIST's are: 20 x 20 pixels in the middle of 28 x 28."""
    # Imported where it is needed: with MNIST it would only cost 80 MB in every notebook.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)
    images = F.pad(F.interpolate(images, (20, 20), mode="bilinear"), (4, 4, 4, 4)).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    splits = train_test_split(range(len(labels)), test_size=0.2, stratify=digits.target, random_state=0)
    return tuple((images[split], labels[split]) for split in splits)


def read_image(image: str | Path | Image.Image | np.ndarray | torch.Tensor) -> torch.Tensor:
    """Return the picture of one digit as MNIST would have it: uint8, ``(1, 1, 28, 28)``, 0 (background) to 255.

    Dark ink on light paper and light ink on a dark ground will both do: whatever differs from the border is ink. As in
    MNIST, the ink is scaled to fit 20 x 20 pixels, and its centre of mass is put into the middle of 28 x 28. Whether
    the ink is a digit is not asked.

    Args:
        image: a file that Pillow can read, a Pillow image (what is transparent counts as white paper), or an array of
            shape ``(H, W)``, ``(1, H, W)`` or ``(H, W, 1)``, of any range of values, or ``(H, W, 3)`` or ``(H, W, 4)``
            of uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, or a damaged or far too large one; an array has another shape or holds what is
            not a finite number; nothing is drawn, or nearly everything is ink (a dark frame around the paper, often).

    Source: the steps that LeCun and others (1998) describe for MNIST.
    """
    if isinstance(image, (str, Path)) and not Path(image).is_file():
        raise FileNotFoundError(f"no such file: {image}")
    if isinstance(image, (str, Path, Image.Image)):
        try:
            with contextlib.nullcontext(image) if isinstance(image, Image.Image) else Image.open(image) as opened:
                pixels = _grey(opened)
        except Exception as error:  # on damaged files Pillow raises whatever it stumbles over
            raise ValueError(
                f"{image} cannot be read as a picture ({error}): expected a whole PNG, JPEG or the like"
            ) from error
    else:
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu().to_dense()
            image = image.numpy() if image.dtype == torch.uint8 else image.double().numpy()
        pixels = np.asarray(image)
        if pixels.dtype.kind not in "buif":
            raise ValueError(f"expected an array of numbers, got one of {pixels.dtype}")
        shape = pixels.shape
        if len(shape) == 3 and shape[2] in (3, 4) and pixels.dtype == np.uint8 and 0 not in shape:
            pixels = _grey(Image.fromarray(pixels))
        elif len(shape) == 3 and 1 in (shape[0], shape[2]):
            pixels = pixels[0] if shape[0] == 1 else pixels[:, :, 0]
        if pixels.ndim != 2 or 0 in shape:
            raise ValueError(
                "expected one image of shape (H, W), (1, H, W) or (H, W, 1), or of uint8 and shape (H, W, 3) or "
                f"(H, W, 4), got {pixels.dtype} of shape {shape}"
            )
    pixels = pixels.astype(np.float64)
    if 0 in pixels.shape or not np.isfinite(pixels).all():
        raise ValueError("expected pixels that are finite numbers, got none, or NaN or infinity among them")
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ink = np.abs(pixels - np.median(border))
    if ink.max() == 0:
        raise ValueError("expected a picture of a digit, got one colour everywhere")
    # Paper is never quite even: eight times the usual deviation of the border is still paper, and so is a trace of ink.
    unevenness = np.median(np.abs(border - np.median(border)))
    ink[ink < max(0.05 * ink.max(), 8 * unevenness)] = 0
    if ink.max() == 0:
        raise ValueError("expected a digit on an even ground, got a picture whose border varies as much as the rest")
    rows, columns = np.flatnonzero(ink.max(1)), np.flatnonzero(ink.max(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    ink = (ink * (255 / ink.max())).astype(np.float32)
    factor = 20 / max(ink.shape)
    size = [max(1, round(side * factor)) for side in ink.shape[::-1]]
    ink = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BICUBIC)).clip(0, 255)
    ink = ink * (255 / ink.max())  # thin strokes have become pale
    # A fat 1 fills its narrow box; of MNIST's broader digits, none fills more than 0.79.
    if min(ink.shape) >= 10 and ink.mean() > 0.85 * 255:
        raise ValueError(
            "expected a digit on a ground that reaches the border, got a picture that is nearly all ink: is there a "
            "frame, or a table around the paper? Cut it off."
        )
    # The centre of mass goes to the middle of pixel 14, counted from 0, as in MNIST, as far as the 28 pixels allow.
    places = []
    for axis in (0, 1):
        mass = ink.sum(1 - axis)
        centre = (mass * (np.arange(len(mass)) + 0.5)).sum() / mass.sum()
        places.append(int(np.clip(round(14.5 - centre), 0, 28 - len(mass))))
    result = np.zeros((28, 28), np.float32)
    result[places[0] : places[0] + ink.shape[0], places[1] : places[1] + ink.shape[1]] = ink
    return torch.from_numpy(result.round().astype(np.uint8)).view(1, 1, 28, 28)


def _grey(image: Image.Image) -> np.ndarray:
    """Return the grey values of a picture, ``(H, W)``, what is transparent on white, and turned as it was taken."""
    image = ImageOps.exif_transpose(image)  # phones store photographs turned, with a note how
    if image.mode[0] in "IF":  # 16 or 32 bits, which convert would cut off at 255
        return np.asarray(image)
    if not image.has_transparency_data:
        return np.asarray(image.convert("L"))
    image = image.convert("RGBA")
    grey = np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L"))
    return grey if grey.size and np.ptp(grey) else np.asarray(image.getchannel("A"))  # white ink on nothing


# ------------------------------------------------------------- augment ----


def augment(
    images: torch.Tensor,
    *,
    degrees: float = 0,
    translate: float = 0,
    scale: float = 0,
    shear: float = 0,
    elastic: float = 0,
) -> torch.Tensor:
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

    Returns:
        ``(N, 1, H, H)``, float, 0 to 255.

    Raises:
        ValueError: the images have another shape, or an amount is negative or too large.
    """
    if images.dim() != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3]:
        raise ValueError(f"expected square images of shape (N, 1, H, H), got {tuple(images.shape)}")
    if min(degrees, translate, scale, shear, elastic) < 0 or scale >= 1 or shear >= 90:
        raise ValueError(
            "expected amounts of 0 or more, scale below 1 and shear below 90 degrees, got "
            f"degrees={degrees}, translate={translate}, scale={scale}, shear={shear}, elastic={elastic}"
        )

    def draw(largest: float) -> torch.Tensor:
        return (torch.rand(len(images), device=images.device) * 2 - 1) * largest

    angle, slant, size = torch.deg2rad(draw(degrees)), torch.tan(torch.deg2rad(draw(shear))), 1 + draw(scale)
    shift = torch.stack([draw(translate), draw(translate)], dim=1).unsqueeze(2) * 2  # the grid spans -1..1
    cos, sin = torch.cos(angle), torch.sin(angle)
    # The grid says where each output pixel comes from, so this is the inverse of the map: unshear, unrotate, unscale.
    linear = torch.stack(
        [
            torch.stack([cos + slant * sin, sin - slant * cos], dim=1),
            torch.stack([-sin, cos], dim=1),
        ],
        dim=1,
    ) / size.view(-1, 1, 1)
    inverse = torch.cat([linear, -linear @ shift], dim=2)
    grid = F.affine_grid(inverse, images.shape, align_corners=False)
    if elastic:
        points = (torch.rand(len(images), 2, 5, 5, device=images.device) * 2 - 1) * 2 * elastic
        bent = F.interpolate(points, images.shape[2:], mode="bicubic", align_corners=True)
        grid = grid + bent.permute(0, 2, 3, 1)
    return F.grid_sample(images.float(), grid, padding_mode="zeros", align_corners=False)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Return pixel values 0 to 255, of any dtype and shape, as floats of mean 0 and standard deviation 1 (on MNIST)."""
    return (images.float() / 255 - MEAN) / STD


# --------------------------------------------------------------- train ----


def fit(
    model: nn.Module,
    data: Data,
    *,
    name: str,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batch_size: int,
    seed: int,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    augmentation: dict[str, float] | None = None,
    augmented_epochs: int | None = None,
    ema_decay: float | None = None,
    bfloat16: bool | None = None,
    checkpoint: bool = False,
) -> dict:
    """Train the model in place, printing a line after every epoch, and return the run's record.

    The loop is the one that notebook 1 writes out, plus augmentation, weight averaging and the record.

    Args:
        model: maps ``(N, 1, 28, 28)`` normalised images to ``(N, 10)`` logits; moved to the data's device.
        data: what ``load_mnist`` returned.
        name: the run's name, and the name of its files under ``notebooks/results/``.
        optimizer: over ``model.parameters()``.
        epochs, batch_size: the last batch of an epoch may be shorter, and counts like the others.
        seed: of the shuffling, the augmentation and the dropout. (Seed the weights yourself, before making the model.)
        scheduler: of the optimizer; stepped after every *batch*, so that its lengths are counted in batches.
        loss: called with the logits, the labels and the normalised images of a training batch; by default the
            cross-entropy of the first two. (The test's loss is the cross-entropy in any case.)
        augmentation: arguments of ``augment``, which is then applied to every training batch.
        augmented_epochs: augment only in the first so many epochs; the others see the images as they are.
        ema_decay: evaluate, and keep in the end, an exponential moving average of the weights (and of BatchNorm's
            statistics) instead of the last ones; the fraction, 0 to 1, that the average keeps at every step.
        bfloat16: train in this shorter number format where autocast holds it to be safe (notebook 8); by default only
            on processors that compute in it themselves. Weights, loss and evaluation are in float32 in any case.
        checkpoint: write the state of the training to a file after every epoch, and continue from there if the same
            run (name, settings, starting weights and images) was stopped before. On the same processor, with as many
            threads, the weights are then, bit for bit, those of a run that was not stopped. ``save_run`` removes the
            file. Functions, such as ``loss`` or those of a ``LambdaLR``, are compared by their names at most.

    Returns:
        The record: see ``save_run``.

    Raises:
        ValueError: the optimizer is not the model's, or the scheduler not the optimizer's (of an earlier cell, often);
            ``ema_decay`` is not between 0 and 1; there are ``augmented_epochs`` without an augmentation, or more of
            them than epochs; the name is not a plain file name; a setting is nothing that JSON, and so the record, can
            hold (a number of NumPy's, often).
        FloatingPointError: the loss is no longer a finite number.
    """
    _check_name(name)
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if optimized != {id(p) for p in model.parameters()}:
        raise ValueError("expected an optimizer over this model's parameters: make it again after making the model")
    if scheduler and scheduler.optimizer is not optimizer:
        raise ValueError("expected a scheduler of this optimizer: make it again after making the optimizer")
    if augmented_epochs is not None and not (augmentation and 0 <= augmented_epochs <= epochs):
        raise ValueError(
            f"expected augmented_epochs from 0 to {epochs}, with an augmentation, got {augmented_epochs} "
            f"with {augmentation}"
        )
    torch.manual_seed(seed)
    device = data.train_images.device
    model.to(device)
    settings = {
        "batch_size": batch_size,
        "optimizer": {"class": type(optimizer).__name__} | _plain(optimizer.defaults),
        "scheduler": {"class": type(scheduler).__name__} | _plain(scheduler.state_dict()) if scheduler else None,
        "loss": getattr(loss, "__name__", type(loss).__name__) if loss else "cross_entropy",
        "augmentation": augmentation,
        "augmented_epochs": augmented_epochs,
        "ema_decay": ema_decay,
    }
    json.dumps([settings, epochs, seed], allow_nan=False, default=_not_for_json)  # rather than after the training
    identity = ""
    if checkpoint:  # all of the scheduler's state: the settings leave out what JSON cannot hold
        scheduler_state = scheduler and scheduler.state_dict()
        identity = _identity(model, optimizer, data, name, seed, epochs, bfloat16, settings, scheduler_state)
    path = _results_folder(data.name) / f"{name}.checkpoint"
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": version("torchvision"),
    }
    if bfloat16 is None:
        bfloat16 = _has_bfloat16(device)
    history = {"train_loss": [], "train_accuracy": [], "test_loss": [], "test_accuracy": []}
    elapsed, continued_after = [], []
    count, total = len(data.train_labels), len(data.test_labels)
    started = time.perf_counter()
    # The bar shares one stream with the lines, so that a saved page shows the lines alone.
    steps = epochs * math.ceil(count / batch_size)
    bar = tqdm(total=steps, desc=name, unit="batch", mininterval=0.5, leave=False, file=sys.stdout)
    with bar, _fast_order(model, device):
        averaged = None
        if ema_decay is not None:
            averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True)
        result = averaged.module if averaged else model
        parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "averaged": averaged}
        parts = {key: part for key, part in parts.items() if part is not None}
        if checkpoint and (saved := _read_checkpoint(path, identity)):
            for key, part in parts.items():
                part.load_state_dict(saved[key])
            history, elapsed = saved["history"], saved["elapsed"]
            continued_after = saved["continued_after"]
            _set_random_state(saved["random_state"], device)
            started -= elapsed[-1]
            bar.update(len(elapsed) * math.ceil(count / batch_size))
            for epoch in range(1, len(elapsed) + 1):
                tqdm.write(_line(epoch, history, data))
            if len(elapsed) < epochs:
                continued_after.append(len(elapsed))
                tqdm.write(f"{name} was stopped after epoch {len(elapsed)} of {epochs}; it goes on from {path.name}.")
            else:
                tqdm.write(f"{name} was trained to its end, but not saved; here it is again, from {path.name}.")
        for epoch in range(len(elapsed) + 1, epochs + 1):
            model.train()
            means = _averaged(result)
            augmented = augmentation and (augmented_epochs is None or epoch <= augmented_epochs)
            # Sums stay on the device, so that a GPU need not wait for Python after every batch.
            loss_sum = torch.zeros((), device=device)
            correct = torch.zeros((), device=device, dtype=torch.int64)
            for batch in torch.randperm(count).to(device).split(batch_size):
                images, labels = data.train_images[batch], data.train_labels[batch]
                if augmented:
                    images = augment(images, **augmentation)
                images = normalize(images)
                with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                    logits = model(images)
                batch_loss = loss(logits.float(), labels, images) if loss else F.cross_entropy(logits.float(), labels)
                optimizer.zero_grad()
                batch_loss.backward()
                optimizer.step()
                if scheduler:
                    scheduler.step()
                if averaged and averaged.n_averaged == 0:
                    averaged.update_parameters(model)  # the first time, it copies
                elif averaged:  # not by that method, which spends most of its time on sorting the tensors by type
                    averaged.multi_avg_fn(means, _averaged(model), averaged.n_averaged)
                loss_sum += batch_loss.detach() * len(labels)
                correct += (logits.argmax(1) == labels).sum()
                bar.update()
            train_loss, train_accuracy = loss_sum.item() / count, 100 * correct.item() / count
            if averaged:  # whole numbers are the latest ones: the network that is tested is the one that is kept
                for kept, latest in zip(result.buffers(), model.buffers()):
                    if not kept.is_floating_point():
                        kept.copy_(latest)
            test_loss, test_correct = evaluate(result, data.test_images, data.test_labels)
            if not math.isfinite(train_loss + test_loss):
                raise FloatingPointError(
                    f"epoch {epoch}: the loss is no longer a finite number (training {train_loss}, "
                    f"{data.evaluated_on} {test_loss}). Most often the learning rate is too high: try a tenth of it."
                )
            test_accuracy = 100 * test_correct / total
            for series, value in zip(history.values(), (train_loss, train_accuracy, test_loss, test_accuracy)):
                series.append(value)
            elapsed.append(round(time.perf_counter() - started, 2))
            tqdm.write(_line(epoch, history, data))
            if checkpoint:
                states = {key: part.state_dict() for key, part in parts.items()}
                progress = {"history": history, "elapsed": elapsed, "continued_after": continued_after}
                state = {"identity": identity, **states, **progress, "random_state": _random_state(device)}
                _write_whole({path: _torch_bytes(state)})
        if averaged:
            model.load_state_dict(result.state_dict())
    return {
        "name": name,
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "network": str(model),
        "epochs": epochs,
        "seed": seed,
        "data": data.name,
        "evaluated_on": data.evaluated_on,
        "settings": settings,
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "precision": "bfloat16 autocast" if bfloat16 else "float32",
        "versions": versions,
        "seconds": round(time.perf_counter() - started, 1),
        "elapsed": elapsed,
        "continued_after": continued_after,
        "history": history,
    }


def _averaged(model: nn.Module) -> list[torch.Tensor]:
    """Return the parameters and buffers that have averages: not whole numbers, such as BatchNorm's count of batches."""
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]


def _line(epoch: int, history: dict, data: Data) -> str:
    """Return what ``fit`` prints after an epoch."""
    train_loss, train_accuracy, test_loss, test_accuracy = (series[epoch - 1] for series in history.values())
    total = len(data.test_labels)
    return (
        f"{epoch:2d}  Train: {train_loss:.4f}, {train_accuracy:.2f}%  {data.evaluated_on.capitalize()} set: "
        f"Average loss: {test_loss:.4f}, Accuracy: {round(test_accuracy * total / 100)}/{total} ({test_accuracy:.2f}%)"
    )


def _identity(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, *others) -> str:
    """Return a text that two runs share only if they start alike and are to do the same, be it on another device."""
    digest = hashlib.sha256()
    tensors = [data.train_images, data.train_labels, data.test_images, data.test_labels, *model.state_dict().values()]
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    digest.update(repr((data.name, data.evaluated_on, str(model), type(optimizer), groups, others)).encode())
    return digest.hexdigest()


def _read_checkpoint(path: Path, identity: str) -> dict | None:
    """Return the state that a run of this identity left, or None, and say so, if there is no such thing."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if state["identity"] == identity:
            return state
        tqdm.write(f"{path.name} is of a run with other settings, weights or images: starting anew.")
    except Exception:  # on damaged files torch raises whatever it stumbles over
        tqdm.write(f"{path.name} cannot be read: starting anew.")
    return None


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of torch's generators that a training on this device draws from, by type of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


def _set_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:  # not so if the run began on another type of device
        torch.get_device_module(device).set_rng_state(states[device.type], device)


@contextlib.contextmanager
def _fast_order(model: nn.Module, device: torch.device):
    """On a processor, train with the channels of a pixel side by side in memory (channels_last): see notebook 8.

    BatchNorm layers of fewer than 16 channels are the exception. There, two threads write their sums into one cache
    line (64 bytes) and wait for each other; so they get their maps, and their gradients, in the usual order.
    """
    if device.type != "cpu":
        yield
        return
    model.to(memory_format=torch.channels_last)
    narrow = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d) and layer.num_features < 16]
    hooks = [layer.register_forward_pre_hook(_before_batch_norm) for layer in narrow]
    hooks += [layer.register_forward_hook(_after_batch_norm) for layer in narrow]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.to(memory_format=torch.contiguous_format)


class _Reorder(torch.autograd.Function):
    """The same numbers in another order in memory; their gradients are put back into the order before."""

    @staticmethod
    def forward(context, maps: torch.Tensor, before: torch.memory_format, after: torch.memory_format) -> torch.Tensor:
        context.before = before
        return maps.contiguous(memory_format=after)

    @staticmethod
    def backward(context, gradient: torch.Tensor):
        return gradient.contiguous(memory_format=context.before), None, None


def _before_batch_norm(layer: nn.Module, inputs: tuple):
    return _Reorder.apply(inputs[0], torch.channels_last, torch.contiguous_format) if layer.training else None


def _after_batch_norm(layer: nn.Module, inputs: tuple, maps: torch.Tensor):
    return _Reorder.apply(maps, torch.contiguous_format, torch.channels_last) if layer.training else None


def _processor() -> dict:
    """Return what PyTorch knows of the processor: nothing, in versions that cannot tell."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({_processor().get('cpu_name') or platform.machine()})"


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether the device is a processor that computes in bfloat16 itself (elsewhere float32 is used)."""
    return device.type == "cpu" and any(_processor().get(feature) for feature in ("avx512_bf16", "amx_bf16"))


def _plain(state: dict) -> dict:
    """Return the numbers, texts and lists among the entries, and tables of numbers such as MultiStepLR's."""
    kinds = (bool, int, float, str, list, tuple, Counter)
    return {key: value for key, value in state.items() if isinstance(value, kinds)}


# ------------------------------------------------------------ evaluate ----


def predict(model: nn.Module, images: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
    """Return the logits, ``(N, 10)`` float32, for images of pixel values 0 to 255, ``(N, 1, 28, 28)``.

    The model is run in evaluation mode and then put back as it was: no statistic, gradient or random state changes.

    Args:
        model: maps ``(N, 1, 28, 28)`` normalised images to ``(N, 10)`` logits.
        images: on the model's device.
        batch_size: changes nothing but the speed and the rounding; default 250 on a processor, whose cache holds the
            maps of so many images (notebook 8), and 1,000 elsewhere.
    """
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
    """
    logits = predict(model, images)
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).sum().item()


# -------------------------------------------------------------- record ----


def save_run(run: dict, model: nn.Module) -> None:
    """Write the run's record to ``<name>.json`` and the model's weights to ``<name>.pt``, each whole or not at all.

    They go to ``notebooks/results/``, or to the folder that the environment variable ``MNIST_RESULTS`` names, counted
    from the repository's root (it keeps the course's own records as they are, and the tests set it). Runs on the
    digits go to ``digits/`` inside.

    The record's keys: ``name, model, parameters, network`` (the layers, as text), ``epochs, seed, data, evaluated_on,
    settings, device, threads, precision, versions, seconds`` (training and evaluation), ``elapsed`` (the seconds since
    the start, at the end of each epoch), ``continued_after`` (the epochs after which the run was stopped and
    continued), both missing in older records, ``study`` and ``arguments`` (of runs by ``run_study``), and ``history``,
    a list with one value for every epoch of each of ``train_loss, train_accuracy`` (means over the epoch, while the
    weights still moved), ``test_loss`` and ``test_accuracy`` (after the epoch). The run's checkpoint is removed.

    Raises:
        ValueError: the name is not a plain file name.
    """
    _check_name(run["name"])
    folder = _results_folder(run["data"])
    weights = _torch_bytes({key: value.cpu() for key, value in model.state_dict().items()})
    record = json.dumps(run, indent=1, allow_nan=False) + "\n"
    _write_whole({folder / f"{run['name']}.pt": weights, folder / f"{run['name']}.json": record.encode()})
    (folder / f"{run['name']}.checkpoint").unlink(missing_ok=True)


def _results_folder(data_name: str) -> Path:
    """Return the folder that runs on this data are written to."""
    folder = ROOT / (os.environ.get("MNIST_RESULTS") or RESULTS)
    return folder if data_name == "MNIST" else folder / data_name


def _torch_bytes(state: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _write_whole(files: dict[Path, bytes]) -> None:
    """Write the files, none of which is ever seen half written."""
    parts = {path: path.with_name(f"{path.name}.{os.getpid()}.tmp") for path in files}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            parts[path].write_bytes(content)
        for path, part in parts.items():
            os.replace(part, path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _check_name(name: str) -> None:
    if not (isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name)):
        raise ValueError(f"expected a plain file name for a run (letters, digits, '-', '_', '.'), got {name!r}")


def load_run(name: str) -> dict:
    """Return the record of a saved run on MNIST, from ``notebooks/results/<name>.json``.

    Raises:
        FileNotFoundError: there is no such record.
        ValueError: the file is not a record.
    """
    return _read_record(_result(name, ".json"))


def _read_record(path: Path) -> dict:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        run["history"]["test_accuracy"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not the record of a run: delete it, or run its notebook again to write a new one"
        ) from error
    return run


def load_weights(model: nn.Module, name: str) -> nn.Module:
    """Load the final weights of a saved run on MNIST into the model, and return it in evaluation mode.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the file is damaged.
        RuntimeError: they belong to another network.
    """
    path = _result(name, ".pt")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files torch raises whatever it stumbles over
        raise ValueError(f"{path} does not hold weights: run its notebook again to write them anew") from error
    model.load_state_dict(weights)
    return model.eval()


def _result(name: str, suffix: str) -> Path:
    path = RESULTS / f"{name}{suffix}"
    if not path.is_file():
        saved = [file.stem for file in RESULTS.glob(f"*{suffix}")]
        closest = ", ".join(difflib.get_close_matches(name, saved, n=5, cutoff=0)) or "none at all"
        raise FileNotFoundError(f"no saved run {name!r} among the {len(saved)} in {RESULTS}; the closest: {closest}")
    return path


def run_study(
    study: str, train: Callable[..., tuple[dict, nn.Module]], runs: list[dict], n_jobs: int = -1
) -> list[dict]:
    """Train every run that has no record yet, several at a time, and return the records of all, in the order given.

    Records are looked for among the course's own, and then where ``save_run`` writes them. A run is saved as soon as
    it ends; so a study that was stopped, or killed, goes on where it was when it is started again. (If
    ``train`` lets ``fit`` write checkpoints, so do the runs that were in progress.) joblib does the work. Inside
    ``joblib.parallel_config(backend="dask")``, or ``"ray"`` after ``ray.util.joblib.register_ray()``, the runs go to
    the workers of a cluster. They must be able to import the course's files and to find MNIST, and must share the
    folder of the results. In one process there is never more than one run at a time.

    Args:
        study: the name that the records carry as ``study``. They also carry ``arguments``, the run as given here.
        train: called as ``train(**run)``, most often in another process, so that it loads the data itself, by
            ``load_mnist()`` without ``root``; returns what ``fit`` returned, and the model.
        runs: the arguments of each run, all of them things that JSON can hold; among them ``name``, see ``fit``.
        n_jobs: how many runs at a time; -1: one on each processor core. A cluster always uses all its workers.

    Raises:
        ValueError: a run has no name that a file can have, or not one of its own, or an argument that JSON cannot hold;
            a record of that name was made with other arguments, or on other data than the rest, or is damaged.
        RuntimeError: some runs failed; all the others were still finished and saved.
        FileNotFoundError: a run was saved elsewhere, by a worker that has another folder for results.
    """
    names = [run.get("name") for run in runs]
    for name in names:
        _check_name(name)
    if len(set(names)) < len(names):
        raise ValueError(f"expected every run to have a name of its own, got {names}")
    runs = json.loads(json.dumps(runs, allow_nan=False, default=_not_for_json))
    folder = _results_folder("digits" if find_mnist() is None else "MNIST")

    def find(run: dict) -> dict | None:
        for path in (place / f"{run['name']}.json" for place in (RESULTS, folder)):
            if not path.is_file():
                continue
            record = _read_record(path)
            if "arguments" not in record:  # a notebook that trains one run of a study by itself notes the study alone
                shared = [key for key in ("seed", "epochs") if key in run]
                if record.get("study") == study and all(record.get(key) == run[key] for key in shared):
                    return record
            elif (found := record["arguments"]) == run:
                return record
            else:
                raise ValueError(f"{path} was made with {found}, not with {run}: rename the run, or delete the file")

    records = {run["name"]: find(run) for run in runs}
    waiting = [run for run in runs if not records[run["name"]]]
    # What a study that was killed while it wrote could not remove.
    for name in names:
        for suffix in (".json.*.tmp", ".pt.*.tmp", ".checkpoint.*.tmp"):
            for left in folder.glob(name + suffix):
                left.unlink(missing_ok=True)
        record, checkpoint = folder / f"{name}.json", folder / f"{name}.checkpoint"
        # A newer one is that of a notebook which has begun to train this run again.
        if record.is_file() and checkpoint.is_file() and checkpoint.stat().st_mtime_ns <= record.stat().st_mtime_ns:
            checkpoint.unlink(missing_ok=True)
    with _count_runs(study, len(runs), lambda: len(runs) - sum(not find(run) for run in waiting)):
        tasks = [joblib.delayed(_train_and_save)(study, train, run, os.getpid()) for run in waiting]
        failures = [failure for failure in joblib.Parallel(n_jobs)(tasks) if failure]
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(runs)} runs failed, the others are saved; {'; '.join(failures)}")
    records |= {run["name"]: find(run) for run in waiting}
    if missing := [name for name in names if not records[name]]:
        raise FileNotFoundError(
            f"{', '.join(missing)}: trained, but not saved in {folder}. Let MNIST_RESULTS name one folder, and "
            "MNIST_ROOT the same data, for all the workers."
        )
    data = {name: record["data"] for name, record in records.items()}
    if len(set(data.values())) > 1:
        raise ValueError(f"expected records of runs on the same data, got {data}: delete those that do not belong here")
    return list(records.values())


def _not_for_json(value):
    raise ValueError(f"expected arguments that JSON can hold (numbers, texts, lists, dicts), got {value!r}")


@contextlib.contextmanager
def _count_runs(study: str, total: int, count: Callable[[], int]):
    """Show a bar of the runs that are saved, with the time left, whoever trains them."""
    ended = threading.Event()
    bar = tqdm(total=total, initial=count(), desc=study, unit="run", leave=False, file=sys.stdout)

    def show():
        while not ended.wait(0.5):
            bar.update(count() - bar.n)

    with bar:
        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


# The random numbers of torch, and the standard output, are those of a whole process, whatever its threads do.
_ONE_RUN = threading.Lock()


def _train_and_save(
    study: str, train: Callable[..., tuple[dict, nn.Module]], run: dict, study_process: int
) -> str | None:
    """Train and save one run of a study, without a line; return what went wrong, if anything did."""
    if os.getppid() == study_process:
        _end_with(study_process)
    try:
        with _ONE_RUN, contextlib.redirect_stdout(io.StringIO()):
            record, model = train(**run)
        if record["name"] != run["name"]:
            raise ValueError(f"expected train to return a record of that name, got {record['name']!r}")
        save_run(record | {"study": study, "arguments": run}, model)
    except Exception as error:  # the other runs shall still be trained
        return f"{run['name']}: {type(error).__name__}: {error}"


@functools.cache
def _end_with(parent: int) -> None:
    """End this process, a worker of joblib, when its parent was killed: it would go on, or wait, without it.

    (Windows keeps the number of a parent that has ended; there, a worker ends by itself when it has had nothing to do
    for some minutes.)
    """

    def watch():
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def mean_accuracy(run: dict, last: int = 5) -> float:
    """Return the mean test accuracy over the last ``last`` epochs of a run, in percent."""
    return float(np.mean(run["history"]["test_accuracy"][-last:]))


def print_runs(runs: list[dict], last: int = 5) -> None:
    """Print a table of runs, with the accuracies (percent) of the last ``last`` epochs, and on which set they are."""
    width = max((len(run["name"]) for run in runs), default=0)
    print(f"{'run':{width}}  parameters  epochs  lowest   mean  final  set")
    for run in runs:
        accuracies = run["history"]["test_accuracy"][-last:]
        print(
            f"{run['name']:{width}}  {run['parameters']:10,}  {run['epochs']:6}  "
            f"{min(accuracies):6.2f}  {np.mean(accuracies):5.2f}  {accuracies[-1]:5.2f}  "
            f"{'' if run['data'] == 'MNIST' else run['data'] + ' '}{run['evaluated_on']}"
        )


# ---------------------------------------------------------------- plot ----


def plot_digits(images: torch.Tensor, titles: list[str] | None = None, columns: int = 10) -> None:
    """Show images, ``(N, 1, 28, 28)`` with pixel values 0 to 255, as dark ink on white, in rows of ``columns``."""
    rows = math.ceil(len(images) / columns)
    lines = max(title.count("\n") + 1 for title in titles) if titles else 0
    height = rows * (7 / columns + (0.1 + 0.15 * lines if lines else 0))
    figure, axes = plt.subplots(rows, columns, figsize=(7, height), squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for index, axis in enumerate(axes.flat):
        axis.axis("off")
        if index < len(images):
            axis.imshow(images[index, 0].cpu().numpy(), cmap="gray_r", vmin=0, vmax=255)
            if titles:
                axis.set_title(titles[index], fontsize=9, pad=2)
    plt.show()


def plot_mistakes(model: nn.Module, data: Data, count: int = 20) -> None:
    """Show the wrongly classified test images, the surest mistakes first, each titled "label → guess".

    Args:
        model: see ``predict``.
        data: what ``load_mnist`` returned.
        count: how many to show, at most.
    """
    probabilities = predict(model, data.test_images).softmax(1)
    confidence, guesses = probabilities.max(1)
    wrong = (guesses != data.test_labels).nonzero().flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True)]
    print(f"{len(wrong)} of {len(guesses):,} are wrong; the {min(count, len(wrong))} surest mistakes, label → guess:")
    if len(wrong):
        shown = wrong[:count]
        plot_digits(data.test_images[shown], [f"{data.test_labels[i]} → {guesses[i]}" for i in shown])


def plot_runs(runs: list[dict], target: float | None = None, last: int | None = None) -> None:
    """Show the loss and the accuracy of runs, epoch by epoch: dashed while training, solid on the test images.

    The accuracy axis is stretched towards 100 %, where the differences are.

    Args:
        runs: one to five records, as ``fit`` and ``load_run`` return them.
        target: an accuracy in percent, drawn as a horizontal line.
        last: shade the last so many epochs of the first run, the ones that count.

    Raises:
        ValueError: there is no run, or more than five.
    """
    # Dark to light, so that they differ when printed in grey; the markers tell them apart as well.
    colors, markers = ("#111b3a", "#b22222", "#2a9d6f", "#d98e04", "#8fb8de"), "os^Dv"
    if not 1 <= len(runs) <= len(colors):
        raise ValueError(f"expected one to {len(colors)} runs, which stay legible, got {len(runs)}")
    figure, (loss_axis, accuracy_axis) = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
    for run, color, marker in zip(runs, colors, markers):
        label = run["name"] if run["data"] == "MNIST" else f"{run['name']} ({run['data']})"
        for axis, quantity in ((loss_axis, "loss"), (accuracy_axis, "accuracy")):
            for part, style in (("train", "--"), ("test", "-")):
                values = run["history"][f"{part}_{quantity}"]
                axis.plot(
                    range(1, len(values) + 1),
                    values,
                    style,
                    color=color,
                    alpha=0.6 if part == "train" else 1,
                    linewidth=1 if part == "train" else 1.5,
                    marker=marker if part == "test" else None,
                    markersize=3,
                    label=label if part == "test" else None,
                )
    loss_axis.set(title="loss", xlabel="epoch", yscale="log")
    loss_axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss_axis.yaxis.set_major_formatter("{x:g}")
    loss_axis.yaxis.set_minor_formatter("")
    # One over the root of the error; at 100 % the error is 0, and 100.1 keeps it on the axis.
    accuracy_axis.set_yscale(
        "function", functions=(lambda a: 1 / np.sqrt(np.maximum(100.1 - a, 1e-3)), lambda h: 100.1 - 1 / h**2)
    )
    values = [v for run in runs for part in ("train", "test") for v in run["history"][f"{part}_accuracy"]]
    bottom, top = min(values) - 0.2 * (100 - min(values)), max([*values, target or 0])
    accuracy_axis.set(
        title="accuracy (%)", xlabel="epoch", ylim=(bottom, min(100, top + 0.3 * (100 - top))),
        yticks=[tick for tick in (10, 80, 90, 95, 98, 99, 99.4, 99.6, 99.8) if bottom <= tick <= top + 0.1],
    )  # fmt: skip
    accuracy_axis.yaxis.set_major_formatter("{x:g}")
    if target:
        accuracy_axis.axhline(target, color="black", linewidth=1, linestyle=":", label=f"target {target:g} %")
    accuracy_axis.plot([], [], "--", color="gray", linewidth=1, label="dashed: training images")
    for axis in (loss_axis, accuracy_axis):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if last:
            epochs = runs[0]["epochs"]
            axis.axvspan(epochs - last + 0.5, epochs + 0.5, color="black", alpha=0.08, linewidth=0)
    figure.legend(*accuracy_axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    plt.show()


def plot_layers(model: nn.Module) -> None:
    """Show how many parameters each layer has, as bars, the first layer at the top."""
    layers = _parameters_by_layer(model)
    _, axis = plt.subplots(figsize=(7, 0.6 + 0.25 * len(layers)), layout="constrained")
    bars = axis.barh(list(layers), list(layers.values()), color="#111b3a")
    axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=9)
    axis.invert_yaxis()
    axis.set(xlabel=f"parameters ({sum(layers.values()):,} in all)", xmargin=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    plt.show()


def plot_networks(
    runs: dict[str, list[dict]], yours: list[dict] | None = None, last: int = 5, target: float = 99.4
) -> None:
    """Show parameters against accuracy: published networks as crosses, ours as dots with one standard deviation.

    The accuracy of ours is the mean over the last five epochs and over the runs. The published figures are counted in
    different ways: see ``notebooks/results/published.json``.

    Args:
        runs: for each network, named as in the picture, its records; one to seven networks.
        yours: more records, each with a star of its own.
        last: the number of final epochs over which the accuracy of ``yours`` is the mean.
        target: an accuracy in percent, drawn as a horizontal line.

    Raises:
        ValueError: there are no networks, or more than seven, or one has no records.
    """
    colors = ("#111b3a", "#2a9d6f", "#d98e04", "#6a4c93", "#8fb8de", "#8c564b", "#d16ba5")
    if not 1 <= len(runs) <= len(colors) or not all(runs.values()):
        raise ValueError(f"expected one to {len(colors)} networks, each with records, got {list(runs)}")
    published = json.loads((RESULTS / "published.json").read_text(encoding="utf-8"))
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for network in published:
        point = network["parameters"], network["accuracy"]
        side = {"xytext": (6, -3)} if point[0] < 100_000 else {"xytext": (-6, -3), "ha": "right"}
        axis.plot(*point, "x", color="#888888")
        axis.annotate(network["name"], point, textcoords="offset points", fontsize=8, color="#666666", **side)
    for (name, of), color in zip(runs.items(), colors):
        means = [mean_accuracy(run) for run in of]
        error = np.std(means, ddof=1) if len(means) > 1 else None
        label = f"{name} ({len(of)} seeds)"
        axis.errorbar(of[0]["parameters"], np.mean(means), yerr=error, fmt="o", color=color, capsize=3, label=label)
    for run in yours or []:
        on = [part for part in (run["data"], run["evaluated_on"]) if part not in ("MNIST", "test")]
        label = f"{run['name']} ({', '.join(on)})" if on else run["name"]
        axis.plot(run["parameters"], mean_accuracy(run, last), "*", color="#b22222", markersize=13, label=label)
    axis.axhline(target, color="black", linewidth=1, linestyle=":", label=f"target {target:g} %")
    counts = [network["parameters"] for network in [*published, *(of[0] for of in runs.values()), *(yours or [])]]
    axis.set(xlabel="parameters", ylabel="accuracy (%)", xscale="log", xlim=(0.7 * min(counts), 2 * max(counts)))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    plt.show()


# --------------------------------------------------------------- check ----


def check_target(run: dict, *, max_parameters: int, max_epochs: int, accuracy: float, last: int) -> bool:
    """Print whether a run on MNIST meets a target, condition by condition, and return whether it meets them all.

    The best epoch counts for nothing: every one of the last ``last`` epochs must hold the accuracy.

    Args:
        run: a record.
        max_parameters: the most parameters that are allowed.
        max_epochs: the most epochs that are allowed.
        accuracy: in percent; an epoch holds it when its test accuracy is at least this.
        last: number of final epochs that count, 1 or more.

    Raises:
        ValueError: ``last`` is below 1.
    """
    if last < 1:
        raise ValueError(f"expected last to be 1 or more, got {last}")
    if run["data"] != "MNIST":
        print(f"no claim: this run is on {run['data']}, and the target is about MNIST")
        return False
    accuracies = run["history"]["test_accuracy"]
    epochs, counted = len(accuracies), accuracies[-last:]
    first = epochs - len(counted) + 1
    short = [
        f"epoch {epoch}: {value:.2f}, {accuracy - value:.2f} short"
        for epoch, value in enumerate(counted, start=first)
        if not value >= accuracy
    ]
    if len(counted) < last:
        short.append(f"only {len(counted)} epochs were trained")
    parameters_over, epochs_over = run["parameters"] - max_parameters, epochs - max_epochs
    counting = "the last epoch" if last == 1 else f"all of the last {last} epochs"
    conditions = {
        f"at most {max_parameters:,} parameters": (
            f"{run['parameters']:,}, {parameters_over:,} too many" if parameters_over > 0 else ""
        ),
        f"at most {max_epochs} epochs": f"{epochs}, {epochs_over} too many" if epochs_over > 0 else "",
        f"{counting} >= {accuracy:.2f} on the {run['evaluated_on']} set": "; ".join(short),
    }
    for condition, problem in conditions.items():
        print(f"{condition}: False ({problem})" if problem else f"{condition}: True")
    return not any(conditions.values())


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
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(Path(frame.filename).is_relative_to(place) for place in (sys.prefix, sys.base_prefix, __file__))
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
        layers = _parameters_by_layer(model)
        largest = max(layers, key=layers.get)
        problems.append(
            f"{total:,} parameters, {total - max_parameters:,} more than the {max_parameters:,} that are allowed. "
            f"Most of them, {layers[largest]:,}, are in {largest}; the bars show all layers."
        )
        plot_layers(model)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if linear and not fully_connected:
        problems.append(
            f"This task allows no fully connected layers, and there is one: {', '.join(linear)}. A 1 × 1 convolution "
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
            "epochs × batches in an epoch."
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
            "rate that falls to nearly zero, or averaged weights, make the end calmer (notebook 7)."
        )
    if trained > accuracy:
        return (
            f"The training images are read better ({trained:.2f}) than the target asks: the network overfits. "
            "Augmentation (notebook 6) or a smaller network may help."
        )
    return (
        f"The training images are not read well enough either ({trained:.2f}; augmented ones are harder). The network "
        "may be too small, have too few epochs, or a learning rate that is too low or too high."
    )


def _parameters_by_layer(model: nn.Module) -> dict[str, int]:
    """Return the number of parameters of every layer that has some of its own; shared ones count once."""
    counts, seen = {}, set()
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen |= {id(p) for p in own}
        if count := sum(p.numel() for p in own):
            counts[f"{name} ({type(module).__name__})" if name else type(module).__name__] = count
    return counts
