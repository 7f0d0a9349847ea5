"""Photos with 21 hand keypoints in a COCO-style JSON file, 2D with or without 3D."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from handmim.data.annotation_checks import check_annotations
from handmim.data.annotations import Annotations, read_annotations
from handmim.data.datasets import digest_of, files_digest, refuse_empty, split_text
from handmim.data.samples import box_of_points, crop_map, crop_sample
from handmim.hand.conventions import CROP_SCALE
from handmim.images.decode import read_image
from handmim.types import HandSample
from handmim.utils.arguments import one_of, shares
from handmim.utils.findings import Notes

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "all")


def read_photos(root: Path, path: Path, notes: Notes, split_by: str | None) -> Annotations:
    """Read the annotations of images below `root`, and note their faults; `split_by` is the field
    of `images` by which they are split. Raises: ValueError for a file of another form, or where no
    image has a field other than the default."""
    content = read_annotations(path, notes)
    used = sorted({hand.image for hand in content.hands})
    names = [content.images[i]["file_name"] for i in used]
    missing = [name for name in names if not (root / name).is_file()]
    text = f"images with hands are not in {root}"
    notes.count(missing, len(names), "images", text, "file_name is relative to this folder")
    if split_by is not None:
        stated = [str(i[split_by]) for i in content.images if i.get(split_by) is not None]
        num, groups = len(content.images), len(set(stated))
        if not stated and split_by != "subject":
            raise ValueError(f"none of {num} images has the field split_by={split_by!r}")
        text = f"{groups} values of {split_by!r}; {num - len(stated)} of {num} images have none"
        fix = f"state {split_by!r} in each of `images`, or images of one person fall on both sides"
        notes.judge(len(stated) == num and groups > 1, "subjects", text, fix, bad="warning")
    if content.hands and not missing:
        check_annotations(content, root, notes)
    return content


def split_groups(
    images: Sequence[Mapping[str, Any]], split_by: str, val_fraction: float, seed: int
) -> tuple[list[str], set[str]]:
    """The group of each entry of `images`, and the groups that are held back. An image without the
    field is a group of its own, with the other entries of its file. Raises: ValueError."""
    shares(val_fraction=val_fraction)
    alone: dict[str, str] = {}
    groups = []
    for image in images:
        own = alone.setdefault(image["file_name"], str(image["id"]))
        groups.append(own if image.get(split_by) is None else str(image[split_by]))
    chosen = sorted(set(groups))
    order = np.random.default_rng(seed).permutation(len(chosen))
    return groups, {chosen[i] for i in order[: round(val_fraction * len(chosen))]}


def held_back_images(
    annotations: str | Path, split_by: str = "subject", val_fraction: float = 0.3, seed: int = 0
) -> dict[str, bool]:
    """Whether each image, by `file_name`, is of a group that `KeypointPhotos` with split="val" has
    a hand of; some of its images may have none. Raises: ValueError for a file of another form, or
    where nothing is held back."""
    notes = Notes("keypoints")
    content = read_annotations(Path(annotations), notes)
    notes.enforce(str(annotations))
    groups, held_back = split_groups(content.images, split_by, val_fraction, seed)
    tested = {groups[hand.image] for hand in content.hands} & held_back
    refuse_empty("val", annotations, len(tested), val_fraction)
    found: dict[str, bool] = {}
    for image, group in zip(content.images, groups, strict=True):
        name = os.path.normpath(image["file_name"])
        found[name] = found.get(name, False) or group in tested
    return found


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
        crop_scale: float = CROP_SCALE,
        image_px: int = 96,
        in_memory: bool = False,
    ) -> None:
        one_of("split", split, SPLITS)
        self.root, self.crop_scale, self.image_px = Path(root), crop_scale, image_px
        self._crops: dict[int, HandSample] | None = {} if in_memory else None
        self.annotations = path = Path(annotations)
        notes = Notes("keypoints")
        content = read_photos(self.root, path, notes, None if split == "all" else split_by)
        notes.enforce(str(path))
        sides = [finding.text for finding in notes.findings if finding.name.endswith("side")]
        log.info("%s, %s", path.name, "; ".join(sides))
        groups, held_back = split_groups(content.images, split_by, val_fraction, seed)
        parts = {"train": set(groups) - held_back, "val": held_back, "all": set(groups)}
        self.source = split_text(path.name, split, val_fraction, seed, split_by)
        self.hands = [hand for hand in content.hands if groups[hand.image] in parts[split]]
        self.file_names = [content.images[hand.image]["file_name"] for hand in self.hands]
        self._label_ids = []
        count: Counter[str] = Counter()
        for name in self.file_names:
            count[name] += 1
            self._label_ids.append(name if count[name] == 1 else f"{name}#{count[name]}")
        self._has_classes = len({hand.category for hand in content.hands}) > 1
        refuse_empty(split, path, len(self.hands), val_fraction)

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

    def class_of(self, index: int) -> Any:
        """The annotation's `category_id`; None in a file that has one category only."""
        return self.hands[index].category if self._has_classes else None

    def label_id(self, index: int) -> str:
        """The image's file name; with #2, #3 for its further hands, in the file's order."""
        return self._label_ids[index]

    def __getitem__(self, index: int) -> HandSample:
        if self._crops is not None and index in self._crops:
            return self._crops[index]
        hand, name = self.hands[index], self.file_names[index]
        image = read_image(self.root / name)
        valid = hand.keypoints[:, 2] > 0
        kp_px = hand.keypoints[:, :2].copy()
        height, width = image.shape[:2]
        box = box_of_points(kp_px[valid]) if valid.any() else np.array([0.0, 0.0, width, height])
        kp_px[~valid] = (box[:2] + box[2:]) / 2
        crop_from_img = crop_map(box, self.crop_scale, self.image_px)
        sample = crop_sample(
            image, crop_from_img, self.image_px, name, kp2d_px=kp_px, **hand.labels
        )
        if self._crops is not None:
            self._crops[index] = sample
        return sample
