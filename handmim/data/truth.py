"""The released truth of an official evaluation: the same two files for FreiHAND and HO-3D."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handmim.data.json_arrays import StoredArray, cached_number_lists
from handmim.hand.arrays import NUM_VERTS

SHAPES: dict[str, tuple[int, ...]] = {"xyz": (21, 3), "verts": (NUM_VERTS, 3)}
Truth = tuple[NDArray[np.floating], NDArray[np.floating]]


def stored_truth(root: str | Path, cache_dir: str | Path) -> tuple[StoredArray, StoredArray] | None:
    """Joints [n, 21, 3] and vertices [n, V, 3], metres, in the benchmark's own order and axes.

    Args:
        root: folder of the dataset.
        cache_dir: where the large files are kept as arrays.
    Returns: both, or None where one of the files is not beside the dataset.
    Raises: ValueError for unequal counts.
    """
    paths = {name: Path(root) / f"evaluation_{name}.json" for name in SHAPES}
    if not all(path.is_file() for path in paths.values()):
        return None
    joints, verts = (
        cached_number_lists(paths[n], SHAPES[n], Path(cache_dir), "float64") for n in SHAPES
    )
    if len(joints) != len(verts):
        raise ValueError(
            f"{root}: evaluation_xyz.json has {len(joints)} entries, evaluation_verts.json "
            f"{len(verts)}: they are of different versions"
        )
    return joints, verts


def find_truth(root: str | Path, cache_dir: str | Path) -> Truth | None:
    """The arrays of `stored_truth`, or None."""
    stored = stored_truth(root, cache_dir)
    return None if stored is None else (stored[0].values, stored[1].values)


def read_truth(root: str | Path, cache_dir: str | Path) -> Truth:
    """The arrays of `stored_truth`.

    Raises: FileNotFoundError saying where the truth comes from.
    """
    truth = find_truth(root, cache_dir)
    if truth is None:
        raise FileNotFoundError(
            f"{root} lacks evaluation_xyz.json or evaluation_verts.json: unpack the released truth "
            "there (FreiHAND_pub_v2_eval.zip on FreiHAND's page; links in HO-3D's README)"
        )
    return truth
