"""The content that a pickle may have: inert stand-ins for classes, arrays and plain values, in
proportion to the file's size.

Nothing is imported. Types, shapes and sizes of arrays are checked before numpy takes any of them.
"""

import math
import re
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# Numbers, bytes, text and plain objects; no records, no dates.
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)|[SU][1-9][0-9]*|O8?")
_MAX_ARGS = 8
_MAX_SHOWN = 100  # characters of a name in a message
# Hand models have megabytes and hundreds of instructions, label files far fewer. An instruction
# makes up to 64 bytes and takes some 2 us, so that the bounds keep a file to seconds.
MAX_BYTES, MAX_OPCODES = 1 << 28, 1_000_000
# Numbers of different value and equal hash are easily found: a dict of n of them takes n^2 steps.
# Python's hashes of text and bytes are random, and those of integers of 8 bytes differ.
_MAX_FORGEABLE_KEYS = 10_000
_MAX_AXES = 32
# Bytes of content per byte of file, and beside that. A file may make once what it holds once, in
# a few steps; objects referred to again and again would make gigabytes of kilobytes.
_CONTENT_PER_BYTE, _CONTENT_FREE = 8, 16_000_000
SLOT = 8  # bytes of a reference in a container
_MEMBER = 32  # and of one in a set


class UnsafePickleError(ValueError):
    """The file makes more than data; nothing of it was executed."""


class Record:
    """Inert stand-in for an object of a foreign class; one subclass per foreign class.

    Attributes:
        args: arguments that the class would have been called with.
        state: content that the object would have been restored from, None if nothing.
    """

    args: tuple[Any, ...]
    state: Any
    __hash__ = None  # type: ignore[assignment]  # never a key: its state changes after it is made

    def __new__(cls, *args: Any) -> "Record":
        """Made by any of the ways in which pickles make objects."""
        if len(args) > _MAX_ARGS:
            raise ValueError(f"an object made of {len(args)} parts")
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record


class Array(Record):
    """Stand-in for numpy.ndarray, and for an array until its content is read."""


def _shown(value: Any) -> str:
    """A value in a message; containers may be endless when written out."""
    if isinstance(value, (str, bytes)):
        return repr(value[:40])
    return repr(value) if isinstance(value, (bool, float)) else type(value).__name__


class Maker:
    """Makes the content that a pickle makes, in proportion to the file and no more.

    Args:
        file_size: bytes.
    """

    def __init__(self, file_size: int) -> None:
        self.file_size = file_size
        self.limit, self.spent = _CONTENT_PER_BYTE * file_size + _CONTENT_FREE, 0
        self.num_forgeable_keys = 0

    def find(self, module: str, name: str) -> Any:
        """The stand-in for a class or function.

        Raises: UnsafePickleError: nothing of that name.
        """
        found = _NAMES.get((module, name))
        if found is None:
            raise UnsafePickleError(f"names {module[:_MAX_SHOWN]}.{name[:_MAX_SHOWN]}")
        return getattr(self, found) if isinstance(found, str) else found

    def spend(self, num_bytes: int) -> None:
        """Count bytes that are about to be made, or gone over.

        Raises: UnsafePickleError: more than the file may make.
        """
        self.spent += num_bytes
        self.check(self.spent)

    def check(self, num_bytes: int) -> None:
        """Refuse content of more bytes than the file may make."""
        if num_bytes > self.limit:
            raise UnsafePickleError(
                f"makes more than {self.limit} bytes of content in a file of {self.file_size}"
            )

    def key(self, key: Any) -> Any:
        """A key of a dict or member of a set, before it is hashed."""
        if isinstance(key, tuple):
            self.spend(SLOT * len(key))
            for item in key:
                if isinstance(item, tuple):
                    raise UnsafePickleError("uses a tuple inside a tuple as a key")
                self.key(item)
        elif isinstance(key, (str, bytes)):
            self.spend(len(key))
        elif isinstance(key, int):
            self.spend(key.bit_length() // 8)
        elif key is not None and not isinstance(key, (float, complex, np.number, np.bool_)):
            raise UnsafePickleError(f"uses a {type(key).__name__} as a key")
        is_short = key is None or (isinstance(key, int) and key.bit_length() <= 64)
        if not is_short and not isinstance(key, (str, bytes)):
            self.num_forgeable_keys += 1
            if self.num_forgeable_keys > _MAX_FORGEABLE_KEYS:
                raise UnsafePickleError(
                    f"uses more than {_MAX_FORGEABLE_KEYS} keys that are neither text nor integers "
                    "of 8 bytes"
                )
        return key

    def build(self, target: Any, state: Any) -> Any:
        """An object with its state: a record, or the dtype or array that takes the place of its
        stand-in."""
        if isinstance(target, Array):
            if not isinstance(state, tuple) or len(state) != 5:
                raise ValueError("an array without content")
            return self.array(*state[1:])
        if isinstance(target, Record):
            target.state = state
            return target
        if isinstance(target, np.dtype):
            return self._ordered(target, state)
        if callable(target) and not isinstance(target, type):
            raise UnsafePickleError("tries to alter a function")
        raise ValueError(f"state for a {_shown(target)}")

    def dtype(self, code: Any, align: Any = False, copy: Any = False) -> np.dtype[Any]:
        """numpy's dtype, of plain values alone."""
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise ValueError(f"arrays of type {_shown(code)} are not read")
        return np.dtype(code, copy=True)  # type: ignore[call-overload, no-any-return]

    @staticmethod
    def _ordered(dtype: np.dtype[Any], state: Any) -> np.dtype[Any]:
        if not isinstance(state, tuple) or len(state) < 5 or any(s is not None for s in state[2:5]):
            raise ValueError(f"arrays of type {dtype.str} with fields are not read")
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {_shown(state[1])} is not one")
        return dtype.newbyteorder(state[1])

    def reconstruct(self, kind: Any, shape: Any, code: Any) -> Record:
        """An array yet to be filled."""
        if kind is not Array:
            raise UnsafePickleError("makes numpy build something other than an array")
        return Array()

    def array(self, shape: Any, dtype: Any, fortran: Any, content: Any) -> NDArray[Any]:
        """Array of the recorded parts, which must fit each other."""
        if not isinstance(dtype, np.dtype):
            raise ValueError(f"array type is {type(dtype).__name__}, a numpy dtype is required")
        if not isinstance(shape, tuple) or len(shape) > _MAX_AXES:
            raise ValueError(f"array shape is {_shown(shape)}, {_MAX_AXES} axes at most are read")
        if any(type(n) is not int or not 0 <= n < 2**63 for n in shape):
            raise ValueError("array shape is of anything but lengths")
        order: Literal["F", "C"] = "F" if fortran else "C"
        count = math.prod(shape)
        if dtype.hasobject:
            if not isinstance(content, list) or len(content) != count:
                raise ValueError(f"array of shape {shape} does not hold {count} objects")
            self.spend(SLOT * count)
            flat = np.empty(count, dtype=object)
            for i, item in enumerate(content):
                flat[i] = item
            return flat.reshape(shape, order=order)
        raw = self.raw(content)
        if len(raw) != count * dtype.itemsize:
            raise ValueError(
                f"array of shape {shape} and type {dtype} holds {len(raw)} bytes,"
                f" {count * dtype.itemsize} are required"
            )
        if count == 0:
            return np.zeros(shape, dtype=dtype)
        return np.frombuffer(raw, dtype=dtype).reshape(shape, order=order).copy(order="K")

    def raw(self, content: Any) -> bytes:
        """Bytes of an array; Python 2 wrote them as a string."""
        if not isinstance(content, (str, bytes, bytearray)):
            raise ValueError(f"array content is {type(content).__name__}, bytes are required")
        self.spend(len(content))
        return content.encode("latin1") if isinstance(content, str) else bytes(content)

    def from_buffer(self, buffer: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
        """An array as protocol 5 writes it."""
        array = self.array(shape, dtype, order == "F", buffer)
        return array if axes is None else array.transpose(axes)

    def scalar(self, dtype: Any, content: Any) -> Any:
        """numpy's scalar of that type."""
        return self.array((1,), dtype, False, content)[0]

    def reconstructor(self, kind: Any, base: Any, state: Any) -> Record:
        """An object yet to be filled, in protocols 0 and 1."""
        if not (isinstance(kind, type) and issubclass(kind, Record)) or base is not object or state:
            raise UnsafePickleError(f"tries to rebuild {_shown(kind)} from {_shown(base)}")
        return kind()

    def encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        """How Python 3 writes bytes for Python 2."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise UnsafePickleError(f"tries to encode by {_shown(encoding)}")
        return self.raw(text)

    def complex(self, real: Any, imag: Any) -> complex:
        """Of numbers; text would have to be read."""
        if not isinstance(real, (int, float)) or not isinstance(imag, (int, float)):
            raise UnsafePickleError("tries to convert to a complex number")
        return complex(real, imag)

    def bytes(self, *args: Any) -> bytes:
        """How Python 3 writes no bytes for Python 2."""
        if args:
            raise UnsafePickleError("tries to convert to bytes")
        return b""

    def bytearray(self, content: Any = b"", encoding: Any = "latin1") -> bytearray:
        """Of bytes, or of text as in `encode`."""
        is_text = isinstance(content, str)
        return bytearray(self.encode(content, encoding) if is_text else self.raw(content))

    def set(self, members: Any = ()) -> set[Any]:
        """Of a list."""
        if not isinstance(members, (list, tuple)):
            raise UnsafePickleError(f"tries to convert a {type(members).__name__} to a set")
        self.spend(_MEMBER * len(members))
        return {self.key(member) for member in members}

    def frozenset(self, members: Any = ()) -> frozenset[Any]:
        """Of a list."""
        return frozenset(self.set(members))


# Classes, and names of functions of `Maker`, by module and name.
_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    **{
        (f"{core}.{module}", name): function
        for core in ("numpy.core", "numpy._core")
        for module, name, function in (
            ("multiarray", "_reconstruct", "reconstruct"),
            ("multiarray", "scalar", "scalar"),
            ("numeric", "_frombuffer", "from_buffer"),
        )
    },
    **{
        (module, name): name
        for module in ("__builtin__", "builtins")
        for name in ("set", "frozenset", "complex", "bytes", "bytearray")
    },
    **{(module, "object"): object for module in ("__builtin__", "builtins")},  # which does nothing
    **{(module, "_reconstructor"): "reconstructor" for module in ("copy_reg", "copyreg")},
}
