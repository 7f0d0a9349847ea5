"""What `shade` computes, pixel by pixel in plain Python."""

import math

import numpy as np

from synthesis.sequences import size_at

WRAP = 0.25


def noise(x, y, z, table):
    cell = [math.floor(v) for v in (x, y, z)]
    part = [v - c for v, c in zip((x, y, z), cell, strict=True)]
    part = [f * f * (3 - 2 * f) for f in part]
    total = 0.0
    for corner in np.ndindex(2, 2, 2):
        i, j, k = (c + d for c, d in zip(cell, corner, strict=True))
        weight = math.prod(f if d else 1 - f for f, d in zip(part, corner, strict=True))
        total += weight * table[(i * 73856093 ^ j * 19349663 ^ k * 83492791) & 4095]
    return total


def wrinkle(s, palmar, dorsal):
    line = 0.20 * palmar * math.exp(-((s / 0.0009) ** 2))
    ripple = 0.07 * dorsal * math.exp(-((s / 0.005) ** 2)) * (0.5 + 0.5 * math.cos(s * 2600.0))
    return line, ripple


def paint_skin(rest, bone, frame, lines, crease, gloss, nail_rgb, base):
    """Paints `base` in place and returns the gloss."""
    along, aside, above = frame[bone, 1:4] @ (rest - frame[bone, 0])
    length, breadth = frame[bone, 4, :2]
    reddish, wet = crease * (1 + 0.25 * np.arange(3)), gloss
    if bone in (3, 6, 9, 12, 15):
        e = ((along - 0.74 * length) / (0.27 * length)) ** 4 + (aside / (0.66 * breadth)) ** 4
        if e < 1.3 and above > 0.25 * breadth:
            f = np.clip((1.0 - e) * 6 + 0.5, 0, 1)
            base[:] = (base * (1 - f) + nail_rgb * f) * (0.84 if e > 0.72 else 1.0)
            wet = gloss * (1 + 1.5 * f)
    if bone > 0:
        palmar, dorsal = (np.clip(sign * above / (0.5 * breadth), 0, 1) for sign in (-1, 1))
        knuckle = bone in (1, 4, 7, 10)
        line, ripple = wrinkle(along - (0.5 * length if knuckle else 0), palmar, dorsal)
        dark = (line if bone not in (13, 14) else 0) + (0 if knuckle else ripple)
        if bone % 3 != 0 and bone != 13:
            dark += sum(wrinkle(along - length, palmar, dorsal))
        base *= 1 - reddish * dark
    if bone in (0, 1, 4, 7, 10, 13) and rest[1] < 0.001:
        start, way = lines[:, :2], lines[:, 2:4]
        to = rest[[0, 2]] - start
        h = np.clip((to * way).sum(axis=1) / (way**2).sum(axis=1), 0, 1)
        near = ((to - h[:, None] * way) ** 2).sum(axis=1).min()
        base *= 1 - reddish * 0.20 * math.exp(-near / 9e-7)
    return wet


def lit_share(point, cosine, shadow, to_shadow):
    column, row, depth = to_shadow @ np.append(point, 1)
    depth -= 0.004 + 0.012 * (1 - abs(cosine))
    around = shadow[int(row) - 1 : int(row) + 2, int(column) - 1 : int(column) + 2]
    covered = sum(q > 0 and 1 / q < depth for q in around.ravel())
    return 1 - 0.85 * covered / 9


def plain_shade(
    covered, face_id, inv_depth, x_px, y_px, inv_z, faces, corners, centre_px, focal_px, bone,
    frame, lines, nail_rgb, lamps, lamp_rgb, up, sky, ground, shadow, to_shadow, table, skin,
    image,
):  # fmt: skip
    seed, freq, amount, gloss, shine, crease = skin
    for pixel in covered:
        i, j = divmod(int(pixel), face_id.shape[1])
        t, corner = face_id[i, j], faces[face_id[i, j]]
        on_screen = np.stack([x_px[corner], y_px[corner], np.ones(3)])
        weights = np.linalg.solve(on_screen, [j + 0.5, i + 0.5, 1]) * inv_z[corner]
        normal, rest, base = (weights / weights.sum() @ corners[corner]).reshape(3, 3)
        depth = 1 / inv_depth[i, j]
        point = np.array([j + 0.5 - centre_px, i + 0.5 - centre_px, focal_px]) * depth / focal_px
        view = -point / np.linalg.norm(point)
        wet = gloss
        if bone[t] >= 0:
            wet = paint_skin(rest, bone[t], frame, lines, crease, gloss, nail_rgb, base)
        if amount > 0:
            x, y, z = rest * freq
            tone = 0.6 * noise(x + seed, y, z, table)
            tone += 0.4 * noise(x * 3.1, y * 3.1 + seed, z * 3.1, table)
            bump = 1.3 * amount * noise(x * 7, y * 7, z * 7 + 9.1, table)
            normal, base = normal + bump * np.array([1, -0.7, 0.4]), base * (1 + amount * tone)
        normal /= np.linalg.norm(normal)
        normal = -normal if normal @ view < 0 else normal
        h = 0.5 + 0.5 * normal @ up
        colour = base * (h * sky + (1 - h) * ground)
        for m in range(2):
            cosine = normal @ lamps[m]
            seen = lit_share(point, cosine, shadow, to_shadow) if m == 0 else 1.0
            wrap = WRAP if bone[t] >= 0 else 0.0
            half = lamps[m] + view
            along = max(0.0, normal @ half / np.linalg.norm(half))
            highlight = wet * along**shine * seen if cosine > 0 else 0.0
            diffuse = max(0.0, (cosine + wrap) / (1 + wrap)) * seen
            colour = colour + lamp_rgb[m] * (base * diffuse + highlight)
        image[pixel] = colour


def depth_inside_m(points, radii, exponents):
    depth = np.linalg.norm(points, axis=1) * (1 / size_at(points, radii, exponents) - 1)
    return float(np.max(depth))
