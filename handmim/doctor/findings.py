"""What a check-up finds, and a notebook that goes on where a check breaks down."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]

# What damaged files and broken installations raise; anything else is a fault of the doctor.
EXPECTED = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, ImportError,
    RuntimeError, MemoryError,
)  # fmt: skip
LONGEST = 400  # characters of an exception's text


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        level: "ok" also holds for facts that are merely told.
        name: stable, such as "freihand-unit".
        text: what was found.
        fix: what to do about it; empty when nothing.
    """

    level: Level
    name: str
    text: str
    fix: str = ""


class Notes:
    """Findings in the order in which they are made."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def ok(self, name: str, text: str) -> None:
        """All is well, or a fact worth knowing."""
        self.findings.append(Finding("ok", name, text))

    def warning(self, name: str, text: str, fix: str) -> None:
        """Something that may be meant but often is not."""
        self.findings.append(Finding("warning", name, text, fix))

    def error(self, name: str, text: str, fix: str) -> None:
        """Something that will fail or give wrong figures."""
        self.findings.append(Finding("error", name, text, fix))

    def judge(self, is_good: bool, name: str, text: str, fix: str, *, bad: Level = "error") -> None:
        """`ok` or, with the fix, a finding of level `bad`."""
        level: Level = "ok" if is_good else bad
        self.findings.append(Finding(level, name, text, "" if is_good else fix))

    def failed(self, *names: str) -> bool:
        """Whether one of these checks has found an error."""
        return any(f.level == "error" and f.name in names for f in self.findings)

    @contextmanager
    def guard(self, name: str, fix: str) -> Iterator[None]:
        """A check that breaks down becomes an error of its name, and the next ones go on."""
        try:
            yield
        except EXPECTED as error:
            self.error(name, f"{type(error).__name__}: {str(error)[:LONGEST]}", fix)


def shown(names: list[str], most: int = 3) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
