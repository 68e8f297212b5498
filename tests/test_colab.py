"""The opening cells of the notebooks as Colab runs them: alone in an empty folder, with PyTorch already there.

The course's address is answered by a clone on this machine (git's ``insteadOf``), so the cells are run as they stand.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from address import NOTEBOOKS, ROOT, address

# Runs the first cell as often as it is told to, and then the next one of each notebook, as if it alone came after the
# first; notes what is started, and lets only git run.
COLAB = """
import importlib.util, json, os, subprocess, sys
import google.colab
notebooks, times, answer = json.load(open(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
started, run, find_spec = [], subprocess.run, importlib.util.find_spec

def noted(command, **options):
    started.append(command)
    assert options["timeout"] > 0 and options["check"]
    if command[0] == "git":
        return run(command, **options)

subprocess.run = noted
importlib.util.find_spec = lambda name: None if name == "torchsummary" else find_spec(name)
scope = {"__name__": "__main__"}
for _ in range(times):
    exec(notebooks[0]["cells"][0], scope)
subprocess.run = run
for notebook in notebooks:
    exec(compile(notebook["cells"][1], notebook["name"], "exec"), dict(scope))
import matplotlib, model, torch, utils
files = {module.__name__: module.__file__ for module in (model, utils, torch)}
json.dump({"started": started, "files": files, "folder": os.getcwd()}, open(answer, "w"))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A repository with the files as they are here, and the environment in which git takes it for the course's."""
    folder = tmp_path_factory.mktemp("served")
    git = ["git", "-c", "user.name=course", "-c", "user.email=course@localhost", "-c", "init.defaultBranch=main"]
    quiet = {"cwd": folder, "check": True, "capture_output": True, "timeout": 60}
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], **(quiet | {"cwd": ROOT}), text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    for command in (["init"], ["add", "."], ["commit", "-m", "as it is here"]):
        subprocess.run([*git, *command], **quiet)
    stand_in = folder / "stand-in" / "google" / "colab"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text("")
    return os.environ | {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{folder.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": address(),
        "PYTHONPATH": str(folder / "stand-in"),
        "MNIST_ROOT": "digits",
        "MPLBACKEND": "agg",
    }


def in_colab(folder: Path, notebooks: list[Path], environment: dict, times: int = 1) -> dict:
    """Run the opening cells in a new process, and return what they started and which files they use."""
    opening = [{"name": notebook.name, "cells": opening_cells(notebook)} for notebook in notebooks]
    (folder / "opening.json").write_text(json.dumps(opening))
    command = [sys.executable, "-c", COLAB, "opening.json", str(times), str(folder / "answer.json")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "answer.json").read_text())


def opening_cells(notebook: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"][:2]


@pytest.mark.slow
@pytest.mark.processes
def test_the_opening_cells_alone_in_an_empty_folder(served, tmp_path):
    """One process for all notebooks: it runs the first cell once, because that is the same in all of them."""
    first = opening_cells(NOTEBOOKS[0])[0]
    assert [notebook.name for notebook in NOTEBOOKS if opening_cells(notebook)[0] != first] == []
    answer = in_colab(tmp_path, NOTEBOOKS, served)
    clone = tmp_path / Path(address()).name
    assert Path(answer["folder"]) == clone
    assert answer["files"]["utils"] == str(clone / "utils.py") and answer["files"]["model"] == str(clone / "model.py")
    assert Path(answer["files"]["torch"]).is_relative_to(Path(sys.prefix))
    cloned, installed = answer["started"]
    assert cloned[:2] == ["git", "clone"]
    # Colab's own PyTorch stays: only what is missing is installed, without what it would bring along.
    assert installed[1:4] == ["-m", "pip", "install"] and installed[-1] == "torchsummary" and "--no-deps" in installed


@pytest.mark.slow
@pytest.mark.processes
def test_a_second_run_does_not_clone_again(served, tmp_path):
    notebooks = NOTEBOOKS[:1]
    twice = in_colab(tmp_path, notebooks, served, times=2)
    assert [command[0] for command in twice["started"]] == ["git", sys.executable]
    edited = tmp_path / Path(address()).name / "utils.py"
    edited.write_text(edited.read_text() + "\nMINE = 1\n")
    later = in_colab(tmp_path, notebooks, served)  # a new session on the same disk
    assert [command[0] for command in later["started"]] == [sys.executable]
    assert later["files"]["utils"] == str(edited) and "MINE" in edited.read_text()


def test_the_lines_for_google_drive(tmp_path):
    """README's cell mounts the drive and lets results go there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [cell] = re.findall(r"```\n(import os\nfrom google\.colab.+?)```", text, re.DOTALL)
    stand_in = tmp_path / "google" / "colab"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text("")
    (stand_in / "drive.py").write_text("mounted = []\nmount = mounted.append\n")
    check = "\nassert drive.mounted == ['/content/drive']\nprint(os.environ['MNIST_RESULTS'])"
    done = subprocess.run(
        [sys.executable, "-c", cell + check],
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "/content/drive/MyDrive/tiny-mnist", done.stderr
