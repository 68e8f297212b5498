"""Stop and go on: the state of a training in a file.

``utils.fit`` writes a checkpoint after every epoch if it is asked to. A run that was killed then goes on after its last
whole epoch, and ends with the weights, bit for bit, of a run that was never stopped (notebook 6).
"""

import io
from collections.abc import Iterable
from pathlib import Path

import joblib
import torch
from tqdm import tqdm

from files import write_whole


def identity(tensors: Iterable[torch.Tensor], settings: object) -> str:
    """Return a text that two trainings share only if they start alike and are to do the same, be it on another device.

    Args:
        tensors: the images, the labels and the starting weights, in a fixed order.
        settings: all else that decides the result, compared by its ``repr``; no functions, then, which have an address.
    """
    # As bytes, because NumPy does not know bfloat16.
    arrays = [tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy() for tensor in tensors]
    return joblib.hash([*arrays, repr(settings)])


class Checkpoint:
    """The file that keeps the state of a training.

    Args:
        path: the file, replaced by every ``save``.
        identity: see the function of this name; the file of another training is not used.
        parts: what the training changes, by name; each with ``state_dict`` and ``load_state_dict``.
        device: where the training runs: its generator of random numbers belongs to the state.
    """

    def __init__(self, path: Path, identity: str, parts: dict, device: torch.device):
        self.path, self.identity, self.parts, self.device = path, identity, parts, device

    def save(self, progress: dict) -> None:
        """Write the parts' states, the random numbers' and ``progress``, plain values that tell how far it has come.

        If that fails, a line says so.
        """
        states = {name: part.state_dict() for name, part in self.parts.items()}
        state = {"identity": self.identity, "parts": states, "progress": progress, "random": self._random_state()}
        try:
            write_whole({self.path: torch_bytes(state)})
        except OSError as error:  # a full disk, or a drive that has gone: the training itself needs none
            tqdm.write(f"{self.path} could not be written ({error.strerror}): the training goes on without.")

    def load(self) -> dict | None:
        """Set everything as ``save`` found it and return its ``progress``; None if there is no file for this training.

        A file that is damaged, or of another training, is named in a line of its own, and not used.
        """
        if not self.path.is_file():
            return None
        content, name = self.path.read_bytes(), f"{self.path.parent.name}/{self.path.name}"
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            same = state["identity"] == self.identity
        except Exception:  # on damaged files torch raises whatever it stumbles over
            tqdm.write(f"{name} cannot be read: starting anew.")
            return None
        if not same:
            tqdm.write(f"{name} is of a run with other settings, weights or images: starting anew.")
            return None
        for key, part in self.parts.items():
            part.load_state_dict(state["parts"][key])
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type != "cpu" and self.device.type in state["random"]:  # not so if it began on another type
            torch.get_device_module(self.device).set_rng_state(state["random"][self.device.type], self.device)
        return state["progress"]

    def _random_state(self) -> dict[str, torch.Tensor]:
        """Return the states of torch's generators that the training draws from, by type of device."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            states[self.device.type] = torch.get_device_module(self.device).get_rng_state(self.device)
        return states


def torch_bytes(state: dict) -> bytes:
    """Return what ``torch.save`` would write."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
