"""Change the course's public address everywhere at once: python tests/address.py https://github.com/NAME/REPOSITORY

The address stands in pyproject.toml; the copies in README.md and in the notebooks (which need it in Colab, where they
are alone), and the links that open the notebooks in Colab, are rewritten with it. test_repository.py fails when a copy
differs.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = "https://github.com/"
IN_COLAB = "github/{}"
FORM = r"https://github\.com/[\w.-]+/[\w.-]*\w"


def address() -> str:
    """Return the course's address, as pyproject.toml has it."""
    return re.search(FORM, (ROOT / "pyproject.toml").read_text(encoding="utf-8")).group()


def badge(path: Path) -> str:
    """Return the badge, in Markdown, that opens a notebook in Colab."""
    link = f"https://colab.research.google.com/{IN_COLAB.format(address().removeprefix(HOST))}/blob/main/notebooks/{path.name}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"


def copies() -> list[Path]:
    """Return the files that hold the address or a part of it."""
    return [ROOT / "pyproject.toml", ROOT / "README.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))]


if __name__ == "__main__":
    if len(sys.argv) != 2 or not re.fullmatch(FORM, sys.argv[1]):
        sys.exit("usage: python tests/address.py https://github.com/NAME/REPOSITORY")
    old, new = address(), sys.argv[1]
    for path in copies():
        text = path.read_text(encoding="utf-8").replace(old, new)
        text = text.replace(*(IN_COLAB.format(of.removeprefix(HOST)) for of in (old, new)))
        path.write_text(text, encoding="utf-8", newline="\n")
