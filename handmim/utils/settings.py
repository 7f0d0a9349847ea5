"""Values of a composed config against the type hints of what takes them, and ranges of counts."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from handmim.utils.arguments import meant
from handmim.utils.config import CHOSEN, flatten, source_of
from handmim.utils.signatures import Named, Signature, signature_of

# Type hints of what the entry points themselves read; a text is a function that takes a mapping.
READ: dict[str, Any] = {
    "trainer": "handmim.engine.trainer.Trainer",
    "machine": "handmim.utils.run.Run.start",
    "debug": bool, "seed": int, "name": str, "resume": str, "overwrite": bool,
    "paths.data_dir": str, "paths.run_root": str,
    "train": bool, "init": str | None,
    "init_from": str | None, "num_labels": int | None, "label_fraction": float | None,
    "label_ids": str | None, "eval_every": int | None,
    "checkpoint": str | list[str] | None, "predictions": str | None, "predictor": str,
    "batch_size": int, "num_workers": int | None, "num_images": int,
    "inits": str | list[str] | None, "fractions": list[float] | None,
    "seeds": int | list[int], "variants": str | list[str] | None,
    "budget": str, "jobs": int, "dry_run": bool,
    "out": str | None, "run": str | None,
    "device": str, "rounds": int, "num_threads": int, "json": str | None,
    "num_checked": int, "report": str | None, "freihand": str | None,
    "ho3d_v2": str | None, "ho3d_v3": str | None, "crops": str | None,
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


SPECIAL = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
MAPPING = "a mapping {...}"
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
    **dict.fromkeys(MAPPINGS, (MAPPING, lambda v: isinstance(v, dict))),
}
# Mappings of a root, which no group fills.
SECTIONS = ("augment", "collapse", "optim", "task", "trainer", "views")
# Keys that choose an entry of a mapping of the same root.
CHOICES = {"budget": "budgets", "centering": "centerings", "format": "formats", "tta": "tta_views"}
# Null there means the hand of a checkpoint and the precision of a table.
MAY_BE_NULL = {"checkpoint": "hand.path=null:", "budget": "machine.precision=null:"}


class MismatchError(ValueError):
    """A value that a hint does not allow; the message says what is required."""


def check_settings(cfg: DictConfig) -> None:
    """Check a composed config before anything is built; in place, 1e3 becomes an integer, and an
    integer text, where that is required. Raises: ValueError naming each key, its value and what is
    required."""
    if replaced := [*_replaced(cfg), *_choices(cfg)]:
        raise ValueError("; ".join(replaced))
    nulls = tuple(null for key, null in MAY_BE_NULL.items() if key in cfg)
    problems = dict.fromkeys([*_own(cfg), *_parts(cfg)])
    wrong = [text for text in problems if not text.startswith(nulls)]
    if wrong := wrong or [*_ranges(cfg), *_name(cfg)]:
        raise ValueError("; ".join(wrong))


def _replaced(cfg: DictConfig) -> Iterator[str]:
    for key in SECTIONS:
        value = cfg.get(key, {})
        if not isinstance(value, DictConfig | dict) and not (key == "collapse" and value is None):
            yield f"{key}={value}: settings of {key} are given one by one, {key}.NAME=VALUE"


def _choices(cfg: DictConfig) -> Iterator[str]:
    for key, options in CHOICES.items():
        known = ["null"] * (key == "tta") + list(cfg.get(options, ()))
        if options in cfg and (cfg[key] or "null") not in known:
            yield f"{key}={cfg[key]}: one of {', '.join(known)} is required"


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
    target = content.get("_target_", READ.get(parent))
    signature = signature_of(target) if isinstance(target, str) else None
    return key if signature is not None and name in signature.parameters else None


def _ranges(cfg: DictConfig) -> Iterator[str]:
    """Numbers out of range; every count of the trainer is 1 at least."""
    for key, value in flatten(OmegaConf.to_container(cfg)).items():
        above, _, name = key.rpartition(".")
        name = above.rpartition(".")[2] if name in OF_SCHEDULES else name
        rule = RULES.get(name, RULES["batch_size"] if above == "trainer" else None)
        if rule is not None and type(value) in (int, float) and not rule[1](value):
            yield f"{key}={value}: {rule[0]} is required"


def _name(cfg: DictConfig) -> Iterator[str]:
    name = cfg.get("name")
    if not isinstance(name, str):
        return
    path = PurePath(name)
    is_below = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    is_short = all(len(part.encode()) <= 255 for part in path.parts)
    if not (is_below and is_short) or name.startswith("~") or not name.isprintable():
        yield f"name={name!r}: the name of a folder below paths.run_root is required"


def _own(cfg: DictConfig) -> Iterator[str]:
    """Problems of what the entry points themselves read."""
    for key, hint in READ.items():
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if node is None and parent in cfg:
            yield f"{parent}=null: {MAPPING} is required"
        if not isinstance(node, DictConfig) or name not in node:
            continue
        if isinstance(hint, str):
            hint = Named(name, (), {"target": hint})
        yield from _value(node, name, hint)


def _parts(node: Any) -> Iterator[str]:
    """Problems of all nodes below one that are built."""
    if (
        not isinstance(node, (DictConfig, ListConfig))
        or node._is_none()
        or node._is_interpolation()
    ):
        return
    if isinstance(node, DictConfig):
        target = None if OmegaConf.is_missing(node, "_target_") else node.get("_target_")
        signature = signature_of(target) if isinstance(target, str) else None
        if signature is not None:
            yield from _arguments(node, signature)
    keys: Iterable[Any] = node if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        yield from _parts(node._get_node(key))


def _arguments(node: DictConfig, signature: Signature) -> Iterator[str]:
    for name in (str(key) for key in node if key not in SPECIAL):
        if name in signature.parameters:
            yield from _value(node, name, signature.parameters[name])
        elif not signature.is_open:
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
    except MismatchError as refusal:
        yield f"{key}={_shown(plain)}: {refusal}"
        return
    if repr(value) != repr(plain):
        source._get_parent()[source._key()] = value


def _mapping(node: DictConfig, key: str, hint: Any) -> Iterator[str]:
    """Problems of a mapping that is given where a hint is required."""
    if "_target_" in node:
        return
    members = _members(hint)
    for member in members:
        if _head(member) in MAPPINGS and (arguments := get_args(member)):
            chosen = key.rpartition(".")[2] in CHOSEN  # others have settings, but no target
            for child in node:
                part = node._get_node(child)
                if not (chosen and isinstance(part, DictConfig) and "_target_" not in part):
                    yield from _value(node, str(child), arguments[-1])
        signature = _signature(member)
        if signature is not None and signature.parameters:
            yield from _arguments(node, signature)
            return
    heads = {_head(member) for member in members}
    if heads <= {*KINDS, Literal} and heads.isdisjoint(MAPPINGS):
        yield f"{key}={{...}}: {_text(hint)} is required"


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _head(hint: Any) -> Any:
    return get_origin(hint) or hint


def _signature(hint: Any) -> Signature | None:
    return signature_of(hint.target) if isinstance(hint, Named) else None


def _fitted(value: Any, hint: Any) -> Any:
    """A value as a hint takes it; an integer for a float without a fraction, text for an
    integer."""
    members = _members(hint)
    for member in members:
        try:
            return _fitted_to(value, member)
        except MismatchError:
            continue
    if int in members and isinstance(value, float) and value.is_integer():
        return int(value)
    if str in members and type(value) is int:
        return str(value)
    raise MismatchError(f"{_text(hint)} is required")


def _fitted_to(value: Any, hint: Any) -> Any:
    head, arguments = _head(hint), get_args(hint)
    if head in LISTS and isinstance(value, list) and arguments:
        hints = arguments if _is_fixed(arguments) else arguments[:1] * len(value)
        if len(hints) != len(value):
            raise MismatchError(head)
        return [_fitted(each, hint) for each, hint in zip(value, hints, strict=True)]
    if head is Literal:
        fits = value in arguments
    elif head in KINDS:
        fits = KINDS[head][1](value)
    else:  # a class of this package is built from a mapping; any other hint is not judged here
        fits = _signature(hint) is None or isinstance(value, dict)
    if not fits:
        raise MismatchError(head)
    return value


def _is_fixed(arguments: tuple[Any, ...]) -> bool:
    """Whether a list has an element for each argument of its hint, unlike list[X]."""
    return len(arguments) > 1 and arguments[-1] is not Ellipsis


def _text(hint: Any) -> str:
    """What a hint requires, in words."""
    head, arguments = _head(hint), get_args(hint)
    if len(members := _members(hint)) > 1:
        return " or ".join(dict.fromkeys(map(_text, members)))
    if head is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if head in LISTS and arguments:
        form = f"of {len(arguments)}" if _is_fixed(arguments) else "[...]"
        return f"a list {form}, each {_text(arguments[0])},"
    return KINDS[head][0] if head in KINDS else f"a mapping for {head.__name__}"


def _shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value) if isinstance(value, str) and not value.strip() else str(value)
