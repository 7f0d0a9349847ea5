"""Joints of posed hands by the convention of each sample's source.

FreiHAND regresses joints from posed vertices, HO-3D takes those of the kinematic chain, and each
has its own fingertips. Predictions are brought to the source's convention before they are compared.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.hand.crop_camera import CropCamera
from handmim.hand.model import HandLayer
from handmim.hand.skeleton import CHAIN_FROM_CANONICAL, JOINT_CONVENTIONS, ROOT_JOINT
from handmim.types import HandOutputs, HandState, Intrinsics


class JointConventions(nn.Module):
    """Every convention of `skeleton.JOINT_CONVENTIONS` over one hand model."""

    tip_verts: Tensor
    is_regressed: Tensor
    chain_order: Tensor

    def __init__(self, hand: HandLayer) -> None:
        super().__init__()
        self.hand = hand
        own, known = hand.arrays.tip_ids, JOINT_CONVENTIONS.values()
        for name, values in {
            "tip_verts": [own if c.tip_verts is None else c.tip_verts for c in known],
            "is_regressed": [c.regressed for c in known],
            "chain_order": CHAIN_FROM_CANONICAL,
        }.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def joints(self, verts_m: Tensor, chain_joints_m: Tensor, convention: Tensor) -> Tensor:
        """The 21 joints [B, 21, 3] of every sample, canonical order, from posed vertices [B, V, 3]
        and chain joints [B, 16, 3]; `convention` [B] indexes `skeleton.CONVENTION_NAMES`."""
        by_regressor = self.is_regressed[convention][:, None, None]
        chain = torch.where(by_regressor, self.hand.regress_chain(verts_m), chain_joints_m)
        samples = torch.arange(len(convention), device=convention.device)[:, None]
        tips = verts_m[samples, self.tip_verts[convention]]  # [B, 5, 3]
        return torch.cat([chain, tips], dim=1)[:, self.hand.order21]

    def state(
        self,
        state: HandState,
        convention: Tensor,
        camera: CropCamera,
        intrinsics: Intrinsics | None = None,
    ) -> HandState:
        """An estimate's joints in the samples' conventions; camera and root translation move with
        the root, so that every vertex is still seen where it was."""
        with torch.autocast(convention.device.type, enabled=False):
            verts = state.verts_root_m.float()
            own_joints = state.joints_root_m.float()
            joints = self.joints(verts, own_joints[:, self.chain_order], convention)
            root = joints[:, ROOT_JOINT]
            joints = joints - root[:, None]
            cam = state.cam.float() + F.pad(root[:, :2], (1, 0))
            transl = state.transl_cam_m
            if transl is not None and state.is_metric is not None:
                transl = torch.where(state.is_metric[:, None], transl + root, 0.0)
            return state._replace(
                cam=cam,
                verts_root_m=verts - root[:, None],
                joints_root_m=joints,
                joints_crop_ndc=camera.project(joints, cam, transl, intrinsics),
                transl_cam_m=transl,
            )

    def outputs(
        self,
        out: HandOutputs,
        convention: Tensor,
        camera: CropCamera,
        intrinsics: Intrinsics | None = None,
    ) -> HandOutputs:
        """`state` on every refinement step."""
        steps = tuple(self.state(s, convention, camera, intrinsics) for s in out.steps)
        return out._replace(steps=steps)
