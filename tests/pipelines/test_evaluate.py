"""Scoring one checkpoint and several, in this process, on forged FreiHAND."""

import json
import logging
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import handmim
from handmim.data.freihand import FreiHand
from handmim.data.label_files import read_ground_truth
from handmim.engine.checkpoint import load_checkpoint, save_checkpoint
from handmim.evaluation.benchmarks import FREIHAND
from handmim.evaluation.report import (
    averaged,
    check_comparable,
    expanded,
    markdown,
    summary,
)
from handmim.evaluation.submission import read_submission
from handmim.pipelines.evaluate import evaluate
from handmim.utils.config import resolved

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = [
    "head=pymaf_small",
    "task.head.channels=8",
    "task.head.hidden_dim=16",
    "task.head.num_points=8",
]
SMALL += ["backbone=vit_nano_p8", "task.backbone.img_px=32", "task.backbone.size.depth=1"]


def composed(entry: str, *overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(entry, overrides=[*overrides, "machine.accelerator=cpu"])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, freihand_tree, hand_path):
    """Three seeds of one method, as fine-tuning would leave them, and one with another head."""
    root = tmp_path_factory.mktemp("tuned")
    common = [f"data.root={freihand_tree}", "data.image_px=64", f"data.cache_dir={root / 'cache'}"]
    common += ["data=freihand", f"hand.path={hand_path}", f"paths.run_root={root}"]
    for seed, more in enumerate([[], [], [], ["task.head.num_points=9"]]):
        cfg = composed("finetune", *SMALL, *common, *more, f"seed={seed}", f"name=seed{seed}")
        torch.manual_seed(seed)
        task = instantiate(cfg.task)
        torch.nn.init.normal_(task.head.regressors[-1].out.weight, std=0.05)
        folder = root / f"seed{seed}"
        folder.mkdir()
        state = {"step": 10 + seed, "task": task.state_dict(), "meta": task.hand_metadata()}
        save_checkpoint(folder / "last.pt", {**state, "config": resolved(cfg)})
    return root


def scored(root: Path, *overrides: str):
    places = [f"paths.run_root={root}", f"paths.data_dir={root}"]
    return evaluate(composed("eval", *overrides, *places, "num_images=2"))


@pytest.fixture(scope="module")
def several(tuned):
    made = scored(tuned, f"checkpoint='{tuned}/seed[0-2]/last.pt'", "name=all", "tta=rotations")
    return made, tuned / "all"


def test_each_of_several_is_scored_as_by_itself(tuned, several):
    made, folder = several
    paths = [str(tuned / f"seed{i}" / "last.pt") for i in range(3)]
    assert [row["path"] for row in made["checkpoints"]] == paths
    assert [row["seed"] for row in made["checkpoints"]] == [0, 1, 2]
    assert [row["step"] for row in made["checkpoints"]] == [10, 11, 12]
    alone = scored(tuned, f"checkpoint={paths[1]}", "name=alone")
    inside = json.loads((folder / "2" / "metrics.json").read_text())
    assert {k: inside[k] for k in alone} == alone
    for name in ("pred.json", "scores.txt"):
        assert (folder / "2" / name).read_bytes() == (tuned / "alone" / name).read_bytes()
    assert (folder / "2" / "predictions.png").is_file()
    assert "test:" in (folder / "2" / "config.yaml").read_text()
    assert not (tuned / "alone" / "tta").exists()


def test_the_public_predictor_makes_the_official_scores(tuned, freihand_tree, hand_path):
    """Image by image, scored as the evaluation scores its own submission."""
    path = tuned / "seed0" / "last.pt"
    official = scored(tuned, f"checkpoint={path}", "name=official")["official"]
    cache = tuned / "cache"
    data = FreiHand(freihand_tree, hand_path, split="evaluation", image_px=64, cache_dir=cache)
    samples = [data[i] for i in range(len(data))]
    predict = handmim.load(path, batch_size=1, joint_convention=samples[0].joint_convention)
    hands = [predict(sample.image[None], sample.K_crop_px) for sample in samples]
    joints = np.concatenate([h.joints_root_m + h.transl_cam_m[:, None] for h in hands])
    verts = np.concatenate([h.verts_root_m + h.transl_cam_m[:, None] for h in hands])
    ours = FREIHAND.score(joints, verts, *read_ground_truth(freihand_tree, cache))
    assert ours == pytest.approx(official, abs=5e-4)


def test_mean_and_sample_deviation_are_of_what_each_got(several):
    made, folder = several
    each = [json.loads((folder / str(i) / "metrics.json").read_text()) for i in (1, 2, 3)]
    assert json.loads((folder / "metrics.json").read_text()) == made
    for name in ("pa_mpjpe_mm", "mpvpe_mm", "abs_auc_verts"):
        values = [e[name] for e in each]
        assert made["mean"][name] == pytest.approx(sum(values) / 3)
        assert made["std"][name] == pytest.approx(statistics.stdev(values))
        rotated = [e["tta"][name] for e in each]
        assert made["mean"]["tta"][name] == pytest.approx(sum(rotated) / 3)
        assert rotated != values
    text = (folder / "table.md").read_text()
    mean, std = (made[k]["pa_mpjpe_mm"] for k in ("mean", "std"))
    assert f"{mean:.2f} ± {std:.2f}" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * (3 + 1)
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith(f"| {made['checkpoints'][0]['path']} | seed0 | 0 | 10 | ")
    assert "ms/image" in lines[0]


def test_rotated_crops_have_their_own_files_and_metrics(several):
    _, folder = several
    report = json.loads((folder / "1" / "metrics.json").read_text())
    assert report["submission"] == "pred.zip"
    assert report["tta"]["submission"] == "tta/pred.zip"
    assert report["tta"]["num_views"] == 5
    assert report["tta"]["ms_per_image"] > report["ms_per_image"] > 0
    plain, rotated = (read_submission(folder / "1" / p / "pred.json") for p in (".", "tta"))
    assert plain[0].shape == rotated[0].shape
    assert 1e-5 < abs(plain[1] - rotated[1]).max() < 0.5
    lines = (folder / "1" / "tta" / "scores.txt").read_text().splitlines()
    expected = report["tta"]["official"]["xyz_al_mean3d"]
    assert f"xyz_al_mean3d: {expected:.6f}" in lines


def test_without_a_benchmark_both_are_scored_too(tuned):
    overrides = [f"checkpoint={tuned}/seed0/last.pt", "tta=rotations", "name=plain"]
    overrides += ["tta_views.rotations.angles_deg=[-30,30]"]
    overrides += ["tta_views.rotations.scales=[0.9,1.0,1.1]"]
    overrides += ["predictor=ground_truth", "data=freihand"]
    saved = load_checkpoint(tuned / "seed0" / "last.pt")["config"]["data"]
    overrides += [f"data.{k}={saved[k]}" for k in ("root", "image_px", "cache_dir")]
    report = scored(tuned, *overrides, "data.benchmark=null")
    assert report["tta"]["num_views"] == 6
    assert max(report["mpvpe_mm"], report["tta"]["mpvpe_mm"]) < 0.01
    assert set(report["tta"]) - {"num_views"} == set(report) - {"tta"}


def test_what_cannot_be_averaged_is_refused_before_anything_is_written(tuned):
    every = f"checkpoint={tuned}/seed*/last.pt"
    with pytest.raises(ValueError, match=r"seed3/last\.pt is not averaged with .*seed0/last\.pt"):
        scored(tuned, every, "name=no")
    with pytest.raises(ValueError, match=r"task\.head\.num_points: 8 there, 9 here"):
        check_comparable(expanded([f"{tuned}/seed*/last.pt"]), None)
    assert not (tuned / "no").exists()
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*/nope\*/last\.pt'"):
        scored(tuned, f"checkpoint={tuned}/nope*/last.pt", "name=no")
    with pytest.raises(ValueError, match="names no file"):
        scored(tuned, "checkpoint=[]", "name=no")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        scored(tuned, f"checkpoint=[{tuned}/seed0/last.pt,{tuned}/gone.pt]", "name=no")
    with pytest.raises(ValueError, match="a submission file holds one prediction"):
        scored(tuned, "predictions=x", "data=freihand", "data.root=x", "tta=rotations", "name=no")


def test_other_hands_crops_and_data_are_not_averaged(tuned, tmp_path, caplog, monkeypatch):
    path = str(tuned / "seed0" / "last.pt")
    saved = load_checkpoint(path)

    def other(name: str, change) -> list[str]:
        state = load_checkpoint(path)
        change(state)
        del state["format"]
        save_checkpoint(tmp_path / name, state)
        return [path, str(tmp_path / name)]

    for change, overrides in (
        (lambda s: s["meta"].update(hand_sha256="0" * 64), r"hand: [0-9a-f]+ there, 0{64} here"),
        (lambda s: s["config"]["augment"].update(img_px=64), r"augment\.img_px: 32 there, 64 here"),
        (lambda s: s["config"]["data"]["test"].update(split="val"), "split: evaluation there"),
    ):
        with pytest.raises(ValueError, match=overrides):
            check_comparable(other("x.pt", change), None)
    # Where they lie and what they learned from is no difference; equal seeds are mentioned.
    moved = other("y.pt", lambda s: s["config"]["data"]["test"].update(hand_path="z"))
    monkeypatch.setattr(logging.getLogger("handmim"), "propagate", True)
    facts = check_comparable(moved, None)
    assert [f["seed"] for f in facts] == [0, 0]
    assert "seeds [0, 0]: the spread is not that of independent runs" in caplog.text
    assert facts[1]["name"] == saved["config"]["name"]


def test_paths_and_patterns_name_each_file_once(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.pt").touch()
    a, b, c = (str(tmp_path / f"{n}.pt") for n in "abc")
    assert expanded([f"{tmp_path}/*.pt"]) == [a, b, c]
    assert expanded([c, f"{tmp_path}/*.pt"]) == [c, a, b]
    assert expanded(["not/there.pt"]) == ["not/there.pt"]  # reading it says what is wrong
    odd = tmp_path / "run[1].pt"
    odd.touch()
    assert expanded([str(odd)]) == [str(odd)]


def test_only_numbers_that_all_have_are_averaged():
    reports = [
        {"a": 1.0, "n": 8, "b": 2.0, "word": "x", "deep": {"c": 1.0}, "ends": {"a": [0, 1]}},
        {"a": 2.0, "n": 8, "word": "y", "deep": {"c": 4.0}, "ends": {"a": [0, 1]}, "ok": True},
    ]
    assert averaged(reports, max) == {"a": 2.0, "n": 8.0, "deep": {"c": 4.0}}
    facts = [{"path": f"p|{s}", "name": "run", "seed": s, "step": 5} for s in range(2)]
    made = summary(facts, [{"pa_mpjpe_mm": 10.0}, {"pa_mpjpe_mm": 13.0}])
    assert made["std"]["pa_mpjpe_mm"] == pytest.approx(3 / 2**0.5)
    assert "| 11.50 ± 2.12 |" in markdown("t", made)


def test_the_log_says_whose_hand_file_is_used(tuned, hand_path):
    overrides = [f"checkpoint={tuned}/seed0/last.pt", "hand=mano", "name=hand", "overwrite=true"]
    scored(tuned, *overrides)
    text = (tuned / "hand" / "log.txt").read_text()
    assert f"hand model: {hand_path}, the checkpoint's own " in text
    scored(tuned, *overrides, f"hand.path={hand_path}")
    text = (tuned / "hand" / "log.txt").read_text()
    assert f"hand model: {hand_path}, given" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_a_compiled_model_scores_the_same(tuned):
    overrides = [f"checkpoint={tuned}/seed0/last.pt", "overwrite=true"]
    plain = scored(tuned, *overrides, "name=eager")
    compiled = scored(tuned, *overrides, "name=compiled", "machine.compile=true")
    assert compiled["official"] == pytest.approx(plain["official"], abs=1e-4)
    assert "compile: true" in (tuned / "compiled" / "config.yaml").read_text()
