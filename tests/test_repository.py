"""What the notebooks and README.md say about the repository is so."""

import re
import subprocess
import sys

import pytest
import readme
from address import FORM, ROOT, address, copies


def test_one_address_everywhere():
    for path in copies():
        assert set(re.findall(FORM, path.read_text(encoding="utf-8"))) == {address()}, path


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
    subprocess.run([sys.executable, script, new], check=True, timeout=60)
    changed = [path for path in copies() if address() in path.read_text(encoding="utf-8")]
    for path in changed:
        text = (tmp_path / path.relative_to(ROOT)).read_text(encoding="utf-8")
        assert address() not in text and new in text


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
