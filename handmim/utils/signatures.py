"""Parameters of classes and functions, read from their source: nothing is imported or run."""

import ast
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from handmim.utils.paths import PACKAGE

NAME = PACKAGE.name


class Parameter(NamedTuple):
    """One parameter: its type hint as a syntax tree, and the module that the hint is written in."""

    hint: ast.expr | None
    module: str


class Signature(NamedTuple):
    """Parameters by name.

    Attributes:
        parameters: those that a config can name.
        is_open: any further name is taken as well (**kwargs).
    """

    parameters: dict[str, Parameter]
    is_open: bool = False


@lru_cache(maxsize=256)
def signature_of(target: str) -> Signature | None:
    """The signature of a class, a function or a method of this package.

    Args:
        target: dotted name.
    Returns: None for what is not of this package or cannot be found in its source.
    """
    if not target.startswith(f"{NAME}."):
        return None
    module, _, name = target.rpartition(".")
    found = _definition(module, name)
    if found is None:  # a method
        module, _, owner = module.rpartition(".")
        found = _definition(module, owner)
        if found is None or not isinstance(found[0], ast.ClassDef):
            return None
        method = _method(found[0], found[1], name)
        return None if method is None else _of_function(*method, skip=1)
    node, module = found
    if isinstance(node, ast.FunctionDef):
        return _of_function(node, module)
    return _of_class(node, module) if isinstance(node, ast.ClassDef) else None


def _of_class(node: ast.ClassDef, module: str) -> Signature | None:
    bases = _bases(node, module)
    if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        inherited = [s.parameters for base in bases if (s := _of_class(*base)) is not None]
        fields = {name: p for parameters in inherited for name, p in parameters.items()}
        return Signature(fields | dict(_fields(node, module)))
    made = _method(node, module, "__init__")
    if made is not None:
        return _of_function(*made, skip=1)
    return _of_class(*bases[0]) if bases else None


def _fields(node: ast.ClassDef, module: str) -> Iterator[tuple[str, Parameter]]:
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            value = "" if line.value is None else ast.unparse(line.value)
            if "init=False" not in value and "ClassVar" not in ast.unparse(line.annotation):
                yield line.target.id, Parameter(line.annotation, module)


def _of_function(node: ast.FunctionDef, module: str, skip: int = 0) -> Signature:
    named = [*node.args.posonlyargs, *node.args.args][skip:] + node.args.kwonlyargs
    parameters = {arg.arg: Parameter(arg.annotation, module) for arg in named}
    return Signature(parameters, node.args.kwarg is not None)


def _method(node: ast.ClassDef, module: str, name: str) -> tuple[ast.FunctionDef, str] | None:
    """A method of a class or of what it inherits from, and the module that it is written in."""
    for line in node.body:
        if isinstance(line, ast.FunctionDef) and line.name == name:
            return line, module
    inherited = (_method(*base, name) for base in _bases(node, module))
    return next((found for found in inherited if found is not None), None)


def _bases(node: ast.ClassDef, module: str) -> list[tuple[ast.ClassDef, str]]:
    named = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
    found = (_definition(module, ast.unparse(base)) for base in named)
    return [(f[0], f[1]) for f in found if f is not None and isinstance(f[0], ast.ClassDef)]


def meaning(name: str, module: str) -> tuple[ast.expr, str] | str | None:
    """What a name of a hint stands for in a module.

    Returns: the hint that it abbreviates and that hint's module, the dotted name of a class of
        this package, or None.
    """
    found = _definition(module, name)
    if found is None:
        return None
    node, module = found
    if isinstance(node, ast.ClassDef):
        return f"{module}.{node.name}"
    return (node.value, module) if isinstance(node, ast.Assign) else None


def _definition(module: str, name: str) -> tuple[ast.stmt, str] | None:
    """The statement that defines a name of a module, imports followed; and its module."""
    names = _names(module)
    node = names.get(name)
    if isinstance(node, ast.ImportFrom):
        assert node.module is not None
        original = next(a.name for a in node.names if (a.asname or a.name) == name)
        return _definition(node.module, original)
    return None if node is None else (node, module)


@lru_cache(maxsize=256)
def _names(module: str) -> dict[str, ast.stmt]:
    """Statements of a module of this package by the name that they define."""
    if module.split(".")[0] != NAME:
        return {}
    path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    if not path.is_file():
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
