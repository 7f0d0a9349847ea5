"""Auxiliary maps: their truth, their values, and the head's layers that draw them."""

import math

import numpy as np
import pytest
import torch

from handmim.losses.hand import HeatmapLoss, SilhouetteLoss, gaussian_maps, hand_masks
from handmim.models.heads.direct import KeypointOutputs, KeypointState
from handmim.render.scene import SceneRenderer, SceneSettings
from handmim.render.shading import rasterise
from handmim.types import HandOutputs
from tests.losses.hand_cases import CELLS, IMG_PX, MESH, random_batch, truth_as_state

SIDE = 56


def test_a_gaussian_stands_where_the_joint_is():
    # ndc of the centres of cells (column 2, row 5) of 8 and (column 0, row 0)
    points = torch.tensor([[[2.5 / 4 - 1, 5.5 / 4 - 1], [0.5 / 4 - 1, 0.5 / 4 - 1]]])
    maps = gaussian_maps(points, (8, 8), sigma_cells=2.0)
    assert maps.shape == (1, 2, 8, 8)
    assert maps[0, 0, 5, 2] == pytest.approx(1.0)
    assert maps[0, 0, 5, 4] == pytest.approx(math.exp(-0.5))  # two cells are one sigma
    assert maps[0, 0, 3, 4] == pytest.approx(math.exp(-1.0))
    assert maps[0, 1, 0, 0] == pytest.approx(1.0)
    wide = gaussian_maps(points, (8, 16), sigma_cells=2.0)[0, 0]  # twice as many columns
    assert divmod(int(wide.argmax()), 16) in {(5, 4), (5, 5)}


def test_a_joint_outside_of_the_crop_has_an_empty_target():
    points = torch.tensor([[[1.0001, 0.0], [0.0, -1.5], [1.0, 1.0]]])
    maps = gaussian_maps(points, (8, 8), sigma_cells=2.0)
    assert maps[0, :2].abs().max() == 0.0
    assert maps[0, 2].max() > 0.8  # on the rim it still counts
    batch = random_batch(1)
    batch = batch._replace(kp2d_crop_ndc=batch.kp2d_crop_ndc + 3.0)
    drawn = torch.full((1, 21, CELLS, CELLS), 0.5)
    state = truth_as_state(batch)
    assert HeatmapLoss()(HandOutputs((state, state), heatmaps=drawn), batch) == pytest.approx(0.25)


def test_heatmaps_by_hand():
    batch = random_batch(1)
    state = truth_as_state(batch)
    truth = gaussian_maps(batch.kp2d_crop_ndc, (CELLS, CELLS), 1.0)
    off = truth.clone()
    off[0, 0] += 0.3  # one joint, all cells
    off[0, 1, 2, 4] -= 0.6  # another, one cell
    conf = torch.ones(1, 21)
    conf[0, 0] = 0.5
    out = HandOutputs((state, state), heatmaps=off)
    wanted = (0.5 * 0.09 + 0.36 / CELLS**2) / 21
    found = HeatmapLoss(sigma_cells=1.0)(out, batch._replace(kp2d_conf=conf))
    assert found.item() == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(ValueError, match="sigma_cells must be > 0"):
        HeatmapLoss(sigma_cells=0.0)


def test_silhouette_by_hand():
    batch = random_batch(2)
    faces = torch.from_numpy(MESH.faces)
    seen = hand_masks(batch.verts_cam_m, batch.K_crop_px, faces, IMG_PX, (CELLS, CELLS))
    state = truth_as_state(batch)
    level = HandOutputs((state, state), silhouette=torch.zeros(2, CELLS, CELLS))
    assert SilhouetteLoss(MESH)(level, batch).item() == pytest.approx(math.log(2.0), rel=1e-5)
    # all is called hand, twice as likely as not: ln 1.5 on the hand, ln 3 beside it
    out = HandOutputs((state, state), silhouette=torch.full((2, CELLS, CELLS), math.log(2.0)))
    share = seen.float().mean().item()
    assert 0.1 < share < 0.9
    wanted = share * math.log(1.5) + (1 - share) * math.log(3.0)
    assert SilhouetteLoss(MESH)(out, batch).item() == pytest.approx(wanted, rel=1e-4)
    one = batch._replace(has_K=torch.tensor([True, False]))
    assert SilhouetteLoss(MESH)(level, one).item() == pytest.approx(math.log(2.0) / 2, rel=1e-5)


@pytest.fixture(scope="module")
def rendered(hand_arrays):
    bare = {"image_px": SIDE, "view": "cone", "background": "studio", "blur": 0, "motion_blur": 0}
    bare |= {"objects": 0, "occluders": 0, "sleeves": 0}
    renderer = SceneRenderer(hand_arrays, SceneSettings(**bare))
    return [renderer.render(i) for i in range(6)]


def test_masks_are_those_of_the_renderer(rendered, hand_arrays):
    verts = torch.from_numpy(np.stack([r.verts_cam_m for r in rendered])).float()
    K = torch.from_numpy(np.stack([r.K_px for r in rendered])).float()
    faces = torch.from_numpy(hand_arrays.faces.astype(np.int64))
    masks = hand_masks(verts, K, faces, SIDE, (SIDE, SIDE)).numpy()
    for r, mask in zip(rendered, masks, strict=True):
        seen = r.verts_cam_m.astype(np.float64) @ r.K_px.T.astype(np.float64)
        x, y = (np.ascontiguousarray(seen[:, k] / seen[:, 2]) for k in (0, 1))
        depth, face_id = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE), np.int32)
        rasterise(x, y, 1 / seen[:, 2], hand_arrays.faces, 0, depth, face_id)
        mesh = face_id >= 0
        assert (mesh & mask).sum() / (mesh | mask).sum() > 0.995
        # and of the image, whose forearm goes on behind the wrist
        hand = np.asarray(r.mask) > 0
        assert (hand & mask).sum() / (hand | mask).sum() > 0.95
    # the same crop at another resolution: the share that is covered stays
    half = hand_masks(verts, K, faces, SIDE, (SIDE // 2, SIDE // 2)).float().mean(dim=(1, 2))
    assert np.abs(half.numpy() - masks.mean(axis=(1, 2))).max() < 0.02


def test_a_head_that_draws_no_maps_is_named():
    batch = random_batch(1)
    state = truth_as_state(batch)
    bare = KeypointState(state.joints_root_m, state.joints_crop_ndc)
    for out in (HandOutputs((state, state)), KeypointOutputs((bare, bare))):
        with pytest.raises(ValueError, match=r"head\.heatmaps=true"):
            HeatmapLoss()(out, batch)
        with pytest.raises(ValueError, match=r"head\.silhouette=true"):
            SilhouetteLoss(MESH)(out, batch)
