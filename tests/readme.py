"""Write the README's tables and its picture again, from the saved runs: python tests/readme.py

Tests compare the tables with the runs; the picture is not compared.
"""

import json
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
    for budget, size in (("under 20,000", "20k"), ("under 8,000", "8k")):
        log, target, best = load_run(f"assignment-{size}"), seeds(f"target-{size}"), seeds(f"best-{size}")
        lines += [row(budget, f"`{target[0]['model']}`", target), row("", "the assignment's own log", [log])]
        lines.append(row("", f"`{best[0]['model']}`", best))
    tiny, shared = seeds("tiny"), seeds("tiny-shared")
    lines.append(row("at most 3,000", f"`{tiny[0]['model']}`", tiny))
    lines.append(row("", f"`{shared[0]['model']}` with shared filters", shared))
    return "\n".join(lines) + "\n"


def seeds(name: str) -> list[dict]:
    """Return the saved runs of one network and recipe, which differ in their seeds."""
    return [load_run(path.stem) for path in sorted(RESULTS.glob(f"{name}-seed*.json"))]


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


def speed() -> str:
    """Return the table of measured speeds."""
    measured = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    ratio, spread, to_99 = measured["epoch_ratio"], measured["spread"], measured["time_to_99"]
    ours, mark = to_99["course"], to_99["train_mnist_fast"]
    lines = ["| compared in turn on one machine | result | smallest to largest |", "|---|---|---|"]
    for network in ratio:
        of = spread["epoch_ratio"][network]
        lines.append(
            f"| an epoch of `{network}` against the usual loop | {ratio[network]:.2f} times faster "
            f"| {of['smallest']:.2f} to {of['largest']:.2f} ({of['n']} repetitions) |"
        )
    of = spread["time_to_99_4_ratio"]
    never = None in [run["seconds"] for run in measured["time_to_99_4"]["usual"]]
    factor = f"{of['median']:.1f} times faster"
    if never:  # the ratios then count its whole time
        factor = f"at least {factor}: the usual loop never held it in its 15 epochs"
    lines.append(
        f"| `Net8k` to 99.4 %, held to the end, against the usual loop with the assignment's optimizer and schedule "
        f"| {factor} "
        f"| {of['smallest']:.1f} to {of['largest']:.1f} ({of['n']} seeds) |"
    )
    of = spread["time_to_99_share"]
    lines.append(
        f"| `NetFast` to {ours['mean_accuracy']:.2f} % (sd {ours['sd_accuracy']:.2f}) against train_mnist_fast "
        f"({mark['mean_accuracy']:.2f} %, sd {mark['sd_accuracy']:.2f}) | {100 * of['median']:.0f} % of the time: "
        f"{ours['seconds']['median']:.1f} s against {mark['seconds']['median']:.1f} s "
        f"| {100 * of['smallest']:.0f} % to {100 * of['largest']:.0f} % ({of['n']} seeds) |"
    )
    return "\n".join(lines) + f"\n\nMachine: {machine(measured, 'epochs')}.\n"


def machine(measured: dict, part: str) -> str:
    """Return what a part of the benchmark ran on, in words."""
    of = measured["machine"][part]
    return f"{of['processor']}, {of['threads']} threads, PyTorch {of['torch']}"


def times() -> str:
    """Return the table of the minutes that each notebook takes under nbval."""
    measured = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    lines = ["| notebook | minutes |", "|---|---|"]
    lines += [f"| {name} | {minutes:.1f} |" for name, minutes in measured["notebook_minutes"].items()]
    lines.append(f"| `pytest --nbval`, with all other tests | {measured['nbval_minutes']:.1f} |")
    peak = f"All its processes together took about {measured['peak_memory_mb']:,.0f} MB of memory"
    return "\n".join(lines) + f"\n\nMachine: {machine(measured, 'tests')}. {peak} ({machine(measured, 'memory')}).\n"


TABLES = {"results": results, "speed": speed, "times": times}


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
