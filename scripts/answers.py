"""Trains what the exercises of the notebooks ask for: python scripts/answers.py

The records are the study ``answers``, which the pages in ``notebooks/answers/`` read. The name of each run begins with
the number of its notebook. What is missing is trained, two runs at a time, in the number format of the runs that it is
compared with; all of them take about two hours on two processor cores.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

import frontier
from frontier import AUGMENTATION, BATCH_SIZE
from model import LeNet5, Net8k, Net20k, NetTiny, Skeleton
from study import run_study
from utils import fit, load_mnist, one_cycle

# ------------------------------------------------------------- networks ----


def changed(model: nn.Module, change: Callable[[list[nn.Module]], list[nn.Module]]) -> nn.Module:
    """Return the network with another list of layers."""
    model.layers = nn.Sequential(*change(list(model.layers)))
    return model


def swapped(layers: list[nn.Module], old: type[nn.Module], new: type[nn.Module]) -> list[nn.Module]:
    """Put a new activation in the place of every old one."""
    return [new() if isinstance(layer, old) else layer for layer in layers]


def with_max_pooling(layers: list[nn.Module]) -> list[nn.Module]:
    """Put the maximum in the place of the last layer, an average."""
    return [*layers[:-1], nn.MaxPool2d(layers[-1].kernel_size)]


def norm_first(layers: list[nn.Module]) -> list[nn.Module]:
    """Exchange the one ReLU of ``Net20k`` that stands before its BatchNorm with it."""
    kinds = [type(layer) for layer in layers]
    [place] = (n for n, pair in enumerate(pairwise(kinds)) if pair == (nn.ReLU, nn.BatchNorm2d))
    return [*layers[:place], layers[place + 1], layers[place], *layers[place + 2 :]]


def wide_front(layers: list[nn.Module]) -> list[nn.Module]:
    """Give ``Net8k`` 16 maps after its first layer, and 18 instead of 20 after its last one of 3 × 3."""
    front = [nn.Conv2d(1, 16, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(16), nn.Conv2d(16, 9, 3, bias=False)]
    end = [nn.Conv2d(16, 18, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(18), nn.Conv2d(18, 10, 1, bias=False)]
    return [*front, *layers[4:-5], *end, layers[-1]]


NETWORKS = {
    "LeNet-5": LeNet5,
    "LeNet-5 with tanh": lambda: changed(LeNet5(), partial(swapped, old=nn.ReLU, new=nn.Tanh)),
    "skeleton": Skeleton,
    "skeleton, max pooling": lambda: changed(Skeleton(), with_max_pooling),
    "skeleton, BatchNorm": partial(Skeleton, batch_norm=True),
    "skeleton, dropout 0.3": partial(Skeleton, dropout=0.3),
    "Net20k": Net20k,
    "Net20k, BatchNorm first": lambda: changed(Net20k(), norm_first),
    "Net20k, dropout 0.1": partial(Net20k, dropout=0.1),
    "Net8k": Net8k,
    "Net8k, wide front": lambda: changed(Net8k(), wide_front),
    "NetTiny": NetTiny,
    "NetTiny, GELU": lambda: changed(NetTiny(), partial(swapped, old=nn.SiLU, new=nn.GELU)),
    "NetTiny, 20 shared": partial(NetTiny, (16, 20, 20, 20, 20), shared=True),
    "NetTiny, 24 shared, 8 first": partial(NetTiny, (8, 24, 24, 24, 24), shared=True),
}

# ----------------------------------------------------------------- runs ----


def train(
    name: str,
    network: str,
    seed: int = 0,
    epochs: int = 10,
    lr: float = 0.02,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    warm_up: float | None = None,
    augmentation: dict[str, float] | None = None,
    average: float | None = None,
    mirrored: bool = False,
    validation: bool = False,
    bfloat16: bool = True,
) -> tuple[dict, nn.Module]:
    """Train one run, and return its record and the network.

    Args:
        name, seed, epochs, augmentation, bfloat16: see ``utils.fit``.
        network: one of ``NETWORKS``.
        lr, weight_decay, nesterov: of SGD.
        warm_up: that of ``utils.one_cycle``; without it, the learning rate is constant.
        average: over about how many epochs the weights are averaged; without it, they are not.
        mirrored: mirror every second training image, chosen at random.
        validation: hold out 10,000 training images, and evaluate on them instead of the test images.
    """
    data = load_mnist(validation=validation)
    torch.manual_seed(seed)
    model = NETWORKS[network]()
    if mirrored:
        images = data.train_images.clone()
        half = torch.randperm(len(images))[::2]
        images[half] = images[half].flip(3)
        data = replace(data, train_images=images)
    batches = math.ceil(len(data.train_labels) / BATCH_SIZE)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay, nesterov=nesterov)
    run = fit(
        model,
        data,
        name=name,
        optimizer=optimizer,
        scheduler=None if warm_up is None else one_cycle(optimizer, epochs * batches, warm_up),
        epochs=epochs,
        batch_size=BATCH_SIZE,
        seed=seed,
        augmentation=augmentation,
        ema_decay=None if average is None else 1 - 1 / (average * batches),
        bfloat16=bfloat16,
        checkpoint=True,
    )
    return run, model


def train_tiny(name: str, network: str, seed: int, augmented_epochs: int = 8) -> tuple[dict, nn.Module]:
    """Train one run by the recipe of notebook 12, and evaluate it on the validation images."""
    return frontier.train(name, NETWORKS[network], seed, 15, augmented_epochs, validation=True)


SKELETON = {"network": "skeleton, BatchNorm"}
CYCLE = SKELETON | {"lr": 0.2, "warm_up": 0.2, "augmentation": AUGMENTATION}  # of notebook 5
TARGET = {"warm_up": 0.2, "augmentation": AUGMENTATION, "average": 1, "weight_decay": 1e-4, "nesterov": True}
TARGET_20K = TARGET | {"network": "Net20k", "epochs": 19, "lr": 0.15}
TARGET_8K = TARGET | {"network": "Net8k", "epochs": 15, "lr": 0.2}
ONE_SEED = {
    "01-tanh": {"network": "LeNet-5 with tanh"},
    "01-lr-0.002": {"network": "LeNet-5", "lr": 0.002},
    "02-max-pooling": {"network": "skeleton, max pooling"},
    "03-lr-0.2": {"network": "skeleton", "lr": 0.2},
    "03-batchnorm-lr-0.2": SKELETON | {"lr": 0.2},
    "03-dropout-0.3": {"network": "skeleton, dropout 0.3"},
    "03-seed1": {"network": "skeleton", "seed": 1},
    "03-batchnorm-seed1": SKELETON | {"seed": 1},
    "04-45-degrees": SKELETON | {"augmentation": AUGMENTATION | {"degrees": 45}},
    "04-mirrored": SKELETON | {"mirrored": True},
    "04-20-epochs": SKELETON | {"epochs": 20},
    "04-20-epochs-augmented": SKELETON | {"epochs": 20, "augmentation": AUGMENTATION},
    "05-no-warm-up": CYCLE | {"warm_up": 0.001},
    "05-short-average": CYCLE | {"average": 0.1},
    "05-constant-rate": SKELETON | {"augmentation": AUGMENTATION, "average": 1},
    "06-batchnorm-first": TARGET_20K | {"network": "Net20k, BatchNorm first"},
    "06-no-warm-up": TARGET_20K | {"warm_up": 0.0},
    "06-dropout-0.1": TARGET_20K | {"network": "Net20k, dropout 0.1"},
}
SEVERAL_SEEDS = {  # and which ones
    "07-peak-0.4": (TARGET_8K | {"lr": 0.4}, (0, 1)),
    "07-peak-0.1": (TARGET_8K | {"lr": 0.1}, (0, 1)),
    "07-wide-front": (TARGET_8K | {"network": "Net8k, wide front"}, (0, 1)),
    "09-more-8k": (TARGET_8K | {"bfloat16": False}, (10, 11)),
    "09-peak-0.3": (TARGET_8K | {"lr": 0.3, "validation": True}, (0, 1, 2)),
}
TINY = {  # seeds 0 and 1 of each
    "12-augmented-4": {"network": "NetTiny", "augmented_epochs": 4},
    "12-augmented-12": {"network": "NetTiny", "augmented_epochs": 12},
    "12-20-shared": {"network": "NetTiny, 20 shared"},
    "12-24-shared-8-first": {"network": "NetTiny, 24 shared, 8 first"},
    "12-gelu": {"network": "NetTiny, GELU"},
}

RUNS = [{"name": f"answers/{name}"} | run for name, run in ONE_SEED.items()]
RUNS += [
    {"name": f"answers/{name}-seed{seed}", "seed": seed} | run
    for name, (run, seeds) in SEVERAL_SEEDS.items()
    for seed in seeds
]
TINY_RUNS = [
    {"name": f"answers/{name}-seed{seed}", "seed": seed} | run for name, run in TINY.items() for seed in (0, 1)
]

if __name__ == "__main__":
    run_study("answers", train, RUNS, n_jobs=2)
    run_study("answers", train_tiny, TINY_RUNS, n_jobs=2)
