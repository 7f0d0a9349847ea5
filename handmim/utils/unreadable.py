"""The error of a sample that cannot be read. No torch: rendering processes use it."""

from pathlib import Path


class UnreadableSample(ValueError):  # noqa: N818  named for what it stands for, as its kinds
    """A sample that cannot be read or used; training may take another one in its place.

    Args:
        path: file, or file and entry in it.
        reason: why.
    """

    def __init__(self, path: str | Path, reason: str = "") -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.reason else self.path
