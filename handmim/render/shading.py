"""Random light, and compiled per-pixel shading of rasterised faces: a hemisphere, two lamps, one
shadow map. `handmim/render/skin.py` says why in batches."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmim.geometry.rotation_numpy import unit
from handmim.render.rasterizer import compiled, corner_weights, rasterise
from handmim.render.skin import mottle, paint

Array = NDArray[np.floating]
RNG = np.random.Generator

WRAP = 0.25  # light bleeds around soft skin
BATCH = 256  # pixels; their arrays stay in a processor's nearest memory


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


@compiled
def _gather(
    pixels, face_id, inv_depth, x_px, y_px, inv_z, faces, corners, centre_px, focal_px,
    bone, bones, point, normal, rest, base,
):  # fmt: skip
    """Points in space, bones and interpolated `corners` of some pixels."""
    width = face_id.shape[1]
    per_width, per_focal = 1.0 / width, 1.0 / focal_px
    for n in range(len(pixels)):
        i = int((pixels[n] + 0.5) * per_width)  # faster than an integer division
        j = pixels[n] - i * width
        t, q = face_id[i, j], inv_depth[i, j]
        bones[n] = bone[t]
        a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
        wb, wc = corner_weights(j + 0.5, i + 0.5, q, a, b, c, x_px, y_px, inv_z)
        wa = 1 - wb - wc
        z = 1.0 / q
        point[0, n] = (j + 0.5 - centre_px) * z * per_focal
        point[1, n] = (i + 0.5 - centre_px) * z * per_focal
        point[2, n] = z
        for k in range(3):
            normal[k, n] = wa * corners[a, k] + wb * corners[b, k] + wc * corners[c, k]
            m = 3 + k
            rest[k, n] = wa * corners[a, m] + wb * corners[b, m] + wc * corners[c, m]
            m = 6 + k
            base[k, n] = wa * corners[a, m] + wb * corners[b, m] + wc * corners[c, m]


@compiled
def _face_viewer(num, point, normal, view):
    """Unit directions to the camera, and unit normals on its side."""
    for n in range(num):
        x, y, z = point[0, n], point[1, n], point[2, n]
        s = -1.0 / math.sqrt(x * x + y * y + z * z)
        view[0, n], view[1, n], view[2, n] = x * s, y * s, z * s
        nx, ny, nz = normal[0, n], normal[1, n], normal[2, n]
        s = 1.0 / (math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-9)
        s = s if nx * x + ny * y + nz * z <= 0 else -s
        normal[0, n], normal[1, n], normal[2, n] = nx * s, ny * s, nz * s


@compiled
def _sky(num, normal, up, sky, ground, lit):
    """Light from above and below: [3, n] out."""
    for n in range(num):
        h = 0.5 + 0.5 * (normal[0, n] * up[0] + normal[1, n] * up[1] + normal[2, n] * up[2])
        for k in range(3):
            lit[k, n] = h * sky[k] + (1 - h) * ground[k]


@compiled
def _facing(num, normal, light, cosine):
    """Cosine between normal and light: [n] out."""
    for n in range(num):
        cosine[n] = normal[0, n] * light[0] + normal[1, n] * light[1] + normal[2, n] * light[2]


@compiled
def _shadow(num, point, cosine, shadow, to_map, seen):
    """Share of the first light that reaches each point: 3 x 3 filtered shadow map with a slope
    bias."""
    for n in range(num):
        seen[n] = 1.0
        if cosine[n] <= -WRAP:  # no light there
            continue
        x, y, z = point[0, n], point[1, n], point[2, n]
        j = int(to_map[0, 0] * x + to_map[0, 1] * y + to_map[0, 2] * z + to_map[0, 3])
        i = int(to_map[1, 0] * x + to_map[1, 1] * y + to_map[1, 2] * z + to_map[1, 3])
        depth = to_map[2, 0] * x + to_map[2, 1] * y + to_map[2, 2] * z + to_map[2, 3]
        depth -= 0.004 + 0.012 * (1 - abs(cosine[n]))
        near, shaded = 1.0 / depth, 0
        for di in range(-1, 2):
            for dj in range(-1, 2):
                shaded += shadow[i + di, j + dj] > near
        seen[n] = 1 - 0.85 / 9 * shaded


@compiled
def _shine(num, light, rgb, cosine, seen, normal, view, wrap, wet, sharpness, half, lit, gleam):
    """Add a light to `lit`, which colours the surface, and to `gleam`, which lies upon it."""
    for n in range(num):
        hx, hy, hz = light[0] + view[0, n], light[1] + view[1, n], light[2] + view[2, n]
        along = normal[0, n] * hx + normal[1, n] * hy + normal[2, n] * hz
        half[n] = along / (math.sqrt(hx * hx + hy * hy + hz * hz) + 1e-9)
        diffuse = max(0.0, (cosine[n] + wrap[n]) / (1 + wrap[n])) * seen[n]
        for k in range(3):
            lit[k, n] += rgb[k] * diffuse
    faint = 1e-6 ** (1 / sharpness)
    for n in range(num):
        if half[n] > faint and cosine[n] > 0:
            strength = wet[n] * seen[n] * np.float32(half[n]) ** np.float32(sharpness)
            for k in range(3):
                gleam[k, n] += rgb[k] * strength


@compiled
def shade(
    covered, face_id, inv_depth, x_px, y_px, inv_z, faces, corners, centre_px, focal_px, bone,
    frame, lines, nail_rgb, lamps, lamp_rgb, up, sky, ground, shadow, to_shadow, table, noise,
    image,
):  # fmt: skip
    """Shade every covered pixel of `image` in place.

    Args:
        covered: indices of the pixels that a face covers, row by row.
        face_id, inv_depth: [H, W] of `rasterise`; x_px, y_px, inv_z: [V] what it was given.
        faces: [F, 3]; unsigned saves a test per look-up, as no index counts from the end.
        corners: [V, 9] normals in the camera frame, rest positions (m), RGB.
        centre_px, focal_px: of the camera, whose images are square.
        bone: [F] dominant joint of a face, -1 for anything but bare skin.
        frame, lines, nail_rgb: as `paint` takes them.
        lamps, lamp_rgb, up, sky, ground: of `Lights`.
        shadow, to_shadow: of `ShadowMap`, for the first lamp.
        table: [4096] noise.
        noise: seed, frequency (1/m), amount, gloss, its sharpness, crease strength.
        image: [H * W, 3] out, linear; uncovered pixels stay what they are.
    """
    seed, freq, amount, gloss, sharpness, crease = noise
    bones = np.empty(BATCH, np.int64)
    vectors, numbers = np.empty((7, 3, BATCH)), np.empty((5, BATCH))
    point, normal, view, rest = vectors[0], vectors[1], vectors[2], vectors[3]
    base, lit, gleam = vectors[4], vectors[5], vectors[6]
    cosine, seen, half, wrap, wet = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    for start in range(0, len(covered), BATCH):
        pixels = covered[start : start + BATCH]
        num = len(pixels)
        _gather(
            pixels, face_id, inv_depth, x_px, y_px, inv_z, faces, corners, centre_px, focal_px,
            bone, bones, point, normal, rest, base,
        )  # fmt: skip
        for n in range(num):
            wet[n], wrap[n] = gloss, WRAP if bones[n] >= 0 else 0.0
        paint(num, bones, rest, frame, lines, crease, nail_rgb, base, wet)
        if amount > 0:
            mottle(num, rest, seed, freq, amount, table, base, normal)
        _face_viewer(num, point, normal, view)
        _sky(num, normal, up, sky, ground, lit)
        gleam[:] = 0.0
        for m in range(2):
            _facing(num, normal, lamps[m], cosine)
            if m == 0:
                _shadow(num, point, cosine, shadow, to_shadow, seen)
            else:
                seen[:] = 1.0
            _shine(
                num, lamps[m], lamp_rgb[m], cosine, seen, normal, view, wrap, wet, sharpness,
                half, lit, gleam,
            )  # fmt: skip
        for n in range(num):
            for k in range(3):
                image[pixels[n], k] = base[k, n] * lit[k, n] + gleam[k, n]
