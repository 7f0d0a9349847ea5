import pytest
import torch

from handmim.objectives.distillation import ProjectionHead
from handmim.objectives.pixel_recon import PixelHead


def projection(**options) -> ProjectionHead:
    torch.manual_seed(0)
    sizes = {"num_prototypes": 5, "hidden_dim": 16, "bottleneck_dim": 4}
    return ProjectionHead(8, **(sizes | options))


def test_logits_are_cosines_times_gain():
    head, tokens = projection(), torch.randn(7, 8)
    z, prototypes = head.embed(tokens), head.prototypes
    cosines = (z @ prototypes.T) / prototypes.norm(dim=1)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(head(tokens), cosines)
    with torch.no_grad():
        head.gain.copy_(torch.arange(5.0))
        head.prototypes.mul_(7.0)  # their length has no effect
    torch.testing.assert_close(head(tokens), cosines * torch.arange(5.0))


def test_the_mean_logit_is_the_logit_of_the_mean():
    head = projection().double()
    z = head.embed(torch.randn(2, 50, 8, dtype=torch.float64))
    torch.testing.assert_close(
        head.logits(z.mean(dim=(0, 1))), head.logits(z).mean(dim=(0, 1)), rtol=0, atol=1e-14
    )


def test_logits_keep_full_precision_under_autocast():
    head = projection()
    z = head.embed(torch.randn(7, 8))
    with torch.autocast("cpu", torch.bfloat16):
        logits, whole = head.logits(z), head(torch.randn(7, 8))
        norms = head.embed(torch.randn(7, 8)).norm(dim=1)
    assert torch.equal(logits, head.logits(z))
    assert whole.dtype == torch.float32
    torch.testing.assert_close(norms, torch.ones(7))


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_number_of_linear_layers(num_layers):
    head = projection(num_layers=num_layers)
    assert sum(isinstance(m, torch.nn.Linear) for m in head.mlp) == num_layers
    assert head(torch.randn(3, 8)).shape == (3, 5)


@pytest.mark.parametrize("train_gain", [True, False])
def test_gain_is_learned_or_stays_1(train_gain):
    head = projection(train_gain=train_gain)
    head(torch.randn(3, 8)).square().sum().backward()
    assert (head.gain.grad is not None) is train_gain
    assert head.gain.tolist() == [1.0] * 5


@pytest.mark.parametrize("size", ["num_prototypes", "hidden_dim", "bottleneck_dim", "num_layers"])
def test_sizes_below_1_are_refused_by_name(size):
    with pytest.raises(ValueError, match=size):
        projection(**{size: 0})


def test_frozen_prototypes_get_no_gradient_but_the_mlp_does():
    head = projection()
    head(torch.randn(3, 8), freeze_prototypes=True).square().sum().backward()
    assert head.prototypes.grad.abs().max() == 0  # in the graph, for distributed training
    assert head.mlp[0].weight.grad.abs().sum() > 0


def test_cancelled_gradients_spare_prototypes_the_optimizer():
    """The first step after the freeze is AdamW's first: lr long, not several times that."""
    head, lr = projection(), 0.01
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=0.5)
    old = head.prototypes.detach().clone()
    for step in range(30):
        frozen = step < 29
        optimizer.zero_grad()
        head(torch.randn(9, 8), freeze_prototypes=frozen).square().sum().backward()
        if frozen:
            head.cancel_last_layer_gradients()
            optimizer.step()
            assert torch.equal(head.prototypes, old)
            assert head.gain.tolist() == [1.0] * 5
            continue
        optimizer.step()
    moved = (head.prototypes - old * (1 - 0.5 * lr)).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, lr), rtol=1e-3, atol=1e-6)


def test_linear_pixel_head_has_the_shape_it_promises():
    idx = torch.tensor([0, 1, 3])
    assert PixelHead(dim=4, patch_px=2)(torch.zeros(2, 3, 4), idx).shape == (3, 12)
