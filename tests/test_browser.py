"""The notebooks in JupyterLab, in a real browser: they open, and their first cells run. Skipped without a browser."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from address import NOTEBOOKS, ROOT
from helpers import chromium

wait = pytest.importorskip("selenium.webdriver.support.wait")
pytestmark = pytest.mark.slow
LAB = "-m jupyterlab --ip=127.0.0.1 --port=0 --IdentityProvider.token=course --no-browser --allow-root"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A browser, and the address of JupyterLab on a copy of the course, on the digits."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    for path in (*ROOT.glob("*.py"), ROOT / "tasks.json"):
        shutil.copy(path, folder)
    log = folder / "log.txt"
    environment = os.environ | {"MNIST_ROOT": "digits", "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
    with log.open("w") as output, chromium(folder) as browser:
        command = [sys.executable, *LAB.split(), "--expose-app-in-browser"]
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        try:  # its log says the address as soon as it listens there
            until = wait.WebDriverWait(browser, 90).until
            yield browser, until(lambda _: re.search(r"http://127[\d.:]+(?=/)", log.read_text()), log).group()
        finally:
            server.terminate()
            server.wait(30)


OPENED = "const name = 'notebooks/' + arguments[0], main = window.jupyterapp?.shell?.widgets('main') ?? [];"
OPENED += "const opened = [...main].find(widget => widget.context?.path === name);"
READY = "return opened?.context.isReady && opened.sessionContext.session?.kernel?.status === 'idle';"
RUN = """return (async () => {
    window.jupyterapp.shell.activateById(opened.id);
    const widgets = opened.content.widgets, cells = widgets.filter(cell => cell.model.type === 'code').slice(0, 2);
    for (const cell of cells) {
        opened.content.activeCellIndex = widgets.indexOf(cell);
        await window.jupyterapp.commands.execute('notebook:run-cell');
    }
    await opened.sessionContext.shutdown();  // its kernel would stay, and keep its memory
    return cells.map(cell => [cell.model.executionCount, cell.model.outputs.toJSON()]);
})();"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_and_its_first_cells_run(lab, path):
    browser, address = lab
    browser.get(f"{address}/lab/tree/notebooks/{path.name}?token=course&reset")
    wait.WebDriverWait(browser, 90).until(lambda _: browser.execute_script(OPENED + READY, path.name), path.name)
    browser.set_script_timeout(90)
    (first, one), (second, two) = browser.execute_script(OPENED + RUN, path.name)
    assert (first, second) == (1, 2) and {output["output_type"] for output in one + two} <= {"stream"}, (one, two)
    if path.stem != "08_speed":  # there the second cell has no data yet
        held_out, whole = "1,198 training images, 239 validation", "1,437 training images, 360 test"
        images = held_out if path.stem == "11_your_turn" else whole
        assert f"digits: {images} images" in "".join(output["text"] for output in one + two)
    text = browser.find_element("css selector", ".jp-Notebook").text
    assert f"{int(path.stem[:2])} · " in text and "Set-up" in text
