"""Trainings that are stopped in the middle of a batch, and go on."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch.nn.functional as F
from helpers import same_weights, train
from torch.optim.lr_scheduler import MultiStepLR

from utils import one_cycle, save_run


class StopAfter:
    """A loss: the cross-entropy of so many batches, and then Ctrl-C."""

    def __init__(self, batches):
        self.left = batches

    def __call__(self, logits, labels, images):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return F.cross_entropy(logits, labels)


def trained(data, *, stop=99, epochs=4, milestones=None, **settings):
    """A run with everything that a checkpoint must hold: momentum, schedule, average, dropout and augmentation."""
    settings = {"seed": 5, "ema_decay": 0.7, "augmentation": {"degrees": 10}, "checkpoint": True} | settings
    schedule = (lambda o: MultiStepLR(o, milestones)) if milestones else (lambda o: one_cycle(o, 3 * epochs))
    with pytest.raises(KeyboardInterrupt) if stop < 3 * epochs else nullcontext():
        return train(data, epochs=epochs, schedule=schedule, loss=StopAfter(stop), **settings)


@pytest.fixture(scope="module")
def whole(few):
    return trained(few, checkpoint=False)


@pytest.mark.parametrize("stops, after", [([2], []), ([3], [1]), ([5, 7], [1, 3]), ([6], [2]), ([11], [3]), ([12], [])])
def test_stopped_in_any_epoch_a_run_ends_bit_for_bit_the_same(few, place, whole, capsys, stops, after):
    """It is stopped after so many batches, three to an epoch; the second number counts from where it went on."""
    for stop in stops:
        trained(few, stop=stop)
    capsys.readouterr()
    run, model = trained(few)
    printed = capsys.readouterr().out
    assert run["history"] == whole[0]["history"] and same_weights(model, whole[1])
    assert run.get("continued_after", []) == after and [
        int(line[:2]) for line in printed.splitlines() if "Train:" in line
    ] == [1, 2, 3, 4]
    if after:
        assert f"few/short was stopped after epoch {after[-1]} of 4; it goes on from short.checkpoint" in printed
    assert ("few/short was trained to its end, but not saved" in printed) == (stops == [12])
    assert len(run["elapsed"]) == 4 and run["elapsed"] == sorted(run["elapsed"])
    assert run["seconds"] >= run["elapsed"][-1] - 0.1  # rounded
    assert [path.name for path in (place / "digits" / "few").iterdir()] == ["short.checkpoint"]
    save_run(run, model)
    assert sorted(path.name for path in (place / "digits" / "few").iterdir()) == ["short.json", "short.pt"]


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 5}, {"seed": 6}, {"ema_decay": 0.5}, {"batch_size": 99}, {"milestones": [3, 7]}, {"labels": "flipped"},
        lambda content: b"", lambda content: b"half a checkpoint", lambda content: content[:-100],
    ],
)  # fmt: skip
def test_a_checkpoint_that_is_damaged_or_of_another_run_is_not_used(few, place, capsys, change):
    settings = {"milestones": [2, 7]} if "milestones" in str(change) else {}
    trained(few, stop=4, **settings)
    file = place / "digits" / "few" / "short.checkpoint"
    if callable(change):
        file.write_bytes(change(file.read_bytes()))
        line, change = "short.checkpoint cannot be read: starting anew.", {}
    else:
        line = "short.checkpoint is of a run with other settings, weights or images: starting anew."
    if change.pop("labels", None):  # the same images and labels, but other pairs
        few = replace(few, train_labels=few.train_labels.flip(0))
    fresh, model = trained(few, checkpoint=False, **change)
    run, same = trained(few, **change)
    assert line in capsys.readouterr().out
    assert run["history"] == fresh["history"] and same_weights(model, same) and "continued_after" not in run
