"""HO-3D v2 and v3: sequences of 640x480 images with depth and one pickle each, OpenGL axes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from handmim.data.label_files import PARTS
from handmim.geometry.rotation_numpy import matrix_to_rotvec
from handmim.hand.conventions import OPENCV_FROM_OPENGL, ho3d_pose, project_px
from handmim.hand.skeleton import FINGERTIP_VERTS, HO3D_FROM_CANONICAL
from synthesis.layout import (
    METRE_DIGITS,
    Labels,
    entries,
    json_list,
    needs_items,
    write_image,
    write_text,
)
from synthesis.python2_pickle import dump
from synthesis.scenes import SceneSource
from synthesis.sequences import Frame, Sequence, World, contact, render_frame, sequences, world

Array = NDArray[np.floating]
FramePosition = tuple[Sequence, int, bool]

SPLITS = {"train": "train", "evaluation": "test"}
SEQUENCES = {
    "train": sequences(
        (
            "ABF10", "MC1", "ABF11", "ND2", "ABF12", "ABF13", "ABF14", "SM2", "BB10", "BB11",
            "BB12", "BB13", "BB14", "SS1", "GPMF10", "GPMF11", "GPMF12", "GPMF13", "GPMF14", "SiS1",
        )
    ),
    "evaluation": sequences(
        (
            "SM1", "MPM10", "MPM11", "AP10", "MPM12", "AP11", "MPM13", "AP12", "MPM14", "AP13",
            "AP14", "SB11", "SB13",
        )
    ),
}  # fmt: skip
DEPTH_UNIT_M = 0.00012498664727900177
MAX_FRAMES = 9999  # four digits, and frame 0 is not listed
# Fields that are None in frames without annotation.
UNKNOWN = (
    "handPose", "handTrans", "handBeta", "handJoints3D", "handBoundingBox", "objTrans", "objRot",
    "objCorners3D", "handVertContact", "handVertDist", "handVertIntersec", "handVertObjSurfProj",
)  # fmt: skip


def encode_depth(depth_m: Array) -> NDArray[np.uint8]:
    """[H, W] metres to the dataset's RGB: low byte in red, high byte in green."""
    units = np.clip(np.round(depth_m / DEPTH_UNIT_M), 0, 65535).astype(np.uint16)
    low, high = (units & 255).astype(np.uint8), (units >> 8).astype(np.uint8)
    return np.stack([low, high, np.zeros_like(low)], axis=-1)


class Ho3dLayout:
    """HO-3D's files. Sample i is frame i // S of sequence i % S of S, so lists are not sorted.

    Every sequence also has a frame 0000 without annotation, which is in no list.

    Args:
        num: listed training frames.
        num_eval: listed evaluation frames.
    """

    version: ClassVar[int]
    rgb_suffix: ClassVar[str]
    meta_protocol: ClassVar[Literal[0, 2]]
    side_multiple = 8  # images are 4:3, the middle three quarters of a square

    def __init__(self, num: int, num_eval: int) -> None:
        most = MAX_FRAMES * min(len(s) for s in SEQUENCES.values())
        needs_items(num, num_eval, most, f"ho3d_v{self.version}")
        self.listed = {"train": num, "evaluation": num_eval}
        self.counts = {
            part: count + min(count, len(SEQUENCES[part])) for part, count in self.listed.items()
        }
        self.images_per_item = dict.fromkeys(self.counts, 1)

    def position(self, part: str, index: int) -> FramePosition:
        """Sequence, file number and whether it is annotated, of an item; the first `listed` ones
        are."""
        here, extra = SEQUENCES[part], index - self.listed[part]
        if extra >= 0:
            return here[extra], 0, False
        return here[index % len(here)], index // len(here) + 1, True

    def _files(self, part: str, sequence: Sequence, number: int) -> tuple[str, str, str]:
        stem, number4 = f"{part}/{sequence.name}", f"{number:04d}"
        kinds = {"rgb": self.rgb_suffix, "depth": ".png", "meta": ".pkl"}
        rgb, depth, meta = (f"{stem}/{k}/{number4}{suffix}" for k, suffix in kinds.items())
        return rgb, depth, meta

    def files(self) -> Iterator[str]:
        """Every file below the root, relative to it."""
        yield from ("train.txt", "evaluation.txt", "evaluation_xyz.json", "evaluation_verts.json")
        for part, count in self.counts.items():
            for index in range(count):
                yield from self._files(part, *self.position(part, index)[:2])

    def write(self, source: SceneSource, root: Path, part: str, index: int) -> Labels:
        """Image, depth and meta of one frame."""
        size = source.settings.image_px
        sequence, number, known = self.position(part, index)
        recordings = tuple(dict.fromkeys(s.recording for s in SEQUENCES[part]))
        recording = recordings.index(sequence.recording)
        split = SPLITS[part]
        w = world(source, split, recording, len(recordings), number)
        frame = render_frame(source, split, recording, sequence.camera, number, w)

        rows = slice(size // 8, size - size // 8)
        seen = np.maximum(frame.inv_depth[rows], 1e-6)
        depth = np.where(frame.inv_depth[rows] > 0, 1 / seen, frame.wall_m)
        rgb_file, depth_file, meta_file = (
            root / name for name in self._files(part, sequence, number)
        )
        write_image(rgb_file, frame.image[rows])
        write_image(depth_file, encode_depth(depth))
        verts = frame.verts_cam_m @ OPENCV_FROM_OPENGL
        joints = frame.joints_cam_m @ OPENCV_FROM_OPENGL
        joints = joints[list(HO3D_FROM_CANONICAL)]
        joints[16:] = verts[list(FINGERTIP_VERTS["ho3d"])]
        meta = self._object_fields(frame, w, recording)
        meta["camMat"] = frame.K_px - np.array([[0, 0, 0], [0, 0, rows.start], [0, 0, 0.0]])
        if part == "train":
            meta |= self._hand_fields(frame, w, joints)
            cameras = [s.camera for s in SEQUENCES[part] if s.recording == sequence.recording]
            meta["camIDList"] = [str(camera) for camera in cameras]
        else:
            height = frame.image[rows].shape[0]
            box = self._box(frame.verts_cam_m, meta["camMat"], size, height)
            meta |= {"handJoints3D": joints[0], "handBoundingBox": box}
        partial = root / PARTS / f"{part}-{index}.pkl"  # where leftovers of a crash are swept up
        meta = meta if known else meta | {k: None for k in UNKNOWN if k in meta}
        dump(meta, partial, self.meta_protocol)
        partial.replace(meta_file)
        return {} if part == "train" else {"xyz": joints, "verts": verts}

    def _object_fields(self, frame: Frame, w: World, recording: int) -> dict[str, Any]:
        rotation, at = frame.cam_from_world
        rotmat = OPENCV_FROM_OPENGL @ rotation @ w.object_rotation
        trans = OPENCV_FROM_OPENGL @ (rotation @ w.object_centre_m + at)
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        rest = signs * w.solid.radii
        return {
            "objTrans": trans,
            "objRot": matrix_to_rotvec(rotmat)[:, None],
            "objCorners3D": rest @ rotmat.T + trans,
            "objCorners3DRest": rest,
            "objName": f"{900 + recording:03d}_superquadric",
            "objLabel": 900 + recording,
        }

    def _hand_fields(self, frame: Frame, w: World, joints: Array) -> dict[str, Any]:
        pose, trans = ho3d_pose(frame.rotmats, frame.transl_m, frame.rest_wrist_m)
        return {
            "handPose": pose,
            "handTrans": trans,
            "handBeta": frame.betas,
            "handJoints3D": joints,
        }

    @staticmethod
    def _box(verts_cam_m: Array, K_px: Array, width: int, height: int) -> list[int]:
        px = project_px(verts_cam_m, K_px)
        low = np.clip(np.floor(px.min(axis=0)), 0, [width, height]).astype(int)
        high = np.clip(np.ceil(px.max(axis=0)), 0, [width, height]).astype(int)
        return [int(x) for x in (*low, *high)]

    def assemble(self, root: Path, blocks: Callable[[str], Iterator[Labels]], temp: Path) -> None:
        """Write the two lists of frames and the truth of the evaluation."""
        for part, count in self.listed.items():
            positions = (self.position(part, i) for i in range(count))
            lines = (f"{sequence.name}/{number:04d}\n" for sequence, number, _ in positions)
            write_text(root / f"{part}.txt", lines, temp)
        for name in ("xyz", "verts"):
            values = entries(blocks("evaluation"), name)
            listed = (
                value for _, value in zip(range(self.listed["evaluation"]), values, strict=False)
            )
            text = json_list(listed, METRE_DIGITS)
            write_text(root / f"evaluation_{name}.json", text, temp)


class Ho3dV2Layout(Ho3dLayout):
    """Version 2: png images, and metas in text."""

    version, rgb_suffix, meta_protocol = 2, ".png", 0


class Ho3dV3Layout(Ho3dLayout):
    """Version 3: jpg images, and how each vertex touches the object."""

    version, rgb_suffix, meta_protocol = 3, ".jpg", 2

    def _hand_fields(self, frame: Frame, w: World, joints: Array) -> dict[str, Any]:
        near = contact(w)
        rotation, at = frame.cam_from_world
        surface = (near["surface_m"] @ rotation.T + at) @ OPENCV_FROM_OPENGL
        return super()._hand_fields(frame, w, joints) | {
            "handVertContact": near["touches"],
            "handVertDist": near["dist_m"],
            "handVertIntersec": near["intersects"],
            "handVertObjSurfProj": surface,
        }
