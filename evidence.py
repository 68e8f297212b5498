"""The recipe of notebooks 6 and 7, with a switch for each of its parts: what notebook 9 trains, many times."""

import math

import torch
from torch import nn

from model import Net8k, Net20k
from utils import evaluate, fit, load_mnist, one_cycle

AUGMENTATION = {"degrees": 10, "translate": 0.07, "scale": 0.1, "shear": 5}


def rearranged(norm_first: bool = False, dropout: float = 0.0) -> nn.Module:
    """Return ``Net8k`` with each BatchNorm before its ReLU instead of after it, or with dropout after each BatchNorm.

    Args:
        norm_first: whether BatchNorm comes first.
        dropout: probability, 0 to 1, with which a number is removed; 0 adds no layer.
    """
    layers = []
    for layer in Net8k().layers:
        if norm_first and isinstance(layer, nn.BatchNorm2d):
            layers.insert(-1, layer)  # before the ReLU
        else:
            layers.append(layer)
        if dropout and isinstance(layer, nn.BatchNorm2d):
            layers.append(nn.Dropout(dropout))
    model = Net8k()
    model.layers = nn.Sequential(*layers)
    return model


def make(network: str) -> nn.Module:
    """Return a new network of this name: a record can hold names only."""
    if network == "Net8k, BatchNorm before ReLU":
        return rearranged(norm_first=True)
    if network == "Net8k, dropout 0.05":
        return rearranged(dropout=0.05)
    return {"Net8k": Net8k, "Net20k": Net20k}[network]()


def train(
    name: str,
    network: str,
    seed: int,
    epochs: int,
    peak: float,
    batch_size: int = 64,
    augmentation: dict[str, float] | None = AUGMENTATION,
    schedule: bool = True,
    average: bool = True,
    validation: bool = False,
    bfloat16: bool | None = None,
    checkpoint: bool = True,
) -> tuple[dict, nn.Module]:
    """Train one run, and return its record and the network.

    Args:
        name, seed, epochs, batch_size, augmentation, bfloat16, checkpoint: see ``utils.fit``.
        network: see ``make``.
        peak: the highest learning rate of the cycle.
        schedule: whether the learning rate rises and falls; if not, it is ``peak`` all the time.
        average: whether an average of the weights over about one epoch is tested and kept.
        validation: hold out 10,000 training images, and evaluate on them instead of the test images; the record then
            has ``final_accuracy_on_test`` too, in percent.
    """
    data = load_mnist(validation=validation)
    torch.manual_seed(seed)
    model = make(network)
    batches = math.ceil(len(data.train_labels) / batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9, nesterov=True, weight_decay=1e-4)
    run = fit(
        model,
        data,
        name=name,
        optimizer=optimizer,
        scheduler=one_cycle(optimizer, epochs * batches) if schedule else None,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        augmentation=augmentation,
        ema_decay=1 - 1 / batches if average else None,
        bfloat16=bfloat16,
        checkpoint=checkpoint,
    )
    if validation:
        test = load_mnist()
        _, correct = evaluate(model, test.test_images, test.test_labels)
        run["final_accuracy_on_test"] = 100 * correct / len(test.test_labels)
    return run, model
