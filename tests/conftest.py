"""Shared by the tests: pictures are drawn without a screen, and the data is loaded once."""

import matplotlib
import pytest

from utils import Data, load_mnist

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
