import shutil

import numpy as np
import pytest
import torch

from handmim.data.datasets import label_ids
from handmim.data.ho3d import Ho3d, read_frames, split_takes
from handmim.data.label_files import read_ground_truth, take_of
from handmim.data.loader import collate_hands
from handmim.geometry.camera import project, px_from_ndc
from handmim.hand.model import JointConventions
from handmim.hand.skeleton import CANONICAL_FROM_HO3D, joint_order
from handmim.images.decode import UnreadableImage
from handmim.utils.files import UnreadableSample
from handmim.utils.unpickle import load_pickle
from synthesis.python2_pickle import dump


@pytest.fixture(params=["v2", "v3"])
def tree(request):
    return request.getfixturevalue(f"ho3d_{request.param}_tree")


def load(root, tmp_path, **kwargs):
    settings = {"image_px": 64, "cache_dir": tmp_path / "cache", "val_fraction": 0.25}
    return Ho3d(root, "standin", **{**settings, **kwargs})


@pytest.mark.parametrize("split", ["train", "val", "all"])
def test_labels_of_a_sample_agree_with_each_other(tree, tmp_path, hand, split):
    data = load(tree, tmp_path, split=split)
    batch = collate_hands([data[i] for i in (0, len(data) - 1)])
    seen = project(batch.joints_cam_m, batch.K_crop_px)
    torch.testing.assert_close(seen, px_from_ndc(batch.kp2d_crop_ndc, 64), atol=1e-3, rtol=0)
    mesh = hand(batch.rotmats, batch.betas)
    joints = JointConventions(hand).joints(
        mesh.verts_m, mesh.chain_joints_m, batch.joint_convention
    )
    shift = batch.joints_cam_m[:, :1] - joints[:, :1]  # wrist on wrist
    torch.testing.assert_close(mesh.verts_m + shift, batch.verts_cam_m, atol=1e-6, rtol=0)
    torch.testing.assert_close(joints + shift, batch.joints_cam_m, atol=1e-6, rtol=0)
    assert (batch.joints_cam_m[..., 2] > 0.1).all(), "OpenCV: in front of the camera is z > 0"
    inside = px_from_ndc(batch.kp2d_crop_ndc, 64)
    assert (inside > 0).all()
    assert (inside < 64).all()


def test_evaluation_has_the_wrist_and_the_truth_where_it_is(tree, tmp_path):
    data = load(tree, tmp_path, split="evaluation")
    frames = read_frames(tree / "evaluation.txt")
    assert data.frames == frames
    joints, verts = read_ground_truth(tree, tmp_path)
    assert (joints[..., 2] < 0).all(), "as the files have it: OpenGL"
    sample = data[2]
    theirs = joints[2][list(joint_order("ho3d", "canonical"))] * [1, -1, -1]
    np.testing.assert_allclose(sample.joints_cam_m, theirs, atol=1e-7)
    np.testing.assert_allclose(sample.verts_cam_m, verts[2] * [1, -1, -1], atol=1e-7)
    bare_root = tmp_path / "bare"
    bare_root.mkdir()
    (bare_root / "evaluation").symlink_to(tree / "evaluation")
    shutil.copy(tree / "evaluation.txt", bare_root)
    bare = load(bare_root, tmp_path, split="evaluation")
    wrist_only = bare[2]
    assert wrist_only.joints_valid.tolist() == [True] + [False] * 20
    np.testing.assert_allclose(wrist_only.joints_cam_m[0], sample.joints_cam_m[0], atol=1e-6)
    np.testing.assert_array_equal(wrist_only.image, sample.image)  # the box is the given one
    assert not wrist_only.has_verts
    assert not wrist_only.kp2d_valid.any()
    with pytest.raises(FileNotFoundError, match=r"evaluation_xyz\.json"):
        read_ground_truth(bare_root, tmp_path)


def test_takes_never_straddle_the_split(tree, tmp_path):
    parts = {s: load(tree, tmp_path, split=s).frames for s in ("train", "val", "all")}
    takes = {s: {take_of(f.split("/")[0]) for f in frames} for s, frames in parts.items()}
    assert not takes["train"] & takes["val"]
    assert sorted(parts["train"] + parts["val"]) == sorted(parts["all"])
    assert parts["all"] == read_frames(tree / "train.txt")


def test_labels_are_named_as_the_lists_of_frames_name_them(tree, tmp_path):
    data = load(tree, tmp_path, split="train")
    assert set(label_ids(data)) < set((tree / "train.txt").read_text().split())
    assert data.source.startswith(f"HO-3D ({tree.name}), part train, val_fraction ")
    assert load(tree, tmp_path, split="all").source == f"HO-3D ({tree.name}), part all"


def test_cameras_of_a_take_share_its_name():
    assert {take_of(s) for s in ("ABF10", "ABF11", "ABF14")} == {"ABF1"}
    assert take_of("MC1") == "MC1"
    assert take_of("ND2") == "ND2"
    frames = [f"{s}/{i:04d}" for s in ("ABF10", "ABF11", "MC1", "MC2") for i in range(10)]
    val = split_takes(frames, "val", 0.25, seed=0)
    assert {take_of(f.split("/")[0]) for f in val} in ({"MC1"}, {"MC2"})
    assert split_takes(frames, "val", 0.0, seed=0) == []


def copied(tree, tmp_path):
    root = tmp_path / "tree"
    shutil.copytree(tree, root)
    return root


def test_frames_without_annotation_count_as_unlabelled(ho3d_v2_tree, tmp_path):
    root = copied(ho3d_v2_tree, tmp_path)
    frame = read_frames(root / "train.txt")[5]
    sequence, name = frame.split("/")
    path = root / "train" / sequence / "meta" / f"{name}.pkl"
    meta = load_pickle(path)
    dump({key: None for key in meta}, path)
    sample = load(root, tmp_path, split="all")[5]
    assert not any((sample.has_mano, sample.has_verts, sample.joints_valid.any(), sample.has_K))


def test_training_is_framed_by_joints_whatever_box_is_given(ho3d_v2_tree, tmp_path):
    root = copied(ho3d_v2_tree, tmp_path)
    sequence, name = read_frames(root / "train.txt")[5].split("/")
    path = root / "train" / sequence / "meta" / f"{name}.pkl"
    dump(load_pickle(path) | {"handBoundingBox": [0, 0, 20, 20]}, path)
    given, own = (load(tree, tmp_path, split="all")[5] for tree in (root, ho3d_v2_tree))
    np.testing.assert_array_equal(given.image, own.image)


def test_mistakes_are_named(ho3d_v2_tree, tmp_path):
    with pytest.raises(ValueError, match="split must be one of"):
        load(ho3d_v2_tree, tmp_path, split="test")
    with pytest.raises(FileNotFoundError, match=r"no train\.txt"):
        load(tmp_path, tmp_path)
    root = copied(ho3d_v2_tree, tmp_path)
    frame = read_frames(root / "evaluation.txt")[0]
    (root / "evaluation.txt").write_text(f"{frame}\n")
    with pytest.raises(ValueError, match=r"has 8 entries, evaluation\.txt has 1 frames"):
        load(root, tmp_path, split="evaluation")
    (root / "train.txt").write_text("ABF10 0000\n")
    with pytest.raises(ValueError, match="lines must be '<sequence>/<id>'"):
        load(root, tmp_path)


def test_another_hand_model_is_refused(ho3d_v2_tree, tmp_path):
    root = copied(ho3d_v2_tree, tmp_path)
    (root / "handmim.json").unlink()
    for path in (root / "train").rglob("*.pkl"):
        meta = load_pickle(path)
        if meta["handPose"] is not None:
            meta["handPose"] = np.asarray(meta["handPose"]) * 0.3
            dump(meta, path)
    with pytest.raises(ValueError, match=r"misses the given joints by \d+\.\d+ mm"):
        load(root, tmp_path)


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("handJoints3D", lambda v: v * 1e3, "handJoints3D is in mm"),
        ("handJoints3D", lambda v: v[list(CANONICAL_FROM_HO3D)], "joints in order 'canonical'"),
        ("handTrans", lambda v: v + 0.09, "joints placed by handTrans"),
        ("camMat", np.transpose, "train: camMat: 0% of the intrinsics"),
        ("handPose", lambda v: v * np.nan, "handPose: .* hold NaN"),
    ],
)
def test_metas_are_checked_where_they_are_read(ho3d_v2_tree, tmp_path, field, change, message):
    root = copied(ho3d_v2_tree, tmp_path)
    for path in (root / "train").rglob("*.pkl"):
        meta = load_pickle(path)
        if meta[field] is not None:
            meta[field] = change(np.asarray(meta[field]))
            dump(meta, path)
    with pytest.raises(ValueError, match=message):
        load(root, tmp_path)


def test_files_of_listed_frames_that_are_missing_are_named_at_the_start(ho3d_v2_tree, tmp_path):
    root = copied(ho3d_v2_tree, tmp_path)
    sequence, name = read_frames(root / "train.txt")[-1].split("/")
    (root / "train" / sequence / "rgb" / f"{name}.png").unlink()
    with pytest.raises(ValueError, match=rf"1 of .* are not in .*: train/{sequence}/rgb/{name}"):
        load(root, tmp_path, split="all")


def test_an_image_that_cannot_be_decoded_is_named_when_its_turn_comes(ho3d_v2_tree, tmp_path):
    root = copied(ho3d_v2_tree, tmp_path)
    sequence, name = read_frames(root / "train.txt")[3].split("/")
    (root / "train" / sequence / "rgb" / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=rf"{name}\.png cannot be read"):
        load(root, tmp_path, split="all")[3]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("camMat", np.zeros((3, 3)), "camMat is no intrinsics of a camera"),
        ("camMat", np.diag([0.0, 0.0, 1.0]), "camMat is no intrinsics of a camera"),
        ("handJoints3D", np.zeros((21, 3)), "handJoints3D is no hand of metres"),
        ("handJoints3D", np.zeros((16, 3)), "handJoints3D holds .48. numbers"),
        ("handPose", np.full(48, np.nan), "handPose holds NaN"),
    ],
)
def test_single_wrong_metas_are_unreadable_samples(
    ho3d_v2_tree, tmp_path, monkeypatch, field, value, message
):
    monkeypatch.setattr("handmim.data.ho3d.CHECKED", 2)  # the first and the last
    root = copied(ho3d_v2_tree, tmp_path)
    frame = read_frames(root / "train.txt")[3]
    path = root / "train" / frame.split("/")[0] / "meta" / f"{frame.split('/')[1]}.pkl"
    dump(load_pickle(path) | {field: value}, path)
    with pytest.raises(UnreadableSample, match=f"train/{frame}: {message}"):
        load(root, tmp_path, split="all")[3]


def test_a_meta_that_wants_to_run_code_is_refused(ho3d_v2_tree, tmp_path):
    root = copied(ho3d_v2_tree, tmp_path)
    ran = tmp_path / "ran"
    hostile = b"cposix\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR."
    frame = read_frames(root / "train.txt")[0]
    sequence, name = frame.split("/")
    (root / "train" / sequence / "meta" / f"{name}.pkl").write_bytes(hostile)
    with pytest.raises(ValueError, match=r"posix.*system"):
        load(root, tmp_path, split="all")[0]
    assert not ran.exists()
