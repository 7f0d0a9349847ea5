"""Photos with 21 hand keypoints in a COCO-style JSON file, 2D with or without 3D."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from handmim.data.annotation_checks import check_annotations
from handmim.data.annotations import Annotations, read_annotations
from handmim.data.datasets import digest_of, files_digest, refuse_empty
from handmim.data.samples import box_of_points, crop_map, crop_sample
from handmim.images.decode import read_image
from handmim.types import HandSample
from handmim.utils.arguments import one_of
from handmim.utils.findings import Notes

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "all")


def group_images(annotations: Annotations, split_by: str) -> list[str]:
    """The value of a field of `images` for every image, whose hands stay on one side of a split;
    an image without it is a group of its own, together with the other entries of its file."""
    alone: dict[str, str] = {}
    groups = []
    for image in annotations.images:
        own = alone.setdefault(image["file_name"], str(image["id"]))
        stated = image.get(split_by)
        groups.append(own if stated is None else str(stated))
    return groups


def check_groups(annotations: Annotations, split_by: str, notes: Notes) -> None:
    """Note images that lack the field by which a file is split. Raises: ValueError where no image
    has a field other than the default."""
    stated = [str(i[split_by]) for i in annotations.images if i.get(split_by) is not None]
    num, groups = len(annotations.images), len(set(stated))
    if not stated and split_by != "subject":
        raise ValueError(f"none of {num} images has the field split_by={split_by!r}")
    text = f"{groups} values of {split_by!r}; {num - len(stated)} of {num} images have none"
    fix = f"without {split_by!r} in each of `images`, images of one person fall on both sides of "
    fix += "the split (data.split_by names another field)"
    notes.judge(len(stated) == num and groups > 1, "subjects", text, fix, bad="warning")


def missing_images(annotations: Annotations, root: Path) -> list[str]:
    """File names of images with hands that are not below the folder."""
    used = {hand.image for hand in annotations.hands}
    names = [annotations.images[i]["file_name"] for i in sorted(used)]
    return [name for name in names if not (root / name).is_file()]


def _numbered(names: Iterable[str]) -> list[str]:
    """Distinct names: the second of one name is name#2."""
    count: Counter[str] = Counter()
    numbered = []
    for name in names:
        count[name] += 1
        numbered.append(name if count[name] == 1 else f"{name}#{count[name]}")
    return numbered


class KeypointPhotos(Dataset[HandSample]):
    """Square crops about the keypoints, in canonical order (wrist, thumb .. little).

    data/README.md lists the fields. The whole file is checked at the start: errors refuse it,
    warnings are logged. Images of one value of `split_by` stay together; `val_fraction` is of these
    groups. `in_memory` keeps every crop (25 kB at 64 px) in every loader process.
    """

    def __init__(
        self,
        root: str | Path,
        annotations: str | Path,
        *,
        split: str = "train",
        split_by: str = "subject",
        val_fraction: float = 0.3,
        seed: int = 0,
        crop_scale: float = 1.45,
        image_px: int = 96,
        in_memory: bool = False,
    ) -> None:
        one_of("split", split, SPLITS)
        self.root, self.crop_scale, self.image_px = Path(root), crop_scale, image_px
        self._crops: dict[int, HandSample] | None = {} if in_memory else None
        self.annotations = path = Path(annotations)
        notes = Notes("keypoints")
        content = read_annotations(path, notes)
        missing = missing_images(content, self.root)
        if missing:
            text = f"{len(missing)} annotated images are not in {self.root}: {missing[:5]}"
            raise FileNotFoundError(f"{text} (file_name is relative to root)")
        check_annotations(content, self.root, notes)
        if split != "all":
            check_groups(content, split_by, notes)
        notes.enforce(str(path))
        log.info("%s, %s", path.name, notes.text_of("side"))
        groups = group_images(content, split_by)
        chosen = self._groups_of(split, sorted(set(groups)), val_fraction, seed)
        self.hands = [hand for hand in content.hands if groups[hand.image] in chosen]
        self.file_names = [content.images[hand.image]["file_name"] for hand in self.hands]
        self._label_ids = _numbered(self.file_names)
        self.source = f"{path.name}, part {split}"
        if split != "all":
            self.source += f", val_fraction {val_fraction:g} by {split_by}, split seed {seed}"
        self._has_classes = len({hand.category for hand in content.hands}) > 1
        refuse_empty(split, path, len(self.hands), val_fraction)

    @staticmethod
    def _groups_of(split: str, groups: list[str], val_fraction: float, seed: int) -> set[str]:
        if split == "all":
            return set(groups)
        order = np.random.default_rng(seed).permutation(len(groups))
        num_val = round(val_fraction * len(groups))
        picked = order[:num_val] if split == "val" else order[num_val:]
        return {groups[i] for i in picked}

    def fingerprint(self) -> str:
        """Digest of the annotations and of the images of this part, wherever they lie."""
        names = list(dict.fromkeys(label.partition("#")[0] for label in self._label_ids))
        content = self.annotations.read_bytes()
        return digest_of(content, *self._label_ids, files_digest(self.root, names))

    def __len__(self) -> int:
        return len(self.hands)

    def __getstate__(self) -> dict[str, Any]:
        # every process keeps its own
        return self.__dict__ | {"_crops": None if self._crops is None else {}}

    def __getitem__(self, index: int) -> HandSample:
        if self._crops is None:
            return self._cut(index)
        if index not in self._crops:
            self._crops[index] = self._cut(index)
        return self._crops[index]

    def class_of(self, index: int) -> Any:
        """The annotation's `category_id`; None in a file that has one category only."""
        return self.hands[index].category if self._has_classes else None

    def label_id(self, index: int) -> str:
        """The image's file name; with #2, #3 for its further hands, in the file's order."""
        return self._label_ids[index]

    def _cut(self, index: int) -> HandSample:
        hand, name = self.hands[index], self.file_names[index]
        image = read_image(self.root / name)
        valid = hand.keypoints[:, 2] > 0
        kp_px = hand.keypoints[:, :2].copy()
        height, width = image.shape[:2]
        whole = np.array([0.0, 0.0, width, height])
        box = box_of_points(kp_px[valid]) if valid.any() else whole
        kp_px[~valid] = (box[:2] + box[2:]) / 2
        return crop_sample(
            image,
            crop_map(box, self.crop_scale, self.image_px),
            self.image_px,
            name,
            kp2d_px=kp_px,
            **hand.labels,
        )
