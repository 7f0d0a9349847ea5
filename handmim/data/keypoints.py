"""Photos with 21 hand keypoints in a COCO-style JSON file, 2D with or without 3D."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from handmim.contracts import HandSample
from handmim.data.cropping import box_of_points, carry_intrinsics, carry_points, crop_map, cut
from handmim.data.decode import read_rgb
from handmim.data.fingerprint import digest_of, files_digest
from handmim.data.samples import hand_sample
from handmim.hand.skeleton import NUM_JOINTS

SPLITS = ("train", "val", "all")


def keypoint_scores(note: dict[str, Any]) -> NDArray[np.float64] | None:
    """[21] confidences in [0, 1] of an annotation's 2D keypoints; None where it gives none.

    Raises: ValueError for anything else.
    """
    scores = note.get("keypoint_scores")
    if scores is None:
        return None
    try:
        values = np.asarray(scores, np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (NUM_JOINTS,) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"annotation {note.get('id', note['image_id'])}: keypoint_scores must be {NUM_JOINTS} "
            f"numbers in [0, 1], got {str(scores)[:80]} (data/README.md; leave the field out where "
            "confidences are not known)"
        )
    return values


def _numbered(names: Iterable[str]) -> list[str]:
    """Names told apart: the second of one name is name#2."""
    count: Counter[str] = Counter()
    told = []
    for name in names:
        count[name] += 1
        told.append(name if count[name] == 1 else f"{name}#{count[name]}")
    return told


class KeypointPhotos(Dataset[HandSample]):
    """Square crops about the keypoints, in canonical order (wrist, thumb .. little).

    Annotations follow COCO: `images` with id, file_name and perhaps the split field; `annotations`
    with image_id, `keypoints` (21 x (x px, y px, visibility)) and perhaps

    - `keypoints_3d`: 21 x 3 metres, x right, y down, z away from the camera, any origin; or 21 x 4
      with a visibility;
    - `K`: 3 x 3 intrinsics in px, when the 3D points are in camera coordinates;
    - `keypoint_scores`: 21 confidences of the 2D keypoints in [0, 1], as detectors give them;
    - `handedness`: right unless it begins with an l;
    - `category_id`: what the hand shows, where there are several categories.

    Args:
        root: folder of the pictures.
        annotations: JSON file.
        split: "train", "val" or "all".
        split_by: field of `images` whose values stay together; images count alone where they lack
            it.
        val_fraction: share of the groups that goes to "val".
        seed: of the split.
        crop_scale: side of the crop relative to the keypoints' box.
        image_px: side of the stored crop.
        in_memory: keep every crop once it is cut (25 kB each at 64 px, 40 kB at 96 px, in every
            loader process) instead of decoding its photo again each time.
    Raises: FileNotFoundError, or ValueError for annotations of another form.
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
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
        self.root, self.crop_scale, self.image_px = Path(root), crop_scale, image_px
        self._kept: dict[int, HandSample] | None = {} if in_memory else None
        self.annotations = path = Path(annotations)
        if not path.is_file():
            raise FileNotFoundError(
                f"no annotations at {path} (probe or data: annotations=FILE.json)"
            )
        content = json.loads(path.read_text())
        missing = {"images", "annotations"} - set(content)
        if missing:
            raise ValueError(f"{path.name} lacks {sorted(missing)}: not a COCO-style keypoint file")
        images = {image["id"]: image for image in content["images"]}
        absent = [
            i["file_name"] for i in images.values() if not (self.root / i["file_name"]).is_file()
        ]
        if absent:
            raise FileNotFoundError(
                f"{len(absent)} annotated pictures are not in {root}: {absent[:5]} (file_name is "
                "relative to data.root)"
            )
        groups = {key: str(image.get(split_by, key)) for key, image in images.items()}
        chosen = self._groups_of(split, sorted(set(groups.values())), val_fraction, seed)
        self.items: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for note in content["annotations"]:
            image = images[note["image_id"]]
            if len(note["keypoints"]) != 3 * NUM_JOINTS:
                raise ValueError(
                    f"annotation {note.get('id', note['image_id'])} of {path.name} has"
                    f" {len(note['keypoints']) / 3:g} keypoints, wanted {NUM_JOINTS}"
                )
            keypoint_scores(note)
            if groups[image["id"]] in chosen:
                self.items.append((image, note))
        self._label_ids = _numbered(image["file_name"] for image, _ in self.items)
        self.source = f"{path.name}, part {split}"
        if split != "all":
            self.source += f", val_fraction {val_fraction:g} by {split_by}, split seed {seed}"
        self._has_classes = len({note.get("category_id") for note in content["annotations"]}) > 1
        if not self.items:
            raise ValueError(f"split {split} of {path.name} is empty (val_fraction={val_fraction})")

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
        return len(self.items)

    def __getitem__(self, index: int) -> HandSample:
        if self._kept is None:
            return self._cut(index)
        if index not in self._kept:
            self._kept[index] = self._cut(index)
        return self._kept[index]

    def class_of(self, index: int) -> int | None:
        """The annotation's `category_id`; None in a file that does not tell several apart."""
        return self.items[index][1].get("category_id") if self._has_classes else None

    def label_id(self, index: int) -> str:
        """The picture's file name; with #2, #3 for its further hands, in the file's order."""
        return self._label_ids[index]

    def _cut(self, index: int) -> HandSample:
        image_note, note = self.items[index]
        path = self.root / image_note["file_name"]
        picture = read_rgb(path)
        if picture is None:
            raise ValueError(f"{path} cannot be read: remove it from the annotations")
        keypoints = np.asarray(note["keypoints"], np.float64).reshape(NUM_JOINTS, 3)
        valid = keypoints[:, 2] > 0
        kp_px = keypoints[:, :2].copy()
        height, width = picture.shape[:2]
        whole = np.array([0.0, 0.0, width, height])
        box = box_of_points(kp_px[valid]) if valid.any() else whole
        kp_px[~valid] = (box[:2] + box[2:]) / 2
        crop_from_img = crop_map(box, self.crop_scale, self.image_px)
        K, joints, joints_valid = note.get("K"), note.get("keypoints_3d"), None
        if joints is not None:
            joints = np.asarray(joints, np.float64)
            if joints.shape == (NUM_JOINTS, 4):
                joints, joints_valid = joints[:, :3], joints[:, 3] > 0
        return hand_sample(
            cut(picture, crop_from_img, self.image_px),
            image_note["file_name"],
            is_right=not str(note.get("handedness", "right")).lower().startswith("l"),
            K_crop_px=None if K is None else carry_intrinsics(crop_from_img, np.asarray(K)),
            kp2d_crop_px=carry_points(crop_from_img, kp_px),
            kp2d_valid=valid,
            kp2d_conf=keypoint_scores(note),
            # joints that are hidden in the picture keep their 3D label
            joints_cam_m=joints,
            joints_valid=joints_valid,
        )
