"""What the stages of a run are defined by and begin with; nothing is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch

from handmim.engine.checkpoint import save_checkpoint
from handmim.engine.trainer import FitResult
from handmim.experiments import stages
from handmim.experiments.runs import Run, StageStore, content_sha
from handmim.experiments.stages import Stages, Start, restored
from handmim.experiments.table import Definition, Variant
from handmim.pipelines.train import Trained
from tests.experiments.conftest import composed

OVERRIDES = {"experiment": "cpu_base", "data": "synthetic", "probe": "synthetic"}


class Definitions(StageStore):
    """Notes what it is given and runs nothing."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.definitions: dict[str, Any] = {}
        self.inputs: dict[str, list[Path]] = {}
        self.works: dict[str, Any] = {}

    def get(self, kind, definition, work, inputs=()):
        self.definitions[kind], self.inputs[kind] = definition, list(inputs)
        self.works[kind] = work
        return {"folder": self.folder(kind, definition).name}


def defined(compose, folder, finetune=None, seed=0, **init) -> Definitions:
    store = Definitions(folder / "stages")
    finetune = {"experiment": "cpu_direct_keypoints", **(finetune or {})}
    variant = Variant("v", "v", OVERRIDES, finetune, **init)
    definition = Definition({"fractions": [0.5]}, "sha", {"finetune_50": 3})
    Stages(compose, store).run(Run(variant, seed, folder, store, definition))
    return store


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "backbone.safetensors"
    path.write_bytes(b"one")
    return path


def test_later_stages_depend_on_the_backbone_they_start_from(tmp_path, hydra_configs, weights):
    made = defined(hydra_configs, tmp_path)
    name = made.folder("pretrain", made.definitions["pretrain"]).name
    assert made.inputs["pretrain"] == []
    for kind in ("probe", "finetune"):
        assert made.definitions[kind]["start"] == name
        assert made.inputs[kind] == [made.root / name / "backbone.safetensors"]
    given = defined(hydra_configs, tmp_path, is_pretrained=False, init_from=str(weights))
    for kind in ("probe", "finetune"):
        assert given.definitions[kind]["start"] == content_sha(weights)
        assert given.inputs[kind] == [weights]
    random = defined(hydra_configs, tmp_path, is_pretrained=False)
    assert random.inputs == {"probe": [], "finetune": []}


def test_finetuning_knows_the_neck_beside_its_backbone(tmp_path, hydra_configs, weights):
    given = {"is_pretrained": False, "init_from": str(weights)}
    without = defined(hydra_configs, tmp_path, **given)
    neck = tmp_path / "neck.safetensors"
    neck.write_bytes(b"two")
    made = defined(hydra_configs, tmp_path, **given)
    assert made.inputs == {"probe": [weights], "finetune": [weights, neck]}
    finetune = without.definitions["finetune"]
    assert made.definitions["finetune"] == finetune | {"neck": content_sha(neck)}
    assert made.definitions["probe"] == without.definitions["probe"]
    never = defined(hydra_configs, tmp_path, {"init_neck": "never"}, **given)
    assert never.definitions["finetune"] == finetune
    assert never.inputs["finetune"] == [weights]
    own = defined(hydra_configs, tmp_path)
    folder = own.folder("pretrain", own.definitions["pretrain"])
    folder.mkdir(parents=True)
    (folder / "neck.safetensors").write_bytes(b"two")
    own = defined(hydra_configs, tmp_path)
    assert own.definitions["finetune"]["neck"] == folder.name
    assert own.inputs["finetune"][1] == folder / "neck.safetensors"


def test_how_checkpoints_are_kept_decides_no_metric(tmp_path, hydra_configs):
    trainer = defined(hydra_configs, tmp_path).definitions["finetune"]["trainer"]
    assert "max_steps" in trainer
    assert not {"keep_best", "stop_patience", "save_every"} & set(trainer)


@pytest.mark.parametrize("value", [None, "auto", "val/mpjpe_mm"])
def test_a_table_keeps_no_best_unless_configured(tmp_path, hydra_configs, value, monkeypatch):
    given = {} if value is None else {"trainer.keep_best": value}
    made, plain = (defined(hydra_configs, tmp_path, g) for g in (given, {}))
    assert made.definitions == plain.definitions
    ran = []

    def finetuned(cfg):
        ran.append(cfg)
        result = FitResult(3, False, {})
        return Trained(tmp_path, tmp_path, result, {"mm": 1.0}, 5, {"mm": 0.5})

    monkeypatch.setattr(stages, "finetune", finetuned)
    assert made.works["finetune"](tmp_path / "it") == {"mm": 1.0, "num_labels": 5}
    assert ran[0].trainer.keep_best == value


def test_probes_of_given_weights_know_the_seed_and_leave_untrained_points_out(
    tmp_path, hydra_configs, weights
):
    given = {"is_pretrained": False, "init_from": str(weights)}
    one, two = (defined(hydra_configs, tmp_path, seed=s, **given).definitions for s in (0, 1))
    assert one["probe"] != two["probe"]
    assert one["probe"]["probe"]["hook"]["features"] == ["cls", "cls_patch"]
    for start in ({"is_pretrained": True}, {"is_pretrained": False}):
        probe = defined(hydra_configs, tmp_path, **start).definitions["probe"]
        assert set(probe) == {"probe", "task", "precision", "start"}
        assert "points" in probe["probe"]["hook"]["features"]


def test_weights_that_are_not_there_are_named(tmp_path, hydra_configs):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*nope.*init_from of v"):
        defined(hydra_configs, tmp_path, is_pretrained=False, init_from="nope")


def test_a_checkpoint_beside_weights_is_only_read_in_the_store(tmp_path, hydra_configs):
    cfg = composed(hydra_configs, "pretrain", OVERRIDES)
    first = restored(cfg, 0, Start("random 0"))
    path = tmp_path / "backbone.safetensors"
    first.export_backbone.export(path, {})
    save_checkpoint(tmp_path / "last.pt", {"task": {"of": {"another": "kind"}}})
    task = restored(cfg, 1, Start("sha", path, is_own=False))
    mine, theirs = (t.export_backbone.net.state_dict() for t in (task, first))
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    save_checkpoint(tmp_path / "last.pt", {"task": first.state_dict()})
    mine = restored(cfg, 1, Start("pretrain-x", path)).state_dict()
    assert all(torch.equal(mine[k], v) for k, v in first.state_dict().items())
