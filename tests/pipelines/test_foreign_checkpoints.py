"""Checkpoints from somebody else: what their config may not say, and where nothing is written."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from handmim.engine.checkpoint import load_checkpoint, save_checkpoint
from handmim.evaluation.predictor import HandPredictor
from handmim.pipelines.evaluate import evaluate
from handmim.utils.config import resolved
from tests.pipelines.test_evaluate import SMALL, composed

DATA = ["data=freihand", "data.image_px=64"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, freihand_tree, hand_path) -> Path:
    """As fine-tuning would leave it."""
    root = tmp_path_factory.mktemp("foreign")
    places = [f"data.root={freihand_tree}", f"hand.path={hand_path}"]
    places.append(f"data.cache_dir={root / 'cache'}")
    cfg = composed("finetune", *SMALL, *DATA, *places)
    task = instantiate(cfg.task)
    state = {"step": 1, "task": task.state_dict(), "meta": task.hand_metadata()}
    save_checkpoint(root / "last.pt", {**state, "config": resolved(cfg)})
    return root / "last.pt"


def changed(tuned: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    state = copy.deepcopy(load_checkpoint(tuned))
    change(state)
    state.pop("format", None)
    save_checkpoint(folder / "other.pt", state)
    return folder / "other.pt"


def places_of(folder: Path) -> list[str]:
    return [f"paths.run_root={folder / 'runs'}", f"paths.data_dir={folder / 'mine'}"]


def without(*keys: str) -> Callable[[dict[str, Any]], Any]:
    def change(state: dict[str, Any]) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


def put(value: Any, *keys: str) -> Callable[[dict[str, Any]], Any]:
    def change(state: dict[str, Any]) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


def refer_to_itself(state: dict[str, Any]) -> None:
    state["config"]["again"] = state["config"]


def double(state: dict[str, Any]) -> None:
    node: dict[str, Any] = {}
    for _ in range(30):
        node = {"a": node, "b": node}
    state["config"]["x"] = node


SIZE = ("config", "task", "backbone", "size")
REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no config": (without("config"), "config is missing"),
    "no task": (without("config", "task"), r"config\.task is missing"),
    "no augment": (without("config", "augment"), r"config\.augment is missing"),
    "no hand": (without("config", "hand"), r"config\.hand is missing"),
    "no backbone": (without("config", "task", "backbone"), r"task\.backbone is missing"),
    "no target": (without("config", "task", "_target_"), r"task\._target_ is missing"),
    "no losses": (without("config", "task", "losses"), "task of its config cannot be built"),
    "no weights": (without("task"), "task is missing"),
    "no meta": (without("meta"), "meta is missing"),
    "no scale": (without("config", "augment", "scale"), r"augment\.scale is missing"),
    "one tensor less": (
        lambda s: s["task"].pop("backbone.net.norm.bias"),
        r"backbone\.net\.norm\.bias is missing",
    ),
    "a step in text": (put("seven", "step"), "'seven' at step"),
    "a negative step": (put(-1, "step"), "step -1"),
    "a config in text": (put("x", "config"), "'x' at config"),
    "a head in text": (put("x", "config", "task", "head"), "head"),
    "meta as list": (put([], "meta"), "at meta"),
    "a number as tensor": (put(1.0, "task", "x"), r"no tensor at task\.x"),
    "itself": (refer_to_itself, "refers to itself"),
    "doubled": (double, "refers to itself"),
    "an interpolation": (put("${oc.env:HOME}", "config", "name"), r"oc\.env.*refused"),
    "a hole": (put("???", "config", "hand", "path"), r"'\?\?\?'"),
    "another key": (put({1: 2}, "config", "x"), "has the key 1"),
    "a tensor in config": (put(torch.zeros(1), "config", "x"), "holds a Tensor"),
    "a huge width": (put(10**9, *SIZE, "embed_dim"), "embed_dim=1e"),
    "a huge depth": (put(10**7, *SIZE, "depth"), "depth=1e"),
    "a wide MLP": (put(4000.0, *SIZE, "mlp_ratio"), "does not fit its tensors"),
    "a deep ViT": (put(64, *SIZE, "depth"), "does not fit its tensors"),
    "a huge image": (put(10**6, "config", "augment", "img_px"), "img_px=1e"),
    "a huge head": (put(10**8, "config", "task", "head", "hidden_dim"), "hidden_dim=1e"),
    "another width": (put(12, *SIZE, "embed_dim"), "does not fit its tensors"),
    "heads in text": (put("many", *SIZE, "num_heads"), r"task\.backbone of its config cannot"),
    "an unknown setting": (put(1, "config", "task", "head", "spin"), r"task\.head of its config"),
    "a dataset as task": (
        put("handmim.data.synthetic.SyntheticHands", "config", "task", "_target_"),
        "its config builds",
    ),
    "a model as augment": (put("handmim.models.vit.ViT", "config", "augment", "_target_"), "build"),
    "arguments without names": (put(["x"], "config", "task", "_args_"), "without names"),
    "a folder for the head": (put("x", "config", "task", "head", "cache_dir"), "folder to write"),
    "a device as hand": (put("/dev/zero", "config", "hand", "path"), "no regular file"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_config_that_builds_no_model_is_refused_by_entry(kind: str, tuned: Path, tmp_path: Path):
    change, message = REFUSED[kind]
    path = changed(tuned, tmp_path, change)
    with pytest.raises(ValueError, match=message) as raised:
        HandPredictor.from_checkpoint(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=message):
        evaluate(composed("eval", f"checkpoint={path}", *places_of(tmp_path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("config", "data"), r"config\.data is missing"),
        (without("config", "data", "root"), r"config\.data\.root is missing"),
        (put(None, "config", "data", "test"), r"data of its config cannot|val"),
        (put(10**6, "config", "data", "image_px"), "image_px=1e"),
        (put("none", "config", "data", "benchmark"), "benchmark must be one of .* 'none'"),
        (without("config", "data", "test", "root"), "data of its config cannot be built"),
        (put("os.system", "config", "data", "test", "_target_"), "its config builds"),
    ],
)
def test_data_that_cannot_be_read_are_refused_by_entry(
    change: Any, message: str, tuned: Path, tmp_path: Path
):
    path = changed(tuned, tmp_path, change)
    with pytest.raises(ValueError, match=message):
        evaluate(composed("eval", f"checkpoint={path}", *places_of(tmp_path)))


def test_nothing_is_written_where_a_checkpoint_says(tuned: Path, tmp_path: Path):
    evil = tmp_path / "elsewhere"

    def change(state: dict[str, Any]) -> None:
        data = state["config"]["data"]
        for node in (data, data["train"], data["val"], data["test"]):
            node["cache_dir"] = str(evil)
        state["config"]["paths"] = {"data_dir": str(evil), "run_root": str(evil)}

    path = changed(tuned, tmp_path, change)
    report = evaluate(composed("eval", f"checkpoint={path}", *places_of(tmp_path), "num_images=0"))
    assert report["num_samples"] == 8
    assert not evil.exists()
    assert os.listdir(tmp_path / "mine" / "cache")
    text = (tmp_path / "runs" / "eval" / "log.txt").read_text()
    assert f"caches below {tmp_path / 'mine' / 'cache'}" in text


def test_a_cache_in_a_list_is_not_written_either(tuned: Path, tmp_path: Path):
    evil = tmp_path / "elsewhere"

    def change(state: dict[str, Any]) -> None:
        data = state["config"]["data"]
        part = {**data["test"], "cache_dir": str(evil)}
        data["test"] = {"_target_": "handmim.data.datasets.MixedHands", "sets": [part]}

    path = changed(tuned, tmp_path, change)
    with pytest.raises(ValueError, match="data of its config cannot be built"):
        evaluate(composed("eval", f"checkpoint={path}", *places_of(tmp_path), "num_images=0"))
    assert not evil.exists()
