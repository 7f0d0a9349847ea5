import json

import cv2
import numpy as np
import pytest

from handmim.data.datasets import label_ids
from handmim.data.keypoints import KeypointPhotos
from handmim.data.loader import collate_hands
from handmim.geometry.camera import px_from_ndc


@pytest.fixture
def photos(tmp_path):
    """Eight subjects, two images each; joints lie on a known spiral, marked in the image."""
    rng = np.random.default_rng(0)
    images, notes = [], []
    for i in range(16):
        image = np.full((120, 160, 3), 40, np.uint8)
        kp = rng.uniform([40, 30], [120, 90], (21, 2))
        x, y = kp[0].astype(int)
        image[y - 1 : y + 2, x - 1 : x + 2] = 255
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        images.append({"id": i, "file_name": f"{i}.png", "subject": f"s{i // 2}"})
        flat = np.column_stack([kp, np.full(21, 2)]).ravel().tolist()
        notes.append(
            {
                "image_id": i,
                "keypoints": flat,
                "keypoints_3d": rng.normal(0, 0.05, (21, 3)).tolist(),
            }
        )
    content = {"images": images, "annotations": notes}
    path = tmp_path / "notes.json"
    path.write_text(json.dumps(content))
    return tmp_path, path, content


def test_crop_and_points_agree(photos):
    root, path, _ = photos
    data = KeypointPhotos(root, path, split="all", image_px=96)
    for sample in (data[0], data[7]):
        x, y = np.floor(sample.kp2d_crop_px[0]).astype(int)
        patch = sample.image[y - 3 : y + 4, x - 3 : x + 4, 0]
        assert patch.max() > 120, "the mark is where the crop says joint 0 is"
        box = sample.kp2d_crop_px
        assert np.ptp(box, axis=0).max() == pytest.approx(96 / 1.45, abs=1e-2)
        assert (sample.kp2d_crop_px > 0).all()
        assert sample.joints_valid.all()
        assert not sample.has_mano


def test_left_hands_stay_left_and_batches_mirror_them(photos):
    root, path, content = photos
    right = KeypointPhotos(root, path, split="all")[0]
    content["annotations"][0]["handedness"] = "Left"
    path.write_text(json.dumps(content))
    left = KeypointPhotos(root, path, split="all")[0]
    assert not left.is_right
    np.testing.assert_array_equal(left.kp2d_crop_px, right.kp2d_crop_px)
    batch = collate_hands([left])
    kp = px_from_ndc(batch.kp2d_crop_ndc[0], 96).numpy()
    np.testing.assert_allclose(kp[:, 0], 96 - right.kp2d_crop_px[:, 0], atol=1e-3)
    np.testing.assert_allclose(batch.joints_cam_m[0], right.joints_cam_m * [-1, 1, 1])
    np.testing.assert_array_equal(batch.image[0].permute(1, 2, 0), right.image[:, ::-1])


def test_labels_are_named_by_file_and_by_hand_where_a_picture_has_several(photos):
    root, path, content = photos
    content["annotations"].insert(1, {**content["annotations"][3]})
    path.write_text(json.dumps(content))
    data = KeypointPhotos(root, path, split="all")
    assert [data.label_id(i) for i in range(5)] == ["0.png", "3.png", "1.png", "2.png", "3.png#2"]
    assert len(set(label_ids(data))) == len(data) == 17
    assert data.source == "notes.json, part all"
    train = KeypointPhotos(root, path, split="train")
    assert train.source == ("notes.json, part train, val_fraction 0.3 by subject, split seed 0")


def test_subjects_never_straddle_the_split(photos):
    root, path, content = photos
    subject = {i["file_name"]: i["subject"] for i in content["images"]}
    parts = {s: KeypointPhotos(root, path, split=s) for s in ("train", "val", "all")}
    people = {s: {subject[name] for name in d.file_names} for s, d in parts.items()}
    assert not people["train"] & people["val"]
    assert len(parts["train"]) + len(parts["val"]) == len(parts["all"]) == 16
    assert len(people["val"]) == round(0.3 * 8)


def test_invisible_joints_are_flagged_and_2d_only_works(photos):
    root, path, content = photos
    note = content["annotations"][0]
    note["keypoints"][3 * 4 + 2] = 0
    del note["keypoints_3d"]
    path.write_text(json.dumps(content))
    sample = KeypointPhotos(root, path, split="all")[0]
    assert not sample.kp2d_valid[4]
    assert sample.kp2d_valid.sum() == 20
    assert not sample.joints_valid.any()  # no 3D at all
    assert KeypointPhotos(root, path, split="all")[1].joints_valid.all()
    assert np.isfinite(sample.kp2d_crop_px).all()


def test_scores_of_keypoints_become_confidences(photos):
    root, path, content = photos
    scores = np.linspace(0, 1, 21)
    first, second = content["annotations"][:2]
    first["keypoint_scores"] = scores.tolist()
    first["keypoints"][3 * 20 + 2] = 0
    second["keypoint_scores"] = None
    path.write_text(json.dumps(content))
    data = KeypointPhotos(root, path, split="all")
    np.testing.assert_allclose(
        data[0].kp2d_conf, np.where(np.arange(21) < 20, scores, 0.0), atol=1e-7
    )
    assert (data[1].kp2d_conf == 1).all()


@pytest.mark.parametrize(
    "scores", [[0.5] * 20, [1.2] * 21, ["a"] * 21, [[0.5]] * 21, 0.5, [-1] * 21, [None] * 21]
)
def test_scores_of_another_form_are_refused(photos, scores):
    root, path, content = photos
    content["annotations"][3]["keypoint_scores"] = scores
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"annotation 3: keypoint_scores must be 21 numbers"):
        KeypointPhotos(root, path, split="val")


def test_other_files_are_refused_by_name(photos):
    root, path, content = photos
    with pytest.raises(FileNotFoundError, match=r"nothing\.json does not exist"):
        KeypointPhotos(root, root / "nothing.json")
    with pytest.raises(ValueError, match="split must be one of"):
        KeypointPhotos(root, path, split="test")
    content["annotations"][0]["keypoints"] = [0.0] * 51
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"keypoints must be 63 numbers: x, y .* got 51 values"):
        KeypointPhotos(root, path)
    (root / "3.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 15 images with hands are not in .*: 3\.png"):
        KeypointPhotos(root, path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a COCO-style keypoint file"):
        KeypointPhotos(root, path)
