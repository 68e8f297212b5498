"""Write the README's tables and its picture again, from the saved runs: python scripts/readme.py

Tests compare the tables with the runs; the picture is not compared.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from address import NOTEBOOKS, badge

from checks import number_format
from utils import RESULTS, load_run, load_runs, mean_accuracies, plot_runs

FORM = "<!-- {0}: written by scripts/readme.py -->\n(.*)<!-- end of {0} -->\n"
CHANGES = {
    "01_baseline": "nothing yet: the data, the training loop written out, LeNet-5",
    "02_skeleton": "no fully connected layers",
    "03_regularisation": "BatchNorm and dropout, one at a time",
    "04_target_20k": "the network and the target of the first assignment",
    "05_capacity": "half the parameters",
    "06_augmentation": "small random changes of the training images",
    "07_target_8k": "a schedule and averaged weights: the second assignment's target",
    "08_speed": "the time: in bfloat16, an epoch in less than half of it",
    "09_evidence": "the number of seeds: ten for each target; ten changes of the recipe",
    "10_mistakes": "the question: which digits are misread, and why",
    "11_your_turn": "everything, by you: an exercise that grades itself",
    "12_frontier": "the network: how few parameters are enough for 99.4 %",
}


def results() -> str:
    """Return the result table, in Markdown, as the saved runs have it."""
    budgets = {  # of each its studies, with the network's name
        "under 20,000": {"target-20k": "`Net20k`", "float32-20k": "`Net20k`", "best-20k": "`Best20k`"},
        "under 8,000": {"target-8k": "`Net8k`", "float32-8k": "`Net8k`", "best-8k": "`Best8k`"},
        "at most 3,000": {"tiny": "`NetTiny`", "tiny-shared": "... shared filters"},
    }
    logs = {"under 20,000": "others/assignment-20k", "under 8,000": "others/assignment-8k"}
    lines = ["| network | parameters | epochs | trained in | accuracy | seeds that hold |", "|---|---|---|---|---|---|"]
    for budget, networks in budgets.items():
        runs = {study: load_runs(study) for study in networks}
        if budget in logs:
            runs["log"] = [load_run(logs[budget])]
        lines.append(f"| **{budget}** | | | | | |")
        means = mean_accuracies(runs, may_differ=("epochs", "precision"))  # which have columns
        lines += [row(networks.get(study, "the assignment's log"), runs[study], means[study]) for study in runs]
    return "\n".join(lines) + "\n"


def row(name: str, runs: list[dict], means: list[float]) -> str:
    """Return one row of the result table, for runs of one network that differ in their seeds."""
    held = sum(min(run["history"]["test_accuracy"][-5:]) >= 99.4 for run in runs)
    mean = f"{np.mean(means):.2f}" + (f" ± {np.std(means, ddof=1):.2f}" if len(runs) > 1 else "")
    devices = {run.get("device", "").removeprefix("cpu (").removesuffix(")") for run in runs}
    trained = ", ".join([number_format(runs[0]), *sorted(devices - {""})])
    return f"| {name} | {runs[0]['parameters']:,} | {runs[0]['epochs']} | {trained} | {mean} | {held} of {len(runs)} |"


def course() -> str:
    """Return the table of the notebooks, with the minutes that each takes under nbval."""
    measured = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    lines = ["| notebook | what changes | minutes | |", "|---|---|---|---|"]
    for path in NOTEBOOKS:
        number, _, title = path.stem.partition("_")
        title = f"{int(number)} {title.replace('_', ' ').capitalize()}"
        minutes = measured["notebook_minutes"][path.stem]
        lines.append(f"| [{title}](notebooks/{path.name}) | {CHANGES[path.stem]} | {minutes:.1f} | {badge(path)} |")
    of = measured["machine"]["tests"]
    machine = f"{of['processor']}, {of['threads']} threads, PyTorch {of['torch']}"
    whole = f"All the tests, with the notebooks, take {measured['nbval_minutes']:.0f}."
    return "\n".join(lines) + f"\n\nMinutes on two processor cores ({machine}). {whole}\n"


def speed() -> str:
    """Return the table of how many times faster than the usual loop an epoch is, by processor and number format."""
    measured = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    ladder = {network: {"bfloat16": ratio} for network, ratio in measured["spread"]["epoch_ratio"].items()}
    first = ladder | {"device": measured["machine"]["epochs"]["processor"]}
    rows = [first, *(row for row in measured["formats"] if row["device"] != first["device"])]
    lines = ["| processor, two cores | format | `Net8k` | `Net20k` |", "|---|---|---|---|"]
    for row in rows:
        for kind in ("bfloat16", "float32"):
            if kind in row["Net8k"]:
                ratios = (f"{row[network][kind]['median']:.2f}" for network in ("Net8k", "Net20k"))
                lines.append(f"| {row['device']} | {kind} | {' | '.join(ratios)} |")
    return "\n".join(lines) + "\n"


TABLES = {"results": results, "course": course, "speed": speed}


def section(name: str) -> re.Match:
    """Find the table of that name in README.md: group 1 is what it holds now."""
    return re.search(FORM.format(name), (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


if __name__ == "__main__":
    for name, table in TABLES.items():
        found = section(name)
        text = found.string[: found.start(1)] + table() + found.string[found.end(1) :]
        (ROOT / "README.md").write_text(text, encoding="utf-8", newline="\n")
    labels = {
        "steps/target-20k": "Net20k",
        "steps/target-8k": "Net8k",
        "others/assignment-20k": "20k assignment",
        "others/assignment-8k": "8k assignment",
    }
    runs = [load_run(name) | {"name": label} for name, label in labels.items()]
    plot_runs(runs, target=99.4, may_differ=("epochs", "precision"))  # a log does not tell its format
    plt.gcf().savefig(RESULTS / "curves.png", dpi=150, bbox_inches="tight")
