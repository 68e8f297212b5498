"""The order in memory that makes training fast."""

import pytest
import torch
import torch.nn.functional as F

from fast import fast_order
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
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())
