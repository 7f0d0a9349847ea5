"""Skin and surfaces before light falls on them: tones, nails, creases, mottling. Compiled.

Pixels come in batches, as arrays whose last axis counts them, and go through each step together:
short loops are fast. `tests/render/plain_shading.py` does the same pixel by pixel.
"""

import math

import numpy as np

from handmim.render.rasterizer import compiled

# Nine skin tones, light to dark, as RGB in [0, 1].
SKIN_TONES = (
    np.array(
        [
            [240, 195, 172], [236, 188, 164], [224, 172, 140], [205, 145, 110], [198, 134, 98],
            [172, 112, 78], [141, 85, 54], [104, 64, 43], [78, 49, 36],
        ]
    )
    / 255.0
)  # fmt: skip


@compiled
def _noise(x, y, z, table):
    """Smooth value noise in [-1, 1] from a table of 4096 random values."""
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
    """Vary colours and bump normals by noise that sticks to the surface.

    Args:
        num: pixels in use.
        rest: [3, n] rest positions, metres.
        seed, freq, amount: offset of the noise, its frequency (1/m) and its strength.
        table: [4096] random values.
        base, normal: [3, n] changed in place.
    """
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
    """exp(-x^2) from x^2, or 0 where that is below 3e-5."""
    return math.exp(np.float32(-squares)) if squares < 10.5 else np.float32(0)


@compiled
def _crease(s, palmar, dorsal):
    """Darkness of a joint's creases at distance s (m) along the bone: a line in the palm, ripples
    on the back."""
    if palmar > 0:
        return 0.20 * palmar * _fading((s / 0.0009) ** 2)
    share = dorsal * _fading((s / 0.005) ** 2)
    return 0.07 * share * (0.5 + 0.5 * math.cos(np.float32(s * 2600.0))) if share > 0 else 0.0


@compiled
def _palm_line(x, z, lines):
    """Darkness of the palm's lines at (x, z) of the rest pose."""
    near = 1.0
    for m in range(lines.shape[0]):
        dx, dz, ex, ez = x - lines[m, 0], z - lines[m, 1], lines[m, 2], lines[m, 3]
        h = min(1.0, max(0.0, (dx * ex + dz * ez) * lines[m, 4]))
        near = min(near, (dx - h * ex) ** 2 + (dz - h * ez) ** 2)
    return 0.20 * _fading(near / 9e-7)


@compiled
def paint(num, bones, rest, frame, lines, crease, nail_rgb, base, wet):
    """Paint nails, which are wetter, and creases.

    Args:
        num: pixels in use.
        bones: [n] dominant joints, -1 where there is no bare skin.
        rest: [3, n] rest positions, metres.
        frame: [16, 5, 3] of each bone: rest joint, distal, lateral and dorsal axis, (length, half
            breadth, 0).
        lines: [m, 5] palm lines: x and z of the start, of the vector to the end, 1 / its squared
            length.
        crease: strength of creases.
        nail_rgb: [3].
        base: [3, n] colours, changed in place.
        wet: [n] gloss, changed in place.
    """
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
