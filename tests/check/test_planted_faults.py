"""Each fault, planted into a sound tree, is found by its name, and nothing else is."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from handmim.check.benchmarks import check_freihand, check_ho3d
from handmim.check.environment import check_hand
from handmim.check.run import check_crops, check_keypoints
from handmim.hand.conventions import OPENCV_FROM_OPENGL
from handmim.hand.io import save_npz
from handmim.hand.skeleton import CANONICAL_FROM_HO3D, HO3D_FROM_CANONICAL
from handmim.utils.unpickle import load_pickle
from synthesis.mano import mirrored, write_fake_mano
from synthesis.python2_pickle import dump

HOSTILE = b"cos\nsystem\n(S'true'\ntR."


def problems(findings):
    assert all(bool(f.fix) is (f.level != "ok") for f in findings)
    return {(f.level, f.name) for f in findings if f.level != "ok"}


def lists(root, name, change):
    """Change a JSON list of numbers as an array."""
    path = root / f"{name}.json"
    path.write_text(json.dumps(np.asarray(change(np.array(json.loads(path.read_text())))).tolist()))


def metas(root, part, change, only_first=False):
    """Change the metas of listed frames."""
    for frame in (root / f"{part}.txt").read_text().split()[: 1 if only_first else None]:
        sequence, name = frame.split("/")
        path = root / part / sequence / "meta" / f"{name}.pkl"
        meta = load_pickle(path)
        change(meta)
        dump(meta, path)


def field(key, function):
    """A change of one field of a meta."""

    def change(meta):
        meta[key] = function(meta[key])

    return change


def first_frame(root, part, kind):
    sequence, name = (root / f"{part}.txt").read_text().split()[0].split("/")
    return next((root / part / sequence / kind).glob(f"{name}.*"))


# ---------------------------------------------------------------- hand model


@pytest.fixture(scope="module")
def hands(tmp_path_factory, hand_arrays):
    """MANO's two files as they ship, and a mended left one that stands alone."""
    folder = tmp_path_factory.mktemp("hands")
    right = replace(hand_arrays, name="MANO_RIGHT", extras={})
    write_fake_mano(right, folder / "MANO_RIGHT.pkl")
    write_fake_mano(mirrored(right, buggy_shapedirs=True), folder / "MANO_LEFT.pkl")
    (folder / "alone").mkdir()
    write_fake_mano(mirrored(right), folder / "alone" / "MANO_LEFT.pkl")
    return folder


def test_sound_hands_have_no_faults(hands):
    for path in ("standin", hands / "MANO_RIGHT.pkl", hands / "alone" / "MANO_LEFT.pkl"):
        findings, arrays = check_hand(path, "auto")
        assert not problems(findings), findings
        assert arrays is not None
        # a forged pickle of the stand-in is still the stand-in
        is_noted = "hand-standin" in [f.name for f in findings]
        assert is_noted is (arrays.side == "right")
        text = next(f.text for f in findings if f.name == "hand-file")
        assert arrays.sha256[:16] in text
        assert arrays.file_sha256[:16] in text


def wrong_side(hands, folder):
    shutil.copy(hands / "alone" / "MANO_LEFT.pkl", folder / "MANO_RIGHT.pkl")
    return folder / "MANO_RIGHT.pkl"


def hostile_hand(hands, folder):
    (folder / "MANO_RIGHT.pkl").write_bytes(HOSTILE)
    return folder / "MANO_RIGHT.pkl"


def truncated_hand(hands, folder):
    content = (hands / "MANO_RIGHT.pkl").read_bytes()
    (folder / "MANO_RIGHT.pkl").write_bytes(content[: len(content) // 2])
    return folder / "MANO_RIGHT.pkl"


def absent_hand(hands, folder):
    return folder / "MANO_RIGHT.pkl"


def millimetre_hand(hands, folder):
    from handmim.hand.io import load_hand_arrays

    hand = load_hand_arrays(hands / "MANO_RIGHT.pkl")
    save_npz(folder / "right.npz", replace(hand, v_template=hand.v_template * 1e3))
    return folder / "right.npz"


@pytest.mark.parametrize(
    ("plant", "left_shapedirs", "found"),
    [
        (wrong_side, "auto", ("error", "hand-side")),
        (lambda hands, folder: hands / "MANO_LEFT.pkl", "auto", ("warning", "hand-shapedirs")),
        (lambda hands, folder: hands / "MANO_LEFT.pkl", "as_is", ("error", "hand-shapedirs")),
        (hostile_hand, "auto", ("error", "hand-pickle")),
        (truncated_hand, "auto", ("error", "hand-file")),
        (absent_hand, "auto", ("error", "hand-file")),
        (millimetre_hand, "auto", ("error", "hand-unit")),
    ],
)
def test_faults_of_hand_files(tmp_path, hands, plant, left_shapedirs, found):
    findings, _ = check_hand(plant(hands, tmp_path), left_shapedirs)
    assert problems(findings) == {found}, findings


def test_a_hostile_hand_file_is_refused_by_the_name_that_it_calls(tmp_path, hands):
    findings, arrays = check_hand(hostile_hand(hands, tmp_path), "auto")
    assert arrays is None
    assert "os.system" in findings[0].text


# ---------------------------------------------------------------- FreiHAND


def test_a_sound_freihand_has_no_faults(sound_freihand, hand_arrays):
    findings = check_freihand(sound_freihand, hand_arrays, 64)
    assert not problems(findings), findings
    names = {f.name for f in findings}
    assert {"residual", "placement", "joints", "mask", "scale", "k", "truth", "counts"} <= {
        name.removeprefix("freihand-") for name in names
    }
    # its own truth, re-posed: nothing but the rounding of float32
    assert "by 0.00 mm" in next(f.text for f in findings if f.name == "freihand-residual")


def in_ho3d_order(joints):
    return joints[:, list(HO3D_FROM_CANONICAL)]


def millimetres(root):
    for name in ("xyz", "verts", "scale"):
        lists(root, f"training_{name}", lambda v: v * 1e3)


def opengl(root):
    for name in ("xyz", "verts"):
        lists(root, f"training_{name}", lambda v: v @ OPENCV_FROM_OPENGL)


def scaled_pixels(K):
    return K * np.array([1.5, 1.5, 1])[:, None]


def without_images(root):
    for image_id in (3, 3 + 6, 2 + 18):
        (root / "training" / "rgb" / f"{image_id:08d}.jpg").unlink()


def rolled_masks(root):
    paths = sorted((root / "training" / "mask").iterdir())
    contents = [p.read_bytes() for p in paths]
    for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)


def shrunk_images(root):
    for path in (root / "training").glob("*/*.jpg"):
        image = cv2.imread(str(path))
        cv2.imwrite(str(path), cv2.resize(image, (48, 48)))


def cut_off(root):
    path = root / "training_verts.json"
    path.write_bytes(path.read_bytes()[:-5])


def one_nan(xyz):
    xyz[2, 5] = np.nan
    return xyz


def other_facts(root):
    path = root / "handmim.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"hand_sha256": "0" * 64}))


def more_than_labelled(root):
    facts = json.loads((root / "handmim.json").read_text())
    (root / "handmim.json").write_text(json.dumps(facts | {"num": 7}))


def nearer(vectors):
    vectors[..., 60] *= 1.3  # nearer to the camera by so much
    return vectors


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (millimetres, ("error", "freihand-unit")),
        (lambda r: lists(r, "training_scale", lambda v: v * 1e3), ("error", "freihand-unit")),
        (lambda r: lists(r, "evaluation_xyz", lambda v: v * 1e2), ("error", "freihand-unit")),
        (lambda r: lists(r, "training_xyz", in_ho3d_order), ("error", "freihand-order")),
        (opengl, ("error", "freihand-axes")),
        (
            lambda r: lists(r, "training_mano", lambda v: np.roll(v, 1, axis=0)),
            ("error", "freihand-residual"),
        ),
        (
            lambda r: lists(r, "training_mano", nearer),
            ("error", "freihand-placement"),
        ),
        (
            lambda r: lists(r, "training_xyz", lambda v: v + 0.005),
            ("error", "freihand-joints"),
        ),
        (lambda r: lists(r, "training_scale", lambda v: v * 1.1), ("error", "freihand-scale")),
        (without_images, ("error", "freihand-images")),
        (lambda r: (r / "training/mask/00000004.jpg").unlink(), ("warning", "freihand-masks")),
        (lambda r: lists(r, "training_K", scaled_pixels), ("error", "freihand-mask")),
        (rolled_masks, ("error", "freihand-mask")),
        (lambda r: lists(r, "training_K", lambda K: K.transpose(0, 2, 1)), ("error", "freihand-k")),
        (lambda r: lists(r, "training_xyz", lambda v: v[:-1]), ("error", "freihand-lists")),
        (lambda r: lists(r, "evaluation_verts", lambda v: v[:2]), ("error", "freihand-lists")),
        (cut_off, ("error", "freihand-json")),
        (lambda r: lists(r, "training_xyz", one_nan), ("error", "freihand-finite")),
        (shrunk_images, ("error", "freihand-size")),
        (
            lambda r: (r / "training/rgb/00000014.jpg").write_bytes(b"no image"),
            ("error", "freihand-decode"),
        ),
        (other_facts, ("error", "freihand-hand")),
        (more_than_labelled, ("warning", "freihand-counts")),
        (lambda r: (r / "training_verts.json").unlink(), ("error", "freihand-layout")),
        (lambda r: (r / "evaluation_xyz.json").unlink(), ("warning", "freihand-truth")),
        (lambda r: shutil.rmtree(r / "evaluation"), ("warning", "freihand-layout")),
    ],
)
def test_faults_of_freihand(tmp_path, sound_freihand, hand_arrays, plant, found):
    root = shutil.copytree(sound_freihand, tmp_path / "root")
    plant(root)
    findings = check_freihand(root, hand_arrays, 64)
    assert problems(findings) == {found}, findings


def test_another_hand_than_freihands_has_a_residual(sound_freihand, hand_arrays, tmp_path):
    root = shutil.copytree(sound_freihand, tmp_path / "root")
    (root / "handmim.json").unlink()  # as a genuine set
    bent = replace(hand_arrays, hands_mean=hand_arrays.hands_mean + 0.4)
    found = problems(check_freihand(root, bent, 64))
    # without its own counts and size it is judged by the genuine ones
    rest = {("warning", "freihand-counts"), ("error", "freihand-size")}
    assert found == {("error", "freihand-residual")} | rest


def test_left_and_unreadable_hands_leave_the_other_checks(sound_freihand, hand_arrays):
    findings = check_freihand(sound_freihand, mirrored(hand_arrays), 64)
    assert problems(findings) == {("error", "freihand-hand")}
    findings = check_freihand(sound_freihand, None, 64)
    assert problems(findings) == {("warning", "freihand-hand")}
    assert "freihand-mask" in {f.name for f in findings}


def test_a_folder_too_high_is_found_the_inner_one(sound_freihand, sound_ho3d_v2, hand_arrays):
    (finding,) = check_freihand(sound_freihand.parent, hand_arrays, 4)
    assert finding.name == "freihand-layout"
    assert f"freihand={sound_freihand}" in finding.fix
    (finding,) = check_ho3d(sound_ho3d_v2.parent, 2, hand_arrays, 4)
    assert f"ho3d_v2={sound_ho3d_v2}" in finding.fix


# ---------------------------------------------------------------- HO-3D


def test_sound_ho3d_has_no_faults(sound_ho3d_v2, sound_ho3d_v3, hand_arrays):
    for version, root in ((2, sound_ho3d_v2), (3, sound_ho3d_v3)):
        findings = check_ho3d(root, version, hand_arrays, 64)
        assert not problems(findings), findings
        names = {f.name.removeprefix(f"ho3d-v{version}-") for f in findings}
        assert {"residual", "placement", "projection", "box", "wrist", "truth"} <= names
        assert {"takes", "version", "counts", "files", "meta"} <= names


def flipped(points):
    return points @ OPENCV_FROM_OPENGL


def no_annotation(meta):
    meta.update(dict.fromkeys(("handPose", "handTrans", "handBeta", "handJoints3D")))


def listed_twice(root):
    lines = (root / "train.txt").read_text().splitlines()
    (root / "train.txt").write_text("\n".join([*lines[:-1], lines[0]]))


def trained_on_the_test(root):
    """A sequence of the evaluation instead of the last training frame."""
    test = (root / "evaluation.txt").read_text().split()[0]
    lines = (root / "train.txt").read_text().split()
    old, new = lines[-1].split("/")[0], test.split("/")[0]
    (root / "train" / old).rename(root / "train" / new)
    (root / "train.txt").write_text("\n".join([*lines[:-1], lines[-1].replace(old, new)]))


def moved_centre(K):
    return K + np.array([[0, 0, 60], [0, 0, 0], [0, 0, 0]])


def no_intrinsics(meta):
    meta["camMat"] = None


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (lambda r: metas(r, "train", field("handJoints3D", flipped)), ("error", "axes")),
        (lambda r: lists(r, "evaluation_xyz", flipped), ("error", "axes")),
        (lambda r: metas(r, "train", no_annotation, only_first=True), ("warning", "none")),
        (lambda r: lists(r, "evaluation_xyz", lambda v: v[:2]), ("error", "truth")),
        (lambda r: lists(r, "evaluation_xyz", lambda v: v[::-1]), ("error", "truth")),
        (lambda r: (r / "evaluation_xyz.json").unlink(), ("warning", "truth")),
        (
            lambda r: first_frame(r, "train", "meta").write_bytes(HOSTILE),
            ("error", "pickle"),
        ),
        (lambda r: first_frame(r, "train", "meta").write_bytes(b"\x80\x02}q"), ("error", "meta")),
        (lambda r: first_frame(r, "evaluation", "rgb").unlink(), ("error", "files")),
        (
            lambda r: metas(r, "train", field("handJoints3D", lambda v: v * 1e3)),
            ("error", "unit"),
        ),
        (
            lambda r: metas(
                r, "train", field("handJoints3D", lambda v: v[list(CANONICAL_FROM_HO3D)])
            ),
            ("error", "order"),
        ),
        (lambda r: metas(r, "train", field("handPose", lambda v: v * 0.3)), ("error", "residual")),
        (
            lambda r: metas(r, "train", field("handTrans", lambda v: v + 0.09)),
            ("error", "placement"),
        ),
        (lambda r: metas(r, "train", no_intrinsics), ("error", "k")),
        (lambda r: metas(r, "train", field("camMat", np.transpose)), ("error", "k")),
        (
            lambda r: metas(r, "train", field("camMat", moved_centre)),
            ("error", "projection"),
        ),
        (
            lambda r: metas(r, "evaluation", field("handBoundingBox", lambda b: b[2:] + b[:2])),
            ("error", "box"),
        ),
        (
            lambda r: metas(r, "evaluation", field("camMat", moved_centre)),
            ("error", "wrist"),
        ),
        (listed_twice, ("error", "list")),
        (trained_on_the_test, ("error", "takes")),
    ],
)
def test_faults_of_ho3d(tmp_path, sound_ho3d_v2, hand_arrays, plant, found):
    root = shutil.copytree(sound_ho3d_v2, tmp_path / "root")
    plant(root)
    findings = check_ho3d(root, 2, hand_arrays, 64)
    level, name = found
    assert problems(findings) == {(level, f"ho3d-v2-{name}")}, findings


def test_a_hostile_meta_is_refused_by_the_name_that_it_calls(tmp_path, sound_ho3d_v2):
    root = shutil.copytree(sound_ho3d_v2, tmp_path / "root")
    first_frame(root, "train", "meta").write_bytes(HOSTILE)
    findings = check_ho3d(root, 2, None, 64)
    assert any("os.system" in f.text for f in findings if f.name == "ho3d-v2-pickle")


def test_versions_of_ho3d_are_found_apart(sound_ho3d_v2, sound_ho3d_v3, hand_arrays):
    for version, root in ((3, sound_ho3d_v2), (2, sound_ho3d_v3)):
        findings = check_ho3d(root, version, hand_arrays, 64)
        assert problems(findings) == {("error", f"ho3d-v{version}-version")}, findings


def test_other_cameras_of_a_take_are_a_warning(tmp_path, sound_ho3d_v2, hand_arrays):
    root = shutil.copytree(sound_ho3d_v2, tmp_path / "root")
    lines = (root / "train.txt").read_text().split()
    frames = (root / "evaluation.txt").read_text().split()
    test = next(f.split("/")[0] for f in frames if f.startswith("MPM1"))
    old = lines[-1].split("/")[0]
    (root / "train" / old).rename(root / "train" / "MPM19")
    assert test != "MPM19"
    (root / "train.txt").write_text("\n".join(lines).replace(old, "MPM19"))
    findings = check_ho3d(root, 2, hand_arrays, 64)
    assert problems(findings) == {("warning", "ho3d-v2-takes")}


# ---------------------------------------------------------------- photos


def test_sound_photos_have_no_faults(sound_keypoints):
    findings = check_keypoints(sound_keypoints / "images", sound_keypoints / "labels.json", 64)
    assert not problems(findings), findings
    findings = check_crops(sound_keypoints / "images", 64)
    assert not problems(findings), findings
    assert "6 images" in findings[0].text


def test_scores_of_photos_are_found(tmp_path, sound_keypoints):
    root = shutil.copytree(sound_keypoints, tmp_path / "root")
    found = check_keypoints(root / "images", root / "labels.json", 64)
    assert "keypoints-scores" not in {f.name for f in found}
    labels(lambda note: note.update(keypoint_scores=[0.25] * 21))(root)
    found = check_keypoints(root / "images", root / "labels.json", 64)
    assert not problems(found), found
    (line,) = (f.text for f in found if f.name == "keypoints-scores")
    assert "0.25 on average" in line


def labels(change, key="annotations"):
    def plant(root):
        path = root / "labels.json"
        content = json.loads(path.read_text())
        for note in content[key]:
            change(note)
        path.write_text(json.dumps(content))

    return plant


def each(key, function):
    def change(note):
        note[key] = np.asarray(function(np.array(note[key]))).tolist()

    return change


def in_another_order(note):
    for key, width in (("keypoints", 3), ("keypoints_3d", 3)):
        values = np.array(note[key]).reshape(21, width)[list(HO3D_FROM_CANONICAL)]
        note[key] = values.ravel().tolist() if key == "keypoints" else values.tolist()


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (labels(each("keypoints_3d", lambda v: v * 1e3)), ("error", "unit")),
        (labels(in_another_order), ("error", "order")),
        (labels(each("keypoints_3d", lambda v: v * [1, -1, -1])), ("error", "axes")),
        (labels(each("keypoints", lambda v: v * np.tile([3, 3, 1], 21))), ("error", "outside")),
        (labels(each("keypoints", lambda v: v[:60])), ("error", "numbers")),
        (lambda r: (r / "images" / "00000001.jpg").unlink(), ("error", "images")),
        (labels(lambda image: image.update(width=640), "images"), ("error", "size")),
        (labels(lambda image: image.pop("subject"), "images"), ("warning", "subjects")),
        (labels(lambda note: note.update(image_id=99)), ("error", "file")),
        (labels(lambda note: note.update(keypoint_scores=[75.0] * 21)), ("error", "scores")),
        (labels(lambda note: note.update(keypoint_scores=[0.5] * 20)), ("error", "scores")),
        (lambda r: (r / "labels.json").write_text("{"), ("error", "file")),
    ],
)
def test_faults_of_keypoints(tmp_path, sound_keypoints, plant, found):
    root = shutil.copytree(sound_keypoints, tmp_path / "root")
    plant(root)
    findings = check_keypoints(root / "images", root / "labels.json", 64)
    level, name = found
    assert problems(findings) == {(level, f"keypoints-{name}")}, findings


def test_faults_of_crops(tmp_path, sound_keypoints):
    root = shutil.copytree(sound_keypoints / "images", tmp_path / "crops")
    (root / "again.jpg").write_bytes((root / "00000003.jpg").read_bytes())
    assert problems(check_crops(root, 64)) == {("warning", "crops-duplicates")}
    (root / "again.jpg").write_bytes(b"no image")
    assert problems(check_crops(root, 64)) == {("warning", "crops-decode")}
    cv2.imwrite(str(root / "again.jpg"), np.zeros((20, 200, 3), np.uint8))
    assert problems(check_crops(root, 64)) == {("warning", "crops-size")}
    assert problems(check_crops(tmp_path / "nowhere", 64)) == {("error", "crops-images")}


def test_an_evaluation_without_truth_is_no_fault(
    tmp_path, sound_freihand, sound_ho3d_v2, hand_arrays
):
    for source in (sound_freihand, sound_ho3d_v2):
        root = shutil.copytree(source, tmp_path / source.name)
        for name in ("xyz", "verts", "mano"):
            (root / f"evaluation_{name}.json").unlink(missing_ok=True)
    findings = check_freihand(tmp_path / "freihand", hand_arrays, 64)
    findings += check_ho3d(tmp_path / "ho3d_v2", 2, hand_arrays, 64)
    assert not problems(findings), findings
    found = [f.text for f in findings if f.name.endswith("-truth")]
    assert len(found) == 2
    assert all("not scored" in text for text in found)


def test_every_image_is_decoded_where_that_is_wished(
    tmp_path, sound_freihand, sound_ho3d_v2, sound_keypoints, hand_arrays
):
    """Damaged pixels behind a whole head, in an image that no small sample reads."""
    roots = [shutil.copytree(s, tmp_path / s.name) for s in (
        sound_freihand, sound_ho3d_v2, sound_keypoints
    )]  # fmt: skip
    second = (roots[1] / "train.txt").read_text().split()[1].split("/")
    damaged = (
        roots[0] / "training" / "rgb" / "00000008.jpg",
        next((roots[1] / "train" / second[0] / "rgb").glob(f"{second[1]}.*")),
        roots[2] / "images" / "00000002.jpg",
    )
    for path in damaged:
        path.write_bytes(b"no image")
    cv2.imwrite(str(damaged[2]), np.zeros((64, 64, 3), np.uint8))
    damaged[2].write_bytes(damaged[2].read_bytes()[:200])
    checked = {
        full: [
            *check_freihand(roots[0], hand_arrays, 2, full=full),
            *check_ho3d(roots[1], 2, hand_arrays, 2, full=full),
            *check_keypoints(roots[2] / "images", roots[2] / "labels.json", 64 if full else 2),
        ]
        for full in (False, True)
    }
    assert not problems(checked[False]), checked[False]
    found = {name: f.text for f in checked[True] for name in [f.name] if f.level == "error"}
    assert set(found) == {"freihand-decode", "ho3d-v2-decode", "keypoints-decode"}
    assert all(path.name in text for path, text in zip(damaged, found.values(), strict=True))
