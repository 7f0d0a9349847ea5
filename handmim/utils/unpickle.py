"""Read pickles of plain data and arrays without running anything they ask for.

A pickle is a small program that may call whatever it names. Here a name leads to an inert stand-in
or nowhere: nothing is imported, and numpy's own unpickling code is not used either. Arrays are
recorded as they are written (type, shape, bytes) and built by us once everything has been read.
"""

import io
import math
import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

# Numbers, bytes, text and plain objects; no records, no dates.
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)|[SU][1-9][0-9]*|O8?")
_NAMED = frozenset(["GLOBAL", "INST"])
_NUMBERED = frozenset(["EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"])
_PLACED = frozenset(["PUT", "BINPUT", "LONG_BINPUT"])
_TUPLES = frozenset(["TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"])
_MAX_TUPLES = 50_000  # tuples may hold tuples: their hash would exhaust the stack, unlike ours

DAMAGE = (
    pickle.UnpicklingError, EOFError, IndexError, KeyError, AttributeError, TypeError, ValueError,
    OverflowError, MemoryError, RecursionError, ImportError, struct.error,
)  # fmt: skip


class UnsafePickleError(ValueError):
    """The file asks for more than data; nothing of it was executed."""


class Record:
    """Inert stand-in for an object of a foreign class: what the pickle says of it, and no more.

    A subclass per foreign class tells them apart.

    Attributes:
        args: what the class would have been called with.
        state: what the object would have been restored from, None if nothing.
    """

    args: tuple[Any, ...]
    state: Any
    __hash__ = None  # type: ignore[assignment]  # never a key: its state changes after it is made

    def __new__(cls, *args: Any) -> "Record":
        """Made by any of the ways in which pickles make objects."""
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(Record):
    """A numpy array as written: state (version, shape, dtype, is Fortran order, content), args
    nothing or the order of its axes."""


class _Dtype(Record):
    """A numpy dtype as written: args (code, align, copy), state (version, byte order, ...)."""


class _Call:
    """A function of ours that a pickle may call and cannot alter."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise UnsafePickleError(f"wants to alter {name}")

    def __setstate__(self, state: Any) -> NoReturn:
        raise UnsafePickleError("wants to alter a function")


def _raw(content: Any) -> bytes:
    """Bytes of an array; Python 2 wrote them as a string."""
    if isinstance(content, str):
        return content.encode("latin1")
    if isinstance(content, (bytes, bytearray)):
        return bytes(content)
    raise ValueError(f"array content is {type(content).__name__}, wanted bytes")


def _real_dtype(record: Any) -> np.dtype[Any]:
    if not isinstance(record, _Dtype) or not record.args:
        raise ValueError(f"array type is {type(record).__name__}, wanted a numpy dtype")
    code, state = record.args[0], record.state
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
        raise ValueError(f"arrays of type {code!r} are not read")
    if state is None:
        return np.dtype(code)
    if not isinstance(state, tuple) or len(state) < 5 or any(s is not None for s in state[2:5]):
        raise ValueError(f"arrays of type {code!r} with fields are not read")
    if state[1] not in ("<", ">", "|", "="):
        raise ValueError(f"byte order {state[1]!r} is not one")
    return np.dtype(code).newbyteorder(state[1])


def _build_array(dtype: Any, shape: Any, fortran: Any, content: Any) -> NDArray[Any]:
    """Array of the recorded parts, which must fit each other; memory is taken for content only."""
    real = _real_dtype(dtype)
    if not isinstance(shape, tuple) or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"array shape is {shape!r}")
    order: Literal["F", "C"] = "F" if fortran else "C"
    count = math.prod(shape)
    if real.hasobject:
        if not isinstance(content, list) or len(content) != count:
            raise ValueError(f"array of shape {shape} does not hold {count} objects")
        flat = np.empty(count, dtype=object)
        for i, item in enumerate(content):
            flat[i] = item
        return flat.reshape(shape, order=order)
    raw = _raw(content)
    if len(raw) != count * real.itemsize:
        raise ValueError(
            f"array of shape {shape} and type {real} holds {len(raw)} bytes,"
            f" wanted {count * real.itemsize}"
        )
    if count == 0:
        return np.zeros(shape, dtype=real)
    return np.frombuffer(raw, dtype=real).reshape(shape, order=order).copy(order="K")


def _reconstruct(kind: Any, shape: Any, code: Any) -> Record:
    if kind is not _Array:
        raise UnsafePickleError("wants numpy to build something other than an array")
    return _Array()


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Record:
    array = _Array() if axes is None else _Array(axes)
    array.state = (1, shape, dtype, order == "F", buffer)
    return array


def _scalar(dtype: Any, content: Any) -> Any:
    return _build_array(dtype, (1,), False, content)[0]


def _reconstructor(kind: Any, base: Any, state: Any) -> Record:
    if not (isinstance(kind, type) and issubclass(kind, Record)) or base is not object or state:
        raise UnsafePickleError(f"wants to rebuild {kind!r} from {base!r}")
    return kind()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError(f"wants to encode by {encoding!r}")
    return text.encode("latin1")


def _bytes(*args: Any) -> bytes:
    if args:
        raise UnsafePickleError("wants to convert to bytes")
    return b""


def _bytearray(content: Any = b"", *encoding: Any) -> bytearray:
    if isinstance(content, str):
        return bytearray(_encode(content, *encoding))
    return bytearray(_raw(content))


def _names() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _Call(_encode),
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = _Call(_reconstruct)
        names[f"{core}.multiarray", "scalar"] = _Call(_scalar)
        names[f"{core}.numeric", "_frombuffer"] = _Call(_from_buffer)
    for module in ("__builtin__", "builtins"):
        # Built-in types cannot be altered, and these do nothing but hold what they are given.
        for kind in (object, set, frozenset, complex):
            names[module, kind.__name__] = kind
        names[module, "bytes"], names[module, "bytearray"] = _Call(_bytes), _Call(_bytearray)
    for module in ("copy_reg", "copyreg"):
        names[module, "_reconstructor"] = _Call(_reconstructor)
    return names


_NAMES = _names()


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, names: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(io.BytesIO(data), fix_imports=False, encoding="latin1")
        self.names = names

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise UnsafePickleError(f"asks for {module}.{name}")
        return self.names[module, name]


def _scan(data: bytes, names: Mapping[tuple[str, str], Any]) -> None:
    """Go over the opcodes first: what is refused or damaged shows before anything is built."""
    num_tuples = 0
    for opcode, arg, _ in pickletools.genops(data):
        if opcode.name in _NAMED:
            module, _, name = str(arg).partition(" ")
            if (module, name) not in names:
                raise UnsafePickleError(f"asks for {module}.{name}")
        elif opcode.name in _NUMBERED:
            raise UnsafePickleError(f"asks for an object by number ({opcode.name})")
        elif opcode.name in _PLACED:
            # The reader would reserve room for that many objects.
            if int(arg or 0) > len(data):
                raise ValueError(f"object number {arg} in {len(data)} bytes")
        elif opcode.name in _TUPLES:
            num_tuples += 1
    if num_tuples > _MAX_TUPLES:
        raise ValueError(f"{num_tuples} tuples")


def _settle(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """Replace recorded arrays and dtypes by real ones, anywhere; containers keep their identity.

    `done` holds the originals too, so that no new object takes over the id of a freed one.
    """
    if type(value) not in (list, dict, tuple) and not isinstance(value, Record):
        return value
    if id(value) in done:
        return done[id(value)][1]
    if isinstance(value, _Dtype):
        result: Any = _real_dtype(value)
    elif isinstance(value, _Array):
        state = value.state
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array without content")
        _, shape, dtype, fortran, content = state
        result = _build_array(dtype, shape, fortran, _settle(content, done))
        result = result.transpose(value.args[0]) if value.args else result
    elif isinstance(value, tuple):
        result = tuple(_settle(item, done) for item in value)
    else:
        result = value
        done[id(value)] = (value, result)
        if isinstance(value, Record):
            value.args, value.state = _settle(value.args, done), _settle(value.state, done)
        elif isinstance(value, dict):
            for key, item in value.items():
                value[key] = _settle(item, done)
        else:
            value[:] = [_settle(item, done) for item in value]
    done[id(value)] = (value, result)
    return result


def load_pickle(
    path: str | Path, allowed: Mapping[tuple[str, str], type[Record]] | None = None
) -> Any:
    """Read a pickle of numbers, text, containers and numpy arrays, written by Python 2 or 3.

    Args:
        path: the file. Text of Python 2 is read as Latin-1.
        allowed: further classes by exact (module, name), each with the `Record` that stands for it.
    Returns: the data; objects of `allowed` classes as records.
    Raises: UnsafePickleError (a ValueError) naming what the file asks for beyond that, before any
        of it has run; ValueError for a file that is no pickle, cut short or damaged; OSError.
    """
    data = Path(path).read_bytes()
    names = {**_NAMES, **(allowed or {})}
    try:
        _scan(data, names)
        return _settle(_Reader(data, names).load(), {})
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{path} {error}: refused, nothing in the file was executed. Wanted are plain values"
            " and numpy arrays; take the file from its original source"
        ) from None
    except DAMAGE as error:
        raise ValueError(
            f"{path} is damaged or not a pickle of plain values and numpy arrays"
            f" ({type(error).__name__}: {str(error)[:200]}): copy or download it again"
        ) from error
