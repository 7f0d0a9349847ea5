"""What a campaign found: one result per try, a table of counts, JSON lines."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

NUM_SHOWN = 5  # failures that are printed


@dataclass(frozen=True)
class Result:
    """One try.

    Attributes:
        kind: what was tried, a row of the table.
        outcome: what happened, in short.
        is_fine: whether that is what is promised.
        seconds: how long it took.
        detail: what explains a failure.
    """

    kind: str
    outcome: str
    is_fine: bool
    seconds: float = 0.0
    detail: str = ""


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Append results as JSON lines."""
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(result)) + "\n" for result in results)


def print_results(results: Sequence[Result], console: Console) -> None:
    """A row per kind with counts of outcomes, then the first failures."""
    table = Table("kind", "tries", "failed", "outcomes", "median s")
    for kind in dict.fromkeys(result.kind for result in results):
        own = [result for result in results if result.kind == kind]
        outcomes = Counter(result.outcome for result in own).most_common()
        table.add_row(
            kind,
            str(len(own)),
            str(sum(not result.is_fine for result in own)),
            ", ".join(f"{count} {outcome}" for outcome, count in outcomes),
            f"{median(result.seconds for result in own):.2f}",
        )
    console.print(table)
    for result in [result for result in results if not result.is_fine][:NUM_SHOWN]:
        console.print(f"{result.kind}: {result.outcome}: {result.detail}", markup=False)
