"""Joints of posed hands as each sample's source defines them.

FreiHAND regresses joints from posed vertices, HO-3D takes those of the kinematic chain, and each
has its own fingertip vertices; the difference is millimetres. Labels stay as their source wrote
them; predictions are brought to the source's definition before they meet.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.hand.crop_camera import CropCamera
from handmim.hand.model import HandLayer
from handmim.hand.skeleton import CHAIN_FROM_CANONICAL, JOINT_RULES, ROOT_JOINT
from handmim.types import HandOutputs, HandState, Intrinsics


class JointRules(nn.Module):
    """Every rule of `skeleton.JOINT_RULES` over one hand model.

    Args:
        hand: whose regressor and own fingertips are used.
    """

    tip_verts: Tensor
    is_regressed: Tensor
    chain_order: Tensor

    def __init__(self, hand: HandLayer) -> None:
        super().__init__()
        self.hand = hand
        own = hand.arrays.tip_ids
        tips = [own if r.tip_verts is None else r.tip_verts for r in JOINT_RULES.values()]
        regressed = [r.regressed for r in JOINT_RULES.values()]
        self.register_buffer("tip_verts", torch.tensor(tips), persistent=False)
        self.register_buffer("is_regressed", torch.tensor(regressed), persistent=False)
        order = torch.tensor(CHAIN_FROM_CANONICAL)
        self.register_buffer("chain_order", order, persistent=False)

    def joints(self, verts_m: Tensor, chain_joints_m: Tensor, rule: Tensor) -> Tensor:
        """The 21 joints of every sample by its rule.

        Args:
            verts_m: [B, V, 3] posed vertices, any frame.
            chain_joints_m: [B, 16, 3] in that frame.
            rule: [B] int64, places in `skeleton.RULE_NAMES`.
        Returns: [B, 21, 3] canonical order.
        """
        by_regressor = self.is_regressed[rule][:, None, None]
        chain = torch.where(by_regressor, self.hand.regress_chain(verts_m), chain_joints_m)
        samples = torch.arange(len(rule), device=rule.device)[:, None]
        tips = verts_m[samples, self.tip_verts[rule]]  # [B, 5, 3]
        return torch.cat([chain, tips], dim=1)[:, self.hand.order21]

    def state(
        self,
        state: HandState,
        rule: Tensor,
        camera: CropCamera,
        intrinsics: Intrinsics | None = None,
    ) -> HandState:
        """An estimate whose joints follow the hand model's own rule, in the samples' rules.

        The root moves with its definition, and camera and place with the root, so that every
        vertex keeps its place in the picture.

        Args:
            state: as heads give it.
            rule: [B] int64.
            camera: that it is seen by.
            intrinsics: of the crops.
        """
        with torch.autocast(rule.device.type, enabled=False):
            verts = state.verts_root_m.float()
            own_joints = state.joints_root_m.float()
            joints = self.joints(verts, own_joints[:, self.chain_order], rule)
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
                joints_crop_ndc=camera.see(joints, cam, transl, intrinsics),
                transl_cam_m=transl,
            )

    def outputs(
        self,
        out: HandOutputs,
        rule: Tensor,
        camera: CropCamera,
        intrinsics: Intrinsics | None = None,
    ) -> HandOutputs:
        """`state` on every refinement step."""
        steps = tuple(self.state(s, rule, camera, intrinsics) for s in out.steps)
        return out._replace(steps=steps)
