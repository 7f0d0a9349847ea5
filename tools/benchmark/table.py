"""Rows of a benchmark on the terminal and as JSON."""

import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmark.race import Row
from handmim.utils.files import write_atomic

CPU_MODEL = ("model name", "Hardware", "cpu model")


def shown(value: float | None, digits: int = 2) -> str:
    """A figure of a table, empty where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def rows_table(rows: Sequence[Row]) -> Table:
    """All rows, a section per suite and case; figures that no row has get no column."""
    table = Table("case", "variant", caption=_HOW)
    columns = [heading for heading, figure in _COLUMNS.items() if any(map(figure, rows))]
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    last = None
    for row in rows:
        case = f"{row.suite}: {row.case}"
        if last not in (None, case):
            table.add_section()
        table.add_row(
            "" if case == last else case, row.variant, *(_COLUMNS[name](row) for name in columns)
        )
        last = case
    return table


def _speed(row: Row) -> str:
    return _red(shown(row.speedup), row.speedup, row.asked)


def _rate(row: Row) -> str:
    text = "" if row.per_s is None else f"{row.per_s:.0f} {row.unit}".strip()
    return _red(text, row.per_s, row.asked_per_s)


def _red(text: str, have: float | None, asked: float | None) -> str:
    """A figure that falls short of what is promised stands out."""
    return f"[red]{text}[/red]" if None not in (have, asked) and have < asked else text  # type: ignore[operator]


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "ms": lambda row: shown(row.ms, 1 if (row.ms or 0) >= 100 else 3),
    "speed": _speed,
    "range": lambda row: "" if row.low is None else f"{row.low:.2f}-{row.high:.2f}",
    "asked": lambda row: shown(row.asked),
    "per second": _rate,
    "asked /s": lambda row: shown(row.asked_per_s, 0),
    "MiB": lambda row: shown(row.peak_mib, 0),
    "of its MiB": lambda row: shown(row.memory_share),
    "GFLOP": lambda row: shown(row.gflop, 1),
    "of peak": lambda row: shown(row.ceiling_share),
    "off by": lambda row: "" if row.error is None else f"{row.error:.1g} {row.error_unit}".strip(),
    "note": lambda row: row.note,
}
_HOW = (
    "speed: median of the reference / median; range: of the rounds' own ratios; MiB: peak above "
    "the start; of peak: of the device's rate of matrix products"
)


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [line for line in info.read_text().splitlines() if line.startswith(CPU_MODEL)]
        cpu = named[0].split(":", 1)[1].strip() if named else cpu
    facts: dict[str, Any] = {"cpu": cpu, "cores": os.cpu_count(), "torch": torch.__version__}
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts | {"device": str(device), "threads": torch.get_num_threads()}


def write_rows(path: Path, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """The same as JSON, whole or not at all."""
    content = {"machine": facts, "rows": [row.plain() for row in rows]}
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def print_rows(rows: Sequence[Row]) -> None:
    """Print `rows_table`."""
    console = Console()
    Console(width=None if console.is_terminal else 170).print(rows_table(rows))
