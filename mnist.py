"""Where the images come from: found on the disk, or downloaded and checked, or replaced by scikit-learn's digits.

Most of the course needs ``load_mnist`` alone, which ``utils`` passes on.
"""

import atexit
import functools
import gzip
import hashlib
import os
import shutil
import sys
import tempfile
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pooch
import torch
import torch.nn.functional as F
from tqdm import tqdm

from files import why_not_writable, write_whole

ROOT = Path(__file__).resolve().parent

# Size in bytes and MD5 of the four files, as Yann LeCun published them, and the MD5 of what the mirrors have (gzip).
MNIST_FILES = {
    "train-images-idx3-ubyte": (47_040_016, "6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    "train-labels-idx1-ubyte": (60_008, "a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
    "t10k-images-idx3-ubyte": (7_840_016, "2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
    "t10k-labels-idx1-ubyte": (10_008, "27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
}
MIRRORS = [
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
]


@dataclass(frozen=True)
class Data:
    """Images to train on and images to evaluate on, all on one device.

    Images are uint8 tensors of shape ``(N, 1, 28, 28)``, 0 (background) to 255 (ink); labels are int64 tensors of shape
    ``(N,)``, 0 to 9. ``name`` is ``"MNIST"`` or ``"digits"``. ``evaluated_on`` says what the ``test_`` tensors hold:
    ``"test"``, or ``"validation"`` for training images that were held out.
    """

    in_use: ClassVar[str | None] = None  # the name of the data that was made last: runs on it are read first

    name: str
    evaluated_on: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    def __post_init__(self):
        Data.in_use = self.name

    def __str__(self) -> str:
        return (
            f"{self.name}: {len(self.train_labels):,} training images, "
            f"{len(self.test_labels):,} {self.evaluated_on} images"
        )

    def first(self, train_count: int, test_count: int) -> "Data":
        """Return so many of the training and of the test images, the first ones."""
        return replace(
            self,
            train_images=self.train_images[:train_count],
            train_labels=self.train_labels[:train_count],
            test_images=self.test_images[:test_count],
            test_labels=self.test_labels[:test_count],
        )


def load_mnist(
    root: str | Path | None = None, *, validation: bool = False, device: torch.device | str | None = None
) -> Data:
    """Return MNIST, 60,000 training and 10,000 test images, as tensors on ``device``.

    Where ``find_mnist`` finds no files, the 1,797 handwritten digits inside scikit-learn take MNIST's place
    (``name == "digits"``).

    Args:
        root: see ``find_mnist``.
        validation: hold out the last sixth of the training images (10,000 for MNIST) and evaluate on them; the test
            images are then not in the result. For choosing settings.
        device: where the tensors go; default ``pick_device()``.

    Raises:
        ValueError, FileNotFoundError: see ``find_mnist``.
    """
    device = torch.device(device) if device else pick_device()
    folder, contents = _find(root)
    name, (train, test) = ("MNIST", _read(contents)) if folder else ("digits", _load_digits())
    if validation:
        held_out = len(train[1]) // 6
        train, test = [t[:-held_out] for t in train], [t[-held_out:] for t in train]
    return Data(name, "validation" if validation else "test", *(t.to(device) for t in (*train, *test)))


def pick_device() -> torch.device:
    """Return the fastest device here: a CUDA GPU, Apple's MPS, or the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a GPU whose driver is too old for this PyTorch: the CPU will do
        if torch.cuda.is_available():
            return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def find_mnist(root: str | Path | None = None) -> Path | None:
    """Return the folder that holds MNIST, downloading it if need be; None stands for scikit-learn's digits.

    The folder is ``root``, or else the one that the environment variable ``MNIST_ROOT`` names, or else ``data/`` beside
    this file, into which MNIST is downloaded if it is not there. The four files may be packed (``.gz``), as they were
    published, and lie in the folder itself or, as torchvision has them, in ``MNIST/raw/`` inside. They are trusted only
    after their MD5 matches.

    Args:
        root: a relative one counts from the working directory or from the repository's root. ``"digits"`` (here or in
            ``MNIST_ROOT``) asks for scikit-learn's digits at once.

    Raises:
        ValueError: a file is damaged.
        FileNotFoundError: a folder that was named does not hold MNIST; or some of the four files are there and others
            are missing (in ``data/``, only if they cannot be downloaded).
    """
    return _find(root)[0]


def _find(root: str | Path | None) -> tuple[Path | None, dict[str, bytes]]:
    """Return what ``find_mnist`` returns, and what the four files hold."""
    asked = root or os.environ.get("MNIST_ROOT")
    if str(asked) == "digits":
        return None, {}
    if asked:
        places = [Path(asked).expanduser(), ROOT / asked]
        for folder in places:
            if contents := _contents(folder):
                return folder, contents
        raise FileNotFoundError(_found_instead(asked, "root" if root else "MNIST_ROOT", places))
    folder = ROOT / "data"
    incomplete = None
    try:
        if contents := _contents(folder):
            return folder, contents
    except FileNotFoundError as error:
        incomplete = error  # the course's own folder: download the whole set again
    try:
        download(folder)
    except OSError as error:
        problem = (
            f"could not be {'downloaded' if isinstance(error, ConnectionError) else f'written to {folder}'} ({error})"
        )
        if incomplete:
            raise FileNotFoundError(f"MNIST {problem}; {incomplete}") from error
        print(
            f"MNIST {problem}: using the 1,797 digits of scikit-learn instead, which say nothing about MNIST. "
            "If you have the files, name their folder before: os.environ['MNIST_ROOT'] = 'folder'."
        )
        return None, {}
    return folder, _contents(folder)


def download(folder: Path, timeout: float = 6) -> None:
    """Download MNIST into ``folder``, from the first mirror that has it; nothing is seen there before all is verified.

    Args:
        folder: where ``MNIST/raw/`` shall be.
        timeout: seconds after which a mirror that sends nothing is given up; a third of it, after which an address of
            it that does not answer at all.

    Raises:
        ConnectionError: no mirror answered, or what arrived was damaged.
        OSError: the disk is full, or the folder cannot be written to; this is tried first.
    """
    import requests  # here: only a download needs it, and pooch loads it only then, too

    pooch.get_logger().setLevel("WARNING")  # its notes would stand on the notebook's page
    raw, reason = folder / "MNIST" / "raw", None
    if problem := why_not_writable(raw / "train-images-idx3-ubyte", sum(size for size, _, _ in MNIST_FILES.values())):
        raise OSError(problem)
    with tempfile.TemporaryDirectory(prefix="mnist-") as temporary:
        for mirror in MIRRORS:
            try:
                packed = {
                    name: _fetch(f"{mirror}{name}.gz", md5, temporary, timeout)
                    for name, (_, _, md5) in MNIST_FILES.items()
                }
                break
            except requests.RequestException as error:  # which is an OSError too, as those of the disk are
                reason = f"{type(error).__name__} at {mirror}"
            except ValueError:  # pooch's word for a wrong checksum
                reason = "the files that arrived were damaged"
        else:
            raise ConnectionError(reason)
        write_whole({raw / name: gzip.decompress(Path(file).read_bytes()) for name, file in packed.items()})


def _fetch(url: str, md5: str, folder: str, timeout: float) -> str:
    """Download one file into ``folder``, with a bar, and return its path. Raises ValueError if its MD5 is another."""
    name = url.rpartition("/")[2]
    with tqdm(total=1, desc=name, unit="B", unit_scale=True, leave=False, file=sys.stdout) as bar:
        downloader = pooch.HTTPDownloader(timeout=(timeout / 3, timeout), progressbar=bar)
        return pooch.retrieve(url, f"md5:{md5}", name, folder, downloader=downloader)


def torchvision_root() -> Path | None:
    """Return a folder that ``torchvision.datasets.MNIST`` can read, or None if there are only the digits.

    It is that of ``find_mnist``; or, if the files there are packed or in other places, a copy (55 MB) that is removed
    when the program ends.
    """
    folder = find_mnist()
    if folder is None or all((folder / "MNIST" / "raw" / name).is_file() for name in MNIST_FILES):
        return folder
    return _unpacked(folder)


@functools.cache
def _unpacked(folder: Path) -> Path:
    """Return a folder with the files of this one as ``torchvision`` wants them."""
    unpacked = Path(tempfile.mkdtemp(prefix="mnist-"))
    atexit.register(shutil.rmtree, unpacked, ignore_errors=True)
    write_whole({unpacked / "MNIST" / "raw" / name: content for name, content in _contents(folder).items()})
    return unpacked


def _files_in(folder: Path) -> dict[str, list[Path]]:
    """Return the files of MNIST in a folder, those that there are: each in the places and forms that it may have."""
    places = (folder / "MNIST" / "raw", folder / "raw", folder)
    found = {}
    for name in MNIST_FILES:
        forms = [form + end for form in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
        if paths := [place / form for place in places for form in forms if (place / form).is_file()]:
            found[name] = paths
    return found


def _content(path: Path) -> bytes:
    """Return what a file holds, unpacked; or as it is, if it is packed and damaged."""
    content = path.read_bytes()
    try:
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error):
        return content


def _contents(folder: Path) -> dict[str, bytes]:
    """Return what the four files in a folder hold, unpacked; nothing, if there is none of them.

    Raises FileNotFoundError or ValueError if they are not all there and right.
    """
    files, contents = _files_in(folder), {}
    if not files:
        return {}
    place = next(iter(files.values()))[0].parent
    again = f"delete the files of MNIST in {place} (and unset MNIST_ROOT) to have all four downloaded again"
    if missing := [name for name in MNIST_FILES if name not in files]:
        raise FileNotFoundError(
            f"{place / missing[0]} is missing, though other files of MNIST are there. Copy it there, or {again}."
        )
    for name, (size, md5, _) in MNIST_FILES.items():
        problem = ""
        for path in files[name]:
            content = _content(path)
            if (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) == md5:
                contents[name] = content
                break
            problem = problem or (
                f"{path} is damaged: expected {size:,} bytes with MD5 {md5}{', unpacked' * (path.suffix == '.gz')}, "
                f"found {len(content):,} bytes with MD5 {found}. Replace it by a good copy, or {again}."
            )
        else:
            raise ValueError(problem)
    return contents


def _found_instead(asked: str | Path, name: str, places: list[Path]) -> str:
    """Return a sentence on what there is in a folder that was named, and does not hold MNIST."""
    place = next((place for place in places if place.exists()), places[0]).absolute()
    if place.is_dir():
        names = sorted(path.name for path in place.iterdir())
        held = f"holds {', '.join(names[:8])}{' and more' if len(names) > 8 else ''}" if names else "is empty"
    else:
        held = "is no folder" if place.exists() else "does not exist"
    return (
        f"no MNIST in {asked}, which {name} names: {place} {held}. Expected {', '.join(MNIST_FILES)}, packed (.gz) or "
        "not, in it or in MNIST/raw/ inside. If no folder is named, MNIST is looked for in data/, or downloaded; "
        "'digits' asks for scikit-learn's digits."
    )


def _read(contents: dict[str, bytes]) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Return the images and labels of the training set, and of the test set."""
    # Not through torchvision.datasets.MNIST, which reads no packed files, and prefers what older versions have left.

    def read(name: str, header: int) -> torch.Tensor:
        return torch.frombuffer(bytearray(contents[name]), dtype=torch.uint8, offset=header)

    return tuple(
        (
            read(f"{part}-images-idx3-ubyte", 16).view(-1, 1, 28, 28),
            read(f"{part}-labels-idx1-ubyte", 8).long(),
        )
        for part in ("train", "t10k")
    )


def _load_digits() -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Return scikit-learn's 8 x 8 digits, framed as MNIST's are: 20 x 20 pixels in the middle of 28 x 28."""
    # Imported where it is needed: with MNIST it would only cost 80 MB in every notebook.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)
    images = F.pad(F.interpolate(images, (20, 20), mode="bilinear"), (4, 4, 4, 4)).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    splits = train_test_split(range(len(labels)), test_size=0.2, stratify=digits.target, random_state=0)
    return tuple((images[split], labels[split]) for split in splits)
