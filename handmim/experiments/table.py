"""What a table compares: its variants, each with Hydra overrides as mappings of key to value, and
its metrics; and which part of a composed config decides a result."""

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig

from handmim.engine.identity import By, deciding, is_compared
from handmim.utils.arguments import one_of
from handmim.utils.config import resolved
from handmim.utils.renames import KEYS

Overrides = dict[str, Any]

PROBED = ("probe", "task", "precision")  # parts of a pretraining config that decide its probe
UNQUOTED = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_][\w./-]*", re.IGNORECASE)
STAGES = ("pretrain", "finetune")  # configs that a variant's overrides compose
VARIANT_KEYS = {"label", *STAGES, "init_from"}
TABLE_KEYS = {
    "title", "question", "pretrain", "finetune", "fractions", "columns", "variants", "baseline",
    "curves", "inits", "labels",
}  # fmt: skip
RANDOM = "random"
TIMM = "timm:"
FILE = re.compile(r"(?!timm:).*([/\\]|\.(safetensors|pth?|bin)$)")


def as_overrides(given: Mapping[str, Any] | Sequence[str] | None) -> Overrides:
    """Overrides by key; a list of KEY=VALUE, as a command line has it, works as well."""
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    parsed = OverridesParser.create().parse_overrides(list(given))
    return {str(o.input_line).partition("=")[0]: o.value() for o in parsed}


def merged(*parts: Mapping[str, Any]) -> Overrides:
    """Overrides in which the last value of each key counts, whatever its `+` or `~`."""
    last: dict[str, tuple[str, Any]] = {}
    for key, value in (item for part in parts for item in part.items()):
        last.pop(key.lstrip("+~"), None)
        last[key.lstrip("+~")] = key, value
    return dict(last.values())


def arguments(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as Hydra takes them."""
    return [k if k.startswith("~") else f"{k}={value_text(v)}" for k, v in overrides.items()]


def value_text(value: Any) -> str:
    """A plain value in Hydra's grammar; strings are quoted where they have to be."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{k}:{value_text(v)}' for k, v in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(value_text, value))}]"
    if not isinstance(value, str) or UNQUOTED.fullmatch(value):
        return str(value)
    return str(QuotedString(value, Quote.single).with_quotes())


def decides(key: str, value: Any) -> bool:
    """Whether an override changes results; the usual precision does not, given or not."""
    key = key.lstrip("+~")
    return value != "32-true" if key == "machine.precision" else is_compared(key, By.TABLE)


def digest(plain: Any, length: int = 12) -> str:
    """Hex digits of the SHA-256 of plain containers; the order of keys does not matter."""
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def decisive(cfg: DictConfig) -> dict[str, Any]:
    """The part of a composed config that decides the result, `resolved`."""
    plain = deciding(resolved(cfg), By.TABLE)
    plain["precision"] = plain.pop("machine", {}).get("precision")
    return plain


@dataclass(frozen=True, slots=True)
class Column:
    """A metric of the runs, and how the table shows it."""

    key: str  # as in result.json: finetune_5/mpjpe_mm
    label: str
    decimals: int = 2
    better: str | None = "lower"


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the table, with complete overrides of configs/pretrain.yaml and finetune.yaml."""

    name: str  # also of its folder
    label: str
    pretrain: Overrides
    finetune: Overrides  # without labels and initial weights
    is_pretrained: bool = True  # False starts from `init_from`, or from random weights
    init_from: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Variants and metrics, and which runs are requested."""

    name: str  # of its folder and its published files
    title: str
    question: str
    variants: tuple[Variant, ...]
    columns: tuple[Column, ...]
    fractions: tuple[float, ...]  # label shares of the fine-tunings
    chosen: tuple[str, ...]  # names of the variants to run
    seeds: tuple[int, ...]  # to run
    baseline: str | None = None  # name of the variant that others are compared with
    curves: tuple[tuple[str, str], ...] = ()  # metric of fine-tunings and label, by labels


def read_table(cfg: DictConfig) -> Table:
    """The table of a composed configs/experiments.yaml; ValueError names a wrong key.

    Overrides are merged from the general to the particular: dataset, budget, table, the user's,
    variant. Machine settings come last; one that is null leaves an experiment's own.
    """
    if "table" not in cfg:
        raise ValueError("choose a table: table=NAME (tools/experiments.py --help lists them)")
    plain = resolved(cfg)
    one_of("budget", plain["budget"], plain["budgets"])
    table, budget = plain["table"], plain["budgets"][plain["budget"]]
    _check_keys(table, TABLE_KEYS, "table")
    inits, variants = plain.get("inits") or table.get("inits"), table.get("variants")
    baseline = table.get("baseline")
    if inits is not None and variants:
        where = "tables without variants (table=label_efficiency)"
        raise ValueError(f"inits={inits} is for {where}, this one has {list(variants)}")
    if inits is not None:
        variants = init_variants(inits, table.get("labels") or {})
        baseline = baseline or (RANDOM if RANDOM in variants else None)
    if not variants:
        raise ValueError("table.variants is empty, one variant at least is required")
    fractions = plain.get("fractions") or table.get("fractions", budget["fractions"])
    is_list = isinstance(fractions, list) and len(set(fractions)) == len(fractions)
    if not is_list or any(not 0 < f <= 1 for f in fractions):
        raise ValueError(f"fractions of labels must be distinct and in (0, 1], got {fractions}")
    seeds = list(range(plain["seeds"])) if isinstance(plain["seeds"], int) else plain["seeds"]
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(s, int) for s in seeds):
        raise ValueError(f"seeds must be a number >= 1 or distinct numbers, got {seeds}")
    return Table(
        name=plain["name"],
        title=table["title"],
        question=table["question"],
        variants=_variants(plain, variants),
        columns=_columns(plain["columns"] | (table.get("columns") or {}), fractions),
        fractions=tuple(fractions),
        chosen=_names(plain["variants"], list(variants), "variants=[...]"),
        seeds=tuple(seeds),
        baseline=None if baseline is None else _names(baseline, list(variants), "baseline")[0],
        curves=tuple((table.get("curves") or {}).items()),
    )


def _variants(plain: dict[str, Any], variants: Mapping[str, Any]) -> tuple[Variant, ...]:
    """Variants with the overrides that all of them share."""
    dataset, budget = plain["dataset"], plain["budgets"][plain["budget"]]
    parts = (dataset, budget, plain["table"], plain)
    common = {stage: [as_overrides(p.get(stage)) for p in parts] for stage in STAGES}
    common["pretrain"].insert(1, as_overrides(dataset["probe"]))
    last = {f"machine.{k}": v for k, v in plain["machine"].items() if v is not None}
    last["paths.data_dir"] = plain["paths"]["data_dir"]
    made = []
    for name, variant in variants.items():
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(f"names of variants are of a-z, 0-9 and _, got {name!r}")
        _check_keys(variant, VARIANT_KEYS, f"table.variants.{name}")
        own, init_from = variant.get("pretrain", {}), variant.get("init_from")
        if own is not None and init_from is not None:
            text = f"variant {name} is pretrained and has init_from: give pretrain: null, or "
            raise ValueError(text + "pretrain from those weights with pretrain: {init: ...}")
        label = variant.get("label") or name.replace("_", " ")
        pretrain = merged(*common["pretrain"], as_overrides(own), last)
        finetune = merged(*common["finetune"], as_overrides(variant.get("finetune")), last)
        made.append(Variant(name, label, pretrain, finetune, own is not None, init_from))
    return tuple(made)


def init_variants(inits: str | Sequence[str], labels: Mapping[str, str]) -> dict[str, Any]:
    """Variants as configs/table has them, one for each kind of initial weights: `random`, a method
    of configs/method, or `timm:NAME` or a file of weights, which are used as they are.

    `labels` are of inits that the table does not show as they are written. Raises ValueError,
    FileNotFoundError for weights.
    """
    given = [inits] if isinstance(inits, str) else list(inits)
    if not given or len(set(given)) < len(given):
        raise ValueError(f"inits must be distinct, one at least, got {given}")
    shown = {i: Path(i).stem if FILE.match(i) else i.removeprefix(TIMM) for i in given}
    stems = Counter(map(_variant_name, shown.values()))
    variants: dict[str, Any] = {}
    for init, label in shown.items():
        path = Path(init).absolute()
        if FILE.match(init) and stems[_variant_name(label)] > 1:  # backbone.safetensors of many
            label = f"{path.parent.name}/{label}"
        name = _variant_name(label)
        if name in variants:
            text = f"two inits would be variant {name!r} of the table"
            raise ValueError(f"{text}: rename a file or its folder ({given})")
        variant: dict[str, Any] = {"label": labels.get(init, label), "pretrain": None}
        if init.startswith(TIMM):
            variant["pretrain"] = {"train": False, "init": init}
        elif FILE.match(init):
            variant["init_from"] = str(path)
            if not path.is_file():
                raise FileNotFoundError(f"no weights at {path} (inits)")
        elif init != RANDOM:
            variant["pretrain"] = {"method": init}
        variants[name] = variant
    return variants


def _variant_name(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_") or "init"


def fraction_name(fraction: float) -> str:
    """Label share in stage names and column keys: 0.05 is finetune_5."""
    return f"finetune_{100 * fraction:g}"


def _columns(columns: Mapping[str, Any], fractions: Sequence[float]) -> tuple[Column, ...]:
    """Columns as configs have them; a star stands for each share of the labels, null for none."""
    made = []
    for key, values in columns.items():
        if values is None:
            continue
        if not isinstance(values, dict) or "label" not in values:
            raise ValueError(f"columns.{key} must be a mapping with a label or null, got {values}")
        _check_keys(values, {"label", "decimals", "better"}, f"columns.{key}")
        column = Column(key, **values)
        one_of(f"columns.{key}.better", column.better, ("lower", "higher", None))
        for percent in [f"{100 * f:g}" for f in fractions] if "*" in key else [""]:
            label = column.label.replace("*", percent)
            made.append(replace(column, key=key.replace("*", percent), label=label))
    return tuple(made)


def _check_keys(node: Any, valid: set[str], path: str) -> None:
    unknown = sorted(set(node or {}) - valid)
    if node is None or unknown:
        raise ValueError(f"{path} has keys {unknown}, valid are {sorted(valid)}")


def _names(given: str | list[str] | None, known: list[str], option: str) -> tuple[str, ...]:
    """Names of variants, in the table's order; one alone may come without a list; None is all."""
    names = known if given is None else [given] if isinstance(given, str) else given
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = f"no variants {unknown}" if unknown else "no variant is chosen"
        raise ValueError(f"{what} in this table, it has {known} ({option})")
    return tuple(name for name in known if name in names)


class Definition(NamedTuple):
    """What the runs of a variant are made of, whatever the seed."""

    overrides: dict[str, Any]  # that decide the result, by stage; `init` and `fractions` beside
    config_sha: str  # of the composed configs behind it
    steps: dict[str, int]  # optimizer steps by stage


def definition_of(
    table: Table, variant: Variant, configs: Mapping[str, DictConfig], content: dict[str, Any]
) -> Definition:
    """Of a variant whose configs are composed, `content` the part of them that decides results."""
    overrides: dict[str, Any] = {}
    for stage in STAGES:
        given = getattr(variant, stage)
        overrides[stage] = {k: v for k, v in given.items() if decides(k, v)}
    if not variant.is_pretrained:  # nothing else is taken from its config
        overrides["init"] = variant.init_from or RANDOM
        content = content | {"pretrain": {k: content["pretrain"].get(k) for k in PROBED}}
    overrides["fractions"] = list(table.fractions)
    trains = variant.is_pretrained and configs["pretrain"].get("train", True)
    steps = {"pretrain": configs["pretrain"].trainer.max_steps} if trains else {}
    steps |= {fraction_name(f): configs["finetune"].trainer.max_steps for f in table.fractions}
    return Definition(overrides, digest(content), steps)


def deciding_items(overrides: Mapping[str, Any], is_composed: bool) -> set[str]:
    """What decides the result, as texts; without the overrides of configs that are compared."""
    items = {f"{k}={value_text(v)}" for k, v in overrides.items() if k not in STAGES}
    for stage in () if is_composed else STAGES:
        kept = ((k, v) for k, v in _of_today(overrides[stage]).items() if decides(k, v))
        items |= {f"{k}={value_text(v)} ({stage})" for k, v in kept}
    return items


def _of_today(overrides: Overrides) -> Overrides:
    """Overrides with those that an option of before, `head=plain_small`, stands for today."""
    found: Overrides = {}
    for key, value in overrides.items():
        today = KEYS.get(f"{key}={value}", "")
        found |= as_overrides(shlex.split(today)) if "=" in today else {key: value}
    return found
