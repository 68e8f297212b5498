"""What the notebooks and README.md say about the repository is so, and its parts stand where they belong."""

import ast
import json
import os
import re
import shutil
import statistics
import subprocess
import sys

import benchmark
import nbformat
import pytest
import readme
import torch
from address import ANSWERS, FORM, NOTEBOOKS, ROOT, address, badge, copies
from PIL import Image

from model import Net8k
from utils import RESULTS, load_weights, normalize, predict

MODULES = sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "conftest")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def cells_of(path, kind="code"):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def test_imports_run_one_way_and_notebooks_1_to_7_need_model_plots_and_utils_alone(tmp_path):
    """import-linter wants a package: the modules and the notebooks' imports are copied into one."""
    package, named = tmp_path / "course", "|".join(MODULES)
    package.mkdir()
    (package / "__init__.py").touch()
    sources = {name: (ROOT / f"{name}.py").read_text(encoding="utf-8") for name in MODULES}
    for path in NOTEBOOKS:
        trees = [ast.parse(cell) for cell in cells_of(path)[1:]]  # the first cell finds the course
        imports = [node for tree in trees for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        sources[f"notebook_{path.stem[:2]}"] = "\n".join(map(ast.unparse, imports))
    for name, source in sources.items():
        text = re.sub(rf"^from ({named}) import", r"from course.\1 import", source, flags=re.MULTILINE)
        assert not re.search(rf"^\s*import ({named})\b", text, re.MULTILINE), name
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    early = [f"course.notebook_{number:02}" for number in range(1, 8)]
    rooms = [f"course.{name}" for name in MODULES if name not in ("model", "plots", "utils")]
    (tmp_path / ".importlinter").write_text(
        "[importlinter]\nroot_package = course\n"
        "[importlinter:contract:1]\nname = one way\ntype = layers\ncontainers = course\n"
        "layers =\n hand_in\n evidence | frontier | grade | speed | study\n complaints\n plots\n utils\n"
        " checkpoint | checks | fast | mnist | model | picture\n files\n"
        "[importlinter:contract:2]\nname = early\ntype = forbidden\nallow_indirect_imports = true\n"
        + "\n ".join(["source_modules =", *early])
        + "\n ".join(["\nforbidden_modules =", *rooms])
    )
    assert len(MODULES) == 16 and "from course.utils import" in (package / "notebook_07.py").read_text()
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "2 kept, 0 broken" in done.stdout, done.stdout + done.stderr


def test_no_module_imports_a_private_name():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("teaching/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in MODULES:
                assert not [alias.name for alias in node.names if alias.name.startswith("_")], path


def test_one_address_everywhere_and_every_notebook_has_its_badge():
    for path in copies():
        assert set(re.findall(FORM, path.read_text(encoding="utf-8"))) <= {address()}, path
    for path in NOTEBOOKS:
        first = cells_of(path, "markdown")[0].splitlines()
        assert first[2] == badge(path) and README.count(badge(path)) == 1
        assert first[4] == readme.place(path), "python scripts/readme.py writes the line again"
    everything = "\n".join(path.read_text(encoding="utf-8") for path in copies())
    assert len(re.findall(r"colab\.research\.google\.com/github/", everything)) == 2 * len(NOTEBOOKS)


def test_one_command_changes_the_address(tmp_path):
    for path in [*copies(), ROOT / "scripts" / "address.py"]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    script = [sys.executable, tmp_path / "scripts" / "address.py"]
    assert subprocess.run([*script, "not an address"], capture_output=True, timeout=60).returncode == 1
    # With .git, as GitHub's button copies it
    subprocess.run([*script, "https://github.com/someone/somewhere.git"], check=True, timeout=60)
    for path in copies():
        before, after = (file.read_text(encoding="utf-8") for file in (path, tmp_path / path.relative_to(ROOT)))
        old, new = (of.removeprefix("https://github.com/") for of in (address(), "someone/somewhere"))
        assert after == before.replace(old, new) and old in before and "somewhere.git" not in after


def test_files_named_in_the_texts_exist():
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("notebooks/*.md")]
    pages = {path: path.read_text(encoding="utf-8") for path in texts}
    pages |= {path: "\n".join(cells_of(path, "markdown")) for path in [*NOTEBOOKS, *ANSWERS]}
    for path, text in pages.items():
        for target in re.findall(r"\]\(([^)#:\s]+)\)", text) + re.findall(r"src=\"([^\":]+)\"", text):
            assert (path.parent / target).exists(), (path, target)


@pytest.mark.parametrize("name", readme.TABLES)
def test_the_tables_are_what_the_saved_runs_say(name):
    assert readme.section(name).group(1) == readme.TABLES[name](), (
        "The saved runs in notebooks/results are not those of README.md. If you trained some again: "
        "'git checkout notebooks/results' brings the course's own back, 'python scripts/readme.py' shows yours."
    )


def test_ci_runs_the_readmes_test_command():
    [command] = re.findall(r"^python3 -m venv .*pytest --nbval$", README, re.MULTILINE)
    lines = [line.strip() for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()]
    *setup, test = command.split(" && ")
    assert all(part in lines for part in setup)
    assert [line for line in lines if line.startswith(f"{test} ")]


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
    alone = speed["busy"]["0"]
    assert speed["idle_ratio"] == pytest.approx(
        alone["fit chooses"]["median"] / alone["PyTorch's default"]["median"], abs=0.01
    )
    for load, ways in speed["busy"].items():
        ratio = ways["fit chooses"]["median"] / ways["one thread"]["median"]
        assert speed["busy_ratio"][load] == pytest.approx(ratio, abs=0.01)


def test_the_benchmark_counts_only_what_is_held():
    elapsed = [10.0, 20.0, 30.0, 40.0]
    assert benchmark.seconds_to(elapsed, [99.4, 99.3, 99.4, 99.5], 99.4) == 30.0
    assert benchmark.seconds_to(elapsed, [99.4, 99.4, 99.4, 99.4], 99.4) == 10.0
    assert benchmark.seconds_to(elapsed, [99.5, 99.5, 99.5, 99.39], 99.4) is None
    usual, course = {"seconds": None, "elapsed": elapsed}, {"seconds": 10.0, "elapsed": elapsed}
    assert benchmark.ratios_to_99_4({"usual": [usual, usual], "course": [course, usual]}) == [4.0, 0.0]
    assert sum(p.numel() for p in benchmark.TrainMnistFast().parameters()) == 215_194


@pytest.mark.slow
def test_the_lines_that_read_a_digit_and_export_the_network(mnist, tmp_path, monkeypatch, capfd):
    """The code of README.md and of notebook 10, as it stands there; ONNX Runtime gives the logits of PyTorch."""
    import onnxruntime  # here, because it would take memory from all that runs before

    [use] = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    text = "\n".join(cells_of(ROOT / "notebooks" / "10_mistakes.ipynb", "markdown"))
    [export] = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    drawing = Image.fromarray(255 - mnist.test_images[0, 0].cpu().numpy()).resize((120, 120))
    drawing.save("digit.png")
    exec(use, {})
    assert capfd.readouterr().out.strip() == str(mnist.test_labels[0].item())
    # In a process of its own, whose output knows no signs but those of ASCII
    ascii_only = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", export], env=ascii_only, check=True, timeout=300)
    (tmp_path / "elsewhere").mkdir()
    alone = shutil.move("net8k.onnx", "elsewhere")
    session = onnxruntime.InferenceSession(alone, providers=["CPUExecutionProvider"])
    for count in (1, 7, 500):
        images = mnist.test_images[:count].cpu()
        [logits] = session.run(["logits"], {"images": normalize(images).numpy()})
        expected = predict(load_weights(Net8k(), "target-8k/seed0"), images)
        assert torch.allclose(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)
