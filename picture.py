"""A picture becomes an MNIST image: read a digit of your own (notebook 13)."""

import contextlib
import io
import os
import warnings
from itertools import chain, pairwise
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from scipy.ndimage import binary_dilation, find_objects, sum_labels
from skimage.filters import apply_hysteresis_threshold, threshold_otsu
from skimage.measure import label
from skimage.morphology import convex_hull_image
from skimage.segmentation import clear_border

# Chosen on pictures made from MNIST's training images; scripts/pictures.py measures them on others.
LONGEST = 400  # pixels: a larger picture is shrunk, which also takes away the camera's noise
SEPARABLE = 0.71  # ink and paper explain this part of the variance; noise without ink has 2 / pi = 0.64
FAINT = 0.1  # the least difference between ink and paper, as a part of the largest value
SPECK = 0.03  # what has a smaller part of the heaviest mark's ink is dirt
MARK = 0.1  # what has a larger part of the ink is worth a look

TURNS = {  # of each note of a camera but 1, which is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
FILLED = "expected a digit, got a filled area: is there a frame, or a table around the paper? Cut it off."
LUMA = np.array([0.299, 0.587, 0.114])  # how bright red, green and blue are, as Pillow has it (ITU-R 601-2)


def read_image(
    image: str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor,
) -> torch.Tensor:
    """Return the picture of one digit as MNIST would have it: uint8, ``(1, 1, 28, 28)``, 0 (background) to 255.

    Dark ink on light paper and light ink on a dark ground will both do, and so will light that falls from one side. As
    in MNIST, the ink is scaled to fit 20 x 20 pixels, and its centre of mass is put into the middle of 28 x 28.
    Whether a single mark on the paper is a digit is not asked.

    Args:
        image: a file that Pillow can read: its path, its bytes, or the open file; a Pillow image (what is transparent
            counts as white paper); or an array or tensor of shape ``(H, W)``, of any range of values, with an axis of 1
            (grey), 3 (RGB) or 4 (RGBA) before or behind them. RGBA has values of 0 to 255, or floats of 0 to 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, or a damaged or far too large one; an array has another shape or holds what is
            not a finite number; no ink stands out from the paper, or nearly everything is ink; there are several
            digits, a line, a frame, or a shadow.

    Source: the steps that LeCun and others (1998) describe for MNIST; Otsu, "A threshold selection method from
    gray-level histograms" (1979).
    """
    pixels = _finite(_open(image))
    return torch.from_numpy(_as_mnist(_find_ink(pixels))).view(1, 1, 28, 28)


def _finite(pixels: np.ndarray) -> np.ndarray:
    """Return the pixels, or raise a ValueError if there are none, or one that is not a finite number."""
    if pixels.size == 0 or not np.isfinite(pixels).all():
        raise ValueError("expected pixels that are finite numbers, got none, or NaN or infinity among them")
    return pixels


def _open(image) -> np.ndarray:
    """Return the grey values of anything that ``read_image`` takes, float64, ``(H, W)``, shrunk if it is large."""
    if isinstance(image, (str, os.PathLike)):
        image = os.fspath(image)
        if not os.path.isfile(image):
            raise FileNotFoundError(f"no such file: {image}")
    if isinstance(image, (str, bytes, bytearray, Image.Image)) or hasattr(image, "read"):
        source = io.BytesIO(image) if isinstance(image, (bytes, bytearray)) else image
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, about what it can read all the same
                if isinstance(image, Image.Image):
                    return _grey(image)
                with Image.open(source) as opened:
                    opened.draft("RGB", (LONGEST, LONGEST))  # a large JPEG need not be unpacked in full
                    return _grey(opened)
        except Exception as error:  # on damaged files Pillow raises whatever it stumbles over
            name = image if isinstance(image, str) else getattr(image, "name", None) or "the picture"
            if _is_heic(source):
                raise ValueError(
                    f"{name} is in Apple's format HEIC, which Pillow cannot read: export it as JPEG (or install "
                    "pillow-heif and call pillow_heif.register_heif_opener())"
                ) from error
            reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
            raise ValueError(
                f"{name} cannot be read as a picture ({reason}): expected a whole PNG, JPEG or the like"
            ) from error
    try:
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu().to_dense()
            image = image.numpy() if image.is_complex() or image.dtype == torch.uint8 else image.double().numpy()
        array = np.asarray(image)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        raise ValueError(f"expected an array of numbers, got one that NumPy cannot hold ({error})") from error
    if array.dtype.kind not in "buif":
        raise ValueError(f"expected an array of numbers, got one of {array.dtype}")
    shape = array.shape
    while array.ndim > 3 and array.shape[0] == 1:  # a batch of one
        array = array[0]
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in shape:
        raise ValueError(
            "expected one image of shape (H, W), with an axis of 1, 3 or 4 before or behind them for grey, RGB or "
            f"RGBA, got {array.dtype} of shape {shape}"
        )
    few = max(1, max(array.shape[:2]) // (4 * LONGEST))  # of a very large array, every so many pixels are enough
    array = array[::few, ::few]
    if array.dtype != np.uint8:
        scale = 255 if array.dtype.kind == "f" and array.max() <= 1 else 1  # of RGBA
        array = _finite(array.astype(np.float64))
        largest = np.abs(array).max()
        if array.shape[2] < 4:
            array = array / (largest or 1)
            return _grey(Image.fromarray((array @ LUMA if array.shape[2] == 3 else array[:, :, 0]).astype(np.float32)))
        if array.min() < 0 or largest > 255:
            raise ValueError(f"expected RGBA of 0 to 255, or of 0 to 1, got {array.min():g} to {largest:g}")
        array = (array * scale).round().astype(np.uint8)
    return _grey(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array)))


def _is_heic(source) -> bool:
    with contextlib.suppress(Exception):
        with contextlib.nullcontext(source) if hasattr(source, "read") else open(source, "rb") as file:
            file.seek(0)
            start = file.read(12)
        return start[4:8] == b"ftyp" and start[8:11] in (b"hei", b"hev", b"mif", b"msf")
    return False


def _grey(image: Image.Image) -> np.ndarray:
    """Return the grey values of a picture, ``(H, W)``, what is transparent on white, and turned as it was taken."""
    image.load()  # which turns a TIFF by itself
    turned = 1
    with contextlib.suppress(Exception):  # a damaged note does not make the picture unreadable
        turned = image.getexif().get(0x0112, 1)  # phones store photographs turned, with a note how
    if image.mode[0] in "IF":  # 16 or 32 bits, which convert("L") would cut off at 255
        image = image.convert("F")
    elif image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode != "RGBA" and image.has_transparency_data:
        image = image.convert("RGBA")
    image = image.reduce(max(1, -(-max(image.size) // LONGEST)))
    if turned in TURNS:
        image = image.transpose(TURNS[turned])
    if image.mode == "RGBA":
        whole = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L")
        faint = np.ptp(np.asarray(whole, np.int64)) < FAINT * 255
        image = image.getchannel("A") if faint else whole  # white ink on nothing
    return np.asarray(image if image.mode == "F" else image.convert("L")).astype(np.float64)


def _find_ink(pixels: np.ndarray) -> np.ndarray:
    """Return the ink of the one digit in a picture, 0 to 1, cut at its edges.

    It looks twice: from far for the place of the digit, then from near for its ink. From far, a little ink on much
    paper, which is never quite even, is hard to tell from the paper.
    """
    if np.ptp(pixels) == 0:
        raise ValueError("expected a picture of a digit, got one colour everywhere")
    whole, largest = pixels.shape, np.abs(pixels).max()
    ink = _above_paper(pixels, _border(pixels))
    if (cleared := _without_border(pixels, ink, largest)) is not None:
        pixels, ink = cleared, _above_paper(cleared, _border(cleared))
    mask = ink > threshold_otsu(ink)
    rows, columns = _box(mask)
    margin = max(2, round(0.25 * max(rows.stop - rows.start, columns.stop - columns.start)))
    place = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in (rows, columns))
    paper = ~binary_dilation(mask, iterations=2)[place]  # the edge of a stroke is neither ink nor paper
    pixels = pixels[place]
    ink = _above_paper(pixels, paper if paper.mean() > 0.1 else _border(pixels))
    threshold = threshold_otsu(ink)
    strong = ink > threshold
    if complaint := _complaint(ink, strong, largest):
        raise ValueError(complaint)
    # Weaker ink counts too where it is joined to strong ink: down to a quarter of it, or less far if it would reach
    # the border, as the lines of ruled paper do.
    weakest = apply_hysteresis_threshold(ink, threshold / 4, threshold)
    stronger = (apply_hysteresis_threshold(ink, threshold / part, threshold) for part in (2, 1))
    mask = next((mask for mask in chain([weakest], stronger) if not mask[_border(mask)].any()), weakest)
    mask = _one_digit(ink, mask)
    full = np.percentile(ink[mask & strong], 98)  # not the largest value: a single pixel would make the rest pale
    touches = mask[_border(mask)].any()
    along = max(mask[[0, -1]].sum(1).max() / whole[1], mask[:, [0, -1]].sum(0).max() / whole[0])
    around = convex_hull_image(mask).sum()  # what a rubber band around the ink would enclose
    if along > 0.9 and mask.sum() > 0.9 * around:
        raise ValueError("expected a digit, got an area along the border: is there a shadow, or a table? Cut it off.")
    sides = [side.stop - side.start for side in _box(mask)]
    # A sheet of paper has the table all around it. (A picture below 60 pixels is no photograph, and may be fat ink.)
    large = min(whole) >= 60 and around > 0.3 * whole[0] * whole[1] and min(sides) > 0.5 * max(sides)
    if large and not touches and (mask & strong).sum() > 0.85 * around:
        raise ValueError(FILLED)
    ink = (mask * ink / full).clip(0, 1)[_box(mask)]
    # A fat 1 fills its narrow box; of MNIST's broader digits, none fills more than 0.79.
    if min(ink.shape) >= max(ink.shape) / 2 and ink.mean() > 0.85:
        raise ValueError(
            "expected a digit on a ground that reaches the border, got a picture that is nearly all ink"
            if touches
            else FILLED
        )
    return ink


def _without_border(pixels: np.ndarray, ink: np.ndarray, largest: float) -> np.ndarray | None:
    """Return the picture with paper over what comes in from its border (a table, a shadow), if a digit is left."""
    threshold = threshold_otsu(ink)
    # Weak ink as well: the soft edge of what is taken away would be left otherwise.
    mask = apply_hysteresis_threshold(ink, threshold / 4, threshold)
    outer = binary_dilation(mask & ~clear_border(mask), iterations=2)
    if outer.any() and not outer.all():
        threshold = threshold_otsu(ink[~outer])
        rest = clear_border((ink > threshold) & ~outer)
        if (
            rest.any()
            and ink[rest].sum() >= SPECK * ink[mask].sum()
            and max(side.stop - side.start for side in _box(rest)) >= min(pixels.shape) / 6
            and not _complaint(np.where(outer, 0, ink), rest, largest)
        ):
            return np.where(outer, _plane(pixels, ~outer & ~rest), pixels)
    return None


def _above_paper(pixels: np.ndarray, paper: np.ndarray) -> np.ndarray:
    """Return how far each pixel differs from the paper, in the direction in which the ink does (positive)."""
    ink = pixels - _plane(pixels, paper)
    return ink if (ink * ink * ink).sum() > 0 else -ink  # the largest differences are those of the ink


def _plane(pixels: np.ndarray, paper: np.ndarray) -> np.ndarray:
    """Return the paper's grey everywhere: the plane through the pixels of a mask, so that light may come from a side.

    What lies far from the plane (ink that reaches the border) is left out, and the plane is laid again.
    """
    rows, columns = np.nonzero(paper)
    few = slice(None, None, -(-len(rows) // 2000))  # of many pixels, two thousand are enough
    values, terms = pixels[paper][few], np.stack([np.ones(len(rows)), rows, columns], 1)[few]
    level = np.median(values)
    far = np.abs(values - level)
    if np.median(far) == 0:  # an even ground
        return np.full(pixels.shape, level)
    high = values > threshold_otsu(values)
    if 0.2 < high.mean() < 0.8 and _separability(values, high) > 0.9:  # ink reaches the border on a wide front
        return np.full(pixels.shape, level)
    for _ in range(5):
        kept = far <= 2.5 * np.median(far)
        plane = np.linalg.lstsq(terms[kept], values[kept], rcond=None)[0]
        far = np.abs(values - terms @ plane)
    row, column = np.indices(pixels.shape)
    return plane[0] + plane[1] * row + plane[2] * column


def _separability(values: np.ndarray, high: np.ndarray) -> float:
    """Return which part of the variance two groups of values explain, 0 to 1: what Otsu's threshold makes largest."""
    share = high.mean()
    return share * (1 - share) * (values[high].mean() - values[~high].mean()) ** 2 / values.var()


def _border(pixels: np.ndarray) -> np.ndarray:
    """Return a mask of the outermost pixels."""
    mask = np.ones(pixels.shape, bool)
    mask[1:-1, 1:-1] = False
    return mask


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and the columns from the first to the last pixel of a mask."""
    return find_objects(mask.astype(int))[0]


def _complaint(ink: np.ndarray, strong: np.ndarray, largest: float) -> str:
    """Say why what stands out is no ink; an empty string if it is."""
    share, difference = strong.mean(), ink[strong].mean() - ink[~strong].mean()
    # In noise, a pixel's neighbour is ink as often as any other pixel; ink has neighbours.
    changes = np.concatenate([np.diff(strong, axis=axis).ravel() for axis in (0, 1)]).mean()
    if _separability(ink, strong) < SEPARABLE or changes > 0.9 * 2 * share * (1 - share):
        return (
            "expected a digit on an even ground, got a picture in which no ink stands out from the rest: cut out the "
            "digit, or take a stronger pen, or more even light"
        )
    if difference < FAINT * largest:
        return (
            f"expected ink that is clearly darker or lighter than the paper, got a difference of "
            f"{100 * difference / largest:.0f} % of the largest value: take a stronger pen, or more light"
        )
    return ""


def _one_digit(ink: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the mask without dirt.

    Raises:
        ValueError: what is left is not one digit.
    """
    marks = label(mask, connectivity=2)
    weights = np.concatenate([[0], sum_labels(ink, marks, np.arange(1, marks.max() + 1))])
    clean = weights >= SPECK * weights.max()
    mask = mask & clean[marks]
    height, width = (side.stop - side.start for side in _box(mask))
    if clean.sum() > 5:
        raise ValueError("expected one digit, got many marks: is the paper ruled? Cut out one digit.")
    boxes = find_objects(marks)
    heavy = [boxes[number - 1] for number in np.flatnonzero(weights >= MARK * weights.sum())]
    heavy.sort(key=lambda box: (box[0].stop - box[0].start) * (box[1].stop - box[1].start))
    for small, large in pairwise(heavy):
        if all(b.start < a.start and a.stop < b.stop for a, b in zip(small, large)):
            raise ValueError("expected a digit alone, got one with something around it: is there a frame? Cut it off.")
        apart = [max(a.start, b.start) - min(a.stop, b.stop) for a, b in zip(small, large)]
        both_high = min(box[0].stop - box[0].start for box in (small, large)) >= 0.6 * height
        if max(apart) >= 0.15 * max(height, width) or not 0.75 <= height / width <= 2 or (apart[1] >= 0 and both_high):
            raise ValueError("expected one digit, got several marks beside each other: cut out one of them")
    if height < 0.4 * width:
        raise ValueError("expected a digit, got a line, or several digits that touch each other: cut out one of them")
    return mask


def _as_mnist(ink: np.ndarray) -> np.ndarray:
    """Return ink as MNIST has it: fitted into 20 x 20 pixels, its centre of mass in the middle of 28 x 28, uint8."""
    factor = 20 / max(ink.shape)
    size = [max(1, round(side * factor)) for side in ink.shape[::-1]]
    ink = np.asarray(Image.fromarray((255 * ink).astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    ink = ink.astype(np.float64).clip(0, 255)
    ink *= 255 / ink.max()  # thin strokes have become pale
    # The centre of mass goes to the middle of pixel 14, counted from 0, as in MNIST, as far as the 28 pixels allow.
    places = []
    for axis in (0, 1):
        mass = ink.sum(1 - axis)
        centre = (mass * (np.arange(len(mass)) + 0.5)).sum() / mass.sum()
        place = round(round(14.5 - centre, 6))  # a half is a half, in whatever order the sum was made
        places.append(int(np.clip(place, 0, 28 - len(mass))))
    result = np.zeros((28, 28), np.uint8)
    result[places[0] : places[0] + ink.shape[0], places[1] : places[1] + ink.shape[1]] = ink.round()
    return result
