import json

import cv2
import numpy as np
import pytest
import torch

from handmim.hand.conventions import freihand_hand
from handmim.hand.model import HandModel
from handmim.hand.skeleton import FINGERTIP_VERTS

NUM, NUM_EVAL, SIDE = 5, 3, 64
SHAPES = {"K": (3, 3), "mano": (1, 61), "scale": (), "verts": (778, 3), "xyz": (21, 3)}


@pytest.fixture(scope="module")
def labels(freihand_root):
    def read(part):
        found = {}
        for name in SHAPES:
            entries = json.loads((freihand_root / f"{part}_{name}.json").read_text())
            found[name] = [np.array(entry) for entry in entries]
        return found

    return {part: read(part) for part in ("training", "evaluation")}


@pytest.fixture(scope="module")
def double_hand(hand_arrays):
    return HandModel(hand_arrays).double()


def image(root, name):
    return cv2.imread(str(root / name))[:, :, ::-1]


def test_every_file_is_there_and_none_else(freihand_root):
    lists = {f"{p}_{name}.json" for p in ("training", "evaluation") for name in SHAPES}
    images = {f"training/rgb/{i:08d}.jpg" for i in range(4 * NUM)}
    images |= {f"training/mask/{i:08d}.jpg" for i in range(NUM)}
    images |= {f"evaluation/rgb/{i:08d}.jpg" for i in range(NUM_EVAL)}
    have = {str(p.relative_to(freihand_root)) for p in freihand_root.rglob("*") if p.is_file()}
    assert have == lists | images | {"handmim.json"}
    for name in images:
        image = cv2.imread(str(freihand_root / name), cv2.IMREAD_UNCHANGED)
        assert image.shape == (SIDE, SIDE, 3)
        assert image.dtype == np.uint8


def test_lists_have_one_entry_per_unique_sample(labels):
    for part, num in {"training": NUM, "evaluation": NUM_EVAL}.items():
        for name, shape in SHAPES.items():
            assert [entry.shape for entry in labels[part][name]] == [shape] * num, (part, name)


def test_joints_are_regressed_from_vertices_with_freihands_tips(labels, hand_arrays):
    order = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]
    for found in labels.values():
        verts, xyz = np.stack(found["verts"]), np.stack(found["xyz"])
        chain = hand_arrays.J_regressor @ verts
        tips = verts[:, [744, 320, 443, 555, 672]]
        expected = np.concatenate([chain, tips], axis=1)[:, order]
        np.testing.assert_allclose(xyz, expected, atol=2e-8)
        bone = np.linalg.norm(xyz[:, 9] - xyz[:, 10], axis=1)
        np.testing.assert_allclose(found["scale"], bone, atol=3e-8)
        assert (xyz[:, :, 2] > 0.1).all()
        chain_tip = verts[:, list(FINGERTIP_VERTS["standin"])]
        assert np.abs(chain_tip - tips).max() > 1e-3, "another set of tips would show"


def test_the_mano_vector_gives_the_vertices_back(labels, double_hand):
    mean = double_hand.arrays.hands_mean
    for found in labels.values():
        for vector, K, verts in zip(found["mano"], found["K"], found["verts"], strict=True):
            rotmats, betas, root = freihand_hand(vector[0], K, mean)
            to = [torch.from_numpy(x)[None] for x in (rotmats, betas)]
            posed = double_hand(*to).verts_m[0].numpy()
            knuckle = double_hand.arrays.J_regressor[4] @ posed
            assert np.abs(posed - knuckle + root - verts).max() < 1e-6


def test_the_mano_vector_is_written_as_freihand_writes_it(labels):
    """Pose as offsets: the mean pose of the poses is not zero, and uv is where joint 9 is seen."""
    found = labels["training"]
    for vector, K, xyz in zip(found["mano"], found["K"], found["xyz"], strict=True):
        u, v, scale = vector[0, 58:]
        seen = K @ xyz[9] / xyz[9, 2]
        np.testing.assert_allclose([u, v], seen[:2], atol=1e-4)
        assert scale == pytest.approx((K[0, 0] + K[1, 1]) / 2 / xyz[9, 2], rel=1e-6)


def test_joints_fall_into_the_mask(freihand_root, labels):
    inside = []
    for i in range(NUM):
        mask = image(freihand_root, f"training/mask/{i:08d}.jpg")
        assert ((mask < 60) | (mask > 195)).mean() > 0.99, "two levels, but for the jpg"
        px = labels["training"]["xyz"][i] @ labels["training"]["K"][i].T
        cell = np.floor(px[:, :2] / px[:, 2:]).astype(int)
        assert (cell >= 0).all()
        assert (cell < SIDE).all()
        inside.append(mask[cell[:, 1], cell[:, 0], 0] > 127)
    assert np.mean(inside) > 0.9


def test_versions_show_the_same_hand_before_other_backdrops(freihand_root):
    for i in range(NUM):
        names = [f"training/rgb/{i + NUM * version:08d}.jpg" for version in range(4)]
        versions = [image(freihand_root, name).astype(float) for name in names]
        mask = image(freihand_root, f"training/mask/{i:08d}.jpg")[..., 0]
        inner = cv2.erode((mask > 127).astype(np.uint8), np.ones((5, 5))).astype(bool)
        outer = cv2.dilate((mask > 127).astype(np.uint8), np.ones((25, 25))) == 0
        gs = versions[0]
        for other in versions[1:]:
            assert np.abs(other - gs)[inner].mean() < 6, "the same hand, but for the jpg"
            assert np.abs(other - gs)[outer].mean() > 15
        assert (gs[..., 1] - gs[..., [0, 2]].max(axis=2))[outer].mean() > 25, "the first is green"
        assert all(np.abs(v[..., 1] - v[..., 0])[outer].mean() < 25 for v in versions[1:])


def test_training_and_evaluation_are_other_hands(labels):
    pose = [labels[part]["mano"][0][0] for part in ("training", "evaluation")]
    assert np.abs(pose[0] - pose[1])[:58].max() > 0.1
    assert np.abs(labels["training"]["mano"][0] - labels["training"]["mano"][1]).max() > 0.1
