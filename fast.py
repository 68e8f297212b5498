"""What makes training fast on a processor, at no cost but rounding (notebook 8), and what a run says of its machine."""

import contextlib
import platform
from importlib.metadata import version

import torch
from torch import nn


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device is a processor that computes in bfloat16 itself (elsewhere float32 is used)."""
    return device.type == "cpu" and any(processor().get(feature) for feature in ("avx512_bf16", "amx_bf16"))


def processor() -> dict:
    """Return what PyTorch knows of the processor: nothing, in versions that cannot tell."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


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
def fast_order(model: nn.Module, device: torch.device):
    """On a processor, train with the channels of a pixel side by side in memory (channels_last).

    BatchNorm layers of fewer than 16 channels are the exception. There, two threads write their sums into one cache
    line (64 bytes) and wait for each other; so they get their maps, and their gradients, in the usual order.
    """
    if device.type != "cpu":
        yield
        return
    model.to(memory_format=torch.channels_last)
    narrow = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d) and layer.num_features < 16]
    hooks = [layer.register_forward_pre_hook(_before_batch_norm) for layer in narrow]
    hooks += [layer.register_forward_hook(_after_batch_norm) for layer in narrow]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.to(memory_format=torch.contiguous_format)


class _Reorder(torch.autograd.Function):
    """The same numbers in another order in memory; their gradients are put back into the order before."""

    @staticmethod
    def forward(context, maps: torch.Tensor, before: torch.memory_format, after: torch.memory_format) -> torch.Tensor:
        context.before = before
        return maps.contiguous(memory_format=after)

    @staticmethod
    def backward(context, gradient: torch.Tensor):
        return gradient.contiguous(memory_format=context.before), None, None


def _before_batch_norm(layer: nn.Module, inputs: tuple):
    return _Reorder.apply(inputs[0], torch.channels_last, torch.contiguous_format) if layer.training else None


def _after_batch_norm(layer: nn.Module, inputs: tuple, maps: torch.Tensor):
    return _Reorder.apply(maps, torch.contiguous_format, torch.channels_last) if layer.training else None
