"""Images of groups that a labelled split holds back stay out of an unlabeled pool."""

import json

import cv2
import numpy as np
import pytest
from hydra import initialize_config_dir
from hydra.utils import instantiate

from handmim.data.crops import CropFolder
from handmim.data.keypoints import KeypointPhotos, split_groups
from handmim.utils.entry import compose
from handmim.utils.paths import CONFIGS

NUM = 60
SPLIT = {"split_by": "source", "val_fraction": 0.4, "seed": 3}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eleven sources; every image of three has a hand, two of others are of no source, and three
    files are not listed."""
    root = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    images, notes = [], []
    for i in range(NUM):
        name = f"sub/{i}.png" if i % 2 else f"{i}.png"
        (root / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(root / name), rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        if i < 3:
            continue
        images.append({"id": i, "file_name": f"./{name}", "source": f"s{i % 11}"})
        if i in (3, 4):
            del images[-1]["source"]
        if i % 3 == 0:
            kp = np.column_stack([rng.uniform(4, 20, (21, 2)), np.full(21, 2)])
            notes.append({"id": i, "image_id": i, "keypoints": kp.ravel().tolist()})
    path = root.parent / "notes.json"
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    return root, path


def sources(root, path):
    return {i["file_name"][2:]: i.get("source") for i in json.loads(path.read_text())["images"]}


def test_pool_and_validation_share_no_group(photos, caplog):
    root, path = photos
    with caplog.at_level("INFO", logger="handmim.data.crops"):
        pool = CropFolder(root, held_back={"annotations": str(path), **SPLIT}).names
    val = KeypointPhotos(root, path, split="val", **SPLIT)
    source = sources(root, path)
    held = {source[name[2:]] for name in val.file_names} - {None}
    assert len(held) >= 1
    assert held.isdisjoint(source.get(name) for name in pool)
    out = {name for name, s in source.items() if s in held} | {n[2:] for n in val.file_names}
    with_hands = {name[2:] for name in val.file_names}
    assert len(out) > len(with_hands)  # further images of these sources have no hand
    assert sorted(pool) == sorted(set(CropFolder(root).names) - out)  # all else stays
    assert f"left out {len(out)} images of groups" in caplog.text
    assert "3 of the others are not listed" in caplog.text
    other = CropFolder(root, held_back={"annotations": str(path), **SPLIT, "seed": 4}).names
    assert other != pool


def test_groups_are_split_once_for_both(photos):
    root, path = photos
    images = json.loads(path.read_text())["images"]
    groups, held_back = split_groups(images, "source", 0.4, 3)
    assert len(held_back) == round(0.4 * len(set(groups)))
    for split, part in (("val", held_back), ("train", set(groups) - held_back)):
        own = KeypointPhotos(root, path, split=split, **SPLIT)
        by_name = {i["file_name"]: g for i, g in zip(images, groups, strict=True)}
        assert {by_name[name] for name in own.file_names} <= part


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"val_fraction": 1.5}, r"val_fraction must be in \[0, 1\], got 1\.5"),
        ({"val_fraction": 0.0}, r"split val of .* is empty \(val_fraction=0\.0\)"),
        ({"by": "source"}, r"held_back must have annotations, and perhaps split_by, val_fraction"),
    ],
)
def test_settings_that_hold_nothing_back_are_refused(photos, more, message):
    root, path = photos
    with pytest.raises(ValueError, match=message):
        CropFolder(root, held_back={"annotations": str(path), **SPLIT, **more})
    with pytest.raises(ValueError, match=r"held_back must have annotations"):
        CropFolder(root, held_back={"split_by": "source"})


def test_names_of_another_folder_are_refused(photos):
    root, path = photos
    with pytest.raises(ValueError, match=r"none of the \d+ images that .*notes\.json holds back"):
        CropFolder(root / "sub", held_back={"annotations": str(path), **SPLIT})


def test_smaller_choices_are_part_of_larger_ones(photos):
    root, path = photos
    whole, some, few = (CropFolder(root, limit=n, verify=False).names for n in (None, 40, 10))
    assert (len(some), len(few)) == (40, 10)
    assert set(few) < set(some) < set(whole)
    assert few == [name for name in whole if name in few]
    assert few != whole[:10]
    assert CropFolder(root, limit=10, limit_seed=1, verify=False).names != few
    held_back = {"annotations": str(path), **SPLIT}
    pool = CropFolder(root, held_back=held_back, verify=False).names
    assert set(CropFolder(root, held_back=held_back, limit=10, verify=False).names) < set(pool)
    for limit in (0, NUM + 1):
        with pytest.raises(ValueError, match=rf"limit must be null or 1 to {NUM}, got {limit}"):
            CropFolder(root, limit=limit, verify=False)


def test_configs_reach_the_pool(photos):
    root, path = photos
    given = f"{{annotations: '{path}', split_by: source, val_fraction: 0.4, seed: 3}}"
    pool = ["data=folder", f"data.root={root}", f"data.held_back={given}"]
    few = "data.train.limit=8"
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        configs = [
            compose("pretrain", [*pool, *more])
            for more in ((), (few,), (few, "data.train.limit_seed=1"))
        ]
    names = [instantiate(cfg.data.train).names for cfg in configs]
    assert names[0] == CropFolder(root, held_back={"annotations": str(path), **SPLIT}).names
    assert len(names[1]) == len(names[2]) == 8
    assert names[1] != names[2]
