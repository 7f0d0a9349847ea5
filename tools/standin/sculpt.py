"""The sculpt: about seventy round cones and ellipsoids hung on the skeleton, in one signed
distance. Millimetres."""

import numpy as np

from handmim.hand.poses import BREADTH_MM as BREADTH
from handmim.hand.skeleton import CHAIN_FINGERS as FINGERS
from handmim.hand.skeleton import CHAIN_PARENTS as PARENT
from standin.anatomy import DEPTH_RATIO, WRIST_HALF
from standin.mesh import unit
from standin.sdf import blob, cone, fuse, smin


def digit(p, s, k):
    """Signed distance to finger k."""
    f, j, z = FINGERS[k], 1 + 3 * k, s.shape["size"]
    first = j + 1 if f == "thumb" else j  # the thumb's metacarpal belongs to the palm
    B, D = (x / 2 * s.shape["finger_girth"] * z for x in BREADTH[f])
    if f == "thumb":
        rs, js = ((0.97 * B, 0.91 * B), (0.97 * D, 0.83 * D)), (j + 1, j + 2)
    else:
        rs, js = (
            ((0.98 * B, 0.92 * B), (0.93 * B, 0.95 * D), (0.94 * D, 0.83 * D)),
            (j, j + 1, j + 2),
        )
    parts = []
    for _i, (q, (ra, rb)) in enumerate(zip(js, rs, strict=True)):
        a, b = s.J[q], s.end(q)
        x, n, L = s.R[q][:, 0], s.R[q][:, 2], np.linalg.norm(s.end(q) - s.J[q])
        last = q % 3 == 0
        if last:
            b = b - x * 0.80 * D
        c = cone(p, a, b, ra, rb, n, DEPTH_RATIO)
        if last:  # pulp, then the flattened nail side
            c = smin(
                c,
                blob(p, a + x * 0.56 * L - n * 0.20 * D, s.R[q], (0.46 * L, 0.90 * D, 0.76 * D)),
                2.0 * z,
            )
            m = unit(n + 0.20 * x)
            cut = (p - (a + x * 0.62 * L + n * 0.66 * D)) @ m
            c = -smin(-c, -cut, 2.5 * z)
        else:  # palmar pad
            c = smin(
                c,
                blob(p, a + x * 0.50 * L - n * 0.36 * ra, s.R[q], (0.46 * L, 0.80 * ra, 0.68 * ra)),
                4.0 * z,
            )
        parts.append((c, 3.5 * z))
        if q > first:  # swelling at the joint
            w = B if q == first + 1 and f != "thumb" else D
            back = s.R[PARENT[q]][:, 0] + x
            o = a + 0.06 * w * unit(n + s.R[PARENT[q]][:, 2])
            parts.append(
                (
                    cone(
                        p,
                        o - back * 1.6 * z,
                        o + back * 1.2 * z,
                        0.82 * w,
                        0.81 * w,
                        unit(n - unit(back) * (n @ unit(back))),
                        0.97,
                    ),
                    5.0 * z,
                )
            )
    return fuse(parts)


def palm(p, s):
    """Signed distance to palm, thumb base and forearm stub."""
    z, h = s.shape["size"], s.shape
    u, _r, _d = np.eye(3)
    dep, wid, mus = h["palm_depth"], h["palm_breadth"], h["muscle"]

    def at(a, b, c):
        return np.array([a, b * wid, c * dep]) * z

    up = np.array([0, 0, 1.0])
    wb, wd = (x * h["wrist_girth"] * z for x in WRIST_HALF)
    parts = [
        (cone(p, at(-60, 0, -1), at(-4, 0, -1), wb * 1.08, wb, up, wd / wb), 1),
        (cone(p, at(4, 1, -2.0), at(28, 0, -3), wb * 0.96, 26 * wid * z, up, 0.62 * dep), 16 * z),
    ]
    rad = dict(index=(9.5, 10.4), middle=(9.5, 10.6), ring=(9.0, 9.9), little=(8.6, 9.0))
    for k, f in enumerate(FINGERS[:4]):
        b, m = s.base[f], s.J[1 + 3 * k]
        ra, rb = (x * z for x in rad[f])
        parts.append(
            (cone(p, b, m - u * 2 * z, ra, rb * 0.96, up, dep * 1.0), 9 * z)
        )  # bone and dorsum
        parts.append(
            (
                cone(
                    p,
                    b * np.array([1, 0.9, 1]) - up * 7 * dep * z,
                    m + (u * 4 - up * 5.5 * dep) * z,
                    ra * 0.95,
                    rb * 0.98,
                ),
                13 * z,
            )
        )
    J, T = s.J, s.R[13]
    a, b = J[13], J[14]
    L = np.linalg.norm(b - a)
    B = BREADTH["thumb"][0] / 2 * z * h["finger_girth"]
    parts.append((cone(p, a - T[:, 0] * 3 * z, b, 12.0 * z, B * 0.98), 10 * z))  # thumb metacarpal
    parts.append(
        (
            blob(
                p,
                a + T[:, 0] * 0.46 * L - T[:, 2] * 5.5 * z - T[:, 1] * 1 * z,
                T,
                np.array([28, 13.5, 14]) * z * mus,
            ),
            9 * z,
        )
    )  # thenar
    e = s.base["thumb"] + at(8, -9, -6)
    parts.append(
        (cone(p, e, a + T[:, 0] * 0.62 * L - T[:, 2] * 7 * z, 11 * z * mus, 9 * z * mus), 10 * z)
    )
    lit = unit(J[7] - s.base["little"])
    Rl = np.stack([lit, np.cross(up, lit), up], 1)
    parts.append(
        (blob(p, at(41, -28.5, -8), Rl, np.array([33, 12.5, 13 * dep]) * z * mus), 9 * z)
    )  # hypothenar
    i0, i1 = s.base["index"], J[1]  # first web
    parts.append(
        (
            cone(p, a + T[:, 0] * 0.55 * L, i0 + (i1 - i0) * 0.52 - up * 3 * z, 8.5 * z, 8.5 * z),
            9 * z,
        )
    )
    parts.append(
        (
            cone(p, a + T[:, 0] * 0.84 * L, i0 + (i1 - i0) * 0.76 - up * 4 * z, 5.2 * z, 6.5 * z),
            12 * z,
        )
    )
    for f, g in ((1, 4), (4, 10), (10, 7)):  # webs between the fingers
        A, C, L1, L2 = J[f], J[g], np.linalg.norm(J[f + 1] - J[f]), np.linalg.norm(J[g + 1] - J[g])
        x1, x2 = s.rest_R[f][:, 0], s.rest_R[g][:, 0]
        t = 0.27 * (L1 + L2) / 2
        parts.append(
            (cone(p, A + x1 * t - up * 4.5 * z, C + x2 * t - up * 4.5 * z, 6.2 * z, 6.2 * z), 7 * z)
        )
    body = fuse(parts)
    hollow = blob(p, at(57, -1, -27), np.eye(3), np.array([24, 13 * wid, 11]) * z)
    return -smin(-body, hollow, 12 * z)


def sdf(p, s):
    """Signed distance (approximate, mm) of points p (n,3) to the hand of skeleton s."""
    z = s.shape["size"]
    d = digit(p, s, 0)
    for k in (1, 3, 2):
        d = smin(d, digit(p, s, k), 1.5 * z)
    d = smin(palm(p, s), d, 8.0 * z)
    return smin(d, digit(p, s, 4), 5.0 * z)


def gradient(p, s, e=0.05):
    """[N, 3] gradient of the distance by four samples at the corners of a tetrahedron."""
    T = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1.0]])
    return sum(sdf(p + e * t, s)[:, None] * t for t in T) / (4 * e)


def project(p, s, level=0.0, steps=3, limit=1e9, free=None):
    """Newton steps to the given level of the distance field; `free` (n,3) masks coordinates."""
    start = p
    for _ in range(steps):
        g = gradient(p, s)
        if free is not None:
            g = g * free
        p = p - (sdf(p, s) - level)[:, None] * g / np.maximum((g * g).sum(1, keepdims=True), 0.15)
        m = p - start
        length = np.linalg.norm(m, axis=1, keepdims=True)
        p = start + m * np.minimum(1, limit / np.maximum(length, 1e-9))
    return p
