"""Make a class, or one more assignment in it, and the folder that its students get.

    python teaching/handout.py ../class 8k

The name is that of a task in tasks.json. The folder ../class is nbgrader's; ../class/release/8k, and 8k.zip beside it,
are for the students: notebook 11 without its solution, what it imports, and the records that its picture needs.
"""

import argparse
import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from address import address

from files import write_whole
from mnist import find_mnist

NOTEBOOK = ROOT / "notebooks" / "11_your_turn.ipynb"
RESULTS = ROOT / "notebooks" / "results"
TASKS = json.loads((ROOT / "tasks.json").read_text(encoding="utf-8"))
READ_ME = """Your task is in 11_your_turn.ipynb.

1. Unpack this folder, and open a terminal in it. With Python 3.10 or newer:
   python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/jupyter lab
   (On Windows: py -m venv .venv, and so on with .venv\\Scripts\\ instead of .venv/bin/.)
   In Colab: upload the packed folder ({task}.zip) to the files on the left, open the notebook from your computer, and
   run !unzip -q {task}.zip in a new first cell, which you delete again.
2. Work through the notebook. It downloads MNIST by itself.
3. Hand in 11_your_turn.ipynb, under this name, and nothing else: code in other files is not there when it is graded.
   Do not delete cells; add as many as you like.
"""


def imported(names: list[str]) -> set[str]:
    """Return these modules of the course, and those of its modules that they import."""
    found = set()
    while names:
        name = names.pop()
        if name not in found and (ROOT / f"{name}.py").is_file():
            found.add(name)
            for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names += [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names.append(node.module or "")
    return found


def in_words(limits: dict) -> str:
    """Return a task as a sentence."""
    epochs = "the last epoch" if limits["last"] == 1 else f"each of the last {limits['last']} epochs"
    layers = "" if limits["fully_connected"] else ", without fully connected layers"
    return (
        f"**Your task: at least {limits['accuracy']:g}\u00a0% in {epochs}, with at most {limits['max_parameters']:,} "
        f"parameters and {limits['max_epochs']} epochs{layers}.** The lines of the two cells are for you to write."
    )


def notebook_for(task: str) -> str:
    """Return notebook 11 for this task: without what it says of our solution, and with links to the public course.

    Raises ValueError if a cell does not give the points that nbgrader expects of it.
    """
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    limits, named = TASKS[task], 0
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            said = [part for part in text.split("\n\n") if not part.startswith(("As published", "[![Open in Colab]"))]
            if "## Target" in said:
                said.append(in_words(limits))
            text = re.sub(r"\]\(([^)#:\s]+)\)", rf"]({address()}/blob/main/notebooks/\1)", "\n\n".join(said))
        else:
            text, count = re.subn(r'(task=|TASKS\[)"warm-up"', rf'\1"{task}"', text)
            named += count
            if limits.get("images") == "digits":
                text = text.replace("load_mnist(validation", 'load_mnist("digits", validation')
            graded = cell["metadata"].get("nbgrader", {})
            if graded.get("grade") and f", {graded['points']}, task=" not in text:
                raise ValueError(f"the cell {graded['grade_id']} and its metadata name other points: {text}")
        cell["source"] = text.splitlines(keepends=True)
    if named != 6:
        raise ValueError(f"expected notebook 11 to name its task in six cells, found {named}")
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def write_source(folder: Path, task: str) -> None:
    """Write what nbgrader makes the students' folder of."""
    files = {folder / NOTEBOOK.name: notebook_for(task).encode()}
    files[folder / "READ_ME.txt"] = READ_ME.replace("{task}", task).encode()
    kept = [ROOT / f"{name}.py" for name in imported(["grade", "hand_in", "plots", "utils"])]
    kept += [ROOT / name for name in ("tasks.json", "requirements.txt", "LICENSE")]
    kept += [RESULTS / "published.json", *RESULTS.glob("target-8k/*.json"), *RESULTS.glob("target-20k/*.json")]
    files |= {folder / path.relative_to(ROOT): path.read_bytes() for path in kept}
    shutil.rmtree(folder, ignore_errors=True)
    write_whole(files)


def write_class(place: Path, needs_mnist: bool) -> None:
    """Write what belongs to the class itself, where it is not there yet: what a teacher has changed stays."""
    settings = place / "class.json"
    data = json.loads(settings.read_text(encoding="utf-8"))["data"] if settings.is_file() else None
    if needs_mnist and not data:
        found = find_mnist()  # downloads it, with a bar, if it is not here
        data = str(found.resolve()) if found else None
        if data is None:
            print(f"MNIST is not here. Before you grade, name its folder in {settings}.")
    files = {path.name: path.read_bytes() for path in (ROOT / "teaching").glob("*.py") if path.name != "handout.py"}
    files = {place / name: content for name, content in files.items() if not (place / name).exists()}
    write_whole(files | {settings: json.dumps({"data": data}, indent=1).encode() + b"\n"})


def main(place: Path, task: str, force: bool) -> int:
    if importlib.util.find_spec("nbgrader") is None:
        raise SystemExit("nbgrader is missing: pip install -r requirements-teaching.txt")
    if place.exists() and any(place.iterdir()) and not (place / "class.json").is_file():
        raise SystemExit(f"{place} holds other things: expected a new folder, or one that this command has made.")
    if (place / "source" / task).exists() and not force:
        raise SystemExit(
            f"{task} was handed out before. --force makes it again; students who have it need the new one."
        )
    write_class(place, needs_mnist="images" not in TASKS[task])
    write_source(place / "source" / task, task)
    command = [sys.executable, "-m", "nbgrader", "generate_assignment", task, "--force", "--log-level=WARN"]
    if failed := subprocess.run(command, cwd=place, check=False).returncode:
        return failed
    shutil.make_archive(str(place / task), "zip", place / "release", task)
    print(f"The students' folder is {place / 'release' / task}; packed, it is {place / f'{task}.zip'}.")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the folder of the class")
    parser.add_argument("task", choices=TASKS, help="the task that is handed out")
    parser.add_argument("--force", action="store_true", help="make an assignment again")
    asked = parser.parse_args()
    raise SystemExit(main(asked.folder.resolve(), asked.task, asked.force))
