"""The opening cells of the notebooks: alone in an empty folder, as in Colab, and in a clone.

The course's address is answered by a repository on this machine (git's ``insteadOf``), so the cells run as they stand.
"""

import json
import os
import re
import subprocess
import sys

import nbformat
import pytest
from address import NOTEBOOKS, ROOT, address

# In IPython, as in a notebook: the first cell so often, then the next one of each notebook, as if it alone came after.
OPEN = """
import json, os, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
cells = json.load(open(sys.argv[1]))
for cell in [cells[0][0]] * int(sys.argv[2]) + [second for _, second in cells]:
    shell.run_cell(cell).raise_error()
import model, torch, utils
print("ANSWER" + json.dumps([os.getcwd(), model.__file__, utils.__file__, torch.__file__]))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The environment in which git takes a repository with the files as they are here for the course's."""
    folder = tmp_path_factory.mktemp("served")
    git = ["git", "-c", "user.name=course", "-c", "user.email=course@localhost", "-c", "init.defaultBranch=main"]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    for command in (["init"], ["add", "."], ["commit", "-m", "as it is here"]):
        subprocess.run([*git, *command], cwd=folder, check=True, capture_output=True, timeout=60)
    insteadof = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{folder.as_uri()}.insteadOf"}
    return os.environ | insteadof | {"GIT_CONFIG_VALUE_0": address(), "MNIST_ROOT": "digits", "MPLBACKEND": "agg"}


def opened(folder, environment, scratch, notebooks=NOTEBOOKS[:1], times=1):
    """Run the opening cells in a new process in this folder; return what it says, and its errors."""
    read = [nbformat.read(path, 4).cells for path in notebooks]
    cells = [[cell.source for cell in each if cell.cell_type == "code"][:2] for each in read]
    (scratch / "cells.json").write_text(json.dumps(cells))
    command = [sys.executable, "-c", OPEN, str(scratch / "cells.json"), str(times)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    answer = re.search("ANSWER(.*)", done.stdout)
    return json.loads(answer[1]) if answer else None, done.stdout + done.stderr


@pytest.mark.slow
def test_alone_in_an_empty_folder_and_twice_and_in_a_new_session(served, tmp_path):
    folder, clone = tmp_path / "content", tmp_path / "content" / "tiny-mnist"
    folder.mkdir()
    where, said = opened(folder, served, tmp_path, NOTEBOOKS, times=2)
    assert where and where[:3] == [str(clone), str(clone / "model.py"), str(clone / "utils.py")], said
    assert where[3].startswith(sys.prefix)  # Colab's own PyTorch stays
    (clone / "utils.py").write_text((clone / "utils.py").read_text() + "\nMINE = 1\n")
    where, said = opened(folder, served, tmp_path)  # a new session on the same disk
    assert where and where[2] == str(clone / "utils.py") and "MINE" in (clone / "utils.py").read_text(), said


@pytest.mark.slow
@pytest.mark.parametrize("place", ["", "notebooks", "notebooks/answers"])
def test_in_a_clone_nothing_is_fetched(served, tmp_path, place):
    where, said = opened(ROOT / place, served | {"PATH": ""}, tmp_path, times=2)  # without git
    assert where and where[:3] == [str(ROOT / place), str(ROOT / "model.py"), str(ROOT / "utils.py")], said


@pytest.mark.slow
def test_from_the_folder_above_a_clone_nothing_is_fetched(served, tmp_path):
    above = tmp_path / "above"
    above.mkdir()
    (above / "my course").symlink_to(ROOT)
    where, said = opened(above, served | {"PATH": ""}, tmp_path, times=2)  # without git
    assert where and where[1:3] == [str(ROOT / "model.py"), str(ROOT / "utils.py")], said
    assert [path.name for path in above.iterdir()] == ["my course"]


@pytest.mark.slow
def test_without_a_network_one_clear_error(served, tmp_path):
    where, said = opened(tmp_path, served | {"GIT_CONFIG_KEY_0": "url.file:///nowhere/.insteadOf"}, tmp_path)
    assert where is None and "the course could not be fetched: is there a network?" in said


def test_the_lines_for_google_drive(tmp_path):
    """The cell of colab.md mounts the drive and lets results go there."""
    [cell] = re.findall(r"```\n(.+?)```", (ROOT / "notebooks" / "colab.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "google" / "colab").mkdir(parents=True)
    (tmp_path / "google" / "colab" / "drive.py").write_text("mounted = []\nmount = mounted.append\n")
    check = "\nassert drive.mounted == ['/content/drive']\nprint(os.environ['MNIST_RESULTS'])"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", cell + check], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "/content/drive/MyDrive/tiny-mnist", done.stderr
