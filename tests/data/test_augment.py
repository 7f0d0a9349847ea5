import dataclasses

import numpy as np
import pytest
import torch

from handmim.data.augment import HandAugment, HandCutOut, OccluderPaste, transform_labels
from handmim.data.datasets import label_subset
from handmim.data.loader import batches, collate_crops, collate_hands
from handmim.data.pixels import ColourJitter
from handmim.data.samples import hand_sample
from handmim.geometry.camera import ndc_from_px, project, px_from_ndc
from handmim.geometry.crop import similarity
from handmim.geometry.rotation import axis_angle_to_matrix
from handmim.types import CropSample, HandBatch, HandSample, StepInfo

INFO = StepInfo(0, 1)


def sample(seed: int, side: int = 32) -> HandSample:
    rng = np.random.default_rng(seed)
    joints = (rng.normal(0, 0.05, (21, 3)) + np.array([0, 0, 0.6])).astype(np.float32)
    K = np.array([[3 * side, 0, side / 2], [0, 3 * side, side / 2], [0, 0, 1]], np.float32)
    kp = joints @ K.T
    R = axis_angle_to_matrix(torch.from_numpy(rng.normal(0, 1, (16, 3)))).numpy().astype(np.float32)
    return hand_sample(
        rng.integers(0, 256, (side, side, 3), dtype=np.uint8),
        str(seed),
        K_crop_px=K,
        kp2d_crop_px=kp[:, :2] / kp[:, 2:],
        joints_cam_m=joints,
        verts_cam_m=rng.normal(0, 0.05, (778, 3)) + np.array([0, 0, 0.6]),
        rotmats=R,
        betas=rng.normal(0, 1, 10),
    )


def make_batch(n: int = 6) -> HandBatch:
    return collate_hands([sample(i) for i in range(n)])


def test_projection_holds_before_and_after():
    # Reprojection of transformed truth: K' X' lands on the transformed 2D joints.
    out = HandAugment(img_px=24, rotation_deg=90, shift_ndc=0.2)(
        make_batch(), torch.Generator().manual_seed(0), INFO
    )
    seen_px = project(out.joints_cam_m, out.K_crop_px)
    truth_px = px_from_ndc(out.kp2d_crop_ndc, 24)
    assert (seen_px - truth_px).abs().max() < 1e-2
    assert out.image.shape == (6, 3, 24, 24)
    # The rotation went into the hand, not into a skewed camera: 3D and image turn the same way.
    K = out.K_crop_px
    assert K[:, 0, 1].abs().max() < 1e-3
    assert K[:, 1, 0].abs().max() < 1e-3
    torch.testing.assert_close(K[:, 0, 0], K[:, 1, 1], rtol=1e-4, atol=1e-3)


def test_rotation_turns_root_and_points_alike():
    batch = make_batch()
    angle = torch.linspace(-1, 1, 6)
    out = transform_labels(batch, 32, similarity(torch.ones(6), angle, torch.zeros(6, 2)), angle)
    R = out.rotmats[:, 0] @ batch.rotmats[:, 0].transpose(1, 2)
    torch.testing.assert_close(out.verts_cam_m, batch.verts_cam_m @ R.transpose(1, 2))
    torch.testing.assert_close(
        out.joints_cam_m[..., 2], batch.joints_cam_m[..., 2]
    )  # depth is untouched
    torch.testing.assert_close(out.rotmats[:, 1:], batch.rotmats[:, 1:])


def test_evaluation_crop_is_fixed_upright_and_uses_the_mean_scale():
    batch = make_batch()
    out = HandAugment(img_px=32, scale=(0.5, 0.72)).evaluate(batch)  # geometric mean 0.6
    torch.testing.assert_close(out.kp2d_crop_ndc, batch.kp2d_crop_ndc / 0.6)
    torch.testing.assert_close(out.joints_cam_m, batch.joints_cam_m)
    whole = HandAugment(img_px=32, scale=(1.0, 1.0)).evaluate(batch)
    torch.testing.assert_close(whole.image, batch.image / 255.0, atol=1e-5, rtol=0)


def test_collate_keeps_order_and_drops_labels_when_asked():
    samples = [sample(0), sample(1)]
    batch = collate_hands(samples)
    assert batch.image.dtype == torch.uint8
    assert torch.equal(batch.image[1, :, 3, 5], torch.from_numpy(samples[1].image[3, 5]))
    torch.testing.assert_close(
        batch.kp2d_crop_ndc[0], ndc_from_px(torch.from_numpy(samples[0].kp2d_crop_px), 32)
    )
    crops = collate_crops([samples[0], CropSample(samples[1].image, "x")])
    assert torch.equal(crops.image, batch.image)
    with pytest.raises(ValueError, match="one size"):
        collate_crops([sample(0), sample(1, side=16)])


def test_left_hands_are_mirrored_with_and_without_labels():
    left = dataclasses.replace(sample(0), is_right=False)
    crops, hands = collate_crops([left, sample(1)]), collate_hands([left, sample(1)])
    assert torch.equal(crops.image, hands.image)
    assert torch.equal(crops.image[0], collate_crops([sample(0)]).image[0].flip(-1))


def test_label_subsets_are_nested_and_seeded():
    data = [sample(i, side=8) for i in range(20)]
    ids = lambda subset: [s.sample_id for s in subset]  # noqa: E731
    few, more = ids(label_subset(data, 5, seed=1)), ids(label_subset(data, 10, seed=1))
    assert more[:5] == few
    assert len(set(more)) == 10
    assert ids(label_subset(data, 5, seed=2)) != few
    assert label_subset(data, None, seed=1) is data
    with pytest.raises(ValueError, match="num_labels"):
        label_subset(data, 21, seed=1)


def test_batches_cover_everything_in_order():
    data = [sample(i, side=8) for i in range(5)]
    sizes = [len(b.image) for b in batches(data, 2)]
    assert sizes == [2, 2, 1]


def test_large_crops_are_averaged_not_skipped_through():
    # Stripes of one pixel are grey from afar; four pixels read here and there would find stripes.
    image = torch.zeros(1, 3, 192, 192, dtype=torch.uint8)
    image[..., ::2] = 255
    batch = make_batch(1)._replace(image=image)
    out = HandAugment(img_px=24, scale=(1.0, 1.0)).evaluate(batch)
    torch.testing.assert_close(out.image, torch.full_like(out.image, 0.5), atol=0.01, rtol=0)
    # geometry knows nothing of it
    small = batch._replace(image=torch.zeros(1, 3, 192, 192, dtype=torch.uint8))
    same = HandAugment(img_px=160, scale=(1.0, 1.0)).evaluate(small)
    torch.testing.assert_close(same.kp2d_crop_ndc, out.kp2d_crop_ndc)


COVERING = {"cut_out": HandCutOut(prob=1.0), "occluder": OccluderPaste(prob=1.0)}


def test_what_covers_hands_changes_training_pictures_only():
    batch = make_batch()
    plain, covered = HandAugment(img_px=48), HandAugment(img_px=48, **COVERING)
    seeded = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    a, b = plain(batch, seeded(), INFO), covered(batch, seeded(), INFO)
    assert (a.image != b.image).any(dim=1).flatten(1).any(dim=1).all()
    for name in HandBatch._fields:
        if name != "image":
            assert torch.equal(getattr(a, name), getattr(b, name)), name
    a, b = plain.evaluate(batch), covered.evaluate(batch)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_objects_are_lit_with_the_scene_and_cut_outs_come_last():
    grey = ColourJitter(grey_prob=1.0, jitter_prob=0.0, blur_prob=0.0)

    def is_colourless(**parts):
        augment = HandAugment(img_px=24, colour=grey, **parts)
        image = augment(make_batch(), torch.Generator().manual_seed(0), INFO).image
        return bool((image - image[:, :1]).abs().max() < 1e-5)

    assert is_colourless(occluder=OccluderPaste(prob=1.0, texture="noise"))
    assert not is_colourless(cut_out=HandCutOut(prob=1.0, fill="noise"))
