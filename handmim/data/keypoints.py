"""Photos with 21 hand keypoints in a COCO-style JSON file, 2D with or without 3D."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from handmim.contracts import HandSample
from handmim.data.crops import read_rgb

NUM_JOINTS, NUM_VERTS = 21, 778
SPLITS = ("train", "val", "all")


class KeypointPhotos(Dataset[HandSample]):
    """Square crops about the keypoints, in canonical order (wrist, thumb .. little); left hands are
    mirrored.

    Annotations follow COCO: `images` with id, file_name and perhaps the split field; `annotations`
    with image_id, `keypoints` (21 x (x px, y px, visibility)), perhaps `keypoints_3d` (21 x 3
    metres: x right, y down, z away from the camera; any origin) and `handedness`.

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
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
        self.root, self.crop_scale, self.image_px = Path(root), crop_scale, image_px
        path = Path(annotations)
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
                f"{len(absent)} annotated pictures are not in {root}: {absent[:5]}"
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
            if groups[image["id"]] in chosen:
                self.items.append((image, note))
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

    def __len__(self) -> int:
        return len(self.items)

    def _crop(self, image: NDArray[np.uint8], kp_px: NDArray[np.floating]) -> tuple[Any, Any]:
        """Square crop about the points, and the points in its pixels; continued by reflection."""
        low, high = kp_px.min(axis=0), kp_px.max(axis=0)
        centre, side = (low + high) / 2, max(float((high - low).max()) * self.crop_scale, 4.0)
        corner, scale = centre - side / 2, self.image_px / side
        points = (kp_px - corner) * scale
        if scale < 1:  # warping interpolates between four pixels only: shrink by area before
            height, width = image.shape[:2]
            new = max(1, round(width * scale)), max(1, round(height * scale))
            image = cv2.resize(image, new, interpolation=cv2.INTER_AREA)
            corner, scale = corner * scale, 1.0
        # crop = (image - corner) * scale on [0, W] coordinates; OpenCV's pixel centres lie half a
        # pixel lower
        offset = -corner * scale + 0.5 * scale - 0.5
        warp = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]])
        size = (self.image_px, self.image_px)
        crop = cv2.warpAffine(
            image, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        return crop, points

    def __getitem__(self, index: int) -> HandSample:
        image_note, note = self.items[index]
        image = read_rgb(self.root / image_note["file_name"])
        if image is None:
            raise ValueError(f"{self.root / image_note['file_name']} cannot be read")
        keypoints = np.asarray(note["keypoints"], np.float64).reshape(NUM_JOINTS, 3)
        valid = keypoints[:, 2] > 0
        kp_px = keypoints[:, :2].copy()
        kp_px[~valid] = kp_px[valid].mean(axis=0) if valid.any() else 0.0
        joints = np.zeros((NUM_JOINTS, 3))
        has_3d = "keypoints_3d" in note
        if has_3d:
            joints = np.asarray(note["keypoints_3d"], np.float64).reshape(NUM_JOINTS, 3)
        if str(note.get("handedness", "right")).lower().startswith("l"):
            image = np.ascontiguousarray(image[:, ::-1])
            kp_px[:, 0] = image.shape[1] - kp_px[:, 0]
            joints = joints * [-1, 1, 1]
        crop, kp_crop_px = self._crop(image, kp_px)
        return HandSample(
            image=crop,
            sample_id=image_note["file_name"],
            K_crop_px=np.zeros((3, 3), np.float32),
            has_K=False,
            kp2d_crop_px=kp_crop_px.astype(np.float32),
            kp2d_valid=valid,
            joints_cam_m=joints.astype(np.float32),
            joints_valid=np.full(NUM_JOINTS, has_3d),  # occluded joints keep their 3D label
            verts_cam_m=np.zeros((NUM_VERTS, 3), np.float32),
            has_verts=False,
            rotmats=np.tile(np.eye(3, dtype=np.float32), (16, 1, 1)),
            betas=np.zeros(10, np.float32),
            has_mano=False,
        )
