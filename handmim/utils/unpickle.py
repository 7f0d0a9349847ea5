"""Read pickles of plain data and arrays without running anything they name.

A pickle is a small program that may call whatever it names. Here a name leads to a class that only
notes its arguments, or nowhere; `pickle_content` makes values of the notes.
"""

import io
import pickle
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from handmim.utils.files import DAMAGE
from handmim.utils.pickle_content import CALLS, NAMES, Dict, Maker, Record, UnsafePickleError

__all__ = ["Record", "UnsafePickleError", "check_torch_pickle", "load_pickle"]

# Hand models have megabytes and hundreds of instructions, label files far fewer. An instruction
# makes up to 64 bytes and takes some 2 us, so that the bounds keep a file to seconds.
MAX_BYTES, MAX_OPCODES = 1 << 28, 1_000_000
FREE_OPCODES = 100_000  # of a checkpoint, beside one in four bytes
MAX_SHOWN = 100  # characters of a name in a message
TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first of several pickles, before zip archives
CALLED_BY_TORCH = {
    ("_codecs", "encode"), ("builtins", "set"), ("builtins", "bytearray"), ("builtins", "complex"),
}  # fmt: skip
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
    """Python's own reader, which here hashes no key and calls nothing but the stand-ins of
    `names`."""

    dispatch: ClassVar[Handlers] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    memo: dict[int, Any]
    _unframer: Any
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, data: bytes, names: Mapping[Any, Any], max_opcodes: int) -> None:
        super().__init__(_File(data), fix_imports=False, encoding="latin1")
        self.num_bytes, self.names = len(data), names
        handlers = _CountedHandlers(type(self).dispatch)
        handlers.bound = max_opcodes
        self.dispatch = handlers  # type: ignore[misc]

    def load(self) -> Any:
        result = super().load()
        if max(self.memo, default=0) > 10 * MAX_OPCODES:  # pickle's reader in C reserves so many
            raise ValueError(f"notes an object as number {max(self.memo)}")
        return result

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise UnsafePickleError(f"names {module[:MAX_SHOWN]}.{name[:MAX_SHOWN]}")
        return self.names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError("names an object by number (PERSID)")

    def get_extension(self, code: int) -> NoReturn:
        raise UnsafePickleError(f"names an object by number (EXT {code})")

    def put(self, items: list[Any]) -> None:
        """Keys and values in turn into the dict on the stack."""
        if type(self.stack[-1]) is not Dict:
            raise ValueError(f"keys and values for a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def add(self, members: list[Any]) -> None:
        """Members into the set on the stack."""
        if type(self.stack[-1]) is not CALLS["set"]:
            raise ValueError(f"members for a {type(self.stack[-1]).__name__}")
        self.stack[-1].args[0].extend(members)

    def _load_frame(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        if size > self.num_bytes:
            raise ValueError(f"a frame of {size} bytes in {self.num_bytes}")
        self._unframer.load_frame(size)

    def _load_bytearray(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.stack.append(bytearray(self.read(size)))  # Python takes the memory before it reads

    def _load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Record):
            raise UnsafePickleError("tries to alter something other than an object")
        target.state = state

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append(Dict())
        self.put(items)

    def _load_frozenset(self) -> None:
        members = self.pop_mark()
        self.stack.append(CALLS["frozenset"](members))

    dispatch |= {
        pickle.FRAME[0]: _load_frame,
        pickle.BYTEARRAY8[0]: _load_bytearray,
        pickle.BUILD[0]: _load_build,
        pickle.EMPTY_DICT[0]: lambda self: self.stack.append(Dict()),
        pickle.DICT[0]: _load_dict,
        pickle.SETITEM[0]: lambda self: self.put([self.stack.pop(-2), self.stack.pop()]),
        pickle.SETITEMS[0]: lambda self: self.put(self.pop_mark()),
        pickle.EMPTY_SET[0]: lambda self: self.stack.append(CALLS["set"]([])),
        pickle.ADDITEMS[0]: lambda self: self.add(self.pop_mark()),
        pickle.FROZENSET[0]: _load_frozenset,
    }


class _Part(Record):
    """Stand-in for whatever a checkpoint names."""

    def __new__(cls, *args: Any) -> "_Part":
        return object.__new__(cls)


class _TorchReader(_Reader):
    """Follows a checkpoint's pickle as torch's reader does, which has no bounds, and keeps
    nothing."""

    def __init__(self, data: bytes, file_size: int) -> None:
        bound = min(FREE_OPCODES + file_size // 4, 10 * MAX_OPCODES)
        super().__init__(data, {}, bound)
        self.maker = Maker(file_size)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in CALLED_BY_TORCH:
            return partial(self.maker.call, name)
        is_mapping = module == "collections" and name in ("OrderedDict", "Counter")
        return self._mapping if is_mapping else _Part

    def _mapping(self, *args: Any) -> Record:
        for items in args:
            for item in items if isinstance(items, (list, tuple)) else ():
                self._check_key(item[0] if item and isinstance(item, list) else item)
        return _Part()

    def persistent_load(self, pid: Any) -> Record:
        for part in pid if isinstance(pid, tuple) else (pid,):
            self._check_key(part)
        return _Part()

    def _check_key(self, key: Any) -> None:
        self.maker.key(0.0 if isinstance(key, Record) or key is _Part else key)

    def put(self, items: list[Any]) -> None:
        self.add(items[::2])

    def add(self, members: list[Any]) -> None:
        for key in members:
            self._check_key(key)


def check_torch_pickle(data: bytes, file_size: int) -> None:
    """Follow the pickles that checkpoint data begins with (several before zip archives) within
    bounds by the file's size, before torch reads them without.

    Raises: UnsafePickleError for too many instructions or keys; others of `DAMAGE`.
    """
    reader = _TorchReader(data, file_size)
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
    if path.exists() and path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, a pickle of at most {MAX_BYTES} is read"
        )
    data = path.read_bytes()
    try:
        return Maker(len(data)).value(
            _Reader(data, NAMES | dict(allowed or {}), MAX_OPCODES).load()
        )
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
