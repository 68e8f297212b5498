"""The networks and the recipe of notebook 9."""

import pytest
import torch
from torch import nn

import evidence


@pytest.mark.parametrize(
    "network, block",
    [
        ("Net8k", [nn.ReLU, nn.BatchNorm2d]),
        ("Net8k, BatchNorm before ReLU", [nn.BatchNorm2d, nn.ReLU]),
        ("Net8k, dropout 0.05", [nn.ReLU, nn.BatchNorm2d, nn.Dropout]),
    ],
)
def test_a_rearranged_network_has_the_same_parameters_in_another_order(network, block):
    model = evidence.make(network)
    assert sum(p.numel() for p in model.parameters()) == 7_568
    kinds = [type(layer) for layer in model.layers]
    assert kinds[1 : 1 + len(block)] == block and kinds.count(nn.Dropout) == 6 * block.count(nn.Dropout)
    assert model.eval()(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_the_switches_are_settings_of_the_record(place):
    common = {"network": "Net8k", "seed": 0, "epochs": 1, "peak": 0.1, "checkpoint": False}
    usual, _ = evidence.train("few/usual", **common)
    bare = {"schedule": False, "average": False, "augmentation": None, "validation": True, "batch_size": 500}
    plain, _ = evidence.train("few/plain", **common, **bare)
    assert usual["settings"]["scheduler"]["class"] == "OneCycleLR" and usual["evaluated_on"] == "test"
    assert usual["settings"]["augmentation"] == evidence.AUGMENTATION and 0 < usual["settings"]["ema_decay"] < 1
    assert [plain["settings"][key] for key in ("scheduler", "augmentation", "ema_decay")] == [None] * 3
    assert plain["evaluated_on"] == "validation" and 0 <= plain["final_accuracy_on_test"] <= 100
    assert "final_accuracy_on_test" not in usual
