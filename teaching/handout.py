"""Make a class, or one more assignment in it, and the folder that its students get.

    python teaching/handout.py ../class 8k

The name is that of a task in tasks.json. The folder ../class is nbgrader's; ../class/release/8k, and 8k.zip beside it,
are for the students: notebook 11 without its solution, what it imports, and the records that its picture needs.
"""

import argparse
import ast
import importlib.util
import json
import os
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


def notebook_for(task: str) -> str:
    """Return notebook 11 with this task, and with links that lead to the course's public address."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    changed = 0
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text = re.sub(r"\]\(([^)#:\s]+)\)", rf"]({address()}/blob/main/notebooks/\1)", text)
        else:
            text, count = re.subn(r'(task=|TASKS\[)"warm-up"', rf'\1"{task}"', text)
            changed += count
        cell["source"] = text.splitlines(keepends=True)
    assert changed == 6, "notebook 11 names its task in the student's cell, and in five with points"
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def write_source(folder: Path, task: str) -> None:
    """Write what nbgrader makes the students' folder of."""
    files = {folder / NOTEBOOK.name: notebook_for(task).encode()}
    kept = [ROOT / f"{name}.py" for name in imported(["grade", "hand_in", "plots", "utils"])]
    kept += [ROOT / name for name in ("tasks.json", "requirements.txt", "LICENSE")]
    kept += [RESULTS / "published.json", *RESULTS.glob("target-8k/*.json"), *RESULTS.glob("target-20k/*.json")]
    files |= {folder / path.relative_to(ROOT): path.read_bytes() for path in kept}
    shutil.rmtree(folder, ignore_errors=True)
    write_whole(files)


def main(place: Path, task: str) -> int:
    if importlib.util.find_spec("nbgrader") is None:
        raise SystemExit("nbgrader is missing: pip install -r requirements-teaching.txt")
    if place.exists() and any(place.iterdir()) and not (place / "class.json").is_file():
        raise SystemExit(f"{place} holds other things: expected a new folder, or one that this command has made.")
    data = find_mnist()  # downloads it, with a bar; or says that there are only the digits
    asked = os.environ.get("MNIST_ROOT")
    folder = {"class.json": json.dumps({"data": str(data.resolve()) if data else asked}, indent=1).encode() + b"\n"}
    folder |= {path.name: path.read_bytes() for path in (ROOT / "teaching").glob("*.py") if path.name != "handout.py"}
    write_whole({place / name: content for name, content in folder.items() if not (place / name).exists()})
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
    asked = parser.parse_args()
    raise SystemExit(main(asked.folder.resolve(), asked.task))
