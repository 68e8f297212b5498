"""Make the course's website, in build/website/: python scripts/website.py

Its pages are README.md and the notebooks, as they are, and the drawing page. Needs no network; a warning is an error.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from address import ROOT
from sphinx.cmd.build import build_main


def main(target: Path) -> int:
    if target.exists() and not (target / "objects.inv").is_file():
        raise SystemExit(f"{target} exists, and is not a website made by this script: expected another folder.")
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder) / "pages"
        options = ["-b", "html", "-q", "-W", "--keep-going", "-c", str(ROOT / "website"), "-d", f"{folder}/doctrees"]
        if failed := build_main([*options, str(ROOT), str(pages)]):
            return failed
        shutil.copy(pages / "README.html", pages / "index.html")  # what a browser asks for first
        shutil.copytree(ROOT / "draw", pages / "draw")
        draw = pages / "draw" / "index.html"  # which has no link back where it stands alone
        text = draw.read_text(encoding="utf-8").replace(
            "<h1>", '<p><a href="../index.html">Tiny MNIST</a></p>\n<h1>', 1
        )
        draw.write_text(text, encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(pages, target)
    print(f"The website is in {target}; it starts with index.html.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "website"))
