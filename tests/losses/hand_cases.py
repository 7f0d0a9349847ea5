"""Labelled batches of a small mesh, estimates of them, and all regression losses over both."""

from types import SimpleNamespace

import numpy as np
import torch

from handmim.geometry.rotation import axis_angle_to_matrix
from handmim.losses.composite import LossTerm
from handmim.losses.hand import (
    CameraJointLoss,
    EdgeLoss,
    HeatmapLoss,
    JointLoss,
    JointLoss2D,
    PriorLoss,
    RotationLoss,
    ShapeLoss,
    SilhouetteLoss,
    VertexLoss,
    gaussian_maps,
    hand_masks,
)
from handmim.types import HandBatch, HandOutputs, HandState

IMG_PX, CELLS, NUM_VERTS = 8, 6, 30
MESH = SimpleNamespace(
    faces=np.random.default_rng(0).permuted(np.tile(np.arange(NUM_VERTS), (20, 1)), axis=1)[:, :3]
)
SIGMA = 1.0

SMOOTH = {"unit_m": 0.1, "beta": 0.1}  # of loss=direct_keypoints
TERMS: dict[str, LossTerm] = {
    "joints3d": JointLoss(root_joint=9),
    "joints3d_abs": CameraJointLoss(),
    "joints2d": JointLoss2D(),
    "verts": VertexLoss(root_joint=9),
    "edges": EdgeLoss(MESH),
    "rotations": RotationLoss(),
    "betas": ShapeLoss(),
    "prior": PriorLoss(),
    "heatmaps": HeatmapLoss(sigma_cells=SIGMA),
    "silhouette": SilhouetteLoss(MESH),
    "direct3d": JointLoss(root_joint=9, **SMOOTH),
    "direct2d": JointLoss2D(beta=0.1),
}
# What of an estimate each of them may look at.
REACHED = {
    "joints3d": {"joints_root_m"},
    "joints3d_abs": {"joints_root_m", "transl_cam_m"},
    "joints2d": {"joints_crop_ndc"},
    "verts": {"verts_root_m"},
    "edges": {"verts_root_m"},
    "rotations": {"rotmats"},
    "betas": {"betas"},
    "prior": {"rotmats", "betas"},
    "heatmaps": {"heatmaps"},
    "silhouette": {"silhouette"},
    "direct3d": {"joints_root_m"},
    "direct2d": {"joints_crop_ndc"},
}
LOOK_AT_2D = {"joints2d", "direct2d", "heatmaps"}
STATE_FIELDS = (
    "rotmats", "betas", "cam", "verts_root_m", "joints_root_m", "verts_crop_ndc", "joints_crop_ndc",
    "transl_cam_m",
)  # fmt: skip
MAPS = ("heatmaps", "silhouette")


def random_batch(b: int, seed: int = 0) -> HandBatch:
    """Everything labelled; meshes are clouds about one metre across, five metres away."""
    g = torch.Generator().manual_seed(seed)
    ones = torch.ones(b, dtype=torch.bool)
    K = torch.tensor([[6.0, 0.0, 4.0], [0.0, 6.0, 4.0], [0.0, 0.0, 1.0]])
    away = torch.tensor([0.0, 0.0, 5.0])
    return HandBatch(
        image=torch.zeros(b, 3, IMG_PX, IMG_PX),
        was_left=~ones,
        joint_convention=torch.zeros(b, dtype=torch.long),
        K_crop_px=K.repeat(b, 1, 1),
        has_K=ones,
        kp2d_crop_ndc=torch.rand(b, 21, 2, generator=g) * 1.8 - 0.9,
        kp2d_valid=ones[:, None].repeat(1, 21),
        kp2d_conf=torch.ones(b, 21),
        joints_cam_m=torch.randn(b, 21, 3, generator=g) + away,
        joints_valid=ones[:, None].repeat(1, 21),
        verts_cam_m=torch.randn(b, NUM_VERTS, 3, generator=g) + away,
        has_verts=ones,
        rotmats=axis_angle_to_matrix(torch.randn(b, 16, 3, generator=g)),
        betas=torch.randn(b, 10, generator=g),
        has_mano=ones,
    )


def mixed_batch() -> HandBatch:
    """Six samples: whole, some joints, 2D only, 3D without the root, no intrinsics, nothing."""
    g = torch.Generator().manual_seed(7)
    batch = random_batch(6, seed=1)
    some = torch.rand(21, generator=g) < 0.6
    kp2d_valid, joints_valid = batch.kp2d_valid.clone(), batch.joints_valid.clone()
    kp2d_valid[1], joints_valid[1] = some, some
    joints_valid[1, 9] = True
    joints_valid[2], joints_valid[3, 9] = False, False
    kp2d_valid[5], joints_valid[5] = False, False
    return batch._replace(
        kp2d_valid=kp2d_valid,
        joints_valid=joints_valid,
        kp2d_conf=torch.rand(6, 21, generator=g) * kp2d_valid,
        has_K=torch.tensor([True, True, False, True, False, False]),
        has_verts=torch.tensor([True, True, False, True, True, False]),
        has_mano=torch.tensor([True, False, False, True, True, False]),
    )


def with_garbage(batch: HandBatch, value: float) -> HandBatch:
    """The same labels, and `value` wherever there is none."""

    def spoil(labels, valid):
        spread = valid.reshape(*valid.shape, *[1] * (labels.ndim - valid.ndim))
        return torch.where(spread, labels, value)

    return batch._replace(
        K_crop_px=spoil(batch.K_crop_px, batch.has_K),
        kp2d_crop_ndc=spoil(batch.kp2d_crop_ndc, batch.kp2d_valid),
        kp2d_conf=spoil(batch.kp2d_conf, batch.kp2d_valid),
        joints_cam_m=spoil(batch.joints_cam_m, batch.joints_valid),
        verts_cam_m=spoil(batch.verts_cam_m, batch.has_verts),
        rotmats=spoil(batch.rotmats, batch.has_mano),
        betas=spoil(batch.betas, batch.has_mano),
    )


def only_2d(batch: HandBatch) -> HandBatch:
    """Intrinsics and joints in the image are all that is left."""
    off = torch.zeros_like(batch.has_mano)
    return batch._replace(
        joints_valid=torch.zeros_like(batch.joints_valid), has_verts=off, has_mano=off
    )


def truth_as_state(batch: HandBatch) -> HandState:
    root = batch.joints_cam_m[:, 9, None]
    b = len(batch.betas)
    return HandState(
        rotmats=batch.rotmats.clone(),
        betas=batch.betas.clone(),
        cam=torch.zeros(b, 3),
        verts_root_m=batch.verts_cam_m - root,
        joints_root_m=batch.joints_cam_m - root,
        verts_crop_ndc=torch.zeros(b, NUM_VERTS, 2),
        joints_crop_ndc=batch.kp2d_crop_ndc.clone(),
        transl_cam_m=root[:, 0].clone(),
        is_metric=batch.has_K,
    )


def truth_as_outputs(batch: HandBatch) -> HandOutputs:
    """A start that is far off, and the truth twice."""
    state = truth_as_state(batch)
    start = state._replace(**{name: getattr(state, name) + 100.0 for name in STATE_FIELDS})
    faces = torch.from_numpy(MESH.faces)
    seen = hand_masks(batch.verts_cam_m, batch.K_crop_px, faces, IMG_PX, (CELLS, CELLS))
    return HandOutputs(
        steps=(start, state, state),
        heatmaps=gaussian_maps(batch.kp2d_crop_ndc, (CELLS, CELLS), SIGMA),
        silhouette=torch.where(seen, 40.0, -40.0),
    )


def random_outputs(batch: HandBatch, seed: int = 3, num_steps: int = 2) -> HandOutputs:
    """Estimates that have nothing to do with the labels, but know the same intrinsics."""
    b, states = len(batch.betas), []
    for t in range(num_steps + 1):
        state = truth_as_state(random_batch(b, seed=100 * seed + t))
        states.append(state._replace(is_metric=batch.has_K))
    g = torch.Generator().manual_seed(seed)
    return HandOutputs(
        steps=tuple(states),
        heatmaps=torch.randn(b, 21, CELLS, CELLS, generator=g),
        silhouette=torch.randn(b, CELLS, CELLS, generator=g),
    )


def rows(thing, where: slice):
    """Some samples of a batch, a state or outputs."""
    if isinstance(thing, HandOutputs):
        steps = tuple(rows(s, where) for s in thing.steps)
        return HandOutputs(steps, thing.heatmaps[where], thing.silhouette[where])
    return type(thing)(*(None if field is None else field[where] for field in thing))


def parts(out: HandOutputs) -> dict[str, torch.Tensor]:
    """All that a loss could reach: `step.field` and the maps."""
    found = {
        f"{t}.{name}": getattr(s, name) for t, s in enumerate(out.steps) for name in STATE_FIELDS
    }
    return found | {name: getattr(out, name) for name in MAPS}


def rebuilt(out: HandOutputs, tensors: dict[str, torch.Tensor]) -> HandOutputs:
    """Outputs with these parts in place of their own."""
    steps = tuple(
        s._replace(**{name: tensors[f"{t}.{name}"] for name in STATE_FIELDS})
        for t, s in enumerate(out.steps)
    )
    return out._replace(steps=steps, **{name: tensors[name] for name in MAPS})


def value_and_gradient(term, out: HandOutputs, batch: HandBatch):
    """Mean over steps, and its gradient for every part (zero where there is none)."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in parts(out).items()}
    value = term(rebuilt(out, leaves), batch).mean()
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    return value.detach(), {n: torch.zeros_like(x) if g is None else g for (n, x), g in pairs}
