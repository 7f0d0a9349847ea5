from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from benchmark.core import Bench
from benchmark.hands import forward_flops, inputs_of

CONFIGS = Path(__file__).parents[3] / "configs"
BENCH = Bench(torch.device("cpu"), rounds=1)


def suite(*overrides: str):
    """On a small backbone, with two heads of its size."""
    heads = ["head@suites.head.heads.pymaf=pymaf_small", "suites.head.heads.plain.hidden_dim=768"]
    others = [f"~head@suites.head.heads.{k}" for k in ("pymaf_exact", "iterative", "decoder")]
    chosen = ["backbone@suites.head.backbone=vit_nano_p8", *heads, *others]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("benchmark", overrides=[*chosen, "suites.head.batch_size=2", *overrides])
    return instantiate(cfg.suites.head)


def test_heads_are_compared_with_their_backbone():
    (rows,) = suite("suites.head.heads.pymaf.taps=[1]")(BENCH)
    backbone, *heads = rows
    assert [row.variant for row in rows] == ["backbone", "pymaf", "plain"]
    assert [row.promised for row in heads] == [10.0, None]
    assert all(row.ms > 0 for row in rows)
    assert backbone.note == ""
    for head in heads:
        share = float(head.note.split("%")[0]) / 100
        assert share == pytest.approx(1 / head.speedup, abs=1e-3)


def test_a_promise_needs_its_head():
    with pytest.raises(ValueError, match=r"shares must name heads of .*, got \['pymafs'\]"):
        list(suite("+suites.head.shares.pymafs=0.1")(BENCH))


def test_operations_by_hand():
    """The mean patch token is 96 numbers of the 192 that a linear head turns into 109."""
    images = torch.rand(2, 3, 48, 48)
    found = []
    for features in ("cls_patch", "cls"):
        overrides = (
            "suites.head.heads.plain.num_hidden=0",
            f"suites.head.heads.plain.features={features}",
        )
        parts = suite(*overrides).keywords
        backbone = parts["backbone"]
        head = parts["heads"]["plain"](dim=backbone.embed_dim)
        found.append(forward_flops(head, *inputs_of(head, backbone, images)))
    # a multiply-add counts two; posing the hand is in both
    assert found[0] - found[1] == 2 * 2 * 96 * 109
    assert forward_flops(backbone, images) > 1e6
