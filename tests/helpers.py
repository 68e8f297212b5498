"""What several test files need besides the fixtures."""

import shutil

import pytest
import torch

from mnist import Data
from model import Skeleton
from utils import fit


def first_of(digits: Data) -> Data:
    """250 training and 120 test digits: with batches of 100, the last one is short."""
    return digits.first(250, 120)


def train(data, *, model=None, optimizer=None, lr=0.05, schedule=None, **settings):
    """A short run, on a small network with BatchNorm and dropout unless another is given: (record, model)."""
    torch.manual_seed(0)
    model = Skeleton(True, 0.1) if model is None else model
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    settings = {"name": "few/short", "epochs": 2, "batch_size": 100, "seed": 0} | settings
    return fit(model, data, optimizer=optimizer, scheduler=schedule and schedule(optimizer), **settings), model


def same_weights(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
QUIET = [f"--disable-{name}" for name in ("background-networking", "component-update", "sync", "gpu", "quic")]


def chromium(folder, size="1200,1000"):
    """A browser without a window, whose profile is in the folder; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs Chromium and its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = f"--user-data-dir={folder / 'profile'}"
    for argument in ("--headless=new", "--no-sandbox", "--no-first-run", f"--window-size={size}", profile, *QUIET):
        options.add_argument(argument)
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


def as_phone(browser):
    """Show pages as a phone does, 400 pixels wide."""
    phone = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
