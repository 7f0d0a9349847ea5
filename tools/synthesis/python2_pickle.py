"""Write pickles byte for byte as Python 2 with an old numpy did, for files like MANO's and HO-3D's.

Python 3 cannot do that: it writes its own names, and text where Python 2 had strings.
Objects of classes that are not installed can be written too.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from handmim.utils.files import atomic_path


@dataclass(frozen=True)
class Foreign:
    """An object of a class that need not exist here: its class's path and what it holds."""

    module: str
    name: str
    state: Any


class _Writer:
    """Protocol 2 into `out`; objects met twice are written once and referred to."""

    start = b"\x80\x02"

    def __init__(self) -> None:
        self.out = bytearray(self.start)
        self.memo: dict[int, tuple[int, Any]] = {}  # by id; holds the object so that ids last
        self.globals: dict[tuple[str, str], int] = {}
        self.num_memoised = 0

    def _put(self) -> int:
        index, self.num_memoised = self.num_memoised, self.num_memoised + 1
        self.out += b"q" + bytes([index]) if index < 256 else b"r" + struct.pack("<I", index)
        return index

    def _get(self, index: int) -> None:
        self.out += b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)

    def _global(self, module: str, name: str) -> None:
        if (module, name) in self.globals:
            self._get(self.globals[module, name])
        else:
            self.out += f"c{module}\n{name}\n".encode()
            self.globals[module, name] = self._put()

    def _call(self, module: str, name: str, args: tuple[Any, ...]) -> None:
        self._global(module, name)
        self._tuple(args)
        self.out += b"R"

    def _tuple(self, items: tuple[Any, ...]) -> None:
        self.out += b"(" if len(items) > 3 else b""
        for item in items:
            self.write(item)
        self.out += (b")", b"\x85", b"\x86", b"\x87")[len(items)] if len(items) < 4 else b"t"

    def _string(self, content: bytes) -> None:
        short = len(content) < 256
        self.out += (
            b"U" + bytes([len(content)]) if short else b"T" + struct.pack("<i", len(content))
        )
        self.out += content

    def _int(self, number: int) -> None:
        if 0 <= number < 256:
            self.out += b"K" + bytes([number])
        elif 0 <= number < 65536:
            self.out += b"M" + struct.pack("<H", number)
        elif -(2**31) <= number < 2**31:
            self.out += b"J" + struct.pack("<i", number)
        else:
            raw = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
            self.out += b"\x8a" + bytes([len(raw)]) + raw

    def _dtype(self, dtype: np.dtype[Any]) -> None:
        if dtype.kind not in "biufcSUO":
            raise TypeError(f"arrays of {dtype} are not written")
        self._call("numpy", "dtype", (dtype.str[1:], 0, 1))
        size = (dtype.itemsize, {"S": 1, "U": 4}[dtype.kind]) if dtype.kind in "SU" else (-1, -1)
        self._tuple((3, dtype.str[0], None, None, None, *size, 63 if dtype.kind == "O" else 0))
        self.out += b"b"

    def _array(self, array: NDArray[Any]) -> None:
        self._call("numpy.core.multiarray", "_reconstruct", (_NDARRAY, (0,), "b"))
        fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        content: Any = array.tobytes("F" if fortran else "C")
        if array.dtype.kind == "O":
            content = array.ravel("F" if fortran else "C").tolist()
        self._tuple((1, array.shape, array.dtype, bool(fortran), content))
        self.out += b"b"

    def _constant(self, value: bool | None) -> None:
        self.out += {None: b"N", True: b"\x88", False: b"\x89"}[value]

    def _float(self, number: float) -> None:
        self.out += b"G" + struct.pack(">d", number)

    def _items(self, value: list[Any] | dict[Any, Any]) -> None:
        """A list or dict: made empty, placed for those inside that refer to it, then filled."""
        self.out += b"]" if isinstance(value, list) else b"}"
        self.memo[id(value)] = (self._put(), value)
        self.out += b"("
        for item in value if isinstance(value, list) else value.items():
            for part in (item,) if isinstance(value, list) else item:
                self.write(part)
        self.out += b"e" if isinstance(value, list) else b"u"

    def _new(self, module: str, name: str) -> None:
        self._global(module, name)
        self.out += b")\x81"

    def write(self, value: Any) -> None:
        """Append one object.

        Raises: TypeError for what is none of plain values, containers, arrays and `Foreign`.
        """
        if value is None or isinstance(value, bool):
            self._constant(value)
        elif isinstance(value, int):
            self._int(value)
        elif type(value) is float:
            self._float(value)
        elif value is _NDARRAY:
            self._global("numpy", "ndarray")
        elif id(value) in self.memo:
            self._get(self.memo[id(value)][0])
        elif type(value) is tuple:
            self._tuple(value)
        elif isinstance(value, (list, dict)):
            self._items(value)
        elif isinstance(value, Foreign):
            self._new(value.module, value.name)
            self.memo[id(value)] = (self._put(), value)
            self.write(value.state)
            self.out += b"b"
        else:
            self._leaf(value)
            self.memo[id(value)] = (self._put(), value)

    def _leaf(self, value: Any) -> None:
        if isinstance(value, (str, bytes)):
            self._string(value.encode("latin1") if isinstance(value, str) else value)
        elif isinstance(value, set):
            self._call("__builtin__", "set", (sorted(value),))
        elif isinstance(value, np.ndarray):
            self._array(value)
        elif isinstance(value, np.generic):
            self._call("numpy.core.multiarray", "scalar", (value.dtype, value.tobytes()))
        elif isinstance(value, np.dtype):
            self._dtype(value)
        else:
            raise TypeError(f"{type(value).__name__} is not written as Python 2 had it")


class _TextWriter(_Writer):
    """Protocol 0, the default of Python 2: a line each, strings as it shows them,
    which is as Python 3 shows bytes."""

    start = b""

    def _line(self, text: str) -> None:
        self.out += text.encode("ascii") + b"\n"

    def _put(self) -> int:
        index, self.num_memoised = self.num_memoised, self.num_memoised + 1
        self._line(f"p{index}")
        return index

    def _get(self, index: int) -> None:
        self._line(f"g{index}")

    def _tuple(self, items: tuple[Any, ...]) -> None:
        self.out += b"("
        for item in items:
            self.write(item)
        self.out += b"t"
        if items:
            self._put()

    def _string(self, content: bytes) -> None:
        self._line(f"S{repr(content)[1:]}")

    def _int(self, number: int) -> None:
        self._line(f"I{number}" if -(2**63) <= number < 2**63 else f"L{number}L")

    def _constant(self, value: bool | None) -> None:
        self.out += {None: b"N", True: b"I01\n", False: b"I00\n"}[value]

    def _float(self, number: float) -> None:
        self._line(f"F{number!r}")

    def _items(self, value: list[Any] | dict[Any, Any]) -> None:
        self.out += b"(l" if isinstance(value, list) else b"(d"
        self.memo[id(value)] = (self._put(), value)
        for item in value if isinstance(value, list) else value.items():
            for part in (item,) if isinstance(value, list) else item:
                self.write(part)
            self.out += b"a" if isinstance(value, list) else b"s"

    def _new(self, module: str, name: str) -> None:
        self._global("copy_reg", "_reconstructor")
        self.out += b"("
        self._global(module, name)
        self._global("__builtin__", "object")
        self.out += b"NtR"


_NDARRAY = object()


def dump(obj: Any, path: str | Path, protocol: Literal[0, 2] = 2) -> None:
    """Write a pickle as Python 2 did; the file is there as a whole or not at all.

    Args:
        obj: plain values, lists, tuples, dicts, sets of strings, numpy arrays and scalars, and
            `Foreign` objects. Text becomes strings of bytes by Latin-1.
        path: target.
        protocol: 0, text, the default of Python 2, or 2.
    Raises: TypeError for anything else.
    """
    writer = _Writer() if protocol else _TextWriter()
    writer.write(obj)
    with atomic_path(path, sync=False) as partial:
        partial.write_bytes(bytes(writer.out) + b".")
