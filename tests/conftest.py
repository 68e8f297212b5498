"""Shared by the tests: pictures are drawn without a screen, one thread is enough, and the data is loaded once."""

import matplotlib
import pytest
import torch
from helpers import first_of

from mnist import Data, load_mnist

matplotlib.use("Agg")
torch.set_num_threads(1)  # two would wait for each other most of the time when another program is busy


@pytest.fixture(scope="session")
def data() -> Data:
    return load_mnist(device="cpu")  # MNIST where it is present, the digits elsewhere


@pytest.fixture(scope="session")
def mnist(data) -> Data:
    return data if data.name == "MNIST" else pytest.skip("MNIST is not here")


@pytest.fixture(scope="session")
def digits() -> Data:
    return load_mnist("digits", device="cpu")  # scikit-learn's, which are always present


@pytest.fixture(scope="session")
def few(digits) -> Data:
    return first_of(digits)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder for the results of runs on the digits; the course's own records are out of sight."""
    monkeypatch.setenv("MNIST_ROOT", "digits")
    monkeypatch.setenv("MNIST_RESULTS", str(tmp_path))
    for module in ("utils", "study"):  # study has a name of its own for it
        monkeypatch.setattr(f"{module}.RESULTS", tmp_path / "course")
    return tmp_path
