"""Where the images come from: real files, found, downloaded from a mirror on this machine, and damaged on purpose."""

import gzip
import hashlib
import os
import shutil
import socket
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from mnist import MNIST_FILES, download, find_mnist, load_mnist
from utils import MEAN, STD

REFUSING = "http://127.0.0.1:9/"


def test_mnist_is_whole_and_its_mean_is_ours(mnist):
    assert str(mnist) == "MNIST: 60,000 training images, 10,000 test images"
    assert mnist.train_images.shape == (60_000, 1, 28, 28) and mnist.test_images.shape == (10_000, 1, 28, 28)
    assert mnist.train_images.dtype == torch.uint8 and mnist.train_labels.dtype == torch.int64
    counts = torch.bincount(mnist.train_images.flatten(), minlength=256)  # as floats, all pixels would need 190 MB
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum() / counts.sum()
    std = ((counts * (values - mean) ** 2).sum() / (counts.sum() - 1)).sqrt()
    assert (mean.item(), std.item()) == pytest.approx((MEAN, STD), abs=5e-5)
    data = load_mnist(validation=True, device="cpu")  # holds the last training images out
    assert str(data) == "MNIST: 50,000 training images, 10,000 validation images"
    for kind in ("images", "labels"):
        parts = getattr(data, f"train_{kind}"), getattr(data, f"test_{kind}")
        assert torch.equal(torch.cat(parts), getattr(mnist, f"train_{kind}"))


def test_digits_stand_in(digits):
    assert str(digits) == "digits: 1,437 training images, 360 test images"
    assert digits.train_images.shape[1:] == (1, 28, 28) and digits.train_images.dtype == torch.uint8
    assert digits.train_images.min() == 0 and digits.train_images.max() > 240
    assert digits.test_labels.dtype == torch.int64 and digits.test_labels.unique().tolist() == list(range(10))
    held_out = str(load_mnist("digits", validation=True, device="cpu"))
    assert held_out == "digits: 1,198 training images, 239 validation images"


@pytest.fixture
def copy(mnist, tmp_path):
    """A good copy of the four files, which a test may then damage."""
    raw = Path("MNIST", "raw")
    shutil.copytree(find_mnist() / raw, tmp_path / "copy" / raw, copy_function=shutil.copyfile)
    return tmp_path / "copy"


@pytest.fixture
def course(monkeypatch, tmp_path):
    """The root of a repository without data, and a mirror that refuses the connection."""
    monkeypatch.delenv("MNIST_ROOT", raising=False)
    monkeypatch.setattr("mnist.MIRRORS", [REFUSING])
    monkeypatch.setattr("mnist.ROOT", tmp_path / "course")
    (tmp_path / "course").mkdir()
    return tmp_path / "course"


def test_order_of_the_places(copy, course, monkeypatch, capsys):
    assert find_mnist(copy) == copy
    monkeypatch.setenv("MNIST_ROOT", str(copy))
    assert find_mnist() == copy and find_mnist("digits") is None and capsys.readouterr().out == ""
    assert find_mnist(copy / "nowhere") == copy and "No MNIST files in" in capsys.readouterr().out
    monkeypatch.setenv("MNIST_ROOT", os.path.join("..", "copy"))  # counted from the root, wherever a notebook is
    assert find_mnist().resolve() == copy
    monkeypatch.delenv("MNIST_ROOT")
    (copy / "MNIST" / "processed").mkdir()  # unverified: old versions of torchvision made it, and still prefer it
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(30, 28, 28), torch.zeros(30)), copy / "MNIST" / "processed" / name)
    shutil.move(copy, course / "data")
    assert str(load_mnist(device="cpu")) == "MNIST: 60,000 training images, 10,000 test images"
    (course / "data" / "MNIST" / "raw" / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte is missing"):  # and no mirror has it
        find_mnist()


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(file.read_bytes().replace(b"\7", b"\4", 1)),  # one label is another
        lambda file: shutil.copyfile(file.with_name("train-labels-idx1-ubyte"), file),
    ],
    ids=["missing", "empty", "cut short", "altered", "another file"],
)
def test_damaged_files_are_named_and_never_used(copy, course, damage):
    file = copy / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    damage(file)
    complaint = (
        r"t10k-labels-idx1-ubyte is (missing.*Copy it there, or delete"
        "|damaged: expected 10,008 bytes with MD5 27ae3e4e09519cfbb04c329615203637, .* delete)"
    )
    with pytest.raises(ValueError if file.exists() else FileNotFoundError, match=complaint):
        load_mnist(copy, device="cpu")


@pytest.fixture(scope="module")
def server(mnist, tmp_path_factory):
    """A server on this machine, and what it has: the packed files in the folder "good", one cut short in "damaged"."""
    folder, source, files = tmp_path_factory.mktemp("mirrors"), find_mnist() / "MNIST" / "raw", {}
    for kind in ("good", "damaged"):
        (folder / kind).mkdir()
    for name, (size, md5, _) in MNIST_FILES.items():
        packed = gzip.compress((source / name).read_bytes(), compresslevel=1)
        files[name] = size, md5, hashlib.md5(packed).hexdigest()
        (folder / "good" / f"{name}.gz").write_bytes(packed)
        (folder / "damaged" / f"{name}.gz").write_bytes(packed[:-1000] if "t10k-images" in name else packed)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", files
        server.shutdown()


def line(capsys):
    """What stays on the page when the progress bar has erased itself."""
    return capsys.readouterr().out.rpartition("\r")[2]


@pytest.mark.parametrize("mirrors", ["good", "damaged good", "refusing good", "empty good", "empty damaged"])
def test_mirrors_are_tried_in_turn_and_files_are_seen_only_when_whole(server, course, monkeypatch, capsys, mirrors):
    address, files = server
    addresses = [REFUSING if mirror == "refusing" else f"{address}/{mirror}/" for mirror in mirrors.split()]
    monkeypatch.setattr("mnist.MIRRORS", addresses)
    monkeypatch.setattr("mnist.MNIST_FILES", files)
    data, printed = load_mnist(device="cpu"), line(capsys)
    found = sorted(file.name for file in course.rglob("*") if file.is_file())
    if "good" in mirrors:
        assert data.name == "MNIST" and found == sorted(MNIST_FILES) and printed == ""
    else:
        assert data.name == "digits" and found == [] and "the files that arrived were damaged" in printed


def test_without_a_network_the_digits_and_one_plain_line(course, capsys):
    started = time.monotonic()
    assert load_mnist(device="cpu").name == "digits"
    printed = line(capsys)
    assert printed.startswith("MNIST could not be downloaded (") and printed.count("\n") == 1
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts the connection and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="timed out"):
            patch.setattr("mnist.MIRRORS", [address])
            download(course / "data", timeout=1)
    assert time.monotonic() - started < 15 and socket.getdefaulttimeout() is None
    assert not any(file.is_file() for file in course.rglob("*"))
