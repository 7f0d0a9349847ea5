import json
import pickle

import cv2
import numpy as np
import pytest
import torch

from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.conventions import ho3d_hand
from handmim.hand.model import HandModel
from handmim.utils.unpickle import load_pickle
from synthesis.ho3d import SEQUENCES, encode_depth
from synthesis.sequences import sequences

NUM, NUM_EVAL, WIDTH, HEIGHT = 22, 4, 128, 96
OBJECT = {"objTrans", "objRot", "objCorners3D", "objCorners3DRest", "objName", "objLabel"}
TRAIN = OBJECT | {"handPose", "handTrans", "handBeta", "handJoints3D", "camMat", "camIDList"}
V3 = {"handVertContact", "handVertDist", "handVertIntersec", "handVertObjSurfProj"}
EVALUATION = OBJECT | {"handJoints3D", "handBoundingBox", "camMat"}
FLIP = np.array([1.0, -1, -1])


@pytest.fixture
def is_v3(ho3d_root):
    return ho3d_root.name == "ho3d_v3"


@pytest.fixture(scope="module")
def double_hand(hand_arrays):
    return HandModel(hand_arrays).double()


def frames(root, part):
    return (root / f"{part}.txt").read_text().split()


def meta(root, part, frame):
    sequence, number = frame.split("/")
    return load_pickle(root / part / sequence / "meta" / f"{number}.pkl")


def depth_m(root, part, frame):
    """Decoded as the documentation says: red is the low byte."""
    sequence, number = frame.split("/")
    blue, green, red = cv2.split(
        cv2.imread(str(root / part / sequence / "depth" / f"{number}.png"))
    )
    assert not blue.any()
    return (red + green.astype(int) * 256) * 0.00012498664727900177


def listed(root):
    return [(p, f, meta(root, p, f)) for p in ("train", "evaluation") for f in frames(root, p)]


def project(points_opengl, K):
    seen = (points_opengl * FLIP) @ K.T
    return seen[:, :2] / seen[:, 2:]


def test_metas_are_what_python_2_wrote_in_both_its_ways(ho3d_root, is_v3):
    metas = [p for part in ("train", "evaluation") for p in (ho3d_root / part).glob("*/meta/*.pkl")]
    assert len(metas) > NUM + NUM_EVAL
    for path in metas:
        raw, got = path.read_bytes(), load_pickle(path)
        assert raw.startswith(b"\x80\x02" if is_v3 else b"(dp0\n")
        plain = pickle.loads(raw, encoding="latin1")  # noqa: S301  as others read the dataset
        assert got.keys() == plain.keys()
        for key, value in plain.items():
            assert type(got[key]) is type(value), key
            np.testing.assert_array_equal(got[key], value)
            if isinstance(value, np.ndarray):
                assert (got[key].dtype, got[key].shape) == (value.dtype, value.shape), key


def test_names_of_takes_and_cameras():
    several = [s for s in SEQUENCES["train"] if s.recording == "ABF1"]
    assert [s.name for s in several] == ["ABF10", "ABF11", "ABF12", "ABF13", "ABF14"]
    assert [s.camera for s in several] == [0, 1, 2, 3, 4]
    assert sequences(("MC1", "SiS1")) == (("MC1", "MC1", 0), ("SiS1", "SiS1", 0))
    names = {part: {s.recording for s in SEQUENCES[part]} for part in SEQUENCES}
    assert not names["train"] & names["evaluation"]


def test_every_file_is_there_and_unlisted_frames_too(ho3d_root, is_v3):
    expected = {"handmim.json", "train.txt", "evaluation.txt"}
    expected |= {"evaluation_xyz.json", "evaluation_verts.json"}
    for part, num in {"train": NUM, "evaluation": NUM_EVAL}.items():
        here = frames(ho3d_root, part)
        assert len(set(here)) == len(here) == num
        used = {frame.split("/")[0] for frame in here}
        assert used == {s.name for s in SEQUENCES[part][:num]}
        assert not any(frame.endswith("/0000") for frame in here)
        for frame in [*here, *(f"{name}/0000" for name in used)]:
            sequence, number = frame.split("/")
            stem = f"{part}/{sequence}"
            expected |= {f"{stem}/rgb/{number}.{'jpg' if is_v3 else 'png'}"}
            expected |= {f"{stem}/depth/{number}.png", f"{stem}/meta/{number}.pkl"}
    have = {str(p.relative_to(ho3d_root)) for p in ho3d_root.rglob("*") if p.is_file()}
    assert have == expected
    for name in expected:
        if "/rgb/" in name or "/depth/" in name:
            assert cv2.imread(str(ho3d_root / name)).shape == (HEIGHT, WIDTH, 3)


def test_metas_have_the_documented_fields(ho3d_root, is_v3):
    shapes = {
        "handPose": (48,), "handTrans": (3,), "handBeta": (10,), "objTrans": (3,),
        "objRot": (3, 1), "objCorners3D": (8, 3), "objCorners3DRest": (8, 3), "camMat": (3, 3),
        "handVertContact": (778,), "handVertDist": (778,), "handVertIntersec": (778,),
        "handVertObjSurfProj": (778, 3),
    }  # fmt: skip
    for part, _, m in listed(ho3d_root):
        train = TRAIN | V3 if is_v3 else TRAIN
        assert set(m) == (train if part == "train" else EVALUATION)
        for key in set(shapes) & set(m):
            assert m[key].shape == shapes[key]
        assert np.shape(m["handJoints3D"]) == ((21, 3) if part == "train" else (3,))
        assert isinstance(m["objName"], str)
        assert isinstance(m["objLabel"], int)
        if part == "evaluation":
            x0, y0, x1, y1 = m["handBoundingBox"]
            assert 0 <= x0 < x1 <= WIDTH
            assert 0 <= y0 < y1 <= HEIGHT
        elif is_v3:
            assert m["handVertContact"].dtype == m["handVertIntersec"].dtype == np.bool_


def test_frames_without_annotation_say_none(ho3d_root):
    for part in ("train", "evaluation"):
        sequence = frames(ho3d_root, part)[0].split("/")[0]
        whole, bare = (meta(ho3d_root, part, f"{sequence}/{n}") for n in ("0001", "0000"))
        assert set(whole) == set(bare)
        kept = {"camMat", "camIDList", "objName", "objLabel", "objCorners3DRest"}
        for key in bare:
            assert (bare[key] is None) == (key not in kept), key
            assert whole[key] is not None


def test_hand_parameters_give_joints_in_opengl_axes(ho3d_root, double_hand):
    arrays = double_hand.arrays
    for part, _, m in listed(ho3d_root):
        if part == "evaluation":
            assert m["handJoints3D"][2] < 0
            continue
        # As OpenGL parameters, straight.
        rotmats = rotvec_to_matrix(m["handPose"].reshape(16, 3))
        to = [
            torch.from_numpy(np.asarray(x))[None] for x in (rotmats, m["handBeta"], m["handTrans"])
        ]
        mesh = double_hand(*to)
        verts, chain = mesh.verts_m[0].numpy(), mesh.chain_joints_m[0].numpy()
        expected = np.concatenate([chain, verts[[744, 333, 444, 555, 672]]])
        assert np.abs(expected - m["handJoints3D"]).max() < 1e-6
        assert (m["handJoints3D"][:, 2] < -0.1).all()
        # And brought to our camera.
        wrist = arrays.J_regressor[0] @ (arrays.v_template + arrays.shapedirs @ m["handBeta"])
        ours = ho3d_hand(m["handPose"], m["handTrans"], wrist)
        to = [torch.from_numpy(x)[None] for x in (ours[0], m["handBeta"], ours[1])]
        assert np.abs(double_hand(*to).verts_m[0].numpy() - verts * FLIP).max() < 1e-6


def test_truth_of_the_evaluation_is_in_the_lists_order(ho3d_root):
    xyz = np.array(json.loads((ho3d_root / "evaluation_xyz.json").read_text()))
    verts = np.array(json.loads((ho3d_root / "evaluation_verts.json").read_text()))
    assert xyz.shape == (NUM_EVAL, 21, 3)
    assert verts.shape == (NUM_EVAL, 778, 3)
    np.testing.assert_array_equal(xyz[:, 16:], verts[:, [744, 333, 444, 555, 672]])
    for i, frame in enumerate(frames(ho3d_root, "evaluation")):
        m = meta(ho3d_root, "evaluation", frame)
        np.testing.assert_allclose(m["handJoints3D"], xyz[i, 0], atol=1e-8)
        px = project(verts[i], m["camMat"])
        box = np.array(m["handBoundingBox"])
        assert np.abs(np.r_[px.min(axis=0), px.max(axis=0)] - box).max() <= 1


def test_depth_is_the_hands(ho3d_root):
    verts = np.array(json.loads((ho3d_root / "evaluation_verts.json").read_text()))
    share, seen = [], []
    for points, frame in zip(verts, frames(ho3d_root, "evaluation"), strict=True):
        m, depth = meta(ho3d_root, "evaluation", frame), depth_m(ho3d_root, "evaluation", frame)
        cell = np.floor(project(points, m["camMat"])).astype(int)
        ok = ((cell >= 0) & (cell < [WIDTH, HEIGHT])).all(axis=1)
        there = depth[cell[ok, 1], cell[ok, 0]]
        gap = (-points[ok, 2] - there)[there < depth.max()]  # behind what is seen
        assert len(gap) > 0.7 * 778, "but for the outline"
        share.append((gap > -0.01).mean())
        seen.append((np.abs(gap) < 0.004).mean())
        assert depth.max() - depth.min() > 0.5, "a wall far behind"
        assert (depth == depth.max()).mean() > 0.3
    assert min(share) > 0.85
    assert np.mean(share) > 0.92, "hardly any vertex lies before the nearest surface"
    assert np.mean(seen) > 0.2, "those in front are that surface"


def test_depth_code():
    code = encode_depth(np.array([[0.0, 255.4, 256, 65535, 1e9]]) * 0.00012498664727900177)
    assert code[0].tolist() == [[0, 0, 0], [255, 0, 0], [0, 1, 0], [255, 255, 0], [255, 255, 0]]


def test_cameras_of_a_take_see_the_same_hand_and_object(ho3d_root):
    first, *others = (meta(ho3d_root, "train", f"ABF1{c}/0001") for c in range(5))

    def shape(m):
        points = np.concatenate([m["handJoints3D"], m["objCorners3D"]])
        return np.linalg.norm(points[:, None] - points, axis=-1)

    for other in others:
        assert np.abs(shape(first) - shape(other)).max() < 1e-6
        assert np.abs(first["handJoints3D"] - other["handJoints3D"]).max() > 0.02
        np.testing.assert_array_equal(first["handPose"][3:], other["handPose"][3:])
        np.testing.assert_array_equal(first["handBeta"], other["handBeta"])
    assert first["camIDList"] == ["0", "1", "2", "3", "4"]
    later = meta(ho3d_root, "train", "ABF10/0002")
    np.testing.assert_array_equal(first["handBeta"], later["handBeta"])
    np.testing.assert_array_equal(first["camMat"], later["camMat"])
    assert np.abs(first["handPose"] - later["handPose"]).max() > 0.1
    assert np.abs(meta(ho3d_root, "train", "MC1/0001")["handBeta"] - first["handBeta"]).max() > 0.1


def test_objects_are_where_their_pose_says(ho3d_root):
    for _, _, m in listed(ho3d_root):
        R = rotvec_to_matrix(m["objRot"].ravel())
        np.testing.assert_allclose(m["objCorners3DRest"] @ R.T + m["objTrans"], m["objCorners3D"])
        assert m["objTrans"][2] < 0


def test_contacts_fit_hand_and_object(ho3d_root, is_v3, double_hand):
    if not is_v3:
        return
    for frame in frames(ho3d_root, "train"):
        m = meta(ho3d_root, "train", frame)
        to = [torch.from_numpy(m[k])[None] for k in ("handPose", "handBeta", "handTrans")]
        verts = double_hand(*to).verts_m[0].numpy()
        away = np.linalg.norm(m["handVertObjSurfProj"] - verts, axis=1)
        np.testing.assert_allclose(away, m["handVertDist"], atol=1e-6)
        np.testing.assert_array_equal(m["handVertContact"], m["handVertDist"] < 0.004)
        R = rotvec_to_matrix(m["objRot"].ravel())
        near, far = ((p - m["objTrans"]) @ R for p in (m["handVertObjSurfProj"], verts))
        assert (np.abs(near) <= m["objCorners3DRest"].max(axis=0) + 1e-9).all()
        inside = np.linalg.norm(far, axis=1) < np.linalg.norm(near, axis=1)
        np.testing.assert_array_equal(m["handVertIntersec"], inside)
        assert m["handVertDist"][inside].max(initial=0) < 0.003 + 1e-6
