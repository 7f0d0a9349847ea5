import cv2
import numpy as np
import pytest

from handmim.render.background import BackdropBank, expose
from handmim.render.scene import ImageEffects, SceneSettings

LUMA = (0.25, 0.75)


def random_parts(seed: int, size: int = 40):
    rng = np.random.default_rng(seed)
    shaded, backdrop = rng.random((2, size, size, 3), dtype=np.float32)
    covered = rng.random((size, size)) < 0.6
    hand = covered & (rng.random((size, size)) < 0.7)
    return shaded * np.float32(1.4), covered, hand, backdrop


@pytest.mark.parametrize("brightness", [0.05, 1.0, 3.0])
def test_exposure_agrees_with_plain_numpy(brightness):
    shaded, covered, hand, backdrop = random_parts(0)
    shaded *= np.float32(brightness)
    image = np.where(covered[..., None], shaded, backdrop)
    mean = float(image[hand].mean())
    image = image * (np.clip(mean, *LUMA) / mean)
    rolled_off = 0.8 + 0.2 * 0.96 * (1 - np.exp(-(image - 0.8) / 0.2))
    image = np.where(image > 0.8, rolled_off, image)
    assert (image > 0.8).any()
    np.testing.assert_allclose(expose(shaded, covered, hand, backdrop, *LUMA), image, atol=1e-6)


def test_a_image_without_a_hand_keeps_its_exposure():
    shaded, _, hand, backdrop = random_parts(1)
    nothing = np.zeros_like(hand)
    image = expose(shaded, nothing, nothing, backdrop, *LUMA)
    dim = backdrop < 0.8
    assert np.array_equal(image[dim], backdrop[dim])


def test_exposure_keeps_order_and_stays_below_white():
    ramp = np.linspace(0, 6, 300, dtype=np.float32)[:, None, None].repeat(3, axis=2)
    everywhere = np.ones((300, 1), bool)
    out = expose(ramp, everywhere, everywhere, ramp, *LUMA)
    assert out.max() < 1.0
    assert (np.diff(out[:, 0, 0]) >= 0).all()
    dim = ramp * np.float32(0.01)
    dark = expose(dim, everywhere, everywhere, dim, *LUMA)
    assert dark.mean() == pytest.approx(0.25, abs=0.02)


def plain_image(effects: ImageEffects, rng, image, mask):
    """The effects without short cuts, for odds of 0 or 1."""
    settings = effects.settings
    size = settings.image_px
    image = cv2.GaussianBlur(image, (3, 3), 0.45)
    if rng.random() < settings.occluders:
        spots = rng.integers(size // 6, 5 * size // 6, 2) + rng.normal(0, size / 9, (6, 2))
        cut = np.zeros((size, size), np.float32)
        cv2.fillConvexPoly(cut, cv2.convexHull(spots.astype(np.int32)), 1.0, cv2.LINE_AA)
        image = image * (1 - cut[..., None]) + effects.backdrops.crop(rng, size) * cut[..., None]
        mask = mask * (1 - cut)
    if rng.random() < settings.blur:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.6) * size / 224))
    image = np.clip(image, 0, 1).astype(np.float64) ** rng.uniform(0.85, 1.15)
    start = int(rng.integers(len(effects.grain) - image.size))
    grain = effects.grain[start : start + image.size].reshape(image.shape)
    image = image + rng.uniform(0, settings.noise) * grain
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8), mask


@pytest.mark.parametrize(("occluders", "blur"), [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)])
def test_the_effects_agrees_with_plain_numpy(occluders, blur):
    size = 48
    bank = BackdropBank("room", np.random.default_rng(0), size=64, num=3)
    odds = {"occluders": occluders, "blur": blur, "motion_blur": 0.0, "noise": 0.1}
    effects = ImageEffects(SceneSettings(image_px=size, **odds), bank)
    covered = 0
    for seed in range(20):
        image = np.random.default_rng(seed).random((size, size, 3), dtype=np.float32)
        mask = np.ones((size, size), np.float32)
        expected, visible = plain_image(effects, np.random.default_rng(seed), image, mask)
        got = effects(np.random.default_rng(seed), image.copy(), mask)
        assert np.abs(got.astype(int) - expected).max() <= 1
        assert (got != expected).mean() < 1e-3
        np.testing.assert_allclose(mask, visible, atol=1e-6)
        covered += (mask < 0.5).mean() / 20
    assert (0.05 < covered < 0.7) == bool(occluders)
