"""Read pickles of plain data and arrays without running anything they name.

A pickle is a small program that may call whatever it names. Here a name leads to a class without
code, to a function of `pickle_content` or nowhere, and content is in proportion to the file.
"""

import io
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np

from handmim.utils.pickle_content import (
    MAX_BYTES,
    MAX_OPCODES,
    SLOT,
    Array,
    Maker,
    Record,
    UnsafePickleError,
)

__all__ = ["Record", "UnsafePickleError", "check_torch_pickle", "load_pickle"]

DAMAGE = (
    pickle.UnpicklingError, EOFError, IndexError, KeyError, AttributeError, TypeError, ValueError,
    OverflowError, MemoryError, RecursionError, ImportError, struct.error,
)  # fmt: skip

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first of several pickles, before zip archives
# Instructions of a checkpoint beside one in four bytes, and nesting that Python does not write.
_FREE_OPCODES, _MAX_MARKS = 100_000, 1000
Handlers = dict[int, Callable[[Any], None]]


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
    """Python's own reader in Python: the one in C hashes keys before they can be checked.

    Args:
        data: the pickle.
        allowed: further classes by module and name.
        maker: makes the content.
        max_opcodes: instructions.
    """

    dispatch: ClassVar[Handlers] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    memo: dict[int, Any]
    _unframer: Any
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self,
        data: bytes,
        allowed: Mapping[tuple[str, str], type[Record]],
        maker: Maker,
        max_opcodes: int = MAX_OPCODES,
    ) -> None:
        super().__init__(_File(data), fix_imports=False, encoding="latin1")
        self.num_bytes, self.allowed, self.maker = len(data), allowed, maker
        handlers = _CountedHandlers(type(self).dispatch)
        handlers.bound = max_opcodes
        self.dispatch = handlers  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> Any:
        found = self.allowed.get((module, name))
        return self.maker.find(module, name) if found is None else found

    def persistent_load(self, pid: Any) -> NoReturn:
        raise UnsafePickleError("names an object by number (PERSID)")

    def get_extension(self, code: int) -> NoReturn:
        raise UnsafePickleError(f"names an object by number (EXT {code})")

    def _load_buffer(self) -> NoReturn:
        raise UnsafePickleError("requires content from outside the file")

    def _load_frame(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self._check_room(size)
        self._unframer.load_frame(size)

    def _load_bytearray(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self._check_room(size)  # memory is taken before it is read
        self.stack.append(bytearray(self.read(size)))

    def _check_room(self, size: int) -> None:
        if size > self.num_bytes:
            raise ValueError(f"{size} bytes or objects in {self.num_bytes} bytes")

    def load(self) -> Any:
        result = super().load()
        # pickle's reader in C, which may read it next, would reserve room for that many.
        self._check_room(max(self.memo, default=0))
        return result

    def _load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        self.stack[-1] = built = self.maker.build(target, state)
        if built is not target:
            self._replace(target, built)

    def _replace(self, target: Any, built: Any) -> None:
        """Put what was built where its stand-in was noted, a few notes before."""
        for index in reversed(self.memo):
            self.maker.spend(SLOT)
            if self.memo[index] is target:
                self.memo[index] = built
                break

    def _put_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError(f"{len(items)} keys and values for a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.maker.key(key)] = value

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put_items([key, value])

    def _load_setitems(self) -> None:
        self._put_items(self.pop_mark())

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._put_items(items)

    def _load_additems(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if type(target) is not set:
            raise ValueError(f"members for a {type(target).__name__}")
        target.update(self.maker.set(items))

    def _load_frozenset(self) -> None:
        items = self.pop_mark()
        self.stack.append(self.maker.frozenset(items))

    dispatch |= {
        pickle.NEXT_BUFFER[0]: _load_buffer,
        pickle.READONLY_BUFFER[0]: _load_buffer,
        pickle.FRAME[0]: _load_frame,
        pickle.BYTEARRAY8[0]: _load_bytearray,
        pickle.BUILD[0]: _load_build,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.DICT[0]: _load_dict,
        pickle.ADDITEMS[0]: _load_additems,
        pickle.FROZENSET[0]: _load_frozenset,
    }


class _Part(Record):
    """Stand-in for whatever a checkpoint names."""

    def __new__(cls, *args: Any) -> "_Part":
        return object.__new__(cls)


class _TorchReader(_Reader):
    """Follows a checkpoint's pickle as torch's reader does, which has no bounds, and keeps nothing.

    torch decides which names are admitted; keys are checked before anything hashes them.
    """

    metastack: list[Any]
    dispatch: ClassVar[Handlers] = dict(_Reader.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "_codecs") and name in ("set", "bytearray", "complex", "encode"):
            return self.maker.find(module, name)
        is_mapping = module == "collections" and name in ("OrderedDict", "Counter")
        return self._mapping if is_mapping else _Part

    def _mapping(self, *args: Any) -> _Part:
        """An OrderedDict or Counter."""
        for items in args:
            for item in items if isinstance(items, (list, tuple)) else ():
                self._check_key(item[0] if item and isinstance(item, list) else item)
        return _Part()

    def persistent_load(self, pid: Any) -> _Part:  # type: ignore[override]
        for part in pid if isinstance(pid, tuple) else (pid,):
            self._check_key(part)
        return _Part()

    def _check_key(self, key: Any) -> None:
        self.maker.key(0.0 if isinstance(key, Record) or key is _Part else key)

    def _put_items(self, items: list[Any]) -> None:
        for key in items[::2]:
            self._check_key(key)

    def _load_build(self) -> None:
        self.stack.pop()

    def _load_mark(self) -> None:
        if len(self.metastack) > _MAX_MARKS:
            raise UnsafePickleError(f"nests more than {_MAX_MARKS} containers")
        super().load_mark()  # type: ignore[misc]

    dispatch |= {pickle.MARK[0]: _load_mark, pickle.BUILD[0]: _load_build}


def check_torch_pickle(data: bytes, file_size: int) -> None:
    """Follow the pickles of a checkpoint within bounds, before torch reads them without.

    Args:
        data: begins with them: one, or several of the format before zip archives.
        file_size: bytes of the file, which bound its instructions.
    Raises: UnsafePickleError for more instructions, nesting or keys than checkpoints have; others
        of `DAMAGE`.
    """
    bound = min(_FREE_OPCODES + file_size // 4, 10 * MAX_OPCODES)
    reader = _TorchReader(data, {}, Maker(file_size), bound)
    if reader.load() == TORCH_MAGIC:
        for _ in ("version", "system", "content", "storages"):
            reader.load()


def _check_weight(value: Any, maker: Maker, done: dict[int, int]) -> int:
    """Bytes of the content when written out; an object that is referred to twice counts twice.

    A list of a few lists of each other would be endless to a caller that converts it.
    """
    if isinstance(value, (str, bytes, bytearray)):
        return SLOT + len(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return SLOT + value.nbytes
    if not isinstance(value, (list, tuple, dict, np.ndarray, Record)):
        return SLOT
    if isinstance(value, Array):
        raise ValueError("an array without content")
    if id(value) in done:
        return done[id(value)]
    done[id(value)] = weight = SLOT  # for parts that hold it
    parts: Any = value
    if isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, np.ndarray):
        parts = value.ravel()
    elif isinstance(value, Record):
        parts = (value.args, value.state)
    for part in parts:
        weight += _check_weight(part, maker, done)
    maker.check(weight)
    done[id(value)] = weight
    return weight


def load_pickle(
    path: str | Path, allowed: Mapping[tuple[str, str], type[Record]] | None = None
) -> Any:
    """Read a pickle of numbers, text, containers and numpy arrays, written by Python 2 or 3.

    Args:
        path: the file. Text of Python 2 is read as Latin-1.
        allowed: further classes by exact (module, name), each with the `Record` that stands for it.
    Returns: the data; objects of `allowed` classes as records.
    Raises: UnsafePickleError (a ValueError) naming what the file requires beyond that, before any
        of it has run: classes and functions, far more content than the file has bytes, keys that
        are more than plain values and flat tuples of them, more than `MAX_OPCODES` instructions;
        ValueError for a file that is no pickle, cut short, damaged or larger than `MAX_BYTES`;
        OSError.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file, a pickle is required")
    if path.exists() and path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, a pickle of at most {MAX_BYTES} is read"
        )
    data = path.read_bytes()
    maker = Maker(len(data))
    try:
        content = _Reader(data, allowed or {}, maker).load()
        _check_weight(content, maker, {})
        return content
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{path} {error}: refused, nothing in the file was executed. Only plain values"
            " and numpy arrays are read; take the file from its original source"
        ) from None
    except DAMAGE as error:
        raise ValueError(
            f"{path} is damaged or not a pickle of plain values and numpy arrays"
            f" ({type(error).__name__}: {str(error)[:200]}): copy or download it again"
        ) from error
