"""Held objects: superquadrics before the palm, where the hand does not enter them."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmim.geometry.rotation_numpy import random_rotation
from handmim.render.rasterizer import compiled

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
    """An object in the camera frame."""

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


@compiled
def enters(verts, centre, rotation, radii, exponents, depth_m):
    """Whether any of `verts` [n, 3] lies at least `depth_m` inside a superquadric, along its ray to
    the centre.

    Args:
        verts: [n, 3].
        centre, rotation: [3] and [3, 3] of the superquadric, in the frame of `verts`.
        radii, exponents: [3] and [2], of `Solid`.
        depth_m: above 0.
    """
    e1, e2 = exponents[0], exponents[1]
    for n in range(len(verts)):
        x, y, z = verts[n, 0] - centre[0], verts[n, 1] - centre[1], verts[n, 2] - centre[2]
        a = abs(x * rotation[0, 0] + y * rotation[1, 0] + z * rotation[2, 0]) / radii[0]
        b = abs(x * rotation[0, 1] + y * rotation[1, 1] + z * rotation[2, 1]) / radii[1]
        c = abs(x * rotation[0, 2] + y * rotation[1, 2] + z * rotation[2, 2]) / radii[2]
        if a > 1 or b > 1 or c > 1:  # outside of its box
            continue
        a, b, c = a + 1e-9, b + 1e-9, c + 1e-9
        size = ((a ** (2 / e2) + b ** (2 / e2)) ** (e2 / e1) + c ** (2 / e1)) ** (e1 / 2)
        if math.sqrt(x * x + y * y + z * z) * (1 / size - 1) >= depth_m:
            return True
    return False


def centre_off_palm(
    solid: Solid, rotation: Array, verts: Array, joints: Array, R: Array, gap_m: float, steps: int
) -> Array | None:
    """The centre [3] of a solid before the palm, pushed out until the hand enters it by less than
    3 mm; None when it never fits.

    Args:
        solid: the object.
        rotation: [3, 3] its orientation.
        verts, joints: [V, 3] and [21, 3] of the hand.
        R: [3, 3] the hand's orientation, in the same frame.
        gap_m: first distance of the centre from the palm.
        steps: at most so many, 6 mm each.
    """
    palm = -R[:, 1]
    centre = joints[[0, 5, 9, 17]].mean(axis=0) * 0.5 + joints[9] * 0.5
    centre = centre + palm * gap_m
    for _ in range(steps):
        if not enters(verts, centre, rotation, solid.radii, solid.exponents, ENTERS_M):
            return centre
        centre = centre + palm * 0.006
    return None


def random_colours(solid: Solid, rng: RNG) -> Array:
    """[n, 3] one random colour, sometimes striped."""
    colour = np.repeat(muted(rng.random(3), 0.6)[None], len(solid.points), axis=0)
    if rng.random() < 0.3:
        stripes = np.sign(np.sin(rng.uniform(30, 120) * solid.points @ rng.normal(0, 1, 3)))
        colour = np.clip(colour * (1 + 0.25 * stripes)[:, None], 0, 1)
    return colour


def held_object(verts: Array, joints: Array, R: Array, rng: RNG) -> HeldObject | None:
    """A random object off the palm, or None if it never fits."""
    solid = superquadric(rng)
    rotation, gap_m = random_rotation(rng), rng.uniform(0.032, 0.06)
    centre = centre_off_palm(solid, rotation, verts, joints, R, gap_m, steps=16)
    if centre is None:
        return None
    points = solid.points @ rotation.T + centre
    return HeldObject(points, solid.faces, random_colours(solid, rng))
