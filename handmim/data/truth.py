"""The released truth of an official evaluation: the same two files for FreiHAND and HO-3D."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handmim.data.json_arrays import cached_number_lists
from handmim.hand.arrays import NUM_VERTS

SHAPES: dict[str, tuple[int, ...]] = {"xyz": (21, 3), "verts": (NUM_VERTS, 3)}
Truth = tuple[NDArray[np.float32], NDArray[np.float32]]


def find_truth(root: str | Path, cache_dir: str | Path) -> Truth | None:
    """`read_truth`, or None where the truth is not beside the dataset."""
    there = all((Path(root) / f"evaluation_{name}.json").is_file() for name in SHAPES)
    return read_truth(root, cache_dir) if there else None


def read_truth(root: str | Path, cache_dir: str | Path) -> Truth:
    """Joints [n, 21, 3] and vertices [n, V, 3], metres, in the benchmark's own order and axes.

    Args:
        root: folder of the dataset.
        cache_dir: where the large files are kept as arrays.
    Raises: FileNotFoundError saying where the truth comes from; ValueError for unequal counts.
    """
    root = Path(root)
    missing = [n for n in SHAPES if not (root / f"evaluation_{n}.json").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{root} has no evaluation_{missing[0]}.json: unpack the released truth there "
            "(FreiHAND_pub_v2_eval.zip on FreiHAND's page; links in HO-3D's README)"
        )
    joints, verts = (
        cached_number_lists(root / f"evaluation_{name}.json", shape, Path(cache_dir))
        for name, shape in SHAPES.items()
    )
    if len(joints) != len(verts):
        raise ValueError(
            f"{root}: evaluation_xyz.json has {len(joints)} entries, evaluation_verts.json "
            f"{len(verts)}: they are of different versions"
        )
    return joints, verts
