"""A hand model as plain arrays, read from a file and checked once."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmim.hand.skeleton import CHAIN_PARENTS, FINGERTIP_VERTS

NUM_VERTS, NUM_FACES, NUM_CHAIN = 778, 1538, 16
SHAPES: dict[str, tuple[int, ...]] = {
    "v_template": (NUM_VERTS, 3),
    "f": (NUM_FACES, 3),
    "shapedirs": (NUM_VERTS, 3, 10),
    "posedirs": (NUM_VERTS, 3, 135),
    "J_regressor": (NUM_CHAIN, NUM_VERTS),
    "weights": (NUM_VERTS, NUM_CHAIN),
    "kintree_table": (2, NUM_CHAIN),
    "hands_mean": (45,),
    "hands_components": (45, 45),
}


@dataclass(frozen=True)
class HandArrays:
    """MANO's arrays under their own names. Metres; fingers along -x, thumb +z, palm -y in the rest
    pose."""

    v_template: NDArray[np.float64]  # [V, 3]
    faces: NDArray[np.int32]  # [F, 3]
    shapedirs: NDArray[np.float64]  # [V, 3, 10] metres per unit of beta
    posedirs: NDArray[np.float64]  # [V, 3, 135] metres per entry of R - I of joints 1..15
    J_regressor: NDArray[np.float64]  # [16, V]
    weights: NDArray[np.float64]  # [V, 16], rows sum to 1
    parents: tuple[int, ...]  # 16, root -1
    hands_mean: NDArray[np.float64]  # [45] axis-angle of the mean pose, radians
    hands_components: NDArray[np.float64]  # [45, 45]
    tip_ids: tuple[int, ...]  # thumb, index, middle, ring, little
    name: str
    sha256: str  # of the file
    extras: dict[str, NDArray[Any]] = field(default_factory=dict)  # joint axes, limits, ...


def resolve_hand_path(path: str | Path) -> Path:
    """ "standin" means the hand that ships with the repository, wherever one stands; else the path
    itself."""
    if str(path) == "standin":
        return Path(__file__).parents[2] / "data" / "standin_right.npz"
    return Path(path)


def load_hand_arrays(path: str | Path) -> HandArrays:
    """Read and check a hand model in MANO's npz layout.

    Raises: FileNotFoundError saying where hand models come from; ValueError naming the array that
        is wrong.
    """
    path = resolve_hand_path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no hand model at {path}. The stand-in ships as data/standin_right.npz "
            "(hand=standin); MANO is"
            " licensed per user at https://mano.is.tue.mpg.de (hand_path=FILE.npz)"
        )
    if path.suffix != ".npz":
        raise ValueError(
            f"hand models are read from .npz, got {path.name}; reading MANO's own .pkl is a "
            "coming part"
        )
    with np.load(path, allow_pickle=False) as file:
        raw = {key: file[key] for key in file.files}
    missing = sorted(set(SHAPES) - set(raw))
    if missing:
        raise ValueError(
            f"{path.name} lacks {missing}: not a hand model in MANO's layout (hand_path)"
        )
    for key, shape in SHAPES.items():
        if raw[key].shape != shape:
            raise ValueError(f"{path.name}: {key} is {raw[key].shape}, wanted {shape} (hand_path)")
        if not np.isfinite(raw[key].astype(np.float64)).all():
            raise ValueError(f"{path.name}: {key} is not finite (hand_path)")
    if np.abs(raw["weights"].sum(axis=1) - 1).max() > 1e-4:
        raise ValueError(f"{path.name}: skinning weights do not sum to 1 (hand_path)")
    parents = tuple(int(p) for p in raw["kintree_table"][0].astype(np.uint32).astype(np.int32))
    if parents != CHAIN_PARENTS:
        raise ValueError(f"{path.name}: parents are {parents}, wanted {CHAIN_PARENTS} (hand_path)")
    tip_ids = raw.get("tip_ids", np.asarray(FINGERTIP_VERTS["smplx"]))
    known = {*SHAPES, "tip_ids"}
    double = {k: raw[k].astype(np.float64) for k in SHAPES if k not in ("f", "kintree_table")}
    return HandArrays(
        **double,
        faces=raw["f"].astype(np.int32),
        parents=parents,
        tip_ids=tuple(int(i) for i in tip_ids),
        name=path.stem,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        extras={k: v for k, v in raw.items() if k not in known},
    )
