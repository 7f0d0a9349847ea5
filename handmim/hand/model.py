"""The interface of a hand layer, and our own: batched blend skinning over MANO-format arrays
(Romero et al. 2017, MANO; Loper et al. 2015, SMPL)."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from handmim.geometry.rotation import axis_angle_to_matrix, rot6d_to_matrix
from handmim.hand import skeleton
from handmim.hand.crop_camera import CropCamera
from handmim.hand.io import HandArrays, Side, load_hand_arrays
from handmim.hand.skeleton import JOINT_CONVENTIONS, ROOT_JOINT
from handmim.types import HandState, Intrinsics

_Layer = TypeVar("_Layer", bound="HandLayer")


class HandMesh(NamedTuple):
    """Posed hand, metres."""

    verts_m: Tensor  # [B, V, 3]
    joints_m: Tensor  # [B, 21, 3] canonical order: chain joints and fingertip vertices
    chain_joints_m: Tensor  # [B, 16, 3]


def pose_to_matrices(pose: Tensor) -> Tensor:
    """Rotations of the 16 joints to matrices [B, 16, 3, 3], from axis-angle [B, 48] or [B, 16, 3]
    radians, matrices or 6D [B, 16, 6]."""
    form = tuple(pose.shape[1:])
    if form == (16, 3, 3):
        return pose
    if form in ((48,), (16, 3)):
        return axis_angle_to_matrix(pose.reshape(-1, 16, 3))
    if form == (16, 6):
        return rot6d_to_matrix(pose)
    forms = "axis-angle [B, 48] or [B, 16, 3], matrices [B, 16, 3, 3] or 6D [B, 16, 6]"
    raise ValueError(f"pose must be {forms}, got {tuple(pose.shape)}")


class HandLayer(nn.Module, ABC):
    """MANO-format hand: rotations and shape in, vertices and joints out. Rotations are absolute
    (zero is the flat hand) and the first rotates the hand about its rest wrist. Nothing of a hand
    goes into checkpoints but its `sha256`."""

    joint_regressor: Tensor
    tip_ids: Tensor
    order21: Tensor
    mean_rotmats: Tensor
    faces: NDArray[np.int32]  # [F, 3] counter-clockwise from outside
    side: Side
    sha256: str  # identity of the model: vertices and betas of different models never mix

    def __init__(self, arrays: HandArrays) -> None:
        super().__init__()
        self.arrays, self.name, self.faces = arrays, arrays.name, arrays.faces
        self.side, self.sha256 = arrays.side, arrays.sha256
        self.num_betas = arrays.shapedirs.shape[2]
        mean = axis_angle_to_matrix(torch.from_numpy(arrays.hands_mean).view(15, 3))
        mean = torch.cat([torch.eye(3, dtype=mean.dtype)[None], mean])
        self._keep("mean_rotmats", mean.numpy())  # [16, 3, 3], wrist identity
        self._keep("joint_regressor", arrays.J_regressor)  # [16, V]
        self.register_buffer("tip_ids", torch.tensor(arrays.tip_ids), persistent=False)
        order = torch.tensor(skeleton.CANONICAL_FROM_HO3D)
        self.register_buffer("order21", order, persistent=False)

    def _keep(self, name: str, value: NDArray[np.floating]) -> None:
        self.register_buffer(name, torch.from_numpy(value.astype(np.float32)), persistent=False)

    @classmethod
    def from_file(cls: type[_Layer], path: str | Path, left_shapedirs: str = "auto") -> _Layer:
        """Read a model; arguments as `load_hand_arrays` takes them."""
        return cls(load_hand_arrays(path, left_shapedirs=left_shapedirs))

    def forward(self, pose: Tensor, betas: Tensor, transl_m: Tensor | None = None) -> HandMesh:
        """Pose the hand, in this layer's precision whatever the autocast state; `pose` as
        `pose_to_matrices` takes it, `betas` [B, num_betas], `transl_m` [B, 3]."""
        if betas.ndim != 2 or betas.shape[1] != self.num_betas:
            raise ValueError(f"betas must be [B, {self.num_betas}], got {tuple(betas.shape)}")
        with torch.autocast(betas.device.type, enabled=False):
            dtype = self.mean_rotmats.dtype
            rotmats = pose_to_matrices(pose.to(dtype))
            if len(rotmats) != len(betas):
                raise ValueError(f"got {len(rotmats)} poses and {len(betas)} betas")
            verts_m, chain_m, tips_m = self._pose(rotmats, betas.to(dtype))
            if transl_m is not None:
                if (shape := tuple(transl_m.shape)) != (len(betas), 3):
                    raise ValueError(f"transl_m must be [{len(betas)}, 3], got {shape}")
                shift = transl_m.to(dtype).unsqueeze(1)
                verts_m, chain_m, tips_m = verts_m + shift, chain_m + shift, tips_m + shift
            joints = torch.cat([chain_m, tips_m], dim=1).index_select(1, self.order21)
        return HandMesh(verts_m=verts_m, joints_m=joints, chain_joints_m=chain_m)

    @abstractmethod
    def _pose(self, rotmats: Tensor, betas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Untranslated vertices [B, V, 3], chain [B, 16, 3] and fingertips [B, 5, 3]."""


class HandModel(HandLayer):
    """Our own skinning; a CPU skins `chunk_size` hands at a time, as many as its cache holds."""

    chunk_size = 32
    template: Tensor
    blendshapes: Tensor
    joint_template: Tensor
    joint_shapedirs: Tensor
    skin_weights: Tensor
    last_row: Tensor

    def __init__(self, arrays: HandArrays) -> None:
        super().__init__(arrays)
        num_betas, num_verts = self.num_betas, len(arrays.v_template)
        joint_shapedirs = np.einsum("jv,vck->kjc", arrays.J_regressor, arrays.shapedirs)
        dirs = np.concatenate([arrays.shapedirs, arrays.posedirs], axis=2)  # [V, 3, 145]
        blendshapes = dirs.transpose(2, 1, 0).reshape(num_betas + 135, 3 * num_verts)
        # Pose blendshapes multiply R - I; their part of I is in the template.
        still = np.tile(np.eye(3).reshape(-1), 15) @ blendshapes[num_betas:]
        self._keep("template", arrays.v_template.T.reshape(-1) - still)  # [3V], x of all first
        self._keep("blendshapes", blendshapes)
        joint_template = arrays.J_regressor @ arrays.v_template
        self._keep("joint_template", joint_template.reshape(48))
        self._keep("joint_shapedirs", joint_shapedirs.reshape(num_betas, 48))
        self._keep("skin_weights", arrays.weights.T)  # [16, V]
        self._keep("last_row", np.array([[[0.0, 0.0, 0.0, 1.0]]]))

    def _pose(self, rotmats: Tensor, betas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b = len(rotmats)
        rotations = rotmats.reshape(b * 16, 3, 3)
        joints = torch.addmm(self.joint_template, betas, self.joint_shapedirs).view(b * 16, 3, 1)
        # Every joint's rotation about its rest position; along the chain they multiply.
        shift = torch.baddbmm(joints, rotations, joints, alpha=-1)
        about = torch.cat([rotations, shift], dim=2)
        about = torch.cat([about, self.last_row.expand(b * 16, 1, 4)], dim=1)
        wrist, fingers = about.view(b, 16, 4, 4).split((1, 15), dim=1)
        # Joints of one depth below the wrist, of all fingers at once.
        first, *others = fingers.view(b, 5, 3, 16).permute(2, 0, 1, 3).reshape(3, b * 5, 4, 4)
        levels = [torch.bmm(wrist.expand(b, 5, 4, 4).reshape(b * 5, 4, 4), first)]
        for along_finger in others:
            levels.append(torch.bmm(levels[-1], along_finger))
        posed_fingers = torch.stack(levels, dim=1).view(b, 15, 4, 4)
        transforms = torch.cat([wrist, posed_fingers], dim=1)[:, :, :3]

        rotation, shift = transforms.reshape(b * 16, 3, 4).split((3, 1), dim=2)
        chain = torch.baddbmm(shift, rotation, joints).view(b, 16, 3)
        constants = self.template, self.blendshapes, self.skin_weights, self.tip_ids
        chunk_size = self.chunk_size if rotmats.device.type == "cpu" else max(b, 1)
        posed = betas, rotmats[:, 1:].flatten(1), transforms
        verts, tips = BlendSkinning.apply(*posed, *constants, chunk_size)
        return verts.transpose(1, 2), chain, tips.transpose(1, 2)


class JointConventions(nn.Module):
    """Joints of posed hands by the convention of each sample's source, to which predictions are
    brought before they are compared: joints regressed from vertices (FreiHAND) or of the chain
    (HO-3D), and fingertips."""

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
            "chain_order": skeleton.CHAIN_FROM_CANONICAL,
        }.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def joints(self, verts_m: Tensor, chain_joints_m: Tensor, convention: Tensor) -> Tensor:
        """The 21 joints [B, 21, 3] of every sample, canonical order, from posed vertices [B, V, 3]
        and chain joints [B, 16, 3]; `convention` [B] indexes `skeleton.CONVENTION_NAMES`."""
        by_regressor = self.is_regressed[convention][:, None, None]
        with torch.autocast(verts_m.device.type, enabled=False):
            regressed = self.hand.joint_regressor.to(verts_m.dtype) @ verts_m  # [B, 16, 3]
        chain = torch.where(by_regressor, regressed, chain_joints_m)
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


class BlendSkinning(torch.autograd.Function):
    """v = sum_j w_j A_j (template + [betas, features] blendshapes), vertex axis last. Transforms
    blended for every vertex are made again in the backward pass; there is no second derivative.
    Vertices of `tip_ids` come a second time, without a second gradient of all."""

    @staticmethod
    def forward(
        ctx: Any,
        betas: Tensor,  # [B, S] coefficients of the first blendshapes
        features: Tensor,  # [B, K - S] of the others
        transforms: Tensor,  # [B, J, 3, 4] from the rest pose
        template: Tensor,  # [3V], x of all vertices first
        blendshapes: Tensor,  # [K, 3V]
        weights: Tensor,  # [J, V]
        tip_ids: Tensor,  # [P]
        chunk_size: int,  # samples at a time
    ) -> tuple[Tensor, Tensor]:
        """Vertices [B, 3, V] and those of `tip_ids` [B, 3, P]."""
        b, (num_joints, num_verts) = len(betas), weights.shape
        coefficients = torch.cat([betas, features], dim=1)
        rest = torch.addmm(template, coefficients, blendshapes).view(b, 3, num_verts)
        columns = transforms.permute(0, 3, 2, 1).contiguous()  # [B, 4, 3, J]
        rotation, shift = columns[:, :3], columns[:, 3]
        verts = (shift.reshape(3 * b, num_joints) @ weights).view_as(rest)
        for start in range(0, b, chunk_size):
            part = slice(start, start + chunk_size)
            blended = _blended(rotation[part], weights)
            for i in range(3):
                verts[part].addcmul_(blended[:, i], rest[part, i, None])
        ctx.save_for_backward(rotation, rest, blendshapes, weights, tip_ids)
        ctx.chunk_size, ctx.num_betas = chunk_size, betas.shape[1]
        ctx.set_materialize_grads(False)
        return verts, verts.index_select(2, tip_ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_tips: Tensor | None) -> tuple[Any, ...]:
        """Gradients of betas, features and transforms."""
        rotation, rest, blendshapes, weights, tip_ids = ctx.saved_tensors
        b, (num_joints, num_verts) = len(rest), weights.shape
        with torch.autocast(rest.device.type, enabled=False):
            if grad is None:
                grad = torch.zeros_like(rest)
            elif grad_tips is None:
                grad = grad.contiguous()
            else:  # of our own, to add to
                grad = grad.clone(memory_format=torch.contiguous_format)
            if grad_tips is not None:
                grad.index_add_(2, tip_ids, grad_tips)
            grad_rest = torch.empty_like(rest)
            grad_columns = rest.new_empty(b, 4, 3, num_joints)
            for start in range(0, b, ctx.chunk_size):
                part = slice(start, start + ctx.chunk_size)
                blended, g = _blended(rotation[part], weights), grad[part]
                torch.mul(blended[:, :, 0], g[:, :1], out=grad_rest[part])
                for i in (1, 2):
                    grad_rest[part].addcmul_(blended[:, :, i], g[:, i, None])
                torch.mul(g.unsqueeze(1), rest[part].unsqueeze(2), out=blended)  # serves again
                summed = blended.view(9 * len(g), num_verts) @ weights.t()
                grad_columns[part, :3] = summed.view(len(g), 3, 3, num_joints)
            summed = grad.view(3 * b, num_verts) @ weights.t()
            grad_columns[:, 3] = summed.view(b, 3, num_joints)
            # Of betas and features in one product, over the rows that are needed.
            (of_betas, of_features), split = ctx.needs_input_grad[:2], ctx.num_betas
            rows = slice(0 if of_betas else split, None if of_features else split)
            found = grad_rest.flatten(1) @ blendshapes[rows].t()
            split = split if of_betas else 0
        betas = found[:, :split] if of_betas else None
        features = found[:, split:] if of_features else None
        transforms = grad_columns.permute(0, 3, 2, 1)
        return betas, features, transforms, None, None, None, None, None


def _blended(rotation: Tensor, weights: Tensor) -> Tensor:
    """[n, 3, 3, J] rotations, column by column, to [n, 3, 3, V], those of every vertex."""
    n, (num_joints, num_verts) = len(rotation), weights.shape
    return (rotation.reshape(9 * n, num_joints) @ weights).view(n, 3, 3, num_verts)
