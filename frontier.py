"""The recipe of notebook 12, the networks that it compares, and the ideas that are tried on them.

A run names its network, its optimizer and its loss, because a record can hold names only: what they mean stands in
``NETWORKS``, ``OPTIMIZERS`` and ``LOSSES``.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import RBFInterpolator
from torch import nn
from torchvision.ops import SqueezeExcitation

from mnist import Data
from model import Best8k, Best20k, NetLoop, NetTiny
from utils import fit, load_mnist, load_weights, one_cycle, predict

AUGMENTATION = {"degrees": 10, "translate": 0.07, "scale": 0.1, "shear": 5}
BATCH_SIZE = 64


# ------------------------------------------------------------- networks ----


class Shortcut(nn.Module):
    """Add what goes into a block, cut to the smaller map, to what comes out."""

    def __init__(self, *block: nn.Module):
        super().__init__()
        self.block = nn.Sequential(*block)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps[:, :, 1:-1, 1:-1] + self.block(maps)


class Deskew(nn.Module):
    """Move the rows of each image sideways until its ink leans neither to the left nor to the right.

    How far the ink moves sideways with each row down is a covariance divided by a variance; each row is moved back by
    this number times its distance from the middle row. It takes and returns normalised images, ``(N, 1, 28, 28)``.

    Source: LeCun, Bottou, Bengio and Haffner, 1998, have results on *deskewed* digits.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        background = images.amin((2, 3), keepdim=True)
        ink = images - background
        # The places of the pixels as grid_sample counts them: the image spans -1 to 1
        across = torch.linspace(-27 / 28, 27 / 28, 28, device=images.device).expand(1, 1, 28, 28)
        down = across.transpose(2, 3)
        total = ink.sum((2, 3), keepdim=True).clamp(min=1e-6)  # not zero, should there be no ink
        from_middle = down - (ink * down).sum((2, 3), keepdim=True) / total
        covariance = (ink * across * from_middle).sum((2, 3), keepdim=True)
        variance = (ink * from_middle**2).sum((2, 3), keepdim=True).clamp(min=1e-6)
        moved = across + covariance / variance * from_middle
        grid = torch.stack([moved, down.expand_as(ink)], dim=4).squeeze(1)
        return F.grid_sample(ink, grid, align_corners=False) + background


class ThinPlate(nn.Module):
    """Bend each training image as a thin sheet of metal would bend that is held at 3 × 3 points.

    The nine points move a little, each in a direction of its own, and the rest follows. How strongly a pixel follows
    each point is computed once, by SciPy. In evaluation, nothing is bent.

    Args:
        largest: how far a point moves at most, to either side, as a fraction of the image's side.
        count: how many images are bent, the first ones; the others are left as they are.

    Source: Bookstein, "Principal warps: thin-plate splines and the decomposition of deformations", 1989.
    """

    def __init__(self, largest: float, count: int):
        super().__init__()
        corners, pixels = np.linspace(-1, 1, 3), np.linspace(-27 / 28, 27 / 28, 28)
        points = np.stack(np.meshgrid(corners, corners), axis=2).reshape(9, 2)
        places = np.stack(np.meshgrid(pixels, pixels), axis=2).reshape(784, 2)
        follow = RBFInterpolator(points, np.eye(9), kernel="thin_plate_spline")(places)
        self.register_buffer("follow", torch.tensor(follow, dtype=torch.float32), persistent=False)
        self.register_buffer("places", torch.tensor(places, dtype=torch.float32), persistent=False)
        self.register_buffer("left", torch.tensor(count))
        self.largest = 2 * largest  # the image spans -1 to 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.training or self.left <= 0:
            return images
        self.left -= len(images)
        moves = (torch.rand(len(images), 9, 2, device=images.device) * 2 - 1) * self.largest
        grid = (self.places + self.follow @ moves).view(-1, 28, 28, 2)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def changed(idea: str) -> NetTiny:
    """Return ``NetTiny`` with one of its parts changed."""
    model = NetTiny()
    layers = list(model.layers)
    max_pool, norm, silu = layers[1:4]
    head = layers[21]  # after four blocks of four layers, and the average
    if idea == "ReLU":
        layers = [nn.ReLU() if isinstance(layer, nn.SiLU) else layer for layer in layers]
    elif idea == "a stride of 2 for pooling":
        layers = [nn.Conv2d(1, 16, 5, stride=2, bias=False), norm, silu, *layers[4:]]
    elif idea == "average pooling":
        layers[1] = nn.AvgPool2d(2)
    elif idea == "pooling one block later":
        start = [nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.SiLU()]
        layers = [*start, *layers[4:6], max_pool, *layers[6:20], nn.AvgPool2d(6), head]
    elif idea == "a first filter of 3 × 3":
        layers = [nn.Conv2d(1, 16, 3, bias=False), *layers[1:20], nn.AvgPool2d(5), head]
    elif idea == "shortcuts":  # around the two blocks that keep the number of channels
        layers[12:16] = [Shortcut(*layers[12:16])]
        layers[4:8] = [Shortcut(*layers[4:8])]
    elif idea == "squeeze-and-excitation":
        layers.insert(20, SqueezeExcitation(24, 4))
    elif idea == "learned pooling":
        layers[20] = nn.Conv2d(24, 24, 4, groups=24, bias=False)
    elif idea == "straight digits":
        layers.insert(0, Deskew())
    elif idea == "thin-plate distortions":
        layers.insert(0, ThinPlate(largest=0.05, count=8 * 50_000))  # eight epochs, without the validation images
    else:
        raise ValueError(f"expected one of {', '.join(IDEAS)}, got {idea!r}")
    model.layers = nn.Sequential(*layers)
    return model


IDEAS = (
    "ReLU",
    "a stride of 2 for pooling",
    "average pooling",
    "pooling one block later",
    "a first filter of 3 × 3",
    "shortcuts",
    "squeeze-and-excitation",
    "learned pooling",
    "straight digits",
    "thin-plate distortions",
)
NETWORKS = {
    "NetTiny": NetTiny,
    "Best8k": Best8k,
    "Best20k": Best20k,
    "NetLoop": NetLoop,
    "NetTiny, shared filters": partial(NetTiny, (16, 28, 28, 28, 28), shared=True),
    "NetTiny, 24 shared filters": partial(NetTiny, (16, 24, 24, 24, 24), shared=True),
    **{f"NetTiny, {idea}": partial(changed, idea) for idea in IDEAS},
}


# ----------------------------------------------------------- optimizers ----


def sgd(model: nn.Module, **settings: float) -> torch.optim.SGD:
    """Return the recipe's optimizer; ``settings`` are ``lr`` and ``weight_decay``."""
    return torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, **settings)


def adamw(model: nn.Module, **settings: float) -> torch.optim.AdamW:
    """Return AdamW with a shorter memory of the gradients' squares than usual."""
    return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), **settings)


class Muon(torch.optim.SGD):
    """SGD, but each step of a pointwise convolution's matrix is made equally large in all its directions.

    The singular value decomposition takes the step apart into directions and their sizes; the sizes become one.

    Source: Jordan and others, "Muon: an optimizer for hidden layers in neural networks", 2024, with a faster
    approximation, and a factor for the matrix's shape.
    """

    def __init__(self, model: nn.Module, lr: float, **settings: float):
        pointwise = [layer.weight for layer in model.layers[:-1] if getattr(layer, "kernel_size", 0) == (1, 1)]
        pointwise = list(dict.fromkeys(pointwise))  # shared ones once
        others = [weight for weight in model.parameters() if all(weight is not matrix for matrix in pointwise)]
        groups = [{"params": pointwise, "lr": 0.02, "momentum": 0, "nesterov": False}, {"params": others}]
        super().__init__(groups, lr=lr, momentum=0.9, nesterov=True, **settings)

    def step(self) -> None:
        for weight in self.param_groups[0]["params"]:
            state = self.state[weight]
            state["mean"] = torch.lerp(weight.grad, state.get("mean", torch.zeros_like(weight)), 0.95)
            momentum = torch.lerp(weight.grad, state["mean"], 0.95).flatten(1)  # Nesterov's form
            u, _, v = torch.linalg.svd(momentum, full_matrices=False)
            weight.grad = (u @ v).view_as(weight)
        super().step()


OPTIMIZERS = {"SGD": sgd, "AdamW": adamw, "Muon": Muon}


# --------------------------------------------------------------- losses ----


def smoothed(logits: torch.Tensor, labels: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy when the right digit is asked to have a probability of 0.91, and each other one 0.01."""
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def taught_by(teachers: list[str]) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the loss of a network that learns from saved runs of ``Best20k``: distillation.

    The teachers' mean probabilities say which wrong digits are nearly right. Dividing all logits by 3, the temperature,
    makes the small probabilities larger, and the gradients about nine times smaller, therefore the factor 3². The label
    keeps a tenth of the loss.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.
    """
    large = [load_weights(Best20k(), name).to(memory_format=torch.channels_last) for name in teachers]

    def distillation(logits, labels, images):
        with torch.no_grad():
            images = images.contiguous(memory_format=torch.channels_last)
            probabilities = sum((each.to(images.device)(images) / 3).softmax(1) for each in large) / len(large)
        soft = 3**2 * F.cross_entropy(logits / 3, probabilities)
        return 0.9 * soft + 0.1 * F.cross_entropy(logits, labels)

    return distillation


LOSSES = {"cross-entropy": None, "smoothed": smoothed}  # None is what ``fit`` uses anyway


# --------------------------------------------------------------- recipe ----


def train(
    name: str,
    network: str | Callable[[], nn.Module],
    seed: int,
    epochs: int,
    augmented_epochs: int,
    augmentation: dict[str, float] = AUGMENTATION,
    optimizer: str = "SGD",
    peak: float = 0.2,
    weight_decay: float = 3e-5,
    warm_up: float = 0.2,
    loss: str = "cross-entropy",
    teachers: tuple[str, ...] = ("teacher/seed0",),
    average: bool = True,
    validation: bool = False,
    data: Data | None = None,
    checkpoint: bool = True,
) -> tuple[dict, nn.Module]:
    """Train one run, and return its record and the network.

    Args:
        name, seed, epochs, augmented_epochs, augmentation, checkpoint: see ``utils.fit``.
        network: one of ``NETWORKS``, or what makes one.
        optimizer: one of ``OPTIMIZERS``.
        peak: the highest learning rate of the cycle.
        weight_decay: how strongly each step pulls every weight towards 0.
        warm_up: the fraction of the steps in which the learning rate rises.
        loss: one of ``LOSSES``, or ``"distillation"``.
        teachers: for ``"distillation"``: saved runs of ``Best20k``, on the same training images.
        average: whether an average of the weights is tested and kept.
        validation: hold out 10,000 training images, and evaluate on them instead of the test images.
        data: other images than MNIST's; ``validation`` then says nothing.

    Returns:
        The record of ``fit``, which also has ``shifted_accuracy``, in percent: the logits of each image, and of
        four copies shifted by one pixel, are added. And the trained network.
    """
    data = data or load_mnist(validation=validation)
    torch.manual_seed(seed)
    model = NETWORKS[network]() if isinstance(network, str) else network()
    batches = math.ceil(len(data.train_labels) / BATCH_SIZE)
    made = OPTIMIZERS[optimizer](model, lr=peak, weight_decay=weight_decay)
    run = fit(
        model,
        data,
        name=name,
        optimizer=made,
        scheduler=one_cycle(made, epochs * batches, warm_up),
        loss=taught_by(teachers) if loss == "distillation" else LOSSES[loss],
        epochs=epochs,
        batch_size=BATCH_SIZE,
        seed=seed,
        augmentation=augmentation,
        augmented_epochs=augmented_epochs,
        ema_decay=1 - 1 / batches if average else None,
        bfloat16=False,  # the same number format on every processor
        checkpoint=checkpoint,
    )
    shifts = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))  # the border of an image is empty
    logits = sum(predict(model, data.test_images.roll(shift, (2, 3))) for shift in shifts)
    correct = (logits.argmax(1) == data.test_labels).sum().item()
    run["shifted_accuracy"] = 100 * correct / len(data.test_labels)
    return run, model
