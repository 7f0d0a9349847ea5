"""Things for a hand to hold: superquadrics, placed off the palm where the hand does not enter
them."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmim.render.compiled import compiled

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


@cache
def _sphere() -> tuple[tuple[Array, Array, Array, Array], NDArray[np.int32]]:
    """Cosines and sines of a globe's longitudes and latitudes, [12, 18] each, and its faces."""
    around, up = 18, 12
    u, v = np.meshgrid(
        np.arange(around) * 2 * np.pi / around, np.linspace(-np.pi / 2, np.pi / 2, up)
    )
    a = np.arange(around * (up - 1))
    b = a - a % around + (a + 1) % around
    faces = np.vstack([np.stack([a, b, b + around], 1), np.stack([a, b + around, a + around], 1)])
    return (np.cos(u), np.sin(u), np.cos(v), np.sin(v)), faces.astype(np.int32)


def superquadric(rng: RNG) -> Solid:
    """A random box, cylinder, ball or something between."""
    exponents, radii = rng.choice([0.15, 0.5, 1.0], 2), rng.uniform(0.016, 0.048, 3)
    (cos_u, sin_u, cos_v, sin_v), faces = _sphere()

    def power(w: Array, e: float) -> Array:
        return np.sign(w) * np.abs(w) ** e

    e1, e2 = exponents
    ring = power(cos_v, e1)
    points = np.stack([ring * power(cos_u, e2), ring * power(sin_u, e2), power(sin_v, e1)], axis=-1)
    return Solid(points.reshape(-1, 3) * radii, faces, radii, exponents)


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


@compiled
def enters(verts, place, turn, radii, exponents, depth_m):  # type: ignore[no-untyped-def]
    """Whether any of `verts` lies at least as deep as `depth_m` inside a superquadric: what
    `depth_inside_m` says of them, but only until the first one does.

    Args:
        verts: [n, 3].
        place, turn: [3] and [3, 3] of the superquadric, in the frame of `verts`.
        radii, exponents: [3] and [2], as of `Solid`.
        depth_m: above 0.
    """
    e1, e2 = exponents[0], exponents[1]
    for n in range(len(verts)):
        x, y, z = verts[n, 0] - place[0], verts[n, 1] - place[1], verts[n, 2] - place[2]
        a = abs(x * turn[0, 0] + y * turn[1, 0] + z * turn[2, 0]) / radii[0]
        b = abs(x * turn[0, 1] + y * turn[1, 1] + z * turn[2, 1]) / radii[1]
        c = abs(x * turn[0, 2] + y * turn[1, 2] + z * turn[2, 2]) / radii[2]
        if a > 1 or b > 1 or c > 1:  # outside of its box
            continue
        a, b, c = a + 1e-9, b + 1e-9, c + 1e-9
        size = ((a ** (2 / e2) + b ** (2 / e2)) ** (e2 / e1) + c ** (2 / e1)) ** (e1 / 2)
        if math.sqrt(x * x + y * y + z * z) * (1 / size - 1) >= depth_m:
            return True
    return False


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
        if not enters(verts, place, turn, solid.radii, solid.exponents, ENTERS_M):
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
