"""What a table asks: rows (variants), columns (figures), and how its cells are made."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from handmim.ablation.overrides import joined
from handmim.utils.config import resolved

ROW_NAME = re.compile(r"[a-z0-9_]+")
ROW_KEYS = {"label", "pretrain", "finetune", "init_from"}
TABLE_KEYS = {
    "title", "question", "pretrain", "finetune", "fractions", "columns", "rows", "baseline",
    "curves",
}  # fmt: skip
BETTER = ("lower", "higher", None)


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of the cells: where it stands and how it is shown."""

    key: str  # as in cell.json, for example finetune_5/mpjpe_mm
    label: str
    decimals: int = 2
    better: str | None = "lower"  # lower | higher | None: neither


@dataclass(frozen=True, slots=True)
class Row:
    """A variant.

    Attributes:
        name: also of its folder.
        label: in the table.
        pretrain: complete overrides of configs/pretrain.yaml.
        finetune: complete overrides of configs/finetune.yaml, without labels and start.
        is_pretrained: False starts from `init_from`, or from random weights.
        init_from: backbone weights of a row that is not pretrained.
    """

    name: str
    label: str
    pretrain: tuple[str, ...]
    finetune: tuple[str, ...]
    is_pretrained: bool = True
    init_from: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows and columns, and what of them is to be run.

    Attributes:
        name: of its folder and its published files.
        title, question: as shown.
        rows: all variants.
        columns: all figures.
        fractions: label shares of the fine-tunes; none for probes only.
        chosen: names of the rows to be run.
        seeds: to be run.
        baseline: name of the row that changes are told against; None tells none.
        curves: figures of fine-tunes that are drawn against the number of labels, each with its
            label, unit included.
    """

    name: str
    title: str
    question: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    fractions: tuple[float, ...]
    chosen: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: str | None = None
    curves: tuple[tuple[str, str], ...] = ()


def read_table(cfg: DictConfig) -> Table:
    """The table of a composed config of tables (configs/ablate.yaml), all words checked.

    Overrides are joined from the general to the particular: setting, budget, table, the
    user's, row. Machine settings come last; one that is null leaves an experiment's own.

    Raises: ValueError naming the key and what is valid.
    """
    plain = resolved(cfg)
    if "table" not in plain:
        raise ValueError("choose a table: table=NAME (python tools/ablate.py --help lists them)")
    table, setting, budget = plain["table"], plain["setting"], plain["budget"]
    _check_keys(table, TABLE_KEYS, "table")
    if not table.get("rows"):
        raise ValueError("the table has no rows (configs/table: rows)")
    pretrain, finetune = (
        [setting[k], budget[k], table.get(k), plain[k]] for k in ("pretrain", "finetune")
    )
    pretrain.insert(1, setting["probe"])
    machine = [f"machine.{k}={v}" for k, v in plain["machine"].items() if v is not None]
    paths = [f"paths.data_dir='{plain['paths']['data_dir']}'"]
    rows = []
    for name, row in table["rows"].items():
        if not ROW_NAME.fullmatch(name):
            raise ValueError(f"row names are of a-z, 0-9 and _, got {name!r} (table.rows)")
        _check_keys(row, ROW_KEYS, f"table.rows.{name}")
        own = row.get("pretrain", [])
        if own is not None and row.get("init_from") is not None:
            raise ValueError(
                f"row {name} is pretrained and has init_from: give pretrain: null, or pretrain "
                f"from those weights with pretrain: [init=...] (table.rows.{name})"
            )
        rows.append(
            Row(
                name,
                row.get("label") or name.replace("_", " "),
                joined(*(words or [] for words in (*pretrain, own)), machine, paths),
                joined(*(w or [] for w in (*finetune, row.get("finetune"))), machine, paths),
                own is not None,
                row.get("init_from"),
            )
        )
    fractions = _fractions(table.get("fractions", budget["fractions"]))
    columns = _by_fraction(plain["columns"] | (table.get("columns") or {}), fractions)
    return Table(
        name=plain["name"],
        title=table["title"],
        question=table["question"],
        rows=tuple(rows),
        columns=tuple(_column(key, c) for key, c in columns.items() if c is not None),
        fractions=fractions,
        chosen=_chosen(rows, plain["rows"]),
        seeds=_seeds(plain["seeds"]),
        baseline=_baseline(rows, table.get("baseline")),
        curves=tuple((table.get("curves") or {}).items()),
    )


def fraction_name(fraction: float) -> str:
    """Label share in stage names and column keys: 0.05 is finetune_5."""
    return f"finetune_{_percent(fraction)}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g}"


def _by_fraction(columns: dict[str, Any], fractions: Sequence[float]) -> dict[str, Any]:
    """Columns in which a star stands for each share of the labels, written out: key and label.

    What is said of one share changes what its star says, in whatever order; null takes a column
    away.

    Raises: ValueError naming a column that is no mapping, or one with a star and no label.
    """
    written: dict[str, Any] = {}
    for key, column in columns.items():
        if column is not None and not isinstance(column, dict):
            raise ValueError(f"a column is a mapping or null, got {column!r} (columns.{key})")
        if "*" not in key:
            written.setdefault(key, {})
            continue
        if column is not None:
            _check_labelled(key, column)
        for percent in map(_percent, fractions):
            label = {} if column is None else {"label": column["label"].replace("*", percent)}
            written[key.replace("*", percent)] = None if column is None else {**column, **label}
    for key, column in columns.items():
        if "*" not in key:
            written[key] = None if column is None else {**(written[key] or {}), **column}
    return written


def _check_labelled(key: str, column: dict[str, Any]) -> None:
    if "label" not in column:
        raise ValueError(f"a column needs a label, got {column} (columns.{key})")


def _check_keys(node: Any, valid: set[str], where: str) -> None:
    unknown = sorted(set(node or {}) - valid)
    if node is None or unknown:
        raise ValueError(f"{where} has keys {unknown}, valid are {sorted(valid)} ({where})")


def _column(key: str, values: dict[str, Any]) -> Column:
    _check_keys(values, {"label", "decimals", "better"}, f"columns.{key}")
    _check_labelled(key, values)
    column = Column(key, **values)
    if column.better not in BETTER:
        raise ValueError(f"better must be one of {BETTER}, got {column.better!r} (columns.{key})")
    return column


def _baseline(rows: Sequence[Row], name: str | None) -> str | None:
    known = [row.name for row in rows]
    if name is not None and name not in known:
        raise ValueError(f"no row {name!r} in this table, it has {known} (table.baseline)")
    return name


def _chosen(rows: Sequence[Row], names: str | list[str] | None) -> tuple[str, ...]:
    """Names of rows; one alone may come without a list."""
    known = [row.name for row in rows]
    wanted = known if names is None else [names] if isinstance(names, str) else names
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"no rows {unknown} in this table, it has {known} (rows=[...])")
    if not wanted:
        raise ValueError(f"rows=[] leaves nothing to run, choose of {known} or null for all (rows)")
    return tuple(name for name in known if name in wanted)


def _fractions(values: list[float]) -> tuple[float, ...]:
    if any(not 0 < f <= 1 for f in values) or len(set(values)) < len(values):
        raise ValueError(f"label shares must be distinct and in (0, 1], got {values} (fractions)")
    return tuple(values)


def _seeds(seeds: int | list[int]) -> tuple[int, ...]:
    """3 is 0, 1, 2."""
    if isinstance(seeds, int):
        seeds = list(range(seeds))
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(s, int) for s in seeds):
        raise ValueError(f"seeds must be a number >= 1 or distinct numbers, got {seeds} (seeds=3)")
    return tuple(seeds)
