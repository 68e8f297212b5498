"""Change the course's public address everywhere at once: python scripts/address.py https://github.com/NAME/REPOSITORY

The address stands in pyproject.toml; the copies in README.md and in the notebooks (which need it in Colab, where they
are alone), and the links that open the notebooks in Colab, are rewritten with it. test_repository.py fails when a copy
differs.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = "https://github.com/"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ANSWERS = sorted((ROOT / "notebooks" / "answers").glob("*.ipynb"))
FORM = r"https://github\.com/[\w.-]+/[\w.-]*\w"


def address() -> str:
    """Return the course's address, as pyproject.toml has it."""
    return re.search(FORM, (ROOT / "pyproject.toml").read_text(encoding="utf-8")).group()


def badge(path: Path) -> str:
    """Return the badge, in Markdown, that opens a notebook in Colab."""
    name = address().removeprefix(HOST)
    link = f"https://colab.research.google.com/github/{name}/blob/main/notebooks/{path.name}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"


def copies() -> list[Path]:
    """Return the files that hold the address or a part of it."""
    return [ROOT / "pyproject.toml", ROOT / "README.md", *NOTEBOOKS, *ANSWERS]


if __name__ == "__main__":
    new = sys.argv[-1].removesuffix(".git")  # with which git clones
    if len(sys.argv) != 2 or not re.fullmatch(FORM, new):
        sys.exit("usage: python scripts/address.py https://github.com/NAME/REPOSITORY")
    old, new = (of.removeprefix(HOST) for of in (address(), new))
    for path in copies():
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(old, new), encoding="utf-8", newline="\n")
