"""The drawing page, in a real browser: it frames as picture.py does, and reads digits that are drawn with a mouse."""

import base64
import functools
import json
import re
import shutil
import subprocess
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import nbformat
import numpy as np
import onnxruntime
import pytest
import torch
from address import ROOT
from helpers import as_phone, chromium

from model import Net8k
from picture import read_image
from utils import load_weights, predict

PAGE = ROOT / "draw"
STROKES = json.loads((ROOT / "tests" / "strokes.json").read_text())  # of each digit: lists of points, 0 to 1
SIDE = 200


def test_the_network_is_the_courses_own(data):
    """Its probabilities are those of ``predict``; its maps are as large as the page says."""
    [text] = re.findall(r'const NETWORK = "(.+)"', (PAGE / "network.js").read_text(encoding="utf-8"))
    file = base64.b64decode(text)
    assert not re.search(rb"\.py|site-packages", file)  # the exporter would write the paths of its machine
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    sizes = [int(size) for size in re.findall(r"(\d+) × \1", (PAGE / "draw.js").read_text(encoding="utf-8"))]
    network = load_weights(Net8k(), "target-8k/seed0")
    for image in data.test_images[:50]:
        probabilities, *maps = session.run(None, {"images": image[None].float().numpy()})
        expected = predict(network, image[None]).softmax(1)
        assert torch.allclose(torch.from_numpy(probabilities), expected, atol=1e-4)
        assert [layer.shape[2:] for layer in maps] == [(size, size) for size in sizes]


class Server(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A browser, and the address of a copy of the page, which takes its library from library/ beside it."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    script = (PAGE / "draw.js").read_text(encoding="utf-8")
    everything = "".join(path.read_text(encoding="utf-8") for path in (*PAGE.glob("*.js"), *PAGE.glob("*.html")))
    [library] = re.findall(r"https?://[^\s\"]+", everything)  # nothing else comes from elsewhere
    (folder / "draw.js").write_text(script.replace(library, "/library/"), encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with chromium(folder, "900,1200") as browser:
        browser.set_script_timeout(60)
        yield browser, f"http://127.0.0.1:{server.server_port}/index.html", folder, library
    server.shutdown()


DRAW = """
const [strokes] = arguments;
return strokes.map((drawing) => {
    clearPaper();
    for (const stroke of drawing) {
        last = null;
        for (const [x, y] of stroke) lineTo([200 * x, 200 * y]);
    }
    const pixels = greyValues();
    let result;
    try { result = Array.from(readDrawing(pixels, 200, 200)); } catch (error) { result = error.message; }
    return [btoa(String.fromCharCode(...pixels)), result];
});
"""


@pytest.mark.slow
def test_a_thousand_drawings_are_framed_as_picture_frames_them(page):
    browser, address, *_ = page
    browser.get(address)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(50):
        drawings = []
        for digit in rng.integers(10, size=20).astype(str):
            drawing = [np.array(stroke) - 0.5 for stroke in STROKES[digit]]
            if rng.random() < 0.1:  # a scribble, or a second digit
                drawing += (
                    [rng.uniform(-0.3, 0.3, (3, 2))]
                    if rng.random() < 0.5
                    else [stroke + np.array([0.8, 0]) for stroke in drawing]
                )
            bend = rng.uniform(0.3, 1.1) * (np.eye(2) + rng.normal(0, 0.2, (2, 2)))
            move = rng.uniform(0.35, 0.65, 2)
            drawings.append([(stroke @ bend + move + rng.normal(0, 0.01, stroke.shape)).tolist() for stroke in drawing])
        for pixels, framed in browser.execute_script(DRAW, drawings):
            pixels = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(SIDE, SIDE)
            try:
                expected = read_image(pixels).flatten().tolist()
            except ValueError as error:
                expected, refused = str(error), refused + 1
            assert framed == expected
    assert 20 < refused < 200  # both ways were tried


@pytest.mark.slow
def test_all_ten_digits_are_drawn_and_read(page):
    browser, address, folder, library = page
    if not (npm := shutil.which("npm")):
        pytest.skip("needs npm, which brings the library of the page")
    name = re.search(r"npm/(.+?)/dist", library).group(1)
    done = subprocess.run([npm, "pack", name], cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"the page's library could not be fetched: {done.stderr[-200:]}")
    with tarfile.open(folder / done.stdout.split()[-1]) as package:
        package.extractall(folder, filter="data")
    (folder / "package" / "dist").rename(folder / "library")
    browser.get_log("browser")  # what earlier tests left there
    browser.get(address)
    action_chains = pytest.importorskip("selenium.webdriver").ActionChains
    wait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait(browser, 60)

    def says(text):
        wait.until(lambda _: text in browser.find_element("id", "message").text, text)

    says("Waiting for a digit")
    paper = browser.find_element("id", "paper")
    side = paper.size["width"]
    for digit, strokes in STROKES.items():
        actions = action_chains(browser, duration=2)
        for stroke in strokes:
            points = [[round(side * (value - 0.5)) for value in point] for point in stroke]
            actions.move_to_element_with_offset(paper, *points[0]).click_and_hold()
            for point in points[1:]:
                actions.move_to_element_with_offset(paper, *point)
            actions.release()
        actions.perform()
        says(f"It reads a {digit}, and is ")
        percents = [cell.text for cell in browser.find_elements("css selector", ".percent")]
        assert max(range(10), key=lambda n: float(percents[n].split()[0])) == int(digit)
        assert len(browser.find_elements("css selector", ".maps canvas")) == 8 + 9 + 10 + 12 + 16 + 20 + 10
        browser.find_element("id", "clear").click()
        says("Waiting for a digit")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]

    # On a phone, with a finger, and a hand that rests on the screen
    as_phone(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 400
    box = browser.execute_script(
        "const {x, y, width} = arguments[0].getBoundingClientRect(); return [x, y, width]", paper
    )
    [stroke] = STROKES["7"]
    for number, (x, y) in enumerate(stroke):
        points = [{"x": box[0] + box[2] * x, "y": box[1] + box[2] * y, "id": 1}]
        points += [{"x": box[0] + 0.9 * box[2], "y": box[1] + 0.9 * box[2], "id": 2}]
        touch = {"type": "touchMove" if number else "touchStart", "touchPoints": points if number else points[:1]}
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
        if not number:
            browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": points})
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    says("It reads a 7, and is ")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    # Inside notebook 13, as its cell shows it
    cells = nbformat.read(ROOT / "notebooks" / "13_other_hands.ipynb", as_version=4).cells
    [inside] = [out.data["text/html"] for cell in cells for out in cell.get("outputs", []) if "srcdoc" in str(out)]
    (folder / "notebook.html").write_text(inside.replace(library, "/library/"), encoding="utf-8")
    browser.get(address.replace("index", "notebook"))
    browser.switch_to.frame(browser.find_element("tag name", "iframe"))
    says("Waiting for a digit")
    browser.execute_script("arguments[0].forEach(([x, y]) => lineTo([200 * x, 200 * y])); look()", stroke)
    says("It reads a 7, and is ")


@pytest.mark.slow
def test_without_the_library_the_page_says_so(page):
    browser, address, folder, _ = page
    (folder / "alone.html").write_text((PAGE / "index.html").read_text().replace("draw.js", "alone.js"))
    (folder / "alone.js").write_text((folder / "draw.js").read_text().replace("/library/", "/nowhere/"))
    browser.get(address.replace("index", "alone"))
    wait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait(browser, 60)
    wait.until(lambda _: "could not be loaded" in browser.find_element("id", "message").text)
