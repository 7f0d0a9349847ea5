import pytest
import torch

from handmim.objectives.distillation import soft_cross_entropy


def plain(logits, probs, temp):
    return -(probs * (logits / temp).log_softmax(dim=-1)).sum(dim=-1)


def case(shape, dtype=torch.float64, mass=1.0):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=g, dtype=dtype)
    probs = mass * (torch.randn(shape, generator=g, dtype=dtype) / 0.1).softmax(dim=-1)
    return logits.requires_grad_(), probs


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (0, 7), (4, 1)])
@pytest.mark.parametrize("mass", [1.0, 3.0])  # class targets of several views are summed
def test_value_and_gradient_are_those_of_the_plain_form(shape, mass):
    logits, probs = case(shape, mass=mass)
    weight = torch.arange(1.0, 1 + logits[..., 0].numel()).view(shape[:-1])
    grads = []
    for form in (soft_cross_entropy, plain):
        value = form(logits, probs, 0.1)
        grads.append((value.detach(), torch.autograd.grad((value * weight).sum(), logits)[0]))
    torch.testing.assert_close(grads[0], grads[1])


def test_single_precision_is_good_to_six_digits():
    logits, probs = case((64, 8192), torch.float32)
    value = soft_cross_entropy(logits, probs, 0.1)
    exact = plain(logits.double(), probs.double(), 0.1)
    assert (value / exact - 1).abs().max() < 2e-6


def test_gradients_may_be_asked_for_twice_and_logits_stay_as_they_are():
    logits, probs = case((5, 7))
    before = logits.detach().clone()
    loss = soft_cross_entropy(logits, probs, 0.1).sum()
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, logits)[0])
    assert torch.equal(before, logits)


def test_autocast_changes_nothing():
    logits, probs = case((5, 7), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = soft_cross_entropy(logits, probs, 0.1)
    assert torch.equal(value, soft_cross_entropy(logits, probs, 0.1))


def test_one_tensor_of_the_logits_size_is_kept():
    logits, probs = case((50, 70))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, id):
        soft_cross_entropy(logits * 1.0, probs, 0.1).sum()
    assert sum(n == 3500 for n in kept) == 1
