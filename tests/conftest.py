"""Shared by the tests: pictures are drawn without a screen, and what data they run on."""

import matplotlib
import pytest

from utils import Data, load_mnist

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def mnist() -> Data:
    """Real MNIST, wherever it is present. Not kept for the whole session: the notebooks need the memory."""
    data = load_mnist(device="cpu")
    if data.name != "MNIST":
        pytest.skip("MNIST is not here")
    return data


@pytest.fixture(scope="session")
def digits() -> Data:
    """scikit-learn's digits, which are always present."""
    return load_mnist("digits", device="cpu")
