"""Values of a composed config against the type hints of what takes them, and ranges of counts."""

import inspect
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePath
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from handmim.utils.arguments import meant
from handmim.utils.config import CHOSEN, flatten, source_of


class Signature(NamedTuple):
    """Type hints by the parameters that a config can name; `is_open`: any other one is taken."""

    parameters: Mapping[str, Any]
    is_open: bool = False


# Type hints of what the entry points themselves read; a text names a function.
READ: dict[str, Any] = {
    "trainer": "handmim.engine.trainer.Trainer",
    "machine": "handmim.utils.run.Run.start",
    **dict.fromkeys(("augment", "optim", "task", "views"), dict[str, Any]),
    "collapse": dict[str, Any] | None, "paths": dict[str, str],
    **dict.fromkeys(("debug", "overwrite", "train", "dry_run"), bool),
    **dict.fromkeys(("seed", "batch_size", "num_images", "jobs", "rounds", "num_checked"), int),
    **dict.fromkeys(("num_labels", "eval_every", "num_workers", "num_threads"), int | None),
    **dict.fromkeys(("name", "resume", "predictor", "budget", "device"), str),
    **dict.fromkeys(
        ("init", "init_from", "label_ids", "predictions", "out", "run", "json", "report",
         "freihand", "ho3d_v2", "ho3d_v3", "crops"), str | None,
    ),
    **dict.fromkeys(("checkpoint", "inits", "variants"), str | list[str] | None),
    "init_neck": Literal["auto", "never"],
    "label_fraction": float | None, "fractions": list[float] | None, "seeds": int | list[int],
}  # fmt: skip
# Last parts of keys that hold a number, in any group, or of the schedule that takes its place.
RANGES: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    (("num_nodes", "batch_size", "eval_every", "every", "rounds", "num_checked", "num_labels",
      "num_train", "num_val", "lr_reference_batch"), "a whole number >= 1", lambda v: v >= 1),
    (("num_images", "num_hidden", "freeze_prototypes_steps"),
     "a whole number >= 0", lambda v: v >= 0),
    (("num_threads", "jobs"), "a whole number >= 1, 1024 at most,", lambda v: 1 <= v <= 1024),
    (("num_workers",), "a whole number >= 0, 1024 at most,", lambda v: 0 <= v <= 1024),
    (("image_px", "img_px", "patch_px", "local_px"),
     "a whole number >= 1, 8192 at most,", lambda v: 1 <= v <= 8192),
    (("lr", "weight_decay"), "a number >= 0", lambda v: v >= 0),
    (("clip_norm", "layer_decay", "teacher_temp", "max_megapixels"),
     "a number > 0", lambda v: v > 0),
    (("momentum", "max_unreadable", "drop_path_rate"), "a number from 0 to 1",
     lambda v: 0 <= v <= 1),
)  # fmt: skip
RULES = {name: (text, holds) for names, text, holds in RANGES for name in names}
OF_SCHEDULES = ("start", "end", "warmup_start")
LISTS = (list, tuple, Sequence, Iterable, Collection)
MAPPINGS = (dict, Mapping)
KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number", lambda v: type(v) is int),
    float: ("a finite number", lambda v: type(v) in (int, float) and math.isfinite(v)),
    bool: ("true or false", lambda v: isinstance(v, bool)),
    str: ("text", lambda v: isinstance(v, str)),
    Path: ("a path", lambda v: isinstance(v, str)),
    NoneType: ("null", lambda v: v is None),
    **dict.fromkeys(LISTS, ("a list [...]", lambda v: isinstance(v, list))),
    **dict.fromkeys(MAPPINGS, ("a mapping {...}", lambda v: isinstance(v, dict))),
}
# Keys that choose an entry of a mapping of the same root.
CHOICES = {"budget": "budgets", "centering": "centerings", "format": "formats", "tta": "tta_views"}
# Groups whose files say in their first line, `# @package PLACE`, what they are a part of.
PLACES = {
    "objective": "task.objectives.NAME", "loss": "task.losses.NAME", "head": "task.head",
    "backbone": "task.backbone", "keypoint_head": "task.heads.keypoint",
}  # fmt: skip
# Null there means the hand of a checkpoint and the precision of a table.
MAY_BE_NULL = {"checkpoint": "hand.path=null:", "budget": "machine.precision=null:"}


def check_settings(cfg: DictConfig) -> None:
    """Check a composed config before anything is built; in place, 1e3 becomes an integer, and an
    integer text, where that is required. Raises: ValueError naming each key, its value and what is
    required."""
    nulls = tuple(null for key, null in MAY_BE_NULL.items() if key in cfg)
    problems = [
        f"a file of configs/{key} begins without `# @package {place}`, so that nothing reads it"
        for key, place in PLACES.items()
        if key in cfg
    ]
    for key, options in CHOICES.items():
        known = ["null"] * (key == "tta") + list(cfg.get(options, ()))
        if options in cfg and (cfg[key] or "null") not in known:
            problems.append(f"{key}={cfg[key]}: one of {', '.join(known)} is required")
    problems += [*_arguments(cfg, Signature(READ, is_open=True)), *_parts(cfg)]
    wrong = [text for text in dict.fromkeys(problems) if not text.startswith(nulls)]
    if wrong := wrong or [*_ranges(cfg)]:
        raise ValueError("; ".join(wrong))


@cache
def signature_of(target: Any) -> Signature | None:
    """The signature of a class or function of this package, or of its dotted name; None of any
    other, and where there is none."""
    if not isinstance(target, str):
        target = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    if not target.startswith("handmim."):
        return None
    try:
        found = resolve_name(target)
        given = inspect.signature(found).parameters
    except (ImportError, AttributeError, ValueError):
        return None  # whoever builds it says so
    hints = get_type_hints(found.__init__ if inspect.isclass(found) else found)
    kinds = {name: p.kind for name, p in given.items()}
    named = {n: hints.get(n, Any) for n, kind in kinds.items() if not kind.name.startswith("VAR_")}
    is_open = inspect.Parameter.VAR_KEYWORD in kinds.values()
    return None if is_open and not named else Signature(named, is_open)


def unlisted_key(error: BaseException) -> str | None:
    """The key of an override that no yaml lists, but that its part takes; else None."""
    cause = error.__cause__
    if not isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        return None
    node, key = cause.parent_node, str(cause.full_key)
    if not isinstance(node, DictConfig) or node._is_none():
        return None
    parent, _, name = key.rpartition(".")
    content: Any = OmegaConf.to_container(node)
    signature = signature_of(content.get("_target_", READ.get(parent)))
    return key if signature is not None and name in signature.parameters else None


def _ranges(cfg: DictConfig) -> Iterator[str]:
    """Numbers out of range, every count of the trainer is 1 at least; and a bad name of a run."""
    for key, value in flatten(OmegaConf.to_container(cfg)).items():
        above, _, name = key.rpartition(".")
        name = above.rpartition(".")[2] if name in OF_SCHEDULES else name
        rule = RULES.get(name, RULES["batch_size"] if above == "trainer" else None)
        if rule is not None and type(value) in (int, float) and not rule[1](value):
            yield f"{key}={value}: {rule[0]} is required"
    if isinstance(name := cfg.get("name"), str):
        path = PurePath(name)
        is_below = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
        is_short = all(len(part.encode()) <= 255 for part in path.parts)
        if not (is_below and is_short) or name.startswith("~") or not name.isprintable():
            yield f"name={name!r}: the name of a folder below paths.run_root is required"


def _parts(node: Any) -> Iterator[str]:
    """Problems of all nodes below one that are built."""
    is_node = isinstance(node, (DictConfig, ListConfig))
    if not is_node or node._is_none() or node._is_interpolation():
        return
    if isinstance(node, DictConfig):
        content: Any = OmegaConf.to_container(node)
        if (signature := signature_of(str(content.get("_target_")))) is not None:
            yield from _arguments(node, signature)
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        yield from _parts(node._get_node(key))


def _arguments(node: DictConfig, signature: Signature) -> Iterator[str]:
    for name in map(str, node):
        if name in signature.parameters:
            yield from _value(node, name, signature.parameters[name])
        elif not signature.is_open and not name.startswith("_"):  # unlike _target_
            known = sorted(signature.parameters)
            close = meant(name, known) or f", there are {', '.join(known)}"
            yield f"{node._get_full_key(name)}: no such setting{close}"


def _value(node: DictConfig, name: str, hint: Any) -> Iterator[str]:
    """Problems of one value; an integer is written in its place where one is meant."""
    if (source := source_of(node, name)) is None:
        return
    key = source._get_full_key(None) or node._get_full_key(name)
    if isinstance(source, DictConfig) and not source._is_none():
        yield from _mapping(source, key, hint)
        return
    is_list = isinstance(source, ListConfig)
    plain = OmegaConf.to_container(source, resolve=True) if is_list else source._value()
    try:
        value = _fitted(plain, hint)
    except ValueError:
        is_word = plain is None or isinstance(plain, bool)
        shown = json.dumps(plain) if is_word or not str(plain).strip() else plain
        yield f"{key}={shown}: {_text(hint)} is required"
        return
    if repr(value) != repr(plain):
        source._get_parent()[source._key()] = value


def _mapping(node: DictConfig, key: str, hint: Any) -> Iterator[str]:
    """Problems of a mapping that is given where a hint is required."""
    if "_target_" in node:
        return
    members = _members(hint)
    for member in members:
        if get_origin(member) in MAPPINGS:
            chosen = key.rpartition(".")[2] in CHOSEN  # others have settings, but no target
            for child in node:
                part = node._get_node(child)
                if not (chosen and isinstance(part, DictConfig) and "_target_" not in part):
                    yield from _value(node, str(child), get_args(member)[-1])
        signature = signature_of(member)
        if signature is not None and signature.parameters:
            yield from _arguments(node, signature)
            return
    heads = {get_origin(member) or member for member in members}
    if heads <= {*KINDS, Literal} and heads.isdisjoint(MAPPINGS):
        yield f"{key}={{...}}: {_text(hint)} is required"


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fitted(value: Any, hint: Any) -> Any:
    """A value as a hint takes it; an integer for a float without a fraction, text for an integer.
    Raises: ValueError."""
    members = _members(hint)
    for member in members:
        head, arguments = get_origin(member) or member, get_args(member)
        if head in LISTS and isinstance(value, list) and arguments:
            hints = arguments if _is_fixed(arguments) else arguments[:1] * len(value)
            with suppress(ValueError):  # of an element, or of their number
                return [_fitted(each, hint) for each, hint in zip(value, hints, strict=True)]
        elif head is Literal:
            if value in arguments:
                return value
        elif head in KINDS:
            if KINDS[head][1](value):
                return value
        elif signature_of(head) is None or isinstance(value, dict):
            return value  # any other hint is not judged here
    if int in members and isinstance(value, float) and value.is_integer():
        return int(value)
    if str in members and type(value) is int:
        return str(value)
    raise ValueError


def _is_fixed(arguments: tuple[Any, ...]) -> bool:
    """Whether a list has an element for each argument of its hint, unlike list[X]."""
    return len(arguments) > 1 and arguments[-1] is not Ellipsis


def _text(hint: Any) -> str:
    """What a hint requires, in words."""
    if len(members := _members(hint)) > 1:
        return " or ".join(dict.fromkeys(map(_text, members)))
    head, arguments = get_origin(hint) or hint, get_args(hint)
    if head is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if head in LISTS and arguments:
        form = f"of {len(arguments)}" if _is_fixed(arguments) else "[...]"
        return f"a list {form}, each {_text(arguments[0])},"
    return KINDS[head][0] if head in KINDS else f"a mapping for {getattr(head, '__name__', head)}"
