"""How long the notebooks and the tests take on this machine: their measured minutes, by the pace of a training step."""

import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F

from fast import OFFERED, fast_order, free_cores, has_bfloat16
from mnist import pick_device
from model import Net8k

SPEED = ROOT / "notebooks" / "results" / "speed.json"


def step_milliseconds(steps: int = 30) -> float:
    """Return the milliseconds of a training step of Net8k, 64 images, as ``fit`` would train it here and now."""
    device, threads = pick_device(), torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net8k().to(device)
        images, labels = torch.randn(64, 1, 28, 28).to(device), torch.randint(0, 10, (64,)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.set_num_threads(OFFERED)  # as in a notebook: the tests themselves have one thread
    with fast_order(model, device), free_cores(device, tell=False) as look:
        look()
        for step in range(-5, steps):
            if step == 0:  # the first steps of everything are slower
                started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()  # wait for a GPU
    torch.set_num_threads(threads)
    return 1000 * (time.perf_counter() - started) / steps


def minutes_here() -> dict[str, float]:
    """Return about how many minutes each notebook will take here on MNIST, by its name, and all other ``tests``."""
    speed = json.loads(SPEED.read_text(encoding="utf-8"))
    minutes = speed["notebook_minutes"]
    minutes |= {"tests": speed["nbval_minutes"] - sum(minutes.values())}
    slower = step_milliseconds() / speed["step_milliseconds"]
    return {name: slower * of for name, of in minutes.items()}


def about(minutes: float) -> str:
    """Return a time in words that claim no more than is known."""
    if minutes < 0.75:
        return "less than a minute"
    return "about a minute" if minutes < 1.5 else f"about {minutes:.0f} minutes"
