"""Values that a pickle may make: its calls are noted, and made here in proportion to the file."""

import math
import re
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# Numbers of different value and equal hash are easily found: a dict of n of them takes n^2 steps.
# Python's hashes of text and bytes are random, and those of integers of 8 bytes differ.
MAX_FORGEABLE_KEYS = 10_000
# Bytes of content per byte of file, and beside that. A file may make once what it holds once, in
# a few steps; objects referred to again and again would make gigabytes of kilobytes.
CONTENT_PER_BYTE, CONTENT_FREE = 8, 16_000_000
SLOT, MEMBER = 8, 32  # bytes of a reference in a container, and in a set
MAX_ARGS, MAX_AXES = 8, 32
# Numbers, bytes, text and plain objects; no records, no dates.
DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)|[SU][1-9][0-9]*|O8?")
PLAIN, TEXT = {type(None), bool, int, float, type}, {str, bytes, bytearray}
KEYS = (type(None), str, bytes, int, float, complex, np.number, np.bool_)


class UnsafePickleError(ValueError):
    """The file makes more than data; nothing of it was executed."""


class Record:
    """Inert stand-in for an object of a foreign class: what the class would have been called with,
    and the state that it would have been restored from."""

    args: tuple[Any, ...]
    state: Any
    __hash__ = None  # type: ignore[assignment]  # never a key: its state changes after it is made

    def __new__(cls, *args: Any) -> "Record":
        """Called in each of the ways in which pickles make objects."""
        if len(args) > MAX_ARGS:
            raise ValueError(f"an object made of {len(args)} parts")
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record


class Call(Record):
    """A call of the function of `Maker` that a subclass is named after."""


class Dict(list[Any]):
    """A dict as its keys and values in turn."""


def _shown(value: Any) -> str:
    """A value in a message; containers may be endless when written out."""
    return repr(value[:40]) if isinstance(value, (str, bytes)) else type(value).__name__


class Maker:
    """Makes what a pickle notes, in proportion to the file's size; arrays are checked before numpy
    takes their types, shapes and sizes."""

    def __init__(self, file_size: int) -> None:
        self.file_size, self.spent, self.num_forgeable_keys = file_size, 0, 0
        self.limit = CONTENT_PER_BYTE * file_size + CONTENT_FREE
        self.done: dict[int, tuple[Any, Any, int]] = {}  # by id: node, its value, bytes spent

    def spend(self, num_bytes: int) -> None:
        """Count bytes that are about to be made or gone over; UnsafePickleError for too many."""
        self.spent += num_bytes
        if self.spent > self.limit:
            raise UnsafePickleError(
                f"makes more than {self.limit} bytes of content in a file of {self.file_size}"
            )

    def value(self, node: Any) -> Any:
        """The value of a node. What is referred to again is spent again: it may be gigabytes when
        written out."""
        self.spend(SLOT)
        if type(node) in PLAIN:
            return node
        if type(node) in TEXT:
            self.spend(len(node))
            return node
        if id(node) in self.done:
            self.spend(self.done[id(node)][2])
            return self.done[id(node)][1]
        before = self.spent
        made = self._made(node)
        self.done[id(node)] = node, made, self.spent - before
        return made

    def _made(self, node: Any) -> Any:
        if isinstance(node, Call):
            return self._called(node)
        if isinstance(node, tuple):
            return tuple(map(self.value, node))
        made: Any = {} if isinstance(node, Dict) else [] if isinstance(node, list) else node
        self.done[id(node)] = node, made, SLOT  # for parts that hold it
        if isinstance(node, Dict):
            for key, value in zip(node[::2], node[1::2], strict=True):
                made[self.key(self.value(key))] = self.value(value)
        elif isinstance(node, list):
            made.extend(map(self.value, node))
        elif isinstance(node, Record):
            made.args, made.state = self.value(node.args), self.value(node.state)
        else:
            raise ValueError(f"a {type(node).__name__} where data is required")
        return made

    def _called(self, node: Call) -> Any:
        name, args, state = type(node).__name__, map(self.value, node.args), self.value(node.state)
        if name in RESTORED:
            return self.call(name, state, *args)
        if state is not None or name not in CALLED:
            raise ValueError(f"a {name} without content, or with state")
        return self.call(name, *args)

    def call(self, name: str, *args: Any) -> Any:
        """The result of one of the functions below."""
        return getattr(self, f"_{name}")(*args)

    def key(self, key: Any) -> Any:
        """A key of a dict or member of a set, before it is hashed."""
        parts = key if isinstance(key, tuple) else (key,)
        self.spend(SLOT * len(parts))
        for part in parts:
            if not isinstance(part, KEYS):
                kind = "tuple inside a tuple" if parts is key else type(part).__name__
                raise UnsafePickleError(f"uses a {kind} as a key")
            if isinstance(part, (str, bytes)):
                self.spend(len(part))
            elif isinstance(part, int):
                self.spend(part.bit_length() // 8)
        is_short = isinstance(key, (str, bytes, type(None)))
        if not is_short and not (isinstance(key, int) and key.bit_length() <= 64):
            self.num_forgeable_keys += 1
            if self.num_forgeable_keys > MAX_FORGEABLE_KEYS:
                raise UnsafePickleError(
                    f"uses more than {MAX_FORGEABLE_KEYS} keys that are neither text nor integers "
                    "of 8 bytes"
                )
        return key

    def _dtype(self, state: Any, code: Any, align: Any = False, copy: Any = False) -> np.dtype[Any]:
        if not isinstance(code, str) or not DTYPE.fullmatch(code):
            raise ValueError(f"arrays of type {_shown(code)} are not read")
        dtype: np.dtype[Any] = np.dtype(code)
        if state is None:
            return dtype
        if not isinstance(state, tuple) or len(state) < 5 or any(s is not None for s in state[2:5]):
            raise ValueError(f"arrays of type {code} with fields are not read")
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {_shown(state[1])} is not one")
        return dtype.newbyteorder(state[1])

    def _reconstruct(self, state: Any, kind: Any, shape: Any, code: Any) -> NDArray[Any]:
        if kind is not CALLS["ndarray"]:
            raise UnsafePickleError("makes numpy build something other than an array")
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array without content")
        return self._array(*state[1:])

    def _array(self, shape: Any, dtype: Any, fortran: Any, content: Any) -> NDArray[Any]:
        """Array of the noted parts, which must fit each other."""
        if not isinstance(dtype, np.dtype):
            raise ValueError(f"array type is {type(dtype).__name__}, a numpy dtype is required")
        if not isinstance(shape, tuple) or len(shape) > MAX_AXES:
            raise ValueError(f"array shape is {_shown(shape)}, {MAX_AXES} axes at most are read")
        if any(type(n) is not int or not 0 <= n < 2**63 for n in shape):
            raise ValueError("array shape is of anything but lengths")
        order: Literal["F", "C"] = "F" if fortran else "C"
        count = math.prod(shape)
        if dtype.hasobject:
            if not isinstance(content, list) or len(content) != count:
                raise ValueError(f"array of shape {shape} does not hold {count} objects")
            flat = np.empty(count, dtype=object)
            for i, item in enumerate(content):
                flat[i] = item
            return flat.reshape(shape, order=order)
        raw = self._raw(content)
        if len(raw) != count * dtype.itemsize:
            raise ValueError(
                f"array of shape {shape} and type {dtype} holds {len(raw)} bytes,"
                f" {count * dtype.itemsize} are required"
            )
        if count == 0:
            return np.zeros(shape, dtype=dtype)
        return np.frombuffer(raw, dtype=dtype).reshape(shape, order=order).copy(order="K")

    def _raw(self, content: Any) -> bytes:
        """Bytes of an array; Python 2 wrote them as a string."""
        if not isinstance(content, (str, bytes, bytearray)):
            raise ValueError(f"array content is {type(content).__name__}, bytes are required")
        self.spend(len(content))
        return content.encode("latin1") if isinstance(content, str) else bytes(content)

    def _from_buffer(self, raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
        array = self._array(shape, dtype, order == "F", raw)
        return array if axes is None else array.transpose(axes)

    def _scalar(self, dtype: Any, content: Any) -> Any:
        return self._array((1,), dtype, False, content)[0]

    def _reconstructor(self, state: Any, kind: Any, base: Any, content: Any) -> Record:
        is_class = (
            isinstance(kind, type) and issubclass(kind, Record) and not issubclass(kind, Call)
        )
        if not is_class or base is not CALLS["object"] or content:
            raise UnsafePickleError(f"tries to rebuild {_shown(kind)} from {_shown(base)}")
        record = kind()
        record.state = state
        return record

    def _encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise UnsafePickleError(f"tries to encode by {_shown(encoding)}")
        return self._raw(text)

    def _complex(self, real: Any, imag: Any) -> complex:
        if not isinstance(real, (int, float)) or not isinstance(imag, (int, float)):
            raise UnsafePickleError("tries to convert to a complex number")
        return complex(real, imag)

    def _bytes(self, *args: Any) -> bytes:
        if args:
            raise UnsafePickleError("tries to convert to bytes")
        return b""

    def _bytearray(self, content: Any = b"", encoding: Any = "latin1") -> bytearray:
        is_text = isinstance(content, str)
        return bytearray(self._encode(content, encoding) if is_text else self._raw(content))

    def _set(self, members: Any = ()) -> set[Any]:
        if not isinstance(members, (list, tuple)):
            raise UnsafePickleError(f"tries to convert a {type(members).__name__} to a set")
        self.spend(MEMBER * len(members))
        return {self.key(member) for member in members}

    def _frozenset(self, members: Any = ()) -> frozenset[Any]:
        return frozenset(self._set(members))


BUILTINS = ("set", "frozenset", "complex", "bytes", "bytearray")
CALLED = (*BUILTINS, "encode", "scalar", "from_buffer")
RESTORED = ("dtype", "reconstruct", "reconstructor")  # from a state, which comes first
PYTHON, NUMPY = ("__builtin__", "builtins"), ("numpy.core", "numpy._core")
# Modules and name of what a pickle may name, by the name of its `Call`.
KNOWN = {
    **{name: (PYTHON, name) for name in (*BUILTINS, "object")},
    "ndarray": (("numpy",), "ndarray"),
    "dtype": (("numpy",), "dtype"),
    "encode": (("_codecs",), "encode"),
    "reconstruct": ([f"{core}.multiarray" for core in NUMPY], "_reconstruct"),
    "scalar": ([f"{core}.multiarray" for core in NUMPY], "scalar"),
    "from_buffer": ([f"{core}.numeric" for core in NUMPY], "_frombuffer"),
    "reconstructor": (("copy_reg", "copyreg"), "_reconstructor"),
}
CALLS: dict[str, type[Record]] = {name: type(name, (Call,), {}) for name in KNOWN}
NAMES = {(m, name): CALLS[call] for call, (modules, name) in KNOWN.items() for m in modules}
