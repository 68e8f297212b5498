"""The networks: their layer tables, row for row, and what they accept."""

import copy
import itertools
import re

import nbformat
import pytest
import torch
from torchsummary import summary

from model import Best8k, Best20k, ConvLeNet, LeNet5, Net8k, Net20k, NetFast, NetLoop, NetTiny, Skeleton
from plots import WINDOWS, receptive_fields
from utils import ROOT

# Parameters and receptive field, as the docstrings have them.
NETWORKS = {
    LeNet5: (61_706, 16), ConvLeNet: (2_742, 16), Skeleton: (15_962, 18), Net20k: (14_157, 58), Net8k: (7_568, 20),
    NetFast: (18_010, 25), NetTiny: (2_946, 22), NetLoop: (1_970, 28), Best8k: (7_918, 22), Best20k: (19_098, 22),
}  # fmt: skip
each_network = pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)

# Type, output shape (without the batch) and parameters, as the assignments print them.
NET20K_ROWS = """\
Conv2d 3 28 28 27, BatchNorm2d 3 28 28 6, ReLU 3 28 28 0, Dropout2d 3 28 28 0
Conv2d 8 28 28 216, BatchNorm2d 8 28 28 16, ReLU 8 28 28 0, Dropout2d 8 28 28 0
Conv2d 16 28 28 1152, BatchNorm2d 16 28 28 32, ReLU 16 28 28 0, Dropout2d 16 28 28 0
MaxPool2d 16 15 15 0, Conv2d 8 17 17 128, BatchNorm2d 8 17 17 16
Conv2d 16 17 17 1152, BatchNorm2d 16 17 17 32, ReLU 16 17 17 0, Dropout2d 16 17 17 0
Conv2d 16 17 17 2304, BatchNorm2d 16 17 17 32, ReLU 16 17 17 0, Dropout2d 16 17 17 0
Conv2d 16 17 17 2304, BatchNorm2d 16 17 17 32, ReLU 16 17 17 0, Dropout2d 16 17 17 0
MaxPool2d 16 9 9 0, Conv2d 16 9 9 256, BatchNorm2d 16 9 9 32
Conv2d 16 9 9 2304, BatchNorm2d 16 9 9 32, ReLU 16 9 9 0, Dropout2d 16 9 9 0
Conv2d 16 9 9 2304, ReLU 16 9 9 0, BatchNorm2d 16 9 9 32, Dropout2d 16 9 9 0, MaxPool2d 16 4 4 0
Conv2d 16 4 4 256, BatchNorm2d 16 4 4 32, Conv2d 10 4 4 1440, BatchNorm2d 10 4 4 20, AvgPool2d 10 1 1 0"""
NET8K_ROWS = """\
Conv2d 8 26 26 72, ReLU 8 26 26 0, BatchNorm2d 8 26 26 16, Conv2d 9 24 24 648, ReLU 9 24 24 0, BatchNorm2d 9 24 24 18
Conv2d 10 22 22 810, ReLU 10 22 22 0, BatchNorm2d 10 22 22 20, MaxPool2d 10 11 11 0
Conv2d 12 9 9 1080, ReLU 12 9 9 0, BatchNorm2d 12 9 9 24, Conv2d 16 7 7 1728, ReLU 16 7 7 0, BatchNorm2d 16 7 7 32
Conv2d 20 5 5 2880, ReLU 20 5 5 0, BatchNorm2d 20 5 5 40, Conv2d 10 5 5 200, AvgPool2d 10 1 1 0"""


@pytest.mark.parametrize(
    "network, rows, megabytes",
    [(Net20k, NET20K_ROWS, "0.00 1.25 0.05 1.31"), (Net8k, NET8K_ROWS, "0.00 0.42 0.03 0.45")],
)
def test_layer_table_is_the_assignments(network, rows, megabytes, capsys):
    summary(network().eval(), (1, 28, 28), device="cpu")
    printed = capsys.readouterr().out
    rows, total = re.split(", |\n", rows), f"{NETWORKS[network][0]:,}"
    table = re.findall(r"^ +(\w+)-(\d+) +\[-1, ([\d, ]+)\] +([\d,]+)$", printed, re.MULTILINE)
    assert [int(number) for _, number, _, _ in table] == list(range(1, len(rows) + 1))
    assert [f"{kind} {shape} {own}".replace(",", "") for kind, _, shape, own in table] == rows
    assert f"Total params: {total}\nTrainable params: {total}\n" in printed
    assert re.findall(r"\(MB\): ([\d.]+)", printed) == megabytes.split()


@each_network
def test_parameters_and_receptive_field_are_those_of_the_docstring(network):
    """The field is computed from the layers, and measured by gradients, after every layer that widens it."""
    count, size = NETWORKS[network]
    text = re.sub(r"\s+", " ", network.__doc__)
    assert f"{count:,} parameters" in text and f"{size} × {size}" in text
    assert sum(p.numel() for p in network().parameters()) == count
    cells = {cell.id: cell.source for cell in nbformat.read(ROOT / "notebooks" / "10_mistakes.ipynb", 4).cells}
    scope = {"copy": copy, "nn": torch.nn, "torch": torch}
    exec(cells["measured-field"], scope)
    # Up to the average over all places: each of them has a field of its own
    layers = list(itertools.takewhile(lambda layer: not isinstance(layer, torch.nn.AvgPool2d), network().layers))
    sides = [side for _, side, _, _ in receptive_fields(layers)]
    windows = [index for index, layer in enumerate(layers, start=1) if isinstance(layer, WINDOWS)]
    assert sides == [scope["measured_field"](layers[:index]) for index in windows] and sides[-1] == size


def test_options_add_what_they_say_and_conv_lenet_begins_like_lenet():
    kinds = [type(layer).__name__ for layer in Skeleton(batch_norm=True, dropout=0.1).layers]
    assert kinds.count("BatchNorm2d") == kinds.count("Dropout2d") == 5
    assert sum(p.numel() for p in Skeleton(batch_norm=True).parameters()) == 16_166
    assert {layer.p for layer in Net20k(dropout=0.2).layers if isinstance(layer, torch.nn.Dropout2d)} == {0.2}
    assert str(ConvLeNet().layers[:6]) == str(LeNet5().layers[:6])


def test_blocks_that_share_have_the_same_filters():
    model = NetTiny((16, 28, 28, 28, 28), shared=True)
    assert sum(p.numel() for p in model.parameters()) == 2_574 and "2,574 parameters" in NetTiny.__doc__
    assert all(model.layers[first] is model.layers[first + 4] is model.layers[first + 8] for first in (8, 9))
    assert len({id(model.layers[place]) for place in (10, 14, 18)}) == 3  # a BatchNorm for each
    with pytest.raises(ValueError, match=r"the same.*\(16, 16, 20, 20, 24\)"):
        NetTiny(shared=True)


@each_network
def test_images_in_logits_out_and_anything_else_is_named_in_the_error(network):
    for count in (1, 7):
        assert network().eval()(torch.rand(count, 1, 28, 28)).shape == (count, 10)
    for shape in [(3, 1, 27, 28), (3, 3, 28, 28), (1, 28, 28), (28, 28), (3, 784)]:
        with pytest.raises(ValueError, match=r"\(N, 1, 28, 28\).*" + re.escape(str(shape))):
            network()(torch.rand(shape))
    with pytest.raises(ValueError, match=r"normalize.*uint8"):  # raw pixels
        network()(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
