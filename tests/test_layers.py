import ast
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
RANK = {
    "types": 0, "geometry": 0.5, "utils": 0, "hand": 1, "engine": 1, "render": 2, "models": 2,
    "losses": 2, "metrics": 2, "objectives": 2.2, "data": 2.5, "tasks": 3, "evaluation": 4.5,
    "check": 5.5, "pipelines": 5, "experiments": 6, "images": 0.5,
    "__init__": 9, "cli": 8, "__main__": 9,
    "diagnostics": 2.7,
}  # fmt: skip
# data may use render: same floor, one direction
TOOL_PACKAGES = {path.parent.name for path in (REPO / "tools").glob("*/__init__.py")}
FILES = sorted((REPO / "handmim").rglob("*.py"))


def imported_modules(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module != "handmim", f"{path}: bare `from handmim import`"
            found.append(node.module or "")
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPO)))
def test_imports_point_downwards(path: Path):
    here = path.relative_to(REPO / "handmim").with_suffix("").parts[0]
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] == "handmim" and len(parts) > 1:
            there = parts[1]
            assert there == here or RANK[there] < RANK[here], f"{path} may not import {module}"
        assert parts[0] not in {"tools", *TOOL_PACKAGES}, f"{path} imports a tool"


def test_engine_and_geometry_know_no_hands():
    for folder in ("engine", "geometry", "utils"):
        for path in (REPO / "handmim" / folder).glob("*.py"):
            assert not any(m.startswith("handmim.hand") for m in imported_modules(path)), path


@pytest.mark.parametrize("path", sorted((REPO / "tools").glob("*.py")), ids=lambda p: p.name)
def test_entry_points_stay_tables_of_contents(path: Path):
    assert len(path.read_text().splitlines()) <= 90


def test_losses_do_not_see_models_and_data_does_not_either():
    for folder in ("losses", "data"):
        for path in (REPO / "handmim" / folder).glob("*.py"):
            assert not any(m.startswith("handmim.models") for m in imported_modules(path)), path


def test_no_two_tests_share_a_name():
    """pytest imports them by it."""
    names = [path.name for path in (REPO / "tests").rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}
