"""Execute a notebook, show what it prints as it comes, and leave a page to read.

    python scripts/page.py notebooks/07_target_8k.ipynb

The page is build/07_target_8k.html. Its runs are written to build/ too, unless MNIST_RESULTS names another folder.
"""

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import nbformat
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ExecutePreprocessor
from pace import about, minutes_here

from files import write_whole
from mnist import find_mnist


class Aloud(ExecutePreprocessor):
    """Executes a notebook, and shows its headings and what its cells print while they run."""

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            print(msg["content"]["text"], end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def show_heading(cell, cell_index):
    if cell.cell_type == "markdown" and cell.source.startswith("#"):
        print(f"\n{cell.source.splitlines()[0]}", flush=True)


def main(path: Path) -> int:
    os.environ.setdefault("MNIST_RESULTS", "build")
    sys.stdout.reconfigure(errors="replace")  # a file on Windows may not know every sign
    if not sys.stdout.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # in a file, a progress bar would be written over and over
    notebook = nbformat.read(path, as_version=4)
    try:
        folder = find_mnist()  # downloads it, with a bar
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    os.environ["MNIST_ROOT"] = str(folder.resolve()) if folder else "digits"  # the notebook need not search again
    takes = minutes_here().get(path.stem) if folder else None
    print(f"{path.name} takes {about(takes)} here." if takes else f"{path.name} is executed.", flush=True)
    started = time.perf_counter()
    # What a cell writes over, such as a progress bar, is on the screen only, and not on the page.
    run = Aloud(timeout=None, on_cell_start=show_heading, coalesce_streams=True)
    resources, failure = {"metadata": {"name": path.stem, "path": str(path.parent)}}, None
    try:
        run.preprocess(notebook, resources)
    except (CellExecutionError, DeadKernelError, KeyboardInterrupt) as error:
        failure = error
    for cell in notebook.cells:  # the first one, which finds the course, is hidden in Jupyter and in Colab, too
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata["transient"] = {"remove_source": True}  # what nbconvert's templates look at
    page, _ = HTMLExporter().from_notebook_node(notebook, resources)
    target = ROOT / "build" / f"{path.stem}.html"
    target.parent.mkdir(exist_ok=True)
    write_whole({target: page.encode()})
    print(f"\nThe page is build/{target.name}. It took {about((time.perf_counter() - started) / 60)}.")
    if failure:
        print(f"The page ends at a cell that was not finished: {failure!r}\n{failure}", file=sys.stderr)
    return int(failure is not None)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        raise SystemExit(
            f"Expected a notebook, as in: python scripts/page.py notebooks/07_target_8k.ipynb; got {sys.argv[1:]}"
        )
    raise SystemExit(main(Path(sys.argv[1]).resolve()))
