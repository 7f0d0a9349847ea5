"""A dataset's fingerprint: the same wherever its files lie, another for other files."""

import copy
import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from handmim.data.crops import CropFolder
from handmim.data.datasets import MixedHands, fingerprint_of
from handmim.data.freihand import FreiHand
from handmim.data.ho3d import Ho3d
from handmim.data.keypoints import KeypointPhotos
from handmim.data.packed import PackedCrops
from handmim.data.packing import pack_crops
from handmim.data.synthetic import SyntheticHands

SCENE = {"image_px": 24, "view": "cone", "background": "studio", "objects": 0.0, "occluders": 0.0}


def crops(folder, seed: int = 0):
    rng = np.random.default_rng(seed)
    (folder / "sub").mkdir(parents=True)
    for i in range(5):
        image = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "sub" / f"{i}.png"), image)
    return folder


def keypoints(folder, shift: float = 0.0):
    crops(folder)
    hand = [v for i in range(21) for v in (2.0 + shift + (i % 5) * 3, 2.0 + (i // 5) * 3, 2)]
    images = [{"id": i, "file_name": f"sub/{i}.png", "width": 20, "height": 20} for i in range(4)]
    notes = [{"id": i, "image_id": i, "keypoints": hand} for i in range(4)]
    (folder / "notes.json").write_text(json.dumps({"images": images, "annotations": notes}))
    return KeypointPhotos(folder, folder / "notes.json", split="all")


def test_a_folder_may_move_but_not_change(tmp_path):
    first = CropFolder(crops(tmp_path / "a"))
    moved = CropFolder(shutil.copytree(tmp_path / "a", tmp_path / "moved"))
    other = CropFolder(crops(tmp_path / "b", seed=1))
    assert len(first) == len(other)
    assert first.fingerprint() == moved.fingerprint() != other.fingerprint()
    assert copy.deepcopy(first).fingerprint() == first.fingerprint()
    (tmp_path / "moved" / "sub" / "0.png").rename(tmp_path / "moved" / "sub" / "00.png")
    assert CropFolder(tmp_path / "moved").fingerprint() != first.fingerprint()


def test_a_packed_file_is_known_by_its_content(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        pack_crops(crops(tmp_path / name, seed), tmp_path / f"{name}.crops", image_px=20)
    shutil.copy(tmp_path / "a.crops", tmp_path / "moved.crops")
    first, other, moved = (PackedCrops(tmp_path / f"{n}.crops") for n in ("a", "b", "moved"))
    assert first.fingerprint() == moved.fingerprint() != other.fingerprint()


def test_photos_are_known_by_annotations_and_images(tmp_path):
    first, other = keypoints(tmp_path / "a"), keypoints(tmp_path / "b", shift=0.5)
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    moved = KeypointPhotos(tmp_path / "moved", tmp_path / "moved" / "notes.json", split="all")
    assert first.fingerprint() == moved.fingerprint() != other.fingerprint()
    part = KeypointPhotos(tmp_path / "a", tmp_path / "a" / "notes.json", split="train")
    assert part.fingerprint() != first.fingerprint()


@pytest.mark.parametrize("layout", ["freihand", "ho3d_v3"])
def test_benchmarks_are_known_by_labels_and_images(layout, request, hand_path, tmp_path):
    tree = request.getfixturevalue(f"{layout}_tree")
    moved = shutil.copytree(tree, tmp_path / "moved")
    make = FreiHand if layout == "freihand" else Ho3d
    how = {"cache_dir": tmp_path / "cache", "val_fraction": 0.3}
    hand = hand_path
    first, again = make(tree, hand, **how), make(moved, hand, **how)
    part = make(tree, hand, split="val", **how)
    assert first.fingerprint() == again.fingerprint() != part.fingerprint()
    image_path = next(p for p in sorted(moved.rglob("rgb/*.*")) if again_holds(again, p))
    image_path.write_bytes(image_path.read_bytes() + b"0")
    assert make(moved, hand, **how).fingerprint() != first.fingerprint()


def again_holds(dataset, path) -> bool:
    if isinstance(dataset, FreiHand):
        return path.parent.parent.name == "training" and int(path.stem) == dataset.ids[0]
    return f"{path.parent.parent.name}/{path.stem}" == dataset.frames[0]


def test_renders_mixtures_and_subsets_have_one(tmp_path, hand_path):
    how = {"num_workers": 0}
    first = SyntheticHands(hand_path, "train", 2, tmp_path / "a", SCENE, **how)
    other = SyntheticHands(hand_path, "train", 2, tmp_path / "a", SCENE, seed=1, **how)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = SyntheticHands(hand_path, "train", 2, tmp_path / "b", SCENE, **how)
    assert first.fingerprint() == moved.fingerprint() != other.fingerprint()
    mixed = [MixedHands({"x": first, "y": part}).fingerprint() for part in (first, moved, other)]
    assert mixed[0] == mixed[1] != mixed[2]
    assert fingerprint_of(torch.utils.data.Subset(first, [0])) == first.fingerprint()
    assert fingerprint_of(torch.utils.data.TensorDataset(torch.zeros(2))) is None
