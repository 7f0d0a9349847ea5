"""HO-3D versions 2 and 3 (Hampali et al. 2020, 2021): hands holding objects, 640 x 480 frames.

OpenGL axes become OpenCV's, the joint order ours, handPose and handTrans rotations and a mesh.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from handmim.data import label_checks as checks
from handmim.data.datasets import digest_of, files_digest, refuse_empty, split_text
from handmim.data.label_files import check_made_with, file_names, stored_ground_truth, take_of
from handmim.data.samples import box_of_points, crop_map, crop_sample, cut
from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.conventions import (
    CROP_SCALE,
    OPENCV_FROM_OPENGL,
    ho3d_hand,
    project_px,
    rest_wrist,
)
from handmim.hand.io import load_hand_arrays
from handmim.hand.model import HandModel
from handmim.hand.skeleton import CANONICAL_FROM_HO3D, FINGERTIP_VERTS
from handmim.images.decode import UnreadableImage, image_head, read_image
from handmim.types import CropSample, HandSample
from handmim.utils.arguments import below_one, one_of
from handmim.utils.files import UnreadableSample
from handmim.utils.findings import Level, Notes, spread, warn_once
from handmim.utils.unpickle import UnsafePickleError, load_pickle

Array = NDArray[np.float64]
Meta = dict[str, Any]  # labels of a frame
Metas = dict[str, Meta]  # by frame
Size = tuple[int, int]  # width and height of images

SPLITS = ("train", "val", "all", "evaluation")
CHECKED = 32  # frames whose metas are checked at the start
POSE = {"handPose": (48,), "handTrans": (3,), "handBeta": (10,), "handJoints3D": (21, 3)}
USUAL_M = 0.003  # of joints posed by the labels, off the given
BOX_SLACK = 0.2  # of the box's side, by which a wrist may be outside of it
SEEN = 0.8  # share of joints inside of the images
IMAGE_SUFFIXES = (".png", ".jpg")  # v2 and v3, in the order of the official reader


def read_frames(path: Path) -> list[str]:
    """The frames of train.txt or evaluation.txt, "<sequence>/<id>" each, in order."""
    if not path.is_file():
        source = "the unpacked HO3D_v2 or HO3D_v3 (https://github.com/shreyashampali/ho3d)"
        raise FileNotFoundError(f"no {path.name} in {path.parent}: data.root is {source}")
    frames = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    bad = [frame for frame in frames if frame.count("/") != 1]
    if bad or not frames:
        raise ValueError(f"{path}: lines must be '<sequence>/<id>', got {bad[:3] or 'none'}")
    return frames


def split_takes(frames: list[str], split: str, val_fraction: float, seed: int) -> list[str]:
    """Frames of a training split, cut by recording: drawn for "val" as long as that brings its
    share nearer to `val_fraction`; one at least is held back, and one at least is not."""
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


def note_files(notes: Notes, root: Path, part: str, frames: Sequence[str]) -> None:
    """Note images and metas of listed frames that are not below the dataset's folder."""
    present: dict[tuple[str, str], set[str]] = {}
    missing = []
    for frame in frames:
        sequence, name = frame.split("/")
        for kind, suffixes in (("rgb", IMAGE_SUFFIXES), ("meta", (".pkl",))):
            if (sequence, kind) not in present:
                present[sequence, kind] = set(file_names(root / part / sequence / kind))
            if not any(f"{name}{suffix}" in present[sequence, kind] for suffix in suffixes):
                missing.append(f"{part}/{sequence}/{kind}/{name}")
    text = f"images and metas of frames of {part}.txt are not in {root}"
    notes.count(missing, 2 * len(frames), "files", text)


def read_meta(root: Path, part: str, frame: str) -> Meta:
    """Labels of a frame. Raises: ValueError for anything but a pickled dict of plain data."""
    sequence, name = frame.split("/")
    path = root / part / sequence / "meta" / f"{name}.pkl"
    meta = load_pickle(path)
    if not isinstance(meta, dict):
        raise ValueError(f"{path} holds a {type(meta).__name__}, a dict is required")
    return meta


def note_metas(
    notes: Notes, folder: Path, frames: Sequence[str], model: HandModel | None, size_px: Size | None
) -> Metas:
    """Metas of a part's folder that can be read, by frame; notes the others, and what is wrong with
    their labels. No model leaves out what needs the hand, no size of the images all of that."""
    metas: Metas = {}
    for frame in frames:
        with notes.guard("meta"), suppress(FileNotFoundError):  # noted already
            try:
                metas[frame] = read_meta(folder.parent, folder.name, frame)
            except UnsafePickleError as error:
                notes.error("pickle", str(error), f"delete it and {notes.fix}")
    notes.ok("meta", f"{folder.name}: {len(metas)} metas checked are plain data")
    with notes.guard("labels"):
        if size_px is not None and folder.name == "evaluation":
            _note_evaluation(notes, list(metas.values()), size_px)
        elif size_px is not None:
            _note_training(notes, metas, model, size_px)
    return metas


def _note_training(notes: Notes, metas: Metas, model: HandModel | None, size_px: Size) -> None:
    nameless = [frame for frame, meta in metas.items() if not _has_pose(meta)]
    text = "checked frames have no hand annotation (None fields)"
    fix = f"they count as unlabelled; the genuine lists have none: {notes.fix}"
    notes.count(nameless, len(metas), "none", text, fix, "warning")
    known = [meta for meta in metas.values() if _has_pose(meta)]
    if not known:
        return
    labels = {key: _stacked(known, key, shape) for key, shape in POSE.items()}
    is_finite = checks.finite(notes, labels)
    pose, transl, betas, joints = (values[is_finite] for values in labels.values())
    joints = checks.settle_joints(notes, joints, "ho3d", checks.OPENGL, "handJoints3D")
    if model is not None:
        with notes.guard("residual"):
            rotmats = rotvec_to_matrix(pose.reshape(-1, 16, 3))
            mesh = checks.posed(model, rotmats, betas, transl)
            tips = mesh.verts_m[:, list(FINGERTIP_VERTS["ho3d"])]
            chain = torch.cat([mesh.chain_joints_m, tips], dim=1).double().numpy()
            ours = chain[:, list(CANONICAL_FROM_HO3D)]
            if np.median(ours[..., 2]) > 0:  # noted for the joints already
                ours = ours @ OPENCV_FROM_OPENGL
            posing = f"posing {model.name} by handPose and handBeta misses the given joints"
            placed = "" if notes.failed("unit") else "joints placed by handTrans"
            fix = checks.OTHER_HAND + notes.fix
            checks.note_posing(notes, ours, joints, posing, USUAL_M, fix, placed)
    good = [meta for meta, is_good in zip(known, is_finite, strict=True) if is_good]
    K = _cameras(notes, good, size_px, "train")
    if K is not None:
        px = project_px(joints @ OPENCV_FROM_OPENGL, K)
        inside = float(((px >= 0) & (px <= size_px)).all(axis=2).mean())
        text = f"{inside:.0%} of the joints fall into the images by camMat"
        notes.judge(inside >= SEEN, "projection", text)


def _note_evaluation(notes: Notes, metas: list[Meta], size_px: Size) -> None:
    given = [meta for meta in metas if meta.get("handBoundingBox") is not None]
    text = f"{len(given)} of {len(metas)} checked evaluation frames have a handBoundingBox"
    fix = f"without it the whole image is cropped: {notes.fix}"
    notes.judge(len(given) == len(metas), "box", text, fix)
    if not given:
        return
    K = _cameras(notes, given, size_px, "evaluation")
    boxes = _stacked(given, "handBoundingBox", (2, 2))
    exchanged = (boxes[:, 1] <= boxes[:, 0]).any(axis=1)
    outside = ((boxes < -1) | (boxes > np.array(size_px) + 1)).any(axis=(1, 2))
    text = f"of {len(given)} boxes {outside.sum()} reach out of the image, "
    text += f"{exchanged.sum()} have their corners exchanged"
    fix = f"handBoundingBox is x0, y0, x1, y1 in pixels: {notes.fix}"
    bad: Level = "error" if exchanged.any() else "warning"
    notes.judge(not (exchanged | outside).any(), "box", text, fix, bad=bad)
    if K is None or exchanged.any() or any(meta.get("handJoints3D") is None for meta in given):
        return
    wrists = np.stack([np.asarray(m["handJoints3D"], np.float64).ravel()[:3] for m in given])
    wrists = checks.settle_axes(notes, wrists[:, None], checks.OPENGL, "the given wrist")
    px = project_px(wrists @ OPENCV_FROM_OPENGL, K)[:, 0]
    slack = BOX_SLACK * (boxes[:, 1] - boxes[:, 0])
    is_near = ((px >= boxes[:, 0] - slack) & (px <= boxes[:, 1] + slack)).all(axis=1)
    text = f"{is_near.mean():.0%} of the given wrists fall into or near their box by camMat"
    notes.judge(float(is_near.mean()) >= SEEN, "wrist", text)


def _cameras(notes: Notes, metas: list[Meta], size_px: Size, part: str) -> Array | None:
    """[n, 3, 3] intrinsics where every meta has plausible ones."""
    missing = sum(meta.get("camMat") is None for meta in metas)
    if missing:
        notes.error("k", f"{missing} of {len(metas)} metas have no camMat")
        return None
    K = _stacked(metas, "camMat", (3, 3))
    return K if checks.note_cameras(notes, K, size_px, f"{part}: camMat") else None


def _stacked(metas: list[Meta], key: str, shape: tuple[int, ...]) -> Array:
    """[n, *shape] of one field. Raises: ValueError naming it for another count of numbers."""
    rows = [np.asarray(meta[key], np.float64).ravel() for meta in metas]
    sizes, size = {len(row) for row in rows}, int(np.prod(shape))
    if sizes != {size}:
        raise ValueError(f"{key} holds {sorted(sizes)} numbers, {size} are required")
    return np.stack(rows).reshape(-1, *shape)


def _has_pose(meta: Meta) -> bool:
    return all(meta.get(key) is not None for key in POSE)


def _check_meta(meta: Meta, is_training: bool) -> None:
    """Raises: ValueError naming the field of a frame without possible labels."""
    for key, shape in {"camMat": (3, 3), **POSE}.items():
        if meta.get(key) is None or (key in POSE and not (is_training and _has_pose(meta))):
            continue
        values = _stacked([meta], key, shape)
        if key == "camMat" and not checks.usable(values).all():
            raise ValueError(f"{key} is {checks.NO_CAMERA}")
        if key == "handJoints3D" and not checks.are_hands(values, checks.OPENGL).all():
            raise ValueError(f"{key} is {checks.NO_HAND} (z < 0)")
        if not np.isfinite(values).all():
            raise ValueError(f"{key} holds NaN or infinity")


class Ho3d(Dataset[HandSample | CropSample]):
    """Labelled crops of one split, or its images grouped by recording.

    "train" and "val" share train.txt, cut by recording; "all" is both; "evaluation" is the official
    one, with vertices where the released ground truth is beside it. A hand's box is its joints in
    the image; at evaluation it is `handBoundingBox`. `grouped` gives unlabelled crops, all cameras
    of a recording as one.
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
        crop_scale: float = CROP_SCALE,
        cache_dir: str | Path = "data/cache",
        grouped: bool = False,
    ) -> None:
        one_of("split", split, SPLITS)
        self.root, self.split, self.image_px = Path(root), split, image_px
        self.crop_scale, self.grouped = crop_scale, grouped
        self.folder = "evaluation" if split == "evaluation" else "train"
        arrays = load_hand_arrays(hand_path)
        check_made_with(self.root, arrays)
        self.hand_sha256, self.hand = arrays.sha256, HandModel(arrays)
        self.source = split_text(f"HO-3D ({self.root.name})", split, val_fraction, seed)
        frames = read_frames(self.root / f"{self.folder}.txt")
        stored = stored_ground_truth(root, cache_dir) if split == "evaluation" else None
        if stored is not None and len(stored[0]) != len(frames):
            text = f"{root}: evaluation_xyz.json has {len(stored[0])} entries, evaluation.txt has "
            raise ValueError(f"{text}{len(frames)} frames: they are of different versions")
        self.ground_truth = stored  # joints and vertices
        part = "all" if split == "evaluation" else split
        self.frames = split_takes(frames, part, val_fraction, seed)
        refuse_empty(split, root, len(self.frames), val_fraction)
        notes = Notes("ho3d", "unpack HO-3D again")
        note_files(notes, self.root, self.folder, self.frames)
        first = image_of(self.root, self.folder, self.frames[0])
        head = None if first is None else image_head(first)
        size_px = None if head is None else head[:2]  # counted when it is read
        chosen = [self.frames[i] for i in spread(len(self.frames), CHECKED)]
        note_metas(notes, self.root / self.folder, chosen, self.hand, size_px)
        notes.enforce(f"{self.root} (data.root)")

    def _labels(self, meta: Meta, index: int) -> dict[str, Any]:
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
        if meta.get("camMat") is None or not _has_pose(meta):
            warn_once(f"frames of {self.root} without hand annotation count as unlabelled")
            return {}
        keys = "handPose", "handTrans", "handBeta"
        pose, transl, betas = (np.asarray(meta[key], np.float64).ravel() for key in keys)
        rotmats, root_m = ho3d_hand(pose, transl, rest_wrist(self.hand.arrays, betas))
        mesh = checks.posed(self.hand, rotmats[None], betas[None], root_m[None])
        joints = np.asarray(given, np.float64).reshape(-1, 3) @ OPENCV_FROM_OPENGL
        points = {"joints_cam_m": joints[order], "verts_cam_m": mesh.verts_m[0].numpy()}
        return points | {"rotmats": rotmats, "betas": betas}

    def label_id(self, index: int) -> str:
        """Sequence and frame, as train.txt has them."""
        return self.frames[index]

    def fingerprint(self) -> str:
        """Digest of the frames of this part and of some of their images and labels."""
        chosen = [self.frames[i].split("/") for i in spread(len(self.frames))]
        files = [
            f"{self.folder}/{{}}/{file}" for file in ("meta/{}.pkl", "rgb/{}.png", "rgb/{}.jpg")
        ]
        names = [file.format(*frame) for file in files for frame in chosen]
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
            _check_meta(meta, self.split != "evaluation")
        except (ValueError, TypeError) as error:
            raise UnreadableSample(sample_id, str(error)) from error
        height, width = image.shape[:2]
        K = None if meta.get("camMat") is None else np.asarray(meta["camMat"], np.float64)
        labels = self._labels(meta, index) | {"joint_convention": "ho3d", "K_px": K}
        box: NDArray[np.floating] = np.array([0, 0, width, height], np.float64)
        if K is not None and "joints_cam_m" in labels and "joints_valid" not in labels:
            labels["kp2d_px"] = project_px(labels["joints_cam_m"], K)
            box = box_of_points(labels["kp2d_px"])
        is_scored = self.split == "evaluation"  # its boxes are given, whatever truth is there
        if meta.get("handBoundingBox") is not None and (is_scored or "kp2d_px" not in labels):
            box = np.asarray(meta["handBoundingBox"], np.float64)
        crop_from_img = crop_map(box, self.crop_scale, self.image_px)
        if self.grouped:
            crop = cut(image, crop_from_img, self.image_px)
            return CropSample(crop, sample_id, group=f"ho3d {take_of(frame.split('/')[0])}")
        return crop_sample(image, crop_from_img, self.image_px, sample_id, **labels)
