"""The order in memory and the number of threads that make training fast."""

import copy
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import same_weights, train
from torch import nn

import fast
from fast import fast_order, free_cores
from model import Net8k, Net20k, Skeleton
from utils import normalize


@pytest.mark.parametrize("network", [Net8k, Net20k, Skeleton])
def test_the_order_in_memory_changes_no_result(network, few):
    """Logits and gradients are those of the usual order but for rounding, and the model is left as it was."""

    def step():
        torch.manual_seed(1)  # the same dropout
        model.zero_grad()
        logits = model(normalize(few.train_images[:20]).double())
        F.cross_entropy(logits, few.train_labels[:20]).backward()
        orders = {p.is_contiguous() for p in model.parameters()}
        return [logits.detach(), *(p.grad.clone() for p in model.parameters())], orders

    torch.manual_seed(0)
    model = network().double()
    (usual, usual_orders) = step()
    with fast_order(model, torch.device("cpu")):
        fast, orders = step()
    torch.testing.assert_close(fast, usual)
    assert False in orders and usual_orders == {p.is_contiguous() for p in model.parameters()} == {True}
    assert not any("forward" in vars(layer) for layer in model.modules())


@pytest.mark.parametrize("frozen", [(), ("weight",), ("weight", "bias")])
@pytest.mark.parametrize("images", [32, 65, 200])  # by PyTorch's BatchNorm, and by our own in two and in four parts
def test_narrow_batch_norm_is_pytorch_s(images, frozen):
    """Output, gradients and running statistics, on numbers whose mean is far from 0; a copy is as good."""
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(9)
    for name in frozen:
        getattr(layer, name).requires_grad_(False)
    usual, copied = copy.deepcopy(layer).double(), None
    maps = (torch.randn(images, 9, 20, 19) + 10).to(memory_format=torch.channels_last).requires_grad_()
    for _ in range(2):
        expected = usual(maps.double())
        with fast_order(layer, torch.device("cpu")):
            copied = copy.deepcopy(layer)
            other = copied(maps)
            result = layer(maps)
        torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(other, result) and same_weights(copied, layer)
        sought = [maps, *(p for p in layer.parameters() if p.requires_grad)]
        wanted = [maps, *(p for p in usual.parameters() if p.requires_grad)]
        slope = torch.randn(result.shape)
        for gradient, other in zip(
            torch.autograd.grad(result, sought, slope), torch.autograd.grad(expected, wanted, slope.double())
        ):
            torch.testing.assert_close(gradient.double(), other.double(), rtol=1e-4, atol=1e-3)
        for buffer, other in zip(layer.buffers(), usual.buffers()):
            torch.testing.assert_close(buffer.double(), other.double(), rtol=1e-4, atol=1e-5)
    layer.eval(), usual.eval()
    torch.testing.assert_close(layer(maps).double(), usual(maps.double()), rtol=1e-4, atol=1e-5)


@pytest.fixture
def all_threads(monkeypatch):
    """As many threads as PyTorch takes by itself, and nothing that was seen of the machine before."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fast, "_seen", (-math.inf, 0, 0))
    before = torch.get_num_threads()
    torch.set_num_threads(fast.OFFERED)
    yield fast.OFFERED
    torch.set_num_threads(before)


@pytest.fixture
def busy():
    """Other programs, two for each core."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
    yield
    for program in programs:
        program.kill()
        program.wait()


@pytest.mark.skipif(fast.OFFERED == 1, reason="there is only one thread")
def test_a_busy_machine_is_trained_on_with_fewer_threads(all_threads, busy, few, place, capsys):
    record, _ = train(few, epochs=1)
    assert record["epoch_threads"] == [1] and record["threads"] == all_threads == torch.get_num_threads()
    assert f"1 of {all_threads} threads" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "set_num_threads", "another device"])
def test_a_number_of_threads_that_somebody_chose_is_kept(how, all_threads, monkeypatch):
    monkeypatch.setattr(fast, "_look", lambda most: pytest.fail("it was not kept"))
    if how == "set_num_threads":
        torch.set_num_threads(all_threads + 1)
    elif how != "another device":
        monkeypatch.setenv(how, str(all_threads))
    chosen = torch.get_num_threads()
    with free_cores(torch.device("meta" if how == "another device" else "cpu")) as look:
        assert look() == chosen == torch.get_num_threads()
    assert torch.get_num_threads() == chosen


@pytest.mark.parametrize(
    "most, cores, there, left",
    [
        *[(2, 2.0, 2, 2), (2, 1.85, 2, 2), (2, 1.5, 2, 1), (2, 0.3, 2, 1), (2, 2.5, 2, 2)],
        *[(4, 3.95, 4, 4), (4, 3.2, 4, 3), (4, 2.3, 4, 1), (8, 7.1, 8, 7)],
        *[(4, 4.0, 8, 4), (4, 3.9, 8, 4), (4, 2.67, 8, 1)],  # two threads of the processor for each core
    ],
)
def test_the_processor_time_that_we_got_tells_how_many_cores_are_left(most, cores, there, left):
    """With n other busy programs beside ``most`` threads, everyone gets there / (most + n) of a core."""
    assert fast._left(most, cores, there) == left


def test_a_layer_with_a_forward_of_its_own_keeps_it(few):
    class Halved(nn.BatchNorm2d):
        def forward(self, maps):
            return super().forward(maps) / 2

    layers = nn.Sequential(Halved(8), nn.BatchNorm2d(8))
    layers[1].forward = lambda maps: maps + 1
    maps = torch.randn(100, 8, 20, 20)
    expected = layers(maps)
    with fast_order(layers, torch.device("cpu")):
        torch.testing.assert_close(layers(maps), expected)
    assert layers[1].forward(maps).equal(maps + 1)
