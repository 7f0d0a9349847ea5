"""Auxiliary map of the hand's pixels. How errors are averaged: `losses.reduction`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.geometry.camera import project
from handmim.geometry.coverage import covered_cells
from handmim.losses.edges import Triangles
from handmim.losses.reduction import blanked, over_samples
from handmim.types import HandBatch, HandOutputs

NEAREST_M = 0.01  # what is nearer to the camera's centre, or behind it, is not drawn


@torch.no_grad()
def hand_masks(
    verts_cam_m: Tensor, K_crop_px: Tensor, faces: Tensor, img_px: int, size_hw: tuple[int, int]
) -> Tensor:
    """Where the whole hand lies in the crop, also behind whatever hides it.

    Args:
        verts_cam_m: [B, V, 3] camera frame.
        K_crop_px: [B, 3, 3].
        faces: [F, 3] int64.
        img_px: side of the crop that K speaks of.
        size_hw: (h, w) cells of the mask.
    Returns: [B, h, w] bool.
    """
    with torch.autocast(verts_cam_m.device.type, enabled=False):
        is_before = verts_cam_m[..., 2] > NEAREST_M
        seen_px = project(verts_cam_m.float(), K_crop_px.float())
        cells = seen_px * (seen_px.new_tensor([size_hw[1], size_hw[0]]) / img_px)
        return covered_cells(blanked(cells, is_before), faces, size_hw, is_before)


class Silhouette(nn.Module):
    """Binary cross-entropy of the hand's pixels, mean over the cells of the map.

    Counts for samples with a labelled mesh and known intrinsics, which together draw the truth.

    Args:
        hand: the hand model whose triangles connect the vertices.
    """

    needs = ("silhouette",)
    faces: Tensor

    def __init__(self, hand: Triangles) -> None:
        super().__init__()
        faces = torch.from_numpy(hand.faces.astype("int64"))
        self.register_buffer("faces", faces, persistent=False)

    def forward(self, out: HandOutputs, batch: HandBatch) -> Tensor:
        """Scalar, nats.

        Raises: ValueError when the head draws no silhouette.
        """
        logits = getattr(out, "silhouette", None)  # heads of bare joints have no such field
        if logits is None:
            raise ValueError(
                "loss silhouette wants a map of the hand and the head draws none: "
                "task.head.silhouette=true (heads of the kind of pymaf), or leave silhouette out "
                "of loss=[...]"
            )
        known = batch.has_verts & batch.has_K
        target = hand_masks(
            blanked(batch.verts_cam_m, known),
            blanked(batch.K_crop_px, known),
            self.faces,
            batch.image.shape[-1],
            (logits.shape[1], logits.shape[2]),
        )
        error = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
        return over_samples(error.mean(dim=(1, 2)), known)
