"""Read pickles of plain data and arrays without running anything they name.

A pickle is a small program that may call whatever it names. Here a name leads to a function below,
which checks its arguments, to a class that only keeps them, or nowhere. What is made is in
proportion to the file.
"""

import io
import math
import pickle
import re
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import methodcaller
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from handmim.utils.files import DAMAGE

# Hand models have megabytes and hundreds of instructions, label files far fewer. An instruction
# makes up to 64 bytes and takes some 2 us, so that the bounds keep a file to seconds.
MAX_BYTES, MAX_OPCODES = 1 << 28, 1_000_000
FREE_OPCODES = 100_000  # of a checkpoint, beside one in four bytes
# Numbers of different value and equal hash are easily found: a dict of n of them takes n^2 steps.
# Python's hashes of text and bytes are random, and those of integers of 8 bytes differ.
MAX_FORGEABLE_KEYS = 10_000
# Bytes of content per byte of file, and beside that. A file may make once what it holds once, in
# a few steps; objects referred to again and again would make gigabytes of kilobytes.
CONTENT_PER_BYTE, CONTENT_FREE = 8, 16_000_000
SLOT, MEMBER = 8, 32  # bytes of a reference in a container, and in a set
MAX_ARGS, MAX_AXES = 8, 32
MAX_SHOWN = 100  # characters of a name in a message
# Numbers, bytes, text and plain objects; no records, no dates.
DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)|[SU][1-9][0-9]*|O8?")
LEAVES = (type(None), int, float, complex, type, np.generic, np.dtype)
KEYS = (type(None), str, bytes, int, float, complex, np.number, np.bool_)
ARRAY_CLASS, OBJECT_CLASS = object(), object()  # inert, for numpy.ndarray and object
# What a pickle may name: methods of `_Reader`, and the two above.
NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): ARRAY_CLASS,
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "bytes",
    **{(module, "_reconstructor"): "reconstructor" for module in ("copy_reg", "copyreg")},
}
for _module in ("__builtin__", "builtins"):
    NAMES |= {(_module, "object"): OBJECT_CLASS, (_module, "complex"): complex}
    NAMES |= {(_module, name): name for name in ("set", "frozenset", "bytes", "bytearray")}
for _module in ("numpy.core", "numpy._core"):
    NAMES[f"{_module}.multiarray", "_reconstruct"] = "reconstruct"
    NAMES[f"{_module}.multiarray", "scalar"] = "scalar"
    NAMES[f"{_module}.numeric", "_frombuffer"] = "from_buffer"
CALLED_BY_TORCH = {
    ("_codecs", "encode"), ("builtins", "set"), ("builtins", "bytearray"), ("builtins", "complex"),
}  # fmt: skip
# Instructions of objects by a number of the process, and of memory beside the file.
REFUSED = pickle.EXT1 + pickle.EXT2 + pickle.EXT4 + pickle.NEXT_BUFFER + pickle.READONLY_BUFFER
TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first of several pickles, before zip archives
Handlers = dict[int, Callable[[Any], None]]


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
            raise UnsafePickleError(f"calls a class with {len(args)} arguments")
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record


class Part(Record):
    """Stand-in for whatever a checkpoint names."""

    def __new__(cls, *args: Any) -> "Part":
        """Keep nothing of what it is called with."""
        part = object.__new__(cls)
        part.args, part.state = (), None
        return part


def _shown(value: Any) -> str:
    """A value in a message; containers may be endless when written out."""
    return repr(value[:40]) if isinstance(value, (str, bytes)) else type(value).__name__


class _File(io.BytesIO):
    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if not line.endswith(b"\n"):
            raise EOFError("a line is cut short")
        return line


class _CountedHandlers(Handlers):
    """Handlers by opcode that count how often they are looked up."""

    num_lookups, bound = 0, MAX_OPCODES

    def __getitem__(self, opcode: int) -> Callable[[Any], None]:
        self.num_lookups += 1
        if self.num_lookups > self.bound:
            raise UnsafePickleError(f"has more than {self.bound} instructions")
        return super().__getitem__(opcode)


class _Reader(pickle._Unpickler):
    """Python's own reader, which here checks keys before they are hashed, calls nothing but its own
    methods and the classes of `names`, and counts the bytes of what it makes."""

    dispatch: ClassVar[Handlers] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if code not in REFUSED
    }
    stack: list[Any]
    memo: dict[int, Any]
    _unframer: Any
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, data: bytes, names: Mapping[Any, Any], bound: int, file_size: int) -> None:
        super().__init__(_File(data), fix_imports=False, encoding="latin1")
        self.names, self.file_size, self.spent, self.num_forgeable_keys = names, file_size, 0, 0
        self.unfilled: dict[int, NDArray[Any]] = {}  # arrays without content, by id
        self.counted: dict[int, int] = {}  # bytes of a value written out, by its id
        handlers = _CountedHandlers(type(self).dispatch)
        handlers.bound = bound
        self.dispatch = handlers  # type: ignore[misc]

    def load(self) -> Any:
        result = super().load()
        if max(self.memo, default=0) > 10 * MAX_OPCODES:  # pickle's reader in C reserves so many
            raise ValueError(f"notes an object as number {max(self.memo)}")
        if self.unfilled:
            raise ValueError("an array without content")
        return result

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise UnsafePickleError(f"names {module[:MAX_SHOWN]}.{name[:MAX_SHOWN]}")
        found = self.names[module, name]
        return getattr(self, f"_{found}") if isinstance(found, str) else found

    def spend(self, num_bytes: int) -> None:
        """Count bytes that are about to be made or gone over; UnsafePickleError for too many."""
        self.spent += num_bytes
        size, limit = self.file_size, CONTENT_PER_BYTE * self.file_size + CONTENT_FREE
        if self.spent > limit:
            raise UnsafePickleError(f"makes more than {limit} bytes of content in a file of {size}")

    def count(self, value: Any) -> None:
        """Spend the bytes of a value when it is written out: what is referred to again counts
        again. Raises: ValueError for anything but data."""
        self.spend(SLOT)
        parts: Iterable[Any] | None = None
        if isinstance(value, (str, bytes, bytearray)):
            self.spend(len(value))
        elif isinstance(value, np.ndarray):
            self.spend(value.nbytes)
            parts = value.flat if value.dtype.hasobject else None
        elif isinstance(value, dict):
            parts = chain(value, value.values())
        elif isinstance(value, Record):
            parts = value.args, value.state
        elif isinstance(value, (tuple, list, set, frozenset)):
            parts = value
        elif not isinstance(value, LEAVES):
            raise ValueError(f"a {type(value).__name__} where data is required")
        if parts is None:
            return
        if id(value) in self.counted:
            self.spend(self.counted[id(value)])
            return
        before, self.counted[id(value)] = self.spent, 0  # for parts that hold it
        for part in parts:
            self.count(part)
        self.counted[id(value)] = self.spent - before

    def key(self, key: Any) -> Any:
        """A key of a dict or member of a set, before it is hashed."""
        parts = key if isinstance(key, tuple) else (key,)
        for part in parts:
            if not isinstance(part, KEYS):
                kind = "tuple inside a tuple" if parts is key else type(part).__name__
                raise UnsafePickleError(f"uses a {kind} as a key")
            self.spend(SLOT + sys.getsizeof(part))
        is_short = isinstance(key, (str, bytes, type(None)))
        if not is_short and not (isinstance(key, int) and key.bit_length() <= 64):
            self.num_forgeable_keys += 1
            if self.num_forgeable_keys > MAX_FORGEABLE_KEYS:
                text = f"uses more than {MAX_FORGEABLE_KEYS} keys that are neither text nor short"
                raise UnsafePickleError(f"{text} integers")
        return key

    # Functions that a pickle may call.

    def _dtype(self, code: Any, align: Any = False, copy: Any = False) -> np.dtype[Any]:
        if not isinstance(code, str) or not DTYPE.fullmatch(code):
            raise ValueError(f"arrays of type {_shown(code)} are not read")
        return np.dtype(code, copy=True)  # a state changes its byte order

    def _reconstruct(self, kind: Any, shape: Any, code: Any) -> NDArray[Any]:
        if kind is not ARRAY_CLASS:
            raise UnsafePickleError("makes numpy build something other than an array")
        array = np.empty(0)
        self.unfilled[id(array)] = array
        return array

    def _from_buffer(self, raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
        array = self._fill(np.empty(0), shape, dtype, order == "F", raw)
        return array if axes is None else array.transpose(axes)

    def _scalar(self, dtype: Any, content: Any) -> Any:
        return self._fill(np.empty(0), (1,), dtype, False, content)[0]

    def _reconstructor(self, kind: Any, base: Any, content: Any) -> Any:
        if not (isinstance(kind, type) and base is OBJECT_CLASS) or content:
            raise UnsafePickleError(f"tries to rebuild {_shown(kind)} from {_shown(base)}")
        return kind()

    def _bytes(self, content: Any = b"", encoding: Any = "latin1") -> bytes:
        """A copy of bytes, or those of text, as which Python 2 wrote them."""
        if encoding not in ("latin1", "latin-1"):
            raise UnsafePickleError(f"tries to encode by {_shown(encoding)}")
        if not isinstance(content, (str, bytes, bytearray)):
            raise ValueError(f"content is {type(content).__name__}, bytes are required")
        self.spend(len(content))
        return content.encode("latin1") if isinstance(content, str) else bytes(bytearray(content))

    def _bytearray(self, *args: Any) -> bytearray:
        return bytearray(self._bytes(*args))

    def _set(self, members: Any = ()) -> set[Any]:
        if not isinstance(members, (list, tuple)):
            raise UnsafePickleError(f"tries to convert a {type(members).__name__} to a set")
        self.spend(MEMBER * len(members))
        return {self.key(member) for member in members}

    def _frozenset(self, members: Any = ()) -> frozenset[Any]:
        return frozenset(self._set(members))

    def _fill(
        self, array: NDArray[Any], shape: Any, dtype: Any, fortran: Any, content: Any
    ) -> NDArray[Any]:
        """An array made the one that a pickle describes, checked before numpy takes its parts."""
        if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple):
            raise ValueError(f"an array of shape {_shown(shape)} and type {_shown(dtype)}")
        if len(shape) > MAX_AXES or any(type(n) is not int or not 0 <= n < 2**63 for n in shape):
            raise ValueError(f"array shape is not of {MAX_AXES} lengths at most")
        if not dtype.hasobject:
            content = self._bytes(content)
        elif not isinstance(content, list):
            raise ValueError(f"objects of an array in a {type(content).__name__}")
        else:
            self.spend(SLOT * len(content))  # one list may fill many arrays
        needed = math.prod(shape) * (1 if dtype.hasobject else dtype.itemsize)
        if len(content) != needed:
            size = f"{len(content)} bytes or objects, {needed} are required"
            raise ValueError(f"array of shape {shape} and type {dtype} holds {size}")
        state: Any = 1, shape, dtype, bool(fortran), content
        array.__setstate__(state)
        return array

    # Handlers of instructions that differ from Python's.

    def put(self, items: list[Any]) -> None:
        """Keys and values in turn into the dict on the stack."""
        target = self.stack[-1]
        if type(target) is not dict:
            raise ValueError(f"keys and values for a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.key(key)] = value

    def add(self, members: list[Any]) -> None:
        """Members into the set on the stack."""
        if type(self.stack[-1]) is not set:
            raise ValueError(f"members for a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(self._set(members))

    def _load_frame(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        if size > self.file_size:
            raise ValueError(f"a frame of {size} bytes in {self.file_size}")
        self._unframer.load_frame(size)

    def _load_bytearray(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.stack.append(bytearray(self.read(size)))  # Python takes the memory before it reads

    def _load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif isinstance(target, np.ndarray):
            del self.unfilled[id(target)]
            _, *parts = state
            self._fill(target, *parts)
        elif isinstance(target, np.dtype):
            _, order, *fields = state
            is_plain = len(fields) > 2 and all(part is None for part in fields[:3])
            if not is_plain or order not in ("<", ">", "|", "="):
                raise ValueError(f"arrays of type {target.str} with fields are not read")
            if target.byteorder != "|":
                sizes = target.itemsize, target.alignment, target.flags
                methodcaller("__setstate__", (3, order, None, None, None, *sizes))(target)
        else:
            raise UnsafePickleError("tries to alter something other than an object")

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.put(items)

    def _load_frozenset(self) -> None:
        members = self.pop_mark()
        self.stack.append(self._frozenset(members))

    dispatch |= {
        pickle.FRAME[0]: _load_frame,
        pickle.BYTEARRAY8[0]: _load_bytearray,
        pickle.BUILD[0]: _load_build,
        pickle.DICT[0]: _load_dict,
        pickle.SETITEM[0]: lambda self: self.put([self.stack.pop(-2), self.stack.pop()]),
        pickle.SETITEMS[0]: lambda self: self.put(self.pop_mark()),
        pickle.ADDITEMS[0]: lambda self: self.add(self.pop_mark()),
        pickle.FROZENSET[0]: _load_frozenset,
    }


class _TorchReader(_Reader):
    """Follows a checkpoint's pickle as torch's reader does, which has no bounds, and keeps
    nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in CALLED_BY_TORCH:
            return super().find_class(module, name)
        is_mapping = module == "collections" and name in ("OrderedDict", "Counter")
        return self._mapping if is_mapping else Part

    def _mapping(self, *args: Any) -> Record:
        for items in args:
            for item in items if isinstance(items, (list, tuple)) else ():
                self.add([item[0] if item and isinstance(item, list) else item])
        return Part()

    def persistent_load(self, pid: Any) -> Record:
        self.add(list(pid) if isinstance(pid, tuple) else [pid])
        return Part()

    def put(self, items: list[Any]) -> None:
        self.add(items[::2])

    def add(self, members: list[Any]) -> None:
        for key in members:
            self.key(0.0 if isinstance(key, Record) or key is Part else key)


def check_torch_pickle(data: bytes, file_size: int) -> None:
    """Follow the pickles that checkpoint data begins with (several before zip archives) within
    bounds by the file's size, before torch reads them without.

    Raises: UnsafePickleError for too many instructions or keys; others of `DAMAGE`.
    """
    bound = min(FREE_OPCODES + file_size // 4, 10 * MAX_OPCODES)
    reader = _TorchReader(data, NAMES, bound, file_size)
    if reader.load() == TORCH_MAGIC:
        for _ in ("version", "system", "content", "storages"):
            reader.load()


def load_pickle(
    path: str | Path, allowed: Mapping[tuple[str, str], type[Record]] | None = None
) -> Any:
    """Read a pickle of numbers, text (Latin-1 of Python 2), containers and numpy arrays, and of
    objects of `allowed` classes by exact (module, name), as records.

    Raises: UnsafePickleError (a ValueError) naming what the file requires beyond that, before any
    of it has run: classes and functions, more content than the file has, keys that are no plain
    values, `MAX_OPCODES` instructions; ValueError for a damaged or larger file than `MAX_BYTES`;
    OSError.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file, a pickle is required")
    if path.exists() and (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes, a pickle of at most {MAX_BYTES} is read")
    data = path.read_bytes()
    reader = _Reader(data, NAMES | dict(allowed or {}), MAX_OPCODES, len(data))
    try:
        content = reader.load()
        reader.count(content)
        return content
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{path} {error}: refused, nothing in the file was executed. Only plain values"
            " and numpy arrays are read; take the file from its original source"
        ) from None
    except (*DAMAGE, MemoryError) as error:
        raise ValueError(
            f"{path} is damaged or not a pickle of plain values and numpy arrays"
            f" ({type(error).__name__}: {str(error)[:200]}): copy or download it again"
        ) from error
