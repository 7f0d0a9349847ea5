"""Faults of annotation files are refused or warned about at the start, by entry and field."""

import copy
import json
import logging
import re

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from handmim.check.run import check_keypoints
from handmim.data.keypoints import KeypointPhotos
from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.conventions import mirror_points
from handmim.hand.skeleton import LABEL_ORDERS
from handmim.images.decode import UnreadableImage
from handmim.utils.findings import Notes

WIDTH, HEIGHT, NUM = 160, 120, 24


@pytest.fixture(scope="session")
def hands_3d(hand):
    """[NUM, 21, 3] right hands in metres about their middle, fingers bent, palm seen from above."""
    rng = np.random.default_rng(0)
    rotations = rng.normal(0, 0.1, (NUM, 16, 3))
    rotations[:, 1:, 2] += 0.3
    rotations[:, 0] = rng.normal(0, 0.4, (NUM, 3))
    betas = torch.from_numpy(rng.normal(0, 1, (NUM, 10)))
    joints = hand(torch.from_numpy(rotvec_to_matrix(rotations)), betas).joints_m.double().numpy()
    return joints - joints.mean(axis=1, keepdims=True)


@pytest.fixture
def content(hands_3d, tmp_path):
    """A sound file of left and right hands, written with its images."""
    images, notes = [], []
    for i, joints in enumerate(hands_3d):
        points = mirror_points(joints) if i % 3 == 0 else joints
        px = 450 * points[:, :2] + [WIDTH / 2, HEIGHT / 2]
        flat = np.column_stack([px, np.full(21, 2)]).ravel().tolist()
        name = f"{i}.png"
        cv2.imwrite(str(tmp_path / name), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
        images.append(
            {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT, "subject": i // 2}
        )
        side = "left" if i % 3 == 0 else "right"
        note = {"id": i, "image_id": i, "keypoints": flat, "keypoints_3d": points.tolist()}
        notes.append(note | {"handedness": side})
    return {"images": images, "annotations": notes}


@pytest.fixture
def load(tmp_path):
    """Write a file and read it, as a training set does."""

    def build(content, **kwargs):
        path = tmp_path / "labels.json"
        is_raw = isinstance(content, bytes)
        path.write_bytes(content if is_raw else json.dumps(content).encode())
        return KeypointPhotos(tmp_path, path, **{"split": "all", **kwargs})

    return build


def points_2d(change):
    def plant(content):
        for note in content["annotations"]:
            values = np.array(note["keypoints"]).reshape(21, 3)
            values[:, :2] = change(values[:, :2])
            note["keypoints"] = values.ravel().tolist()

    return plant


def points_3d(change):
    def plant(content):
        for note in content["annotations"]:
            note["keypoints_3d"] = np.asarray(change(np.array(note["keypoints_3d"]))).tolist()

    return plant


def one(entry="annotations", **fields):
    return lambda content: content[entry][7].update(fields)


def without(entry, field):
    return lambda content: content[entry][7].pop(field)


def number(position, value):
    return lambda content: content["annotations"][7]["keypoints"].__setitem__(position, value)


def sides(*names, **values):
    """Sides by other fields: name=(value of left, value of right)."""

    def plant(content):
        for note in content["annotations"]:
            is_right = note.pop("handedness") == "right"
            note.update({key: pair[is_right] for key, pair in values.items()})

    return plant


def same_keypoints(num):
    def plant(content):
        for note in content["annotations"][:num]:
            note["keypoints"] = content["annotations"][0]["keypoints"]

    return plant


def joined(content):
    """Two files one after the other, whose ids restart."""
    second = copy.deepcopy(content)
    for image in second["images"]:
        image["file_name"] = f"{NUM - 1 - image['id']}.png"
    for key in content:
        content[key] += second[key]


def ids_restart(content):
    for note in content["annotations"]:
        note["id"] %= NUM // 2


def reordered(name, dimensions=(2, 3)):
    def plant(content):
        theirs = list(LABEL_ORDERS[name])
        for note in content["annotations"]:
            flat = np.empty((21, 3))
            flat[theirs] = np.array(note["keypoints"]).reshape(21, 3)
            deep = np.empty((21, 3))
            deep[theirs] = note["keypoints_3d"]
            note["keypoints"] = flat.ravel().tolist()
            note["keypoints_3d"] = deep.tolist()
            if 3 not in dimensions:
                del note["keypoints_3d"]

    return plant


def every_second_in_mm(content):
    for note in content["annotations"][::2]:
        note["keypoints_3d"] = (np.array(note["keypoints_3d"]) * 1e3).tolist()


def test_a_sound_file_has_no_findings(content, load, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = load(content)
    assert len(data) == NUM
    assert not [r for r in caplog.records if r.levelno > logging.INFO]
    assert "24 hands, 16 right and 8 left, by handedness" in caplog.text
    findings = check_keypoints(tmp_path, tmp_path / "labels.json", 64)
    assert {f.level for f in findings} == {"ok"}


def test_keypoints_in_one_corner_are_a_warning(content, load, caplog):
    """Images may be enlarged after labelling, or padded."""
    points_2d(lambda p: p / 5)(content)
    load(content)
    assert "fill only" in caplog.text


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (joined, r"24 ids of images occur more than once: 0, 1, 2.*joined"),
        (ids_restart, r"12 ids of annotations occur more than once: 0, 1, 2.*joined"),
        (points_2d(lambda p: p / [WIDTH, HEIGHT]), "24 of 24 hands lie within .* normalised"),
        (points_2d(lambda p: p / [WIDTH, HEIGHT] * 2 - 1), "normalised"),
        (one(keypoints=[0.4, 0.5, 2, *[0.5, 0.6, 2] * 20]), r"1 of 24 hands .*annotation 7 "),
        (points_2d(lambda p: p * 3), "lie outside of their images"),
        (
            points_2d(lambda p: p * [1, -1] + [0, HEIGHT]),
            r"correlation .* in x, -[01]",
        ),
        (same_keypoints(NUM), "24 of 24 hands have the same keypoints .* up to 24 images"),
        (points_3d(lambda v: v * 39.37), "a diagonal of .* no hand in m, cm or mm"),
        (points_3d(lambda v: v[:, [2, 1, 0]]), "of keypoints_3d z runs right and y runs down"),
        (points_3d(lambda v: v[:, [0, 2, 1]]), "of keypoints_3d x runs right and z runs down"),
        (points_3d(lambda v: v * [-1, -1, 1]), "of keypoints_3d -x runs right and -y runs down"),
        (points_3d(lambda v: v * 1e3), "keypoints_3d is in mm"),
        (points_3d(lambda v: v * 1e2), "keypoints_3d is in cm"),
        (points_3d(lambda v: v * 10), "diagonal of .* no hand"),
        (every_second_in_mm, "keypoints_3d"),
        (one(keypoints_3d=[[0, 0, 0]] * 21), r"1 of 24 hands have no hand's size .*annotation 7"),
        (points_3d(lambda v: v * [1, -1, -1]), "keypoints_3d run with the image"),
        (points_3d(lambda v: v[:, [1, 0, 2]]), "x and y are exchanged"),
        (points_3d(lambda v: v * [1, 1, -1]), "left and right are exchanged, or one axis"),
        (sides(handedness=("right", "left")), "left and right are exchanged"),
        *((reordered(name), f"in order '{name}'") for name in LABEL_ORDERS if name != "canonical"),
        (reordered("wrist last", dimensions=(2,)), "keypoints: joints in order 'wrist last'"),
        (one("images", width=1920), r"1 of 24 images have another size .*7\.png \(1920 x 120"),
    ],
)
def test_labels_that_mean_something_else_are_refused(content, load, plant, message):
    plant(content)
    with pytest.raises(ValueError, match=message):
        load(content)


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (one(image_id=-5), "annotation 7: image_id is -5, no id of"),
        (one(image_id="7"), "image_id is '7', .*numbers and strings differ"),
        (without("annotations", "image_id"), "annotation 7: image_id is None"),
        (number(9, 1e30), r"annotation 7: keypoints .* number 9 is 1e\+30"),
        (number(9, float("nan")), "annotation 7: keypoints .* number 9 is nan"),
        (number(9, None), "annotation 7: keypoints .* number 9"),
        (number(9, "12"), "annotation 7: keypoints .* number 9 is '12'"),
        (number(9, True), "annotation 7: keypoints .* number 9 is True"),
        (number(9, 10**400), "annotation 7: keypoints .* too large"),
        (number(11, None), "annotation 7: keypoints .* number 11"),
        (without("annotations", "keypoints"), "annotation 7 has no keypoints"),
        (
            one(keypoints=[1.0] * 126),
            "annotation 7: keypoints must be 63 .*, got 126 values",
        ),
        (one(keypoints=[[1.0] * 63]), "annotation 7: keypoints .* 1 x 63"),
        (one(keypoints_3d=[[0.0] * 21] * 3), "annotation 7: keypoints_3d .* 3 x 21"),
        (one(keypoints_3d=[["a"] * 3] * 21), "annotation 7: keypoints_3d .* number 0 is 'a'"),
        (one(K=[[1, 2], [3, 4]]), "annotation 7: K must be 3 x 3"),
        (one(K=[[0, 0, 0]] * 3), "1 of 1 hands have a K that is no camera's: annotation 7"),
        (one(K=[[300, 0, 80], [0, 0, 60], [0, 0, 1]]), "1 of 1 hands have a K that is no camera's"),
        (one(category_id=[1]), "annotation 7: category_id"),
        (lambda c: c["annotations"].__setitem__(7, None), "entry 7 of annotations"),
        (one("images", width=-160), "image 7: width must be a positive number, got -160"),
        (
            one("images", file_name="../../x.png"),
            "image 7: file_name .*x.png. leads out",
        ),
        (one("images", file_name="a/../../x.png"), "image 7: file_name .* leads out"),
        (one("images", file_name="/x.png"), "image 7: file_name .* leads out"),
        (one("images", file_name="C:\\x.png"), "image 7: file_name .* leads out"),
        (one("images", file_name=5), "entry 7 of images must have an id and a file_name"),
        (without("images", "id"), "entry 7 of images must have an id and a file_name"),
        (lambda c: c.update(images={}), r"images must be a list of entries"),
        (lambda c: c.update(annotations=[]), r"annotations must be a list .* an empty list"),
        (lambda c: c.update(categories="hand"), "categories is 'hand' .*a list of objects"),
        (lambda c: c.update(categories=["left"]), "entry 0 of categories is 'left'"),
        (
            lambda c: c.update(categories=[{"id": 0, "name": n} for n in ("a", "b")]),
            "category id 0 stands for 'a' and 'b'",
        ),
    ],
)
def test_entries_of_another_form_are_refused_by_entry_and_field(content, load, plant, message):
    plant(content)
    with pytest.raises(ValueError, match=message) as refused:
        load(content)
    assert "labels.json" in str(refused.value)


def test_all_faults_of_a_file_are_named_together(content, load):
    one(image_id=99)(content)
    content["annotations"][3]["keypoints"][4] = "x"
    with pytest.raises(ValueError, match=r"annotation 3: keypoints.*annotation 7: image_id is 99"):
        load(content)


def test_values_of_hidden_keypoints_may_be_null(content, load):
    note = content["annotations"][7]
    note["keypoints"][9:12] = [None, None, 0]
    note["keypoints_3d"] = [[*p, 1] for p in note["keypoints_3d"]]
    note["keypoints_3d"][3] = [None, None, None, 0]
    sample = load(content)[7]
    assert sample.kp2d_valid.tolist() == sample.joints_valid.tolist() == [i != 3 for i in range(21)]


@pytest.mark.parametrize(
    "plant",
    [
        sides(hand_type=("left", "right")),
        sides(handedness=("Left", "Right")),
        sides(hand_side=("L", "R")),
        sides(side=("left_hand", "right_hand")),
        sides(is_right=(0, 1)),
        sides(is_right=("false", "true")),
        sides(is_left=(True, False)),
        sides(attributes=({"Handedness": "left"}, {"Handedness": "right"})),
        sides(category_id=(1, 2)),
        sides(laterality=("L", "R")),
        sides(left_or_right=("left", "right"), camera=("right", "right")),
        sides(label=("left hand", "right hand")),
        sides(category=("left", "right"), type=("palm", "back")),
        sides(left=(True, False), bbox=({"left": 3, "right": 9}, {"left": 1, "right": 4})),
        sides(handedness=(["Left"], [{"index": 1, "score": 0.9, "categoryName": "Right"}])),
        sides(metadata=({"hand": "left"}, {"hand": "right"})),
        sides(attributes=([{"name": "side", "value": "l"}], [{"name": "side", "value": "r"}])),
        sides(handedness=("left", "right"), label=("right", "left")),
        sides(side=("palm", "back"), hand_type=("left", "right"), hand=(4, 5)),
    ],
)
def test_common_forms_of_a_side_are_read(content, load, plant):
    plant(content)
    content["categories"] = [{"id": 1, "name": "left_hand"}, {"id": 2, "name": "right hand"}]
    data = load(content)
    assert [data[i].is_right for i in range(NUM)] == [i % 3 != 0 for i in range(NUM)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"handedness": "lfet"}, "annotation 7 has handedness='lfet'"),
        ({"handedness": ""}, "annotation 7 has handedness=''"),
        ({"handedness": 1}, "annotation 7 has handedness=1"),
        ({"hand_type": "interacting"}, "annotation 7 has hand_type='interacting'"),
        ({"is_right": 2}, "annotation 7 has is_right=2"),
        ({"hand_type": "left"}, "annotation 7 states both sides"),
    ],
)
def test_sides_that_are_unknown_or_contradict_are_refused(content, load, fields, message):
    one(**fields)(content)
    with pytest.raises(ValueError, match=f"{message}.*a side is stated by"):
        load(content)


def test_sides_as_numbers_are_refused_where_nothing_else_states_them(content, load):
    sides(hand=(0, 1))(content)
    with pytest.raises(ValueError, match=r"24 entries, .*annotation 0 has hand=0.*a side is"):
        load(content)
    content["info"] = {"handedness": "right"}
    load(content)  # `hand` may count the hands of an image


def copied(content):
    content["annotations"].append(content["annotations"][7] | {"id": 99})


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (same_keypoints(3), "3 of 24 hands have the same keypoints .*3 images alike: annotation 0"),
        (copied, "1 of 25 hands repeat another hand of their image: annotation 99"),
        (
            lambda c: one(keypoints=[*c["annotations"][7]["keypoints"][:62], 0.8])(c),
            "1 of 24 hands have a visibility other than 0, 1 and 2: .*: annotation 7",
        ),
        (one(bbox=[100, 80, 20, 20]), "1 of 24 hands lie outside of their own bbox.*annotation 7"),
        (points_2d(lambda p: [0, HEIGHT] + p * [1, -1]), "point down and .* show their backs"),
        (points_2d(lambda p: p[:, ::-1] - [0, 20]), "point left and .* show their backs"),
    ],
)
def test_odd_labels_are_warned_about(content, hands_3d, load, caplog, plant, message):
    for note, joints in zip(content["annotations"], hands_3d, strict=True):
        sign = -1 if note["handedness"] == "left" else 1  # raised, palms to the camera
        px = [WIDTH / 2, HEIGHT / 2] + 450 * joints[:, [2, 0]] * [sign, 1]
        note["keypoints"] = np.column_stack([px, np.full(21, 2)]).ravel().tolist()
        del note["keypoints_3d"]
    load(content)
    assert not caplog.records
    plant(content)
    load(content)
    (record,) = caplog.records
    assert re.search(message, record.getMessage())


def test_a_camera_that_does_not_fit_is_warned_about(content, load, caplog):
    K = np.array([[300.0, 0, 80], [0, 300, 60], [0, 0, 1]])
    for note in content["annotations"]:
        points = np.array(note["keypoints_3d"]) + 0.6 * np.eye(3)[2]
        px = (points @ K.T)[:, :2] / points[:, 2:]
        flat = np.column_stack([px, np.full(21, 2)]).ravel().tolist()
        note |= {"K": K.tolist(), "keypoints_3d": points.tolist(), "keypoints": flat}
    load(content)
    assert not caplog.records
    content["annotations"][7]["K"][0][2] = 0
    load(content)
    assert "1 of 24 hands have a K that projects keypoints_3d elsewhere" in caplog.text
    assert "than keypoints: annotation 7" in caplog.text


def test_hands_without_a_side_are_counted(content, load, caplog):
    caplog.set_level(logging.INFO)
    for note in content["annotations"][:5]:
        del note["handedness"]
    load(content)
    (warning,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert "18 right and 6 left, by handedness; 5 state none and count as right" in warning
    for note in content["annotations"]:
        note.pop("handedness", None)
        del note["keypoints_3d"]
    caplog.clear()
    content["annotations"][3]["hand_id"] = "left_0"
    load(content)
    (warning,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert "24 right and 0 left, no field states the side" in warning
    assert "hand_id='left_0' is not read as a side" in warning


def test_a_file_may_state_the_side_of_all_its_hands(content, load, caplog):
    sides()(content)
    for note in content["annotations"]:
        del note["keypoints_3d"]
    data = load(content | {"info": {"handedness": "left"}})
    assert not any(hand.is_right for hand in data.hands)
    assert not caplog.records


def test_letters_and_gestures_named_like_sides_are_no_sides(content, load, caplog):
    """Sign language has an L and an R, a swipe goes to the left."""
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate("LRA")]
    for i, note in enumerate(content["annotations"]):
        note |= {"category_id": i % 3, "label": ("left", "right", "up")[i % 3]}
    data = load(content)
    assert [hand.is_right for hand in data.hands] == [i % 3 != 0 for i in range(NUM)]
    assert not caplog.records


def test_odd_parts_of_a_file_that_are_not_read_are_warned_about(content, load, caplog):
    for note in content["annotations"]:
        note["category_id"] = 7
    load(content | {"info": "mine", "licenses": {}, "categories": [{"id": 1, "name": "hand"}]})
    assert [r.getMessage().split("labels.json: ")[1] for r in caplog.records] == [
        "info is 'mine', COCO has a dict there; info is not read",
        "category_id 7 is no id of `categories`; add it, or correct category_id",
    ]


def test_both_hands_of_whole_body_annotations_are_read(content, load):
    first, second, *_ = content["annotations"]
    flat = {"left": first["keypoints"], "right": second["keypoints"]}
    body = {"id": 0, "image_id": 0, "keypoints": [1.0] * 51, "category_id": 1}
    both = {f"{side}hand_kpts": flat[side] for side in flat}
    valid = {f"{side}hand_valid": True for side in flat}
    nothing = {"lefthand_kpts": [0.0] * 63, "lefthand_valid": False}
    entries = [body | both | valid, body | both | valid | nothing | {"id": 1, "image_id": 1}]
    data = load({"images": content["images"], "annotations": entries})
    assert [data.label_id(i) for i in range(len(data))] == ["0.png", "0.png#2", "1.png"]
    assert [data[i].is_right for i in range(3)] == [False, True, True]
    entries[0]["righthand_kpts"] = [1.0] * 60
    with pytest.raises(ValueError, match=r"annotation 0: righthand_kpts must .*, got 60 v"):
        load({"images": content["images"], "annotations": entries})


@pytest.mark.parametrize("states_size", [True, False])
def test_labels_made_without_exif_rotation_are_refused(content, load, tmp_path, states_size):
    exif = Image.Exif()
    exif[0x0112] = 6
    for image in content["images"]:
        image["file_name"] = image["file_name"].replace("png", "jpg")
        grey = Image.new("RGB", (WIDTH, HEIGHT), "grey")
        grey.save(tmp_path / image["file_name"], exif=exif)
        if not states_size:
            del image["width"], image["height"]
    points_2d(lambda p: p - np.array([p[:, 0].max() - WIDTH, 0]))(content)  # to the right end
    with pytest.raises(ValueError, match="EXIF rotation"):
        load(content)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_files_of_any_unicode_encoding_are_read(content, load, encoding):
    assert len(load(json.dumps(content).encode(encoding))) == NUM


def test_a_file_that_is_cut_off_is_named(content, load):
    with pytest.raises(ValueError, match=r"labels\.json .*line 1, column"):
        load(json.dumps(content).encode()[:-40])


def test_one_file_under_two_ids_stays_on_one_side_of_the_split(content, load, caplog):
    for image in content["images"]:
        del image["subject"]
        image["file_name"] = f"{image['id'] // 2}.png"
    parts = [load(content, split=split).file_names for split in ("train", "val")]
    assert not set(parts[0]) & set(parts[1])
    assert "12 files stand under several image ids" in caplog.text


def test_a_split_field_that_no_image_has_is_refused(content, load):
    with pytest.raises(ValueError, match=r"none of 24 images has the field split_by='person'"):
        load(content, split="train", split_by="person")


def test_unreadable_images_are_named_at_the_start(content, load, tmp_path, caplog):
    (tmp_path / "7.png").write_text("<html>")
    data = load(content)
    assert "1 of 24 images with hands cannot be read: 7.png" in caplog.text
    with pytest.raises(UnreadableImage, match=r"7\.png cannot be read: it is an HTML page"):
        data[7]


def test_findings_refuse_or_warn_once(caplog):
    notes = Notes()
    notes.warning("a", "odd", "look")
    notes.enforce("file")
    notes.enforce("file")
    assert [r.getMessage() for r in caplog.records] == ["file: odd; look"]
    for i in range(5):
        notes.error("b", f"wrong {i}", "mend")
    with pytest.raises(ValueError, match=r"file: wrong 0 \(mend\); .*; 2 further errors; "):
        notes.enforce("file")
