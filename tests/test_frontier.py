"""The networks, the optimizer and the losses of notebook 12."""

import pytest
import torch
import torch.nn.functional as F

import frontier
from model import Best20k, NetLoop, NetTiny
from utils import augment, normalize, predict, save_run

COUNTS = {
    "pooling one block later": 2_690, "a first filter of 3 × 3": 2_690, "shared filters": 2_574,
    "24 shared filters": 2_194, "squeeze-and-excitation": 3_166, "learned pooling": 3_330,
}  # fmt: skip


@pytest.mark.parametrize("name", frontier.NETWORKS)
def test_networks_have_the_parameters_that_the_notebook_tells(name):
    model = frontier.NETWORKS[name]().eval()
    assert model(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    if name.startswith("NetTiny"):
        idea = name.removeprefix("NetTiny, ")
        assert sum(p.numel() for p in model.parameters()) == COUNTS.get(idea, 2_946)
        assert name == "NetTiny" or str(model) != str(NetTiny())


def leaning(images):
    """How far the ink of each image moves sideways with each row down."""
    ink = images - images.amin((2, 3), keepdim=True)
    places = torch.arange(28.0)
    total = ink.sum((1, 2, 3))
    across, down = ((ink.sum(side)[:, 0] @ places / total) for side in (2, 3))
    x, y = places - across[:, None], places - down[:, None]
    return torch.einsum("nij,nj,ni->n", ink[:, 0], x, y) / torch.einsum("nij,ni->n", ink[:, 0], y**2)


def test_straight_digits_do_not_lean(data):
    slanted = normalize(augment(data.test_images[:200].cpu(), shear=20))
    straight = frontier.Deskew()(slanted)
    assert leaning(slanted).abs().mean() > 0.1 and leaning(straight).abs().mean() < 0.03
    assert torch.allclose(straight.amin(), slanted.amin(), atol=1e-4)
    assert torch.isfinite(frontier.Deskew()(torch.full((1, 1, 28, 28), -0.42))).all()  # without ink


def test_so_many_images_are_bent_and_no_more(data):
    images = normalize(data.test_images[:20].cpu())
    bend = frontier.ThinPlate(largest=0.05, count=30)
    assert bend.eval()(images) is images
    bent = bend.train()(images)
    assert (bent != images).flatten(1).any(1).all() and (bent - images).abs().mean() < 0.3
    bend(images)
    assert bend(images) is images  # forty of thirty


def test_another_idea_is_an_error():
    with pytest.raises(ValueError, match=r"expected one of ReLU, .*, got 'GELU'"):
        frontier.changed("GELU")


def test_muon_takes_shared_filters_once():
    [pointwise, others] = frontier.Muon(NetLoop(), lr=0.2).param_groups
    assert [tuple(weight.shape) for weight in pointwise["params"]] == [(28, 28, 1, 1)]
    assert len(pointwise["params"]) + len(others["params"]) == len(list(NetLoop().parameters()))


def test_muon_makes_all_directions_of_a_step_equally_large():
    model = NetTiny()
    optimizer = frontier.Muon(model, lr=0.2)
    before = [layer.weight.clone() for layer in model.layers if getattr(layer, "kernel_size", 0) == (1, 1)][:-1]
    F.cross_entropy(model(torch.randn(16, 1, 28, 28)), torch.arange(16) % 10).backward()
    optimizer.step()
    after = [layer.weight for layer in model.layers if getattr(layer, "kernel_size", 0) == (1, 1)][:-1]
    assert len(after) == 4
    for old, new in zip(before, after):
        sizes = torch.linalg.svdvals((new - old).flatten(1))
        assert torch.allclose(sizes, torch.full_like(sizes, 0.02), rtol=1e-3)


def test_a_teacher_s_loss_is_the_one_of_the_paper(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_RESULTS", str(tmp_path))
    torch.manual_seed(0)
    teachers = [Best20k().eval(), Best20k().eval()]
    for number, teacher in enumerate(teachers):
        save_run({"name": f"mine/teacher{number}", "data": "MNIST", "parameters": 19_098}, teacher)
    images, logits, labels = torch.randn(4, 1, 28, 28), torch.randn(4, 10), torch.tensor([3, 1, 4, 1])
    with torch.no_grad():
        soft = sum(F.softmax(teacher(images) / 3, 1) for teacher in teachers) / 2
    by_hand = 0.9 * 9 * -(soft * F.log_softmax(logits / 3, 1)).sum(1).mean() + 0.1 * F.cross_entropy(logits, labels)
    loss = frontier.taught_by(["mine/teacher0", "mine/teacher1"])
    assert torch.allclose(loss(logits, labels, images), by_hand, rtol=1e-4)


def test_a_run_keeps_what_was_asked(few):
    asked = {"epochs": 2, "augmented_epochs": 1, "loss": "smoothed", "optimizer": "AdamW", "peak": 0.01}
    run, model = frontier.train("mine/run", "NetTiny", 3, data=few, checkpoint=False, **asked)
    assert run["settings"]["optimizer"]["class"] == "AdamW" and run["settings"]["augmented_epochs"] == 1
    assert run["seed"] == 3 and run["precision"] == "float32" and isinstance(model, NetTiny)
    wide = F.pad(few.test_images, (1, 1, 1, 1))  # the border of a digit is empty
    views = [wide[:, :, 1 + y : 29 + y, 1 + x : 29 + x] for y, x in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))]
    guesses = sum(predict(model, view) for view in views).argmax(1)
    assert run["shifted_accuracy"] == 100 * (guesses == few.test_labels).sum().item() / len(guesses)
    with pytest.raises(KeyError):
        frontier.train("mine/run", "NetHuge", 3, 1, 1, data=few)
