"""Hand layers of smplx and manopth, optional and licensed separately, behind our interface."""

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import roma
import torch
from torch import Tensor, nn

from handmim.hand.io import SHAPES, HandArrays, load_hand_arrays, resolve_hand_path
from handmim.hand.model import HandLayer
from handmim.hand.skeleton import CHAIN_FROM_CANONICAL


def _leave_out_of_checkpoints(layer: nn.Module) -> nn.Module:
    """The hand model's file holds its buffers."""
    for module in layer.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer, persistent=False)
    return layer


def smplx_data(arrays: HandArrays) -> SimpleNamespace:
    """Arrays as smplx's layers take them."""
    content = {key: getattr(arrays, key) for key in SHAPES if key != "f"}
    return SimpleNamespace(f=arrays.faces, **content)


class SmplxHand(HandLayer):
    """`smplx.MANOLayer` on arrays that we have read; it never adds the mean pose."""

    def __init__(self, arrays: HandArrays) -> None:
        super().__init__(arrays)
        try:
            import smplx
        except ImportError as error:
            text = "hand=smplx needs the smplx package (pip install smplx)"
            raise ImportError(f"{text}; hand=mano reads the same files without it") from error
        with contextlib.redirect_stdout(io.StringIO()):  # it remarks on ten betas
            layer = smplx.MANOLayer(
                model_path="",
                data_struct=smplx_data(arrays),
                is_rhand=arrays.side == "right",
                use_pca=False,
                create_body_pose=False,  # it would be a trainable parameter that nothing reads
            )
        self.layer = _leave_out_of_checkpoints(layer)

    def _pose(self, rotmats: Tensor, betas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.layer(global_orient=rotmats[:, :1], hand_pose=rotmats[:, 1:], betas=betas)
        return out.vertices, out.joints, out.vertices[:, self.tip_ids]


class ManopthHand(HandLayer):
    """`manopth.manolayer.ManoLayer`, which returns millimetres in OpenPose order.

    It gets axis-angle: of matrices it takes an SVD without finite gradient at rotations. It
    unpickles its file in `mano_root` itself, which `from_file` reads and checks first; shape
    directions are ours. ImportError naming what to install; ValueError for another hand."""

    def __init__(self, arrays: HandArrays, mano_root: str | Path) -> None:
        super().__init__(arrays)
        try:
            from manopth.manolayer import ManoLayer
        except ImportError as error:
            text = "hand=manopth needs chumpy and github.com/hassony2/manopth, not on PyPI"
            raise ImportError(f"{text}; hand=mano reads the same files without them") from error
        pose = {"use_pca": False, "root_rot_mode": "axisang", "joint_rot_mode": "axisang"}
        pose |= {"center_idx": None, "flat_hand_mean": True, "ncomps": 45}
        layer = ManoLayer(**pose, side=arrays.side, mano_root=str(mano_root))
        template = layer.th_v_template.reshape(-1, 3)
        if np.abs(template.numpy() - arrays.v_template).max() > 1e-6:
            raise ValueError(f"manopth has read another hand from {mano_root} than {arrays.name}")
        layer.th_shapedirs = torch.from_numpy(arrays.shapedirs.astype(np.float32))
        self.layer = _leave_out_of_checkpoints(layer)

    @classmethod
    def from_file(cls, path: str | Path, left_shapedirs: str = "auto") -> "ManopthHand":
        """Read a model as `load_hand_arrays` does; ValueError for a file unread by manopth."""
        path = resolve_hand_path(path)
        arrays = load_hand_arrays(path, left_shapedirs=left_shapedirs)
        if path.name != (name := f"MANO_{arrays.side.upper()}.pkl"):
            text = f"manopth reads {name} as downloaded, got {path.name} (hand.path)"
            raise ValueError(f"{text}; hand=mano reads any")
        return cls(arrays, path.parent)

    def _pose(self, rotmats: Tensor, betas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # OpenPose order is our canonical one; their fingertips are left out, ours are vertices.
        verts_mm, joints_mm = self.layer(roma.rotmat_to_rotvec(rotmats).flatten(1), betas)[:2]
        verts, joints = verts_mm * 1e-3, joints_mm[:, CHAIN_FROM_CANONICAL] * 1e-3
        return verts, joints, verts[:, self.tip_ids]
