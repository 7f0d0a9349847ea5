import pytest
import torch

from handmim.models.centering import Centering, Sinkhorn, sinkhorn_knopp


def test_centre_follows_the_mean_and_only_in_update():
    centering = Centering(2, momentum=0.9)
    logits = torch.tensor([[1.0, 3.0], [3.0, 5.0]])  # mean (2, 4)
    centering(logits, temp=1.0)
    assert centering.centre.tolist() == [0.0, 0.0]
    centering.update(logits)
    torch.testing.assert_close(centering.centre, torch.tensor([0.2, 0.4]))


def test_centred_probabilities_match_hand_values():
    centering = Centering(2)
    centering.centre.copy_(torch.tensor([1.0, 0.0]))
    # logits - centre = (0, 0) -> (1/2, 1/2) at any temperature
    torch.testing.assert_close(
        centering(torch.tensor([[1.0, 0.0]]), temp=0.04), torch.tensor([[0.5, 0.5]])
    )


def test_sinkhorn_shares_prototypes_equally():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 8, generator=g)
    q = sinkhorn_knopp(logits, temp=0.5, num_iters=50)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(q.sum(dim=0), torch.full((8,), 8.0), rtol=1e-3, atol=1e-3)


def test_sinkhorn_survives_large_logits_and_empty_batches():
    assert sinkhorn_knopp(torch.tensor([[900.0, 0.0], [0.0, 900.0]]), 0.05).isfinite().all()
    assert Sinkhorn(4)(torch.zeros(0, 4), temp=0.1).shape == (0, 4)


def test_sinkhorn_breaks_a_one_prototype_collapse():
    # All rows prefer prototype 0; their weaker preferences must decide.
    logits = torch.tensor([[5.0, 1.0], [5.0, 0.0]])
    q = sinkhorn_knopp(logits, temp=1.0, num_iters=20)
    assert q[0, 1] > 0.5 > q[1, 1]
    assert q.sum(dim=0)[0].item() == pytest.approx(1.0, abs=1e-3)
