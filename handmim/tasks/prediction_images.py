"""Pictures of a regression: input, predicted mesh, true mesh, joints of both."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmim.geometry.camera import project, px_from_ndc
from handmim.render.overlay import contact_sheet, draw_joints, draw_mesh, enlarge, to_image
from handmim.types import HandBatch

SIDE_PX = 144
GT_RGB = (170, 215, 150)


def draw_predictions(
    batch: HandBatch, state: Any, faces: NDArray[np.integer] | None, num: int = 8
) -> NDArray[np.uint8]:
    """Rows of input, predicted mesh, true mesh (where vertices and camera are known), predicted and
    true joints; without a mesh input and joints alone.

    Args:
        batch: augmented images and their labels.
        state: estimates for the first len(state.joints_crop_ndc) of them: a HandState, or joints
            alone where `faces` is None.
        faces: [F, 3] of the hand model; None draws no meshes.
        num: samples drawn.
    """
    side = batch.image.shape[-1]
    zoom = max(1, SIDE_PX // side)
    joints_px = px_from_ndc(state.joints_crop_ndc.float(), side).cpu().numpy()
    true_joints_px = px_from_ndc(batch.kp2d_crop_ndc, side).cpu().numpy()
    tiles = []
    for i in range(min(num, len(joints_px))):
        image = to_image(batch.image[i].float().cpu().numpy())
        tiles.append(enlarge(image, zoom))
        if faces is not None:
            tiles += _meshes(image, batch, state, i, faces, zoom)
        tiles.append(draw_joints(image, joints_px[i], zoom=zoom))
        valid = batch.kp2d_valid[i].cpu().numpy()
        tiles.append(draw_joints(image, true_joints_px[i], valid, zoom=zoom))
    meshes = [] if faces is None else ["predicted mesh", "true mesh"]
    names = ["input", *meshes, "predicted joints", "true joints"]
    return contact_sheet(tiles, 2 * len(names), names * 2)


def _meshes(
    image: NDArray[np.uint8],
    batch: HandBatch,
    state: Any,
    i: int,
    faces: NDArray[np.integer],
    zoom: int,
) -> list[NDArray[np.uint8]]:
    """Predicted and true mesh of sample i over its image."""
    side = batch.image.shape[-1]
    verts_px = px_from_ndc(state.verts_crop_ndc[i].float(), side).cpu().numpy()
    depth_m = state.verts_root_m[i, :, 2].float().cpu().numpy()
    predicted = draw_mesh(image, verts_px, depth_m, faces, zoom=zoom)
    if not (bool(batch.has_verts[i]) and bool(batch.has_K[i])):
        return [predicted, enlarge(image, zoom)]
    verts = batch.verts_cam_m[i]
    true_px = project(verts, batch.K_crop_px[i]).cpu().numpy()
    true_depth = verts[:, 2].cpu().numpy()
    true = draw_mesh(image, true_px, true_depth, faces, colour=GT_RGB, zoom=zoom)
    return [predicted, true]
