"""From a shaded hand to an image: exposure, occluder, defocus or motion blur, gamma, noise."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.render.background import BackdropBank
from handmim.render.rasterizer import compiled

Array = NDArray[np.floating]
RNG = np.random.Generator

KNEE = 0.8  # highlights above it are rolled off below white


@compiled
def _expose(shaded, covered, hand, backdrop, darkest, brightest, image):
    total, num = 0.0, 0
    for n in range(len(hand)):
        if hand[n]:
            total += shaded[n, 0] + shaded[n, 1] + shaded[n, 2]
            num += 3
    mean = total / max(num, 1)
    gain = np.float32(min(max(mean, darkest), brightest) / max(mean, 1e-6) if num else 1.0)
    for n in range(len(covered)):
        for k in range(3):
            x = gain * (shaded[n, k] if covered[n] else backdrop[n, k])
            if x > KNEE:
                x = KNEE + (1 - KNEE) * 0.96 * (1 - math.exp((KNEE - x) / (1 - KNEE)))
            image[n, k] = x


def expose(
    shaded: Array,
    covered: NDArray[np.bool_],
    hand: NDArray[np.bool_],
    backdrop: Array,
    luma: Sequence[float],
) -> NDArray[np.float32]:
    """A shaded scene before its backdrop, exposed so that the hand's mean luma is in range.

    Args:
        shaded, backdrop: [H, W, 3] float32.
        covered, hand: [H, W] where the backdrop is covered, and where the hand is seen.
        luma: lowest and highest mean of the hand.
    Returns: [H, W, 3] below 1; highlights are rolled off.
    """
    image = np.empty(shaded.shape, np.float32)
    front, back, flat = (a.reshape(-1, 3) for a in (shaded, backdrop, image))
    _expose(front, covered.ravel(), hand.ravel(), back, luma[0], luma[1], flat)
    return image


@compiled
def _add_noise(image, grain, noise, pixels):
    noise, white, half = np.float32(noise), np.float32(255), np.float32(0.5)
    for n in range(len(image)):
        x = (image[n] + noise * grain[n]) * white + half
        pixels[n] = np.uint8(min(max(x, half), white + half))


class ImageEffects:
    """Occluder, blur, gamma and noise of an image.

    Args:
        size: side of the image in pixels.
        soften: slight blur in place of antialiasing.
        occluders, blur, motion_blur: probabilities.
        noise: highest standard deviation of the sensor noise.
        backdrops: material of the occluders.
    """

    def __init__(
        self,
        size: int,
        *,
        soften: bool,
        occluders: float,
        blur: float,
        motion_blur: float,
        noise: float,
        backdrops: BackdropBank,
    ) -> None:
        self.size, self.soften, self.backdrops = size, soften, backdrops
        self.occluders, self.noise = occluders, noise
        self.blur, self.motion_blur = blur, motion_blur
        # Sensor noise is read from a fixed strip at a random position: drawing it anew costs as
        # much as the raster.
        strip = max(1 << 20, 4 * 3 * size**2)
        self.grain = np.random.default_rng(2).standard_normal(strip, dtype=np.float32)

    def __call__(self, rng: RNG, image: Array, mask: Array) -> NDArray[np.uint8]:
        """[S, S, 3] RGB bytes.

        Args:
            rng: source of everything random.
            image: [S, S, 3] float32 in [0, 1]; may be overwritten.
            mask: [S, S] float32 share of the hand; an occluder is taken off it in place.
        """
        size = self.size
        if self.soften:
            image = cv2.GaussianBlur(image, (3, 3), 0.45)
        if rng.random() < self.occluders:
            self._occlude(rng, image, mask)
        draw = rng.random()
        if draw < self.blur:
            image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.6) * size / 224))
        elif draw < self.blur + self.motion_blur:
            image = cv2.filter2D(image, -1, self._motion_kernel(rng, size))
        image = cv2.pow(np.clip(image, 0, 1, out=image), float(rng.uniform(0.85, 1.15)))
        start = int(rng.integers(len(self.grain) - image.size))
        grain = self.grain[start : start + image.size]
        pixels = np.empty(image.shape, np.uint8)
        _add_noise(image.ravel(), grain, rng.uniform(0, self.noise), pixels.reshape(-1))
        return pixels

    def _occlude(self, rng: RNG, image: Array, mask: Array) -> None:
        """A random polygon of backdrop before the hand."""
        size = self.size
        spots = rng.integers(size // 6, 5 * size // 6, 2) + rng.normal(0, size / 9, (6, 2))
        hull = cv2.convexHull(spots.astype(np.int32))
        share = np.zeros((size, size), np.float32)
        cv2.fillConvexPoly(share, hull, 1.0, cv2.LINE_AA)
        cover = self.backdrops.crop(rng, size)
        left, top, width, height = cv2.boundingRect(hull)
        # Smooth edges reach a little further.
        part = slice(max(top - 2, 0), top + height + 2), slice(max(left - 2, 0), left + width + 2)
        mask[part] *= 1 - share[part]
        alpha = share[part][..., None]
        image[part] += (cover[part] - image[part]) * alpha

    @staticmethod
    def _motion_kernel(rng: RNG, size: int) -> NDArray[np.float32]:
        n = int(rng.integers(3, 3 + max(2, size // 28)))
        kernel, centre, angle = np.zeros((n, n), np.float32), (n - 1) / 2, rng.uniform(0, np.pi)
        direction = centre * np.array([np.cos(angle), np.sin(angle)])
        ends = [[round(x) for x in centre + sign * direction] for sign in (-1, 1)]
        cv2.line(kernel, ends[0], ends[1], 1.0)
        return kernel / kernel.sum()
