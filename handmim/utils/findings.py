"""Findings of checks of input files, and which of many entries a check reads."""

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partialmethod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Level = Literal["ok", "warning", "error"]

# What damaged files and broken installations raise; anything else is a fault of the checks.
EXPECTED = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, ImportError,
    RuntimeError, MemoryError,
)  # fmt: skip
FEW_WRONG = 0.005  # share of entries; one of 1,367 in a public set
LONGEST = 400  # characters of an exception's text
MOST_RAISED = 3  # errors in one exception, entries in one finding


@dataclass(frozen=True)
class Finding:
    """One line of a report; "ok" also holds for facts."""

    level: Level
    name: str  # stable, such as "freihand-unit"
    text: str  # what was found
    fix: str = ""  # what to do about it; empty where nothing is


@cache
def warn_once(text: str) -> None:
    """Log a warning, once in a process."""
    log.warning(text)


class Notes:
    """Findings in order; `prefix` begins their names ("unit" becomes "freihand-unit"), `fix` is
    that of findings without one of their own."""

    def __init__(self, prefix: str = "", fix: str = "") -> None:
        self.prefix, self.fix = prefix and f"{prefix}-", fix
        self.findings: list[Finding] = []

    def judge(
        self, is_good: bool, name: str, text: str, fix: str = "", *, bad: Level = "error"
    ) -> None:
        """`ok` or, with the fix, a finding of level `bad`."""
        level: Level = "ok" if is_good else bad
        fix = "" if level == "ok" else fix or self.fix
        self.findings.append(Finding(level, self.prefix + name, text, fix))

    def count(
        self, odd: list[Any], total: int, name: str, text: str, fix: str = "", bad: Level = "error"
    ) -> None:
        """How many of `total` are odd, with the first few: "2 of 24 hands are empty: a, b"."""
        first = f": {shown([str(entry) for entry in odd])}" if odd else ""
        self.judge(not odd, name, f"{len(odd)} of {total} {text}{first}", fix, bad=bad)

    ok = partialmethod(judge, True)  # all is well, or a fact worth knowing
    # What may be meant but often is not, and what will fail or give wrong results.
    warning, error = partialmethod(judge, False, bad="warning"), partialmethod(judge, False)

    def failed(self, *names: str, level: Level = "error") -> bool:
        """Whether one of these checks has a finding of this level."""
        full = {self.prefix + name for name in names}
        return any(f.level == level and f.name in full for f in self.findings)

    def add_entries(self, entries: "Notes") -> None:
        """Add errors of single entries, without prefix: those of one name and fix become one."""
        texts = defaultdict(list)
        for finding in entries.findings:
            texts[finding.name, finding.fix].append(finding.text)
        for (name, fix), found in texts.items():
            count = f"{len(found)} entries, the first: " if len(found) > MOST_RAISED else ""
            self.error(name, count + "; ".join(found[:MOST_RAISED]), fix)

    def enforce(self, source: str) -> None:
        """Log warnings; raise a ValueError that names the source and the first few errors."""
        for finding in self.findings:
            if finding.level == "warning":
                warn_once(f"{source}: {finding.text}; {finding.fix}")
        errors = [f"{f.text} ({f.fix})" for f in self.findings if f.level == "error"]
        if errors:
            more = len(errors) - MOST_RAISED
            text = "; ".join(errors[:MOST_RAISED]) + (f"; {more} further errors" * (more > 0))
            raise ValueError(f"{source}: {text}; tools/doctor.py lists all findings")

    @contextmanager
    def guard(self, name: str, fix: str = "") -> Iterator[None]:
        """A check that breaks down becomes an error of its name, and the next ones go on."""
        try:
            yield
        except EXPECTED as error:
            kind = "" if type(error) in (ValueError, FileNotFoundError) else type(error).__name__
            self.error(name, f"{kind}{': ' * bool(kind)}{str(error)[:LONGEST]}", fix)


def level_of(num: int, total: int, few: float = FEW_WRONG) -> Level:
    """A few wrong labels are a warning: public sets have some."""
    return "warning" if num <= few * total else "error"


def shown(names: list[str], most: int = 3) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def spread(num: int, most: int = 64) -> NDArray[np.int64]:
    """At most `most` of the indices 0 .. num - 1: evenly spread, with the first and the last."""
    if num <= most:
        return np.arange(num)
    return np.unique(np.linspace(0, num - 1, most).round().astype(np.int64))
