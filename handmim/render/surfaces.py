"""What is drawn: the surface of a hand beyond its mesh (forearm, skin colours, bone frames, palm
lines), and held objects, superquadrics before the palm."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmim.geometry.rotation_numpy import random_rotation, unit
from handmim.hand.io import HandArrays
from handmim.hand.poses import BREADTH_MM, chain
from handmim.hand.skeleton import CANONICAL_FROM_HO3D, CHAIN_FINGERS
from handmim.render.shading import compiled, vertex_normals

Array = NDArray[np.floating]
RNG = np.random.Generator
Held = tuple[Array, NDArray[np.int32], Array]  # points [n, 3], in metres, faces, colours [n, 3]

ARM_RINGS = 4
RING = 16
# Heart, head and life line: (distal, to the thumb's side) in mm from the wrist.
PALM_LINES_MM = (
    ((71, -41), (76, -28), (81, -14), (86, -4), (94, 5), (104, 12)),
    ((73, 33), (72, 18), (68, 2), (61, -14), (53, -27)),
    ((73, 33), (68, 20), (58, 9), (44, 1), (28, -2), (14, -1)),
)
ENTERS_M = 0.003  # how deep the hand may press into an object
# Nine skin tones, light to dark, as RGB in [0, 1].
SKIN_TONES = np.array([
    [240, 195, 172], [236, 188, 164], [224, 172, 140], [205, 145, 110], [198, 134, 98],
    [172, 112, 78], [141, 85, 54], [104, 64, 43], [78, 49, 36],
]) / 255.0  # fmt: skip


def skin_and_nails(rng: RNG) -> tuple[Array, Array]:
    """[3] a random tone, and [3] the colour of nails on it."""
    i, w = rng.integers(len(SKIN_TONES) - 1), rng.random()
    tone = SKIN_TONES[i] * w + SKIN_TONES[i + 1] * (1 - w)
    tone = np.clip(tone * rng.uniform(0.92, 1.1) * (1 + rng.normal(0, 0.025, 3)), 0.03, 1)
    share = 0.45 + 0.55 * tone.mean()
    return tone, np.clip(tone * 0.55 + np.array([0.40, 0.30, 0.28]) * share, 0, 1)


def _strip(points: NDArray[np.int64], beside: NDArray[np.int64], step: int) -> NDArray[np.int64]:
    """Two triangles each between points, those beside them and those `step` further: [2 n, 3]."""
    above, across = points + step, beside + step
    first, second = (points, beside, across), (points, across, above)
    return np.vstack([np.stack(first, axis=1), np.stack(second, axis=1)])


# Cosine and sine of the angles around and up of a sphere's points, and its faces.
_AROUND, _UP = np.meshgrid(np.arange(18) * 2 * np.pi / 18, np.linspace(-np.pi / 2, np.pi / 2, 12))
SPHERE = np.cos(_AROUND), np.sin(_AROUND), np.cos(_UP), np.sin(_UP)
_START = np.arange(18 * 11)
SPHERE_FACES = _strip(_START, _START - _START % 18 + (_START + 1) % 18, 18).astype(np.int32)


class HandSurface:
    """Posing and colouring of the stand-in, or a model with its `axes`, `J`, `tips` and
    `wrist_ring`; float64, one sample at a time."""

    def __init__(self, arrays: HandArrays) -> None:
        extras = arrays.extras
        try:
            axes, joints, tips = (extras[k].astype(np.float64) for k in ("axes", "J", "tips"))
            self.ring = extras["wrist_ring"].astype(np.int64)
        except KeyError as error:
            text = f"{arrays.name} has no {error}: only the stand-in can be drawn"
            raise ValueError(text) from None
        self.arrays = arrays
        verts, n = arrays.v_template, len(arrays.v_template)
        self.joints = arrays.J_regressor @ verts
        self.joint_shapedirs = np.einsum("jv,vck->jck", arrays.J_regressor, arrays.shapedirs)
        self.shapedirs = arrays.shapedirs.reshape(3 * n, -1)
        self.posedirs = arrays.posedirs.reshape(3 * n, -1)
        self.tip_ids = np.asarray(arrays.tip_ids)
        rings = n + np.arange(ARM_RINGS * RING).reshape(ARM_RINGS, RING)
        end = rings[-1]
        tube = [_strip(ring, np.roll(ring, -1), RING) for ring in rings[:-1]]
        cap = np.stack([np.full(RING - 2, end[0]), end[1:-1], end[2:]], axis=1)
        self.faces = np.vstack([arrays.faces, *tube, cap]).astype(np.int32)
        self.bone = np.full(len(self.faces), -1, np.int32)
        self.bone[: len(arrays.faces)] = arrays.weights[arrays.faces].sum(axis=1).argmax(axis=1)
        self.frame = np.zeros((16, 5, 3))
        for j in range(16):
            end = joints[4] if j == 0 else tips[j // 3 - 1] if j % 3 == 0 else joints[j + 1]
            breadth_mm = BREADTH_MM[CHAIN_FINGERS[max(j - 1, 0) // 3]][j % 3 == 0]
            self.frame[j, 0], self.frame[j, 1:4] = joints[j], axes[j][[2, 0, 1]]
            self.frame[j, 4, :2] = np.linalg.norm(end - joints[j]), breadth_mm / 2e3
        segments = [np.hstack([line[:-1], line[1:]]) for line in map(np.array, PALM_LINES_MM)]
        wrist_xz = joints[0, [0, 2, 0, 2]]
        ends = wrist_xz + np.vstack(segments) * 1e-3 * [-1, 1, -1, 1]
        along = ends[:, 2:] - ends[:, :2]
        self.lines = np.column_stack([ends[:, :2], along, 1 / (along**2).sum(axis=1)])
        normals: Array = np.zeros_like(verts)
        vertex_normals(verts, arrays.faces, normals)
        normals = unit(normals)

        def near(points: Array, reach_m: float) -> Array:
            d = np.linalg.norm(verts[:, None] - points, axis=2).min(axis=1)
            return np.exp(-((d / reach_m) ** 2))[:, None]

        palmar = np.clip(0.2 - 1.5 * normals[:, 1:2], 0, 1)
        knuckle = near(self.joints[1:], 0.012) * np.clip(normals[:, 1:2], 0, 1)
        self._paler = palmar * np.array([0.10, 0.07, 0.07])
        self._redder = 1 + near(verts[self.tip_ids], 0.014) * np.array([0.03, -0.09, -0.06])
        self._redder *= 1 - knuckle * np.array([0.03, 0.10, 0.10])
        arm = [verts[self.ring] + [0.03 * k, 0, 0] for k in range(ARM_RINGS)]
        self.rest = np.vstack([verts, *arm])

    def pose(self, rotmats: Array, betas: Array) -> tuple[Array, Array]:
        """Vertices [V, 3] and joints [21, 3] by blend skinning, in metres, without translation;
        rotmats [16, 3, 3] are R_cam_from_mano, then absolute finger rotations."""
        a = self.arrays
        joints = self.joints + self.joint_shapedirs @ betas
        offsets = self.shapedirs @ betas + self.posedirs @ (rotmats[1:] - np.eye(3)).ravel()
        rest = a.v_template + offsets.reshape(-1, 3)
        world, posed = (x[0] for x in chain(rotmats[None], joints))
        shift = posed - (world @ joints[..., None])[..., 0]
        transforms = np.concatenate([world, shift[..., None]], axis=2).reshape(16, 12)
        blended = (a.weights @ transforms).reshape(-1, 3, 4)
        verts = np.einsum("vab,vb->va", blended[..., :3], rest) + blended[..., 3]
        return verts, np.vstack([posed, verts[self.tip_ids]])[list(CANONICAL_FROM_HO3D)]

    def arm(self, verts: Array, wrist_axis: Array) -> Array:
        """[64, 3] rings of a forearm that continues the wrist along `wrist_axis`."""
        ring = verts[self.ring]
        centre = ring.mean(axis=0)
        steps = np.arange(ARM_RINGS)[:, None, None]
        rings = centre + (ring - centre) * (1 + 0.10 * steps) + wrist_axis * 0.035 * steps
        return rings.reshape(-1, 3)

    def colours(self, tone: Array) -> Array:
        """[V, 3] skin: paler in the palm, redder at fingertips and knuckles."""
        return tone * (1 + self._paler * (1.6 - tone.mean())) * self._redder


class Solid(NamedTuple):
    """A superquadric about its own origin and axes, metres."""

    points: Array  # [n, 3]
    faces: NDArray[np.int32]  # [m, 3]
    radii: Array  # [3] half extents
    exponents: Array  # [2]


def muted(colour: Array, saturation: float) -> Array:
    """A colour with part of its saturation: [3] to [3]."""
    grey = colour.mean()
    return grey + (colour - grey) * saturation


def superquadric(rng: RNG) -> Solid:
    """A random box, cylinder, ball or something between."""
    exponents, radii = rng.choice([0.15, 0.5, 1.0], 2), rng.uniform(0.016, 0.048, 3)

    def power(w: Array, e: float) -> Array:
        return np.sign(w) * np.abs(w) ** e

    e1, e2 = exponents
    cos_u, sin_u, cos_v, sin_v = SPHERE
    ring = power(cos_v, e1)
    xyz = ring * power(cos_u, e2), ring * power(sin_u, e2), power(sin_v, e1)
    points = np.stack(xyz, axis=-1).reshape(-1, 3)
    return Solid(points * radii, SPHERE_FACES, radii, exponents)


@compiled
def enters(verts, centre, rotation, radii, exponents, depth_m):
    """Whether any of `verts` [n, 3] lies at least `depth_m` > 0 inside a superquadric, along its
    ray to the centre; `centre` and `rotation` are in the frame of `verts`."""
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
    """The centre [3] of a solid of orientation `rotation` before the palm of a hand of orientation
    `R`, pushed out from `gap_m` in `steps` of 6 mm until the hand enters it by less than 3 mm; None
    when it never fits."""
    palm = -R[:, 1]
    centre = joints[[0, 5, 9, 17]].mean(axis=0) * 0.5 + joints[9] * 0.5 + palm * gap_m
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


def held_object(verts: Array, joints: Array, R: Array, rng: RNG) -> Held | None:
    """A random object off the palm, in the frame of the hand, or None if it never fits."""
    solid = superquadric(rng)
    rotation, gap_m = random_rotation(rng), rng.uniform(0.032, 0.06)
    centre = centre_off_palm(solid, rotation, verts, joints, R, gap_m, steps=16)
    if centre is None:
        return None
    points = solid.points @ rotation.T + centre
    return points, solid.faces, random_colours(solid, rng)
