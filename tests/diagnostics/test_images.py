import cv2
import numpy as np
import torch

from handmim.diagnostics.images import (
    PREDICTED_RGB,
    contact_sheet,
    draw_joints,
    draw_mesh,
    numbered_points,
)
from handmim.render.scene import SceneRenderer, SceneSettings


def test_mesh_overlay_covers_the_hand_and_nothing_else(hand_arrays):
    settings = SceneSettings(
        image_px=96,
        view="cone",
        background="studio",
        objects=0,
        occluders=0,
        sleeves=0,
        blur=0,
        motion_blur=0,
    )
    r = SceneRenderer(hand_arrays, settings).render(0)
    px = r.verts_cam_m @ r.K_px.T
    drawn = draw_mesh(
        r.image,
        px[:, :2] / px[:, 2:],
        r.verts_cam_m[:, 2],
        hand_arrays.faces,
        PREDICTED_RGB,
        alpha=1.0,
    )
    changed = np.abs(drawn.astype(int) - r.image).max(axis=2) > 8
    kernel = np.ones((3, 3), np.uint8)
    mask, mesh = r.mask.astype(np.uint8), changed.astype(np.uint8)
    # The forearm may cover a little of the wrist that the mesh shows.
    assert (mesh > cv2.dilate(mask, kernel)).mean() < 0.01
    assert (mask > cv2.dilate(mesh, kernel)).mean() < 0.001


def test_joints_and_points_land_where_they_are_told():
    black = np.zeros((64, 64, 3), np.uint8)
    joints = np.full((21, 2), 32.0)
    joints[8] = [10.5, 50.5]
    drawn = draw_joints(black, joints)
    assert drawn[50, 10].max() > 100
    points_px = torch.tensor([[41.0, 17.0], [81.0, 61.0]])  # of 144 pixels
    drawn = numbered_points(torch.zeros(3, 144, 144), points_px / 72 - 1)
    for x, y in points_px.int().tolist():
        assert drawn[y, x].max() > 100
    assert drawn[100:, :40].max() == 0
    assert black.max() == 0, "the input is not painted on"


def test_contact_sheet_keeps_order():
    tiles = [np.full((8, 8, 3), 40 * i, np.uint8) for i in range(1, 6)]
    sheet = contact_sheet(tiles, 3, ["a", "b", "c"])[20:]  # below the headings
    flat = [(sheet == 40 * i).all(axis=2).nonzero() for i in range(1, 6)]
    assert all(len(rows) >= 30 for rows, _ in flat)
    assert flat[0][0].min() == flat[1][0].min()
    assert flat[0][1].min() < flat[1][1].min() < flat[2][1].min()
    assert flat[3][0].min() > flat[0][0].max()
