"""A hand model as plain arrays, read from a file and checked once."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from handmim.hand.files import NO_PARENT, NUM_VERTS, SHAPES, read_mano
from handmim.hand.skeleton import CHAIN_PARENTS, FINGERTIP_VERTS
from handmim.utils.paths import STANDIN

Side = Literal["right", "left"]

# What to do with a left hand's shape directions, and what is then on record.
LEFT_SHAPEDIRS = {
    "auto": None,
    "as_is": None,
    "negate_x": "left shapedirs x negated",
    "negate_all": "left shapedirs negated",
}
_FLOATS = (
    "v_template", "shapedirs", "posedirs", "J_regressor", "weights", "hands_mean",
    "hands_components",
)  # fmt: skip


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

    @cached_property
    def sha256(self) -> str:
        """Identity of the hand: of the arrays as used, whatever file or format they came from."""
        digest = hashlib.sha256()
        integers = {"faces": self.faces, "parents": self.parents, "tip_ids": self.tip_ids}
        for key in _FLOATS:
            # adding 0 leaves one kind of zero
            array = np.ascontiguousarray(getattr(self, key) + 0.0, dtype="<f8")
            digest.update(f"{key} {array.shape} ".encode() + array.tobytes())
        for key, values in integers.items():
            array = np.ascontiguousarray(values, dtype="<i4")
            digest.update(f"{key} {array.shape} ".encode() + array.tobytes())
        return digest.hexdigest()

    @cached_property
    def side(self) -> Side:
        """Which hand it is, by its rest pose: fingers along -x are a right hand's.

        Raises: ValueError for a rest pose in other axes than MANO's.
        """
        joints = self.J_regressor @ self.v_template
        reach = joints[[1, 4, 7, 10], 0].mean() - joints[0, 0]
        thumb = joints[13:16, 2].mean() - joints[7:10, 2].mean()
        if abs(reach) < 0.02 or thumb < 0.01:
            raise ValueError(
                f"{self.name}: the rest pose has its knuckles {reach:+.3f} m along x from the wrist"
                f" and its thumb {thumb:+.3f} m along z from the little finger; wanted MANO's axes,"
                " fingers along -x (right) or +x (left) and thumb towards +z (hand.path)"
            )
        return "right" if reach < 0 else "left"


def resolve_hand_path(path: str | Path) -> Path:
    """The file that is meant.

    "standin" is the hand that ships with the repository, wherever one stands; a folder is searched
    for MANO_RIGHT.pkl and .npz, then its mano/ and models/; else the path itself.

    Raises: FileNotFoundError for a folder without a hand.
    """
    if str(path) == "standin":
        return STANDIN
    path = Path(path)
    if not path.is_dir():
        return path
    for folder in (path, path / "mano", path / "models"):
        for suffix in (".pkl", ".npz"):
            if (folder / f"MANO_RIGHT{suffix}").is_file():
                return folder / f"MANO_RIGHT{suffix}"
    raise FileNotFoundError(
        f"no MANO_RIGHT.pkl or MANO_RIGHT.npz in {path}, its mano/ or its models/ (hand.path)"
    )


def _check(raw: dict[str, NDArray[Any]], name: str) -> None:
    """Raises: ValueError naming the array that is wrong."""
    missing = sorted(set(SHAPES) - set(raw))
    if missing:
        raise ValueError(f"{name} lacks {missing}: not a hand model in MANO's layout (hand.path)")
    for key, shape in SHAPES.items():
        if raw[key].shape != shape:
            raise ValueError(f"{name}: {key} is {raw[key].shape}, wanted {shape} (hand.path)")
        if raw[key].dtype.kind not in "fiu":
            raise ValueError(f"{name}: {key} is {raw[key].dtype}, wanted numbers (hand.path)")
        if not np.isfinite(raw[key].astype(np.float64)).all():
            raise ValueError(f"{name}: {key} is not finite (hand.path)")
    low, high = raw["f"].min(), raw["f"].max()
    if low < 0 or high >= NUM_VERTS or (raw["f"] != np.floor(raw["f"])).any():
        raise ValueError(
            f"{name}: f holds indices from {low} to {high}, wanted 0..{NUM_VERTS - 1} (hand.path)"
        )
    if np.abs(raw["weights"].sum(axis=1) - 1).max() > 1e-4:
        raise ValueError(f"{name}: skinning weights do not sum to 1 (hand.path)")
    if raw["weights"].min() < -1e-6:
        raise ValueError(
            f"{name}: skinning weights go down to {raw['weights'].min():.3g}, wanted >= 0"
            " (hand.path)"
        )
    sums = raw["J_regressor"].sum(axis=1)
    if np.abs(sums - 1).max() > 1e-2:
        raise ValueError(
            f"{name}: rows of J_regressor sum to {sums.min():.3f}..{sums.max():.3f}, wanted 1"
            " (hand.path)"
        )


def _parents(raw: dict[str, NDArray[Any]], name: str) -> tuple[int, ...]:
    parents = tuple(int(p) for p in raw["kintree_table"][0].astype(np.int64))
    parents = tuple(-1 if p == NO_PARENT else p for p in parents)
    if parents != CHAIN_PARENTS:
        raise ValueError(f"{name}: parents are {parents}, wanted {CHAIN_PARENTS} (hand.path)")
    return parents


def _x_equals_the_rights(path: Path, shapedirs: NDArray[np.float64]) -> bool | None:
    """Whether x of a left hand's shape directions is that of the right hand's file beside it.

    None: there is no such file, or its hand is not this one's mirror image.
    """
    name = path.name.replace("LEFT", "RIGHT").replace("left", "right")
    if name == path.name or not path.with_name(name).is_file():
        return None
    raw = read_mano(path.with_name(name))
    _check(raw, name)
    right = raw["shapedirs"][:, 0].astype(np.float64)
    same, mirrored = (np.abs(shapedirs[:, 0] - sign * right).sum() for sign in (1, -1))
    if min(same, mirrored) > 0.5 * np.abs(right).sum():
        return None
    return bool(same < mirrored)


def _x_shrinks_while_the_rest_grows(arrays: HandArrays) -> bool:
    """Guess from one left hand alone whether x of its shape directions has the wrong sign.

    A heuristic: the first shape direction is size, so it moves vertices outwards in x as it does in
    y and z. Compared are the slopes of displacement on place.

    Raises: ValueError when the slopes do not tell.
    """
    place = arrays.v_template - arrays.v_template.mean(axis=0)
    products, squares = (place * arrays.shapedirs[:, :, 0]).sum(axis=0), (place**2).sum(axis=0)
    x, rest = products[0] / squares[0], products[1:].sum() / squares[1:].sum()
    if min(abs(x), abs(rest)) < 0.2 * max(abs(x), abs(rest)):
        raise ValueError(
            f"{arrays.name}: whether x of the left hand's shapedirs has the wrong sign cannot be"
            f" told from its first direction (slopes {x:.3g} in x, {rest:.3g} in y and z): put the"
            " right hand's file beside it or say hand.left_shapedirs=negate_x (or as_is)"
        )
    return bool(x * rest < 0)


def _settle_left(arrays: HandArrays, path: Path, left_shapedirs: str) -> HandArrays:
    if left_shapedirs == "auto":
        wrong = _x_equals_the_rights(path, arrays.shapedirs)
        wrong = _x_shrinks_while_the_rest_grows(arrays) if wrong is None else wrong
        left_shapedirs = "negate_x" if wrong else "as_is"
    repair = LEFT_SHAPEDIRS[left_shapedirs]
    if repair is None:
        return arrays
    signs = np.array([-1.0, 1.0, 1.0] if left_shapedirs == "negate_x" else [-1.0, -1.0, -1.0])
    return replace(arrays, shapedirs=arrays.shapedirs * signs[:, None], repairs=(repair,))


def load_hand_arrays(path: str | Path, *, left_shapedirs: str = "auto") -> HandArrays:
    """Read and check a hand model: MANO's own pickle, or an npz in its layout.

    Args:
        path: as `resolve_hand_path` takes it.
        left_shapedirs: MANO_LEFT as shipped has x of its shape directions with the wrong sign.
            "auto" negates it where it is found so (by the right hand's file in the same folder,
            else by a heuristic), "as_is" never, "negate_x" always; "negate_all" negates all three
            components, as H2O-3D's betas want it. Only for left hands.
    Raises: FileNotFoundError saying where hand models come from; ValueError naming the array or the
        option that is wrong.
    """
    if left_shapedirs not in LEFT_SHAPEDIRS:
        raise ValueError(
            f"left_shapedirs must be one of {tuple(LEFT_SHAPEDIRS)}, got {left_shapedirs!r}"
            " (hand.left_shapedirs)"
        )
    path = resolve_hand_path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no hand model at {path}. The stand-in ships as data/standin_right.npz (hand=standin);"
            " MANO is licensed per user at https://mano.is.tue.mpg.de (hand=mano hand.path=FILE,"
            " MANO_RIGHT.pkl as downloaded)"
        )
    raw = read_mano(path)
    _check(raw, path.name)
    tip_ids = raw.get("tip_ids", np.asarray(FINGERTIP_VERTS["smplx"]))
    is_whole = tip_ids.shape == (5,) and tip_ids.dtype.kind in "iu"
    if not is_whole or not all(0 <= int(i) < NUM_VERTS for i in tip_ids):
        raise ValueError(
            f"{path.name}: tip_ids are {tip_ids.ravel()[:5].tolist()}, wanted five "
            "vertices (hand.path)"
        )
    known = {*SHAPES, "tip_ids", "repairs"}
    arrays = HandArrays(
        **{key: raw[key].astype(np.float64) for key in _FLOATS},
        faces=raw["f"].astype(np.int32),
        parents=_parents(raw, path.name),
        tip_ids=tuple(int(i) for i in tip_ids),
        name=path.stem,
        file_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        repairs=tuple(str(r) for r in np.ravel(raw.get("repairs", []))),
        extras={k: v for k, v in raw.items() if k not in known},
    )
    if arrays.side == "right":
        if left_shapedirs != "auto":
            raise ValueError(
                f"{path.name} is a right hand: hand.left_shapedirs={left_shapedirs} has no meaning"
                " for it, leave it at auto"
            )
        return arrays
    if "repairs" not in raw:
        return _settle_left(arrays, path, left_shapedirs)
    if LEFT_SHAPEDIRS[left_shapedirs] not in (None, *arrays.repairs):
        raise ValueError(
            f"{path.name} was converted with its shapedirs settled ({arrays.repairs or 'as is'}):"
            f" hand.left_shapedirs={left_shapedirs} is for the file it was converted from"
        )
    return arrays
