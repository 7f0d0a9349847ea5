"""One crop rule for every source: the joints' box centred, its longer side 1 / 1.45 of the crop."""

import copy
import json

import cv2
import numpy as np
import pytest
from hydra import initialize_config_dir
from hydra.utils import instantiate

from handmim.data.augment import HandAugment
from handmim.data.crops import CropFolder
from handmim.data.freihand import FreiHand
from handmim.data.ho3d import Ho3d
from handmim.data.keypoints import KeypointPhotos
from handmim.data.packed import PackedCrops, ShardCrops
from handmim.data.packing import pack_crops
from handmim.data.samples import box_of_points, crop_map
from handmim.data.synthetic import SyntheticHands
from handmim.engine.identity import check_same_run
from handmim.hand.conventions import CROP_SCALE
from handmim.utils.config import resolved
from handmim.utils.entry import compose
from tests.conftest import REPO

SIDE = 1 / CROP_SCALE
PADDED = {"crop_scale": 1.18}
HAGRID = 0.81  # of a detector's tight image by its joints' box


def framing_of(points_px, crop_px):
    """Centre in ndc and longer side over the crop, of the box of [21, 2] joints."""
    box = box_of_points(np.asarray(points_px, np.float64))
    return (box[:2] + box[2:]) / crop_px - 1, (box[2:] - box[:2]).max() / crop_px


def assert_framed(points_px, crop_px):
    centre, side = framing_of(points_px, crop_px)
    assert np.abs(centre).max() < 0.02
    assert side == pytest.approx(SIDE, rel=0.03)


@pytest.fixture
def photos(tmp_path):
    """Images of 21 bright dots, of a right and a left hand; some lie near the border."""
    rng, images, notes = np.random.default_rng(3), [], []
    for i in range(8):
        image = np.zeros((150, 200, 3), np.uint8)
        kp = rng.uniform([4, 4], [90, 60], 2) + rng.uniform(0, 1, (21, 2)) * rng.uniform(40, 90, 2)
        for x, y in kp.astype(int):
            cv2.circle(image, (int(x), int(y)), 2, (255, 255, 255), -1)
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        images.append({"id": i, "file_name": f"{i}.png"})
        flat = np.column_stack([kp, np.full(21, 2)]).ravel().tolist()
        side = ("right", "left")[i % 2]
        notes.append({"image_id": i, "keypoints": flat, "handedness": side})
    path = tmp_path / "notes.json"
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    return path


def renders(tmp_path, scene):
    scene = {"image_px": 32, "background": "studio", **scene}
    return SyntheticHands("standin", "train", 4, tmp_path / "cache", scene, num_workers=0)


@pytest.mark.parametrize(
    "scene",
    [
        {"view": "cone", "objects": 0.0, "occluders": 0.0, "sides": ["dorsal"]},
        {"view": "cone", "objects": 0.0, "occluders": 0.0, "sides": ["palmar"]},
        {},
    ],
    ids=["studio, back", "studio, palm", "full"],
)
def test_renders_are_framed(tmp_path, scene):
    data = renders(tmp_path, scene)
    for i in range(len(data)):
        assert_framed(data[i].kp2d_crop_px, 32)


def test_photos_are_framed(photos):
    data = KeypointPhotos(photos.parent, photos, split="all", image_px=48)
    for i in range(len(data)):
        assert_framed(data[i].kp2d_crop_px, 48)


def test_freihands_crops_stay_as_published(freihand_tree, tmp_path):
    """Generated ones are rendered by the rule; FreiHAND's fingertips are other vertices."""
    data = FreiHand(freihand_tree, "standin", image_px=64, cache_dir=tmp_path, val_fraction=0.25)
    assert data.crop_scale == 1
    centres, sides = zip(*(framing_of(data[i].kp2d_crop_px, 64) for i in range(12)), strict=True)
    assert np.abs(np.mean(centres, axis=0)).max() < 0.02
    assert np.mean(sides) == pytest.approx(SIDE, rel=0.03)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_ho3d_is_framed_by_its_joints_or_by_the_box_that_is_given(request, tmp_path, version):
    root = request.getfixturevalue(f"ho3d_{version}_tree")
    settings = {"image_px": 64, "cache_dir": tmp_path, "val_fraction": 0.25}
    data = Ho3d(root, "standin", **settings)
    for i in range(8):
        assert_framed(data[i].kp2d_crop_px, 64)
    scored = Ho3d(root, "standin", split="evaluation", **settings)
    sides = [framing_of(scored[i].kp2d_crop_px, 64)[1] for i in range(8)]
    assert 0.7 * SIDE < np.mean(sides) < SIDE, "the given box holds the vertices, not the joints"


@pytest.fixture
def configs():
    with initialize_config_dir(str(REPO / "configs"), version_base="1.3"):
        yield


@pytest.mark.usefixtures("configs")
def test_configs_repeat_the_constant():
    root = "data.root=x"
    for words in (["data=synthetic"], ["data=keypoints", root, "data.annotations=x"]):
        cfg = compose("finetune", words)
        node = cfg.data.scene if "scene" in cfg.data else cfg.data
        assert node.crop_scale == CROP_SCALE
    for name in ("ho3d_v2", "ho3d_v3"):
        assert compose("finetune", [f"data={name}", root]).data.crop_scale == CROP_SCALE
    formats = compose("synthesize", ["root=x"]).formats
    assert formats.freihand.crop_scale == formats.folder.crop_scale == CROP_SCALE


@pytest.fixture
def tight(tmp_path):
    """Images as a detector cuts them: a box of joints, .81 of the longer side, in the middle."""
    root = tmp_path / "tight"
    root.mkdir()
    for i, (height, width) in enumerate([(200, 200), (300, 260), (140, 160)]):
        image = np.zeros((height, width, 3), np.uint8)
        centre, reach = np.array([width, height]) / 2, np.array([30.0, 30.0])
        reach[int(height >= width)] = HAGRID * max(height, width) / 2
        (x0, y0), (x1, y1) = (np.round(centre + sign * reach).astype(int) for sign in (-1, 1))
        image[y0:y1, x0:x1] = 255
        cv2.imwrite(str(root / f"{i}.png"), image)
    return root


def test_tight_boxes_are_padded_to_the_rule(tight):
    data = CropFolder(tight, image_px=96, crop_scale=1.18)
    for i in range(len(data)):
        y, x = np.nonzero(data[i].image[..., 0] > 127)
        assert_framed([[x.min(), y.min()], [x.max() + 1, y.max() + 1]], 96)


def test_every_store_pads_by_the_same_map(tight, tmp_path):
    pack_crops(tight, tmp_path / "one.hm", image_px=96, coding="raw")
    pack_crops(tight, tmp_path / "shards", image_px=96, coding="raw", shard_size=2)
    stores = (
        lambda **scale: CropFolder(tight, image_px=96, **scale),
        lambda **scale: PackedCrops(tmp_path / "one.hm", **scale),
        lambda **scale: ShardCrops(tmp_path / "shards", image_px=96, **scale),
    )
    for store in stores:
        plain, same, padded = (store(**s)[0].image for s in ({}, {"crop_scale": 1.0}, PADDED))
        np.testing.assert_array_equal(same, plain)
        y, x = np.nonzero(padded[..., 0] > 127)
        assert_framed([[x.min(), y.min()], [x.max() + 1, y.max() + 1]], 96)


@pytest.mark.parametrize("source", ["folder", "packed", "webdataset"])
@pytest.mark.usefixtures("configs")
def test_the_option_reaches_every_store(tight, tmp_path, source):
    root = {"folder": tight, "packed": tmp_path / "one.hm", "webdataset": tmp_path / "shards"}[
        source
    ]
    if source != "folder":
        shards = {"shard_size": 2} if source == "webdataset" else {}
        pack_crops(tight, root, image_px=96, coding="raw", **shards)
    words = [f"data={source}", f"data.root={root}"]
    plain, padded = (
        instantiate(compose("pretrain", [*words, *more]).data.train)[0].image
        for more in ((), ("data.crop_scale=1.18",))
    )
    assert not np.array_equal(plain, padded), "the option changes nothing"
    reach = [np.nonzero(image[..., 0] > 127)[0].max() for image in (plain, padded)]
    assert reach[0] > reach[1]


@pytest.mark.parametrize("make", [CropFolder, ShardCrops])
def test_padding_that_cannot_be_is_refused(tmp_path, make):
    with pytest.raises(ValueError, match=r"crop_scale=1\.18 requires fit=contain, got fit=cover"):
        make(tmp_path, fit="cover", crop_scale=1.18)
    with pytest.raises(ValueError, match=r"crop_scale must be >= 1, got 0\.9"):
        make(tmp_path, crop_scale=0.9)


@pytest.mark.usefixtures("configs")
def test_runs_of_before_the_option_go_on_and_another_framing_is_refused(tmp_path):
    words = ["experiment=cpu_pretrain", "data=folder", "data.root=x"]
    now, other = (
        resolved(compose("pretrain", [*words, f"data.crop_scale={scale}"])) for scale in (1.0, 1.18)
    )
    before = copy.deepcopy(now)
    del before["data"]["crop_scale"], before["data"]["train"]["crop_scale"]
    check_same_run({"identity": {}, "config": before}, {}, now, tmp_path)
    with pytest.raises(ValueError, match=r"data\.train\.crop_scale: 1\.0 there, 1\.18 here"):
        check_same_run({"identity": {}, "config": before}, {}, other, tmp_path)


def test_a_users_box_gives_the_view_of_evaluation(photos):
    """What the predictor sees of a crop that is cut from a box by the rule."""
    note = json.loads(photos.read_text())["annotations"][0]
    points = np.array(note["keypoints"]).reshape(21, 3)[:, :2]
    crop_from_img = crop_map(box_of_points(points), CROP_SCALE, 96)
    in_crop = points @ crop_from_img[:, :2].T + crop_from_img[:, 2]
    assert_framed(in_crop, 96)
    data = KeypointPhotos(photos.parent, photos, split="all", image_px=96)
    np.testing.assert_allclose(in_crop, data[0].kp2d_crop_px, atol=1e-4)


@pytest.mark.usefixtures("configs")
def test_views_and_augmentation_show_what_the_docs_state():
    """Means of the logarithm of sides, which are log-uniform: views .83, fine-tuning .89."""
    means = {}
    views = compose("pretrain", ["experiment=cpu_base", "data=synthetic"]).views.scale
    tuned = compose("finetune", ["experiment=cpu_finetune"]).augment.scale
    for name, (low, high) in (("views", views), ("augment", tuned)):
        means[name] = np.sqrt(low * high)
    augment = HandAugment(img_px=48, scale=tuple(tuned))
    assert augment.evaluation_scale == pytest.approx(means["augment"])
    text = (REPO / "docs" / "datasets.md").read_text()
    for mean in means.values():
        assert f"{mean:.2f} of the crop's side" in text
    inside = (SIDE / means[name] for name in ("views", "augment"))
    assert "{:.2f} of a view's side and {:.2f} of the".format(*inside) in text
    assert np.log(means["augment"] / means["views"]) == pytest.approx(0.08, abs=0.005)
