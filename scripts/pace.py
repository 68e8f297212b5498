"""How long the notebooks and the tests take on this machine: their measured minutes, by the pace of a training step."""

import json
import math
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from fast import OFFERED, fast_order, free_cores, has_bfloat16
from mnist import Data, pick_device
from model import Net8k
from utils import train_epoch

SPEED = ROOT / "notebooks" / "results" / "speed.json"


def step_seconds(steps: int = 20, batch_size: int = 256) -> float:
    """Return the seconds of a training step of Net8k, as ``fit`` would train it here and now, images turned."""
    device, threads = pick_device(), torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net8k().to(device)
        images = torch.randint(0, 256, (steps * batch_size, 1, 28, 28), dtype=torch.uint8).to(device)
        labels = torch.randint(0, 10, (len(images),)).to(device)
        data = Data("noise", "test", images, labels, images, labels)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        settings = {"augmentation": {"degrees": 7}, "bfloat16": has_bfloat16(device)}
        torch.set_num_threads(OFFERED)  # as in a notebook: the tests themselves have one thread
        with fast_order(model, device), free_cores(device, tell=False) as look:
            look()
            for _ in range(2):  # the first steps of everything are slower: the second time counts
                started = time.perf_counter()
                train_epoch(model, data, optimizer, batch_size, **settings)
            seconds = (time.perf_counter() - started) / steps
    torch.set_num_threads(threads)
    return seconds


def minutes_here() -> dict[str, float]:
    """Return about how many minutes each notebook will take here on MNIST, by its name, and all other ``tests``.

    The pace of the machine on which they were measured is that of its epoch in ``ladder``, without the test.
    """
    speed = json.loads(SPEED.read_text(encoding="utf-8"))
    minutes = speed["notebook_minutes"]
    minutes |= {"tests": speed["nbval_minutes"] - sum(minutes.values())}
    there = speed["ladder"]["Net8k"]["4 fit"]["median"] - speed["test"]["Net8k"]["250 images at a time"]["median"]
    slower = step_seconds() * math.ceil(60_000 / 256) / there
    return {name: slower * of for name, of in minutes.items()}


def about(minutes: float) -> str:
    """Return a time in words that claim no more than is known."""
    if minutes < 0.75:
        return "less than a minute"
    return "about a minute" if minutes < 1.5 else f"about {minutes:.0f} minutes"
