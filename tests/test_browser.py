"""The notebooks in JupyterLab, in a real browser: they open, and their first cells run.

Needs Chromium, its driver, and selenium, which a reader of the course does not; without them, these tests are skipped.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest
from address import NOTEBOOKS, ROOT

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its driver"),
]
PATIENCE = 90  # seconds


def wait_for(condition, what):
    """Return the condition's value as soon as it is true."""
    end = time.time() + PATIENCE
    while time.time() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    raise TimeoutError(f"waited {PATIENCE} seconds for {what}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a copy of the course, on the digits: its address, up to the notebook's path."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("model.py", "utils.py", "notebooks"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    log = folder / "log.txt"
    environment = os.environ | {"MNIST_ROOT": "digits", "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
    settings = ["--ip=127.0.0.1", "--port=0", "--IdentityProvider.token=course", "--no-browser", "--allow-root"]
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *settings, "--expose-app-in-browser"],
            cwd=folder, env=environment, stdout=output, stderr=output,
        )  # fmt: skip

    def address():
        assert server.poll() is None, log.read_text()
        lines = [line for line in log.read_text().splitlines() if "http://127.0.0.1:" in line]
        return "http" + lines[0].split("http", 1)[1].split("/lab", 1)[0] if lines else None

    try:
        base = wait_for(address, "JupyterLab's address")
        wait_for(lambda: answers(f"{base}/api/status?token=course"), "JupyterLab to answer")
        yield base
    finally:
        server.terminate()
        server.wait(30)


def answers(address):
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(address, timeout=5).status == 200


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic")
    for argument in ("headless=new", "no-sandbox", "no-first-run", *(f"disable-{name}" for name in quiet)):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.add_argument("--window-size=1200,1000")
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


OPEN = """
    const opened = [...window.jupyterapp?.shell?.widgets('main') ?? []].find(w => w.context?.path === 'notebooks/%s');
    return opened?.context.isReady && opened.sessionContext.session?.kernel?.status === 'idle';
"""
RUN = """
    const done = arguments[0], app = window.jupyterapp;
    const opened = [...app.shell.widgets('main')].find(w => w.context?.path === 'notebooks/%s');
    app.shell.activateById(opened.id);
    (async () => {
        const results = [];
        for (const [index, cell] of opened.content.widgets.entries()) {
            if (cell.model.type !== 'code' || results.length === 2) continue;
            opened.content.activeCellIndex = index;
            await app.commands.execute('notebook:run-cell');
            results.push({count: cell.model.executionCount, outputs: cell.model.outputs.toJSON()});
        }
        await opened.sessionContext.shutdown();  // its kernel would stay, and keep its memory
        done(results);
    })().catch(error => done(String(error)));
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_and_its_first_cells_run(lab, browser, path):
    browser.get(f"{lab}/lab/tree/notebooks/{path.name}?token=course&reset")
    wait_for(lambda: browser.execute_script(OPEN % path.name), f"{path.name} and its kernel")
    browser.set_script_timeout(PATIENCE)
    ran = browser.execute_async_script(RUN % path.name)
    assert isinstance(ran, list), ran
    assert [cell["count"] for cell in ran] == [1, 2]
    outputs = [output for cell in ran for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream"}
    if path.stem != "08_speed":  # there the second cell has no data yet
        assert "digits: 1,437 training images, 360 test images" in "".join(output["text"] for output in outputs)
    number, text = int(path.stem[:2]), browser.find_element("css selector", ".jp-Notebook").text
    assert f"{number} · " in text and "Set-up" in text
