"""From a painted hand to a photograph: exposure, foreground, defocus or motion blur, gamma, sensor
noise."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.render.background import BackdropBank

Array = NDArray[np.floating]
RNG = np.random.Generator


def tame_exposure(image: Array, mask: NDArray[np.bool_], luma: Sequence[float]) -> Array:
    """Bring the hand's mean luma into range and roll highlights off below white, so that nothing
    blows out."""
    gain = 1.0
    if mask.any():
        mean = float(image[mask].mean())
        gain = min(max(mean, luma[0]), luma[1]) / max(mean, 1e-6)
    image = (image * np.float32(gain)).astype(np.float32)
    knee = 0.8
    bright = image > knee
    over = (image[bright] - knee) / (1 - knee)
    image[bright] = knee + (1 - knee) * 0.96 * (1 - np.exp(-over))
    return image


class Lens:
    """What lies between a scene and its picture.

    Args:
        size: side of the picture in pixels.
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
        # Sensor noise is read from a fixed strip at a random place: drawing it anew costs as much
        # as the raster.
        strip = max(1 << 20, 4 * 3 * size**2)
        self.grain = np.random.default_rng(2).standard_normal(strip, dtype=np.float32)

    def __call__(self, rng: RNG, image: Array, mask: Array) -> tuple[Array, Array]:
        """Picture and visible share of the hand: [S, S, 3] and [S, S] in, the same out."""
        size = self.size
        if self.soften:
            image = cv2.GaussianBlur(image, (3, 3), 0.45)
        if rng.random() < self.occluders:
            spots = rng.integers(size // 6, 5 * size // 6, 2) + rng.normal(0, size / 9, (6, 2))
            cut = np.zeros((size, size), np.float32)
            cv2.fillConvexPoly(cut, cv2.convexHull(spots.astype(np.int32)), 1.0, cv2.LINE_AA)
            cover = self.backdrops.crop(rng, size)
            image = image * (1 - cut[..., None]) + cover * cut[..., None]
            mask = mask * (1 - cut)
        lens = rng.random()
        if lens < self.blur:
            image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.6) * size / 224))
        elif lens < self.blur + self.motion_blur:
            image = cv2.filter2D(image, -1, self._motion_kernel(rng, size))
        image = cv2.pow(np.clip(image, 0, 1), float(rng.uniform(0.85, 1.15)))
        start = int(rng.integers(len(self.grain) - image.size))
        grain = self.grain[start : start + image.size].reshape(image.shape)
        return image + np.float32(rng.uniform(0, self.noise)) * grain, mask

    @staticmethod
    def _motion_kernel(rng: RNG, size: int) -> NDArray[np.float32]:
        n = int(rng.integers(3, 3 + max(2, size // 28)))
        kernel, centre, angle = np.zeros((n, n), np.float32), (n - 1) / 2, rng.uniform(0, np.pi)
        way = centre * np.array([np.cos(angle), np.sin(angle)])
        ends = [[round(x) for x in centre + sign * way] for sign in (-1, 1)]
        cv2.line(kernel, ends[0], ends[1], 1.0)
        return kernel / kernel.sum()
