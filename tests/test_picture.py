"""Pictures become MNIST images, however they were drawn and stored; what is no picture of a digit is refused."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from model import Net8k
from picture import read_image
from utils import load_weights, predict


def photograph(pixels):
    """A drawing as a phone would see it: grey ink on uneven paper, off the middle, and with noise."""
    large = np.pad(np.kron(150 - 0.6 * pixels, np.ones((9, 9))), ((30, 90), (120, 10)), constant_values=150)
    large += np.random.default_rng(0).normal(0, 5, large.shape) + np.linspace(0, 15, large.shape[1])
    return Image.fromarray(large.clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize(
    "change, close",  # and how much the mean grey value may change
    [
        (lambda pixels: pixels, 0),
        (lambda pixels: 255 - np.pad(pixels, ((9, 40), (70, 3))), 0),
        (lambda pixels: torch.from_numpy(pixels / 255.0)[None], 0),
        (lambda pixels: np.maximum(pixels, 8 * (np.arange(784) == 0).reshape(28, 28)), 0),  # a speck, 3 % of the ink
        (lambda pixels: Image.fromarray((40_000 + 80 * pixels.astype(np.int32)).astype(np.uint16)), 0),  # 16 bits
        (lambda pixels: np.dstack([pixels] * 3)[3:, 2:-1], 1),  # cut, in colour
        (lambda pixels: Image.fromarray(255 - pixels).resize((300, 300), Image.Resampling.BICUBIC), 8),
        (photograph, 8),
    ],
)
def test_a_digit_is_read_however_it_is_drawn(data, change, close):
    step = len(data.test_labels) // 250
    images, labels = data.test_images[::step], data.test_labels[::step]
    plain = torch.cat([read_image(image[0].numpy()) for image in images])
    again = torch.cat([read_image(change(image[0].numpy())) for image in images])
    assert again.dtype == torch.uint8 and (again.float() - plain.float()).abs().mean() <= close
    right = (predict(load_weights(Net8k(), "target-8k/seed0"), again).argmax(1) == labels).float().mean()
    if data.name == "MNIST":  # whose steps these are
        assert right >= 0.98 and (plain - images.float()).abs().mean() < 1
    assert right >= 0.9  # of the digits, which the network has never seen


def a_seven(mode="L", width=7, scale=1):
    """A 7 in black on white, 60 pixels wide and 100 high."""
    image = Image.new("L", (60 * scale, 100 * scale), 255)
    corners = [(10 * scale, 20 * scale), (50 * scale, 20 * scale), (25 * scale, 85 * scale)]
    ImageDraw.Draw(image).line(corners, fill=0, width=width)
    return image.convert(mode)


def test_every_kind_of_picture_and_of_pen(tmp_path):
    pictures = [a_seven(mode) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")]
    pictures += [a_seven(width=width, scale=10) for width in (1, 3, 10, 40)]  # thin strokes do not fade
    for ink in (0, 255):  # black and white, on nothing
        pictures.append(Image.merge("RGBA", [Image.new("L", (60, 100), ink)] * 3 + [ImageOps.invert(a_seven())]))
    suffixes = ["tif" if picture.mode in ("CMYK", "I;16", "I", "F") else "png" for picture in pictures]
    files = [tmp_path / f"{number}.{suffix}" for number, suffix in enumerate(suffixes)]
    for picture, file in zip(pictures, files):
        picture.save(file)
    (exif := Image.Exif())[0x0112] = 6  # the camera was turned: show it turned back, clockwise
    a_seven().rotate(90, expand=True).save(phone := tmp_path / "phone.jpg", exif=exif)
    pictures += [*files, *map(str, files), phone, Image.open(phone), np.asarray(pictures[-2])]
    images = torch.cat([read_image(picture) for picture in pictures])
    assert predict(load_weights(Net8k(), "target-8k/seed0"), images).argmax(1).tolist() == [7] * len(pictures)
    assert images.amax((1, 2, 3)).tolist() == [255] * len(pictures)
    rows, columns = (images.amax((1, axis)).gt(0).sum(1) for axis in (3, 2))
    assert rows.unique().tolist() == [20] and columns.max() < 20  # 20 pixels high, and not stretched
    one_side = np.zeros((28, 28))  # the ink stays inside, though it is not in the middle
    one_side[4:24, 4], one_side[22:24, 4:24] = 20, 255
    image = read_image(one_side)[0, 0]
    assert image[0].max() > 0 and image[19].max() > 200 and (image > 0).sum() == 20 + 2 * 20 - 2


NOISE = np.random.default_rng(0)


@pytest.mark.parametrize(
    "image, complaint",
    [
        ("no-such.png", "no such file.*no-such.png"), (".", "no such file"), ("text.png", "text.png cannot be read as"),
        ("cut.png", "cut.png cannot be read as a picture"), (Image.open, "cannot be read as a picture"),
        (np.zeros((28, 28)), "one colour everywhere"), (Image.new("RGB", (9, 9), "white"), "one colour everywhere"),
        (NOISE.random((28, 28)), "even ground"), (NOISE.normal(size=(100, 100)), "even ground"),
        (ImageOps.expand(a_seven(), 20, fill=30), "is there a frame"), (np.eye(1, 28), "nearly all ink"),
        (Image.new("L", (0, 5)), "finite numbers, got none"), (np.full((28, 28), np.nan), "NaN"),
        (np.zeros((28, 28, 4)), "float64 of shape"), (np.zeros((5, 1, 28, 28)), r"of shape \(5, 1, 28, 28\)"),
        (np.zeros((28, 28, 2)), r"of shape \(28, 28, 2\)"), (np.zeros((0, 28)), r"of shape \(0, 28\)"),
        (np.array([["a"]]), "array of numbers"), (None, "array of numbers"),
    ],
)  # fmt: skip
def test_what_is_no_digit_is_named(tmp_path, image, complaint):
    (tmp_path / "text.png").write_text("seven")
    a_seven(scale=10).save(cut := tmp_path / "cut.png")
    cut.write_bytes(cut.read_bytes()[:-500])
    image = tmp_path / image if isinstance(image, str) else Image.open(cut) if image is Image.open else image
    with pytest.raises(FileNotFoundError if "no such" in complaint else ValueError, match=complaint):
        read_image(image)
