"""What the notebooks show: tables, curves, pictures and drawings, with a text for those who cannot see them."""

import html.parser
import itertools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import train
from torch import nn

import frontier
import model as networks
import plots
from plots import (
    LOOKS,
    OTHER_LOOKS,
    Table,
    draw_network,
    draw_receptive_fields,
    looks,
    plot_digits,
    plot_layers,
    plot_mistakes,
    plot_networks,
    plot_runs,
    plot_seeds,
    print_runs,
    receptive_fields,
)
from utils import load_run, load_runs, mean_accuracy


@pytest.fixture
def said(monkeypatch):
    """The texts for those who cannot see the figures."""
    texts = []
    monkeypatch.setattr(plots, "show", texts.append)
    yield texts
    plt.close("all")


def test_curves_and_digits(few, said):
    run, model = train(few)
    plot_runs([run, run | {"name": "other", "data": "MNIST"}], target=99.4, last=1, may_differ="data")
    loss_axis, accuracy_axis = plt.gcf().axes
    assert len(loss_axis.lines) == 4 and len(accuracy_axis.lines) == 6  # and the target's, and one for the legend
    legend = {text.get_text() for text in plt.gcf().legends[0].texts}
    assert legend == {"few/short (digits)", "other (MNIST)", "target 99.4 %", "dashed: training images"}
    low, high = accuracy_axis.get_ylim()
    assert low < min(run["history"]["test_accuracy"]) and high > 99.4 and len(accuracy_axis.get_yticks()) >= 3
    plot_digits(few.test_images[:7], titles=list("abcdefg"), columns=5)
    assert [axis.get_title() for axis in plt.gcf().axes] == [*"abcdefg", "", "", ""]
    plot_mistakes(model, few, count=5)
    assert said[0].startswith("Loss and accuracy") and "other ends at" in said[0]
    assert said[1] == "7 images of digits: a; b; c; d; e; f; g" and said[2].startswith("5 images of digits: ")
    with pytest.raises(ValueError, match=r"in percent, as in 99\.4, got 0\.994"):
        plot_runs([run], 0.994)
    for runs in ([], [run] * 6):
        with pytest.raises(ValueError, match="one to 5 runs"):
            plot_runs(runs)


def test_layers_and_networks(said):
    plot_layers(nn.Sequential(nn.Conv2d(1, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 10, 1)))
    bars = [f"{a.get_text()} {b.get_width()}" for a, b in zip(plt.gca().get_yticklabels(), plt.gca().patches)]
    assert bars == ["0 (Conv2d) 208", "1 (BatchNorm2d) 16", "3 (Conv2d) 90"]
    assert said == ["Bars: 0 (Conv2d) 208 parameters, 1 (BatchNorm2d) 16 parameters, 3 (Conv2d) 90 parameters"]
    dots = [load_run(f"target-8k/seed{seed}") for seed in range(3)]
    mine = dots[0] | {"name": "mine", "parameters": 300, "data": "digits"}
    networks = {"ours": dots, "big": [dots[0] | {"parameters": 10**6}]}
    plot_networks(networks, yours=[mine], last=1, target=98.5, may_differ=("data",))
    labels = {text.get_text() for text in plt.gcf().legends[0].texts}
    assert labels == {"ours (3 seeds, MNIST)", "big (1 seed, MNIST)", "mine (digits)", "target 98.5 %", "published"}
    points = {(line.get_xdata()[0], round(line.get_ydata()[0], 6)) for line in plt.gca().lines}
    mean = round(sum(mean_accuracy(run) for run in dots) / 3, 6)
    assert {(300, mine["history"]["test_accuracy"][-1]), (697, 99.03), (215_194, 99.04), (7_568, mean)} <= points
    assert plt.gca().get_xlim()[0] < 300 and plt.gca().get_xlim()[1] > 10**6 and len(plt.gca().containers) == 2
    for wrong in ({}, {"none": []}, {str(number): dots for number in range(8)}):
        with pytest.raises(ValueError, match="one to 7 networks"):
            plot_networks(wrong)
    with pytest.raises(ValueError, match=r"records of one network as 'both', got some of \[300, 7568\] parameters"):
        plot_networks({"both": [dots[0], dots[0] | {"parameters": 300}]})


def test_seeds_are_lines_from_the_lowest_to_the_highest_epoch(said):
    runs = load_runs("target-8k")
    plot_seeds({"Net8k": runs, "another": runs[:2]}, target=99.4)
    lines = [line for line in plt.gca().lines if len(line.get_xdata()) == 2 and len(set(line.get_ydata())) == 1]
    last = [run["history"]["test_accuracy"][-5:] for run in [*runs, *runs[:2]]]
    assert [tuple(line.get_xdata()) for line in lines] == [(min(values), max(values)) for values in last]
    assert [text.get_text() for text in plt.gca().texts] == ["99.51", f"{np.mean([np.mean(v) for v in last[:2]]):.2f}"]
    assert [text.get_text() for text in plt.gca().get_yticklabels()] == ["Net8k\n(10 seeds)", "another\n(2 seeds)"]
    assert "Net8k: 99.45 to 99.59, mean 99.51" in said[0]
    mixed = [runs[0] | {"precision": "float32"}, *runs[1:]]  # with a run of one's own, made elsewhere
    plot_seeds({"Net8k": mixed}, may_differ="precision")
    assert plt.gca().get_yticklabels()[0].get_text().split() == ["Net8k", "(10", "seeds,", "float32,", "bfloat16)"]
    for show_runs in (lambda **last: plot_seeds({"Net8k": runs}, **last), lambda **last: print_runs(runs, **last)):
        with pytest.raises(ValueError, match="last to be 1 or more"):
            show_runs(last=0)
    for wrong in ({}, {"none": []}):
        with pytest.raises(ValueError, match="expected recipes, each with records"):
            plot_seeds(wrong)


def test_one_name_one_colour_and_one_marker_for_each(capsys):
    net8k = LOOKS["target-8k"]
    assert looks(["target-8k/seed3", "steps/lenet5", "mine/net"])[0] == net8k == looks(["Net8k"])[0]
    [first, second] = looks(["target-8k/seed3", "target-8k/seed4"])  # which could not be told apart
    assert first[0] == "target-8k/seed3" and second[0] == "target-8k/seed4" and first[1:] != second[1:]
    assert len({look[1:] for look in LOOKS.values()}) == len({look[0] for look in LOOKS.values()})
    for name in LOOKS:  # a run of one's own has neither the colour nor the marker of one of the course's
        course, *own = looks([name, "try/a", "try/b"])
        assert len({look[1] for look in (course, *own)}) == len({look[2] for look in (course, *own)}) == 3
    print_runs([load_run("target-8k/seed3")])
    assert capsys.readouterr().out.splitlines()[1].startswith("Net8k ")


def seen_without_red_and_green(color):
    """How a color is seen by someone without the red receptors (Viénot, Brettel and Mollon, 1999)."""
    linear = np.array(matplotlib.colors.to_rgb(color)) ** 2.2
    return (np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]) @ linear).clip(0) ** (
        1 / 2.2
    )


TOGETHER = [  # in one figure of the course
    ["steps/skeleton", "steps/conv-lenet", "steps/lenet5"],
    ["steps/skeleton-batchnorm", "steps/skeleton"],
    ["steps/skeleton-batchnorm", "steps/skeleton-both", "steps/skeleton-dropout"],
    ["steps/skeleton-augmented", "steps/skeleton-batchnorm"],
    ["steps/skeleton-average", "steps/skeleton-schedule", "steps/skeleton-augmented"],
    ["target-20k", "steps/net20k-assigned", "others/assignment-20k"],
    ["target-8k", "others/assignment-8k", "steps/net8k-plain"],
    ["target-20k", "target-8k", "others/assignment-20k", "others/assignment-8k"],
    ["tiny", "float32-8k"],
    ["tiny", "tiny-shared", "tiny-shared-24", "loop"],
    ["best-8k", "best-8k-elastic", "best-20k", "best-20k-elastic"],
    ["loop", "tiny-shared", "tiny", "best-8k-elastic", "best-20k-elastic", "float32-8k", "float32-20k"],
]


@pytest.mark.parametrize("together", [*TOGETHER, [None] * 5], ids=str)
def test_colours_differ_without_red_and_green_or_else_their_markers_do(together):
    styles = [LOOKS[name][1:] if name else look for name, look in zip(together, OTHER_LOOKS)]
    for (color, marker), (other, another) in itertools.combinations(styles, 2):
        apart = np.abs(seen_without_red_and_green(color) - seen_without_red_and_green(other)).max()
        grey = abs(
            np.dot(np.subtract(matplotlib.colors.to_rgb(color), matplotlib.colors.to_rgb(other)), (0.3, 0.6, 0.1))
        )
        assert marker != another and apart > 0.15 and (grey > 0.07 or apart > 0.4)


class Cells(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_data(self, data):
        if data.strip():
            self.found.append(data)


def test_a_table_is_the_same_in_a_notebook_and_as_text():
    rows = [["run", "mean", "set"], ["a < b", "99.40", "test"], ["longer", "7", "validation"]]
    table = Table(rows)
    assert str(table).splitlines() == ["run      mean  set", "a < b   99.40  test", "longer      7  validation"]
    assert Cells(table._repr_html_()).found == [word for row in rows for word in row]
    assert table._repr_html_().count("right") == 3  # the column of numbers
    assert "<td" in Table([["a"], ["{0} {x}"]])._repr_html_() and "{0} {x}" in Table([["a"], ["{0} {x}"]])._repr_html_()
    for rows in ([], [["a", "b"], ["c"]]):
        with pytest.raises(ValueError, match="rows of one length"):
            Table(rows)


CHAINS = [networks.ConvLeNet, networks.Skeleton, networks.Net8k, networks.Net20k, networks.NetLoop, networks.LeNet5]
CHAINS += [networks.NetTiny, networks.NetFast]


@pytest.mark.parametrize("network", CHAINS, ids=lambda network: network.__name__)
def test_a_network_is_drawn_with_its_own_maps(network, data, said):
    model = network()
    draw_network(model, data.test_images[0])
    words = [text.get_text() for panel in plt.gcf().subfigs for text in panel.texts]
    convolutions = [layer for layer in model.layers if isinstance(layer, nn.Conv2d)]
    assert len([word for word in words if word.startswith("conv")]) == len(convolutions)
    with torch.no_grad():
        maps = model.layers[:1].eval()(torch.zeros(1, 1, 28, 28)).shape
    assert any(word.startswith(f"{maps[2]}×{maps[3]}\n{maps[1]} maps\nsees ") for word in words)
    assert "it reads" in said[0] and model.training  # the model itself is left as it was


@pytest.mark.parametrize("network", CHAINS[:5], ids=lambda network: network.__name__)
def test_the_first_pixels_that_a_number_sees_are_where_the_gradient_is(network):
    """The corner of the receptive field, with padding, measured on images with a wide border."""
    layers = [layer for layer in network().layers if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.ZeroPad2d)]
    chain = []
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
        elif isinstance(layer, nn.MaxPool2d):  # the mean has a gradient for all
            layer = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)
        chain.append(layer)
    *_, (_, side, step, first) = receptive_fields(layers)
    pixels = torch.zeros(1, 1, 120, 120, requires_grad=True)
    nn.Sequential(*chain)(pixels)[0, 0, 10, 10].backward()
    rows = (pixels.grad[0, 0] != 0).any(1).nonzero().flatten()
    assert rows[0].item() == first + 10 * step and len(rows) == side


def test_what_cannot_be_followed_is_refused(data):
    image = data.test_images[0]
    with pytest.raises(ValueError, match="can be followed, got one with Shortcut"):
        draw_network(frontier.changed("shortcuts"), image)
    with pytest.raises(ValueError, match="end with an average of scores, got tiny"):
        draw_receptive_fields({"tiny": networks.NetTiny()}, image)
    with pytest.raises(ValueError, match="0 to 255"):
        draw_network(networks.Net8k(), image / 255)
    assert receptive_fields([nn.Conv2d(1, 1, 3, dilation=2), nn.ReLU()]) == [("conv 3×3", 5, 1, 0)]


def test_receptive_fields_are_frames_on_a_digit(data, said):
    draw_receptive_fields({"cut": networks.ConvLeNet(), "Net8k": networks.Net8k()}, data.test_images[0])
    frames = [axis.patches[-1].get_width() for axis in plt.gcf().axes]
    assert frames == [16, 20] and said == [
        "What one score sees, as a frame on a digit: cut 16×16 pixels, Net8k 20×20 pixels"
    ]


def test_a_figure_has_a_text_in_a_notebook(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda figure, metadata: shown.append(metadata))
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    plot_digits(torch.zeros(2, 1, 28, 28))
    assert shown == [{"image/png": {"alt": "2 images of digits"}}] and not plt.get_fignums()
