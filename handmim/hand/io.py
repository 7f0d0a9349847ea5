"""A hand model as plain arrays in MANO's layout, their checks, and its files: MANO's pickle, read
without chumpy and scipy, and our npz."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from handmim.hand.skeleton import CHAIN_PARENTS, FINGERTIP_VERTS
from handmim.utils.arguments import one_of
from handmim.utils.files import DAMAGE, atomic_path
from handmim.utils.paths import STANDIN
from handmim.utils.unpickle import Record, UnsafePickleError, load_pickle

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

# Foreign classes that a pickle may hold, by name and modules.
_MODULES = {
    "Ch": ("chumpy.ch",),
    "Select": ("chumpy.reordering",),
    "Reshape": ("chumpy.reordering",),
    "csc_matrix": ("scipy.sparse.csc", "scipy.sparse._csc"),
    "csr_matrix": ("scipy.sparse.csr", "scipy.sparse._csr"),
}
_FOREIGN: dict[tuple[str, str], type[Record]] = {
    (module, name): type(name, (Record,), {}) for name in _MODULES for module in _MODULES[name]
}


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


def resolve_hand_path(path: str | Path) -> Path:
    """The file of a hand: "standin" ships with handmim; a folder is searched for MANO_RIGHT.pkl and
    .npz, then its mano/ and models/."""
    if str(path) == "standin":
        return STANDIN
    path = Path(path)
    if not path.is_dir():
        return path
    for folder, suffix in product((path, path / "mano", path / "models"), (".pkl", ".npz")):
        if (file := folder / f"MANO_RIGHT{suffix}").is_file():
            return file
    raise FileNotFoundError(f"no MANO_RIGHT.pkl or .npz in {path}, its mano/ or its models/")


def load_hand_arrays(path: str | Path, *, left_shapedirs: str = "auto") -> HandArrays:
    """Read and check a hand model: MANO's own pickle, or an npz in its layout.

    `left_shapedirs` says what to do with a left hand's shape directions, in MANO_LEFT of which x
    has the wrong sign: "auto" (repair when they have), "as_is", "negate_x", or "negate_all", which
    H2O-3D's annotations need. An npz of `save_npz` is never repaired again.
    Raises: FileNotFoundError; ValueError for another file, or an option that does not fit."""
    one_of("left_shapedirs", left_shapedirs, LEFT_SHAPEDIRS)
    path = resolve_hand_path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no hand model at {path}: hand=standin is data/standin_right.npz; MANO is licensed per"
            " user, https://mano.is.tue.mpg.de (hand=mano hand.path=FILE, MANO_RIGHT.pkl as it is)"
        )
    raw = read_mano(path)
    arrays = arrays_from(raw, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    if arrays.side == "left" and "repairs" not in raw:
        return _repair_left(arrays, path, left_shapedirs)
    if arrays.side == "right" and left_shapedirs != "auto":
        option = f"hand.left_shapedirs={left_shapedirs}"
        raise ValueError(f"{path.name} is a right hand: {option} has no meaning, leave it at auto")
    if LEFT_SHAPEDIRS[left_shapedirs] not in (None, *arrays.repairs):
        raise ValueError(
            f"{path.name} was converted with its shapedirs settled ({arrays.repairs or 'as is'}):"
            f" hand.left_shapedirs={left_shapedirs} is for the file it was converted from"
        )
    return arrays


def read_mano(path: str | Path) -> dict[str, NDArray[Any]]:
    """Unchecked arrays of a hand model's .pkl or .npz under MANO's names, ten shape directions at
    most; of a pickle only those in `SHAPES`. ValueError for other formats, damaged files, and
    pickles that name anything but arrays."""
    path = Path(path)
    if path.suffix not in (".pkl", ".npz"):
        raise ValueError(f"hand models are read from .pkl and .npz, got {path.name}")
    arrays = _read_pickle(path) if path.suffix == ".pkl" else _read_npz(path)
    if "shapedirs" in arrays and arrays["shapedirs"].ndim == 3:
        arrays["shapedirs"] = arrays["shapedirs"][:, :, :NUM_BETAS]
    return arrays


def save_npz(path: str | Path, arrays: HandArrays) -> None:
    """Write a hand model as npz, whole or not at all; reading it repairs no left hand once more."""
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"hand models are written as .npz, got {path.name}")
    content: dict[str, Any] = {"f": arrays.faces, "tip_ids": np.asarray(arrays.tip_ids)}
    content |= {key: getattr(arrays, key) for key in SHAPES if key != "f"}
    content |= {"repairs": np.asarray(arrays.repairs, dtype=np.str_)} | arrays.extras
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.savez(file, **content)


def _read_pickle(path: Path) -> dict[str, NDArray[Any]]:
    try:
        raw = load_pickle(path, _FOREIGN)
    except UnsafePickleError as error:
        known = ", ".join(_MODULES)
        raise UnsafePickleError(f"{error}; of chumpy and scipy only {known} are read") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold MANO's dict, got a {type(raw).__name__}")
    arrays = {}
    for key in [key for key in SHAPES if key in raw]:
        try:
            arrays[key] = _value(raw[key])
        except (*DAMAGE, MemoryError) as error:
            raise ValueError(f"{path}: {key} holds {error}") from error
    return arrays


def _value(node: Any, depth: int = 0) -> NDArray[Any]:
    """The array that a node of the pickle stands for; chumpy saves formulas without results."""
    if isinstance(node, np.ndarray):
        return node
    if not isinstance(node, Record) or not isinstance(node.state, dict) or depth > 20:
        raise ValueError(f"{type(node).__name__} where an array was expected")
    name, state = type(node).__name__, node.state
    if name in ("csc_matrix", "csr_matrix"):
        return _dense(state, by_columns=name == "csc_matrix")
    if name == "Ch":
        return _value(state["x"], depth + 1)
    inner = _value(state["a"], depth + 1)
    if name == "Reshape":
        return inner.reshape(state["newshape"])
    idxs = np.asarray(state["idxs"])
    if idxs.size > MAX_SIZE:
        raise ValueError(f"a selection of {idxs.size} entries")
    chosen = inner.ravel()[idxs]
    return chosen.reshape(state.get("preferred_shape", chosen.shape))


def _dense(state: Mapping[str, Any], *, by_columns: bool) -> NDArray[Any]:
    """A compressed sparse matrix written out."""
    num_rows, num_cols = map(int, state["_shape" if "_shape" in state else "shape"])
    data, indices, indptr = (np.asarray(state[key]) for key in ("data", "indices", "indptr"))
    if not 0 < num_rows * num_cols <= MAX_SIZE:
        raise ValueError(f"a sparse matrix of {num_rows} x {num_cols}")
    lines, others = (num_cols, num_rows) if by_columns else (num_rows, num_cols)
    counts = np.diff(indptr)
    fits = len(counts) == lines and indptr[0] == 0 and (counts >= 0).all()
    fits = fits and indptr[-1] == len(data) == len(indices)
    if not fits or (len(indices) and not 0 <= indices.min() <= indices.max() < others):
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
                    limit = f"at most {MAX_NPZ_ARRAYS} of {MAX_NPZ_BYTES} are read"
                    raise ValueError(f"{len(sizes)} arrays of {sum(sizes)} bytes; {limit}")
                return {key: file[key] for key in file.files}
    except (*DAMAGE, MemoryError) as error:
        raise ValueError(f"{path} is damaged or not an npz of plain arrays ({error})") from error


def _repair_left(arrays: HandArrays, path: Path, left_shapedirs: str) -> HandArrays:
    if left_shapedirs == "auto":
        wrong = _x_equals_the_rights(path, arrays.shapedirs)
        wrong = _x_shrinks_while_the_rest_grows(arrays) if wrong is None else wrong
        left_shapedirs = "negate_x" if wrong else "as_is"
    if (repair := LEFT_SHAPEDIRS[left_shapedirs]) is None:
        return arrays
    signs = np.array([-1.0, 1.0, 1.0] if left_shapedirs == "negate_x" else [-1.0, -1.0, -1.0])
    return replace(arrays, shapedirs=arrays.shapedirs * signs[:, None], repairs=(repair,))


def _x_equals_the_rights(path: Path, shapedirs: NDArray[np.float64]) -> bool | None:
    """Whether x of a left hand's shape directions is that of the right hand's file beside it; None
    where its mirror image is not there."""
    name = path.name.replace("LEFT", "RIGHT").replace("left", "right")
    if name == path.name or not path.with_name(name).is_file():
        return None
    check_raw(raw := read_mano(path.with_name(name)), name)
    right = raw["shapedirs"][:, 0].astype(np.float64)
    same, mirrored = (np.abs(shapedirs[:, 0] - sign * right).sum() for sign in (1, -1))
    if min(same, mirrored) > 0.5 * np.abs(right).sum():
        return None
    return bool(same < mirrored)


def _x_shrinks_while_the_rest_grows(arrays: HandArrays) -> bool:
    """Guess whether x has the wrong sign: the first shape direction is size, so that slopes of
    displacement on position have one sign."""
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
