"""Values of a composed config, before anything starts: against the type hints of the classes and
functions that take them, and within the ranges of counts."""

import ast
import math
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError

from handmim.utils.config import CHOSEN, flatten
from handmim.utils.messages import meant
from handmim.utils.signatures import Parameter, Signature, meaning, signature_of

# Type hints of what the entry points themselves read; `*` and a function that takes a mapping.
READ = {
    "trainer": "*handmim.engine.trainer.Trainer",
    "machine": "*handmim.utils.run.Run.start",
    "debug": "bool", "seed": "int", "name": "str", "resume": "str", "overwrite": "bool",
    "paths.data_dir": "str", "paths.run_root": "str",
    "train": "bool", "init": "str | None",
    "init_from": "str | None", "num_labels": "int | None", "label_fraction": "float | None",
    "label_ids": "str | None", "eval_every": "int | None",
    "checkpoint": "str | list[str] | None", "predictions": "str | None", "predictor": "str",
    "batch_size": "int", "num_workers": "int | None", "num_images": "int",
    "inits": "str | list[str] | None", "fractions": "list[float] | None",
    "seeds": "int | list[int]", "variants": "str | list[str] | None",
    "budget.fractions": "list[float]", "jobs": "int", "dry_run": "bool",
    "out": "str | None", "run": "str | None",
    "device": "str", "rounds": "int", "num_threads": "int", "json": "str | None",
    "num_checked": "int", "report": "str | None", "freihand": "str | None",
    "ho3d_v2": "str | None", "ho3d_v3": "str | None", "crops": "str | None",
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
KINDS = {
    "int": "a whole number", "float": "a finite number", "bool": "true or false", "str": "text",
    "Path": "a path", "None": "null",
}  # fmt: skip
MAPPING = "a mapping {...}"
LISTS = ("list", "tuple", "Sequence", "Iterable", "Collection")
MAPPINGS = ("dict", "Mapping")

Member = tuple[ast.expr, str]  # a hint that is no union, and the module it is written in


class MismatchError(ValueError):
    """A value that a hint does not allow; the message says what is required."""


def check_settings(cfg: DictConfig) -> None:
    """Check types and counts of a composed config before anything is built.

    In place, whole numbers written as 1e3 become integers, and integers become text where that is
    required.

    Raises: ValueError naming each key, its value and what is required.
    """
    problems = dict.fromkeys([*_own(cfg), *_parts(cfg)])
    # Null there means the checkpoint's hand and the table's precision.
    nulls = ["hand.path=null:"] * ("checkpoint" in cfg)
    nulls += ["machine.precision=null:"] * ("budget" in cfg)
    wrong = [text for text in problems if not text.startswith(tuple(nulls))]
    if not wrong:
        wrong = [*_ranges(cfg), *_name(cfg)]
    if wrong:
        raise ValueError("; ".join(wrong))


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
    target = content.get("_target_", READ.get(parent, "").lstrip("*"))
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
    """A run's name is a folder below paths.run_root."""
    name = cfg.get("name")
    if not isinstance(name, str):
        return
    parts = PurePath(name).parts
    is_below = bool(parts) and not PurePath(name).is_absolute() and ".." not in parts
    is_below = is_below and not name.startswith("~")
    if not is_below or not name.isprintable() or any(len(p.encode()) > 255 for p in parts):
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
        if hint.startswith("*"):
            part: Any = node._get_node(name)
            signature = signature_of(hint[1:])
            if not isinstance(part, DictConfig) or part._is_none():
                yield f"{key}={_shown(part._value())}: {MAPPING} is required"
            elif signature is not None:
                yield from _arguments(part, signature)
        else:
            parameter = Parameter(ast.parse(hint, mode="eval").body, __name__)
            yield from _value(node, name, parameter)


def _parts(node: Any) -> Iterator[str]:
    """Problems of all nodes below one that are built."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
        target = None if OmegaConf.is_missing(node, "_target_") else node.get("_target_")
        signature = signature_of(target) if isinstance(target, str) else None
        if signature is not None:
            yield from _arguments(node, signature)
        for key in node:
            yield from _parts(node._get_node(key))
    elif isinstance(node, ListConfig) and not node._is_none() and not node._is_interpolation():
        for index in range(len(node)):
            yield from _parts(node._get_node(index))


def _arguments(node: DictConfig, signature: Signature) -> Iterator[str]:
    for name in (str(key) for key in node if key not in SPECIAL):
        parameter = signature.parameters.get(name)
        if parameter is not None:
            yield from _value(node, name, parameter)
        elif not signature.is_open:
            known = sorted(signature.parameters)
            close = meant(name, known) or f", there are {', '.join(known)}"
            yield f"{node._get_full_key(name)}: no such setting{close}"


def _value(node: DictConfig, name: str, parameter: Parameter) -> Iterator[str]:
    """Problems of one value; an integer is written in its place where one is meant."""
    source = _source(node, name)
    if source is None or parameter.hint is None:
        return
    members = _members(parameter.hint, parameter.module)
    key = source._get_full_key(None) or node._get_full_key(name)
    if isinstance(source, DictConfig) and not source._is_none():
        yield from _mapping(source, key, members)
        return
    is_list = isinstance(source, ListConfig) and not source._is_none()
    plain = OmegaConf.to_container(source, resolve=True) if is_list else source._value()
    try:
        value = _fitted(plain, members)
    except MismatchError as refusal:
        yield f"{key}={_shown(plain)}: {refusal}"
        return
    if repr(value) != repr(plain):
        owner = source._get_parent()
        assert isinstance(owner, (DictConfig, ListConfig))
        owner[source._key()] = value


def _source(node: DictConfig, name: str) -> Any:
    """Where a value stands, interpolations followed; None for what is yet to be given."""
    held: Any = node._get_node(name)
    try:
        source = held._dereference_node() if held._is_interpolation() else held
    except InterpolationResolutionError:  # whoever resolves the whole config says so
        return None
    return None if source is None or source._is_missing() else source


def _mapping(node: DictConfig, key: str, members: list[Member]) -> Iterator[str]:
    """Problems of a mapping that is given where one of the members is required."""
    if "_target_" in node:
        return
    kinds = [(_head(hint), hint, module) for hint, module in members]
    for head, hint, module in kinds:
        if head in MAPPINGS and isinstance(hint, ast.Subscript):
            element = _elements(hint)[-1]
            chosen = key.rpartition(".")[2] in CHOSEN  # others have settings, but no target
            for child in node:
                part = node._get_node(child)
                if not (chosen and isinstance(part, DictConfig) and "_target_" not in part):
                    yield from _value(node, str(child), Parameter(element, module))
        signature = None if head is None else _class_of(head, module)
        if signature is not None and signature.parameters:
            yield from _arguments(node, signature)
            return
    if all(head in (*KINDS, *LISTS, "Literal") for head, _, _ in kinds):
        yield f"{key}={{...}}: {_required(members)} is required"


def _fitted(value: Any, members: list[Member]) -> Any:
    """A value as one of the members of a union takes it.

    Returns: the value, the integer that a float without a fraction stands for, or the text of an
        integer where text alone is allowed.
    Raises: MismatchError.
    """
    for hint, module in members:
        try:
            return _fitted_to(value, hint, module)
        except MismatchError:
            continue
    heads = [_head(hint) for hint, _ in members]
    if "int" in heads and isinstance(value, float) and value.is_integer():
        return int(value)
    if "str" in heads and type(value) is int:
        return str(value)
    raise MismatchError(f"{_required(members)} is required")


def _fitted_to(value: Any, hint: ast.expr, module: str) -> Any:
    head = _head(hint)
    if head == "Literal":
        fits = value in [ast.literal_eval(e) for e in _elements(hint)]
    elif head in LISTS:
        fits = isinstance(value, list)
        if fits and isinstance(hint, ast.Subscript):
            return _fitted_list(value, _elements(hint), module)
    elif head in MAPPINGS:
        fits = isinstance(value, dict)
    elif head in KINDS:
        fits = _is_of(value, head)
    else:  # a class of this package is built from a mapping; any other hint is not judged here
        is_class = head is not None and _class_of(head, module) is not None
        fits = not is_class or isinstance(value, dict)
    if not fits:
        raise MismatchError(head)
    return value


def _is_of(value: Any, head: str) -> bool:
    if head == "None" or value is None:
        return head == "None" and value is None
    if isinstance(value, bool) or head == "bool":
        return isinstance(value, bool) and head == "bool"
    if head == "float":
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, int if head == "int" else str)


def _fitted_list(values: list[Any], elements: list[ast.expr], module: str) -> list[Any]:
    is_open = len(elements) == 1 or isinstance(elements[-1], ast.Constant)  # list[X], tuple[X, ...]
    if not is_open and len(values) != len(elements):
        raise MismatchError("length")
    hints = [elements[0]] * len(values) if is_open else elements
    return [
        _fitted(value, _members(hint, module)) for value, hint in zip(values, hints, strict=True)
    ]


def _members(hint: ast.expr, module: str) -> list[Member]:
    """Members of a union, abbreviations written out."""
    if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
        return _members(ast.parse(hint.value, mode="eval").body, module)
    if isinstance(hint, ast.BinOp):
        return [*_members(hint.left, module), *_members(hint.right, module)]
    if isinstance(hint, ast.Name) and hint.id not in (*KINDS, *LISTS, *MAPPINGS):
        stands_for = meaning(hint.id, module)
        if isinstance(stands_for, tuple):
            return _members(*stands_for)
    return [(hint, module)]


def _head(hint: ast.expr) -> str | None:
    """Name of a hint without its brackets; None for anything but a name."""
    if isinstance(hint, ast.Subscript):
        hint = hint.value
    if isinstance(hint, ast.Constant) and hint.value is None:
        return "None"
    return hint.id if isinstance(hint, ast.Name) else None


def _elements(hint: ast.expr) -> list[ast.expr]:
    """What stands in the brackets of a hint."""
    assert isinstance(hint, ast.Subscript)
    return hint.slice.elts if isinstance(hint.slice, ast.Tuple) else [hint.slice]


def _class_of(name: str, module: str) -> Signature | None:
    target = meaning(name, module)
    return signature_of(target) if isinstance(target, str) else None


def _required(members: list[Member]) -> str:
    return " or ".join(dict.fromkeys(_text_of(hint, module) for hint, module in members))


def _text_of(hint: ast.expr, module: str) -> str:
    head = _head(hint)
    if head == "Literal":
        return f"one of {', '.join(str(ast.literal_eval(e)) for e in _elements(hint))}"
    if head in LISTS and isinstance(hint, ast.Subscript):
        elements = _elements(hint)
        each = _required(_members(elements[0], module))
        is_open = len(elements) == 1 or isinstance(elements[-1], ast.Constant)
        return (
            f"a list [...], each {each}," if is_open else f"a list of {len(elements)}, each {each},"
        )
    if head in MAPPINGS:
        return MAPPING
    return KINDS.get(head or "", f"a mapping for {head}")


def _shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value) if isinstance(value, str) and not value.strip() else str(value)
