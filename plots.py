"""What the notebooks show: tables, curves, pictures of digits, and drawings of networks.

Every network, and every step of the course, has one name, one colour and one marker, wherever it appears: ``LOOKS``.
"""

import copy
import itertools
import json
import math
import re
import sys
from html import escape

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import SubFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator
from torch import nn

from checks import (
    COMPARED,
    check_comparable,
    check_count,
    check_images,
    check_percent,
    image_counts,
    legend_label,
    number_format,
    unwrapped,
)
from mnist import Data
from utils import RESULTS, mean_accuracy, normalize, predict

INK = "#111b3a"
NET_20K, NET_8K = ("Net20k", "#004488", "o"), ("Net8k", "#bb4411", "D")
# Of each step and each study: name, colour and marker. The colours differ in their lightness, and without red and
# green; an assignment's log has a lighter tint of its network's colour.
LOOKS = {
    "steps/lenet5": ("LeNet-5", "#222222", "s"),
    "steps/conv-lenet": ("LeNet-5, cut off", "#999999", "^"),
    "steps/skeleton": ("skeleton", "#ddaa33", "v"),
    "steps/skeleton-batchnorm": ("skeleton + BatchNorm", "#bb5566", "D"),
    "steps/skeleton-dropout": ("skeleton + dropout", "#88ccee", "^"),
    "steps/skeleton-both": ("skeleton + both", "#332288", "P"),
    "steps/skeleton-augmented": ("+ augmentation", "#0077bb", "s"),
    "steps/skeleton-schedule": ("+ schedule", "#ee9944", "X"),
    "steps/skeleton-average": ("+ average", INK, "o"),
    "target-20k": NET_20K,
    "steps/target-20k": NET_20K,
    "float32-20k": NET_20K,
    "steps/net20k-assigned": ("Net20k, the assignment's recipe", "#ccbb44", "X"),
    "others/assignment-20k": ("the 20k assignment's log", "#77aadd", "^"),
    "target-8k": NET_8K,
    "steps/target-8k": NET_8K,
    "float32-8k": NET_8K,
    "steps/net8k-plain": ("Net8k, plainly trained", "#222222", "P"),
    "steps/net8k-augmented": ("Net8k, augmented", "#44aa99", "s"),
    "others/assignment-8k": ("the 8k assignment's log", "#ffbbaa", "v"),
    "tiny": ("NetTiny", "#44bb99", "s"),
    "tiny-shared": ("NetTiny, 28 shared", "#7755bb", "v"),
    "tiny-shared-24": ("NetTiny, 24 shared", "#555555", "P"),
    "loop": ("NetLoop", "#aaccee", "X"),
    "best-8k": ("Best8k, first recipe", "#997711", "v"),
    "best-8k-elastic": ("Best8k", "#ddaa33", "P"),
    "best-20k": ("Best20k, first recipe", "#aaaaaa", "s"),
    "best-20k-elastic": ("Best20k", "#111111", "^"),
}
OTHER_LOOKS = [
    (INK, "o"),
    ("#bb5566", "s"),
    ("#ddaa33", "^"),
    ("#77aadd", "D"),
    ("#117733", "v"),
    ("#888888", "P"),
    ("#8877cc", "X"),
]

# In a notebook, the page gets the course's figures, whatever MPLBACKEND or a personal configuration file asks for.
if hasattr(getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)(), "kernel"):
    from matplotlib_inline.backend_inline import set_matplotlib_formats
    from matplotlib_inline.config import InlineBackend

    matplotlib.use("module://matplotlib_inline.backend_inline")
    matplotlib.rcdefaults()
    matplotlib.rcParams["font.size"] = 12  # a phone shows a figure at half its size
    InlineBackend.instance().print_figure_kwargs = {"bbox_inches": "tight"}
    InlineBackend.instance().close_figures = True
    set_matplotlib_formats("png")


def show_table(rows: list[list[str]]) -> None:
    """Show a table, the first row of which is its head: in a notebook as one, elsewhere as text."""
    table = Table(rows)
    if "inline" in matplotlib.get_backend():
        import IPython.display

        IPython.display.display(table)
    else:
        print(table)


def show(alt: str) -> None:
    """Show the current figure, with a text for those who cannot see it."""
    if "inline" in matplotlib.get_backend():
        from IPython.display import display

        display(plt.gcf(), metadata={"image/png": {"alt": alt}})
        plt.close()
    else:
        plt.show()


def looks(names: list[str]) -> list[tuple[str, str, str]]:
    """Return name, colour and marker for each name of a record, of a study or of a network.

    What is not in ``LOOKS``, or would have the same name as another one, keeps its own and gets the next free colour.
    """
    by_name = {look[0]: look for look in LOOKS.values()}
    found = [LOOKS.get(name) or LOOKS.get(name.rpartition("/")[0]) or by_name.get(name) for name in names]
    used = {part for look in found if look for part in look[1:]}  # neither the colour nor the marker comes again
    free = itertools.cycle([look for look in OTHER_LOOKS if not used & set(look)] or OTHER_LOOKS)
    return [look if look and found.count(look) == 1 else (name, *next(free)) for name, look in zip(names, found)]


# --------------------------------------------------------------- tables ----


class Table:
    """A table: in a notebook with lines, elsewhere as text. The first row is its head; numbers stand to the right.

    Args:
        rows: the rows, of words that are shown as they are.

    Raises:
        ValueError: there is no row, or the rows are not of one length.
    """

    def __init__(self, rows: list[list[str]]):
        if len({len(row) for row in rows}) != 1:
            raise ValueError(f"expected rows of one length, got lengths {[len(row) for row in rows]}")
        self.rows = rows

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.rows)]
        lines = [
            "  ".join(f"{word:{'>' if self._right(place) else '<'}{width}}" for place, (word, width) in cells)
            for cells in ([*enumerate(zip(row, widths))] for row in self.rows)
        ]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head, *body = (self._row(row, "td" if number else "th") for number, row in enumerate(self.rows))
        return "\n".join(["<table>", "<thead>", head, "</thead>", "<tbody>", *body, "</tbody>", "</table>"])

    def _row(self, row: list[str], tag: str) -> str:
        sides = ["right" if self._right(place) else "left" for place in range(len(row))]
        cells = (f'<{tag} style="text-align: {side}">{escape(word)}</{tag}>' for side, word in zip(sides, row))
        return f"<tr>{''.join(cells)}</tr>"

    def _right(self, place: int) -> bool:
        """Return whether a column holds numbers."""
        return all(re.fullmatch(r"[-+−]?[\d,.]*%?", row[place]) for row in self.rows[1:])


def print_runs(runs: list[dict], last: int = 5, *, may_differ: str | tuple[str, ...] = ()) -> None:
    """Show a table of runs, with the accuracies (percent) of the last ``last`` epochs, and on which set they are.

    Args:
        runs: records that can be compared.
        last: the number of final epochs.
        may_differ: in what they may differ all the same: some of ``"data"``, ``"train_count"`` (fewer images),
            ``"evaluated_on"``, ``"epochs"`` and ``"precision"`` (the number format, notebook 8). A column says it.

    Raises:
        ValueError: the runs differ in something that ``may_differ`` does not name; ``last`` is below 1.
    """
    check_count("last", last)
    differing = check_comparable(runs, may_differ)
    rows = [["run", "mean", "lowest", "final", "epochs", "parameters", "set"]]  # what counts first, for narrow screens
    more = {
        key: word for key, word in {"train_count": image_counts, "precision": number_format}.items() if key in differing
    }
    rows[0] += [COMPARED[key] for key in more]
    for run, (name, _, _) in zip(runs, looks([run["name"] for run in runs])):
        accuracies = run["history"]["test_accuracy"][-last:]
        figures = [f"{value:.2f}" for value in (np.mean(accuracies), min(accuracies), accuracies[-1])]
        of = f"{'' if run['data'] == 'MNIST' else run['data'] + ' '}{run['evaluated_on']}"
        words = [word(run) for word in more.values()]
        rows.append([name, *figures, str(run["epochs"]), f"{run['parameters']:,}", of, *words])
    show_table(rows)


# ---------------------------------------------------------------- plot ----


def plot_digits(images: torch.Tensor, titles: list[str] | None = None, columns: int = 10) -> None:
    """Show images, ``(N, 1, 28, 28)`` with pixel values 0 to 255, as dark ink on white, in rows of ``columns``."""
    check_images(images)
    if len(images) == 0:
        print("no images")
        return
    rows = math.ceil(len(images) / columns)
    lines = max(title.count("\n") + 1 for title in titles) if titles else 0
    height = rows * (7 / columns + (0.1 + 0.15 * lines if lines else 0))
    figure, axes = plt.subplots(rows, columns, figsize=(7, height), squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for index, axis in enumerate(axes.flat):
        if index >= len(images):
            axis.axis("off")
            continue
        axis.imshow(images[index, 0].cpu().numpy(), cmap="gray_r", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("#bbbbbb")  # the border of the image, so that one sees where in it the digit stands
        if titles:
            axis.set_title(titles[index], fontsize=10, pad=2)
    said = "; ".join(dict.fromkeys(title.replace("\n", ", ") for title in titles or [] if title))
    show(f"{len(images)} images of digits" + (f": {said}" if said else ""))


def plot_mistakes(model: nn.Module, data: Data, count: int = 20) -> None:
    """Show the wrongly classified test images, the surest mistakes first, each titled "label → guess".

    Args:
        model: see ``predict``.
        data: what ``load_mnist`` returned.
        count: how many to show, at most.
    """
    probabilities = predict(model, data.test_images).softmax(1)
    confidence, guesses = probabilities.max(1)
    wrong = (guesses != data.test_labels).nonzero().flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True)]
    print(f"{len(wrong)} of {len(guesses):,} are wrong; the {min(count, len(wrong))} surest mistakes, label -> guess:")
    if len(wrong):
        first = wrong[:count]
        plot_digits(data.test_images[first], [f"{data.test_labels[i]} → {guesses[i]}" for i in first])


def plot_runs(
    runs: list[dict], target: float | None = None, last: int | None = None, *, may_differ: str | tuple[str, ...] = ()
) -> None:
    """Show the loss and the accuracy of runs, epoch by epoch: dashed while training, solid in the evaluation.

    The accuracy axis is stretched towards 100 %, where the differences are.

    Args:
        runs: one to five records, as ``fit`` and ``load_run`` return them, that can be compared.
        target: an accuracy in percent, drawn as a horizontal line.
        last: shade the last so many epochs of the first run, the ones that count.
        may_differ: see ``print_runs``. The legend says in what the runs differ.

    Raises:
        ValueError: there is no run, or more than five, or the target is no percentage; the runs differ in something
            that ``may_differ`` does not name.
    """
    check_percent(target or 0)
    if not 1 <= len(runs) <= 5:
        raise ValueError(f"expected one to 5 runs, which stay legible, got {len(runs)}")
    differing = [key for key in check_comparable(runs, may_differ) if key != "epochs"]  # which the axis shows
    figure, (loss_axis, accuracy_axis) = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
    styles = looks([run["name"] for run in runs])
    for run, (name, color, marker) in zip(runs, styles):
        label = legend_label(name, [run], differing)
        for axis, quantity in ((loss_axis, "loss"), (accuracy_axis, "accuracy")):
            for part, style in (("train", "--"), ("test", "-")):
                values = run["history"][f"{part}_{quantity}"]
                axis.plot(
                    range(1, len(values) + 1),
                    values,
                    style,
                    color=color,
                    alpha=0.6 if part == "train" else 1,
                    linewidth=1 if part == "train" else 1.5,
                    marker=marker,
                    markersize=3 if part == "train" else 4,
                    markerfacecolor="white" if part == "train" else color,
                    label=label if part == "test" else None,
                )
    loss_axis.set(title="loss", xlabel="epoch", yscale="log")
    loss_axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss_axis.yaxis.set_major_formatter("{x:g}")
    loss_axis.yaxis.set_minor_formatter("")
    # One over the root of the error; at 100 % the error is 0, and 100.1 keeps it on the axis.
    accuracy_axis.set_yscale("function", functions=(_stretched, lambda height: 100.1 - 1 / height**2))
    values = [v for run in runs for part in ("train", "test") for v in run["history"][f"{part}_accuracy"]]
    bottom, top = min(values) - 0.2 * (100 - min(values)), max([*values, target or 0])
    limits, ticks = (bottom, min(100, top + 0.3 * (100 - top))), []
    height = np.ptp(_stretched(np.array(limits)))
    for tick in (99.8, 99.6, 99.4, 99, 98, 95, 90, 80, 10):
        apart = not ticks or _stretched(ticks[-1]) - _stretched(tick) > 0.1 * height  # else they touch
        ticks += [tick] if bottom <= tick <= top + 0.1 and apart else []
    accuracy_axis.set(title="accuracy (%)", xlabel="epoch", ylim=limits, yticks=ticks)
    accuracy_axis.yaxis.set_major_formatter("{x:g}")
    if target:
        accuracy_axis.axhline(target, color="black", linewidth=1, linestyle=":", label=f"target {target:g} %")
    accuracy_axis.plot([], [], "--", color="gray", linewidth=1, label="dashed: training images")
    for axis in (loss_axis, accuracy_axis):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if last:
            epochs = runs[0]["epochs"]
            axis.axvspan(epochs - last + 0.5, epochs + 0.5, color="black", alpha=0.08, linewidth=0)
    lines, names = accuracy_axis.get_legend_handles_labels()
    size = 10 if max(map(len, names)) > 30 else None  # else the legend is wider than the figure
    figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False, fontsize=size)
    ends = [f"{name} ends at {run['history']['test_accuracy'][-1]:.2f} %" for run, (name, _, _) in zip(runs, styles)]
    sets = " and ".join(sorted({run["evaluated_on"] for run in runs}))
    show(f"Loss and accuracy, epoch by epoch, on the training and the {sets} images; {'; '.join(ends)}")


def _stretched(accuracy: np.ndarray) -> np.ndarray:
    """Return one over the root of the error: the last tenths of a percent take as much place as the first ninety."""
    return 1 / np.sqrt(np.maximum(100.1 - accuracy, 1e-3))


def plot_seeds(
    recipes: dict[str, list[dict]],
    target: float | None = None,
    last: int = 5,
    *,
    may_differ: str | tuple[str, ...] = (),
) -> None:
    """Show the last epochs of many runs: a line from the lowest to the highest accuracy of each, a dot at the mean.

    Each recipe or network has a block of such lines, one for each of its seeds, and beside the block its mean.

    Args:
        recipes: for each its records, in the order from top to bottom.
        target: an accuracy in percent, drawn as a vertical line.
        last: the number of final epochs.
        may_differ: see ``print_runs``. The labels say in what the runs differ.

    Raises:
        ValueError: there are no recipes, or one has no records; the runs differ in something that ``may_differ`` does
            not name; the target is no percentage.
    """
    check_percent(target or 0)
    check_count("last", last)
    if not recipes or not all(recipes.values()):
        raise ValueError(f"expected recipes, each with records, got {list(recipes)}")
    differing = check_comparable([run for runs in recipes.values() for run in runs], may_differ)
    means = {name: [mean_accuracy(run, last) for run in runs] for name, runs in recipes.items()}
    styles = looks(list(recipes))
    labels = [legend_label(name, runs, differing, _seeds(runs)) for name, runs in recipes.items()]
    labels = [label.replace(" (", "\n(").replace(", ", ",\n") for label in labels]
    heights = [
        max(0.4 + 0.08 * len(runs), 0.2 + 0.2 * len(label.splitlines()))
        for runs, label in zip(recipes.values(), labels)
    ]
    _, axis = plt.subplots(figsize=(7, 0.8 + sum(heights)), layout="constrained")
    top, places = 0.0, []
    for (name, runs), (_, color, marker), height in zip(recipes.items(), styles, heights):
        middle = top + height / 2
        for number, run in enumerate(runs):
            values, y = run["history"]["test_accuracy"][-last:], middle + 0.08 * (number - (len(runs) - 1) / 2)
            axis.plot([min(values), max(values)], [y, y], color=color, linewidth=1.5, alpha=0.5)
            axis.plot(means[name][number], y, marker, color=color, markersize=3.5)
        mean = np.mean(means[name])
        axis.plot([mean, mean], [top + 0.1, top + height - 0.1], color=color, linewidth=2.5)
        axis.text(mean, top + 0.1, f"{mean:.2f}", color=INK, ha="center", va="bottom")
        places.append(middle)
        top += height
    if target:
        axis.axvline(target, color="black", linewidth=1, linestyle=":")
    of = {runs[0]["evaluated_on"] for runs in recipes.values()}
    axis.set(xlabel=f"{' and '.join(sorted(of))} accuracy of the last {last} epochs (%)", ylim=(top + 0.1, -0.2))
    axis.set_yticks(places, labels)
    axis.locator_params(axis="x", nbins=6)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    said = [f"{name}: {min(of):.2f} to {max(of):.2f}, mean {np.mean(of):.2f}" for name, of in means.items()]
    show(f"Mean accuracy of the last {last} epochs, in percent, seed by seed. {'; '.join(said)}")


def _seeds(runs: list[dict]) -> str:
    return "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"


def plot_layers(model: nn.Module) -> None:
    """Show how many parameters each layer has, as bars, the first layer at the top."""
    layers = parameters_by_layer(model)
    _, axis = plt.subplots(figsize=(7, 0.6 + 0.28 * len(layers)), layout="constrained")
    bars = axis.barh(list(layers), list(layers.values()), color=INK)
    axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=11)
    axis.invert_yaxis()
    axis.set(xlabel=f"parameters ({sum(layers.values()):,} in all)", xmargin=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    show("Bars: " + ", ".join(f"{name} {count:,} parameters" for name, count in layers.items()))


def parameters_by_layer(model: nn.Module) -> dict[str, int]:
    """Return the number of parameters of every layer that has some of its own; shared ones count once."""
    counts, seen = {}, set()
    for name, module in unwrapped(model).named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen |= {id(p) for p in own}
        if count := sum(p.numel() for p in own):
            counts[f"{name} ({type(module).__name__})" if name else type(module).__name__] = count
    return counts


def plot_networks(
    runs: dict[str, list[dict]],
    yours: list[dict] | None = None,
    last: int = 5,
    target: float = 99.4,
    *,
    may_differ: str | tuple[str, ...] = (),
) -> None:
    """Show parameters against accuracy: published networks as crosses, ours as dots with one standard deviation.

    The accuracy of ours is the mean over the last five epochs and over the runs. The published figures are counted in
    different ways: see ``notebooks/results/published.json``.

    Args:
        runs: for each network, named as in the picture, its records; one to seven networks.
        yours: more records, each with a star of its own.
        last: the number of final epochs over which the accuracy of ``yours`` is the mean.
        target: an accuracy in percent, drawn as a horizontal line.
        may_differ: see ``print_runs``. The legend says in what the runs differ.

    Raises:
        ValueError: there are no networks, or more than seven, or one has no records, or records of different networks;
            the target is no percentage; the runs differ in something that ``may_differ`` does not name.
    """
    check_percent(target)
    if not 1 <= len(runs) <= 7 or not all(runs.values()):
        raise ValueError(f"expected one to 7 networks, each with records, got {list(runs)}")
    for name, of in runs.items():
        if len(counts := {run["parameters"] for run in of}) > 1:
            raise ValueError(f"expected records of one network as {name!r}, got some of {sorted(counts)} parameters")
    differing = check_comparable([run for of in (*runs.values(), yours or []) for run in of], may_differ)
    published = json.loads((RESULTS / "published.json").read_text(encoding="utf-8"))
    figure, axis = plt.subplots(figsize=(7, 5.2), layout="constrained")
    for network in published:
        point = network["parameters"], network["accuracy"]
        side = {"xytext": (-6, -3), "ha": "right"} if network.get("label") == "left" else {"xytext": (6, -3)}
        axis.plot(*point, "x", color="#888888", label="published" if network is published[0] else None, zorder=3)
        axis.annotate(network["name"], point, textcoords="offset points", fontsize=10, color="#666666", **side)
    for (name, of), (_, color, marker) in zip(runs.items(), looks(list(runs))):
        means = [mean_accuracy(run) for run in of]
        error = np.std(means, ddof=1) if len(means) > 1 else None
        label = legend_label(name, of, differing, _seeds(of))
        axis.errorbar(of[0]["parameters"], np.mean(means), yerr=error, fmt=marker, color=color, capsize=3, label=label)
    for run in yours or []:
        label = legend_label(run["name"], [run], differing)
        axis.plot(run["parameters"], mean_accuracy(run, last), "*", color="#b22222", markersize=13, label=label)
    axis.axhline(target, color="black", linewidth=1, linestyle=":", label=f"target {target:g} %")
    counts = [network["parameters"] for network in [*published, *(of[0] for of in runs.values()), *(yours or [])]]
    axis.set(xlabel="parameters", ylabel="accuracy (%)", xscale="log", xlim=(0.7 * min(counts), 2 * max(counts)))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2 if differing else 3, frameon=False)
    dots = [f"{name} {np.mean([mean_accuracy(run) for run in of]):.2f} %" for name, of in runs.items()]
    dots += [f"{run['name']} {mean_accuracy(run, last):.2f} %" for run in yours or []]
    show(f"Parameters against accuracy, of published networks and of ours: {', '.join(dots)}")


WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
POINTWISE = (nn.ReLU, nn.SiLU, nn.BatchNorm2d, nn.Dropout2d, nn.Flatten, nn.Linear)  # what has no window


def receptive_fields(layers: nn.Sequential) -> list[tuple[str, int, int, int]]:
    """Follow how much of the image one number sees, layer by layer, for those that have a window.

    A window of side k adds k − 1 steps to the side of what is seen. A step is one pixel at first, and s pixels after a
    layer with a stride of s.

    Args:
        layers: a chain in which windows are square.

    Returns:
        For each layer with a window: what it is, such as ``"conv 3×3"``; the side of the receptive field, the step to
        the next number, and the first pixel that the first number sees, all in pixels. With padding, the last one is
        negative.

    Raises:
        ValueError: there is a layer that is neither one with a window nor one that works on each place alone.
    """
    rows, side, step, first = [], 1, 1, 0
    for layer in layers:
        if isinstance(layer, nn.ZeroPad2d):
            first -= layer.padding[0] * step
        elif isinstance(layer, WINDOWS):
            kernel, stride, padding = (int(np.max(of)) for of in (layer.kernel_size, layer.stride, layer.padding))
            side += (kernel - 1) * step * int(np.max(getattr(layer, "dilation", 1)))
            first -= padding * step
            step *= stride
            [word] = (word for kind, word in zip(WINDOWS, ("conv", "max pool", "average")) if isinstance(layer, kind))
            rows.append((f"{word} {kernel}×{kernel}", side, step, first))
        elif not isinstance(layer, POINTWISE):
            raise ValueError(f"expected a chain of layers that can be followed, got one with {type(layer).__name__}")
    return rows


def draw_network(model: nn.Module, image: torch.Tensor, columns: int = 6) -> None:
    """Show a digit on its way through a network: after each layer three of its maps, at the end ten probabilities.

    Yellow is a large number, dark blue a small one, within each map. Shown are the three maps that vary most, as the
    next layer with weights or a window gets them: after ReLU and BatchNorm.

    Args:
        model: a trained network whose ``layers`` are one chain, such as a ``DigitClassifier``.
        image: pixel values 0 to 255, of shape ``(1, 28, 28)``.
        columns: how many layers stand beside each other, before the next row begins.

    Raises:
        ValueError: see ``receptive_fields``; or this is no image.
    """
    check_images(image[None])
    model = copy.deepcopy(model).cpu().eval()
    stations = _stations(model, normalize(image.cpu()[None]))
    rows = -(-(len(stations) + 2) // columns)
    panels = plt.figure(figsize=(7, 3.1 * rows)).subfigures(rows, columns, squeeze=False).flat
    axis = _panel(next(panels), "image", "28×28", 1)[0]
    axis.imshow(image[0].cpu(), cmap="gray_r", vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])
    for (what, numbers, sees), panel in zip(stations, panels):
        if numbers.dim() == 1:
            axis = _panel(panel, what, f"{len(numbers)}\nnumbers", 1)[0]
            axis.imshow(numbers[:, None], cmap="cividis", aspect=20 / len(numbers))
            axis.axis("off")
            continue
        count, side, _ = numbers.shape
        axes = _panel(panel, what, f"{side}×{side}\n{count} maps\nsees {sees}×{sees}", 3)
        margin = 14 - side / 2 if side > 20 else 0.4 * side  # small maps are drawn smaller, but not too small
        for axis in axes[count:]:
            axis.axis("off")
        for axis, number in zip(axes, numbers.flatten(1).std(1).argsort(descending=True)[:3].sort().values):
            axis.imshow(numbers[number], cmap="cividis")
            axis.set(xlim=(-0.5 - margin, side - 0.5 + margin), ylim=(side - 0.5 + margin, -0.5 - margin))
            axis.add_patch(Rectangle((-0.5, -0.5), side, side, fill=False, color=INK, linewidth=0.8))
            axis.axis("off")
    _, logits, _ = stations[-1]
    probabilities = logits.softmax(0)
    best = probabilities.argmax().item()
    axis = _panel(next(panels), "softmax", f"reads {best}\n({100 * probabilities[best]:.0f} %)", 1)[0]
    axis.barh(range(10), probabilities, color=INK)
    axis.set(yticks=range(10), xticks=[], xlim=(0, 1))
    axis.invert_yaxis()
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    chain = "; ".join(f"{what}, {'×'.join(map(str, numbers.shape))}" for what, numbers, _ in stations)
    show(f"A digit on its way through the network: {chain}; it reads {best}")


def _panel(panel: SubFigure, above: str, below: str, count: int) -> np.ndarray:
    """Return so many axes, one under the other, with words above and below."""
    panel.text(0.5, 0.93, above, ha="center", fontsize=10, color=INK)
    panel.text(0.5, 0.19, below, ha="center", va="top", fontsize=10, color=INK, linespacing=1.2)
    axes = panel.subplots(count, 1, squeeze=False).flatten()
    panel.subplots_adjust(0.12, 0.22, 0.88, 0.9, hspace=0.06)
    return axes


def _stations(model: nn.Module, images: torch.Tensor) -> list[tuple[str, torch.Tensor, int]]:
    """Return of each layer with a window or with weights: what it is, what it gives to the next one, and its field."""
    fields, stations = iter(receptive_fields(model.layers)), []
    numbers = images
    with torch.no_grad():
        for layer in model.layers:
            numbers = layer(numbers)
            if isinstance(layer, WINDOWS):
                what, side, _, _ = next(fields)
                stations.append((what, numbers[0], side))
            elif isinstance(layer, nn.Linear):
                stations.append(("fully conn.", numbers[0], 0))
            elif not isinstance(layer, nn.Flatten | nn.ZeroPad2d):  # ReLU, BatchNorm: part of the layer before
                what, _, side = stations[-1]
                stations[-1] = (what, numbers[0], side)
    return [(what, numbers.flatten() if numbers.shape[-1] == 1 else numbers, side) for what, numbers, side in stations]


def draw_receptive_fields(models: dict[str, nn.Module], image: torch.Tensor) -> None:
    """Show on a digit what single scores see: those in the corners of the last map, and one in its middle.

    Args:
        models: networks with ``layers``, named as in the picture, that end with an average of maps of scores.
        image: pixel values 0 to 255, of shape ``(1, 28, 28)``.

    Raises:
        ValueError: see ``receptive_fields``; a network ends with another layer; or this is no image.
    """
    check_images(image[None])
    for name, model in models.items():
        if not isinstance(model.layers[-1], nn.AvgPool2d):
            raise ValueError(f"expected networks that end with an average of scores, got {name}")
    _, axes = plt.subplots(1, len(models), figsize=(7, 7 / len(models) + 0.7), layout="constrained", squeeze=False)
    seen = []
    for axis, (name, model) in zip(axes[0], models.items()):
        *_, (_, side, step, first), _ = receptive_fields(model.layers)
        places = model.layers[-1].kernel_size
        axis.imshow(image[0].cpu(), cmap="gray_r", vmin=0, vmax=255)
        for row, column in ((0, 0), (0, places - 1), (places - 1, 0), (places - 1, places - 1)):
            corner = first + column * step - 0.5, first + row * step - 0.5
            axis.add_patch(Rectangle(corner, side, side, fill=False, color="#8a8a8a", linewidth=1, linestyle=":"))
        middle = first + places // 2 * step - 0.5
        axis.add_patch(Rectangle((middle, middle), side, side, fill=False, color="#d1495b", linewidth=2.5))
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"{name}\none of {places}×{places} scores\nsees {side}×{side} pixels", fontsize=10)
        seen.append(f"{name} {side}×{side} pixels")
    show(f"What one score sees, as a frame on a digit: {', '.join(seen)}")
