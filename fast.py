"""What makes training fast on a processor, at no cost but rounding (notebook 8), and what a run says of its machine."""

import contextlib
import math
import os
import platform
import time
import types
from importlib.metadata import version

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from tqdm import tqdm


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device is a processor that computes in bfloat16 itself (elsewhere float32 is used)."""
    return device.type == "cpu" and any(processor().get(feature) for feature in ("avx512_bf16", "amx_bf16"))


def processor() -> dict:
    """Return what PyTorch knows of the processor: nothing, in versions that cannot tell."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def precision(device: torch.device, shortened: bool) -> str:
    """Return the number format of a training, for its record. ``shortened``: in bfloat16, where autocast holds it safe.

    Newer GPUs compute convolutions of float32 numbers in TF32, with fewer digits, unless that is forbidden.
    """
    if shortened:
        return "bfloat16 autocast"
    newer = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    return "float32 (TF32 convolutions)" if newer and torch.backends.cudnn.allow_tf32 else "float32"


def machine(device: torch.device) -> dict:
    """Return what a run depends on besides its settings: the device's name, the number of threads, the versions."""
    name = f"{device.type} ({processor().get('cpu_name') or platform.machine()})"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else name,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": version("torchvision"),
        },
    }


@contextlib.contextmanager
def free_cores(device: torch.device, *, tell: bool = True):
    """Train with as many threads as find a free core: yields a function that looks, sets their number and returns it.

    Threads wait for each other many times in a batch, so one that finds no free core holds up all of them. The number
    is left as it is, and only returned, if the environment variable ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS`` names
    one, if ``torch.set_num_threads`` has set another one than PyTorch's own, or if another device trains.

    Args:
        device: the one that trains.
        tell: print a line when the number changes.
    """
    most = used = torch.get_num_threads()
    chosen = most != OFFERED or any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))

    def look() -> int:
        nonlocal used
        if not chosen and most > 1 and device.type == "cpu":
            threads = _look(most)
            torch.set_num_threads(threads)
            if tell and threads != used:
                tqdm.write(f"From here on {threads} of {most} threads, because of what other programs do.")
            used = threads
        return used

    try:
        yield look
    finally:
        torch.set_num_threads(most)


def _look(most: int) -> int:
    """Return for how many of ``most`` threads there is a free core: measured, or what was measured in the last 2 s."""
    global _seen
    if time.monotonic() - _seen[0] > 2 or _seen[1] != most:
        torch.set_num_threads(most)
        numbers = torch.ones(2**22)
        numbers.sin()  # now the threads are there
        seconds = 0.5 if os.name == "nt" else 0.05  # Windows counts processor time in steps of 0.016 s
        work, started = time.process_time(), time.perf_counter()
        while time.perf_counter() - started < seconds:
            numbers.sin()
        cores = (time.process_time() - work) / (time.perf_counter() - started)
        there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or most
        _seen = time.monotonic(), most, _left(most, cores, max(most, there))
    return _seen[2]


def _left(most: int, cores: float, there: int) -> int:
    """Return how many of the cores that are there are left to us, 1 to ``most``.

    ``cores``: the processor time that ``most`` threads got, in seconds a second. It is shared out evenly: beside n
    other busy programs, on fewer cores than are wanted, they get there × most / (most + n). That is solved for n, which
    is left to the others; a quarter of a core is allowed for what is always at work.
    """
    free = there - (there * most / max(cores, 0.1) - most) if cores < most else most
    return max(1, min(most, int(free + 0.25)))


OFFERED = torch.get_num_threads()  # PyTorch's own choice
_seen = -math.inf, 0, 0  # the time of the last look, its ``most``, and what was left


@contextlib.contextmanager
def fast_order(model: nn.Module, device: torch.device):
    """On a processor, train with the channels of a pixel side by side in memory (channels_last).

    BatchNorm of fewer than 16 channels is computed in another way, see ``_batch_norm``: there, two threads of PyTorch's
    own write their sums into one cache line (64 bytes) and wait for each other.
    """
    if device.type != "cpu":
        yield
        return
    model.to(memory_format=torch.channels_last)
    narrow = [layer for layer in model.modules() if type(layer) is nn.BatchNorm2d and layer.num_features < 16]
    narrow = [layer for layer in narrow if "forward" not in vars(layer)]
    for layer in narrow:
        layer.forward = types.MethodType(_batch_norm, layer)
    try:
        yield
    finally:
        for layer in narrow:
            del layer.forward
        model.to(memory_format=torch.contiguous_format)


def _batch_norm(layer: nn.BatchNorm2d, maps: torch.Tensor) -> torch.Tensor:
    """Return what the layer's own ``forward`` returns; while it is trained, computed in one of two other ways.

    Large maps in float32: by ``_Normalized``. Others: by PyTorch, in the usual order, and back. (Sums in bfloat16 would
    be too coarse for the first way, and with small maps its many small operations take longer than the reordering.)
    """
    if not layer.training:
        return nn.BatchNorm2d.forward(layer, maps)
    usual = layer.affine and layer.running_mean is not None and layer.momentum is not None
    exact = usual and layer.weight.dtype == maps.dtype in (torch.float32, torch.float64)
    if not exact or maps.numel() < 200_000:
        maps = _Reorder.apply(maps, torch.channels_last, torch.contiguous_format)
        return _Reorder.apply(nn.BatchNorm2d.forward(layer, maps), torch.contiguous_format, torch.channels_last)
    maps, mean, variance = _Normalized.apply(maps, layer.weight, layer.bias, layer.eps)
    with torch.no_grad():
        count = maps.numel() / maps.shape[1]
        layer.num_batches_tracked += 1
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(variance * (count / (count - 1)), layer.momentum)
    return maps


class _Normalized(torch.autograd.Function):
    """BatchNorm's formula, on maps in the order channels_last, and its gradient.

    A row is all that belongs to an image. The sums go over whole rows first, which the processor does 16 numbers at a
    time, and then over the pixels; and over 64 rows at a time, which stay in the processor's cache. The variance is the
    mean of the squares less the square of the mean: exact enough as long as a channel's mean is less than some hundred
    times its standard deviation. The gradient has no gradient of its own (``create_graph=True`` raises an error).

    Source: Ioffe and Szegedy, "Batch normalization", 2015.
    """

    @staticmethod
    def forward(context, maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> tuple:
        rows, channels = _rows(maps), maps.shape[1]
        pixels = rows.shape[1] // channels
        count = len(rows) * pixels
        mean = _sum(rows, None, channels) / count
        variance = (_sum(rows, rows, channels) / count - mean**2).clamp_min(0)
        scale = weight / (variance + eps).sqrt()
        normalized = torch.empty_like(maps, memory_format=torch.channels_last)
        torch.addcmul((bias - mean * scale).repeat(pixels), rows, scale.repeat(pixels), out=_rows(normalized))
        context.save_for_backward(maps, weight, mean, variance)
        context.eps = eps
        context.mark_non_differentiable(mean, variance)
        return normalized, mean, variance

    @staticmethod
    @once_differentiable
    def backward(context, gradient: torch.Tensor, *_):
        maps, weight, mean, variance = context.saved_tensors
        rows, gradients, channels = _rows(maps), _rows(gradient), maps.shape[1]
        pixels = rows.shape[1] // channels
        count = len(rows) * pixels
        deviation = (variance + context.eps).sqrt()
        of_bias = _sum(gradients, None, channels)
        of_weight = (_sum(gradients, rows, channels) - mean * of_bias) / deviation
        # Each number's gradient is a sum: its gradient behind the layer, times a, and itself, times b, and c.
        a = weight / deviation
        b = -a * of_weight / (deviation * count)
        c = -a * of_bias / count - b * mean
        a, b, c = (numbers.repeat(pixels) for numbers in (a, b, c))
        before = torch.empty_like(maps, memory_format=torch.channels_last)
        for part in zip(_rows(before).split(64), gradients.split(64), rows.split(64)):
            torch.addcmul(c, part[1], a, out=part[0]).addcmul_(part[2], b)
        return before, of_weight, of_bias, None


def _rows(maps: torch.Tensor) -> torch.Tensor:
    """Return maps ``(N, C, H, W)``, in the order channels_last, as rows ``(N, H × W × C)``: the same memory."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1)


def _sum(rows: torch.Tensor, others: torch.Tensor | None, channels: int) -> torch.Tensor:
    """Return the sum of the rows, or of their products with others, for each channel."""
    parts = rows.split(64) if others is None else (a * b for a, b in zip(rows.split(64), others.split(64)))
    return sum(part.sum(0) for part in parts).view(-1, channels).sum(0)


class _Reorder(torch.autograd.Function):
    """The same numbers in another order in memory; their gradients are put back into the order before."""

    @staticmethod
    def forward(context, maps: torch.Tensor, before: torch.memory_format, after: torch.memory_format) -> torch.Tensor:
        context.before = before
        return maps.contiguous(memory_format=after)

    @staticmethod
    def backward(context, gradient: torch.Tensor):
        return gradient.contiguous(memory_format=context.before), None, None
