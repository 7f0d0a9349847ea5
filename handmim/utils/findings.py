"""Findings of checks of input files, and which of many entries a check looks at."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Level = Literal["ok", "warning", "error"]

# What damaged files and broken installations raise; anything else is a fault of the doctor.
EXPECTED = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, ImportError,
    RuntimeError, MemoryError,
)  # fmt: skip
FEW_WRONG = 0.005  # share of entries; one of 1,367 in a public set
LONGEST = 400  # characters of an exception's text
MOST_RAISED = 3  # errors in one exception


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


@cache
def _warn_once(text: str) -> None:
    """Training and validation sets read the same file."""
    log.warning(text)


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

    def text_of(self, name: str) -> str:
        """Texts of the findings of one name."""
        return "; ".join(f.text for f in self.findings if f.name == name)

    def enforce(self, source: str) -> None:
        """Log warnings; refuse the source when there are errors.

        Args:
            source: file or folder, with its config key, for the message.
        Raises: ValueError listing the first few errors.
        """
        for finding in self.findings:
            if finding.level == "warning":
                _warn_once(f"{source}: {finding.text}; {finding.fix}")
        errors = [f"{f.text} ({f.fix})" for f in self.findings if f.level == "error"]
        if errors:
            more = len(errors) - MOST_RAISED
            text = "; ".join(errors[:MOST_RAISED]) + (f"; {more} further errors" * (more > 0))
            raise ValueError(f"{source}: {text}; tools/doctor.py lists all findings")

    @contextmanager
    def guard(self, name: str, fix: str) -> Iterator[None]:
        """A check that breaks down becomes an error of its name, and the next ones go on."""
        try:
            yield
        except EXPECTED as error:
            self.error(name, f"{type(error).__name__}: {str(error)[:LONGEST]}", fix)


def level_of(num: int, total: int, few: float = FEW_WRONG) -> Level:
    """A few wrong labels are a warning: public sets have some."""
    return "warning" if num <= few * total else "error"


def shown(names: list[str], most: int = 3) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def spread(num: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the indices 0 .. num - 1: evenly spread, with the first and the last."""
    if num <= most:
        return np.arange(num)
    return np.unique(np.linspace(0, num - 1, most).round().astype(np.int64))
