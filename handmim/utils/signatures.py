"""Parameters of this package's classes and functions, read from source: a misspelt setting is
answered without waiting for torch."""

import ast
import builtins
import collections.abc
import typing
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, get_type_hints

from handmim.utils.paths import PACKAGE

BY_NAME = {**vars(builtins), **vars(typing), **vars(collections.abc), "Path": Path}
Definition = tuple[ast.stmt, str]  # and the module that it is written in


class Signature(NamedTuple):
    """Type hints by the parameters that a config can name; `is_open`: any other one is taken."""

    parameters: dict[str, Any]
    is_open: bool = False


class Named(type):
    """Stands in hints for a class that is not imported."""

    target: str = ""  # dotted name of a class of this package

    def __getitem__(cls, _: Any) -> "Named":
        return cls

    def __getattr__(cls, name: str) -> "Named":
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


@cache
def signature_of(target: str) -> Signature | None:
    """The signature of a class, function or method by its dotted name; None where it is not found
    in this package."""
    module, _, name = target.rpartition(".")
    found = _definition(name, module)
    if found is None:
        module, _, owner = module.rpartition(".")
        found = _definition(owner, module)
        found = None if found is None else _method(*found, name)
    return None if found is None else _signature(*found)


def _signature(node: ast.stmt, module: str) -> Signature | None:
    if isinstance(node, ast.FunctionDef):
        named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        hints = {a.arg: _hint(a.annotation, module) for a in named if a.arg not in ("self", "cls")}
        return Signature(hints, node.args.kwarg is not None)
    if not isinstance(node, ast.ClassDef):
        return None
    for line in node.body:
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":
            return _signature(line, module)
    inherited = [found for base in _bases(node, module) if (found := _signature(*base))]
    if not any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        return inherited[0] if inherited else None
    fields: dict[str, Any] = {}
    for found in inherited:
        fields |= found.parameters
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            text = ast.unparse(line)
            if "init=False" not in text and "ClassVar" not in text:
                fields[line.target.id] = _hint(line.annotation, module)
    return Signature(fields)


def _method(node: ast.stmt, module: str, name: str) -> Definition | None:
    """A method of a class or of what it inherits from."""
    if not isinstance(node, ast.ClassDef):
        return None
    for line in node.body:
        if isinstance(line, ast.FunctionDef) and line.name == name:
            return line, module
    inherited = (_method(*base, name) for base in _bases(node, module))
    return next((found for found in inherited if found is not None), None)


def _bases(node: ast.ClassDef, module: str) -> list[Definition]:
    named = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
    found = (_definition(ast.unparse(base), module) for base in named)
    return [base for base in found if base is not None]


def _hint(node: ast.expr | None, module: str) -> Any:
    """A hint as an object; Any without one."""
    if node is None:
        return Any
    holder = SimpleNamespace(__annotations__={"hint": ast.unparse(node)})
    return get_type_hints(holder, {}, _Names(module))["hint"]


class _Names(dict[str, Any]):
    """What names mean in the hints of a module."""

    def __init__(self, module: str) -> None:
        super().__init__(BY_NAME)
        self.module = module

    def __missing__(self, name: str) -> Any:
        node, module = _definition(name, self.module) or (None, "")
        if isinstance(node, ast.Assign):
            return _hint(node.value, module)
        target = f"{module}.{node.name}" if isinstance(node, ast.ClassDef) else ""
        return Named(name, (), {"target": target})


def _definition(name: str, module: str) -> Definition | None:
    """The statement that defines a name of a module, imports followed."""
    node = _statements(module).get(name)
    if isinstance(node, ast.ImportFrom):
        original = next(a.name for a in node.names if (a.asname or a.name) == name)
        return _definition(original, node.module or "")
    return None if node is None else (node, module)


@cache
def _statements(module: str) -> dict[str, ast.stmt]:
    """Statements of a module of this package by the name that they define."""
    path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    if module.split(".")[0] != PACKAGE.name or not path.is_file():
        return {}
    names: dict[str, ast.stmt] = {}
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = node
    return names
