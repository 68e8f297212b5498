"""Trainings that are stopped in the middle of an epoch, and go on."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import repeat

import pytest
import torch.nn.functional as F
from helpers import same_weights, train
from torch.optim.lr_scheduler import MultiStepLR

from utils import one_cycle, save_run


def trained(data, *, batches=99, epochs=4, milestones=None, flipped=False, **settings):
    """A run with all that a checkpoint must hold; it fails when it has trained so many batches, 3 to an epoch."""
    left = repeat(None, batches)
    settings = {"seed": 5, "ema_decay": 0.7, "augmentation": {"degrees": 10}, "checkpoint": True} | settings
    settings["schedule"] = lambda o: MultiStepLR(o, milestones) if milestones else one_cycle(o, 3 * epochs)
    settings["loss"] = lambda logits, labels, images: next(left) or F.cross_entropy(logits, labels)
    data = replace(data, train_labels=data.train_labels.flip(0)) if flipped else data
    with pytest.raises(StopIteration) if batches < 3 * epochs else nullcontext():
        return train(data, epochs=epochs, **settings)


ON = "few/short was stopped after epoch {} of 4; it goes on from few/short.checkpoint."
END = "few/short was trained to its end, but not saved; here it is again, from few/short.checkpoint."
OTHER = "few/short.checkpoint is of a run with other settings, weights or images: starting anew."
DAMAGED = "few/short.checkpoint cannot be read: starting anew."


@pytest.mark.parametrize(
    "stops, after, told, change",
    [
        ([2], [], "", {}), ([3], [1], ON, {}), ([6], [2], ON, {}), ([5, 7], [1, 3], ON, {}), ([11], [3], ON, {}),
        ([12], [], END, {}), ([4], [], OTHER, {"epochs": 5}), ([4], [], OTHER, {"seed": 6}),
        ([4], [], OTHER, {"batch_size": 99}), ([4], [], OTHER, {"ema_decay": 0.5}), ([4], [], OTHER, {"flipped": True}),
        ([4], [], OTHER, {"milestones": [3, 7]}), ([4], [], DAMAGED, {"content": slice(0)}),
        ([4], [], DAMAGED, {"content": slice(-100)}), ([4], [], DAMAGED, {"content": slice(100, None)}),
    ],
)  # fmt: skip
def test_a_stopped_run_ends_bit_for_bit_the_same(few, place, capsys, stops, after, told, change):
    """It goes on after its last whole epoch, or starts anew if its checkpoint is damaged or the run has changed."""
    change, content = {key: change[key] for key in change if key != "content"}, change.get("content", slice(None))
    whole, model = trained(few, checkpoint=False, **change)
    assert not list(place.iterdir())
    for batches in stops:  # the second number counts from where the run went on
        trained(few, batches=batches, milestones=[2, 7] if "milestones" in change else None)
    for file in (folder := place / "digits" / "few").glob("*"):
        file.write_bytes(file.read_bytes()[content])
    capsys.readouterr()
    run, same = trained(few, **change)
    printed = capsys.readouterr().out
    assert run["history"] == whole["history"] and same_weights(model, same)
    assert run.get("continued_after", []) == after and told.format(*after[-1:]) in printed
    epochs = [int(line[:2]) for line in printed.splitlines() if "Train:" in line]
    assert epochs == list(range(1, run["epochs"] + 1)) and len(run["elapsed"]) == len(epochs)
    assert run["elapsed"] == sorted(run["elapsed"]) and run["seconds"] >= run["elapsed"][-1] - 0.1  # rounded
    assert [file.name for file in folder.iterdir()] == ["short.checkpoint"]
    save_run(run, model)
    assert sorted(file.name for file in folder.iterdir()) == ["short.json", "short.pt"]
