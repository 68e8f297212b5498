"""A class from the hand-out to the table of points, by the commands of notebooks/teaching.md, on the digits."""

import copy
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from submissions import NETWORK, RECIPE, cell, filled, with_cell

from mnist import ROOT

pytest.importorskip("nbgrader")
TASK, NOTEBOOK = "rehearsal", "11_your_turn.ipynb"
CONDITIONS = ("runs", "parameters", "epochs", "accuracy", "last-epochs")
POINTS = (20, 20, 10, 20, 10)

WIDE = NETWORK.replace("16, 32, 3", "16, 64, 3").replace("2d(32", "2d(64")
LONG = RECIPE.replace("= 10, 32", "= 12, 32")
POOR = RECIPE.replace("= 10, 32", "= 1, 32").replace("0.1", "1e-4")  # learns nothing
LOOP = NETWORK.replace("        return", "        while True:\n            images = images + 0\n        return")
PATCHED = """import grade, hand_in, mnist, utils
utils.fit = grade.fit = lambda *arguments, **others: {}
utils.evaluate = grade.evaluate = lambda *arguments: (0.0, 360)
utils.check_target = lambda *arguments, **others: True
utils.load_mnist = mnist.load_mnist = lambda *arguments, **others: data
grade.grade = hand_in.hand_in = lambda *arguments, **others: dict.fromkeys(["runs", "accuracy"], (1.0, "all right"))
fit = evaluate = check_target = load_mnist = grade = None"""
DATA = """data.test_images[:] = data.train_images[:1]
data.train_labels[:] = 0
TASK = {"max_parameters": 10**9, "max_epochs": 10**9, "accuracy": 0, "last": 1}"""
# Each with the points that it gets for each condition, and some of the words that its author reads
SUBMISSIONS = {
    "valid": ({}, POINTS, "runs: It trains to its end. parameters: 6,330 parameters"),
    "blank": ({"network": None, "recipe": None, "analysis": None}, (0, 0, 0, 0, 0), "runs: MyNetwork is not written"),
    "syntax-error": ({"network": NETWORK.replace("f):", "f:")}, (0, 0, 10, 0, 0), "your-network: stops with Synt"),
    "crash": ({"network": NETWORK.replace("8, 16", "9, 16")}, (0, 20, 10, 0, 0), "(in your line: return self.layers"),
    "endless-loop": ({"network": LOOP}, (0, 20, 10, 0, 0), "runs: MyNetwork was not finished in time (in your line: "),
    "over-budget": ({"network": WIDE}, (20, 0, 10, 20, 10), "parameters: 11,354 parameters, 1,354 more than"),
    "too-many-epochs": ({"recipe": LONG}, (20, 20, 0, 20, 10), "epochs: 12 epochs; at most 10 are allowed."),
    "data-changed": ({"recipe": POOR, "added": DATA}, (20, 20, 10, 0, 0), "last epochs: epoch 1: "),
    "module-patched": ({"recipe": POOR, "added": PATCHED}, (20, 20, 10, 0, 0), "last epochs: epoch 1: "),
    "locked-rewritten": (
        {"network": WIDE, "runs": "20", "parameters": "20", "accuracy": "# nothing"},
        (20, 0, 10, 20, 10), "put back: runs, parameters, accuracy.",
    ),
}  # fmt: skip


def hand_in(place: Path, student: str, notebook, name=NOTEBOOK) -> None:
    folder = place / "submitted" / student / TASK
    folder.mkdir(parents=True)
    if notebook is not None:
        (folder / name).write_text(notebook if isinstance(notebook, str) else nbformat.writes(notebook), "utf-8")


def run(place: Path, *command: str, **variables: str) -> str:
    """Run a command in the folder of the class, and return what it says."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"MNIST_ROOT": "digits", "OMP_NUM_THREADS": "1", "PATH": programs} | variables
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=900)
    return f"{done.stdout}{done.stderr}\nstatus {done.returncode}"


def table(place: Path) -> dict[str, dict]:
    said = run(place, "nbgrader", "export", "--log-level=WARN")
    assert "status 0" in said, said
    with open(place / "points.csv", encoding="utf-8", newline="") as file:
        return {line["student"]: line for line in csv.DictReader(file)}


def new_class(folder: Path) -> Path:
    """Make a class to which the rehearsal was handed out, with half a minute for each submission."""
    place = folder / "class"
    said = run(ROOT, sys.executable, "teaching/handout.py", str(place), TASK)
    assert "status 0" in said, said
    path = place / "source" / TASK / "tasks.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"minutes": 1,', '"minutes": 0.5,'), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return new_class(tmp_path_factory.mktemp("teaching"))


@pytest.fixture(scope="module")
def other_place(tmp_path_factory) -> Path:
    return new_class(tmp_path_factory.mktemp("together"))


def test_the_page_s_times_are_those_of_the_record():
    page = (ROOT / "notebooks" / "teaching.md").read_text(encoding="utf-8")
    record = json.loads((ROOT / "notebooks" / "results" / "class.json").read_text(encoding="utf-8"))
    short, long = record["warm-up"], record["8k"]
    assert f"| {short['one after another']} s | {short['two at a time']} s |" in page
    assert f"| {short['two at a time'] / 6:.0f} minutes |" in page and f"| {long['two at a time']} s |" in page
    assert (
        f"| {long['two at a time'] / 360:.1f} hours |" in page
        and f"{long['two at a time'] / 300:.1f} minutes for" in page
    )


@pytest.fixture
def release(place) -> Path:
    return place / "release" / TASK / NOTEBOOK


def submission(release: Path, added: str = "", **cells):
    notebook = filled(release, **cells)
    return with_cell(notebook, added) if added else notebook


@pytest.mark.slow
def test_the_hand_out_has_stubs_and_what_it_imports_and_neither_solutions_nor_weights(place, release, tmp_path):
    files = {path.relative_to(release.parent).as_posix() for path in release.parent.rglob("*") if path.is_file()}
    assert {"utils.py", "grade.py", "hand_in.py", "tasks.json", "requirements.txt", NOTEBOOK} < files
    assert "notebooks/results/target-8k/seed9.json" in files and len(files) < 40
    assert not [file for file in files if file.endswith((".pt", ".ipynb")) and file != NOTEBOOK]
    notebook = nbformat.read(release, as_version=4)
    for name, gone in {"your-network": "nn.Conv2d", "your-recipe": "SGD", "your-analysis": "%"}.items():
        assert gone not in cell(notebook, name).source
        assert gone in cell(nbformat.read(ROOT / "notebooks" / NOTEBOOK, as_version=4), name).source
    assert 'TASKS["rehearsal"]' in "".join(of.source for of in notebook.cells)
    assert 'task="rehearsal"' in cell(notebook, "runs").source and not cell(notebook, "runs").metadata.editable
    assert not re.search(r"\]\((?!https://)[^)]*\.ipynb", "".join(of.source for of in notebook.cells))
    # As a student starts it, in a folder of its own: everything is there, and it says what to do.
    with zipfile.ZipFile(place / f"{TASK}.zip") as packed:
        packed.extractall(tmp_path)
    execute = ["jupyter", "nbconvert", "--execute", "--allow-errors", "--to=notebook", "--inplace", NOTEBOOK]
    assert "status 0" in run(tmp_path / TASK, *execute)
    outputs = [output for of in nbformat.read(tmp_path / TASK / NOTEBOOK, 4).cells for output in of.get("outputs", [])]
    assert [output.evalue for output in outputs if output.output_type == "error"] == []
    assert "MyNetwork is not written yet" in "".join(output.get("text", "") for output in outputs)


@pytest.fixture(scope="module")
def graded(place) -> dict[str, dict]:
    """The table, after the ten submissions and those without points went through nbgrader's own commands."""
    release = place / "release" / TASK / NOTEBOOK
    for student, (changes, _, _) in SUBMISSIONS.items():
        hand_in(place, student, submission(release, **changes))
    hand_in(place, "renamed", filled(release), "11_your_turn (1).ipynb")
    hand_in(place, "damaged", '{"cells": [')
    hand_in(place, "empty", None)
    hand_in(place, "killed", submission(release, added="import os\nos.kill(os.getpid(), 9)"))
    assert "status 0" in run(place, "nbgrader", "db", "student", "add", "absent")
    assert table(place)["valid"]["status"] == "not graded yet"
    run(place, "nbgrader", "autograde", TASK)  # its status is 1, because some submissions cannot be graded
    said = run(place, "nbgrader", "generate_feedback", TASK)
    assert "status 0" in said, said
    return table(place)


@pytest.mark.slow
@pytest.mark.parametrize("student", SUBMISSIONS)
def test_each_condition_gets_its_points_and_its_words(place, graded, student):
    _, points, words = SUBMISSIONS[student]
    line = graded[student]
    assert tuple(float(line[name]) for name in CONDITIONS) == points and float(line["total"]) == sum(points), line
    assert words in line["comment"] and line["of"] == "100"
    blank = student == "blank"
    assert line["status"] == ("graded" if blank else "graded, but for what is read by a person")
    assert line["your-analysis"] == ("0" if blank else "")
    page = (place / "feedback" / student / TASK / NOTEBOOK.replace(".ipynb", ".html")).read_text(encoding="utf-8")
    assert f"(Score: {sum(points):.1f} / 100.0)" in page
    if student == "valid":
        assert page.count("Test set: Average loss") == 10  # trained once, for all conditions


@pytest.mark.slow
def test_who_has_no_points_is_told_from_who_earned_none(graded):
    assert {student: line["status"] for student, line in graded.items() if student not in SUBMISSIONS} == {
        "absent": "nothing handed in",
        "damaged": "11_your_turn.ipynb is no notebook (NotJSONError)",
        "empty": "no 11_your_turn.ipynb",
        "killed": "grading stopped: see the log. Most often, a cell ended the kernel or could not be interrupted",
        "renamed": "no 11_your_turn.ipynb, but 11_your_turn (1).ipynb: rename or move it, and grade again",
    }
    assert not any(line["total"] for student, line in graded.items() if student not in SUBMISSIONS)


def changed(notebook, change: str):
    """Return the notebook with its cells moved, split, or without what nbgrader knows them by."""
    if change == "swapped":
        first, last = (notebook.cells.index(cell(notebook, name)) for name in ("runs", "last-epochs"))
        notebook.cells[first], notebook.cells[last] = notebook.cells[last], notebook.cells[first]
    elif change == "split":
        half = copy.deepcopy(cell(notebook, "your-network"))
        half.source = "WIDTH = 8"
        notebook.cells.insert(notebook.cells.index(cell(notebook, "your-network")), half)
    elif change == "copied":
        for of in notebook.cells:
            of.metadata.pop("nbgrader", None)
    return notebook


EXIT = NETWORK.replace("        return", "        import os\n        os._exit(3)\n        return")
IN_RECIPE = POOR.replace(
    "    epochs", "    import utils\n    utils.evaluate = lambda *arguments: (0.0, 360)\n    epochs", 1
)
OPEN = "log = open('log.txt', 'w')\n" + NETWORK.replace("        return", "        log.write('.')\n        return")
TRAPS = {  # as above; the changes of the cells, the points, and some of the words
    "swapped": ({"change": "swapped"}, POINTS, "runs: It trains to its end."),
    "split": ({"change": "split"}, POINTS, "runs: It trains to its end."),
    "copied": ({"change": "copied"}, POINTS, "Cells that were missing, and were added again: your-analysis, runs, "),
    "written": ({"added": "%%writefile utils.py\nraise RuntimeError"}, POINTS, "runs: It trains to its end."),
    "silent": (
        {"recipe": LONG, "added": "%config InteractiveShell.ast_node_interactivity = 'none'"},
        (20, 20, 0, 20, 10), "epochs: 12 epochs",
    ),
    "elsewhere": ({"added": "import os\nos.chdir('/')\nprint = list = 3"}, POINTS, "runs: It trains to its end."),
    "exit": ({"network": EXIT}, (0, 20, 0, 0, 0), "runs: The program ended with status 3 before it was graded"),
    "open-file": ({"network": OPEN}, (0, 0, 0, 0, 0), "runs: What MyNetwork and recipe use cannot be sent"),
    "in-recipe": ({"recipe": IN_RECIPE}, (20, 20, 10, 0, 0), "last epochs: epoch 1: "),
}  # fmt: skip


@pytest.fixture(scope="module")
def graded_together(other_place) -> dict[str, dict]:
    """The table, after others were graded two at a time, each shut in by bubblewrap, if that works here."""
    place = other_place
    release = place / "release" / TASK / NOTEBOOK
    for student, (changes, _, _) in TRAPS.items():
        cells = {name: source for name, source in changes.items() if name != "change"}
        hand_in(place, student, changed(submission(release, **cells), changes.get("change", "")))
    hand_in(place, "left", submission(release, added="exit()"))
    page = (ROOT / "notebooks" / "teaching.md").read_text(encoding="utf-8")
    [shut_in] = re.findall(r'--within "(bwrap .*?)"', page, re.DOTALL)
    shut_in = shut_in.replace("\\\n", "")
    usable = (
        shutil.which("bwrap") and subprocess.run(["bwrap", "--ro-bind", "/", "/", "true"], check=False).returncode == 0
    )
    if sys.prefix.startswith("/tmp/"):  # which is empty in there
        shut_in = shut_in.replace("--bind", f"--ro-bind {sys.prefix} {sys.prefix} --bind", 1)
    said = run(place, sys.executable, "grade_all.py", TASK, "--jobs=2", *(["--within", shut_in] if usable else []))
    assert "10 of 10 submissions are to be executed, 2 at a time" in said, said
    assert "left: NOT EXECUTED: see logs/rehearsal/left.log" in said and "status 1" in said
    assert "1 of 10 were not executed: left." in said
    return table(place)


@pytest.mark.slow
@pytest.mark.parametrize("student", TRAPS)
def test_traps_of_nbgrader_and_of_students(graded_together, student):
    _, points, words = TRAPS[student]
    line = graded_together[student]
    assert tuple(float(line[name]) for name in CONDITIONS) == points and words in line["comment"], line


@pytest.mark.slow
def test_what_was_not_executed_is_told_and_what_was_is_not_executed_again(other_place, graded_together):
    place = other_place
    assert graded_together["left"]["status"].startswith("grading stopped: see the log")
    said = run(place, sys.executable, "grade_all.py", TASK)
    assert "1 of 10 submissions are to be executed" in said and "status 1" in said, said
    notebook = place / "submitted" / "valid-again" / TASK / NOTEBOOK
    (place / "submitted" / "left").rename(place / "submitted" / "valid-again")
    notebook.write_text(nbformat.writes(filled(place / "release" / TASK / NOTEBOOK)), encoding="utf-8")
    said = run(place, sys.executable, "grade_all.py", TASK, "--student=valid-again")
    assert "1 of 10 submissions are to be executed" in said and "status 0" in said, said
    assert table(place)["valid-again"]["runs"] == "20"
    notebook.write_text(nbformat.writes(filled(place / "release" / TASK / NOTEBOOK, recipe=LONG)), encoding="utf-8")
    assert "status 0" in run(place, sys.executable, "grade_all.py", TASK)  # handed in again
    assert table(place)["valid-again"]["epochs"] == "0"
    assert "not handed out: rehearsal was" in run(place, sys.executable, "grade_all.py", "8k")


@pytest.mark.slow
def test_a_class_is_not_made_of_other_things_nor_graded_without_data(place, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    said = run(ROOT, sys.executable, "teaching/handout.py", str(place), TASK)
    assert "rehearsal was handed out before. --force makes it again" in said and "status 1" in said
    said = run(ROOT, sys.executable, "teaching/handout.py", str(tmp_path), TASK)
    assert "holds other things" in said and "status 1" in said and [*tmp_path.iterdir()] == [tmp_path / "mine.txt"]
    class_file = place / "class.json"
    kept = class_file.read_text(encoding="utf-8")
    class_file.write_text('{"data": null}', encoding="utf-8")
    try:
        said = run(place, "nbgrader", "autograde", "8k", MNIST_ROOT="")
    finally:
        class_file.write_text(kept, encoding="utf-8")
    assert "Where is MNIST? Expected the folder with its four files" in said and "status 1" in said, said
