"""A regression of the stand-in hand by a ViT of a few thousand weights."""

from functools import partial

import torch

from handmim.data.augment import HandAugment
from handmim.data.pixels import ColourJitter
from handmim.hand.model import HandLayer
from handmim.losses.hand import JointLoss, JointLoss2D, RotationLoss, ShapeLoss, VertexLoss
from handmim.models.heads.pymaf import PyMafHead
from handmim.models.vit import ViT
from handmim.tasks.mesh import HandRegressionTask

SCENE = {"image_px": 40, "view": "cone", "background": "studio", "objects": 0.0, "occluders": 0.0}


def small_hand_task(
    hand: HandLayer,
    *,
    depth: int = 2,
    drop_path_rate: float = 0.0,
    camera: str = "weak",
    **options,
) -> HandRegressionTask:
    torch.manual_seed(0)
    size = {"embed_dim": 24, "depth": depth, "num_heads": 2}
    backbone = ViT(
        "vit_tiny_patch16_224",
        img_px=32,
        patch_px=8,
        pixel_norm="per_image",
        drop_path_rate=drop_path_rate,
        size=size,
    )
    head = partial(
        PyMafHead,
        hand=hand,
        camera=camera,
        channels=16,
        grid_side=4,
        num_points=16,
        point_dims=(16, 8),
        hidden_dim=64,
        dropout=0.0,
        cls_dim=24,
    )
    losses = {
        "joints3d": JointLoss(root_joint=9, weight=100.0),
        "verts": VertexLoss(root_joint=9, weight=100.0),
        "joints2d": JointLoss2D(weight=5.0),
        "rotations": RotationLoss(weight=2.0),
        "betas": ShapeLoss(weight=0.1),
    }
    return HandRegressionTask(backbone, head, losses, **options)


def small_augment() -> HandAugment:
    return HandAugment(img_px=32, scale=(0.9, 1.0), rotation_deg=20.0, colour=ColourJitter())
