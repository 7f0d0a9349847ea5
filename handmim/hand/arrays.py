"""A hand model as plain arrays in MANO's layout, and the checks that every file of one passes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from handmim.hand.skeleton import CHAIN_PARENTS, FINGERTIP_VERTS

Side = Literal["right", "left"]

NUM_VERTS, NUM_FACES, NUM_CHAIN, NUM_BETAS = 778, 1538, 16, 10
NO_PARENT = 2**32 - 1  # how MANO writes the root's parent
# Arrays of a file, under MANO's names.
SHAPES: dict[str, tuple[int, ...]] = {
    "v_template": (NUM_VERTS, 3),
    "f": (NUM_FACES, 3),
    "shapedirs": (NUM_VERTS, 3, NUM_BETAS),
    "posedirs": (NUM_VERTS, 3, 135),
    "J_regressor": (NUM_CHAIN, NUM_VERTS),
    "weights": (NUM_VERTS, NUM_CHAIN),
    "kintree_table": (2, NUM_CHAIN),
    "hands_mean": (45,),
    "hands_components": (45, 45),
}
_FLOATS = tuple(key for key in SHAPES if key not in ("f", "kintree_table"))


@dataclass(frozen=True)
class HandArrays:
    """MANO's arrays under their own names. Metres; fingers along -x (right hand) or +x (left),
    thumb +z, palm -y in the rest pose."""

    v_template: NDArray[np.float64]  # [V, 3]
    faces: NDArray[np.int32]  # [F, 3]
    shapedirs: NDArray[np.float64]  # [V, 3, 10] metres per unit of beta
    posedirs: NDArray[np.float64]  # [V, 3, 135] metres per entry of R - I of joints 1..15
    J_regressor: NDArray[np.float64]  # [16, V], rows sum to 1
    weights: NDArray[np.float64]  # [V, 16], rows sum to 1
    parents: tuple[int, ...]  # 16, root -1
    hands_mean: NDArray[np.float64]  # [45] axis-angle of the mean pose, radians
    hands_components: NDArray[np.float64]  # [45, 45]
    tip_ids: tuple[int, ...]  # thumb, index, middle, ring, little
    name: str
    file_sha256: str = ""  # of the file they came from
    repairs: tuple[str, ...] = ()  # what was changed after reading
    extras: dict[str, NDArray[Any]] = field(default_factory=dict)  # joint axes, limits, ...

    @property
    def kintree_table(self) -> NDArray[np.int64]:
        """[2, 16] parents and joints as MANO's files hold them."""
        return np.stack([[NO_PARENT, *self.parents[1:]], np.arange(NUM_CHAIN)]).astype(np.int64)

    @cached_property
    def sha256(self) -> str:
        """Identity of the hand: of the arrays as used, whatever file or format they came from."""
        # adding 0 leaves one kind of zero
        parts = [(key, getattr(self, key) + 0.0, "<f8") for key in _FLOATS]
        parts += [(key, getattr(self, key), "<i4") for key in ("faces", "parents", "tip_ids")]
        digest = hashlib.sha256()
        for key, values, dtype in parts:
            array = np.ascontiguousarray(values, dtype=dtype)
            digest.update(f"{key} {array.shape} ".encode() + array.tobytes())
        return digest.hexdigest()

    @cached_property
    def side(self) -> Side:
        """Which hand it is, by its rest pose; ValueError for one in other axes than MANO's."""
        joints = self.J_regressor @ self.v_template
        reach = joints[[1, 4, 7, 10], 0].mean() - joints[0, 0]
        thumb = joints[13:16, 2].mean() - joints[7:10, 2].mean()
        if abs(reach) < 0.02 or thumb < 0.01:
            raise ValueError(
                f"{self.name}: the rest pose has its knuckles {reach:+.3f} m along x from the wrist"
                f" and its thumb {thumb:+.3f} m along z from the little finger; MANO's axes are"
                " required, fingers along -x (right) or +x (left) and thumb towards +z"
            )
        return "right" if reach < 0 else "left"


def arrays_from(
    raw: Mapping[str, NDArray[Any]], file_name: str, file_sha256: str = ""
) -> HandArrays:
    """Check the arrays of a file by MANO's names; `tip_ids` [5] and `repairs` may be missing,
    further ones become `extras`. ValueError naming the array that is wrong."""
    check_raw(raw, file_name)
    tip_ids = raw.get("tip_ids", np.asarray(FINGERTIP_VERTS["smplx"]))
    is_whole = tip_ids.shape == (5,) and tip_ids.dtype.kind in "iu"
    tips = tip_ids.ravel()[:5].tolist()
    if not is_whole or not all(0 <= i < NUM_VERTS for i in tips):
        raise ValueError(f"{file_name}: tip_ids must be five vertices, got {tips}")
    table = raw["kintree_table"][0].astype(np.int64).tolist()
    parents = tuple(-1 if p == NO_PARENT else p for p in table)
    if parents != CHAIN_PARENTS:
        raise ValueError(f"{file_name}: parents must be {CHAIN_PARENTS}, got {parents}")
    known = {*SHAPES, "tip_ids", "repairs"}
    return HandArrays(
        **{key: raw[key].astype(np.float64) for key in _FLOATS},
        faces=raw["f"].astype(np.int32),
        parents=parents,
        tip_ids=tuple(tips),
        name=file_name.rpartition(".")[0],
        file_sha256=file_sha256,
        repairs=tuple(str(r) for r in np.ravel(raw.get("repairs", []))),
        extras={k: v for k, v in raw.items() if k not in known},
    )


def check_raw(raw: Mapping[str, NDArray[Any]], name: str) -> None:
    """Raises: ValueError naming the array of the file `name` that is wrong."""
    if missing := sorted(set(SHAPES) - set(raw)):
        raise ValueError(f"{name} lacks {missing}: not a hand model in MANO's layout")
    for key, shape in SHAPES.items():
        found = raw[key].shape, raw[key].dtype
        if found[0] != shape or found[1].kind not in "fiu":
            raise ValueError(f"{name}: {key} must be numbers {shape}, got {found[1]} {found[0]}")
        if not np.isfinite(raw[key].astype(np.float64)).all():
            raise ValueError(f"{name}: {key} is not finite")
    low, high, faces = raw["f"].min(), raw["f"].max(), raw["f"]
    if low < 0 or high >= NUM_VERTS or (faces != np.floor(faces)).any():
        raise ValueError(f"{name}: f must hold indices 0 to {NUM_VERTS - 1}, got {low} to {high}")
    for key, most in (("J_regressor", 1e-2), ("weights", 1e-4)):
        sums = raw[key].sum(axis=1)
        if np.abs(sums - 1).max() > most:
            text = f"got {sums.min():.4f} to {sums.max():.4f}"
            raise ValueError(f"{name}: rows of {key} must sum to 1, {text}")
    if (least := raw["weights"].min()) < -1e-6:
        raise ValueError(f"{name}: skinning weights must be >= 0, got {least:.3g}")
