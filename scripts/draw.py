"""Writes the network of the drawing page, draw/network.js: python scripts/draw.py

It is ``Net8k`` (target-8k, seed 0) in the format ONNX, in one file that a page can load from a disk, too. It takes
images as ``read_image`` returns them, as float32, and returns the ten probabilities, and the maps after each block.
"""

import base64
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import onnx
import torch
from torch import nn

from files import write_whole
from model import Net8k
from utils import ROOT, load_weights, normalize


class Shown(nn.Module):
    """A network with all that the page shows of it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.layers = network.layers

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the probabilities, ``(N, 10)``, and the maps after each BatchNorm and of the ten scores."""
        numbers, maps = normalize(images), []
        for layer in self.layers:
            if isinstance(layer, nn.AvgPool2d):
                maps.append(numbers)
            numbers = layer(numbers)
            if isinstance(layer, nn.BatchNorm2d):
                maps.append(numbers)
        return numbers.flatten(1).softmax(1), *maps


def exported() -> bytes:
    """Return the file's content."""
    shown = Shown(load_weights(Net8k(), "target-8k/seed0")).eval()
    names = ["probabilities", *(f"maps{number}" for number in range(1, 8))]
    program = torch.onnx.export(
        shown, (torch.zeros(1, 1, 28, 28),), input_names=["images"], output_names=names, dynamo=True, verbose=False
    )
    program.save(file := io.BytesIO())
    model = onnx.load_from_string(file.getvalue())
    for part in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        model,
        model.graph,
    ):
        part.ClearField("metadata_props")  # which would hold the paths of this machine
        part.ClearField("doc_string")
    return model.SerializeToString()


if __name__ == "__main__":
    text = base64.b64encode(exported()).decode()
    write_whole({ROOT / "draw" / "network.js": f'// Written by scripts/draw.py.\nconst NETWORK = "{text}";\n'.encode()})
