"""File names in messages."""

from collections.abc import Sequence

SHOWN = 10  # names in one log line


def printable(name: str) -> str:
    """A file name that any stream and log takes: bytes that are no UTF-8 and control characters
    are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def shown(names: Sequence[str], most: int = SHOWN) -> str:
    """The first few of many file names."""
    return ", ".join(map(printable, names[:most])) + (", ..." if len(names) > most else "")
