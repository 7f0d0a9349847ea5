"""Rows of a table from a list of starts: random weights, methods of pretraining, files."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from handmim.utils.config import resolved

RANDOM = "random"
PUBLIC = "timm:"
AS_IT_IS = "supervised-init"
FILE = re.compile(r"[/\\]|\.(safetensors|pth?|bin)$")


def with_inits(cfg: DictConfig) -> DictConfig:
    """A config of tables whose `table` has a row for each of `inits` and the shares `fractions`.

    Args:
        cfg: composed from configs/label_efficiency.yaml; it stays as it is.
    Raises: ValueError for starts that are none, twice there, or not to be told apart by name;
        FileNotFoundError for weights that are not there.
    """
    plain = resolved(cfg)
    rows = init_rows(plain["inits"], plain["labels"])
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    cfg.table = plain["table"] | {"fractions": plain["fractions"], "rows": rows}
    if RANDOM in rows:
        cfg.table.baseline = RANDOM
    return cfg


def init_rows(inits: str | Sequence[str], labels: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Rows as configs/table has them, by name.

    Args:
        inits: `random`; a method of configs/method; `timm:NAME` or a file of weights, which are
            taken as they are.
        labels: of starts that are to be called something else than they are written.
    Raises: as `with_inits`.
    """
    asked = [inits] if isinstance(inits, str) else list(inits)
    if not asked or len(set(asked)) < len(asked):
        raise ValueError(f"starts must be distinct, one at least, got {asked} (inits=[...])")
    if AS_IT_IS in asked:
        raise ValueError(
            f"instead of {AS_IT_IS} name its weights: timm:NAME or a file (inits=[...])"
        )
    stems = Counter(_row_name(_called(init)) for init in asked)
    rows: dict[str, dict[str, Any]] = {}
    for init in asked:
        called = _called(init)
        if _is_file(init) and stems[_row_name(called)] > 1:  # backbone.safetensors of many runs
            called = f"{Path(init).absolute().parent.name}/{called}"
        name = _row_name(called)
        if name in rows:
            raise ValueError(
                f"two starts would be row {name!r} of the table: rename a file or its folder "
                f"({asked}; inits=[...])"
            )
        rows[name] = {"label": labels.get(init, called), **_source(init)}
    return rows


def _is_file(init: str) -> bool:
    return not init.startswith(PUBLIC) and FILE.search(init) is not None


def _called(init: str) -> str:
    """As written, but for files, which are called by their name without its ending."""
    return Path(init).stem if _is_file(init) else init.removeprefix(PUBLIC)


def _row_name(called: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", called.lower()).strip("_") or "init"


def _source(init: str) -> dict[str, Any]:
    """Where a row's weights come from, as a row says it."""
    if init == RANDOM:
        return {"pretrain": None}
    if init.startswith(PUBLIC):
        return {"pretrain": [f"method={AS_IT_IS}", f"init='{init}'"]}
    if not _is_file(init):
        return {"pretrain": [f"method={init}"]}
    path = Path(init).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path} (inits=[...])")
    return {"pretrain": None, "init_from": str(path)}
