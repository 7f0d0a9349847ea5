"""Things for a hand to hold: superquadrics, placed off the palm where the hand does not enter
them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmim.render.rasterizer import unit

Array = NDArray[np.floating]
RNG = np.random.Generator

ENTERS_M = 0.003  # how deep the hand may press into an object


class Solid(NamedTuple):
    """A superquadric about its own origin and axes, metres."""

    points: Array  # [n, 3]
    faces: NDArray[np.int32]  # [m, 3]
    radii: Array  # [3] half extents
    exponents: Array  # [2]


class HeldObject(NamedTuple):
    """An object where it is seen."""

    points_cam_m: Array  # [n, 3]
    faces: NDArray[np.int32]  # [m, 3]
    colours: Array  # [n, 3]


def muted(colour: Array, saturation: float) -> Array:
    """A colour with part of its saturation: [3] to [3]."""
    grey = colour.mean()
    return grey + (colour - grey) * saturation


def random_rotation(rng: RNG) -> Array:
    """[3, 3] uniform over all rotations."""
    w, x, y, z = unit(rng.normal(size=4))
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def superquadric(rng: RNG) -> Solid:
    """A random box, cylinder, ball or something between."""
    exponents, radii = rng.choice([0.15, 0.5, 1.0], 2), rng.uniform(0.016, 0.048, 3)
    around, up = 18, 12
    u, v = np.meshgrid(
        np.arange(around) * 2 * np.pi / around, np.linspace(-np.pi / 2, np.pi / 2, up)
    )

    def power(w: Array, e: float) -> Array:
        return np.sign(w) * np.abs(w) ** e

    e1, e2 = exponents
    ring = power(np.cos(v), e1)
    points = np.stack(
        [ring * power(np.cos(u), e2), ring * power(np.sin(u), e2), power(np.sin(v), e1)], axis=-1
    ).reshape(-1, 3)
    a = np.arange(around * (up - 1))
    b = a - a % around + (a + 1) % around
    faces = np.vstack([np.stack([a, b, b + around], 1), np.stack([a, b + around, a + around], 1)])
    return Solid(points * radii, faces.astype(np.int32), radii, exponents)


def size_at(points: Array, radii: Array, exponents: Array) -> Array:
    """How large the superquadric must grow for its surface to hold each of `points` (object frame):
    [n, 3] to [n], below 1 inside."""
    e1, e2 = exponents
    x, y, z = (np.abs(points) / radii).T + 1e-9
    return ((x ** (2 / e2) + y ** (2 / e2)) ** (e2 / e1) + z ** (2 / e1)) ** (e1 / 2)


def depth_inside_m(points: Array, radii: Array, exponents: Array) -> float:
    """How deep the deepest of `points` (object frame) lies inside a superquadric, along its ray to
    the centre."""
    value = size_at(points, radii, exponents)
    depth = np.linalg.norm(points, axis=1) * (1 / value - 1)
    return float(np.max(depth))


def place_off_palm(
    solid: Solid, turn: Array, verts: Array, joints: Array, R: Array, gap_m: float, max_steps: int
) -> Array | None:
    """Where a solid goes: before the palm, pushed out until the hand enters it by less than 3 mm.

    Args:
        solid: the object.
        turn: [3, 3] its orientation.
        verts, joints: [V, 3] and [21, 3] of the hand.
        R: [3, 3] the hand's orientation, in the same frame.
        gap_m: first distance of its centre from the palm.
        max_steps: 6 mm each.
    Returns: its centre [3], or None when it never fits.
    """
    palm = -R[:, 1]
    place = joints[[0, 5, 9, 17]].mean(axis=0) * 0.5 + joints[9] * 0.5
    place = place + palm * gap_m
    for _ in range(max_steps):
        if depth_inside_m((verts - place) @ turn, solid.radii, solid.exponents) < ENTERS_M:
            return place
        place = place + palm * 0.006
    return None


def painted(solid: Solid, rng: RNG) -> Array:
    """[n, 3] one random colour, sometimes striped."""
    colour = np.repeat(muted(rng.random(3), 0.6)[None], len(solid.points), axis=0)
    if rng.random() < 0.3:
        stripes = np.sign(np.sin(rng.uniform(30, 120) * solid.points @ rng.normal(0, 1, 3)))
        colour = np.clip(colour * (1 + 0.25 * stripes)[:, None], 0, 1)
    return colour
