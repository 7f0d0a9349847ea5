"""Z-buffer rasterisation on the CPU and shading of its faces, compiled: skin with nails, creases
and mottling, a hemisphere, two lamps, one shadow map.

Pixels go through each step in batches, as arrays whose last axis counts them: short loops are fast.
`tests/render/plain_shading.py` does the same pixel by pixel.
"""

import math

import numpy as np
from numpy.typing import NDArray

from handmim.geometry.rotation_numpy import unit
from handmim.utils.kernels import njit

Array = NDArray[np.floating]

SHADOW_PX = 128  # side of the shadow map
WRAP = 0.25  # light bleeds around soft skin
BATCH = 256  # pixels; their arrays stay in a processor's nearest memory
# Division by zero gives infinity, as in numpy: a test for it in every loop would keep compilers
# from working on several pixels at once.
compiled = njit(cache=True, fastmath=True, nogil=True, error_model="numpy")


@compiled
def rasterise(x_px, y_px, inv_z, faces, facing, inv_depth, face_id):
    """Nearest face [H, W] int32 and 1 / its depth [H, W] of every pixel, -1 and 0 where there is
    none, of projected vertices [V]; the first pixel's centre is (0.5, 0.5). `facing` 1 or -1 draws
    only faces of that sign of area (y down): all that is seen of closed surfaces; 0 draws all."""
    height, width = face_id.shape
    inv_depth[:] = 0.0
    face_id[:] = -1
    for t in range(faces.shape[0]):
        a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
        x0, y0, x1, y1, x2, y2 = x_px[a], y_px[a], x_px[b], y_px[b], x_px[c], y_px[c]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area * facing < 0 or abs(area) < 1e-9:
            continue
        qa, qb, qc = inv_z[a], inv_z[b], inv_z[c]
        if qa <= 0 or qb <= 0 or qc <= 0:
            continue
        left = max(0, math.ceil(min(x0, x1, x2) - 0.5))
        right = min(width - 1, math.floor(max(x0, x1, x2) - 0.5))
        top = max(0, math.ceil(min(y0, y1, y2) - 0.5))
        low = min(height - 1, math.floor(max(y0, y1, y2) - 0.5))
        # Weights of the corners, and 1 / depth, at the leftmost centre and per step to the right.
        k = 1.0 / area
        b_right, c_right = (y2 - y0) * k, (y0 - y1) * k
        a_right = -b_right - c_right
        q_right = a_right * qa + b_right * qb + c_right * qc
        dx = left + 0.5 - x0
        for i in range(top, low + 1):
            dy = i + 0.5 - y0
            wb, wc = (dx * (y2 - y0) - (x2 - x0) * dy) * k, ((x1 - x0) * dy - dx * (y1 - y0)) * k
            wa = 1 - wb - wc
            q = wa * qa + wb * qb + wc * qc
            first, last = 0.0, float(right - left)
            for w, w_right in ((wa, a_right), (wb, b_right), (wc, c_right)):
                if w_right > 0:
                    first = max(first, -w / w_right)
                elif w_right < 0:
                    last = min(last, -w / w_right)
                elif w < 0:
                    last = -1.0
            for n in range(math.ceil(first), math.floor(last) + 1):
                j, here = left + n, q + n * q_right
                nearer = here > inv_depth[i, j]
                inv_depth[i, j] = here if nearer else inv_depth[i, j]
                face_id[i, j] = t if nearer else face_id[i, j]


@compiled
def corner_weights(px, py, q, a, b, c, x_px, y_px, inv_z):
    """Perspective-correct weights of corners b and c of a face at (px, py) of 1 / depth q."""
    ux, uy, vx, vy = x_px[b] - x_px[a], y_px[b] - y_px[a], x_px[c] - x_px[a], y_px[c] - y_px[a]
    dx, dy = px - x_px[a], py - y_px[a]
    k = 1.0 / ((ux * vy - vx * uy) * q)
    return (dx * vy - vx * dy) * k * inv_z[b], (ux * dy - dx * uy) * k * inv_z[c]


@compiled
def vertex_normals(verts, faces, normals):
    """Area-weighted vertex normals, not yet of unit length: [V, 3], [F, 3] -> [V, 3] out."""
    normals[:] = 0.0
    for t in range(faces.shape[0]):
        a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
        ux, uy, uz = verts[b, 0] - verts[a, 0], verts[b, 1] - verts[a, 1], verts[b, 2] - verts[a, 2]
        vx, vy, vz = verts[c, 0] - verts[a, 0], verts[c, 1] - verts[a, 1], verts[c, 2] - verts[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for k in range(3):
            normals[faces[t, k], 0] += nx
            normals[faces[t, k], 1] += ny
            normals[faces[t, k], 2] += nz


def _cross(a: Array, b: Array) -> Array:
    # numpy's costs ten times as much on so few numbers
    (x, y, z), (u, v, w) = a.tolist(), b.tolist()
    return np.array([y * w - z * v, z * u - x * w, x * v - y * u])


def shadow_map(lamp: Array, points: Array, faces: NDArray[np.int32]) -> tuple[Array, Array]:
    """1 / depth (1 / m), square, of closed surfaces seen from a distant lamp in the unit direction
    [3], and [3, 4] from the camera frame to its column and row, and depth in metres."""
    side = unit(_cross(lamp, np.array([0, 1, 0.1])))
    rows = np.stack([side, _cross(lamp, side), -lamp])
    in_map = rows @ points.T
    low, high = in_map.min(axis=1), in_map.max(axis=1)
    scale = (SHADOW_PX - 1) / max(high[0] - low[0], high[1] - low[1])
    scales = np.array([scale, scale, 1])
    offsets = 1 - low * scales
    x_px, y_px, depth = in_map * scales[:, None] + offsets[:, None]
    # A margin where nothing is, so that every pixel has neighbours.
    inv_depth = np.empty((SHADOW_PX + 2, SHADOW_PX + 2))
    rasterise(x_px, y_px, 1 / depth, faces, 1, inv_depth, np.empty(inv_depth.shape, np.int32))
    return inv_depth, np.column_stack([rows * scales[:, None], offsets])


@compiled
def _noise(x, y, z, table):
    xi, yi, zi = math.floor(x), math.floor(y), math.floor(z)
    fx, fy, fz = x - xi, y - yi, z - zi
    fx, fy, fz = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy), fz * fz * (3 - 2 * fz)
    x0, y0, z0 = xi * 73856093, yi * 19349663, zi * 83492791
    x1, y1, z1 = x0 + 73856093, y0 + 19349663, z0 + 83492791
    a, b, c, d = y0 ^ z0, y1 ^ z0, y0 ^ z1, y1 ^ z1
    ta, tb = table[(x0 ^ a) & 4095], table[(x0 ^ b) & 4095]
    tc, td = table[(x0 ^ c) & 4095], table[(x0 ^ d) & 4095]
    ta += fx * (table[(x1 ^ a) & 4095] - ta)
    tb += fx * (table[(x1 ^ b) & 4095] - tb)
    tc += fx * (table[(x1 ^ c) & 4095] - tc)
    td += fx * (table[(x1 ^ d) & 4095] - td)
    ta += fy * (tb - ta)
    tc += fy * (td - tc)
    return ta + fz * (tc - ta)


@compiled
def mottle(num, rest, seed, freq, amount, table, base, normal):
    """Vary colours `base` and bump normals, [3, n] in place, by noise that sticks to the surface's
    rest positions [3, n]; `freq` is in 1/m."""
    for n in range(num):
        x, y, z = rest[0, n] * freq, rest[1, n] * freq, rest[2, n] * freq
        tone = 0.6 * _noise(x + seed, y, z, table)
        tone += 0.4 * _noise(x * 3.1, y * 3.1 + seed, z * 3.1, table)
        bump = 1.3 * amount * _noise(x * 7, y * 7, z * 7 + 9.1, table)
        normal[0, n] += bump
        normal[1, n] -= 0.7 * bump
        normal[2, n] += 0.4 * bump
        for k in range(3):
            base[k, n] *= 1 + amount * tone


@compiled
def _fading(squares):
    return math.exp(np.float32(-squares)) if squares < 10.5 else np.float32(0)


@compiled
def _crease(s, palmar, dorsal):
    if palmar > 0:  # a line in the palm, ripples on the back
        return 0.20 * palmar * _fading((s / 0.0009) ** 2)
    share = dorsal * _fading((s / 0.005) ** 2)
    return 0.07 * share * (0.5 + 0.5 * math.cos(np.float32(s * 2600.0))) if share > 0 else 0.0


@compiled
def _palm_line(x, z, lines):
    near = 1.0
    for m in range(lines.shape[0]):
        dx, dz, ex, ez = x - lines[m, 0], z - lines[m, 1], lines[m, 2], lines[m, 3]
        h = min(1.0, max(0.0, (dx * ex + dz * ez) * lines[m, 4]))
        near = min(near, (dx - h * ex) ** 2 + (dz - h * ez) ** 2)
    return 0.20 * _fading(near / 9e-7)


@compiled
def paint(num, bones, rest, frame, lines, crease, nail_rgb, base, wet):
    """Paint nails, which are wetter, and creases: colours `base` [3, n] and gloss `wet` [n] in
    place, on `bones` [n], -1 where there is no bare skin. `frame` [16, 5, 3] has each bone's rest
    joint, its distal, lateral and dorsal axis, and (length, half breadth, 0); `lines` [m, 5] of the
    palm have x and z of the start and of the vector to the end, and 1 / its squared length."""
    for n in range(num):
        b = bones[n]
        if b < 0:
            continue
        x, y = rest[0, n] - frame[b, 0, 0], rest[1, n] - frame[b, 0, 1]
        z = rest[2, n] - frame[b, 0, 2]
        along = x * frame[b, 1, 0] + y * frame[b, 1, 1] + z * frame[b, 1, 2]
        aside = x * frame[b, 2, 0] + y * frame[b, 2, 1] + z * frame[b, 2, 2]
        above = x * frame[b, 3, 0] + y * frame[b, 3, 1] + z * frame[b, 3, 2]
        length, breadth = frame[b, 4, 0], frame[b, 4, 1]
        # In its digit: 1 and 2 for the first two bones, 0 for the last.
        segment = b % 3 if b else -1
        if segment == 0 and above > 0.25 * breadth:  # the nail, with a darker rim
            e = ((along - 0.74 * length) / (0.27 * length)) ** 4 + (aside / (0.66 * breadth)) ** 4
            if e < 1.3:
                f = min(1.0, max(0.0, (1.0 - e) * 6 + 0.5))
                rim = 0.84 if e > 0.72 else 1.0
                for k in range(3):
                    base[k, n] = (base[k, n] * (1 - f) + nail_rgb[k] * f) * rim
                wet[n] *= 1 + 1.5 * f
        dark, line = 0.0, 0.0
        if b > 0:
            palmar = min(1.0, max(0.0, -above / (0.5 * breadth)))
            dorsal = min(1.0, max(0.0, above / (0.5 * breadth)))
            if segment == 1 and b < 13:  # a knuckle: its palmar crease lies half-way along the bone
                dark = _crease(along - 0.50 * length, palmar, 0.0)
            else:
                dark = _crease(along, palmar if b < 13 or b == 15 else 0.0, dorsal)
            if segment != 0 and b != 13:
                dark += _crease(along - length, palmar, dorsal)
        if (b == 0 or segment == 1) and rest[1, n] < 0.001:
            line = _palm_line(rest[0, n], rest[2, n], lines)
        if dark + line > 0:
            for k in range(3):
                strength = crease * (1.0 + 0.25 * k)
                base[k, n] *= (1 - strength * dark) * (1 - strength * line)


@compiled
def _gather(
    pixels, face_id, inv_depth, x_px, y_px, inv_z, faces, corners, centre_px, focal_px,
    bone, bones, point, normal, rest, base,
):  # fmt: skip
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
    for n in range(num):
        x, y, z = point[0, n], point[1, n], point[2, n]
        s = -1.0 / math.sqrt(x * x + y * y + z * z)
        view[0, n], view[1, n], view[2, n] = x * s, y * s, z * s
        nx, ny, nz = normal[0, n], normal[1, n], normal[2, n]
        s = 1.0 / (math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-9)
        s = s if nx * x + ny * y + nz * z <= 0 else -s
        normal[0, n], normal[1, n], normal[2, n] = nx * s, ny * s, nz * s


@compiled
def _shadow(num, point, cosine, shadow, to_map, seen):
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
    """Shade the covered pixels, by their indices, of `image` [H * W, 3], linear, in place.

    Faces are unsigned, which saves a test per look-up. `corners` [V, 9] has normals, rest positions
    (m) and RGB; `bone` [F] the dominant joints, -1 for anything but bare skin; `noise` seed,
    frequency (1/m), amount, gloss, its sharpness and crease strength. The shadow is the first
    lamp's.
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
        for n in range(num):
            h = 0.5 + 0.5 * (normal[0, n] * up[0] + normal[1, n] * up[1] + normal[2, n] * up[2])
            for k in range(3):
                lit[k, n] = h * sky[k] + (1 - h) * ground[k]
        gleam[:] = 0.0
        for m in range(2):
            x, y, z = lamps[m]
            for n in range(num):
                cosine[n] = normal[0, n] * x + normal[1, n] * y + normal[2, n] * z
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
