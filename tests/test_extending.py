"""The examples of docs/extending.md run as they stand."""

import importlib
import inspect
import re
import shutil
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
PACKAGES = ("data", "losses", "models.heads", "objectives")
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


def composed(folder: Path, name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(folder / "configs"), version_base="1.3"):
        return compose(name, list(overrides))


def one_step(cfg: DictConfig) -> None:
    """Built, and trained by a step, which refuses a loss that is not finite."""
    step, millions = dry_run_step(cfg, Fabric(accelerator="cpu", devices=1))
    assert millions > 0
    step(0)


def test_the_page_has_a_file_a_config_and_a_test_of_each_kind():
    names = [name for name, _ in FILES]
    for kind in ("objectives", "losses", "heads", "data"):
        assert any(name.startswith("handmim/") and f"/{kind}/" in name for name in names), kind
    for group in ("objective", "loss", "head", "data", "backbone"):
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


def test_example_objectives_train(examples):
    objectives = "objective=[patch_distill,class_variance,view_scale]"
    cfg = composed(examples, "pretrain", *SMALL, objectives)
    one_step(cfg)
    assert set(cfg.task.objectives) == {"patch_distill", "class_variance", "view_scale"}


def test_an_example_head_trains_with_an_example_loss(examples):
    overrides = ["experiment=cpu_finetune", "head=attention_pool", "loss=[joints3d,verts,bones]"]
    cfg = composed(examples, "finetune", *overrides, "trainer.batch_size=2")
    one_step(cfg)
    assert set(cfg.task.losses) == {"joints3d", "verts", "bones"}


def test_an_example_dataset_feeds_fine_tuning(examples, tmp_path):
    scope: dict = {"__name__": "example"}
    exec((examples / "tests/data/test_array_hands.py").read_text(encoding="utf-8"), scope)
    scope["write_arrays"](tmp_path)
    overrides = ["experiment=cpu_finetune", "data=arrays", f"data.root={tmp_path}"]
    cfg = composed(examples, "finetune", *overrides, "loss=[joints2d,prior]")
    dataset = build(cfg.data.train)
    assert collate_hands([dataset[i] for i in range(3)]).kp2d_valid.all()
    assert dataset.fingerprint() == build(cfg.data.train).fingerprint()


def test_an_example_backbone_is_built(examples):
    cfg = composed(examples, "pretrain", "data.root=unread", "backbone=vit_tiny_p16")
    backbone = build(cfg.task.backbone)
    assert (backbone.embed_dim, backbone.num_patches) == (192, 196)


def test_a_part_without_its_place_in_the_config_is_refused(examples):
    (examples / "configs/loss/lost.yaml").write_text("_target_: handmim.losses.hand.ShapeLoss\n")
    with pytest.raises(ValueError, match=r"configs/loss begins without `# @package task\.losses"):
        composed(examples, "finetune", "loss=[joints3d,lost]")


@pytest.mark.parametrize("command", list(commands_of(PAGE)), ids=lambda c: " ".join(c)[:90])
def test_commands_of_examples_compose(command, examples):
    check_command(command, examples / "configs")
