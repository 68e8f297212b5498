"""The committed notebooks and records: executed, whole, and as good as they claim."""

import copy
import json
import os
import re
import subprocess
import sys
import time
from base64 import b64decode
from functools import partial
from io import BytesIO

import answers
import hands
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pace
import pytest
from address import ANSWERS, NOTEBOOKS
from PIL import Image

import model
from checks import check_comparable, number_format
from mnist import Data
from model import Net8k, NetTiny, Skeleton
from utils import (
    RESULTS,
    ROOT,
    check_target,
    evaluate,
    load_run,
    load_runs,
    load_weights,
    mean_accuracy,
    results_folder,
)

HEADINGS = ["Target", "Set-up", "What changes and why", "Run", "Curves", "Result", "Analysis", "Next"]
VARIES = "nbval-ignore-output"
STUDIES = sorted(path.name for path in RESULTS.glob("*") if path.is_dir() and path.name != "digits")
WEIGHTS = sorted(path.relative_to(RESULTS).with_suffix("").as_posix() for path in RESULTS.glob("*/*.pt"))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def opened(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    notebook.path = path
    return notebook


def texts(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return opened(request.param)


@pytest.fixture(params=[*NOTEBOOKS, *ANSWERS], ids=lambda path: path.stem)
def page(request):
    """A notebook, or the answers to its exercises."""
    return opened(request.param)


def test_the_course_is_complete_and_all_first_cells_are_the_same():
    assert [int(path.stem[:2]) for path in NOTEBOOKS] == list(range(1, 14))
    pages = [*NOTEBOOKS, *ANSWERS]
    assert len({code_cells(nbformat.read(path, as_version=4))[0].source for path in pages}) == 1


def test_a_page_is_executed_in_order_on_mnist_and_holds_nothing_of_a_machine(page):
    cells = code_cells(page)
    # A cell without a count would not be compared by nbval at all.
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [output for output in outputs if output.get("name") == "stderr"]
    whole, held_out = "MNIST: 60,000 training images, 10,000 test", "MNIST: 50,000 training images, 10,000 validation"
    if page.path in NOTEBOOKS or any("load_mnist()" in cell.source for cell in cells):
        images = held_out if page.path.stem == "11_your_turn" else whole
        assert any(f"{images} images" in printed(cell) for cell in cells)
    assert "widgets" not in page.metadata and page.metadata["accelerator"] == "GPU"
    assert not re.search(r"/(home|root|work|tmp|Users)/|[A-Z]:\\\\", json.dumps(outputs))
    assert page.path.stat().st_size < 1_000_000


def test_a_page_has_short_cells_and_paragraphs_and_a_text_for_every_figure(page):
    for before, cell, after in zip(page.cells, page.cells[1:], [*page.cells[2:], None]):
        if cell.cell_type == "code":  # nobody meets code without having read what to look for
            assert before.cell_type == "markdown"
            assert len(cell.source.splitlines()) <= 25
            # What may differ on another machine is tagged; nothing else makes nbval look away.
            assert set(cell.metadata.get("tags", [])) <= {VARIES} and not re.search(
                "NBVAL|PYTEST_VALIDATE", cell.source
            )
            if any("image/png" in output.get("data", {}) for output in cell.outputs):
                assert after.cell_type == "markdown"  # every figure is followed by a text
    prose = re.sub(r"```.*?```", "", texts(page), flags=re.DOTALL)
    for paragraph in re.split(r"\n\s*\n|\n(?=- |\d\. |\|)", prose):  # or an item of a list, or a row of a table
        assert len(paragraph.split()) <= 90, paragraph
    assert not re.search(r"\d %", re.sub(r"`[^`\n]*`", "", prose)), "a no-break space keeps 99.4 % together"
    for cell in code_cells(page):  # a figure, and a text for those who cannot see it, wherever one is shown
        figures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        shows = re.search(r"^ *(show|(plot|draw)_\w+)\(", cell.source, re.MULTILINE)
        assert bool(figures) == bool(shows), cell.source
        for figure in figures:
            assert len(figure.metadata["image/png"]["alt"]) > 20


def test_a_notebook_has_its_parts_and_its_claims_are_compared(notebook):
    text = texts(notebook)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert re.match(rf"# {int(notebook.path.stem[:2])} · ", notebook.cells[0].source)
    if notebook.path.stem == "11_your_turn":  # whose claims are the cells with points
        graded = [cell for cell in code_cells(notebook) if cell.metadata.get("nbgrader", {}).get("grade")]
        worth = [cell.metadata.nbgrader.points for cell in graded]
        assert [cell.outputs[-1].data["text/plain"] for cell in graded] == list(map(str, worth))
        assert all(f", {points}, task=" in cell.source for cell, points in zip(graded, worth)) and sum(worth) == 80
        assert [bool(cell.metadata.get("tags")) for cell in graded] == [True, False, False, True, False]
        assert [printed(cell).count("Test set") for cell in graded] == [3, 0, 0, 0, 0]  # trained once
        return
    claims = [cell for cell in code_cells(notebook) if "check_target(" in cell.source]
    assert claims
    for cell in claims:
        assert not cell.metadata.get("tags") and "True" in printed(cell) and "False" not in printed(cell)


def test_every_exercise_has_an_answer(notebook):
    number = notebook.path.stem[:2]
    exercises = re.findall(r"^(\d)\. ", texts(notebook).split("## Next")[1], re.MULTILINE)
    assert 2 <= len(exercises) <= 3
    if number != "11":  # which is one exercise, and grades it
        page = opened(notebook.path.parent / "answers" / f"{number}_answers.ipynb")
        assert re.findall(r"^## (\d)\. ", texts(page), re.MULTILINE) == exercises
        assert f"](../{notebook.path.name})" in texts(page) and f"](answers/{page.path.name})" in texts(notebook)


def test_the_answers_runs_are_those_of_the_script():
    asked = {run["name"]: run for run in (*answers.RUNS, *answers.TINY_RUNS)}
    assert {run["name"]: run["arguments"] for run in load_runs("answers")} == asked


def test_the_runs_of_notebook_13_are_those_of_the_script_and_its_rule_chose_the_augmentation():
    choice = load_runs("hands-choice")
    best = hands.chosen(choice)
    asked = hands.runs("hands-choice", list(hands.STRENGTHS), 3, validation=True)
    for runs, records in ((asked, choice), (hands.runs("hands", [best], 5), load_runs("hands"))):
        assert {run["name"]: run for run in runs} == {record["name"]: record["arguments"] for record in records}
    table = json.loads((RESULTS / "hands.json").read_text(encoding="utf-8"))
    for row in table.values():
        assert [len(right) for right in row["right"].values()] == [10, 10, 10, 5] and list(row["right"])[-1] == best
        assert np.all(np.concatenate(list(row["right"].values())) <= row["digits"])
    for name, study in (("Net8k", "target-8k"), (best, "hands")):  # what was measured are the weights of these runs
        for right, run in zip(table["MNIST"]["right"][name], load_runs(study), strict=True):
            assert abs(sum(right) - round(100 * run["history"]["test_accuracy"][-1])) <= 2


@pytest.mark.parametrize("study", STUDIES)
def test_saved_runs_are_whole(study):
    for run in load_runs(study):
        assert run["name"].split("/")[0] == study and load_run(run["name"]) == run and run["data"] == "MNIST"
        lengths = {series: len(values) for series, values in run["history"].items()}
        assert lengths["test_loss"] == lengths["test_accuracy"] == run["epochs"]
        if "source" not in run:  # not an assignment's log
            assert lengths["train_loss"] == lengths["train_accuracy"] == run["epochs"]
            assert {"parameters", "model", "seed", "evaluated_on", "seconds", "settings", "versions"} <= set(run)
            assert not [
                key for part in run["settings"].values() if isinstance(part, dict) for key in part if key[0] == "_"
            ]
        if "arguments" in run:
            assert run["arguments"]["name"] == run["name"] and run["arguments"].get("seed", 0) == run["seed"]


@pytest.mark.parametrize(
    "name", [name if "seed0" in name else pytest.param(name, marks=pytest.mark.slow) for name in WEIGHTS]
)
def test_committed_weights_have_the_accuracy_of_their_record(mnist, name):
    run = load_run(name)
    changed = {2_574: partial(NetTiny, (16, 28, 28, 28, 28), shared=True), 16_166: partial(Skeleton, batch_norm=True)}
    network = changed.get(run["parameters"], getattr(model, run["model"]))
    trained = load_weights(network(), name)
    assert sum(p.numel() for p in trained.parameters()) == run["parameters"]
    images, labels = mnist.test_images, mnist.test_labels
    if run["evaluated_on"] == "validation":  # the last 10,000 training images, or those of another fold
        end = 60_000 - 10_000 * run["arguments"].get("fold", 0)
        images, labels = mnist.train_images[end - 10_000 : end], mnist.train_labels[end - 10_000 : end]
    _, correct = evaluate(trained, images, labels)
    # Another processor rounds differently: an image or two on the border may change sides.
    assert abs(correct - round(100 * run["history"]["test_accuracy"][-1])) <= 2


def test_the_weights_of_another_run_would_be_noticed(mnist):
    """The test above can fail: weights that were never trained do not have the record's accuracy."""
    _, correct = evaluate(Net8k().eval(), mnist.test_images, mnist.test_labels)
    assert abs(correct / 100 - load_run("target-8k/seed0")["history"]["test_accuracy"][-1]) > 50


@pytest.mark.parametrize(
    "study, most, epochs, lowest, mean",
    [
        ("target-20k", 19_999, 19, 99.4, 99.56),
        ("target-8k", 7_999, 15, 99.4, 99.5),
        ("float32-20k", 19_999, 19, 99.4, 99.56),
        ("float32-8k", 7_999, 15, 99.4, 99.5),
        ("best-8k", 7_999, 15, 99.4, 99.5),
        ("best-20k", 19_999, 19, 99.4, 99.5),
        ("best-8k-elastic", 7_999, 15, 99.4, 99.5),
        ("best-20k-elastic", 19_999, 19, 99.4, 99.5),
        ("tiny", 3_000, 15, 99.3, 99.4),
        ("tiny-shared", 2_600, 15, 99.3, 99.4),
        ("loop", 1_999, 15, 99.2, 99.39),
    ],
)
def test_ten_seeds_hold_what_is_claimed(study, most, epochs, lowest, mean):
    runs = load_runs(study)
    assert [run["seed"] for run in runs] == list(range(10)) and {run["evaluated_on"] for run in runs} == {"test"}
    target = {"max_parameters": most, "max_epochs": epochs, "accuracy": lowest, "last": 5}
    assert all(check_target(run, **target) for run in runs)
    assert np.mean([mean_accuracy(run, last=5) for run in runs]) >= mean


@pytest.mark.parametrize("size", ["8k", "20k"])
def test_the_pairs_of_notebook_9_differ_in_nothing_but_the_number_format(size):
    for short, long in zip(load_runs(f"target-{size}"), load_runs(f"float32-{size}"), strict=True):
        assert check_comparable([short, long], ("precision",)) == ["precision"]
        assert number_format(short) == "bfloat16" and number_format(long) == "float32"
        assert all(short[key] == long[key] for key in ("model", "parameters", "seed", "device", "threads"))
        asked = short["arguments"] | {"name": long["name"], "bfloat16": False}
        assert long["arguments"] == asked
        for part in ("optimizer", "scheduler", "augmentation"):  # newer records have a key or two more
            assert all(long["settings"][part][key] == value for key, value in short["settings"][part].items())
        assert all(short["settings"][key] == long["settings"][key] for key in ("batch_size", "ema_decay"))
    # The older half was trained with other versions, and another start of the average: that changes nothing at the end.
    [older, newer] = (load_run(name)["history"] for name in (f"target-{size}/seed0", f"steps/target-{size}"))
    assert older["train_loss"] == newer["train_loss"] and older["test_accuracy"][-5:] == newer["test_accuracy"][-5:]


TRAINED = {  # by the notebooks that compare their own run with saved ones
    "02_skeleton": {"run": "steps/skeleton"},
    "03_regularisation": {"normed": "steps/skeleton-batchnorm"},
    "04_augmentation": {"run": "steps/skeleton-augmented"},
    "05_schedule": {"run": "steps/skeleton-average"},
    "06_target_20k": {"run": "target-20k/seed0"},
    "07_target_8k": {"run": "target-8k/seed0"},
}


@pytest.mark.parametrize("change", [{"precision": "float32"}, {"data": "digits"}], ids=str)
@pytest.mark.parametrize("stem", TRAINED)
def test_a_run_made_elsewhere_is_compared_with_the_saved_ones(stem, change, tmp_path, monkeypatch, capsys):
    """In another number format, or on the digits: the cells that compare, as they stand, with such a run."""
    monkeypatch.setenv("MNIST_RESULTS", str(tmp_path))
    [(variable, name)] = TRAINED[stem].items()
    own = {key: value for key, value in load_run(name).items() if key != "arguments"} | change
    path = results_folder(own["data"]) / f"{name}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(own))
    names, compared = {}, 0
    exec("import numpy as np\nfrom utils import *\nfrom plots import *", names)
    for cell in code_cells(nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)):
        needed = re.search(r"(load_runs?|print_runs|plot_runs)\(|^def (gap|spread)\(", cell.source, re.MULTILINE)
        if needed and "load_weights" not in cell.source:
            names |= {variable: own, "data": Data(own["data"], "test", *[None] * 4)}
            exec(cell.source, names)
            compared += "print_runs(" in cell.source or "plot_runs(" in cell.source
    assert compared >= 2 and change.get("precision", "digits test") in capsys.readouterr().out
    plt.close("all")


@pytest.mark.slow
def test_neither_a_shell_s_settings_nor_another_order_of_the_cells_change_a_page(tmp_path):
    """Notebook 11 on the digits, with a backend and a personal file that would take its figures away or change them."""
    (tmp_path / "matplotlibrc").write_text("backend: pdf\nfigure.dpi: 20\nfont.size: 30\n")
    (tmp_path / "backwards.py").write_text("def pytest_collection_modifyitems(items):\n    items.reverse()\n")
    hostile = {"MPLBACKEND": "Agg", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONPATH": str(tmp_path)}
    environment = os.environ | hostile | {"MNIST_ROOT": "digits", "MNIST_RESULTS": str(tmp_path)}
    path = ROOT / "notebooks" / "11_your_turn.ipynb"
    execute = ["jupyter", "nbconvert", "--execute", "--to", "notebook", f"--output={tmp_path / 'page'}", path]
    check = ["pytest", "--nbval", "-q", "-p", "no:cacheprovider", "-p", "backwards", path]
    for command in (execute, check):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "\n11_your_turn\n" in done.stdout  # which notebook is at work
    before, after = (nbformat.read(file, as_version=4) for file in (path, tmp_path / "page.ipynb"))
    figures = [
        [
            Image.open(BytesIO(b64decode(output.data["image/png"]))).size
            for cell in code_cells(of)
            for output in cell.outputs
            if "image/png" in output.get("data", {})
        ]
        for of in (before, after)
    ]
    # The last one's legend says more of a run on the digits, and may be wider for it.
    assert figures[0][:2] == figures[1][:2] and len(figures[0]) == len(figures[1]) == 3
    assert figures[0][2][1] == figures[1][2][1]


@pytest.mark.slow
def test_a_page_is_made_aloud(tmp_path):
    """What a cell prints is shown at once; a cell that fails is named, and the page shows what was there before it."""
    cells = [
        nbformat.v4.new_code_cell("out_of_sight = 1", metadata={"jupyter": {"source_hidden": True}}),
        nbformat.v4.new_markdown_cell("## Try\nand see"),
        nbformat.v4.new_code_cell(
            "import time\nprint('early', flush=True)\ntime.sleep(5)\nprint('\\ra b' + 'ar', end='', flush=True)\n"
            "time.sleep(0.2)\nprint('\\rlate')"
        ),
        nbformat.v4.new_code_cell("1 / 0"),
    ]
    path = tmp_path / "test_aloud.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    command = [sys.executable, ROOT / "scripts" / "page.py", path]
    environment = os.environ | {"MNIST_ROOT": "digits", "MNIST_RESULTS": str(tmp_path)}
    page, arrived = ROOT / "build" / "test_aloud.html", {}
    try:
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as running:
            for line in running.stdout:
                arrived[line.strip()] = time.monotonic()
            complaint = running.stderr.read()
        html = page.read_text(encoding="utf-8")
    finally:
        page.unlink(missing_ok=True)
    assert arrived["late"] - arrived["early"] > 2 and list(arrived).index("## Try") < list(arrived).index("early")
    assert running.returncode == 1 and "ZeroDivisionError" in complaint
    assert "out_of_sight" not in html and "early" in html
    assert "late" in html and "a bar" not in html and "ZeroDivisionError" in html


def test_times_are_told_for_every_notebook():
    minutes = pace.minutes_here()
    assert set(minutes) == {path.stem for path in NOTEBOOKS} | {"tests"} and min(minutes.values()) > 0
    assert [pace.about(of) for of in (0.3, 1.2, 4.6)] == ["less than a minute", "about a minute", "about 5 minutes"]


@pytest.mark.slow
def test_a_falsified_claim_fails_under_nbval(tmp_path):
    """The claim of notebook 7 on its saved run: as committed it passes, with a falsified output or target it fails."""
    source = nbformat.read(ROOT / "notebooks" / "07_target_8k.ipynb", as_version=4)
    claim = next(cell for cell in code_cells(source) if "check_target(" in cell.source)
    imports = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom utils import check_target, load_run\n"
    first = nbformat.v4.new_code_cell(imports + 'run = load_run("target-8k/seed0")', execution_count=1)
    cells = {name: copy.deepcopy(claim) for name in ("committed", "output", "target")}
    cells["output"].outputs[0].text = claim.outputs[0].text.replace("True", "False", 1)
    cells["target"].source = claim.source.replace("accuracy=99.4", "accuracy=99.9")
    for name, cell in cells.items():
        notebook = nbformat.v4.new_notebook(cells=[first, cell], metadata=source.metadata)
        nbformat.write(notebook, tmp_path / f"test_{name}.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "-rfE"]
    command += ["-p", "no:cacheprovider", "-p", "no:randomly"]
    done = subprocess.run([*command, "."], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    failed = set(re.findall(r"^FAILED .*test_(\w+)\.ipynb::", done.stdout, re.MULTILINE))
    assert failed == {"output", "target"} and "2 failed, 4 passed" in done.stdout, done.stdout
