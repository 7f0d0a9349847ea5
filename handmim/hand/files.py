"""MANO's files: its own pickle read without chumpy and scipy, and our npz of the same arrays."""

import lzma
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handmim.utils.arrays import BAD_HEADER
from handmim.utils.files import atomic_path
from handmim.utils.unpickle import Record, UnsafePickleError, load_pickle

if TYPE_CHECKING:
    from handmim.hand.arrays import HandArrays

NUM_VERTS, NUM_FACES, NUM_CHAIN, NUM_BETAS = 778, 1538, 16, 10
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
# A model of 778 vertices in float64 has some 6 MB in a dozen arrays, further arrays are kept.
MAX_NPZ_BYTES, MAX_NPZ_ARRAYS = 1 << 28, 1000
BAD_NODE = (ValueError, KeyError, TypeError, IndexError, OverflowError, MemoryError)
BAD_NPZ = (
    *BAD_HEADER, KeyError, OverflowError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    RuntimeError,  # encrypted, or packed by an unknown method
)  # fmt: skip
NO_PARENT = 2**32 - 1  # how MANO writes the root's parent
_MAX_SIZE = (
    10_000_000  # entries of a sparse matrix or a selection; MANO's largest array has 315 090
)


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


def _dense(state: Mapping[str, Any], *, by_columns: bool) -> NDArray[Any]:
    """A compressed sparse matrix written out."""
    shape = state["_shape"] if "_shape" in state else state["shape"]
    num_rows, num_cols = (int(n) for n in shape)
    data, indices, indptr = (np.asarray(state[key]) for key in ("data", "indices", "indptr"))
    if not 0 < num_rows * num_cols <= _MAX_SIZE:
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


def _value(node: Any, depth: int = 0) -> NDArray[Any]:
    """The array that a node of the pickle stands for; chumpy saves formulas without their results.

    Raises: ValueError, KeyError, TypeError or IndexError for what makes no array.
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
    if idxs.size > _MAX_SIZE:
        raise ValueError(f"a selection of {idxs.size} entries")
    chosen = inner.ravel()[idxs]
    return chosen.reshape(node.state.get("preferred_shape", chosen.shape))


def _read_pickle(path: Path) -> dict[str, NDArray[Any]]:
    try:
        raw = load_pickle(path, _FOREIGN)
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{error}; of chumpy only Ch, Select and Reshape are known (hand.path)"
        ) from None
    except ValueError as error:
        raise ValueError(f"{error} (hand.path)") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds a {type(raw).__name__}, wanted MANO's dict (hand.path)")
    arrays = {}
    for key in SHAPES:
        if key in raw:
            try:
                arrays[key] = _value(raw[key])
            except BAD_NODE as error:
                raise ValueError(f"{path}: {key} holds {error} (hand.path)") from error
    return arrays


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
        raise ValueError(
            f"{path} is damaged or not an npz of plain arrays ({error}) (hand.path)"
        ) from error


def read_mano(path: str | Path) -> dict[str, NDArray[Any]]:
    """The arrays of a hand model's file under MANO's names, as they stand there.

    Only `shapedirs` is cut to its first ten directions. Of a pickle, keys outside `SHAPES` are left
    out (hands_coeffs, bs_style, ...); of an npz everything is returned.

    Args:
        path: MANO_RIGHT.pkl or MANO_LEFT.pkl as downloaded, or an npz with the same names.
    Raises: UnsafePickleError, ValueError: other formats, damaged files, and pickles that ask for
        anything but arrays (nothing in them is ever executed).
    """
    path = Path(path)
    if path.suffix not in (".pkl", ".npz"):
        raise ValueError(f"hand models are read from .pkl and .npz, got {path.name} (hand.path)")
    arrays = _read_pickle(path) if path.suffix == ".pkl" else _read_npz(path)
    if "shapedirs" in arrays and arrays["shapedirs"].ndim == 3:
        arrays["shapedirs"] = arrays["shapedirs"][:, :, :NUM_BETAS]
    return arrays


def save_npz(path: str | Path, arrays: "HandArrays") -> None:
    """Write a hand model as npz: the same arrays, and the same identity, when it is read again.

    `repairs` stands in the file: reading it does not repair a left hand once more. The file is
    there as a whole or not at all.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"hand models are written as .npz, got {path.name}")
    kintree = np.stack([[NO_PARENT, *arrays.parents[1:]], np.arange(NUM_CHAIN)]).astype(np.int64)
    content: dict[str, Any] = {key: getattr(arrays, key) for key in SHAPES if hasattr(arrays, key)}
    content |= {"f": arrays.faces, "kintree_table": kintree, "tip_ids": np.asarray(arrays.tip_ids)}
    content |= {"repairs": np.asarray(arrays.repairs, dtype=np.str_)} | arrays.extras
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.savez(file, **content)
