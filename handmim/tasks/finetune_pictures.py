"""Pictures of a regression: input, predicted mesh, true mesh, joints of both."""

import numpy as np
from numpy.typing import NDArray

from handmim.contracts import HandBatch, HandState
from handmim.geometry.camera import project, px_from_ndc
from handmim.render.overlay import contact_sheet, draw_joints, draw_mesh, enlarge, to_picture

SIDE_PX = 144
TRUTH_RGB = (170, 215, 150)


def draw_predictions(
    batch: HandBatch, state: HandState, faces: NDArray[np.integer], num: int = 8
) -> NDArray[np.uint8]:
    """Rows of input, predicted mesh, true mesh (where vertices and camera are known), predicted and
    true joints.

    Args:
        batch: augmented pictures and their labels.
        state: estimates for the first len(state.cam) of them.
        faces: [F, 3] of the hand model.
        num: samples drawn.
    """
    side = batch.image.shape[-1]
    zoom = max(1, SIDE_PX // side)
    verts_px = px_from_ndc(state.verts_crop_ndc, side).cpu().numpy()
    joints_px = px_from_ndc(state.joints_crop_ndc, side).cpu().numpy()
    depth_m = state.verts_root_m[..., 2].cpu().numpy()
    true_joints_px = px_from_ndc(batch.kp2d_crop_ndc, side).cpu().numpy()
    tiles = []
    for i in range(min(num, len(state.cam))):
        picture = to_picture(batch.image[i].float().cpu().numpy())
        tiles.append(enlarge(picture, zoom))
        tiles.append(draw_mesh(picture, verts_px[i], depth_m[i], faces, zoom=zoom))
        if bool(batch.has_verts[i]) and bool(batch.has_K[i]):
            verts = batch.verts_cam_m[i]
            true_px = project(verts, batch.K_crop_px[i]).cpu().numpy()
            true_depth = verts[:, 2].cpu().numpy()
            tiles.append(
                draw_mesh(picture, true_px, true_depth, faces, colour=TRUTH_RGB, zoom=zoom)
            )
        else:
            tiles.append(enlarge(picture, zoom))
        tiles.append(draw_joints(picture, joints_px[i], zoom=zoom))
        valid = batch.kp2d_valid[i].cpu().numpy()
        tiles.append(draw_joints(picture, true_joints_px[i], valid, zoom=zoom))
    names = ["input", "predicted mesh", "true mesh", "predicted joints", "true joints"]
    return contact_sheet(tiles, 10, names * 2)
