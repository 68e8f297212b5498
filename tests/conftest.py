"""Shared by the tests: pictures are drawn without a screen, and the data is loaded once."""

import matplotlib
import pytest
from helpers import first_of

from mnist import Data, load_mnist

matplotlib.use("Agg")


@pytest.fixture(scope="session")
def mnist() -> Data:
    """Real MNIST, wherever it is present."""
    data = load_mnist(device="cpu")
    if data.name != "MNIST":
        pytest.skip("MNIST is not here")
    return data


@pytest.fixture(scope="session")
def digits() -> Data:
    """scikit-learn's digits, which are always present."""
    return load_mnist("digits", device="cpu")


@pytest.fixture(scope="session")
def few(digits) -> Data:
    """250 training and 120 test digits: with batches of 100, the last one is short."""
    return first_of(digits)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder for the results of runs on the digits; the course's own records are out of sight."""
    monkeypatch.setenv("MNIST_ROOT", "digits")
    monkeypatch.setenv("MNIST_RESULTS", str(tmp_path))
    for module in ("utils", "study"):  # study imports the name
        monkeypatch.setattr(f"{module}.RESULTS", tmp_path / "course")
    return tmp_path
