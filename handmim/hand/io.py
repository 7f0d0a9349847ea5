"""Files of hand models: MANO's own pickle, read without chumpy and scipy, and our npz of the same
arrays."""

import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmim.hand.arrays import NUM_BETAS, SHAPES, HandArrays, arrays_from, check_raw
from handmim.utils.arrays import BAD_HEADER
from handmim.utils.files import atomic_path
from handmim.utils.paths import STANDIN
from handmim.utils.unpickle import Record, UnsafePickleError, load_pickle

# What to do with a left hand's shape directions, and what is then on record.
LEFT_SHAPEDIRS = {
    "auto": None,
    "as_is": None,
    "negate_x": "left shapedirs x negated",
    "negate_all": "left shapedirs negated",
}
# A model of 778 vertices in float64 has some 6 MB in a dozen arrays, further arrays are kept.
MAX_NPZ_BYTES, MAX_NPZ_ARRAYS = 1 << 28, 1000
MAX_SIZE = 10_000_000  # entries of a sparse matrix or a selection; MANO's largest has 315 090
BAD_NODE = (ValueError, KeyError, TypeError, IndexError, OverflowError, MemoryError)
BAD_NPZ = (
    *BAD_HEADER, KeyError, OverflowError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    RuntimeError,  # encrypted, or packed by an unknown method
)  # fmt: skip


class _Leaf(Record):
    """chumpy.ch.Ch: an array."""


class _Select(Record):
    """chumpy.reordering.Select: entries of another node."""


class _Reshape(Record):
    """chumpy.reordering.Reshape: another node in another shape."""


class _SparseColumns(Record):
    """scipy's csc_matrix."""


class _SparseRows(Record):
    """scipy's csr_matrix."""


_FOREIGN: dict[tuple[str, str], type[Record]] = {
    ("chumpy.ch", "Ch"): _Leaf,
    ("chumpy.reordering", "Select"): _Select,
    ("chumpy.reordering", "Reshape"): _Reshape,
    ("scipy.sparse.csc", "csc_matrix"): _SparseColumns,
    ("scipy.sparse._csc", "csc_matrix"): _SparseColumns,
    ("scipy.sparse.csr", "csr_matrix"): _SparseRows,
    ("scipy.sparse._csr", "csr_matrix"): _SparseRows,
}


def resolve_hand_path(path: str | Path) -> Path:
    """The file of a hand: "standin" is the one that ships with handmim; a folder is searched for
    MANO_RIGHT.pkl and .npz, then its mano/ and models/; else the path itself.

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
        f"no MANO_RIGHT.pkl or MANO_RIGHT.npz in {path}, its mano/ or its models/"
    )


def load_hand_arrays(path: str | Path, *, left_shapedirs: str = "auto") -> HandArrays:
    """Read and check a hand model: MANO's own pickle, or an npz in its layout.

    Args:
        path: as `resolve_hand_path` takes it.
        left_shapedirs: what to do with a left hand's shape directions, in MANO_LEFT of which x has
            the wrong sign: "auto" (repair when they have), "as_is", "negate_x", or "negate_all",
            which H2O-3D's annotations need. An npz of `save_npz` is never repaired again.
    Raises: FileNotFoundError saying where the files come from; ValueError for a file that is no
        hand model, an unknown option or one that does not fit the file's hand.
    """
    if left_shapedirs not in LEFT_SHAPEDIRS:
        raise ValueError(
            f"left_shapedirs must be one of {tuple(LEFT_SHAPEDIRS)}, got {left_shapedirs!r}"
        )
    path = resolve_hand_path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no hand model at {path}: the stand-in is data/standin_right.npz (hand=standin);"
            " MANO is licensed per user at https://mano.is.tue.mpg.de (hand=mano hand.path=FILE,"
            " MANO_RIGHT.pkl as downloaded)"
        )
    try:
        raw = read_mano(path)
        arrays = arrays_from(raw, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        side = arrays.side
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{error}") from None
    except ValueError as error:
        raise ValueError(f"{error}") from error
    if side == "left" and "repairs" not in raw:
        return _repair_left(arrays, path, left_shapedirs)
    if side == "right" and left_shapedirs != "auto":
        raise ValueError(
            f"{path.name} is a right hand: hand.left_shapedirs={left_shapedirs} has no meaning"
            " for it, leave it at auto"
        )
    if LEFT_SHAPEDIRS[left_shapedirs] not in (None, *arrays.repairs):
        raise ValueError(
            f"{path.name} was converted with its shapedirs settled ({arrays.repairs or 'as is'}):"
            f" hand.left_shapedirs={left_shapedirs} is for the file it was converted from"
        )
    return arrays


def read_mano(path: str | Path) -> dict[str, NDArray[Any]]:
    """The arrays of a hand model's file under MANO's names, unchecked.

    Only `shapedirs` is cut to its first ten directions. Of a pickle, keys outside `SHAPES` are left
    out (hands_coeffs, bs_style, ...); of an npz everything is returned.

    Args:
        path: MANO_RIGHT.pkl or MANO_LEFT.pkl as downloaded, or an npz with the same names.
    Raises: UnsafePickleError, ValueError: other formats, damaged files, and pickles that name
        anything but arrays (nothing in them is ever executed).
    """
    path = Path(path)
    if path.suffix not in (".pkl", ".npz"):
        raise ValueError(f"hand models are read from .pkl and .npz, got {path.name}")
    arrays = _read_pickle(path) if path.suffix == ".pkl" else _read_npz(path)
    if "shapedirs" in arrays and arrays["shapedirs"].ndim == 3:
        arrays["shapedirs"] = arrays["shapedirs"][:, :, :NUM_BETAS]
    return arrays


def save_npz(path: str | Path, arrays: HandArrays) -> None:
    """Write a hand model as npz: the same arrays, and the same identity, when it is read again.

    `repairs` stands in the file: reading it does not repair a left hand once more. The file is
    there as a whole or not at all.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"hand models are written as .npz, got {path.name}")
    content: dict[str, Any] = {key: getattr(arrays, key) for key in SHAPES if key != "f"}
    content |= {"f": arrays.faces, "tip_ids": np.asarray(arrays.tip_ids)}
    content |= {"repairs": np.asarray(arrays.repairs, dtype=np.str_)} | arrays.extras
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.savez(file, **content)


def _read_pickle(path: Path) -> dict[str, NDArray[Any]]:
    try:
        raw = load_pickle(path, _FOREIGN)
    except UnsafePickleError as error:
        text = f"{error}; of chumpy only Ch, Select and Reshape are known"
        raise UnsafePickleError(text) from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold MANO's dict, got a {type(raw).__name__}")
    arrays = {}
    for key in [key for key in SHAPES if key in raw]:
        try:
            arrays[key] = _value(raw[key])
        except BAD_NODE as error:
            raise ValueError(f"{path}: {key} holds {error}") from error
    return arrays


def _value(node: Any, depth: int = 0) -> NDArray[Any]:
    """The array that a node of the pickle stands for; chumpy saves formulas without their results.

    Raises: one of BAD_NODE for what makes no array.
    """
    if isinstance(node, np.ndarray):
        return node
    if not isinstance(node, Record) or not isinstance(node.state, dict) or depth > 20:
        raise ValueError(f"{type(node).__name__} where an array was expected")
    if isinstance(node, (_SparseColumns, _SparseRows)):
        return _dense(node.state, by_columns=isinstance(node, _SparseColumns))
    if isinstance(node, _Leaf):
        return _value(node.state["x"], depth + 1)
    inner = _value(node.state["a"], depth + 1)
    if isinstance(node, _Reshape):
        return inner.reshape(node.state["newshape"])
    idxs = np.asarray(node.state["idxs"])
    if idxs.size > MAX_SIZE:
        raise ValueError(f"a selection of {idxs.size} entries")
    chosen = inner.ravel()[idxs]
    return chosen.reshape(node.state.get("preferred_shape", chosen.shape))


def _dense(state: Mapping[str, Any], *, by_columns: bool) -> NDArray[Any]:
    """A compressed sparse matrix written out."""
    shape = state["_shape"] if "_shape" in state else state["shape"]
    num_rows, num_cols = (int(n) for n in shape)
    data, indices, indptr = (np.asarray(state[key]) for key in ("data", "indices", "indptr"))
    if not 0 < num_rows * num_cols <= MAX_SIZE:
        raise ValueError(f"a sparse matrix of {num_rows} x {num_cols}")
    lines, others = (num_cols, num_rows) if by_columns else (num_rows, num_cols)
    counts = np.diff(indptr)
    if (
        len(counts) != lines
        or indptr[0] != 0
        or (counts < 0).any()
        or not indptr[-1] == len(data) == len(indices)
        or (len(indices) and not 0 <= indices.min() <= indices.max() < others)
    ):
        raise ValueError("a sparse matrix whose indices do not fit")
    dense = np.zeros((lines, others), dtype=data.dtype)
    np.add.at(dense, (np.repeat(np.arange(lines), counts), indices), data)  # scipy adds repeats up
    return dense.T if by_columns else dense


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile) or file.zip is None:
                raise ValueError("one array instead of an archive of arrays")
            with file:
                sizes = [member.file_size for member in file.zip.infolist()]
                if sum(sizes) > MAX_NPZ_BYTES or len(sizes) > MAX_NPZ_ARRAYS:
                    raise ValueError(
                        f"{len(sizes)} arrays of {sum(sizes)} bytes; at most {MAX_NPZ_ARRAYS} of "
                        f"{MAX_NPZ_BYTES} are read"
                    )
                return {key: file[key] for key in file.files}
    except BAD_NPZ as error:
        raise ValueError(f"{path} is damaged or not an npz of plain arrays ({error})") from error


def _repair_left(arrays: HandArrays, path: Path, left_shapedirs: str) -> HandArrays:
    if left_shapedirs == "auto":
        wrong = _x_equals_the_rights(path, arrays.shapedirs)
        wrong = _x_shrinks_while_the_rest_grows(arrays) if wrong is None else wrong
        left_shapedirs = "negate_x" if wrong else "as_is"
    repair = LEFT_SHAPEDIRS[left_shapedirs]
    if repair is None:
        return arrays
    signs = np.array([-1.0, 1.0, 1.0] if left_shapedirs == "negate_x" else [-1.0, -1.0, -1.0])
    return replace(arrays, shapedirs=arrays.shapedirs * signs[:, None], repairs=(repair,))


def _x_equals_the_rights(path: Path, shapedirs: NDArray[np.float64]) -> bool | None:
    """Whether x of a left hand's shape directions is that of the right hand's file beside it.

    None: there is no such file, or its hand is not this one's mirror image.
    """
    name = path.name.replace("LEFT", "RIGHT").replace("left", "right")
    if name == path.name or not path.with_name(name).is_file():
        return None
    raw = read_mano(path.with_name(name))
    check_raw(raw, name)
    right = raw["shapedirs"][:, 0].astype(np.float64)
    same, mirrored = (np.abs(shapedirs[:, 0] - sign * right).sum() for sign in (1, -1))
    if min(same, mirrored) > 0.5 * np.abs(right).sum():
        return None
    return bool(same < mirrored)


def _x_shrinks_while_the_rest_grows(arrays: HandArrays) -> bool:
    """Guess from one left hand alone whether x of its shape directions has the wrong sign.

    The first shape direction is size, so it moves vertices outwards in x as in y and z. Compared
    are the slopes of displacement on position.

    Raises: ValueError when the slopes do not decide.
    """
    position = arrays.v_template - arrays.v_template.mean(axis=0)
    products = (position * arrays.shapedirs[:, :, 0]).sum(axis=0)
    squares = (position**2).sum(axis=0)
    x, rest = products[0] / squares[0], products[1:].sum() / squares[1:].sum()
    if min(abs(x), abs(rest)) < 0.2 * max(abs(x), abs(rest)):
        raise ValueError(
            f"{arrays.name}: its first shape direction does not show whether x of the left hand's"
            f" shapedirs has the wrong sign (slopes {x:.3g} in x, {rest:.3g} in y and z): put the"
            " right hand's file beside it or set hand.left_shapedirs=negate_x (or as_is)"
        )
    return bool(x * rest < 0)
