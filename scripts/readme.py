"""Write the README's tables and pictures, and the line at the top of each notebook: python scripts/readme.py

Tests compare the tables and the lines with the saved runs; the pictures are not compared.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["font.size"] = 12  # as in the notebooks

import matplotlib.pyplot as plt
import numpy as np
from address import NOTEBOOKS, badge

from checks import number_format
from plots import plot_runs
from utils import RESULTS, load_run, load_runs, mean_accuracies

FORM = "<!-- {0}: written by scripts/readme.py -->\n(.*)<!-- end of {0} -->\n"
COURSE = {  # of each notebook: what changes, and the records of the network that it comes to, if there is a new one
    "01_baseline": ("nothing yet: the data, the loop, LeNet-5", "steps/lenet5"),
    "02_skeleton": ("no fully connected layers", "steps/skeleton"),
    "03_regularisation": ("BatchNorm; dropout", "steps/skeleton-batchnorm"),
    "04_augmentation": ("small random changes of the images", "steps/skeleton-augmented"),
    "05_schedule": ("a falling learning rate, averaged weights", "steps/skeleton-average"),
    "06_target_20k": ("the first assignment's network", "target-20k"),
    "07_target_8k": ("the second assignment's network", "target-8k"),
    "08_speed": ("the time: an epoch in less than half of it", None),
    "09_evidence": ("the number of seeds: what is more than chance?", None),
    "10_mistakes": ("the question: which digits are misread, and why", None),
    "11_your_turn": ("everything, by you: it grades itself", None),
    "12_frontier": ("the network: how few parameters are enough?", "tiny-shared"),
    "13_other_hands": ("the digits: on paper, drawn, and other people's", None),
}


def network_of(path: Path) -> tuple[int, float] | None:
    """Return parameters and mean accuracy of the network that a notebook comes to, if it comes to a new one."""
    study = COURSE[path.stem][1]
    if study is None:
        return None
    runs = [load_run(study)] if "/" in study else load_runs(study)
    [means] = mean_accuracies({study: runs}).values()
    return runs[0]["parameters"], np.mean(means)


def title(path: Path) -> str:
    number, _, words = path.stem.partition("_")
    return f"{int(number)} {words.replace('_', ' ').capitalize()}"


def minutes_to_read(path: Path) -> int:
    """Return how long the text of a page takes at 180 words a minute."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    words = " ".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown").split()
    return max(1, round(len(words) / 180))


def place(path: Path) -> str:
    """Return the line in a notebook that says where in the course it stands."""
    number = NOTEBOOKS.index(path)
    parts = [f"**Notebook {number + 1} of {len(NOTEBOOKS)}**", f"{minutes_to_read(path)} minutes to read"]
    if number:
        before = NOTEBOOKS[number - 1]
        parts.append(f"before: [{title(before)}]({before.name})")
        parameters, accuracy = next(filter(None, map(network_of, NOTEBOOKS[number - 1 :: -1])))
        parts.append(f"so far: {parameters:,} parameters, {accuracy:.2f}\u00a0%")  # never broken
    if number + 1 < len(NOTEBOOKS):
        after = NOTEBOOKS[number + 1]
        parts.append(f"next: [{title(after)}]({after.name})")
    return " · ".join(parts)


def results() -> str:
    """Return the result table, in Markdown, as the saved runs have it."""
    budgets = {  # of each its studies, with the network's name
        "under 20,000": {"target-20k": "`Net20k`", "float32-20k": "`Net20k`", "best-20k-elastic": "`Best20k`"},
        "under 8,000": {"target-8k": "`Net8k`", "float32-8k": "`Net8k`", "best-8k-elastic": "`Best8k`"},
        "at most 3,000": {"tiny": "`NetTiny`", "tiny-shared": "`NetTiny`, 28 shared", "loop": "`NetLoop`"},
    }
    logs = {"under 20,000": "others/assignment-20k", "under 8,000": "others/assignment-8k"}
    lines = ["| network | accuracy | parameters | epochs | seeds that hold | trained in |", "|---|---|---|---|---|---|"]
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
    figures = [name, mean, f"{runs[0]['parameters']:,}", str(runs[0]["epochs"]), f"{held} of {len(runs)}", trained]
    return f"| {' | '.join(figures)} |"


def course() -> str:
    """Return the map of the course: each notebook, the network that it comes to, and the minutes that it takes."""
    measured = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    lines = ["| notebook | what changes | parameters | accuracy | minutes to read, run | |"]
    lines.append("|---|---|---|---|---|---|")
    for path in NOTEBOOKS:
        network = network_of(path)
        reached = [f"{network[0]:,}", f"{network[1]:.2f}"] if network else ["", ""]
        minutes = f"{minutes_to_read(path)}, {measured['notebook_minutes'][path.stem]:.1f}"
        words = [f"[{title(path)}](notebooks/{path.name})", COURSE[path.stem][0], *reached, minutes]
        lines.append(f"| {' | '.join(words)} | {badge(path)} |")
    of = measured["machine"]["tests"]
    machine = f"{of['processor']}, {of['threads']} threads, PyTorch {of['torch']}"
    whole = f"All the tests, with the notebooks, take {measured['nbval_minutes']:.0f} minutes."
    return "\n".join(lines) + f"\n\nThe minutes to run are those on two processor cores ({machine}). {whole}\n"


def draw_course() -> None:
    """Draw the path of the course: parameters against accuracy, from notebook to notebook."""
    points = {int(path.stem[:2]): network for path in NOTEBOOKS if (network := network_of(path))}
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    axis.plot(*zip(*points.values()), color="#8fb8de", linewidth=1.5, zorder=1)
    for number, (x, y) in points.items():
        axis.plot(x, y, "o", color="#111b3a", markersize=6)
        below = number % 2 == 0 and number != 12  # neighbours that lie close together are named on different sides
        offset = {"xytext": (0, -16 if below else 8), "textcoords": "offset points", "ha": "center"}
        axis.annotate(str(number), (x, y), fontsize=14, weight="bold", **offset)
    for limit in (20_000, 8_000):
        axis.axvline(limit, color="black", linewidth=1, linestyle=":")
        axis.annotate(f" {limit:,}", (limit, 0.02), xycoords=("data", "axes fraction"))
    axis.axhline(99.4, color="black", linewidth=1, linestyle=":")
    axis.annotate("99.4 %", (0.01, 99.41), xycoords=("axes fraction", "data"))
    axis.set(xscale="log", xlim=(100_000, 1_700), ymargin=0.15)
    axis.set(xlabel="parameters, fewer to the right", ylabel="test accuracy (%)")
    axis.set_xticks([50_000, 20_000, 10_000, 5_000, 2_000])
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.xaxis.set_minor_formatter("")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "course.png", dpi=150, bbox_inches="tight")


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
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        old = re.search(r"\*\*Notebook \d+ of [^\"\\]*", text)
        path.write_text(text[: old.start()] + place(path) + text[old.end() :], encoding="utf-8", newline="\n")
    for name, table in TABLES.items():
        found = section(name)
        text = found.string[: found.start(1)] + table() + found.string[found.end(1) :]
        (ROOT / "README.md").write_text(text, encoding="utf-8", newline="\n")
    runs = [load_run(of) for of in ("steps/target-20k", "steps/target-8k")]
    runs += [load_run(f"others/assignment-{size}") for size in ("20k", "8k")]
    plot_runs(runs, target=99.4, may_differ=("epochs", "precision"))  # a log does not tell its format
    plt.gcf().savefig(RESULTS / "curves.png", dpi=150, bbox_inches="tight")
    draw_course()
