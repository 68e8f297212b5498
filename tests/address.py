"""Change the course's public address everywhere at once: python tests/address.py https://github.com/NAME/REPOSITORY

The address stands in pyproject.toml; the copies in README.md and in the notebooks (which need it in Colab, where they
are alone) are rewritten with it. test_repository.py fails when a copy differs.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORM = r"https://github\.com/[\w.-]+/[\w.-]*\w"


def address() -> str:
    """Return the course's address, as pyproject.toml has it."""
    return re.search(FORM, (ROOT / "pyproject.toml").read_text(encoding="utf-8")).group()


def copies() -> list[Path]:
    """Return the files that hold the address or a part of it."""
    return [ROOT / "pyproject.toml", ROOT / "README.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))]


if __name__ == "__main__":
    if len(sys.argv) != 2 or not re.fullmatch(FORM, sys.argv[1]):
        sys.exit("usage: python tests/address.py https://github.com/NAME/REPOSITORY")
    old, new = address(), sys.argv[1]
    for path in copies():
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(old, new), encoding="utf-8", newline="\n")
