"""Rows of a benchmark on the terminal and as JSON."""

import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmark.core import Row
from handmim.utils.console import print_table
from handmim.utils.files import write_atomic

CPU_MODEL = ("model name", "Hardware", "cpu model")


def shown(value: float | None, digits: int = 2) -> str:
    """A number of a table, empty where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def rows_table(rows: Sequence[Row]) -> Table:
    """All rows, a section per suite and case; fields that no row has get no column."""
    table = Table("case", "variant", caption=_HOW)
    columns = [heading for heading, field in _COLUMNS.items() if any(map(field, rows))]
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
    return _red(shown(row.speedup), row.speedup, row.promised)


def _rate(row: Row) -> str:
    text = "" if row.per_s is None else f"{row.per_s:.0f} {row.unit}".strip()
    return _red(text, row.per_s, row.promised_per_s)


def _red(text: str, have: float | None, promised: float | None) -> str:
    """Red where it falls short of the promise."""
    return f"[red]{text}[/red]" if None not in (have, promised) and have < promised else text  # type: ignore[operator]


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "ms": lambda row: shown(row.ms, 1 if (row.ms or 0) >= 100 else 3),
    "speed": _speed,
    "range": lambda row: "" if row.low is None else f"{row.low:.2f}-{row.high:.2f}",
    "promised": lambda row: shown(row.promised),
    "per second": _rate,
    "promised /s": lambda row: shown(row.promised_per_s, 0),
    "MiB": lambda row: shown(row.peak_mib, 0),
    "of its MiB": lambda row: shown(row.memory_share),
    "GFLOP": lambda row: shown(row.gflop, 1),
    "of peak": lambda row: shown(row.peak_share),
    "off by": lambda row: "" if row.error is None else f"{row.error:.1g} {row.error_unit}".strip(),
    "note": lambda row: row.note,
}
_HOW = (
    "speed: median of the reference / median; range: of the rounds' own ratios; MiB: peak above "
    "the start; of peak: of the device's rate of matrix products"
)


def machine_metadata(device: torch.device) -> dict[str, Any]:
    """The machine of the measurement."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [line for line in info.read_text().splitlines() if line.startswith(CPU_MODEL)]
        cpu = named[0].split(":", 1)[1].strip() if named else cpu
    found: dict[str, Any] = {"cpu": cpu, "cores": os.cpu_count(), "torch": torch.__version__}
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found | {"device": str(device), "threads": torch.get_num_threads()}


def write_rows(path: Path, rows: Sequence[Row], machine: dict[str, Any]) -> None:
    """The same as JSON, whole or not at all."""
    content = {"machine": machine, "rows": [row.plain() for row in rows]}
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def print_rows(rows: Sequence[Row]) -> None:
    """Print `rows_table`, in a pipe 170 characters wide."""
    print_table(rows_table(rows), 170)
