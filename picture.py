"""A picture becomes an MNIST image: read a digit of your own (notebook 10)."""

import contextlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps


def read_image(image: str | Path | Image.Image | np.ndarray | torch.Tensor) -> torch.Tensor:
    """Return the picture of one digit as MNIST would have it: uint8, ``(1, 1, 28, 28)``, 0 (background) to 255.

    Dark ink on light paper and light ink on a dark ground will both do: whatever differs from the border is ink. As in
    MNIST, the ink is scaled to fit 20 x 20 pixels, and its centre of mass is put into the middle of 28 x 28. Whether
    the ink is a digit is not asked.

    Args:
        image: a file that Pillow can read, a Pillow image (what is transparent counts as white paper), or an array of
            shape ``(H, W)``, ``(1, H, W)`` or ``(H, W, 1)``, of any range of values, or ``(H, W, 3)`` or ``(H, W, 4)``
            of uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, or a damaged or far too large one; an array has another shape or holds what is
            not a finite number; nothing is drawn, or nearly everything is ink (a dark frame around the paper, often).

    Source: the steps that LeCun and others (1998) describe for MNIST.
    """
    if isinstance(image, (str, Path)) and not Path(image).is_file():
        raise FileNotFoundError(f"no such file: {image}")
    if isinstance(image, (str, Path, Image.Image)):
        try:
            with contextlib.nullcontext(image) if isinstance(image, Image.Image) else Image.open(image) as opened:
                pixels = _grey(opened)
        except Exception as error:  # on damaged files Pillow raises whatever it stumbles over
            raise ValueError(
                f"{image} cannot be read as a picture ({error}): expected a whole PNG, JPEG or the like"
            ) from error
    else:
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu().to_dense()
            image = image.numpy() if image.dtype == torch.uint8 else image.double().numpy()
        pixels = np.asarray(image)
        if pixels.dtype.kind not in "buif":
            raise ValueError(f"expected an array of numbers, got one of {pixels.dtype}")
        shape = pixels.shape
        if len(shape) == 3 and shape[2] in (3, 4) and pixels.dtype == np.uint8 and 0 not in shape:
            pixels = _grey(Image.fromarray(pixels))
        elif len(shape) == 3 and 1 in (shape[0], shape[2]):
            pixels = pixels[0] if shape[0] == 1 else pixels[:, :, 0]
        if pixels.ndim != 2 or 0 in shape:
            raise ValueError(
                "expected one image of shape (H, W), (1, H, W) or (H, W, 1), or of uint8 and shape (H, W, 3) or "
                f"(H, W, 4), got {pixels.dtype} of shape {shape}"
            )
    pixels = pixels.astype(np.float64)
    if 0 in pixels.shape or not np.isfinite(pixels).all():
        raise ValueError("expected pixels that are finite numbers, got none, or NaN or infinity among them")
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ink = np.abs(pixels - np.median(border))
    if ink.max() == 0:
        raise ValueError("expected a picture of a digit, got one colour everywhere")
    # Paper is never quite even: eight times the usual deviation of the border is still paper, and so is a trace of ink.
    unevenness = np.median(np.abs(border - np.median(border)))
    ink[ink < max(0.05 * ink.max(), 8 * unevenness)] = 0
    if ink.max() == 0:
        raise ValueError("expected a digit on an even ground, got a picture whose border varies as much as the rest")
    rows, columns = np.flatnonzero(ink.max(1)), np.flatnonzero(ink.max(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    ink = (ink * (255 / ink.max())).astype(np.float32)
    factor = 20 / max(ink.shape)
    size = [max(1, round(side * factor)) for side in ink.shape[::-1]]
    ink = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BICUBIC)).clip(0, 255)
    ink = ink * (255 / ink.max())  # thin strokes have become pale
    # A fat 1 fills its narrow box; of MNIST's broader digits, none fills more than 0.79.
    if min(ink.shape) >= 10 and ink.mean() > 0.85 * 255:
        raise ValueError(
            "expected a digit on a ground that reaches the border, got a picture that is nearly all ink: is there a "
            "frame, or a table around the paper? Cut it off."
        )
    # The centre of mass goes to the middle of pixel 14, counted from 0, as in MNIST, as far as the 28 pixels allow.
    places = []
    for axis in (0, 1):
        mass = ink.sum(1 - axis)
        centre = (mass * (np.arange(len(mass)) + 0.5)).sum() / mass.sum()
        places.append(int(np.clip(round(14.5 - centre), 0, 28 - len(mass))))
    result = np.zeros((28, 28), np.float32)
    result[places[0] : places[0] + ink.shape[0], places[1] : places[1] + ink.shape[1]] = ink
    return torch.from_numpy(result.round().astype(np.uint8)).view(1, 1, 28, 28)


def _grey(image: Image.Image) -> np.ndarray:
    """Return the grey values of a picture, ``(H, W)``, what is transparent on white, and turned as it was taken."""
    image = ImageOps.exif_transpose(image)  # phones store photographs turned, with a note how
    if image.mode[0] in "IF":  # 16 or 32 bits, which convert would cut off at 255
        return np.asarray(image)
    if not image.has_transparency_data:
        return np.asarray(image.convert("L"))
    image = image.convert("RGBA")
    grey = np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L"))
    return grey if grey.size and np.ptp(grey) else np.asarray(image.getchannel("A"))  # white ink on nothing
