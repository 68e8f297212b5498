"""nbgrader's settings for a class; nbgrader reads them from the folder in which its commands are started.

teaching/handout.py copies this file into the folder of the class, where it is yours to change.
"""

import json
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SECONDS = 120  # for each cell that a student has written; a loop without an end is stopped then
SOURCE = HERE / "source"

c = get_config()  # noqa: F821, nbgrader defines it
c.CourseDirectory.root = str(HERE)
c.NbGrader.logfile = str(HERE / "nbgrader.log")

sys.path.insert(0, str(HERE))

# ``nbgrader autograde`` adds the cells with points that a student has deleted.
c.Autograde.sanitize_preprocessors = [
    "nbgrader.preprocessors.ClearOutput",
    "nbgrader.preprocessors.DeduplicateIds",
    "nbgrader.preprocessors.OverwriteKernelspec",
    "missing_cells.AddMissingCells",
    "nbgrader.preprocessors.OverwriteCells",
    "nbgrader.preprocessors.CheckCellMetadata",
]

# ``nbgrader export`` writes the table of points.
c.ExportApp.plugin_class = "points_table.PointsTable"

# Where the data are, as teaching/handout.py found them. The environment variable MNIST_ROOT goes before.
data = json.loads((HERE / "class.json").read_text(encoding="utf-8"))["data"]
if data and not os.environ.get("MNIST_ROOT"):
    os.environ["MNIST_ROOT"] = data
if "autograde" in sys.argv and not os.environ.get("MNIST_ROOT") and "rehearsal" not in sys.argv:
    sys.exit("Where is MNIST? Expected the folder with its four files, in class.json or in the variable MNIST_ROOT.")

# One thread, whoever grades: with another number, sums are rounded differently, and it is as if the seed were another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The cells with points take modules, data and limits from here, not from the student's folder.
os.environ["MNIST_HANDOUTS"] = str(SOURCE)


def seconds(cell) -> int:
    """Return how long a cell may run: the one that trains, as long as its task allows, and some time for the start."""
    training = re.search(r"hand_in.*task=\"([^\"]+)\"", cell.source)
    task = training[1] if training else ""
    limits = SOURCE / task / "tasks.json"
    if not limits.is_file():  # a student's own cell, or one for a task that was not handed out
        return SECONDS
    return 60 * json.loads(limits.read_text(encoding="utf-8"))[task]["minutes"] + 180


c.Execute.timeout_func = seconds

# nbgrader gives no points for a cell that has written to stderr, be it the warning of a library: leave that out.
c.IgnorePattern.enabled = True
c.IgnorePattern.pattern = "(?s)."
