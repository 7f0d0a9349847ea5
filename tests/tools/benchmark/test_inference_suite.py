"""A small model, measured as a large one would be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from benchmark.core import Bench
from benchmark.inference import model, noise_crops, predict_one_by_one, stage_shares
from handmim.evaluation.inference import InferenceModule
from handmim.evaluation.predictor import HandPredictor

CONFIGS = Path(__file__).parents[3] / "configs"
SMALL = [
    "backbone@suites.inference.backbone=vit_nano_p8",
    "head@suites.inference.head=pymaf_small",
    "suites.inference.crop_px=56",
]


def suite(*overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("benchmark", overrides=[*SMALL, *overrides])
    return instantiate(cfg.suites.inference)


def test_batches_are_compared_with_single_pictures():
    found = list(
        suite("suites.inference.batch_sizes=[1,3]", "+suites.inference.promised.fp32=1.25")(
            Bench(torch.device("cpu"), rounds=1)
        )
    )
    assert len(found) == 2
    for rows, size in zip(found, (1, 3), strict=True):
        plain, fp32, bf16 = rows
        assert [row.variant for row in rows] == ["one by one", "fp32", "bf16"]
        assert plain.case.endswith(f"batch {size}")
        assert plain.speedup is None
        assert (fp32.promised, bf16.promised) == (1.25, None)
        assert fp32.error < 1e-5 < bf16.error < 1e-2
        assert fp32.gflop == pytest.approx(size * found[0][1].gflop)
        assert 0 < fp32.peak_share < 2
        shares = {part.rsplit(" ", 1)[0] for part in fp32.note.split(", ")}
        assert shares == {"upload", "crop", "backbone", "head and hand", "download"}


def test_the_plain_loop_says_what_the_predictor_says():
    how = suite().keywords
    task, augment = model(how["backbone"], how["head"], 7 / 8)
    crops = noise_crops(3, 56)
    plain = predict_one_by_one(task, augment, crops)
    ours = HandPredictor(InferenceModule(task, augment))(crops)
    np.testing.assert_allclose(ours.verts_root_m, [a["verts_root_m"] for a in plain], atol=1e-6)
    assert ours.betas.std(axis=0).max() > 1e-6, "answers depend on the image"
    assert "backbone" in stage_shares(HandPredictor(InferenceModule(task, augment)), crops)
