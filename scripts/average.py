"""Does the average of notebook 5 end higher or lower because it starts with a short memory? python scripts/average.py

Trains ``Net8k`` by the recipe of notebook 7 with ten seeds, two at a time, and writes the study ``average-8k``. The
average does not feed back into the training; so in each run a second average, which keeps the same fraction from its
first step on, sees the same weights. Its test accuracies are ``constant_memory`` in the record: the pairs differ in
nothing else. About half an hour on two processor cores; stopped, it goes on with the runs that are missing.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from evidence import AUGMENTATION
from model import Net8k
from study import run_study
from utils import Average, evaluate, fit, load_mnist, mean_accuracy, one_cycle


class ConstantMemory(Average):
    """The average that keeps the same fraction of itself at every step; the first one only copies."""

    def kept(self) -> float:
        return 0.0 if self.steps == 0 else self.decay


def train(name: str, seed: int, epochs: int = 15, batch_size: int = 64) -> tuple[dict, torch.nn.Module]:
    """One run of notebook 7, with a second average beside the one of ``fit``."""
    data = load_mnist()
    batches = math.ceil(len(data.train_labels) / batch_size)
    decay = 1 - 1 / batches
    torch.manual_seed(seed)
    model = Net8k()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=1e-4)
    averages, accuracies = [], []

    def after_step(*_):
        if not averages:
            averages.append(ConstantMemory(model, decay))
        [average] = averages
        average.update(model)
        if average.steps % batches == 0:  # an epoch has ended
            _, correct = evaluate(average.network(model), data.test_images, data.test_labels)
            accuracies.append(100 * correct / len(data.test_labels))

    optimizer.register_step_post_hook(after_step)
    run = fit(
        model,
        data,
        name=name,
        optimizer=optimizer,
        scheduler=one_cycle(optimizer, epochs * batches),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        augmentation=AUGMENTATION,
        ema_decay=decay,
    )
    return run | {"constant_memory": accuracies}, model


if __name__ == "__main__":
    records = run_study("average-8k", train, [{"name": f"average-8k/seed{k}", "seed": k} for k in range(10)], n_jobs=2)
    differences = [mean_accuracy(run) - np.mean(run["constant_memory"][-5:]) for run in records]
    error = np.std(differences, ddof=1) / math.sqrt(len(differences))
    print(f"short memory at the start minus constant memory, mean of the last five epochs, n = {len(differences)}:")
    print(f"{np.mean(differences):+.4f} points, standard error {error:.4f}")
