import pytest
import torch

from handmim.models.token_norm import LABELLED, UNLABELED, TokenNorm
from handmim.types import Tokens


def tokens(seed: int, shift: float, scale: float) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    patches = shift + scale * torch.randn(40, 9, 6, generator=generator)
    return Tokens(shift + torch.randn(40, 6, generator=generator), patches, (3, 3))


@pytest.mark.parametrize("which", ["patches", "all"])
def test_tokens_of_each_domain_are_standardised(which):
    norm = TokenNorm(6, which).eval()
    renders, photos = tokens(0, 3.0, 2.0), tokens(1, -5.0, 0.1)
    norm.measure(LABELLED, [renders])
    out = norm(renders)  # nothing else was measured
    torch.testing.assert_close(out.patches.mean(dim=(0, 1)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.patches.std(dim=(0, 1)), torch.ones(6), atol=1e-2, rtol=0)
    half = [
        tokens(1, -5.0, 0.1)._replace(patches=p, cls=c)
        for p, c in zip(photos.patches.split(20), photos.cls.split(20), strict=True)
    ]
    norm.measure(UNLABELED, half)
    for domain, images in ((None, photos), (UNLABELED, photos), (LABELLED, renders)):
        out = norm(images, domain)
        assert out.patches.mean(dim=(0, 1)).abs().max() < 1e-4
        assert (out.patches.std(dim=(0, 1)) - 1).abs().max() < 1e-2
        is_norm = bool(out.cls.mean(dim=0).abs().max() < 1e-4)
        assert is_norm is (which == "all")
    assert norm(photos, LABELLED).patches.mean() < -3  # by the other domain's moments
    own = norm(photos, LABELLED, of_batch=True)
    assert own.patches.mean().abs() < 1e-4


def test_moments_that_were_loaded_predict():
    norm, other = TokenNorm(6, "patches").eval(), TokenNorm(6, "patches").eval()
    norm.measure(UNLABELED, [tokens(1, -5.0, 0.1)])
    other.load_state_dict(norm.state_dict())
    assert other.is_adapted
    photos = tokens(2, -5.0, 0.1)
    assert torch.equal(other(photos).patches, norm(photos, UNLABELED).patches)
