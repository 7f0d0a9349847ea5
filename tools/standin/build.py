"""Puts the stand-in hand together and writes it, the same bytes every time."""

import io
import zipfile

import numpy as np

from handmim.hand.poses import PoseSampler
from handmim.hand.skeleton import CHAIN_FINGERS as FINGERS
from handmim.hand.skeleton import CHAIN_PARENTS
from handmim.utils.files import atomic_path
from standin.anatomy import (
    NV,
    RING_SLOT,
    SHAPE_SD,
    TIP_NEAR,
    TIP_SLOT,
    WRIST,
    Skeleton,
)
from standin.mesh import diffuse
from standin.remesh import fit_level, remesh, webs
from standin.rig import LIMITS, axes, correctives, regressor, shape_directions, skin_weights
from standin.sculpt import sdf

NOTE = (
    "Stand-in right hand of handmim, sculpted procedurally from anthropometric figures; "
    "Apache-2.0. MANO's interface,"
    " not MANO's mesh: vertices, betas and figures do not correspond to MANO's."
)


def permutation(V, W, lp, s):
    """New order: fingertips and the wrist ring at their customary indices, the rest wrist first,
    then finger by finger."""
    slot = {}
    for k, f in enumerate(FINGERS):
        j = 3 * k + 3
        x = s.R[j][:, 0]
        r = V - s.J[j]
        score = (
            r @ x - 0.6 * np.linalg.norm(r - (r @ x)[:, None] * x, axis=1) - 1e3 * (W[:, j] < 0.5)
        )
        for v, i in zip(np.argsort(-score), (TIP_SLOT[f], *TIP_NEAR[f]), strict=False):
            slot[int(v)] = i
    ring = V[lp]
    normal = np.cross(ring - ring.mean(0), np.roll(ring, -1, 0) - ring.mean(0)).sum(0)
    for v, i in zip(
        lp if normal[0] < 0 else lp[::-1], RING_SLOT, strict=True
    ):  # cap normal points proximally
        slot[int(v)] = i
    part = np.array([0, 1, 1, 1, 2, 2, 2, 4, 4, 4, 3, 3, 3, 5, 5, 5])[W.argmax(1)]
    rest = sorted(set(range(NV)) - set(slot), key=lambda v: (part[v], V[v, 0]))
    slot.update(zip(rest, sorted(set(range(NV)) - set(slot.values())), strict=True))
    order = np.zeros(NV, int)
    order[list(slot.values())] = list(slot.keys())
    return order


def rotvecs_from_matrices(rotmats):
    """Rotation vectors below 180 degrees: [..., 3, 3] -> [..., 3] radians. The bits of the shipped
    file depend on this formula."""
    axis = np.stack(
        [
            rotmats[..., 2, 1] - rotmats[..., 1, 2],
            rotmats[..., 0, 2] - rotmats[..., 2, 0],
            rotmats[..., 1, 0] - rotmats[..., 0, 1],
        ],
        axis=-1,
    )
    trace = np.trace(rotmats, axis1=-2, axis2=-1)
    sin2 = np.linalg.norm(axis, axis=-1)  # 2 sin
    angle = np.arctan2(sin2, trace - 1.0)
    return axis * (angle / np.maximum(sin2, 1e-12))[..., None]


def build(seed=0, poses=12000):
    """All arrays of the model: MANO's names, and extras for the sampler and the renderer."""
    s = Skeleton()
    V, F, lp = remesh(s)
    V = fit_level(V, F, lp, s)
    near = np.exp(-((np.linalg.norm(V[:, None] - webs(s), axis=2).min(1, keepdims=True) / 8) ** 2))
    for _ in range(6):  # round off the narrow gaps at the webs
        V = V + 0.6 * near * (diffuse(V, F, 1.0) - V)
    level = sdf(V, s)
    W = skin_weights(V, F, s)
    order = permutation(V, W, lp, s)
    back = np.argsort(order)
    V, W, level, F, rim = V[order], W[order], level[order], back[F], np.array(RING_SLOT)
    SD, named = shape_directions(V, F, W, level, s, rim)
    ax = axes(s)
    corr = correctives(V, F, W, level, s, ax, rim)
    M = np.array([[-1, 0, 0], [0, 0, 1], [0, 1, 0.0]])  # design -> model frame, a rotation

    def to(p):
        return p @ M.T * 1e-3 + WRIST

    Vm, J, tip = to(V).astype(np.float32).astype(float), to(s.J), to(s.tip)
    axm = ax @ M.T
    JR = regressor(Vm * 1e3, W, J * 1e3)
    pose = np.zeros((NV, 3, 135))
    for j in range(1, 16):
        a = axm[j, 0]
        c_sin = 0.5 * np.array([[0, -a[2], a[1]], [a[2], 0, -a[0]], [-a[1], a[0], 0]]).ravel()
        c_cos = -0.5 * np.eye(3).ravel()
        block = np.einsum("vc,k->vck", corr[j, 0] @ M.T, c_sin) + np.einsum(
            "vc,k->vck", corr[j, 1] @ M.T, c_cos
        )
        pose[:, :, 9 * (j - 1) : 9 * j] = np.round(block * 1e-3, 5)
    sampler = PoseSampler(axm, J, tip, LIMITS)
    R = sampler.sample(poses, np.random.default_rng(seed))
    aa = rotvecs_from_matrices(R).reshape(poses, 45)
    mean = aa.mean(0)
    _, S, Vt = np.linalg.svd(aa - mean, full_matrices=False)
    Vt *= np.sign(Vt[np.arange(45), np.abs(Vt).argmax(1)])[:, None]
    f4 = np.float32
    return dict(
        v_template=Vm.astype(f4),
        f=F.astype(np.int32),
        shapedirs=np.einsum("ab,vbk->vak", M, SD).astype(f4) * f4(1e-3),
        shapedirs_named=np.round(np.einsum("ab,vbk->vak", M, named) * 1e-3, 6).astype(f4),
        shape_names=np.array(list(SHAPE_SD)),
        posedirs=pose.astype(f4),
        J_regressor=JR.astype(f4),
        weights=W.astype(f4),
        kintree_table=np.stack([[2**32 - 1, *CHAIN_PARENTS[1:]], np.arange(16)]).astype(np.int64),
        hands_components=Vt.astype(f4),
        hands_mean=mean.astype(f4),
        hands_std=(S / np.sqrt(poses)).astype(f4),
        tip_ids=np.array([TIP_SLOT[f] for f in ("thumb", "index", "middle", "ring", "little")]),
        wrist_ring=rim,
        axes=axm.astype(f4),
        limits=LIMITS.astype(f4),
        J=J.astype(f4),
        tips=tip.astype(f4),
        note=np.array(NOTE),
    )


def write_npz(path, arrays):
    """Write a compressed npz whose bytes depend on its content only: no clock, no order of
    insertion."""
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name in sorted(arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asanyarray(arrays[name]), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED, 9)
