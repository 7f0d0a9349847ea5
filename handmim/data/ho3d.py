"""HO-3D versions 2 and 3 (Hampali et al. 2020, 2021): hands holding objects, 640 x 480 frames.

OpenGL axes become OpenCV's, the joint order ours, handPose and handTrans rotations and a mesh.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from handmim.data.benchmark_checks import (
    check_ho3d_evaluation,
    check_ho3d_training,
    check_meta,
    has_pose,
)
from handmim.data.datasets import digest_of, files_digest, refuse_empty, split_text
from handmim.data.label_files import check_made_with, file_names, stored_ground_truth, take_of
from handmim.data.samples import box_of_points, crop_map, crop_sample, cut
from handmim.hand.conventions import OPENCV_FROM_OPENGL, ho3d_hand, project_px, rest_wrist
from handmim.hand.io import load_hand_arrays
from handmim.hand.model import HandModel
from handmim.hand.skeleton import CANONICAL_FROM_HO3D
from handmim.images.decode import UnreadableImage, image_head, read_image
from handmim.types import CropSample, HandSample
from handmim.utils.arguments import below_one, one_of
from handmim.utils.files import UnreadableSample
from handmim.utils.findings import Notes, shown, spread, warn_once
from handmim.utils.unpickle import load_pickle

SPLITS = ("train", "val", "all", "evaluation")
CHECKED = 32  # frames whose metas are checked at the start
IMAGE_SUFFIXES = (".png", ".jpg")  # v2 and v3, in the order of the official reader


def read_frames(path: Path) -> list[str]:
    """The frames of train.txt or evaluation.txt, "<sequence>/<id>" each, in order."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {path.parent}: data.root is the unpacked HO3D_v2 or HO3D_v3 "
            "(https://github.com/shreyashampali/ho3d)"
        )
    frames = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    bad = [frame for frame in frames if frame.count("/") != 1]
    if bad or not frames:
        raise ValueError(f"{path}: lines must be '<sequence>/<id>', got {bad[:3] or 'none'}")
    return frames


def split_takes(frames: list[str], split: str, val_fraction: float, seed: int) -> list[str]:
    """Frames of a training split, cut by recording: drawn at random for "val" as long as that
    brings its share nearer to `val_fraction`; one at least is held back, and one at least is not.
    """
    below_one(val_fraction=val_fraction)
    if split == "all":
        return frames
    counts = Counter(take_of(frame.split("/")[0]) for frame in frames)
    takes = sorted(counts)
    held: set[str] = set()
    budget = val_fraction * len(frames)
    for i in np.random.default_rng([seed, len(takes)]).permutation(len(takes)):
        have = sum(counts[t] for t in held)
        nearer = abs(have + counts[takes[i]] - budget) < abs(have - budget)
        first = not held and val_fraction > 0
        if (nearer or first) and len(held) + 1 < len(takes):
            held.add(takes[i])
    return [f for f in frames if (take_of(f.split("/")[0]) in held) == (split == "val")]


def image_of(root: Path, part: str, frame: str) -> Path | None:
    """The image file of a frame; None where there is none."""
    sequence, name = frame.split("/")
    folder = root / part / sequence / "rgb"
    paths = (folder / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def missing_files(root: Path, part: str, frames: Sequence[str]) -> list[str]:
    """Images and metas of listed frames that are not below the dataset's folder."""
    present: dict[tuple[str, str], set[str]] = {}
    missing = []
    for frame in frames:
        sequence, name = frame.split("/")
        for kind, suffixes in (("rgb", IMAGE_SUFFIXES), ("meta", (".pkl",))):
            if (sequence, kind) not in present:
                present[sequence, kind] = set(file_names(root / part / sequence / kind))
            if not any(f"{name}{suffix}" in present[sequence, kind] for suffix in suffixes):
                missing.append(f"{part}/{sequence}/{kind}/{name}")
    return missing


def read_meta(root: Path, part: str, frame: str) -> dict[str, Any]:
    """Labels of a frame. Raises: ValueError for anything but a pickled dict of plain data."""
    sequence, name = frame.split("/")
    path = root / part / sequence / "meta" / f"{name}.pkl"
    meta = load_pickle(path)
    if not isinstance(meta, dict):
        raise ValueError(f"{path} holds a {type(meta).__name__}, a dict is required")
    return meta


class Ho3d(Dataset[HandSample | CropSample]):
    """Labelled crops of one split, or its images grouped by recording.

    "train" and "val" share train.txt, cut by recording; "all" is both; "evaluation" is the official
    one, with vertices where the released ground truth is beside it. A hand's box is its joints in
    the image, or `handBoundingBox`. `grouped` gives unlabelled crops, all cameras of a recording as
    one.
    """

    def __init__(
        self,
        root: str | Path,
        hand_path: str | Path,
        *,
        split: str = "train",
        val_fraction: float = 0.05,
        seed: int = 0,
        image_px: int = 224,
        crop_scale: float = 1.6,
        cache_dir: str | Path = "data/cache",
        grouped: bool = False,
    ) -> None:
        one_of("split", split, SPLITS)
        self.root, self.split, self.image_px = Path(root), split, image_px
        self.crop_scale, self.grouped = crop_scale, grouped
        self.folder = "evaluation" if split == "evaluation" else "train"
        arrays = load_hand_arrays(hand_path)
        check_made_with(self.root, arrays)
        self.hand_sha256 = arrays.sha256
        self.hand = HandModel(arrays)
        self.source = split_text(f"HO-3D ({self.root.name})", split, val_fraction, seed)
        frames = read_frames(self.root / f"{self.folder}.txt")
        stored = stored_ground_truth(root, cache_dir) if split == "evaluation" else None
        if stored is not None and len(stored[0]) != len(frames):
            raise ValueError(
                f"{root}: evaluation_xyz.json has {len(stored[0])} entries, evaluation.txt has "
                f"{len(frames)} frames: they are of different versions"
            )
        self.ground_truth = stored  # joints and vertices
        part = "all" if split == "evaluation" else split
        self.frames = split_takes(frames, part, val_fraction, seed)
        refuse_empty(split, root, len(self.frames), val_fraction)
        missing = missing_files(self.root, self.folder, self.frames)
        if missing:
            text = f"{len(missing)} files of {len(self.frames)} frames of {self.folder}.txt"
            raise FileNotFoundError(f"{text} are not in {self.root}: {shown(missing)}")
        chosen = [self.frames[i] for i in spread(len(self.frames), CHECKED)]
        metas = {frame: read_meta(self.root, self.folder, frame) for frame in chosen}
        first = image_of(self.root, self.folder, self.frames[0])
        head = None if first is None else image_head(first)
        notes = Notes("ho3d", "unpack HO-3D again")
        with notes.guard("labels"):
            if head is not None and split == "evaluation":
                check_ho3d_evaluation(notes, metas, head[:2])
            elif head is not None:  # an unreadable image is counted when it is read
                check_ho3d_training(notes, metas, self.hand, head[:2])
        notes.enforce(f"{self.root} (data.root)")

    def _labels(self, meta: dict[str, Any], index: int) -> dict[str, Any]:
        """Labels of `hand_sample` in the OpenCV camera; none where HO-3D has none."""
        order, given = list(CANONICAL_FROM_HO3D), meta.get("handJoints3D")
        if self.ground_truth is not None:
            joints, verts = (array[index] @ OPENCV_FROM_OPENGL for array in self.ground_truth)
            return {"joints_cam_m": joints[order], "verts_cam_m": verts}
        if self.split == "evaluation":  # the wrist only
            joints = np.zeros((21, 3))
            if given is not None:
                joints[0] = np.asarray(given, np.float64).ravel()[:3] @ OPENCV_FROM_OPENGL
            is_valid = (np.arange(21) == 0) & (given is not None)
            return {"joints_cam_m": joints, "joints_valid": is_valid}
        if meta.get("camMat") is None or not has_pose(meta):
            warn_once(f"frames of {self.root} without hand annotation count as unlabelled")
            return {}
        pose, transl, betas = (
            np.asarray(meta[key], np.float64).ravel()
            for key in ("handPose", "handTrans", "handBeta")
        )
        rotmats, root_m = ho3d_hand(pose, transl, rest_wrist(self.hand.arrays, betas))
        with torch.no_grad():
            mesh = self.hand(*(torch.from_numpy(x).float()[None] for x in (rotmats, betas, root_m)))
        joints = np.asarray(given, np.float64).reshape(-1, 3) @ OPENCV_FROM_OPENGL
        return {
            "rotmats": rotmats,
            "betas": betas,
            "joints_cam_m": joints[order],
            "verts_cam_m": mesh.verts_m[0].numpy(),
        }

    def label_id(self, index: int) -> str:
        """Sequence and frame, as train.txt has them."""
        return self.frames[index]

    def fingerprint(self) -> str:
        """Digest of the frames of this part and of some of their images and labels."""
        chosen = [self.frames[i].split("/") for i in spread(len(self.frames))]
        files = "meta/{}.pkl", "rgb/{}.png", "rgb/{}.jpg"
        names = [
            f"{self.folder}/{seq}/{file.format(name)}" for file in files for seq, name in chosen
        ]
        return digest_of(*self.frames, *(files_digest(self.root, [name]) for name in names))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> HandSample | CropSample:
        frame = self.frames[index]
        path, sample_id = image_of(self.root, self.folder, frame), f"{self.folder}/{frame}"
        if path is None:
            raise UnreadableImage(sample_id, "there is no such image any more")
        image = read_image(path)
        try:
            meta = read_meta(self.root, self.folder, frame)
            check_meta(meta, self.split != "evaluation")
        except (ValueError, TypeError) as error:
            raise UnreadableSample(sample_id, str(error)) from error
        height, width = image.shape[:2]
        K = None if meta.get("camMat") is None else np.asarray(meta["camMat"], np.float64)
        labels = self._labels(meta, index)
        kp2d = None
        if K is not None and "joints_cam_m" in labels and "joints_valid" not in labels:
            kp2d = project_px(labels["joints_cam_m"], K)
        box: NDArray[np.floating] = np.array([0, 0, width, height], np.float64)
        if meta.get("handBoundingBox") is not None:
            box = np.asarray(meta["handBoundingBox"], np.float64)
        elif kp2d is not None:
            box = box_of_points(kp2d)
        crop_from_img = crop_map(box, self.crop_scale, self.image_px)
        if self.grouped:
            crop = cut(image, crop_from_img, self.image_px)
            return CropSample(crop, sample_id, group=f"ho3d {take_of(frame.split('/')[0])}")
        return crop_sample(
            image,
            crop_from_img,
            self.image_px,
            sample_id,
            joint_convention="ho3d",
            K_px=K,
            kp2d_px=kp2d,
            **labels,
        )
