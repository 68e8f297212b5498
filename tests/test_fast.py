"""The order in memory that makes training fast."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from fast import fast_order
from model import Net8k, Net20k, Skeleton
from utils import normalize


@pytest.mark.parametrize("network", [Net8k, Net20k, Skeleton])
def test_the_order_in_memory_changes_no_result(network, few):
    """Logits and gradients are those of the usual order but for rounding, and the model is left as it was."""
    torch.manual_seed(0)
    model, images, results = network().double(), normalize(few.train_images[:20]).double(), []
    for usual, order in ((True, nullcontext()), (False, fast_order(model, torch.device("cpu")))):
        with order:
            torch.manual_seed(1)  # the same dropout
            model.zero_grad()
            logits = model.train()(images)
            F.cross_entropy(logits, few.train_labels[:20]).backward()
            results.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
            assert usual == all(p.is_contiguous() for p in model.parameters())
    torch.testing.assert_close(*results)
    assert all(p.is_contiguous() for p in model.parameters())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())
