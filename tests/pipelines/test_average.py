"""Averages of weights: by hand, as a model, and what has none."""

import copy
import sys

import numpy as np
import pytest
import torch

import handmim
from handmim.cli import main
from handmim.engine.checkpoint import load_checkpoint, save_checkpoint
from handmim.models.vit import ViT
from handmim.models.weights.files import read_weights
from handmim.models.weights.load import load_initial
from handmim.pipelines.average import mean_of
from tests.engine.toy import fit
from tests.golden.test_older_checkpoints import OLDER

STARTS = ("head.mean_rot6d", "head.mean_cam", "head.cls_mean", "head.cls_std")


@pytest.fixture(scope="module")
def states():
    """Two fine-tunings of one network from the same labels."""
    first = load_checkpoint(OLDER / "pymaf.pt")
    first.pop("format")
    first["config"]["hand"]["path"] = "standin"
    second = copy.deepcopy(first)
    torch.manual_seed(0)
    for name, value in second["task"].items():
        if value.is_floating_point() and name not in STARTS:
            value += 0.01 * torch.randn_like(value)
    second["step"], second["config"]["seed"] = 9, 5
    second["config"]["task"]["backbone_lr_scale"] = 0.5  # of training alone
    return first, second


@pytest.fixture
def saved(tmp_path, states):
    """Writes the two, the second perhaps changed."""

    def of(change=lambda state: None):
        second = copy.deepcopy(states[1])
        change(second)
        for name, state in (("a", states[0]), ("b", second)):
            save_checkpoint(tmp_path / f"{name}.pt", state)
        return tmp_path / "a.pt", tmp_path / "b.pt"

    return of


@pytest.fixture
def average(monkeypatch, capsys, tmp_path):
    """Overrides -> what is printed, or the message of an error."""

    def of(*overrides: str, fails: bool = False) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["average.py", *overrides])
        code = 0
        try:
            main("average")
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        assert code == (2 if fails else 0), printed
        return printed.err if fails else printed.out

    return of


def test_means_by_hand():
    a = {"w": torch.tensor([1.0, 4.0]), "same": torch.tensor([0.1]), "count": torch.tensor(3)}
    b = {"w": torch.tensor([2.0, 0.0]), "same": torch.tensor([0.1]), "count": torch.tensor(7)}
    mean = mean_of([a, b], [0.25, 0.75])
    assert mean["w"].tolist() == [1.75, 1.0]
    assert torch.equal(mean["same"], a["same"])
    assert int(mean["count"]) == 7
    halves = mean_of(
        [{"w": torch.tensor([1.0]).half()}, {"w": torch.tensor([2.0]).half()}], [0.5] * 2
    )
    assert halves["w"].dtype == torch.float16


def test_the_average_is_a_model_with_the_facts_of_its_sources(saved, states, average, tmp_path):
    saved()
    text = average("checkpoints=[a.pt,b.pt]", "shares=[0.25,0.75]", "out=c.pt")
    assert "0.75 of b.pt" in text
    made = load_checkpoint(tmp_path / "c.pt")
    first, second = (state["task"] for state in states)
    for name, value in made["task"].items():
        want = 0.25 * first[name].double() + 0.75 * second[name].double()
        torch.testing.assert_close(value, want.to(value.dtype), atol=1e-7, rtol=1e-6)
    assert all(torch.equal(made["task"][name], first[name]) for name in STARTS)
    facts = made["meta"]["averaged"]
    assert [(f["path"], f["share"], f["step"], f["seed"]) for f in facts] == [
        ("a.pt", 0.25, states[0]["step"], states[0]["config"]["seed"]),
        ("b.pt", 0.75, 9, 5),
    ]
    assert (made["step"], made["config"]["seed"]) == (9, 5)
    crops = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    joints = handmim.load(tmp_path / "c.pt")(crops).joints_root_m
    ends = [handmim.load(tmp_path / f"{n}.pt")(crops).joints_root_m for n in "ab"]
    assert np.isfinite(joints).all()
    assert not any(np.array_equal(joints, end) for end in ends)
    backbone = handmim.load(tmp_path / "c.pt").module.task.backbone
    report = load_initial(copy.deepcopy(backbone), str(tmp_path / "c.pt"))
    assert len(report.matched) > 20


def test_a_pattern_and_equal_shares(saved, states, average, tmp_path):
    saved()
    average("checkpoints=?.pt", "out=soup/c.pt")
    name = "backbone.net.norm.bias"
    want = (states[0]["task"][name] + states[1]["task"][name]) / 2
    torch.testing.assert_close(load_checkpoint(tmp_path / "soup" / "c.pt")["task"][name], want)
    text = average("checkpoints=?.pt", "out=a.pt", fails=True)
    assert "a.pt exists: take another name (out=), or overwrite=true" in text
    average("checkpoints=[a.pt,b.pt]", "out=soup/c.pt", "overwrite=true")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["config"]["task"]["head"].update(num_steps=2), "task.head.num_steps: "),
        (lambda s: s["config"]["augment"].update(scale=[0.5, 1.0]), "augment.scale"),
        (lambda s: s["meta"].update(hand_sha256="0" * 64), "hand: "),
        (lambda s: s["task"]["head.mean_cam"].add_(1e-6), "other means of the labels (head.mean_"),
        (lambda s: s["task"].pop("backbone.net.norm.bias"), "tensor backbone.net.norm.bias: "),
    ],
)
def test_other_networks_hands_and_labels_have_no_average(saved, average, change, message):
    saved(change)
    text = average("checkpoints=[a.pt,b.pt]", "out=c.pt", fails=True)
    assert message in text
    assert "a.pt" in text
    assert "b.pt" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoints=a.pt"], "an average needs two files, got ['a.pt']"),
        (["checkpoints=?.pt", "shares=[0.5]"], "2 numbers that sum to 1"),
        (["checkpoints=?.pt", "shares=[0.5,0.6]"], "2 numbers that sum to 1"),
        (["checkpoints=?.pt", "shares=[1.5,-0.5]"], "shares must be in [0, 1], got 1.5"),
        (["checkpoints=none*.pt"], "no file matches 'none*.pt' (checkpoints=)"),
        (["checkpoints=?.pt", "hand_path=no.npz"], "no.npz"),
        (["checkpoints=[a.pt,b.safetensors]"], "checkpoints and exported backbones"),
    ],
)
def test_requests_without_a_meaning_are_refused(saved, average, tmp_path, overrides, message):
    saved()
    exported(tmp_path / "b.safetensors")
    assert message in average(*overrides, "out=c.pt", fails=True)
    assert not (tmp_path / "c.pt").exists()


def exported(path, seed: int = 0, **size) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    size = {"embed_dim": 24, "depth": 2, "num_heads": 2, **size}
    ViT("vit_tiny_patch16_224", img_px=32, patch_px=8, size=size).export(path, {"seed": str(seed)})
    return dict(read_weights(str(path)).tensors)


def test_exported_backbones_have_an_average(average, tmp_path):
    first, second = (exported(tmp_path / f"{n}.safetensors", n) for n in (1, 2))
    average("checkpoints=*.safetensors", "shares=[0.5,0.5]", "out=m.safetensors")
    made = handmim.load_backbone(tmp_path / "m.safetensors").net.state_dict()
    for name, value in made.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2)
    assert '"seed": "2"' in read_weights(str(tmp_path / "m.safetensors")).meta["averaged"]
    exported(tmp_path / "n.safetensors", num_heads=4)
    text = average("checkpoints=[1.safetensors,n.safetensors]", "out=x.safetensors", fails=True)
    assert "num_heads: 2 there, 4 here" in text


def test_an_average_is_no_run_to_go_on_with(tmp_path):
    fit(tmp_path, stop_after=3)
    state = load_checkpoint(tmp_path / "last.pt")
    del state["optimizer"], state["format"]
    save_checkpoint(tmp_path / "last.pt", state)
    with pytest.raises(ValueError, match=r"last\.pt holds averaged weights, and no run.*init_from"):
        fit(tmp_path, resume="auto")
