"""Prediction files as most code writes and reads them: nested lists by the json module."""

import json
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def write(folder: Path, joints: Array, verts: Array) -> None:
    """pred.json with seven decimals, and the zip around it, as tightly as ours."""
    lists = [
        joints.astype(np.float64).round(7).tolist(),
        verts.astype(np.float64).round(7).tolist(),
    ]
    with (folder / "pred.json").open("w") as file:
        json.dump(lists, file)
    with ZipFile(folder / "pred.zip", "w", ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write(folder / "pred.json", "pred.json")


def read(path: Path) -> tuple[Array, Array]:
    """Joints [n, 21, 3] and vertices [n, 778, 3]."""
    joints, verts = json.loads(path.read_text())
    return np.array(joints), np.array(verts)
