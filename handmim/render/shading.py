"""Per-pixel shading of skin and objects: creases, nails, noise, two lights, one shadow map.
Compiled."""

import math

import numpy as np
from numba import njit

# Nine skin tones, light to dark, as RGB in [0, 1].
SKIN_TONES = (
    np.array(
        [
            [240, 195, 172],
            [236, 188, 164],
            [224, 172, 140],
            [205, 145, 110],
            [198, 134, 98],
            [172, 112, 78],
            [141, 85, 54],
            [104, 64, 43],
            [78, 49, 36],
        ]
    )
    / 255.0
)


@njit(cache=True, fastmath=True, nogil=True)
def _noise(x, y, z, table):  # type: ignore[no-untyped-def]
    """Smooth value noise in [-1, 1] from a table of 4096 random values."""
    xi, yi, zi = math.floor(x), math.floor(y), math.floor(z)
    fx, fy, fz = x - xi, y - yi, z - zi
    fx, fy, fz = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy), fz * fz * (3 - 2 * fz)
    total = 0.0
    for a in range(2):
        for b in range(2):
            for c in range(2):
                h = (int(xi) + a) * 73856093 ^ (int(yi) + b) * 19349663 ^ (int(zi) + c) * 83492791
                weight = (fx if a else 1 - fx) * (fy if b else 1 - fy) * (fz if c else 1 - fz)
                total += weight * table[h & 4095]
    return total


@njit(cache=True, fastmath=True, nogil=True)
def _wrinkle(s, palmar, dorsal):  # type: ignore[no-untyped-def]
    """Darkness of a joint's creases at distance s (m) along the bone: a line in the palm, ripples
    on the back."""
    line = 0.20 * palmar * math.exp(-((s / 0.0009) ** 2))
    ripple = 0.07 * dorsal * math.exp(-((s / 0.005) ** 2)) * (0.5 + 0.5 * math.cos(s * 2600.0))
    return line, ripple


@njit(cache=True, fastmath=True, nogil=True)
def _skin(r, jn, frame, lines, crease, gloss, nail_rgb, base):  # type: ignore[no-untyped-def]
    """Paint nails and creases onto `base` at rest position r of bone jn; returns the gloss
    there."""
    q = np.zeros(3)
    for k in range(3):
        for m in range(3):
            q[k] += (r[m] - frame[jn, 0, m]) * frame[jn, 1 + k, m]
    length, breadth = frame[jn, 4, 0], frame[jn, 4, 1]
    wet = gloss
    if jn > 0 and jn % 3 == 0:  # last bone of a digit: the nail, with a darker rim
        e = ((q[0] - 0.74 * length) / (0.27 * length)) ** 4 + (q[1] / (0.66 * breadth)) ** 4
        if e < 1.3 and q[2] > 0.25 * breadth:
            f = min(1.0, max(0.0, (1.0 - e) * 6 + 0.5))
            rim = 0.84 if e > 0.72 else 1.0
            for k in range(3):
                base[k] = (base[k] * (1 - f) + nail_rgb[k] * f) * rim
            wet = gloss * (1 + 1.5 * f)
    if jn > 0:
        palmar = min(1.0, max(0.0, -q[2] / (0.5 * breadth)))
        dorsal = min(1.0, max(0.0, q[2] / (0.5 * breadth)))
        knuckle = jn % 3 == 1 and jn < 13  # its palmar crease lies half-way along the bone
        line, ripple = _wrinkle(q[0] - (0.50 * length if knuckle else 0.0), palmar, dorsal)
        dark = line if jn < 13 or jn == 15 else 0.0
        if not knuckle:
            dark += ripple
        if jn % 3 != 0 and jn != 13:
            line, ripple = _wrinkle(q[0] - length, palmar, dorsal)
            dark += line + ripple
        for k in range(3):
            base[k] *= 1 - crease * dark * (1.0 + 0.25 * k)
    if jn % 3 == (1 if jn else 0) and r[1] < 0.001:  # lines of the palm
        near = 1.0
        for m in range(lines.shape[0]):
            ex, ez = lines[m, 2] - lines[m, 0], lines[m, 3] - lines[m, 1]
            dx, dz = r[0] - lines[m, 0], r[2] - lines[m, 1]
            h = min(1.0, max(0.0, (dx * ex + dz * ez) / (ex * ex + ez * ez)))
            near = min(near, (dx - h * ex) ** 2 + (dz - h * ez) ** 2)
        dark = 0.20 * crease * math.exp(-near / 9e-7)
        for k in range(3):
            base[k] *= 1 - dark * (1.0 + 0.25 * k)
    return wet


@njit(cache=True, fastmath=True, nogil=True)
def _lit_share(p, nl, shadow, rows, offset, scale):  # type: ignore[no-untyped-def]
    """Share of the first light that reaches camera point p: 3 x 3 filtered shadow map with a slope
    bias."""
    side, hidden = shadow.shape[0], 0.0
    sx = (rows[0, 0] * p[0] + rows[0, 1] * p[1] + rows[0, 2] * p[2] + offset[0]) * scale
    sy = (rows[1, 0] * p[0] + rows[1, 1] * p[1] + rows[1, 2] * p[2] + offset[1]) * scale
    sz = rows[2, 0] * p[0] + rows[2, 1] * p[1] + rows[2, 2] * p[2] + offset[2]
    sz -= 0.004 + 0.012 * (1 - abs(nl))
    for di in range(-1, 2):
        for dj in range(-1, 2):
            i, j = int(sy) + di, int(sx) + dj
            if 0 <= i < side and 0 <= j < side and shadow[i, j] > 0 and 1.0 / shadow[i, j] < sz:
                hidden += 1
    return 1 - 0.85 * hidden / 9


@njit(cache=True, fastmath=True, nogil=True)
def shade(  # type: ignore[no-untyped-def]
    face_id, bary, faces, verts, normals, albedo, rest, bone, frame, nail_rgb, image, lights,
    light_rgb, up, sky, ground, table, look, lines, shadow, shadow_rows, shadow_offset,
    shadow_scale,
):  # fmt: skip
    """Shade every covered pixel of `image` in place.

    Args:
        face_id, bary: [H, W] and [H, W, 2] of `rasterise`.
        faces: [F, 3]; verts, normals, albedo, rest: [V, 3], camera frame, RGB, rest positions (m).
        bone: [F] dominant joint of a face, -1 for anything but bare skin.
        frame: [16, 5, 3] of each bone: rest joint, distal, lateral and dorsal axis, (length, half
            breadth, 0).
        nail_rgb: [3].
        image: [H, W, 3] background in, picture out, linear.
        lights, light_rgb: [2, 3] unit directions towards the lights and their colours.
        up, sky, ground: [3] hemisphere light.
        table: [4096] noise.
        look: noise seed, frequency (1/m), amount, gloss, shine, crease strength.
        lines: [n, 4] palm lines as (x, z) segments of the rest pose.
        shadow: [S, S] 1 / depth from the first light; shadow_rows, shadow_offset, shadow_scale:
            camera -> its pixels.
    """
    height, width = face_id.shape
    seed, freq, amount, gloss, shine, crease = look
    n, p, r, v, base = np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3)
    for i in range(height):
        for j in range(width):
            t = face_id[i, j]
            if t < 0:
                continue
            a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
            w1, w2 = bary[i, j, 0], bary[i, j, 1]
            w0 = 1 - w1 - w2
            for k in range(3):
                n[k] = w0 * normals[a, k] + w1 * normals[b, k] + w2 * normals[c, k]
                p[k] = w0 * verts[a, k] + w1 * verts[b, k] + w2 * verts[c, k]
                r[k] = w0 * rest[a, k] + w1 * rest[b, k] + w2 * rest[c, k]
                base[k] = w0 * albedo[a, k] + w1 * albedo[b, k] + w2 * albedo[c, k]
            dist = math.sqrt(p[0] ** 2 + p[1] ** 2 + p[2] ** 2)
            for k in range(3):
                v[k] = -p[k] / dist
            jn, wet = bone[t], gloss
            if jn >= 0:
                wet = _skin(r, jn, frame, lines, crease, gloss, nail_rgb, base)
            if amount > 0:
                x, y, z = r[0] * freq, r[1] * freq, r[2] * freq
                tex = 0.6 * _noise(x + seed, y, z, table)
                tex += 0.4 * _noise(x * 3.1, y * 3.1 + seed, z * 3.1, table)
                bump = 1.3 * amount * _noise(x * 7, y * 7, z * 7 + 9.1, table)
                n[0] += bump
                n[1] -= 0.7 * bump
                n[2] += 0.4 * bump
                for k in range(3):
                    base[k] *= 1 + amount * tex
            s = 1.0 / (math.sqrt(n[0] ** 2 + n[1] ** 2 + n[2] ** 2) + 1e-9)
            if n[0] * v[0] + n[1] * v[1] + n[2] * v[2] < 0:
                s = -s
            for k in range(3):
                n[k] *= s
            h = 0.5 + 0.5 * (n[0] * up[0] + n[1] * up[1] + n[2] * up[2])
            for k in range(3):
                image[i, j, k] = base[k] * (h * sky[k] + (1 - h) * ground[k])
            for m in range(2):
                nl = n[0] * lights[m, 0] + n[1] * lights[m, 1] + n[2] * lights[m, 2]
                seen = 1.0
                if m == 0:
                    seen = _lit_share(p, nl, shadow, shadow_rows, shadow_offset, shadow_scale)
                wrap = 0.25 if jn >= 0 else 0.0  # light bleeds around soft skin
                diffuse = max(0.0, (nl + wrap) / (1 + wrap)) * seen
                hx, hy, hz = lights[m, 0] + v[0], lights[m, 1] + v[1], lights[m, 2] + v[2]
                norm = math.sqrt(hx * hx + hy * hy + hz * hz) + 1e-9
                hh = max(0.0, (n[0] * hx + n[1] * hy + n[2] * hz) / norm)
                spec = wet * hh**shine * seen if nl > 0 else 0.0
                for k in range(3):
                    image[i, j, k] += light_rgb[m, k] * (base[k] * diffuse + spec)
