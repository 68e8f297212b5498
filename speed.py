"""What notebook 8 compares: the usual loop, two short trainings, and counts of the work.

The usual loop is how most public solutions of the two assignments train. ``scripts/benchmark.py`` measures with these
functions, too.
"""

import io
import math
import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets, transforms
from tqdm import tqdm

from mnist import Data
from model import Net8k, NetFast
from utils import MEAN, STD, fit, one_cycle

# ------------------------------------------------------- the usual loop ----


def usual_sets(root: str) -> tuple[Dataset, Dataset]:
    """Return MNIST's training and test images as torchvision has them, the former turned by up to 7 degrees.

    Args:
        root: the folder with ``MNIST/raw/`` inside (``mnist.torchvision_root``).
    """
    to_tensor = [transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
    turned = transforms.Compose([transforms.RandomRotation(7), *to_tensor])
    plain = transforms.Compose(to_tensor)
    return datasets.MNIST(root, transform=turned), datasets.MNIST(root, train=False, transform=plain)


def usual_loaders(
    batch_size: int, train_set: Dataset, test_set: Dataset, num_workers: int = 2
) -> tuple[DataLoader, DataLoader]:
    """Return the loaders of both sets; ``num_workers`` more processes load the images."""
    options = {"batch_size": batch_size, "num_workers": num_workers, "pin_memory": torch.cuda.is_available()}
    return DataLoader(train_set, shuffle=True, **options), DataLoader(test_set, **options)


def usual_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_loader: DataLoader,
    test_loader: DataLoader,
    device: torch.device,
) -> tuple[float, float]:
    """Train for one epoch, and return the test's mean loss, and its accuracy in percent.

    The text of the progress bar is made after every batch, but goes nowhere.
    """
    model.train()
    seen = correct = 0
    bar = tqdm(train_loader, file=io.StringIO(), disable=False)
    for images, labels in bar:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        seen += len(labels)
        correct += (logits.argmax(1) == labels).sum().item()
        bar.set_description(f"Loss={loss.item():.4f} Accuracy={100 * correct / seen:.2f}")
    model.eval()
    test_loss = correct = 0
    with torch.no_grad():
        for images, labels in test_loader:
            images, labels = images.to(device), labels.to(device)
            logits = model(images)
            test_loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(1) == labels).sum().item()
    count = len(test_loader.dataset)
    return test_loss / count, 100 * correct / count


def usual_part(
    sets: tuple[Dataset, Dataset], counts: tuple[int, int], device: torch.device, num_workers: int = 0
) -> tuple[float, float]:
    """Train ``Net8k`` for one epoch of so many training images, in batches of 64, and test it on so many test images.

    Args:
        sets: what ``usual_sets`` returned.
        counts: the numbers of training and of test images, the first ones of each set.
        device: the model's.
        num_workers: see ``usual_loaders``; 0: this process loads the images itself.

    Returns: see ``usual_epoch``.
    """
    torch.manual_seed(0)
    model = Net8k().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    parts = [Subset(images, range(count)) for images, count in zip(sets, counts)]
    return usual_epoch(model, optimizer, *usual_loaders(64, *parts, num_workers), device)


# -------------------------------------------------- two short trainings ----


def train(
    network: Callable[[], nn.Module],
    data: Data,
    *,
    name: str,
    seed: int,
    epochs: int,
    batch_size: int,
    peak: float,
    **options: object,
) -> dict:
    """Train a new network by ``fit``, with SGD and one cycle of the learning rate, and return the record.

    Args:
        peak: the highest learning rate; the other arguments, and ``options``, are those of ``utils.fit``.
    """
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9, nesterov=True, weight_decay=1e-4)
    steps = epochs * math.ceil(len(data.train_labels) / batch_size)
    settings = {"name": name, "seed": seed, "epochs": epochs, "batch_size": batch_size} | options
    return fit(model, data, optimizer=optimizer, scheduler=one_cycle(optimizer, steps), **settings)


def train_to_99_4(data: Data, seed: int, epochs: int = 8) -> dict:
    """Train ``Net8k`` as in notebook 7, but in fewer epochs, and with an average over a quarter of one."""
    return train(
        Net8k,
        data,
        name=f"fast-99.4-{epochs}-epochs",
        seed=seed,
        epochs=epochs,
        batch_size=64,
        peak=0.2,
        augmentation={"degrees": 10, "translate": 0.07, "scale": 0.1, "shear": 5},
        ema_decay=1 - 4 * 64 / len(data.train_labels),
    )


def train_to_99(
    data: Data, seed: int, epochs: int = 2, batch_size: int = 256, peak: float = 0.4, **options: object
) -> dict:
    """Train ``NetFast``, in two epochs without augmentation."""
    settings = {"seed": seed, "epochs": epochs, "batch_size": batch_size, "peak": peak} | options
    return train(NetFast, data, name="fast-99", **settings)


# --------------------------------------------------------- where it goes ----

KINDS = {  # an operation belongs to the first kind whose word is in its name
    "loading images": "DataLoader",
    "convolution": "conv",
    "BatchNorm": "batch_norm",
    "pooling": "pool",
    "everything else": "",
}


def kinds_of_time(function: Callable[[], object], batches: int) -> dict[str, float]:
    """Call the function twice, and return the milliseconds of each kind of operation in the second call, for a batch.

    ``batches`` is how many of them a call trains on. PyTorch's profiler sees the operations of this process alone,
    and nothing that Python does between them.
    """
    function()  # the first time, much is set up
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    milliseconds = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        kind = next(kind for kind, word in KINDS.items() if re.search(word, event.key))
        milliseconds[kind] += event.self_cpu_time_total / 1000 / batches
    return milliseconds


def multiply_adds(model: nn.Module) -> int:
    """Return how many multiplications, each with an addition, the convolutions of the network need for an image.

    The model is on the processor; it is in evaluation mode afterwards.
    """
    counted = []

    def count(layer, _, maps):
        counted.append(maps.numel() * layer.weight[0].numel())

    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [layer.register_forward_hook(count) for layer in convolutions]
    model.eval()(torch.zeros(1, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    return sum(counted)
