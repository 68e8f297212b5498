"""What the notebooks and README.md say about the repository is so."""

import json
import re
import statistics
import subprocess
import sys

import benchmark
import nbformat
import pytest
import readme
import torch
from address import FORM, NOTEBOOKS, ROOT, address, badge, copies
from PIL import Image

from model import Net8k
from utils import RESULTS, load_weights, normalize, predict


def test_one_address_everywhere():
    for path in copies():
        assert set(re.findall(FORM, path.read_text(encoding="utf-8"))) == {address()}, path


def test_every_notebook_has_its_badge():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = set()
    for path in NOTEBOOKS:
        first = nbformat.read(path, as_version=4).cells[0].source
        assert first.splitlines()[2] == badge(path) and readme.count(badge(path)) == 1
        links.add(badge(path))
    everything = "\n".join(path.read_text(encoding="utf-8") for path in copies())
    assert len(re.findall(r"colab\.research\.google\.com/github/", everything)) == 2 * len(links)


def test_one_command_changes_the_address(tmp_path):
    for path in copies():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "tests").mkdir()
    script = tmp_path / "tests" / "address.py"
    script.write_bytes((ROOT / "tests" / "address.py").read_bytes())
    assert subprocess.run([sys.executable, script, "not an address"], capture_output=True, timeout=60).returncode == 1
    new = "https://github.com/someone/somewhere"
    subprocess.run([sys.executable, script, new + ".git"], check=True, timeout=60)  # as GitHub's button copies it
    changed = [path for path in copies() if address() in path.read_text(encoding="utf-8")]
    for path in changed:
        text = (tmp_path / path.relative_to(ROOT)).read_text(encoding="utf-8")
        assert address() not in text and new in text and new + ".git" not in text
        assert (
            "colab.research.google.com/github/someone/somewhere/blob/main/notebooks/" in text or path.suffix == ".toml"
        )
    old_name = address().removeprefix("https://github.com/")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and old_name in path.read_text(encoding="utf-8")]


def test_files_named_in_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r"src=\"([^\":]+)\"", text):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", readme.TABLES)
def test_the_tables_are_what_the_saved_runs_say(name):
    assert readme.section(name).group(1) == readme.TABLES[name](), (
        "The saved runs in notebooks/results are not those of README.md. If you trained some again: "
        "'git checkout notebooks/results' brings the course's own back, 'python tests/readme.py' shows yours."
    )


def test_the_speed_figures_are_those_of_the_measurements():
    """The figures in speed.json that the course promises follow from the single measurements in the same file."""
    speed = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    for network, ladder in speed["ladder"].items():
        ratio, spread = speed["epoch_ratio"][network], speed["spread"]["epoch_ratio"][network]
        assert spread["smallest"] <= ratio == spread["median"] <= spread["largest"]
        usual, fit = ladder["the usual loop"], ladder["4 fit"]
        assert usual["smallest"] / fit["largest"] - 0.01 <= ratio <= usual["largest"] / fit["smallest"] + 0.01
    ratios = benchmark.ratios_to_99_4(speed["time_to_99_4"])
    assert statistics.median(ratios) == pytest.approx(speed["time_to_99_4_ratio"], abs=0.01)
    for run in [*speed["time_to_99_4"]["usual"], *speed["time_to_99_4"]["course"]]:
        assert run["seconds"] == benchmark.seconds_to(run["elapsed"], run["accuracy"], 99.4)
    mark, course = (speed["time_to_99"][kind] for kind in ("train_mnist_fast", "course"))
    shares = [b["seconds"] / a["seconds"] for a, b in zip(mark["runs"], course["runs"])]
    assert len(shares) == 10 and statistics.median(shares) == pytest.approx(speed["time_to_99_share"], abs=0.01)
    mean = statistics.mean(run["accuracy"] for run in course["runs"])
    assert mean == pytest.approx(course["mean_accuracy"], abs=0.001)
    assert {run["parameters"] for run in course["runs"]} == {18_010}
    assert sum(speed["notebook_minutes"].values()) < speed["nbval_minutes"]


def test_the_benchmark_counts_only_what_is_held():
    elapsed = [10.0, 20.0, 30.0, 40.0]
    assert benchmark.seconds_to(elapsed, [99.4, 99.3, 99.4, 99.5], 99.4) == 30.0
    assert benchmark.seconds_to(elapsed, [99.4, 99.4, 99.4, 99.4], 99.4) == 10.0
    assert benchmark.seconds_to(elapsed, [99.5, 99.5, 99.5, 99.39], 99.4) is None
    usual = {"seconds": None, "elapsed": elapsed}
    course = {"seconds": 10.0, "elapsed": elapsed}
    assert benchmark.ratios_to_99_4({"usual": [usual, usual], "course": [course, usual]}) == [4.0, 0.0]
    assert sum(p.numel() for p in benchmark.TrainMnistFast().parameters()) == 215_194


@pytest.mark.slow
def test_the_readmes_lines_read_a_digit_and_export_the_network(mnist, tmp_path, monkeypatch, capfd):
    """The code of README.md, as it stands there; ONNX Runtime gives the logits that PyTorch gives."""
    import onnxruntime  # here, because it would take memory from all that runs before

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    use, export = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    drawing = Image.fromarray(255 - mnist.test_images[0, 0].cpu().numpy()).resize((120, 120))
    drawing.save("digit.png")
    scope = {}
    exec(use, scope)
    assert capfd.readouterr().out.strip() == str(mnist.test_labels[0].item())
    exec(export, scope)
    session = onnxruntime.InferenceSession("net8k.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 500):
        images = mnist.test_images[:count].cpu()
        [logits] = session.run(["logits"], {"images": normalize(images).numpy()})
        expected = predict(load_weights(Net8k(), "target-8k-seed0"), images)
        assert torch.allclose(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)
