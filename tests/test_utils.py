"""The tools, from loading to checking, each on real images."""

import gzip
import hashlib
import json
import math
import os
import re
import shutil
import socket
import threading
import time
from contextlib import nullcontext
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from test_study import first_of

import utils
from model import LeNet5, Net8k, Net20k, Skeleton
from utils import MNIST_FILES, Data, augment, check_target, evaluate, fit, load_mnist, normalize, predict


def train(data, *, seed=0, epochs=2, **settings):
    """A short run on a small network: (record, model)."""
    torch.manual_seed(seed)
    model = Skeleton(batch_norm=True, dropout=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    settings = {"name": "short", "batch_size": 100} | settings
    return fit(model, data, optimizer=optimizer, epochs=epochs, seed=seed, **settings), model


def same_weights(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


@pytest.fixture
def few(digits) -> Data:
    """250 training and 120 test digits: with batches of 100, the last one is short."""
    return first_of(digits)


# ---------------------------------------------------------------- load ----


def test_mnist_is_whole_and_its_mean_is_ours(mnist):
    assert mnist.train_images.shape == (60_000, 1, 28, 28) and mnist.test_images.shape == (10_000, 1, 28, 28)
    assert mnist.train_images.dtype == torch.uint8 and mnist.train_labels.dtype == torch.int64
    assert mnist.evaluated_on == "test"
    counts = torch.bincount(mnist.train_images.flatten(), minlength=256)  # as floats, all pixels would need 190 MB
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum() / counts.sum()
    std = ((counts * (values - mean) ** 2).sum() / (counts.sum() - 1)).sqrt()
    assert mean.item() == pytest.approx(utils.MEAN, abs=5e-5)
    assert std.item() == pytest.approx(utils.STD, abs=5e-5)


def test_validation_holds_the_last_training_images_out(mnist):
    data = load_mnist(validation=True, device="cpu")
    assert data.evaluated_on == "validation"
    assert torch.equal(data.train_images, mnist.train_images[:50_000])
    assert torch.equal(data.test_images, mnist.train_images[50_000:])
    assert torch.equal(data.test_labels, mnist.train_labels[50_000:])


def test_digits_stand_in(digits):
    assert digits.name == "digits"
    assert len(digits.train_labels) + len(digits.test_labels) == 1_797
    assert digits.train_images.shape[1:] == (1, 28, 28) and digits.train_images.dtype == torch.uint8
    assert digits.train_images.min() == 0 and digits.train_images.max() > 240
    assert digits.test_labels.dtype == torch.int64 and digits.test_labels.unique().tolist() == list(range(10))
    held_out = load_mnist("digits", validation=True, device="cpu")
    assert (len(held_out.train_labels), len(held_out.test_labels)) == (1_198, 239)
    assert len(held_out.train_labels) + len(held_out.test_labels) == len(digits.train_labels)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty repository root, and a torchvision whose mirrors refuse the connection."""
    monkeypatch.setattr(utils, "ROOT", tmp_path / "course")
    utils.ROOT.mkdir()
    monkeypatch.delenv("MNIST_ROOT", raising=False)
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])


@pytest.fixture
def copy(mnist, tmp_path):
    """A folder with a good copy of the four files, which a test may then damage."""
    source = utils.find_mnist() / "MNIST" / "raw"
    raw = tmp_path / "copy" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST_FILES:
        shutil.copyfile(source / name, raw / name)
    return raw


def test_order_of_the_places(copy, no_network, monkeypatch, capsys):
    root = copy.parent.parent
    assert load_mnist(root, device="cpu").name == "MNIST"
    monkeypatch.setenv("MNIST_ROOT", str(root))
    assert load_mnist(device="cpu").name == "MNIST"
    assert capsys.readouterr().out == ""
    assert load_mnist(root / "nowhere", device="cpu").name == "MNIST"
    assert "No MNIST files in" in capsys.readouterr().out
    # Relative to the repository's root, as a notebook's working directory is another.
    monkeypatch.setenv("MNIST_ROOT", os.path.join("..", "copy"))
    assert load_mnist(device="cpu").name == "MNIST"
    monkeypatch.delenv("MNIST_ROOT")
    shutil.move(root, utils.ROOT / "data")
    assert load_mnist(device="cpu").name == "MNIST"


@pytest.mark.parametrize("damage", ["truncated", "altered", "swapped", "empty"])
def test_damaged_files_are_named_and_never_used(copy, no_network, damage):
    file = copy / "t10k-labels-idx1-ubyte"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "altered":
        content = bytearray(file.read_bytes())
        content[5000] ^= 1
        file.write_bytes(content)
    elif damage == "swapped":
        os.replace(copy / "train-labels-idx1-ubyte", copy / "other")
        os.replace(file, copy / "train-labels-idx1-ubyte")
        os.replace(copy / "other", file)
    else:
        file.write_bytes(b"")
    name = "train-labels-idx1-ubyte" if damage == "swapped" else file.name
    size, md5 = MNIST_FILES[name]
    with pytest.raises(ValueError, match=rf"{name} is damaged: expected {size:,} bytes with MD5 {md5}, .* delete"):
        load_mnist(copy.parent.parent, device="cpu")


def test_a_missing_file_is_named(copy, no_network):
    (copy / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte is missing.*Copy it there, or delete"):
        load_mnist(copy.parent.parent, device="cpu")


def test_an_unverified_processed_folder_is_not_read(copy, no_network):
    """Old versions of torchvision left one, and its MNIST class still prefers it."""
    processed = copy.parent / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(30, 28, 28, dtype=torch.uint8), torch.zeros(30, dtype=torch.int64)), processed / name)
    assert load_mnist(copy.parent.parent, device="cpu").train_images.shape == (60_000, 1, 28, 28)


def test_an_incomplete_data_folder_is_an_error_when_it_cannot_be_completed(copy, no_network):
    shutil.move(copy.parent.parent, utils.ROOT / "data")
    (utils.ROOT / "data" / "MNIST" / "raw" / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte is missing"):
        load_mnist(device="cpu")


def test_without_a_network_the_digits_and_one_plain_line(no_network, capsys):
    started = time.monotonic()
    assert load_mnist(device="cpu").name == "digits"
    assert time.monotonic() - started < 15
    printed = capsys.readouterr().out
    assert printed.startswith("MNIST could not be downloaded (") and printed.count("\n") == 1
    assert not any(file.is_file() for file in utils.ROOT.rglob("*"))


def test_a_silent_mirror_is_given_up(no_network, monkeypatch):
    """A server that accepts the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [address])
        with pytest.raises(OSError, match=r"nothing arrived|timed out"):
            utils._download(utils.ROOT / "data", patience=1)
    assert list(utils.ROOT.iterdir()) == []
    assert socket.getdefaulttimeout() is None


def serve(folder):
    """Serve a folder over HTTP on this machine; return the server."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize("whole", [True, False])
def test_download_is_seen_only_when_whole(copy, no_network, monkeypatch, tmp_path, capsys, whole):
    """The real download through torchvision, from a mirror on this machine; the broken one cuts a file short."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    resources = []
    for name in MNIST_FILES:
        packed = gzip.compress((copy / name).read_bytes(), compresslevel=1, mtime=0)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
        (mirror / f"{name}.gz").write_bytes(packed if whole or "t10k-images" not in name else packed[:-1000])
    server = serve(mirror)
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr("torchvision.datasets.MNIST.resources", resources)
    data = load_mnist(device="cpu")
    server.shutdown()
    server.server_close()
    raw = utils.ROOT / "data" / "MNIST" / "raw"
    if whole:
        assert data.name == "MNIST"
        assert sorted(file.name for file in raw.iterdir()) == sorted(MNIST_FILES)
    else:
        assert data.name == "digits"
        assert "could not be downloaded" in capsys.readouterr().out
        assert not raw.exists()


# ------------------------------------------------------------- augment ----


def test_augment_with_nothing_asked_changes_nothing(digits):
    images = digits.train_images[:50]
    assert torch.allclose(augment(images), images.float(), atol=0.01)


def test_augment_fills_with_background_and_keeps_the_range():
    torch.manual_seed(0)
    ink = torch.full((200, 1, 28, 28), 255, dtype=torch.uint8)
    moved = augment(ink, degrees=20, translate=0.2, scale=0.2, shear=10)
    assert moved.dtype == torch.float32 and moved.shape == ink.shape
    assert moved.min() == 0 and moved.max() <= 255.01
    assert moved[:, :, 0, 0].eq(0).float().mean() > 0.3  # corners come from outside
    assert augment(torch.zeros_like(ink), degrees=20, translate=0.2).eq(0).all()


def test_augment_draws_for_each_image_and_repeats_with_the_seed(digits):
    same = digits.train_images[:1].expand(8, -1, -1, -1)
    for amounts in ({"degrees": 10}, {"translate": 0.1}, {"scale": 0.1}, {"shear": 10}):
        torch.manual_seed(1)
        first = augment(same, **amounts)
        assert len({image.numpy().tobytes() for image in first}) == 8
        torch.manual_seed(1)
        assert torch.equal(first, augment(same, **amounts))


def test_augment_amounts_are_what_they_say(monkeypatch):
    """With every draw at its largest, compare with what the map must give."""
    images = torch.zeros(1, 1, 28, 28)
    images[0, 0, 6:20, 8:18] = 255
    images[0, 0, 6:10, 8:24] = 255
    monkeypatch.setattr(torch, "rand", lambda *size, **kw: torch.ones(*size))
    for amounts, expected in [
        ({"degrees": 90}, torch.rot90(images, -1, (2, 3))),  # clockwise on the page, where rows count downwards
        ({"translate": 3 / 28}, torch.roll(images, (3, 3), (2, 3))),
    ]:
        assert torch.allclose(augment(images, **amounts), expected, atol=0.1)
    assert augment(images, scale=0.2).sum() / images.sum() == pytest.approx(1.2**2, rel=0.02)
    # All four at once: where the map sends a point, counted from the centre, by the formula of the docstring.
    angle, tan = math.radians(20), math.tan(math.radians(10))
    point = torch.zeros(1, 1, 28, 28)
    point[0, 0, 20:22, 8:10] = 255  # centre: row 20.5, column 8.5, that is (x, y) = (-5, 7)
    x, y = 1.1 * (-5 + tan * 7), 1.1 * 7
    x, y = math.cos(angle) * x - math.sin(angle) * y + 2.8, math.sin(angle) * x + math.cos(angle) * y + 2.8
    assert center(augment(point, degrees=20, translate=0.1, scale=0.1, shear=10)) == pytest.approx((x, y), abs=0.1)


def center(image):
    """The centre of the ink, (x, y), counted from the centre of the image."""
    rows, columns = (image[0, 0].sum(dim=d) for d in (1, 0))
    return tuple(((line * (torch.arange(28) - 13.5)).sum() / line.sum()).item() for line in (columns, rows))


def test_augment_draws_to_both_sides():
    torch.manual_seed(0)
    bar = torch.zeros(200, 1, 28, 28)
    bar[:, :, 4:24, 13:15] = 255
    moved = augment(bar, translate=0.1)
    across = torch.tensor([center(image[None])[0] for image in moved])
    down = torch.tensor([center(image[None])[1] for image in moved])
    for shifts in (across, down):
        assert -2.85 < shifts.min() < -2 and 2 < shifts.max() < 2.85 and abs(shifts.mean()) < 0.4
    assert abs(torch.corrcoef(torch.stack([across, down]))[0, 1]) < 0.2  # drawn apart
    areas = augment(bar, scale=0.2).sum(dim=(1, 2, 3)) / bar[0].sum()
    assert areas.min() < 0.75 and areas.max() > 1.3


def test_augment_bends_smoothly_and_no_further_than_asked():
    torch.manual_seed(0)
    column, row = torch.zeros(2, 300, 1, 28, 28)
    column[..., 13:15], row[..., 13:15, :] = 255, 255
    places = torch.arange(28) - 13.5
    column, row = augment(column, elastic=0.1)[:, 0], augment(row, elastic=0.1)[:, 0]
    # The middle of the bar in each row (column) that is clear of the border
    across = ((column * places).sum(2) / column.sum(2))[:, 4:24]
    down = ((row * places[:, None]).sum(1) / row.sum(1))[:, 4:24]
    for shifts in (across, down):
        assert abs(shifts.mean()) < 0.2 and 1.5 < shifts.abs().quantile(0.95) < 2.8  # a tenth of 28 pixels
        assert (shifts[:, 1:] - shifts[:, :-1]).abs().quantile(0.95) < 1  # neighbours stay together
        assert shifts.std(1).mean() > 0.4  # and the bar is bent, not only moved


@pytest.mark.parametrize("wrong", [{"degrees": -1}, {"scale": 1}, {"shear": 90}, {"elastic": -0.1}])
def test_augment_refuses_what_makes_no_sense(digits, wrong):
    with pytest.raises(ValueError, match="expected amounts"):
        augment(digits.train_images[:2], **wrong)
    for images in (digits.train_images[0, 0], digits.train_images[:2, :, :20]):
        with pytest.raises(
            ValueError, match=r"expected square images of shape .*" + re.escape(str(tuple(images.shape)))
        ):
            augment(images)


# --------------------------------------------------- train and evaluate ----


def test_sums_count_the_short_last_batch(few, capsys):
    """With a learning rate of 0 and no dropout the weights stand still: every figure has one right answer."""
    torch.manual_seed(0)
    model = LeNet5()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run = fit(model, few, name="still", optimizer=optimizer, epochs=2, batch_size=100, seed=0)
    history = run["history"]
    logits = model(normalize(few.train_images))
    assert history["train_accuracy"][1] == pytest.approx(
        100 * (logits.argmax(1) == few.train_labels).float().mean().item(), abs=1.0
    )
    # bfloat16 on some processors: about three digits are right.
    assert history["train_loss"][1] == pytest.approx(F.cross_entropy(logits, few.train_labels).item(), rel=0.01)
    logits = model(normalize(few.test_images))
    correct = (logits.argmax(1) == few.test_labels).sum().item()
    assert history["test_loss"] == [pytest.approx(F.cross_entropy(logits, few.test_labels).item(), rel=1e-5)] * 2
    assert history["test_accuracy"] == [100 * correct / 120] * 2
    assert f"Test set: Average loss: {history['test_loss'][1]:.4f}, Accuracy: {correct}/120" in capsys.readouterr().out


def test_sums_are_not_means_of_batches(few, monkeypatch):
    """Two batches of 200 and 50 whose accuracies differ: the mean of the two would be wrong."""
    torch.manual_seed(0)
    model = LeNet5()
    monkeypatch.setattr(torch, "randperm", lambda count: torch.arange(count))
    labels = model(normalize(few.train_images)).argmax(1)
    labels[200:] = (labels[200:] + 1) % 10  # the long batch all right, the short one all wrong
    data = Data("digits", "test", few.train_images, labels, few.test_images, few.test_labels)
    monkeypatch.setattr(utils, "_has_bfloat16", lambda device: False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run = fit(model, data, name="uneven", optimizer=optimizer, epochs=1, batch_size=200, seed=0)
    assert run["history"]["train_accuracy"] == [80.0]
    expected = F.cross_entropy(model(normalize(few.train_images)), labels).item()
    assert run["history"]["train_loss"] == [pytest.approx(expected, rel=1e-5)]


def test_evaluation_leaves_no_trace(few):
    model = Skeleton(batch_norm=True, dropout=0.5).train()
    model.layers[1].eval()  # a frozen layer stays frozen
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    loss, correct = evaluate(model, few.test_images, few.test_labels)
    assert math.isfinite(loss) and 0 <= correct <= 120
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(
        predict(model, few.test_images, batch_size=7).argmax(1), predict(model, few.test_images).argmax(1)
    )


def test_same_seed_same_run_other_seed_other_run(few):
    settings = {"augmentation": {"degrees": 10, "translate": 0.05}, "ema_decay": 0.9}
    (first, model), (again, same), (other, _) = (train(few, seed=seed, **settings) for seed in (3, 3, 4))
    assert first["history"] == again["history"] != other["history"]
    assert same_weights(model, same)


@pytest.mark.parametrize("network", [Net8k, Net20k, Skeleton])
def test_the_order_in_memory_changes_no_result(network, few):
    """Logits and gradients are those of the usual order but for rounding, and the model is left as it was."""
    torch.manual_seed(0)
    model, images = network().double(), normalize(few.train_images[:20]).double()
    gradients = {}
    for order, arranged in (("usual", nullcontext()), ("fast", utils._fast_order(model, torch.device("cpu")))):
        with arranged:
            torch.manual_seed(1)  # the same dropout
            model.zero_grad()
            logits = model.train()(images)
            F.cross_entropy(logits, few.train_labels[:20]).backward()
            gradients[order] = [logits.detach(), *(p.grad.clone() for p in model.parameters())]
            assert (order == "usual") == all(p.is_contiguous() for p in model.parameters())
    torch.testing.assert_close(gradients["fast"], gradients["usual"])
    assert all(p.is_contiguous() for p in model.parameters())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_another_loss_gets_logits_labels_and_normalised_images(few):
    seen = []

    def smoothed(logits, labels, images):
        seen.append((logits.shape, labels.dtype, images.shape, images.min().item()))
        return F.cross_entropy(logits, labels, label_smoothing=0.5)

    plain, _ = train(few)
    run, model = train(few, loss=smoothed)
    lowest = normalize(torch.zeros(1)).item()
    assert seen[0] == ((100, 10), torch.int64, (100, 1, 28, 28), lowest) and len(seen) == 2 * 3
    assert plain["settings"]["loss"] == "cross_entropy" and run["settings"]["loss"] == "smoothed"
    assert run["history"]["train_loss"][-1] != plain["history"]["train_loss"][-1]
    logits = predict(model, few.test_images)  # the test's loss stays what it was
    assert run["history"]["test_loss"][-1] == pytest.approx(F.cross_entropy(logits, few.test_labels).item(), abs=1e-4)


def test_only_the_first_epochs_are_augmented(few, monkeypatch):
    batches = []
    monkeypatch.setattr(utils, "augment", lambda images, **amounts: batches.append(amounts) or images)
    for augmented_epochs, count in ((0, 0), (1, 3), (2, 6), (None, 6)):  # of 2 epochs of 3 batches
        batches.clear()
        run, _ = train(few, augmentation={"degrees": 10}, augmented_epochs=augmented_epochs)
        assert batches == [{"degrees": 10}] * count and run["settings"]["augmented_epochs"] == augmented_epochs
    for wrong in ({"augmented_epochs": 1}, {"augmented_epochs": 3, "augmentation": {"degrees": 10}}):
        with pytest.raises(ValueError, match="augmented_epochs from 0 to 2"):
            train(few, **wrong)


def test_averaging_keeps_the_average(few):
    """The kept weights are the exponential moving average of the weights after every step, worked out by hand here."""
    torch.manual_seed(0)
    model = Skeleton(batch_norm=True).eval()  # fit must switch to training itself
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    states = []
    step = optimizer.step

    def recording_step():
        step()
        states.append([model.layers[0].weight.detach().clone(), model.layers[1].running_mean.clone()])

    optimizer.step = recording_step
    run = fit(model, few, name="averaged", optimizer=optimizer, epochs=1, batch_size=100, seed=0, ema_decay=0.6)
    assert len(states) == 3
    for kept, (average, *later) in zip((model.layers[0].weight, model.layers[1].running_mean), zip(*states)):
        for state in later:
            average = 0.6 * average + 0.4 * state
        assert torch.allclose(kept, average, atol=1e-6)
        assert not torch.allclose(kept, later[-1], atol=1e-6)
    assert model.layers[1].num_batches_tracked == 3
    loss, _ = evaluate(model, few.test_images, few.test_labels)
    assert run["history"]["test_loss"][-1] == pytest.approx(loss, rel=1e-6)


def test_averaging_follows_buffers_that_are_replaced_or_whole_numbers(few):
    class Counting(LeNet5):
        def __init__(self):
            super().__init__()
            self.register_buffer("batches", torch.zeros(()))
            self.register_buffer("whole", torch.zeros((), dtype=torch.int64))

        def forward(self, images):
            if self.training:
                self.batches = self.batches + 1
                self.whole += 1
            else:
                tested.append(self.whole.item())
            return super().forward(images)

    tested = []
    model = Counting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    fit(model, few, name="averaged", optimizer=optimizer, epochs=1, batch_size=100, seed=0, ema_decay=0.5)
    assert model.batches == (0.5 * 1 + 0.5 * 2) * 0.5 + 0.5 * 3
    assert model.whole == 3 and set(tested) == {3}


def test_schedulers_step_after_every_batch(few):
    torch.manual_seed(0)
    model = LeNet5()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.1)
    run = fit(model, few, name="steps", optimizer=optimizer, scheduler=scheduler, epochs=2, batch_size=100, seed=0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
    assert run["settings"]["scheduler"]["class"] == "StepLR" and run["settings"]["scheduler"]["step_size"] == 3
    assert run["settings"]["optimizer"]["lr"] == 0.1
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    run = fit(model, few, name="steps", optimizer=optimizer, scheduler=scheduler, epochs=1, batch_size=100, seed=0)
    assert run["settings"]["scheduler"]["milestones"] == {3: 1, 5: 1}


def test_the_optimizer_of_another_model_is_refused(few):
    models = [LeNet5(), LeNet5()]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizers[1], step_size=3)
    settings = {"name": "mixed", "epochs": 1, "batch_size": 100, "seed": 0}
    with pytest.raises(ValueError, match="expected an optimizer over this model's parameters"):
        fit(models[0], few, optimizer=optimizers[1], **settings)
    with pytest.raises(ValueError, match="expected a scheduler of this optimizer"):
        fit(models[0], few, optimizer=optimizers[0], scheduler=scheduler, **settings)


def test_a_loss_that_is_no_number_stops_the_run(few):
    torch.manual_seed(0)
    model = LeNet5()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e9)
    with pytest.raises(FloatingPointError, match=r"epoch 1: the loss is no longer a finite number.*learning rate"):
        fit(model, few, name="burst", optimizer=optimizer, epochs=3, batch_size=100, seed=0)


def one_cycle(data, *, epochs=4, milestones=None, **settings):
    """A run with everything that a checkpoint must hold: momentum, schedule, average, dropout and augmentation."""
    torch.manual_seed(0)
    model = Skeleton(batch_norm=True, dropout=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=3 * epochs)
    if milestones:
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    settings = {"name": "stopped", "batch_size": 100, "seed": 5, "ema_decay": 0.7, "checkpoint": True} | settings
    augmentation = {"degrees": 10, "translate": 0.1}
    run = fit(
        model, data, optimizer=optimizer, scheduler=scheduler, epochs=epochs, augmentation=augmentation, **settings
    )
    return run, model


def stop_in_epoch(monkeypatch, epoch, data, **settings):
    """The same run, interrupted after the training of that epoch."""
    calls = iter(range(1, epoch + 1))

    def evaluate_or_stop(*args):
        if next(calls) == epoch:
            raise KeyboardInterrupt
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(utils, "evaluate", evaluate_or_stop)
        with pytest.raises(KeyboardInterrupt):
            one_cycle(data, **settings)


def test_a_stopped_run_goes_on_and_ends_bit_for_bit_the_same(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MNIST_RESULTS", str(tmp_path))
    whole, model = one_cycle(few, checkpoint=False)
    assert not list(tmp_path.rglob("*")) and whole["continued_after"] == []
    stop_in_epoch(monkeypatch, 2, few)
    stop_in_epoch(monkeypatch, 3, few)  # the third evaluation of the second try: epoch 4
    file = tmp_path / "digits" / "stopped.checkpoint"
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    capsys.readouterr()
    run, same = one_cycle(few)
    printed = capsys.readouterr().out
    assert "stopped was stopped after epoch 3 of 4; it goes on from stopped.checkpoint" in printed
    assert [int(line.split()[0]) for line in printed.splitlines() if "Train:" in line] == [1, 2, 3, 4]
    assert run["continued_after"] == [1, 3]
    assert run["history"] == whole["history"] and same_weights(model, same)
    assert sorted(run["elapsed"]) == run["elapsed"] and run["seconds"] >= run["elapsed"][-1] - 0.1  # rounded
    again, same = one_cycle(few)  # finished, but not saved: nothing is left to train
    assert again["history"] == whole["history"] and same_weights(model, same)
    assert again["continued_after"] == [1, 3] and "trained to its end, but not saved" in capsys.readouterr().out
    utils.save_run(run, model)
    assert sorted(path.name for path in file.parent.iterdir()) == ["stopped.json", "stopped.pt"]


@pytest.mark.parametrize(
    "other",
    [{"epochs": 5}, {"seed": 6}, {"ema_decay": 0.5}, {"batch_size": 99}, {"shuffle": 0}, {"milestones": [3, 7]}],
)
def test_a_checkpoint_of_another_run_is_not_used(few, tmp_path, monkeypatch, capsys, other):
    monkeypatch.setenv("MNIST_RESULTS", str(tmp_path))
    stop_in_epoch(monkeypatch, 3, few, milestones=[2, 7] if "milestones" in other else None)
    if "shuffle" in other:  # the same images and labels, but other pairs
        other = {}
        few = Data("digits", "test", few.train_images, few.train_labels.flip(0), few.test_images, few.test_labels)
    fresh, model = one_cycle(few, **other, checkpoint=False)
    capsys.readouterr()
    run, same = one_cycle(few, **other)
    assert "stopped.checkpoint is of a run with other settings, weights or images: starting anew" in (
        capsys.readouterr().out
    )
    assert run["history"] == fresh["history"] and same_weights(model, same) and run["continued_after"] == []


@pytest.mark.parametrize("content", [b"", b"half a checkpoint", None])
def test_a_damaged_checkpoint_is_not_used(few, tmp_path, monkeypatch, capsys, content):
    monkeypatch.setenv("MNIST_RESULTS", str(tmp_path))
    stop_in_epoch(monkeypatch, 3, few)
    file = tmp_path / "digits" / "stopped.checkpoint"
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    run, _ = one_cycle(few)
    assert "stopped.checkpoint cannot be read: starting anew" in capsys.readouterr().out
    assert run["continued_after"] == [] and len(run["elapsed"]) == 4


# -------------------------------------------------------------- record ----


def test_records_and_weights_come_back_as_they_were(few, tmp_path, monkeypatch):
    run, model = train(few)
    assert {"name", "model", "parameters", "epochs", "seed", "data", "evaluated_on", "seconds", "history"} <= set(run)
    assert set(run["history"]) == {"train_loss", "train_accuracy", "test_loss", "test_accuracy"}
    monkeypatch.setenv("MNIST_RESULTS", str(tmp_path))
    utils.save_run(run, model)
    assert sorted(file.name for file in (tmp_path / "digits").iterdir()) == ["short.json", "short.pt"]
    monkeypatch.setattr(utils, "RESULTS", tmp_path / "digits")
    assert utils.load_run("short") == json.loads(json.dumps(run))
    loaded = utils.load_weights(Skeleton(batch_norm=True, dropout=0.1), "short")
    assert same_weights(model, loaded)
    assert not loaded.training
    with pytest.raises(RuntimeError, match="Net8k"):
        utils.load_weights(Net8k(), "short")


def test_a_failed_save_leaves_the_old_record_whole(few, tmp_path, monkeypatch):
    run, model = train(few, epochs=1)
    monkeypatch.setenv("MNIST_RESULTS", str(tmp_path))
    utils.save_run(run, model)
    old = {file.name: file.read_bytes() for file in (tmp_path / "digits").iterdir()}
    with pytest.raises(ValueError):  # a number that JSON cannot hold
        utils.save_run(run | {"seconds": math.nan}, model)
    for name in ("../elsewhere", "", ".hidden"):
        with pytest.raises(ValueError, match="plain file name"):
            utils.save_run(run | {"name": name}, model)
    with pytest.raises(ValueError, match="plain file name"):  # before the training, not after it
        train(few, name="a/b")
    with pytest.raises(ValueError, match=r"that JSON can hold.*int64"):
        train(few, seed=np.int64(1))

    def refuse(*paths):
        raise PermissionError("the disk is full, or the file is open")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        utils.save_run(run | {"seconds": 0.0}, model)
    assert {file.name: file.read_bytes() for file in (tmp_path / "digits").iterdir()} == old


def test_missing_and_broken_records_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "RESULTS", tmp_path)
    (tmp_path / "half.json").write_text('{"name": "half", "hist')
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(FileNotFoundError, match=r"no saved run 'othr' among the 2 in .*; the closest: other, half"):
        utils.load_run("othr")
    for name in ("half", "other"):
        with pytest.raises(ValueError, match=rf"{name}.json is not the record of a run"):
            utils.load_run(name)
    torch.save(Net8k().state_dict(), tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:5000])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("these are no weights")
    for name in ("cut", "empty", "text"):
        with pytest.raises(ValueError, match=rf"{name}.pt does not hold weights"):
            utils.load_weights(Net8k(), name)


# ---------------------------------------------------------------- read ----


@pytest.fixture(scope="module")
def reader():
    return utils.load_weights(Net8k(), "target-8k-seed0")


def photograph(pixels, seed=0):
    """A drawing as a phone would see it: grey ink on uneven paper, off the middle, and with noise."""
    noise = np.random.default_rng(seed)
    large = np.pad(np.kron(150 - 0.6 * pixels, np.ones((9, 9))), ((30, 90), (120, 10)), constant_values=150)
    large += noise.normal(0, 5, large.shape) + np.linspace(0, 15, large.shape[1])
    return Image.fromarray(large.clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: pixels,
        lambda pixels: 255 - pixels,
        lambda pixels: torch.from_numpy(pixels / 255.0)[None],
        lambda pixels: np.dstack([pixels] * 3)[3:, 2:-1],
        lambda pixels: Image.fromarray(255 - pixels).resize((300, 300), Image.Resampling.BICUBIC),
        photograph,
    ],
    ids=["as it is", "dark on light", "tensor of 0 to 1", "cut, in colour", "large", "photograph"],
)
def test_a_digit_is_read_however_it_is_drawn(mnist, reader, change):
    few = range(0, 10_000, 40)
    images = torch.cat([utils.read_image(change(mnist.test_images[i, 0].cpu().numpy())) for i in few])
    assert images.dtype == torch.uint8 and images.shape == (250, 1, 28, 28)
    assert (predict(reader, images).argmax(1) == mnist.test_labels[::40].cpu()).float().mean() >= 0.98


def test_mnist_images_stay_nearly_as_they_are(mnist):
    """The steps are those of MNIST: the mean change of a pixel is below one grey value."""
    originals = mnist.test_images[::40].cpu().float()
    again = torch.cat([utils.read_image(image[0].numpy()) for image in originals]).float()
    assert (again - originals).abs().mean() < 1


def a_seven(mode="L", width=7, scale=1):
    """A 7 in black on white, 60 pixels wide and 100 high."""
    image = Image.new("L", (60 * scale, 100 * scale), 255)
    drawing = ImageDraw.Draw(image)
    drawing.line([(10 * scale, 20 * scale), (50 * scale, 20 * scale), (25 * scale, 85 * scale)], fill=0, width=width)
    return image.convert(mode)


@pytest.mark.parametrize("width", [1, 3, 10, 40])
def test_thin_strokes_do_not_fade(reader, width):
    seven = utils.read_image(a_seven(width=width, scale=10))
    assert seven.max() == 255 and predict(reader, seven).argmax(1).item() == 7


def test_a_picture_keeps_its_range_and_loses_its_specks(reader):
    seven = np.asarray(a_seven()).astype(np.int32)
    deep = Image.fromarray((40_000 + 80 * seven).astype(np.uint16))  # 16 bits, all of them above 255
    assert torch.equal(utils.read_image(deep), utils.read_image(a_seven()))
    seven[2, 2] -= 8  # 3 % of the ink, far from the digit
    assert torch.equal(utils.read_image(seven), utils.read_image(a_seven()))


def test_the_ink_stays_inside_when_its_mass_is_at_one_side():
    shape = np.zeros((28, 28))
    shape[4:24, 4], shape[22:24, 4:24] = 20, 255
    image = utils.read_image(shape)[0, 0]
    assert image[0].max() > 0 and image[19].max() > 200 and (image > 0).sum() == 20 + 2 * 20 - 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_kind_of_picture(reader, tmp_path, mode):
    path = tmp_path / ("seven.tif" if mode in ("CMYK", "I;16", "I", "F") else "seven.png")
    a_seven(mode).save(path)
    for image in (path, str(path), a_seven(mode)):
        seven = utils.read_image(image)
        assert predict(reader, seven).argmax(1).item() == 7
    rows, columns = (np.flatnonzero(seven[0, 0].amax(axis)) for axis in (1, 0))
    assert rows[-1] - rows[0] == 19 and columns[-1] - columns[0] < 19  # 20 pixels high, and not stretched


def test_a_transparent_ground_and_a_turned_photograph(reader, tmp_path):
    ink = a_seven().point(lambda value: 255 - value)
    transparent = Image.new("RGBA", ink.size, (0, 0, 0, 0))
    transparent.putalpha(ink)
    assert predict(reader, utils.read_image(transparent)).argmax(1).item() == 7
    assert predict(reader, utils.read_image(np.asarray(transparent))).argmax(1).item() == 7
    white = Image.new("RGBA", ink.size, (255, 255, 255, 0))
    white.putalpha(ink)
    assert predict(reader, utils.read_image(white)).argmax(1).item() == 7
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned back, clockwise
    a_seven().rotate(90, expand=True).save(tmp_path / "phone.jpg", exif=exif)
    for phone in (tmp_path / "phone.jpg", Image.open(tmp_path / "phone.jpg")):
        assert predict(reader, utils.read_image(phone)).argmax(1).item() == 7


def cut_off(tmp_path):
    path = tmp_path / "cut.png"
    a_seven().resize((600, 1000)).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    return path


def a_text(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("seven")
    return path


@pytest.mark.parametrize(
    "image, error, complaint",
    [
        (lambda _: "no-such.png", FileNotFoundError, "no-such.png"),
        (a_text, ValueError, "text.png cannot be read as a picture"),
        (cut_off, ValueError, "cut.png cannot be read as a picture"),
        (lambda tmp_path: Image.open(cut_off(tmp_path)), ValueError, "cannot be read as a picture"),
        (lambda _: np.zeros((28, 28)), ValueError, "one colour everywhere"),
        (lambda _: Image.new("RGB", (9, 9), "white"), ValueError, "one colour everywhere"),
        (lambda _: np.random.default_rng(0).random((28, 28)), ValueError, "even ground"),
        (lambda _: np.random.default_rng(0).normal(size=(100, 100)), ValueError, "even ground"),
        (lambda _: ImageOps.expand(a_seven(), 20, fill=30), ValueError, "is there a frame"),
        (lambda _: np.eye(1, 28), ValueError, "nearly all ink"),
        (lambda _: Image.new("L", (0, 5)), ValueError, "finite numbers, got none"),
        (lambda tmp_path: tmp_path, FileNotFoundError, "no such file"),
        (lambda _: np.zeros((28, 28, 4)), ValueError, "float64 of shape"),
        (lambda _: np.full((28, 28), np.nan), ValueError, "NaN"),
        (lambda _: np.zeros((5, 1, 28, 28)), ValueError, r"of shape \(5, 1, 28, 28\)"),
        (lambda _: np.zeros((28, 28, 2)), ValueError, r"of shape \(28, 28, 2\)"),
        (lambda _: np.zeros((0, 28)), ValueError, r"of shape \(0, 28\)"),
        (lambda _: np.array([["a"]]), ValueError, "array of numbers"),
        (lambda _: None, ValueError, "array of numbers"),
    ],
)
def test_what_is_no_digit_is_named(tmp_path, image, error, complaint):
    with pytest.raises(error, match=complaint):
        utils.read_image(image(tmp_path))


# ------------------------------------------------------ plot and check ----


def test_plots_draw(few):
    run, model = train(few)
    plt.close("all")
    utils.plot_runs([run, run | {"name": "other", "data": "MNIST"}], target=99.4, last=1)
    loss_axis, accuracy_axis = plt.gcf().axes
    assert len(loss_axis.lines) == 4 and len(accuracy_axis.lines) == 6  # and the target's, and one for the legend
    assert {text.get_text() for text in plt.gcf().legends[0].texts} == {
        "short (digits)", "other", "target 99.4 %", "dashed: training images",
    }  # fmt: skip
    assert len(accuracy_axis.get_yticks()) >= 3
    for wrong in ([], [run] * 6):
        with pytest.raises(ValueError, match="one to 5 runs"):
            utils.plot_runs(wrong)
    low, high = accuracy_axis.get_ylim()
    assert low < min(run["history"]["test_accuracy"]) and high > 99.4
    utils.plot_digits(few.test_images[:7], titles=list("abcdefg"), columns=5)
    assert [axis.get_title() for axis in plt.gcf().axes] == [*"abcdefg", "", "", ""]
    utils.plot_mistakes(model, few, count=5)
    plt.close("all")


def run_on_mnist(accuracies, **changes):
    """A record with these test accuracies, as far as check_target reads it."""
    return {
        "data": "MNIST", "evaluated_on": "test", "parameters": 7_568, "epochs": len(accuracies),
        "history": {"test_accuracy": accuracies},
    } | changes  # fmt: skip


TARGET = {"max_parameters": 7_999, "max_epochs": 15, "accuracy": 99.4, "last": 5}


def test_check_target_passes_what_holds(capsys):
    assert check_target(run_on_mnist([98.0, 99.0, 99.4, 99.41, 99.4, 99.5, 99.4]), **TARGET)
    assert capsys.readouterr().out.splitlines() == [
        "at most 7,999 parameters: True",
        "at most 15 epochs: True",
        "all of the last 5 epochs >= 99.40 on the test set: True",
    ]


@pytest.mark.parametrize(
    "run, complaint",
    [
        (run_on_mnist([99.5] * 6, parameters=8_000), "(8,000, 1 too many)"),
        (run_on_mnist([99.5] * 16), "(16, 1 too many)"),
        (run_on_mnist([99.5] * 16, epochs=15), "(16, 1 too many)"),
        (run_on_mnist([99.5, 99.37, 99.5, 99.5, 99.5, 99.6]), "(epoch 2: 99.37, 0.03 short)"),
        (
            run_on_mnist([99.9, 99.9, 99.5, 99.5, 99.5, 99.3, 99.39]),
            "(epoch 6: 99.30, 0.10 short; epoch 7: 99.39, 0.01",
        ),
        (run_on_mnist([99.5] * 4), "(only 4 epochs were trained)"),
        (run_on_mnist([99.5] * 4 + [math.nan]), "epoch 5: nan"),
    ],
)
def test_check_target_names_the_condition_and_the_gap(run, complaint, capsys):
    assert not check_target(run, **TARGET)
    failed = [line for line in capsys.readouterr().out.splitlines() if ": False (" in line]
    assert len(failed) == 1 and complaint in failed[0]


def test_check_target_claims_nothing_about_other_data(capsys):
    assert not check_target(run_on_mnist([100.0] * 10, data="digits"), **TARGET)
    assert capsys.readouterr().out.startswith("no claim")
    with pytest.raises(ValueError, match="last"):
        check_target(run_on_mnist([99.5] * 5), **(TARGET | {"last": 0}))
