import pytest
import torch

from handmim.data.pixels import ColourJitter


def test_noise_is_off_unless_set_and_then_as_strong_as_set():
    image = torch.full((400, 3, 16, 16), 0.5)
    still = {"jitter_prob": 0.0, "grey_prob": 0.0, "blur_prob": 0.0}
    states = []
    for settings in ({}, {"noise_prob": 0.0, "noise_std": 0.2}):
        generator = torch.Generator().manual_seed(0)
        out = ColourJitter(**still, **settings)(image, generator)
        torch.testing.assert_close(out, image)
        states.append(generator.get_state())
    assert torch.equal(*states)
    after = torch.Generator().manual_seed(0)
    torch.rand(400, 9, generator=after)  # all that is drawn without noise
    assert torch.equal(states[0], after.get_state())
    noisy = ColourJitter(**still, noise_prob=0.25, noise_std=0.1)
    spread = noisy(image, torch.Generator().manual_seed(0)).flatten(1).std(dim=1)
    is_noisy = spread > 1e-4
    assert is_noisy.float().mean() == pytest.approx(0.25, abs=0.06)
    assert spread.max() < 0.11
    assert spread[is_noisy].mean() == pytest.approx(0.05, abs=0.01)
    for settings in ({"noise_prob": 1.5}, {"noise_std": 0.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ColourJitter(**settings)
