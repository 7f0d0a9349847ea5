"""Random light: a sky, two lamps, and the shadow map of the first lamp."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmim.geometry.rotation_numpy import unit
from handmim.render.rasterizer import rasterise

Array = NDArray[np.floating]
RNG = np.random.Generator


class Lights(NamedTuple):
    """A hemisphere and two distant lamps, as `shade` takes them; camera frame."""

    lamps: Array  # [2, 3] unit directions towards them
    rgb: Array  # [2, 3]
    up: Array  # [3] unit
    sky: Array  # [3] RGB from above
    ground: Array  # [3] RGB from below


def random_lights(rng: RNG) -> Lights:
    """A strong lamp and a weak one on the camera's side, and light from all around."""
    lamps: Array = rng.normal(0, 1, (2, 3))
    lamps[:, 2] = -np.abs(lamps[:, 2]) - 0.3
    tints = 1 + rng.normal(0, 0.08, (2, 3))
    rgb = np.array([[rng.uniform(0.35, 1.0)], [rng.uniform(0.1, 0.4)]]) * tints
    sky = rng.uniform(0.25, 0.6) * (1 + rng.normal(0, 0.07, 3))
    ground = sky * rng.uniform(0.35, 0.9)
    return Lights(
        unit(lamps), rgb, unit(np.array([0, -1, 0.0]) + rng.normal(0, 0.4, 3)), sky, ground
    )


def _cross(a: Array, b: Array) -> Array:
    """Cross product of two vectors [3]; numpy's costs ten times as much on so few numbers."""
    (x, y, z), (u, v, w) = a.tolist(), b.tolist()
    return np.array([y * w - z * v, z * u - x * w, x * v - y * u])


class ShadowMap:
    """Depth map of a distant lamp, `side_px` wide."""

    def __init__(self, side_px: int = 128) -> None:
        self.side_px = side_px
        # A margin where nothing is, so that every pixel has neighbours.
        self.inv_depth = np.zeros((side_px + 2, side_px + 2))
        self._face_id = np.zeros(self.inv_depth.shape, np.int32)

    def draw(self, lamp: Array, points: Array, faces: NDArray[np.int32]) -> Array:
        """Fill `inv_depth` (1 / m).

        Args:
            lamp: [3] unit direction towards the lamp.
            points: [V, 3] camera frame, metres.
            faces: [F, 3] of closed surfaces.
        Returns: [3, 4] from the camera frame to column and row of the map, and depth in metres.
        """
        side = unit(_cross(lamp, np.array([0, 1, 0.1])))
        rows = np.stack([side, _cross(lamp, side), -lamp])
        in_map = rows @ points.T
        low, high = in_map.min(axis=1), in_map.max(axis=1)
        scale = (self.side_px - 1) / max(high[0] - low[0], high[1] - low[1])
        scales = np.array([scale, scale, 1])
        offsets = 1 - low * scales
        x_px, y_px, depth = in_map * scales[:, None] + offsets[:, None]
        rasterise(x_px, y_px, 1 / depth, faces, 1, self.inv_depth, self._face_id)
        return np.column_stack([rows * scales[:, None], offsets])
