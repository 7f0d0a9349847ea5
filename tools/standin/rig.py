"""The rig: skinning weights, joint regressor, shape directions, pose blendshapes."""

import numpy as np

from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.skeleton import CHAIN_FINGERS as FINGERS
from handmim.hand.skeleton import CHAIN_PARENTS as PARENT
from standin.anatomy import NV, SHAPE_SD, Skeleton, transforms
from standin.mesh import diffuse, unit
from standin.sculpt import project
from standin.sdf import ramp, segment


def _limits_deg():
    """Lowest and highest flexion, abduction (to the thumb's side) and twist of every joint.

    After Kapandji, The physiology of the joints, vol. 1 (rounded).
    """
    limits = np.zeros((16, 3, 2))
    for finger in range(4):
        limits[1 + 3 * finger] = [(-20, 90), (-18, 18), (-6, 6)]
        limits[2 + 3 * finger] = [(-3, 105), (-2, 2), (-2, 2)]
        limits[3 + 3 * finger] = [(-8, 75), (-1, 1), (-1, 1)]
    limits[13] = [(-15, 40), (-25, 30), (-20, 25)]
    limits[14] = [(-12, 55), (-8, 8), (-5, 5)]
    limits[15] = [(-20, 75), (-2, 2), (-2, 2)]
    return limits


LIMITS = _limits_deg()  # [16, 3, 2], wrist 0


def skin(V, W, rotvecs, J):
    """Blend skinning: vertices, joints and the blended 3 x 4 transforms of one pose; rotvecs [16,
    3]."""
    G, posed = transforms(rotvec_to_matrix(rotvecs), J)
    T = np.einsum("vj,jab->vab", W, G)
    return np.einsum("vab,vb->va", T[:, :, :3], V) + T[:, :, 3], posed, T


def skin_weights(V, F, s):
    """Weights (778,16): ramps across the joints, a soft choice of finger at the webs, a little
    diffusion on the mesh."""
    W = np.zeros((NV, 16))
    J, R = s.J, s.R
    near = np.stack(
        [
            np.min([segment(V, J[j], s.end(j)) for j in range(1 + 3 * k, 4 + 3 * k)], 0)
            for k in range(4)
        ],
        1,
    )
    soft = np.exp(-(near**2 - (near**2).min(1, keepdims=True)) / 22.0)
    soft /= soft.sum(1, keepdims=True)
    bend = {}
    for j in range(1, 16):  # how far each vertex lies beyond joint j, along the bisector
        p = PARENT[j]
        x = R[j][:, 0] if p == 0 else unit(R[j][:, 0] + R[p][:, 0])
        bend[j] = (V - J[j]) @ x
    metacarpals = np.min(
        [segment(V, s.base[f], J[1 + 3 * k]) for k, f in enumerate(FINGERS[:4])], 0
    )
    thumb_axis = np.min([segment(V, J[j], s.end(j)) for j in (13, 14, 15)], 0)
    rest = np.minimum(metacarpals, near.min(1))
    ratio = rest / (rest + thumb_axis + 1e-9)
    thumb = ramp(ratio, 0.30, 0.72) * ramp(bend[13], -10, 16)
    thumb = np.maximum(thumb, ramp(ratio, 0.35, 0.6) * ramp(bend[14], -12, 2))
    for k in range(5):
        j = 1 + 3 * k
        if k < 4:
            palmar = np.clip(-(V - J[j]) @ R[j][:, 2] / 10, -1, 1)
            on = ramp(bend[j] - 3.0 * palmar, -8, 13) * soft[:, k] * (1 - thumb)
        else:
            on = thumb
        h2, h3 = (5.5, 5.0) if k < 4 else (8.5, 6.0)
        beyond2 = ramp(bend[j + 1], -h2, h2)
        beyond3 = ramp(bend[j + 2], -h3, h3)
        if k == 4:
            beyond2 *= ramp(ratio, 0.35, 0.6)
        W[:, j] = on * (1 - beyond2)
        W[:, j + 1] = on * beyond2 * (1 - beyond3)
        W[:, j + 2] = on * beyond2 * beyond3
    W[:, 0] = np.clip(1 - W[:, 1:].sum(1), 0, 1)
    for _ in range(2):
        W = diffuse(W, F, 0.4)
    np.put_along_axis(W, np.argsort(-W, 1)[:, 4:], 0, 1)
    W[W < 0.01] = 0
    return W / W.sum(1, keepdims=True)


def regressor(V, W, J):
    """Sparse non-negative rows of sum 1 that return the joints."""
    from scipy.optimize import nnls

    out = np.zeros((16, NV))
    for j in range(16):
        d = np.linalg.norm(V - J[j], axis=1)
        pri = (
            np.exp(-((d / 26) ** 2)) * W[:, 0]
            if j == 0
            else (W[:, j] * W[:, PARENT[j]] + 1e-3) * np.exp(-((d / 14) ** 2))
        )
        c = np.argsort(-pri)[:48]
        A = np.vstack(
            [
                V[c].T,
                50 * np.ones(len(c)),
                0.02 * np.diag(1 / np.sqrt(pri[c] / pri[c].max() + 0.02)),
            ]
        )
        w, _ = nnls(A, np.r_[J[j], 50, np.full(len(c), 0.02 / len(c))], maxiter=10000)
        w[w < 2e-4] = 0
        out[j, c] = w / w.sum()
        for _ in range(20):  # remove the last hundredths of a millimetre, keep the support
            i = np.where(out[j] > 0)[0]
            B = np.vstack([V[i].T, np.ones(len(i))])
            out[j, i] += np.linalg.pinv(B) @ (np.r_[J[j], 1] - B @ out[j, i])
            out[j] = np.maximum(out[j], 0)
    return out / out.sum(1, keepdims=True)


def reshape(V, W, level, s, t, rim):
    """Carry vertices from skeleton s to skeleton t by bone-local coordinates, then onto the sculpt
    of t."""
    out = np.zeros_like(V)
    for j in range(16):
        if j == 0:
            x = V * np.array([1, t.shape["palm_breadth"], t.shape["palm_depth"]])
        else:
            q = (V - s.J[j]) @ s.R[j]
            q[:, 0] *= np.linalg.norm(t.end(j) - t.J[j]) / np.linalg.norm(s.end(j) - s.J[j])
            x = q @ t.R[j].T + t.J[j]
        out += W[:, j : j + 1] * x
    free = np.ones_like(V)
    free[rim] = (0, 1, 1)
    out[rim, 0] = V[rim, 0]
    return project(out, t, level, steps=4, free=free)


def shape_directions(V, F, W, level, s, rim, e=0.02):
    """Central differences of the sculpt in each shape parameter, per standard deviation; then an
    orthogonal basis."""
    named = np.zeros((NV, 3, len(SHAPE_SD)))
    for k, (name, sd) in enumerate(SHAPE_SD.items()):
        if name == "size":
            named[:, :, k] = V * sd
            continue
        plus, minus = (reshape(V, W, level, s, Skeleton(**{name: 1 + x}), rim) for x in (e, -e))
        named[:, :, k] = (plus - minus) / (2 * e) * sd
    for _ in range(2):  # quiet the projection noise
        named[:, :, 1:] = diffuse(named[:, :, 1:], F)
    U, S, Vt = np.linalg.svd(named.reshape(-1, len(SHAPE_SD)), full_matrices=False)
    sign = np.sign(Vt[np.arange(len(S)), np.abs(Vt).argmax(1)])
    return (U * S * sign).reshape(NV, 3, -1), named


def axes(s):
    """Flexion, abduction and twist axes (16,3,3: axis number first) of every joint in the design
    frame."""
    x, n = s.R[:, :, 0], s.R[:, :, 2]
    return np.stack([np.cross(n, x), n, x], 1)


def correctives(V, F, W, level, s, ax, rim):
    """Pose blendshapes: where skinning leaves the sculpt of the bent skeleton, as a function of sin
    and 1 - cos."""
    out = np.zeros((16, 2, NV, 3))
    for j in range(1, 16):
        th = np.radians(LIMITS[j, 0, 1]) * np.array([0.35, 0.7, 1.0])
        d = np.linalg.norm(V - s.J[j], axis=1)
        mask = ramp(-d, -34, -18) * ramp(
            W[:, j : (j // 3 * 3 + 3 if j % 3 else j) + 1].sum(1) + W[:, PARENT[j]], 0.4, 0.9
        )
        mask[rim] = 0
        i = np.where(mask > 0)[0]
        D = np.zeros((3, NV, 3))
        for m, a in enumerate(th):
            rv = np.zeros((16, 3))
            rv[j] = a * ax[j, 0]
            P, _, T = skin(V, W, rv, s.J)
            Q = project(P[i], s.posed(rv), level[i], steps=4, limit=5.0)
            U, _S, Vt = np.linalg.svd(T[i][:, :, :3])
            D[m, i] = np.einsum("vba,vb->va", U @ Vt, Q - P[i]) * mask[i, None]
            for _ in range(2):
                D[m] = diffuse(D[m], F, 0.4)
        X = np.stack([np.sin(th), 1 - np.cos(th)], 1)
        out[j] = np.tensordot(np.linalg.pinv(X), D, 1)
    return out
