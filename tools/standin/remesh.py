"""From the sculpt to 778 vertices with a rim of 16: marching cubes, collapse, relaxation on the
surface."""

import numpy as np

from standin.anatomy import CUT_U, NB, NV
from standin.mesh import Collapser, flips, loop_resample, unit
from standin.sculpt import gradient, project, sdf
from standin.sdf import segment


def webs(s):
    """Middle points of the three webs between the fingers."""
    return np.stack(
        [
            0.26 * (s.J[a] + s.J[b]) + 0.24 * (s.end(a) + s.end(b))
            for a, b in ((1, 4), (4, 10), (10, 7))
        ]
    )


def edge_goal(p, s):
    """Relative target edge length at points p: fine at finger joints and tips, coarse on the
    palm."""
    joints = np.stack([s.J[j] for j in range(1, 16) if j % 3 != 1])
    dj = np.linalg.norm(p[:, None] - joints, axis=2).min(1)
    dt = np.linalg.norm(p[:, None] - s.tip, axis=2).min(1)
    seg = np.stack([segment(p, s.J[j], s.end(j)) for j in range(1, 16) if j != 13], 1).min(1)
    on = np.clip((seg - 8) / 16, 0, 1)
    g = 6.6 + 4.6 * on * on * (3 - 2 * on)
    g = g - 1.3 * np.exp(-((dj / 11) ** 2)) - 2.2 * np.exp(-((dt / 10) ** 2))
    g = g - 2.2 * np.exp(-((np.linalg.norm(p[:, None] - webs(s), axis=2).min(1) / 9) ** 2))
    return g + 3.0 * np.clip(-p[:, 0] / 15, 0, 1)


def remesh(s, step=(2.5, 1.25, 2.0)):
    """Marching cubes, collapse to 778 vertices with a 16-edge boundary, then flips and relaxation
    on the surface."""
    from skimage.measure import marching_cubes

    lo, hi = np.array([CUT_U, -70, -58]), np.array([196, 90, 36])
    ax = [np.arange(a, b, h) for a, b, h in zip(lo, hi, step, strict=True)]
    G = np.stack(np.meshgrid(*ax, indexing="ij"), -1)
    D = np.stack([sdf(g.reshape(-1, 3), s).reshape(g.shape[:2]) for g in G])
    V, F, _, _ = marching_cubes(D, 0.0, spacing=step)
    V = V.astype(float) + lo
    if np.einsum("ij,ij->i", V[F[:, 0]], np.cross(V[F[:, 1]], V[F[:, 2]])).sum() < 0:
        F = F[:, ::-1]
    c = Collapser(V, F.astype(int), edge_goal(V, s))
    lp = c.loop()
    rim = loop_resample(c.V[lp], 400)
    c.run(4500, set(), lp)
    lp = c.loop()
    while len(lp) > NB:
        L = np.linalg.norm(c.V[lp] - c.V[np.roll(lp, -1)], axis=1)
        if not any(
            c.collapse(
                lp[i],
                lp[(i + 1) % len(lp)],
                (c.V[lp[i]] + c.V[lp[(i + 1) % len(lp)]]) / 2,
                -0.2,
                0.02,
            )
            for i in np.argsort(L)
        ):
            raise RuntimeError("the wrist ring cannot be reduced to 16 vertices")
        lp = c.loop()
    even = loop_resample(rim, NB)  # even spacing, matched to the loop by the best rotation
    k = min(range(NB), key=lambda k: ((np.roll(even, k, 0) - c.V[lp]) ** 2).sum())
    c.V[lp] = np.roll(even, k, 0)
    for target, rounds in ((2400, 4), (1300, 10), (900, 16), (NV, 60)):
        c.run(target, set(lp))
        V, F, lp = c.compact(lp)
        pins = [int(np.linalg.norm(V - x, axis=1).argmin()) for x in s.tip] if target == NV else []
        if pins:  # a vertex on every fingertip
            V[pins] = project(s.tip, s)
        V, F = relax(V, F, lp, s, rounds, pins)
        c = Collapser(V, F, edge_goal(V, s))
    return V, F, np.array(lp)


def relax(V, F, lp, s, rounds, pins):
    """Edge flips and tangential smoothing towards the edge goal, on the surface; rim and pins
    stay."""
    inner = np.setdiff1d(np.arange(len(V)), list(lp) + pins)
    for it in range(rounds):
        goal = edge_goal(V, s)
        if it % 3 == 0:
            F, _ = flips(V, F, goal, set(lp))
        w = (
            np.linalg.norm(np.cross(V[F[:, 1]] - V[F[:, 0]], V[F[:, 2]] - V[F[:, 0]]), axis=1)
            / goal[F].mean(1) ** 2
        )
        cen, acc, tot = V[F].mean(1), np.zeros_like(V), np.zeros(len(V))
        for i in range(3):
            np.add.at(acc, F[:, i], cen * w[:, None])
            np.add.at(tot, F[:, i], w)
        n = unit(gradient(V, s))
        move = acc / tot[:, None] - V
        move -= n * (move * n).sum(1, keepdims=True)
        V[inner] = project(V[inner] + 0.6 * move[inner], s, steps=1 + (it % 5 == 4))
    return V, F


def fit_level(V, F, lp, s, rounds=12):
    """Push vertices outward until the flat triangles straddle the surface; returns the vertices."""
    level = np.zeros(NV)
    inner = np.setdiff1d(np.arange(NV), lp)
    bary = np.array([[1, 1, 1], [4, 1, 1], [1, 4, 1], [1, 1, 4]]) / np.array([[3], [6], [6], [6]])
    for _ in range(rounds):
        err = np.mean([sdf(np.einsum("k,fkd->fd", b, V[F]), s) for b in bary], 0)
        acc, tot = np.zeros(NV), np.zeros(NV)
        for i in range(3):
            np.add.at(acc, F[:, i], err)
            np.add.at(tot, F[:, i], 1)
        level = np.clip(level - 0.8 * acc / tot, -0.2, 1.2)
        level[lp] = 0
        V = V.copy()
        V[inner] = project(V[inner], s, level[inner], steps=1)
    return V
