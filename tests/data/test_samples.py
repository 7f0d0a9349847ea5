from dataclasses import fields

import numpy as np
import pytest
import torch

from handmim.data.loader import collate_hands
from handmim.data.samples import hand_sample, mirror_sample
from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.skeleton import CONVENTION_NAMES


@pytest.fixture
def labelled(hand):
    rng = np.random.default_rng(0)
    rotmats = rotvec_to_matrix(rng.normal(0, 0.5, (16, 3)))
    betas, transl = rng.normal(size=10), np.array([0.1, 0.0, 0.6])
    mesh = hand(*(torch.from_numpy(x)[None].float() for x in (rotmats, betas, transl)))
    joints, verts = mesh.joints_m[0].numpy(), mesh.verts_m[0].numpy()
    K = np.array([[100.0, 0, 15], [0, 100, 17], [0, 0, 1]])
    seen = joints @ K.T
    return hand_sample(
        rng.integers(0, 255, (32, 32, 3), dtype=np.uint8),
        "x",
        joint_convention="ho3d",
        K_crop_px=K,
        kp2d_crop_px=seen[:, :2] / seen[:, 2:],
        joints_cam_m=joints,
        verts_cam_m=verts,
        rotmats=rotmats,
        betas=betas,
    )


def test_mirroring_twice_gives_the_sample_back(labelled):
    twice = mirror_sample(mirror_sample(labelled))
    for field in fields(labelled):
        a, b = getattr(labelled, field.name), getattr(twice, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, atol=1e-5)
            assert a.dtype == b.dtype
        else:
            assert a == b


def test_everything_mirrors_together(labelled):
    other = mirror_sample(labelled)
    assert other.is_right is False
    np.testing.assert_array_equal(other.image, labelled.image[:, ::-1])
    seen = other.joints_cam_m @ other.K_crop_px.T
    np.testing.assert_allclose(seen[:, :2] / seen[:, 2:], other.kp2d_crop_px, atol=1e-3)
    np.testing.assert_allclose(other.kp2d_crop_px[:, 0], 32 - labelled.kp2d_crop_px[:, 0])
    assert np.linalg.det(other.rotmats) == pytest.approx(1.0, abs=1e-5)
    # the rotation still carries the wrist's first bone along: M (R v) = (M R M) (M v)
    v = np.array([0.1, 0.2, 0.3], np.float32)
    M = np.diag([-1, 1, 1]).astype(np.float32)
    np.testing.assert_allclose(other.rotmats[0] @ (M @ v), M @ (labelled.rotmats[0] @ v), atol=1e-6)


def test_batches_hold_right_hands_only_and_remember(labelled):
    left = mirror_sample(labelled)
    batch = collate_hands([labelled, left])
    assert batch.was_left.tolist() == [False, True]
    for name in ("image", "K_crop_px", "kp2d_crop_ndc", "verts_cam_m", "rotmats", "betas"):
        a, b = getattr(batch, name)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert batch.joint_convention.tolist() == [CONVENTION_NAMES.index("ho3d")] * 2


def test_what_is_not_labelled_is_off_and_zero():
    sample = hand_sample(np.zeros((8, 8, 3), np.uint8), "x")
    assert not any((sample.has_K, sample.has_verts, sample.has_mano))
    assert not sample.kp2d_valid.any()
    assert not sample.joints_valid.any()
    assert collate_hands([sample]).rotmats.shape == (1, 16, 3, 3)


def test_bad_labels_are_refused_by_name():
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="rotations and betas, got one"):
        hand_sample(image, "x", betas=np.zeros(10))
    with pytest.raises(ValueError, match=r"s/7: joints_cam_m has 63 values"):
        hand_sample(image, "s/7", joints_cam_m=np.full((21, 3), np.nan))
    with pytest.raises(ValueError, match=r"K_crop_px must be \(3, 3\), got \(2, 3\)"):
        hand_sample(image, "x", K_crop_px=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="joint_convention must be one of"):
        hand_sample(image, "x", joint_convention="coco")


def test_confidence_is_one_where_nothing_is_said_and_zero_where_nothing_is_seen(labelled):
    image, kp = np.zeros((8, 8, 3), np.uint8), np.ones((21, 2))
    assert labelled.kp2d_conf.dtype == np.float32
    assert (labelled.kp2d_conf == 1).all()
    assert (hand_sample(image, "x", kp2d_conf=np.ones(21)).kp2d_conf == 0).all()
    valid = np.arange(21) < 5
    silent = hand_sample(image, "x", kp2d_crop_px=kp, kp2d_valid=valid)
    np.testing.assert_array_equal(silent.kp2d_conf, valid)
    told = np.where(valid, np.linspace(0, 1, 21), np.nan)
    sample = hand_sample(image, "x", kp2d_crop_px=kp, kp2d_valid=valid, kp2d_conf=told)
    np.testing.assert_allclose(sample.kp2d_conf, np.where(valid, told, 0.0), atol=1e-7)
    batch = collate_hands([sample, mirror_sample(sample)])
    for conf in batch.kp2d_conf:
        assert torch.equal(conf, torch.from_numpy(sample.kp2d_conf))
    for bad in (1.5, -0.1, np.nan):
        with pytest.raises(ValueError, match=r"s/7: kp2d_conf must be in \[0, 1\]"):
            hand_sample(image, "s/7", kp2d_crop_px=kp, kp2d_conf=np.full(21, bad))
    with pytest.raises(ValueError, match=r"kp2d_conf must be \(21,\), got \(1,\)"):
        hand_sample(image, "x", kp2d_crop_px=kp, kp2d_conf=np.ones(1))


def test_what_a_flag_hides_may_be_anything():
    joints = np.full((21, 3), np.nan)
    joints[:5] = 0.1
    valid = np.arange(21) < 5
    kp = np.where(valid[:, None], 3.0, np.inf)[:, [0, 0]]
    sample = hand_sample(
        np.zeros((8, 8, 3), np.uint8), "x", joints_cam_m=joints, joints_valid=valid,
        kp2d_crop_px=kp, kp2d_valid=valid,
    )  # fmt: skip
    assert np.isfinite(sample.joints_cam_m).all()
    assert np.isfinite(sample.kp2d_crop_px).all()
    assert (sample.joints_cam_m[:5] == np.float32(0.1)).all()
    assert (sample.joints_cam_m[5:] == 0).all()
    assert sample.joints_valid.sum() == 5
