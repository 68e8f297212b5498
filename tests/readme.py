"""Write the README's two tables and its picture again, from the saved runs: python tests/readme.py

Tests compare the tables with the runs; the picture is not compared.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib  # noqa: E402

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from utils import RESULTS, load_run, mean_accuracy, plot_runs  # noqa: E402

FORM = "<!-- {0}: written by tests/readme.py -->\n(.*)<!-- end of {0} -->\n"


def results() -> str:
    """Return the result table, in Markdown, as the saved runs have it."""
    lines = [
        "| budget | network | parameters | epochs | seeds | mean accuracy of the last five epochs "
        "| lowest of the last five, any seed | all of the last five at 99.40 or more |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for budget, name in (("under 20,000", "target-20k"), ("under 8,000", "target-8k")):
        runs = [load_run(path.stem) for path in sorted(RESULTS.glob(f"{name}-seed*.json"))]
        log = load_run(name.replace("target", "assignment"))
        lines += [row(budget, f"`{log['model']}`", runs), row("", "the assignment's own log", [log])]
    return "\n".join(lines) + "\n"


def row(budget: str, label: str, runs: list[dict]) -> str:
    """Return one row of the result table, for runs of one network that differ in their seeds."""
    means = [mean_accuracy(run, 5) for run in runs]
    lowest = [min(run["history"]["test_accuracy"][-5:]) for run in runs]
    mean = f"{np.mean(means):.2f}" if len(runs) == 1 else f"**{np.mean(means):.2f}** ± {np.std(means, ddof=1):.2f}"
    cells = (
        budget, label, f"{runs[0]['parameters']:,}", runs[0]["epochs"], len(runs), mean, f"{min(lowest):.2f}",
        f"{sum(value >= 99.4 for value in lowest)} of {len(runs)}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)).lstrip() + " |"


def times() -> str:
    """Return the table of training times: the runs that each notebook trains, and their seconds as recorded."""
    lines = ["| notebook | runs trained | minutes of training and testing |", "|---|---|---|"]
    total = 0.0
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        names = re.findall(r'name=f?\\"([\w{}-]+)\\"', path.read_text(encoding="utf-8"))
        runs = [load_run(name.replace("{seed}", "0")) for name in names]
        seconds = sum(run["seconds"] for run in runs)
        total += seconds
        lines.append(f"| {path.stem} | {len(runs)} | {seconds / 60:.1f} |")
    lines.append(f"| all | | {total / 60:.1f} |")
    lines.append(
        f"\nMachine: {runs[0]['device']}, {runs[0]['threads']} threads, PyTorch {runs[0]['versions']['torch']}."
    )
    return "\n".join(lines) + "\n"


TABLES = {"results": results, "times": times}


def section(name: str) -> re.Match:
    """Find the table of that name in README.md: group 1 is what it holds now."""
    return re.search(FORM.format(name), (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


if __name__ == "__main__":
    for name, table in TABLES.items():
        found = section(name)
        text = found.string[: found.start(1)] + table() + found.string[found.end(1) :]
        (ROOT / "README.md").write_text(text, encoding="utf-8", newline="\n")
    plot_runs(
        [load_run(name) for name in ("target-20k-seed0", "target-8k-seed0", "assignment-20k", "assignment-8k")],
        target=99.4,
    )
    plt.gcf().savefig(RESULTS / "curves.png", dpi=150)
