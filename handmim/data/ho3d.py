"""HO-3D versions 2 and 3 (Hampali et al. 2020, 2021): hands holding objects, 640 x 480 frames.

At the door: OpenGL axes become OpenCV's, the joint order becomes ours, handPose/handTrans become
rotations and a mesh. A hand's box is its joints in the picture (training) or `handBoundingBox`
(evaluation).
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from handmim.data.cropping import box_of_points, carry_intrinsics, carry_points, crop_map, cut
from handmim.data.fingerprint import digest_of, files_digest, some
from handmim.data.ho3d_checks import (
    POSE,
    check_evaluation,
    check_meta,
    check_training,
    image_of,
    missing_files,
)
from handmim.data.image_heads import image_head
from handmim.data.json_arrays import StoredArray
from handmim.data.layouts import take_of
from handmim.data.provenance import check_made_with
from handmim.data.samples import hand_sample
from handmim.data.truth import stored_truth
from handmim.hand.conventions import OPENCV_FROM_OPENGL, ho3d_hand, project_px, rest_wrist
from handmim.hand.io import load_hand_arrays
from handmim.hand.model import HandModel
from handmim.hand.skeleton import CANONICAL_FROM_HO3D
from handmim.images.decode import UnreadableImage, read_image
from handmim.types import CropSample, HandSample
from handmim.utils.files import UnreadableSample
from handmim.utils.findings import Notes, shown, spread
from handmim.utils.unpickle import load_pickle

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "all", "evaluation")
CHECKED = 32  # frames whose metas are checked at the start


def read_frames(path: Path) -> list[str]:
    """The frames of train.txt or evaluation.txt, "<sequence>/<id>" each, in order.

    Raises: FileNotFoundError; ValueError for a line of another form or an empty list.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {path.parent}: data.root is the unpacked HO3D_v2 or HO3D_v3 "
            "(https://github.com/shreyashampali/ho3d)"
        )
    frames = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    bad = [frame for frame in frames if frame.count("/") != 1]
    if bad or not frames:
        raise ValueError(f"{path}: want lines '<sequence>/<id>', got {bad[:3] or 'none'}")
    return frames


def split_takes(frames: list[str], split: str, val_fraction: float, seed: int) -> list[str]:
    """Frames of a training split.

    Takes are drawn at random for "val" as long as that brings its share of the frames nearer to
    `val_fraction`; one at least is held back, and one at least is not.
    """
    if not 0.0 <= val_fraction < 1.0:
        raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction} (data.val_fraction)")
    if split == "all":
        return frames
    counts: dict[str, int] = {}
    for frame in frames:
        take = take_of(frame.split("/")[0])
        counts[take] = counts.get(take, 0) + 1
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


class Ho3d(Dataset[HandSample | CropSample]):
    """Labelled crops of one split, or its pictures grouped by take.

    Args:
        root: folder that holds train/, evaluation/, train.txt and evaluation.txt.
        hand_path: hand model of the annotations (poses are absolute, betas are this model's).
        split: "train" and "val" share train.txt, cut by take; "all" is both; "evaluation" is the
            official one, with vertices where the released truth is beside it.
        val_fraction: share of the frames in "val", about: takes are kept whole.
        seed: of that cut.
        image_px: side of the stored crop.
        crop_scale: side of the crop relative to the hand's box.
        cache_dir: where the large JSON files are kept as arrays.
        grouped: give unlabelled crops for pretraining instead; a take, seen by all of its cameras,
            is one group.
    Raises: FileNotFoundError naming what is missing; ValueError for settings or a hand model that
        do not fit.
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
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r} (data.*.split)")
        self.root, self.split, self.image_px = Path(root), split, image_px
        self.crop_scale, self.grouped = crop_scale, grouped
        self.folder = "evaluation" if split == "evaluation" else "train"
        arrays = load_hand_arrays(hand_path)
        check_made_with(self.root, arrays)
        self.hand_name, self.hand_sha256 = arrays.name, arrays.sha256
        self.hand = HandModel(arrays)
        self.source = f"HO-3D ({self.root.name}), part {split}"
        if split in ("train", "val"):
            self.source += f", val_fraction {val_fraction:g}, split seed {seed}"
        frames = read_frames(self.root / f"{self.folder}.txt")
        self.xyz: StoredArray | None = None
        self.verts: StoredArray | None = None
        if split == "evaluation":
            self.frames = frames
            self._read_truth(Path(cache_dir))
        else:
            self.frames = split_takes(frames, split, val_fraction, seed)
        if not self.frames:
            raise ValueError(
                f"split {split} of {root} is empty: its takes cannot be cut by "
                f"data.val_fraction={val_fraction}"
            )
        self._told_unlabelled = False
        self._check()

    def _read_truth(self, cache: Path) -> None:
        truth = stored_truth(self.root, cache)
        if truth is None:
            return
        self.xyz, self.verts = truth
        if len(self.xyz) != len(self.frames):
            raise ValueError(
                f"{self.root}: evaluation_xyz.json has {len(self.xyz)} entries, evaluation.txt has "
                f"{len(self.frames)} frames: they are of different versions"
            )

    def _check(self) -> None:
        """Files of all frames; metas of some for their meaning, as the doctor does."""
        missing = missing_files(self.root, self.folder, self.frames)
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} files of {len(self.frames)} frames of {self.folder}.txt are not "
                f"in {self.root}: {shown(missing)}; unpack HO-3D again (data.root)"
            )
        chosen = {int(i): self.frames[i] for i in spread(len(self.frames), CHECKED)}
        metas = {i: self._meta(frame) for i, frame in chosen.items()}
        first = image_of(self.root, self.folder, self.frames[0])
        head = None if first is None else image_head(first)
        if head is None:  # counted when its turn comes
            return
        notes, source = Notes(), "unpack HO-3D again"
        with notes.guard("ho3d-labels", source):
            if self.split == "evaluation":
                check_evaluation(notes, "ho3d", metas, head[:2], source)
            else:
                check_training(notes, "ho3d", metas, chosen, self.hand, head[:2], source)
        notes.enforce(f"{self.root} (data.root)")

    def _meta(self, frame: str) -> dict[str, Any]:
        sequence, name = frame.split("/")
        return load_pickle(self.root / self.folder / sequence / "meta" / f"{name}.pkl")

    def _picture(self, frame: str) -> NDArray[np.uint8]:
        path = image_of(self.root, self.folder, frame)
        if path is None:
            raise UnreadableImage(f"{self.folder}/{frame}", "there is no such image any more")
        return read_image(path)

    @staticmethod
    def _opencv(points_m: Any) -> NDArray[np.float64]:
        return np.asarray(points_m, np.float64).reshape(-1, 3) @ OPENCV_FROM_OPENGL

    def _labels(self, meta: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
        """Rotations, betas, joints and vertices of a training meta, OpenCV camera."""
        betas = np.asarray(meta["handBeta"], np.float64).ravel()[:10]
        rotmats, transl = ho3d_hand(
            np.asarray(meta["handPose"], np.float64).ravel(),
            np.asarray(meta["handTrans"], np.float64).ravel(),
            rest_wrist(self.hand.arrays, betas),
        )
        with torch.no_grad():
            mesh = self.hand(
                torch.from_numpy(rotmats).float()[None],
                torch.from_numpy(betas).float()[None],
                torch.from_numpy(transl).float()[None],
            )
        joints = self._opencv(meta["handJoints3D"])[list(CANONICAL_FROM_HO3D)]
        return rotmats, betas, joints, mesh.verts_m[0].numpy()

    def label_id(self, index: int) -> str:
        """Sequence and frame, as train.txt has them."""
        return self.frames[index]

    def fingerprint(self) -> str:
        """Digest of the frames of this part and of some of their images and labels."""
        chosen = [self.frames[i].split("/") for i in some(len(self.frames))]
        files = ("meta", ".pkl"), ("rgb", ".png"), ("rgb", ".jpg")
        names = [
            f"{self.folder}/{sequence}/{kind}/{frame}{suffix}"
            for kind, suffix in files
            for sequence, frame in chosen
        ]
        return digest_of(*self.frames, *(files_digest(self.root, [name]) for name in names))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> HandSample | CropSample:
        frame = self.frames[index]
        picture = self._picture(frame)
        try:
            meta = self._meta(frame)
            check_meta(meta, self.split != "evaluation")
        except (ValueError, TypeError) as error:
            raise UnreadableSample(f"{self.folder}/{frame}", str(error)) from error
        height, width = picture.shape[:2]
        K = None if meta.get("camMat") is None else np.asarray(meta["camMat"], np.float64)
        rotmats = betas = joints = valid = verts = None
        if self.split == "evaluation":
            joints, valid = np.zeros((21, 3)), np.zeros(21, bool)
            if meta.get("handJoints3D") is not None:  # the wrist only
                joints[0], valid[0] = self._opencv(meta["handJoints3D"])[0], True
            if self.xyz is not None and self.verts is not None:
                joints = self._opencv(self.xyz[index])[list(CANONICAL_FROM_HO3D)]
                valid, verts = np.ones(21, bool), self._opencv(self.verts[index])
        elif K is None or any(meta.get(key) is None for key in POSE):
            self._tell(frame)
        else:
            rotmats, betas, joints, verts = self._labels(meta)
        kp2d = None
        if joints is not None and K is not None and (valid is None or valid.all()):
            kp2d = project_px(joints, K)
        box: NDArray[np.floating]
        if meta.get("handBoundingBox") is not None:
            box = np.asarray(meta["handBoundingBox"], np.float64)
        elif kp2d is not None:
            box = box_of_points(kp2d)
        else:
            box = np.array([0, 0, width, height], np.float64)
        crop_from_img = crop_map(box, self.crop_scale, self.image_px)
        image, sample_id = cut(picture, crop_from_img, self.image_px), f"{self.folder}/{frame}"
        if self.grouped:
            return CropSample(image, sample_id, group=f"ho3d {take_of(frame.split('/')[0])}")
        return hand_sample(
            image,
            sample_id,
            joint_convention="ho3d",
            K_crop_px=None if K is None else carry_intrinsics(crop_from_img, K),
            kp2d_crop_px=None if kp2d is None else carry_points(crop_from_img, kp2d),
            joints_cam_m=joints,
            joints_valid=valid,
            verts_cam_m=verts,
            rotmats=rotmats,
            betas=betas,
        )

    def _tell(self, frame: str) -> None:
        if not self._told_unlabelled:
            log.warning("%s has no hand annotation (None fields): it counts as unlabelled", frame)
        self._told_unlabelled = True
