"""Any hand as a file like MANO's own, and the other hand of a hand: for tests and dry runs without
the licensed files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmim.hand.conventions import MIRROR
from handmim.hand.io import HandArrays
from synthesis.python2_pickle import Foreign, dump

_SIGNS = np.diag(MIRROR)
_NUM_DIRECTIONS = 20  # that MANO's file holds; its model uses half


def _chumpy(module: str, name: str, dirty: set[str], **terms: Any) -> Foreign:
    """A node of a chumpy formula as pickling leaves it: no result, no links to its parents."""
    bookkeeping: dict[str, Any] = {
        "_dirty_vars": dirty,
        "_itr": None,
        "_depends_on_deps": {},
        "_make_dense": False,
        "_make_sparse": False,
        "_status": "new",
    }
    return Foreign(module, name, bookkeeping | terms)


def _leaf(array: NDArray[np.float64]) -> Foreign:
    return _chumpy("chumpy.ch", "Ch", {"x"}, x=array)


def _sparse_columns(dense: NDArray[np.float64]) -> Foreign:
    cols, rows = np.nonzero(dense.T)
    starts = np.concatenate([[0], np.bincount(cols, minlength=dense.shape[1]).cumsum()])
    state = {
        "_shape": dense.shape,
        "data": dense[rows, cols],
        "indices": rows.astype(np.int32),
        "indptr": starts.astype(np.int32),
        "format": "csc",
        "maxprint": 50,
    }
    return Foreign("scipy.sparse.csc", "csc_matrix", state)


def write_fake_mano(arrays: HandArrays, path: str | Path) -> None:
    """Write a hand as Python 2 pickled MANO_RIGHT.pkl and MANO_LEFT.pkl.

    The shape directions are a chumpy selection of the first half of twenty, the skinning weights a
    reshaped and the template a bare chumpy array, the joint regressor a sparse matrix of a scipy
    module that is gone, the root's parent 2^32 - 1, and keys that nobody needs are there.

    Args:
        arrays: the hand. Such a file has no fingertips and extras.
        path: target.
    """
    num_verts, _, num_betas = arrays.shapedirs.shape
    indices = np.arange(num_verts * 3 * _NUM_DIRECTIONS).reshape(num_verts, 3, _NUM_DIRECTIONS)
    unused = arrays.shapedirs[:, ::-1] * 0.1  # would show if the wrong half were taken
    select = _chumpy(
        "chumpy.reordering",
        "Select",
        set(),
        a=_leaf(np.concatenate([arrays.shapedirs, unused], axis=2)),
        idxs=indices[:, :, :num_betas].ravel(),
        preferred_shape=arrays.shapedirs.shape,
    )
    weights = _chumpy(
        "chumpy.reordering",
        "Reshape",
        {"a", "newshape"},
        a=_leaf(arrays.weights.ravel()),
        newshape=arrays.weights.shape,
    )
    content = {
        "hands_components": arrays.hands_components,
        "f": arrays.faces.astype(np.uint32),
        "J_regressor": _sparse_columns(arrays.J_regressor),
        "kintree_table": arrays.kintree_table.astype(np.uint32),
        "J": arrays.J_regressor @ arrays.v_template,
        "hands_coeffs": np.zeros((3, 45)),
        "weights": weights,
        "posedirs": arrays.posedirs,
        "bs_style": "lbs",
        "hands_mean": arrays.hands_mean,
        "v_template": _leaf(arrays.v_template),
        "shapedirs": select,
        "bs_type": "lrotmin",
    }
    dump(content, path)


def mirrored(arrays: HandArrays, buggy_shapedirs: bool = False) -> HandArrays:
    """The other hand: the mirror image in x of this one in every pose, for the same betas.

    Poses mirror as axis-angle (a, b, c) to (a, -b, -c). Extras (joint axes, limits) are left out.

    Args:
        arrays: a right or left hand.
        buggy_shapedirs: keep x of the shape directions as it is, which is how MANO_LEFT ships.
    """
    rotvec_signs = np.tile([1.0, -1.0, -1.0], 15)
    # entry (a, b) of R becomes s_a s_b R_ab, and the displacement that it drives is mirrored too
    entry_signs = np.tile(np.outer(_SIGNS, _SIGNS).ravel(), 15)
    here, there = ("right", "left") if arrays.side == "right" else ("left", "right")
    name = arrays.name.replace(here, there).replace(here.upper(), there.upper())
    shape_signs = np.ones(3) if buggy_shapedirs else _SIGNS
    return replace(
        arrays,
        v_template=arrays.v_template * _SIGNS,
        faces=np.ascontiguousarray(arrays.faces[:, [0, 2, 1]]),
        shapedirs=arrays.shapedirs * shape_signs[:, None],
        posedirs=arrays.posedirs * _SIGNS[:, None] * entry_signs,
        hands_mean=arrays.hands_mean * rotvec_signs,
        hands_components=arrays.hands_components * rotvec_signs,
        name=name,
        file_sha256="",
        repairs=(),
        extras={},
    )
