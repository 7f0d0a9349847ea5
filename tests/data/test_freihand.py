import json
import shutil

import numpy as np
import pytest
import torch

from handmim.data.datasets import label_subset
from handmim.data.freihand import FreiHand, split_samples
from handmim.data.label_files import VERSIONS, read_ground_truth
from handmim.data.loader import collate_hands
from handmim.geometry.camera import project, px_from_ndc
from handmim.hand.io import save_npz
from handmim.hand.model import JointConventions
from handmim.hand.skeleton import CANONICAL_FROM_HO3D
from handmim.images.decode import UnreadableImage
from synthesis.mano import mirrored


@pytest.fixture
def load(freihand_tree, tmp_path):
    def build(root=freihand_tree, **kwargs):
        settings = {"image_px": 64, "cache_dir": tmp_path / "cache", "val_fraction": 0.25}
        return FreiHand(root, "standin", **{**settings, **kwargs})

    return build


@pytest.fixture
def copy(freihand_tree, tmp_path):
    """Tree with other JSON files, images shared."""

    def build(**changes):
        root = tmp_path / "copy"
        root.mkdir()
        for path in freihand_tree.iterdir():
            if path.is_dir():
                (root / path.name).symlink_to(path)
            else:
                shutil.copy(path, root)
        for name, change in changes.items():
            path = root / f"{name}.json"
            path.write_text(json.dumps(change(json.loads(path.read_text()))))
        return root

    return build


@pytest.mark.parametrize("split", ["train", "val", "all", "evaluation"])
def test_labels_of_a_sample_agree_with_each_other(load, hand, split):
    data = load(split=split)
    batch = collate_hands([data[i] for i in (0, 1, len(data) - 1)])
    seen = project(batch.joints_cam_m, batch.K_crop_px)
    torch.testing.assert_close(seen, px_from_ndc(batch.kp2d_crop_ndc, 64), atol=1e-3, rtol=0)
    mesh = hand(batch.rotmats, batch.betas)
    joints = JointConventions(hand).joints(
        mesh.verts_m, mesh.chain_joints_m, batch.joint_convention
    )
    # joint 9 places the mesh; joints are regressed from posed vertices
    shift = batch.joints_cam_m[:, 9:10] - joints[:, 9:10]
    torch.testing.assert_close(mesh.verts_m + shift, batch.verts_cam_m, atol=1e-6, rtol=0)
    torch.testing.assert_close(joints + shift, batch.joints_cam_m, atol=1e-6, rtol=0)
    assert (batch.joints_cam_m[..., 2] > 0.1).all()


def test_a_hand_never_straddles_the_split_and_versions_share_labels(load):
    train, val = load(split="train"), load(split="val", versions=("gs",))
    hands = {int(i) % 24 for i in train.ids}
    assert not hands & set(val.ids.tolist())
    assert len(hands) == 18
    assert len(val) == 6
    assert len(train) == 18 * 4
    same = [i for i, image in enumerate(train.ids) if image % 24 == train.ids[0]]
    images = [train[i] for i in same]
    assert [p.sample_id for p in images] == [
        f"training/{int(train.ids[0]) + 24 * v:08d}" for v in range(4)
    ]
    assert {train.label_id(i) for i in same} == {str(int(train.ids[0]) % 24)}
    assert train.source == "FreiHAND, part train, val_fraction 0.25, split seed 0"
    for other in images[1:]:
        np.testing.assert_array_equal(other.verts_cam_m, images[0].verts_cam_m)
        assert (other.image != images[0].image).any()
    few = label_subset(train, 3, seed=0)
    assert len(few) == 12, "three hands before four backgrounds each"
    assert len({int(train.ids[i]) % 24 for i in few.indices}) == 3
    for version in VERSIONS:
        only = load(versions=(version,))
        assert {int(i) // 24 for i in only.ids} == {VERSIONS.index(version)}


def test_the_genuine_split_has_the_published_counts():
    train, val = (split_samples(32560, s, 0.02, 0) for s in ("train", "val"))
    assert len(val) == 651
    assert len(np.union1d(train, val)) == 32560
    assert len(split_samples(32560, "all", 0.02, 0)) == 32560


def test_truth_is_as_the_files_have_it_and_may_be_missing(load, copy, freihand_tree, tmp_path):
    joints, verts = read_ground_truth(freihand_tree, tmp_path)
    stored = json.loads((freihand_tree / "evaluation_xyz.json").read_text())
    np.testing.assert_allclose(joints, stored, atol=1e-7)
    assert verts.shape == (8, 778, 3)
    root = copy()
    for name in ("xyz", "verts", "mano", "scale"):
        (root / f"evaluation_{name}.json").unlink()
    bare = load(root, split="evaluation")
    sample = bare[0]
    assert sample.has_K
    assert not any((sample.has_mano, sample.has_verts, sample.joints_valid.any()))
    with pytest.raises(FileNotFoundError, match=r"evaluation_xyz\.json"):
        read_ground_truth(root, tmp_path)


def test_another_hand_model_is_refused(load, copy, hand_arrays):
    with pytest.raises(ValueError, match=r"rendered from hand standin_right .* the chosen one"):
        load(copy(handmim=lambda facts: {**facts, "hand_sha256": "0" * 64}))


def test_vertices_of_another_hand_are_refused_without_provenance(load, copy):
    root = copy(training_verts=lambda v: (np.array(v) * 1.4).tolist())
    (root / "handmim.json").unlink()
    with pytest.raises(ValueError, match=r"misses the given vertices by \d+\.\d+ mm"):
        load(root)


def test_a_tree_that_is_still_being_rendered_is_refused(load, copy):
    root = copy()
    (root / ".parts").mkdir()
    (root / "handmim.json").unlink()
    with pytest.raises(ValueError, match=r"not rendered to its end.*tools/synthesize\.py again"):
        load(root)


def test_mistakes_are_named(load, copy, tmp_path):
    for changes, message in (
        ({"split": "test"}, "split must be one of"),
        ({"versions": ("gs", "rgb")}, r"versions must be .* got \['gs', 'rgb'\]"),
        ({"val_fraction": 1.0}, "val_fraction must be in"),
        ({"val_fraction": 0.0, "split": "val"}, "is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            load(**changes)
    with pytest.raises(FileNotFoundError, match=r"data\.root is the unpacked FreiHAND"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"differ in length.*'xyz': 23"):
        load(copy(training_xyz=lambda xyz: xyz[:-1]))


def in_order(order):
    return lambda lists: np.array(lists)[:, np.argsort(order)].tolist()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("xyz", lambda v: (np.array(v) * 1e3).tolist(), "training_xyz.json is in mm"),
        ("xyz", in_order(CANONICAL_FROM_HO3D), "training_xyz.json: joints in order 'ho3d'"),
        ("xyz", in_order((20, *range(20))), "training_xyz.json: joints in order 'wrist last'"),
        ("xyz", lambda v: (np.array(v) * [1, -1, -1]).tolist(), "training_xyz.json: 0% .* camera"),
        ("xyz", lambda v: (np.array(v) + 0.01).tolist(), "joints regressed .* off the given"),
        ("K", lambda v: np.swapaxes(v, 1, 2).tolist(), "training_K.json: 0% of the intrinsics"),
        ("mano", lambda v: np.roll(v, 1, axis=0).tolist(), "misses the given vertices"),
        ("xyz", lambda v: [*v[:5], [[1e30] * 3] * 21, *v[6:]], "1 of 24 samples of .* have .*: 5"),
        (
            "mano",
            lambda v: [*v[:-1], [[float("nan")] * 61]],
            "1 of 24 samples of .* have NaN .*: 23",
        ),
    ],
)
def test_labels_are_checked_where_they_are_read(load, copy, name, change, message):
    with pytest.raises(ValueError, match=message):
        load(copy(**{f"training_{name}": change}))


def but_one(change, at=5):
    return lambda lists: [*lists[:at], change(np.array(lists[at])).tolist(), *lists[at + 1 :]]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("K", lambda v: v * [[1, 1, 1], [1, 0, 1], [1, 1, 1]], "no intrinsics of a camera"),
        ("xyz", lambda v: v * 1e3, "no hand of metres"),
        ("xyz", lambda v: v + np.eye(3)[0] * 2, "all joints far outside of their image"),
        ("mano", lambda v: v * 0, "no scale above 0"),
    ],
)
def test_single_wrong_labels_are_found_in_all_samples(
    load, copy, monkeypatch, name, change, message
):
    monkeypatch.setattr("handmim.data.freihand.CHECKED", 4)  # of 24
    where = rf"1 of 24 samples of training_{name}\.json.* have {message}.*: 5"
    with pytest.raises(ValueError, match=where):
        load(copy(**{f"training_{name}": but_one(change)}))


def test_lists_that_are_all_cut_off_are_refused(load, copy):
    """Or else three of four images show another hand than their label."""
    lists = {f"training_{name}": lambda v: v[:-3] for name in ("K", "xyz", "verts", "mano")}
    with pytest.raises(ValueError, match=r"without labels 00000084\.jpg, .* lists cut off"):
        load(copy(**lists))


def test_versions_without_images_are_left_out_with_a_warning(load, copy, freihand_tree, caplog):
    root = copy()
    (root / "training").unlink()
    (root / "training" / "rgb").mkdir(parents=True)
    for image_id in range(24):
        name = f"{image_id:08d}.jpg"
        shutil.copy(freihand_tree / "training" / "rgb" / name, root / "training" / "rgb")
    data = load(root)
    assert data.versions == ("gs",)
    assert len(data) == 18
    assert data[17].has_mano
    assert "gs 18 of 18, hom 0 of 18, sample 0 of 18, auto 0 of 18" in caplog.text
    assert "train on data.versions=[gs]" in caplog.text
    with pytest.raises(ValueError, match="two versions of images"):
        load(root, partners=True)
    (root / "training" / "rgb" / f"{data.ids[3]:08d}.jpg").unlink()
    load(root, versions=("gs",))
    assert f"missing {data.ids[3]:08d}.jpg" in caplog.text
    with pytest.raises(ValueError, match=r"auto 0 of 18; missing"):
        load(root, versions=("auto",))


def test_a_missing_picture_is_named(load, copy, freihand_tree):
    root = copy()
    (root / "evaluation").unlink()
    shutil.copytree(freihand_tree / "evaluation", root / "evaluation")
    (root / "evaluation" / "rgb" / "00000003.jpg").write_bytes(b"")
    data = load(root, split="evaluation")
    with pytest.raises(UnreadableImage, match=r"00000003\.jpg cannot be read"):
        data[3]


def test_a_left_hand_is_no_hand_of_freihand(freihand_tree, hand_arrays, copy, tmp_path):
    left = tmp_path / "MANO_LEFT.npz"
    save_npz(left, mirrored(hand_arrays))
    with pytest.raises(ValueError, match="rendered from hand"):
        FreiHand(freihand_tree, left, cache_dir=tmp_path)
    root = copy()
    (root / "handmim.json").unlink()
    with pytest.raises(ValueError, match="misses the given vertices"):
        FreiHand(root, left, cache_dir=tmp_path)
