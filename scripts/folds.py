"""Which networks and recipes may reach notebook 12's marks? python scripts/folds.py

Every candidate is trained on three folds: in each, another third of the last 30,000 training images is held out, and
evaluated on; the test images are not touched. The records are the study ``folds``. What is missing is trained, in
float32, two runs at a time (one takes three to eight minutes), and a table shows what there is.

    python scripts/folds.py show                      only the table
    python scripts/folds.py all29 all29-taught        only these candidates
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn

import frontier
from mnist import Data
from model import Best8k, Best20k, NetTiny
from study import run_study
from utils import by_recipe, load_mnist, load_runs, mean_accuracies

FOLDS = range(3)


def tiny(widths: list[int]) -> NetTiny:
    """The network of notebook 12 whose last three blocks share their filters."""
    return NetTiny(tuple(widths), shared=True)


def all_shared(width: int, kernel: int) -> NetTiny:
    """As ``tiny``, but all four blocks share them; with a first filter of 3 × 3, the maps are 13 × 13 to 5 × 5."""
    model = tiny([width] * 5)
    layers = list(model.layers)
    layers[0] = nn.Conv2d(1, width, kernel, bias=False)
    layers[4:6] = layers[8:10]
    layers[20] = nn.AvgPool2d((29 - kernel) // 2 - 8)
    model.layers = nn.Sequential(*layers)
    return model


def looped(width: int, blocks: list[int], pads: list[int], affine: bool = True) -> NetTiny:
    """As ``all_shared``, of any number of blocks: which pair of filters each one uses, and by how much it pads.

    Without ``affine``, the BatchNorms of all blocks but the last have no weights.
    """
    pairs, side = {}, 13
    layers = [nn.Conv2d(1, width, 3, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.SiLU()]
    for number, (block, pad) in enumerate(zip(blocks, pads), 1):
        depthwise = nn.Conv2d(width, width, 3, padding=pad, groups=width, bias=False)
        pointwise = nn.Conv2d(width, width, 1, bias=False)
        if block in pairs:
            depthwise.weight, pointwise.weight = pairs[block]
        pairs[block] = depthwise.weight, pointwise.weight
        layers += [depthwise, pointwise, nn.BatchNorm2d(width, affine=affine or number == len(blocks)), nn.SiLU()]
        side -= 2 - 2 * pad
    layers += [nn.AvgPool2d(side), nn.Conv2d(width, 10, 1)]
    model = NetTiny()
    model.layers = nn.Sequential(*layers)
    return model


NETWORKS = {"tiny": tiny, "all": all_shared, "looped": looped, "Best8k": Best8k, "Best20k": Best20k}
S27 = {"network": ["tiny", {"widths": [8, 27, 27, 27, 27]}]}
ALL29 = {"network": ["all", {"width": 29, "kernel": 3}]}
DEEP28 = {"network": ["looped", {"width": 28, "blocks": [0] * 6, "pads": [1, 0, 1, 0, 0, 0]}]}
LEAN31 = {"network": ["looped", {"width": 31, "blocks": [0] * 6, "pads": [1, 0, 1, 0, 0, 0], "affine": False}]}
TWO51 = {"network": ["looped", {"width": 51, "blocks": [0, 0, 0, 1, 1, 1], "pads": [1, 0, 0, 1, 0, 0]}]}
BEST_8K = {"network": "Best8k"}
BEST_20K = {"network": "Best20k", "epochs": 19, "augmented_epochs": 10}
TAUGHT = {"loss": "distillation"}
CANDIDATES = {
    "teacher": BEST_20K,
    "best20k-taught": BEST_20K | TAUGHT,
    "best20k-elastic": BEST_20K | {"elastic": 0.03},
    "best20k-elastic-15": BEST_20K | {"elastic": 0.03, "augmented_epochs": 15},
    "best8k": BEST_8K,
    "best8k-taught": BEST_8K | TAUGHT,
    "best8k-elastic": BEST_8K | {"elastic": 0.03},
    "best8k-elastic-12": BEST_8K | {"elastic": 0.03, "augmented_epochs": 12},
    "best8k-elastic-15": BEST_8K | {"elastic": 0.03, "augmented_epochs": 15},
    "best8k-12": BEST_8K | {"augmented_epochs": 12},
    "two51": TWO51,
    "s27": S27,
    "s27-taught": S27 | TAUGHT,
    "all29": ALL29,
    "all29-taught": ALL29 | TAUGHT,
    "all29-elastic-12": ALL29 | {"elastic": 0.03, "augmented_epochs": 12},
    "deep28": DEEP28,
    "deep28-taught": DEEP28 | TAUGHT,
    "deep28-taught-4": DEEP28 | TAUGHT | {"augmented_epochs": 4},
    "lean31-taught": LEAN31 | TAUGHT,
    "deep28-elastic-12": DEEP28 | {"elastic": 0.03, "augmented_epochs": 12},
}


def arguments(candidate: str, fold: int, seed: int = 0) -> dict:
    """Return the arguments of one run."""
    run = {"name": f"folds/{candidate}-fold{fold}-seed{seed}", "epochs": 15, "augmented_epochs": 8}
    run |= {"fold": fold, "seed": seed} | CANDIDATES[candidate]
    return run | ({"teachers": [f"folds/teacher-fold{fold}-seed{seed}"]} if "loss" in run else {})


def held_out(fold: int) -> Data:
    """Return MNIST with one of the last three blocks of 10,000 training images held out, to be evaluated on."""
    data = load_mnist()
    if data.name != "MNIST":
        raise ValueError("expected MNIST's 60,000 training images: let MNIST_ROOT name the folder that has them")
    images, labels = data.train_images, data.train_labels
    out = torch.arange(50_000 - 10_000 * fold, 60_000 - 10_000 * fold)
    kept = torch.ones(60_000, dtype=torch.bool)
    kept[out] = False
    parts = {"train_images": images[kept], "train_labels": labels[kept]}
    return replace(data, evaluated_on="validation", test_images=images[out], test_labels=labels[out], **parts)


def train(
    name: str,
    network: str | list,
    fold: int,
    elastic: float = 0.0,
    loss: str = "cross-entropy",
    **recipe: int | str | list[str],
) -> tuple[dict, nn.Module]:
    """One run by the recipe of notebook 12, on one of the folds."""
    kind, shape = (network, {}) if isinstance(network, str) else network
    augmentation = frontier.AUGMENTATION | ({"elastic": elastic} if elastic else {})
    make = partial(NETWORKS[kind], **shape)
    return frontier.train(name, make, data=held_out(fold), augmentation=augmentation, loss=loss, **recipe)


def table() -> None:
    """Print the mean accuracy of each candidate's last five epochs, on each fold, as far as there are records."""
    runs = by_recipe(load_runs("folds"))
    means = mean_accuracies(runs, may_differ=("epochs",))
    for candidate, of in runs.items():
        folds = {run["arguments"]["fold"]: mean for run, mean in zip(of, means[candidate])}
        each = "  ".join(f"{folds[fold]:.3f}" if fold in folds else "   ...." for fold in FOLDS)
        mean = f"mean {np.mean(means[candidate]):.3f}" if len(folds) == len(FOLDS) else ""  # else not comparable
        print(f"{candidate:20} {of[0]['parameters']:6,}  {each}  {mean}".rstrip())


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(CANDIDATES)
    if unknown := set(chosen) - set(CANDIDATES) - {"show"}:
        raise SystemExit(f"No such candidate: {', '.join(sorted(unknown))}; there are: {', '.join(CANDIDATES)}.")
    if chosen != ["show"]:
        for fold in FOLDS:
            run_study("folds", train, [arguments("teacher", fold)], n_jobs=1)
            run_study("folds", train, [arguments(candidate, fold) for candidate in chosen], n_jobs=2)
    table()
