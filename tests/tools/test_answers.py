"""What the entry points say before they start: without torch, unless a setting is looked up."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
# The script as its own process would run it, then whether torch was loaded.
SCRIPT = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("torch loaded:", "torch" in sys.modules)
"""

LOOKED_UP = ("trainer.", "suite=", "report=", "table=")  # in the signature of what takes it


def answer(folder: Path, script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", SCRIPT, str(TOOLS / script), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("pretrain.py", ["--help"], "method: dino, handmim"),
        ("pretrain.py", ["method=handmin"], "Could not find 'method/handmin'"),
        (
            "finetune.py",
            ["trainer.max_step=3"],
            "no such setting: trainer.max_step, did you mean trainer.max_steps?",
        ),
        ("eval.py", ["data=freihand3"], "Could not find 'data/freihand3'"),
        ("benchmark.py", ["--methods=all", "--help"], "relative to the first one"),
        ("benchmark.py", ["a=1", "--steps=0", "b=2"], "--steps must be >= 1, got 0"),
        ("benchmark.py", ["--help"], "suite: all"),
        ("benchmark.py", ["--estimate", "pertrain"], "invalid choice: 'pertrain'"),
        ("benchmark.py", ["suite=hnad"], "suite must be one of"),
        ("doctor.py", ["freihnad=DIR"], "no such setting: freihnad, did you mean freihand?"),
        (
            "doctor.py",
            ["report=/dev/null/r.json"],
            "r.json: /dev/null is no folder",
        ),
        (
            "pack_crops.py",
            [".", "/dev/null/x"],
            "argument file: /dev/null/x: /dev",
        ),
        ("faults.py", ["damage", "--json", "/dev/null"], "no regular file, a file is required"),
        (
            "experiments.py",
            ["table=rivals", "dry_run=true", 'pretrain=["train=false","data=folder"]'],
            "variant random does not compose for pretrain: data.root must be given",
        ),
        (
            "experiments.py",
            ["table=objectives", "variants=[nope]"],
            "no variants ['nope'] in this table",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith(".py") else "",
)
def test_help_and_misspelt_groups_answer_without_torch(tmp_path, script, arguments, expected):
    text = answer(tmp_path, script, *arguments)
    assert expected in text
    assert f"torch loaded: {arguments[0].startswith(LOOKED_UP)}" in text


@pytest.mark.slow
def test_a_dry_run_lists_what_would_run_and_what_a_part_refuses(tmp_path):
    arguments = ["table=objectives", "dry_run=true", "variants=[random]"]
    bad = 'pretrain=["data.scene.background=phtos"]'
    assert "3 of 3 runs to make" in answer(tmp_path, "experiments.py", *arguments)
    text = answer(tmp_path, "experiments.py", *arguments, bad)
    assert "variant random, pretrain: background must be one of" in text
