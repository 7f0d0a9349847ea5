"""The examples of docs/extending.md run as they stand."""

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from lightning_fabric import Fabric
from omegaconf import DictConfig

from handmim.data.loader import collate_hands
from handmim.pipelines.dry_run import dry_run_step
from handmim.utils.config import build
from handmim.utils.entry import compose
from tests.test_docs import check_command, commands_of

REPO = Path(__file__).parent.parent
PAGE = REPO / "docs" / "extending.md"
TEXT = PAGE.read_text(encoding="utf-8")
FILES = re.findall(r"^File `([^`]+)`:\n\n```\w+\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
CHANGES = re.findall(r"^Change `([^`]+)`.*\n((?:\n```diff\n(?:.*\n)*?```\n)+)", TEXT, re.MULTILINE)
HUNK = re.compile(r"^```diff\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PACKAGES = ("data", "losses", "models.heads")
SMALL = ["experiment=cpu_base", "data.root=unread", "trainer.batch_size=2"]


def write_examples(folder: Path) -> None:
    for name, content in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """A folder with all configs and examples, whose modules are imported as the package's own."""
    shutil.copytree(REPO / "configs", tmp_path / "configs")
    write_examples(tmp_path)
    for package in PACKAGES:
        module = importlib.import_module(f"handmim.{package}")
        extra = tmp_path / "handmim" / package.replace(".", "/")
        monkeypatch.setattr(module, "__path__", [*module.__path__, str(extra)])
    monkeypatch.chdir(REPO)
    yield tmp_path
    for name, _ in FILES:
        sys.modules.pop(name.removesuffix(".py").replace("/", "."), None)


def composed(folder: Path, name: str, *words: str) -> DictConfig:
    with initialize_config_dir(str(folder / "configs"), version_base="1.3"):
        return compose(name, list(words))


def one_step(cfg: DictConfig) -> None:
    step, _ = dry_run_step(cfg, Fabric(accelerator="cpu", devices=1))
    step(0)


def test_the_page_has_a_file_a_config_and_a_test_of_each_kind():
    names = [name for name, _ in FILES]
    for kind in ("losses", "heads", "data"):
        assert any(name.startswith("handmim/") and f"/{kind}/" in name for name in names), kind
    for group in ("loss", "head", "data", "backbone"):
        assert any(name.startswith(f"configs/{group}/") for name in names), group
    assert sum(name.startswith("tests/") for name in names) == 5


@pytest.mark.parametrize("name", [name for name, _ in FILES if name.startswith("tests/")])
def test_tests_of_examples_pass(name, examples, tmp_path):
    scope: dict = {"__name__": "example"}
    exec(compile((examples / name).read_text(encoding="utf-8"), name, "exec"), scope)
    found = [value for key, value in scope.items() if key.startswith("test_")]
    assert found
    for number, run in enumerate(found):
        folder = tmp_path / str(number)
        folder.mkdir()
        run(**({"tmp_path": folder} if inspect.signature(run).parameters else {}))


def test_an_example_loss_trains(examples):
    loss = "loss=[patch_distill,class_variance]"
    one_step(composed(examples, "pretrain", *SMALL, loss))


def test_an_example_head_trains_with_an_example_loss(examples):
    words = ["experiment=cpu_finetune", "head=attention_pool", "loss=[joints3d,verts,bones]"]
    one_step(composed(examples, "finetune", *words, "trainer.batch_size=2"))


def test_an_example_dataset_feeds_fine_tuning(examples, tmp_path):
    scope: dict = {"__name__": "example"}
    exec((examples / "tests/data/test_array_hands.py").read_text(encoding="utf-8"), scope)
    scope["write_arrays"](tmp_path)
    words = ["experiment=cpu_finetune", "data=arrays", f"data.root={tmp_path}"]
    cfg = composed(examples, "finetune", *words, "loss=[joints2d,prior]")
    dataset = build(cfg.data.train)
    assert collate_hands([dataset[i] for i in range(3)]).kp2d_valid.all()
    assert dataset.fingerprint() == build(cfg.data.train).fingerprint()


def test_an_example_backbone_is_built(examples):
    cfg = composed(examples, "pretrain", "data.root=unread", "backbone=vit_tiny_p16")
    backbone = build(cfg.task.backbone)
    assert (backbone.embed_dim, backbone.num_patches) == (192, 196)


@pytest.mark.parametrize("command", list(commands_of(PAGE)), ids=lambda c: " ".join(c)[:90])
def test_commands_of_examples_compose(command, examples):
    check_command(command, examples / "configs")


def changed(name: str, hunks: str) -> str:
    """A file of the package after the page's changes; each has to fit in exactly one position."""
    text = (REPO / name).read_text(encoding="utf-8")
    for hunk in HUNK.findall(hunks):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] != "+")
        assert text.count(old) == 1, f"{name}: {hunk}"
        text = text.replace(old, "".join(line[1:] for line in lines if line[0] != "-"))
    return text


def test_changes_of_the_page_fit_the_package():
    assert len(CHANGES) == 2
    for name, hunks in CHANGES:
        compile(changed(name, hunks), name, "exec")


@pytest.mark.slow
def test_an_example_loss_with_its_own_head_trains(tmp_path):
    for folder in ("handmim", "configs", "tools"):
        shutil.copytree(REPO / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.pyc"))
    write_examples(tmp_path)
    for name, hunks in CHANGES:
        (tmp_path / name).write_text(changed(name, hunks), encoding="utf-8")
    tool = [sys.executable, "tools/benchmark_methods.py", "--steps", "1", "--methods", "handmim"]
    words = [*SMALL, "loss=[patch_distill,view_scale]"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*tool, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "handmim" in done.stdout
