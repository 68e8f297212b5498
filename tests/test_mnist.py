"""Where the images come from: real files, found, damaged on purpose, and downloaded from mirrors on this machine."""

import errno
import gzip
import os
import re
import shutil
import socket
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from mnist import MNIST_FILES, download, find_mnist, load_mnist, torchvision_root
from utils import MEAN, STD

SOURCE = Path(os.environ["MNIST_ROOT"], "MNIST", "raw")  # the conftest.py of the repository's root has set it
REFUSING = "http://127.0.0.1:9/"


def test_mnist_is_whole_and_its_mean_is_ours(mnist):
    assert str(mnist) == "MNIST: 60,000 training images, 10,000 test images"
    assert mnist.train_images.shape == (60_000, 1, 28, 28) and mnist.test_images.shape == (10_000, 1, 28, 28)
    assert mnist.train_images.dtype == torch.uint8 and mnist.train_labels.dtype == torch.int64
    counts = torch.bincount(mnist.train_images.flatten(), minlength=256)  # as floats, all pixels would need 190 MB
    mean = np.average(np.arange(256) / 255, weights=counts)
    std = np.average((np.arange(256) / 255 - mean) ** 2, weights=counts) ** 0.5
    assert (mean, std) == pytest.approx((MEAN, STD), abs=5e-5)
    data = load_mnist(validation=True, device="cpu")  # holds the last training images out
    assert str(data) == "MNIST: 50,000 training images, 10,000 validation images"
    assert torch.equal(torch.cat([data.train_images, data.test_images]), mnist.train_images)
    assert torch.equal(torch.cat([data.train_labels, data.test_labels]), mnist.train_labels)


def test_digits_stand_in(digits):
    assert str(digits) == "digits: 1,437 training images, 360 test images"  # all 1,797
    assert digits.train_images.shape[1:] == (1, 28, 28) and digits.train_images.dtype == torch.uint8
    assert digits.train_images.min() == 0 and digits.train_images.max() > 240
    assert digits.test_labels.dtype == torch.int64 and digits.test_labels.unique().tolist() == list(range(10))
    held_out = load_mnist("digits", validation=True, device="cpu")
    assert str(held_out) == "digits: 1,198 training images, 239 validation images"


@pytest.fixture
def course(monkeypatch, tmp_path):
    """The root of a repository without data, and a mirror that refuses the connection."""
    monkeypatch.delenv("MNIST_ROOT", raising=False)
    monkeypatch.setattr("mnist.MIRRORS", [REFUSING])
    monkeypatch.setattr("mnist.ROOT", tmp_path / "course")
    (tmp_path / "course").mkdir()
    return tmp_path / "course"


def test_files_are_found_in_order_and_damaged_ones_named_and_never_used(mnist, course, monkeypatch, capsys):
    copy = course.with_name("copy")
    raw = shutil.copytree(SOURCE, copy / "MNIST" / "raw", copy_function=shutil.copyfile)
    assert find_mnist(copy) == copy
    monkeypatch.setenv("MNIST_ROOT", str(copy))
    assert find_mnist() == copy == torchvision_root() and find_mnist("digits") is None and capsys.readouterr().out == ""
    monkeypatch.setenv("MNIST_ROOT", "../copy")  # counted from the root, wherever a notebook is
    assert find_mnist().resolve() == copy
    (copy / "MNIST" / "processed").mkdir()  # unverified: old versions of torchvision made it, and still prefer it
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(30, 28, 28), torch.zeros(30)), copy / "MNIST" / "processed" / name)
    assert str(load_mnist(device="cpu")) == "MNIST: 60,000 training images, 10,000 test images"
    file = raw / "t10k-labels-idx1-ubyte"
    good, other = file.read_bytes(), (raw / "train-labels-idx1-ubyte").read_bytes()
    damaged = (
        "10k-labels-idx1-ubyte is damaged: expected 10,008 bytes with MD5 27ae3e4e09519cfbb04c329615203637, .* delete"
    )
    for content in (b"", good[:-1], good.replace(b"\7", b"\4", 1), other):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=damaged):
            load_mnist(copy, device="cpu")
    file.unlink()
    monkeypatch.delenv("MNIST_ROOT")
    shutil.move(copy, course / "data")
    for root in (course / "data", None):  # in data/, the file is missing only because no mirror has it
        with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte is missing.*Copy it there, or delete"):
            load_mnist(root, device="cpu")


@pytest.mark.parametrize("form", ["{}.gz", "MNIST/raw/{}.gz", "raw/{}", "{} with a dot"])
def test_a_folder_that_is_named_may_hold_the_files_as_they_are_published(mnist, course, monkeypatch, form):
    for name in MNIST_FILES:
        name, _, dotted = form.format(name).partition(" with a ")
        path = course.parent / "published" / (name.replace("-idx", ".idx") if dotted else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = (SOURCE / path.name.replace(".idx", "-idx").removesuffix(".gz")).read_bytes()
        path.write_bytes(gzip.compress(content, compresslevel=1) if ".gz" in form else content)
    monkeypatch.setenv("MNIST_ROOT", str(course.parent / "published"))
    assert find_mnist() == course.parent / "published" and list(course.iterdir()) == []
    data = load_mnist(device="cpu")
    for part in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(data, part), getattr(mnist, part))
    for name in MNIST_FILES:
        assert (torchvision_root() / "MNIST" / "raw" / name).read_bytes() == (SOURCE / name).read_bytes()
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged: expected 10,008 bytes"):
        find_mnist()
    good = course.parent / "published" / "t10k-labels-idx1-ubyte.gz"  # another form of it, in another place perhaps
    if good != path:
        good.write_bytes(gzip.compress((SOURCE / "t10k-labels-idx1-ubyte").read_bytes()))
        assert find_mnist() == course.parent / "published"


@pytest.mark.parametrize("named", ["root", "MNIST_ROOT"])
def test_a_folder_that_is_named_and_holds_something_else_is_an_error_that_says_what(course, monkeypatch, named):
    folder, file = course.parent / "other", course.parent / "other" / "mnist.npz"
    folder.mkdir()
    for place, held in (
        (folder, "is empty"),
        (folder / "no", "does not exist"),
        (file, "is no folder"),
        (folder, "npz"),
    ):
        if held == "is no folder":
            file.touch()
        root = place if named == "root" else None
        monkeypatch.setenv("MNIST_ROOT", str(course if root else place))
        with pytest.raises(FileNotFoundError, match=rf"no MNIST in .*{named} names.*{held}.*packed \(.gz\) or not"):
            load_mnist(root, device="cpu")


def test_what_the_disk_refuses_is_not_called_a_failed_download_and_is_tried_first(course, monkeypatch, capsys):
    (course / "data").touch()  # so that no folder of this name can be made
    monkeypatch.setattr("mnist._fetch", lambda *_: pytest.fail("downloaded before the folder was tried"))
    assert load_mnist(device="cpu").name == "digits"
    printed = capsys.readouterr().out
    assert re.match(r"MNIST could not be written to .*data \(Not a directory\): .* digits .*MNIST_ROOT", printed)
    monkeypatch.setattr("mnist.why_not_writable", lambda *_: None)  # there was room, but not enough

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mnist._fetch", full)
    assert load_mnist(device="cpu").name == "digits" and "be written to" in (said := capsys.readouterr().out)
    assert "No space left" in said


def test_mirrors_are_tried_in_turn_and_files_seen_only_when_whole(mnist, course, monkeypatch, tmp_path, capsys):
    checked = {}
    for name, (size, md5, _) in MNIST_FILES.items():
        packed = gzip.compress((SOURCE / name).read_bytes(), compresslevel=1)
        for kind, content in (("good", packed), ("damaged", packed[:-1000] if "t10k-images" in name else packed)):
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / f"{name}.gz").write_bytes(content)
        checked[name] = size, md5, pooch.file_hash(tmp_path / "good" / f"{name}.gz", alg="md5")
    monkeypatch.setattr("mnist.MNIST_FILES", checked)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        good, damaged, missing = (
            f"http://127.0.0.1:{server.server_port}/{kind}/" for kind in ("good", "damaged", "no")
        )
        for number, mirrors in enumerate(((damaged, good), (missing, good), (REFUSING, good), (missing, damaged))):
            root = course / str(number)
            monkeypatch.setattr("mnist.ROOT", root)
            monkeypatch.setattr("mnist.MIRRORS", mirrors)
            found, printed = find_mnist(), capsys.readouterr().out.rpartition("\r")[2]  # the bar erases itself
            names = sorted(file.name for file in root.rglob("*") if file.is_file())
            if good in mirrors:
                assert (found, names, printed) == (root / "data", sorted(MNIST_FILES), "")
            else:
                assert (found, names) == (None, []) and "the files that arrived were damaged" in printed
        server.shutdown()


def test_without_a_network_the_digits_and_one_plain_line(course, monkeypatch, capsys):
    started = time.monotonic()
    assert load_mnist(device="cpu").name == "digits"
    printed = capsys.readouterr().out.rpartition("\r")[2]
    assert printed.startswith("MNIST could not be downloaded (") and printed.count("\n") == 1
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts the connection and never answers
        monkeypatch.setattr("mnist.MIRRORS", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        with pytest.raises(OSError, match="ReadTimeout at http"):
            download(course / "data", timeout=1)
    assert time.monotonic() - started < 15 and socket.getdefaulttimeout() is None and list(course.iterdir()) == []


def test_first_images_are_the_first_ones(few):
    part = few.first(7, 3)
    counts = [len(of) for of in (part.train_images, part.train_labels, part.test_images, part.test_labels)]
    assert counts == [7, 7, 3, 3]
    assert torch.equal(part.train_images, few.train_images[:7]) and part.name == few.name
