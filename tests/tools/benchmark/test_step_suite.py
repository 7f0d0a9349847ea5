"""The plain step and ours do the same."""

from itertools import pairwise

import pytest
import torch

from benchmark.core import Bench
from benchmark.step import loss_gap, measure, noise_batch, our_step, plain_step

CPU = torch.device("cpu")
SIZES = {
    "arch": "vit_tiny_patch16_224",
    "view_px": 64,
    "patch_px": 16,
    "num_prototypes": 256,
    "drop_path_rate": 0.0,
}
BATCH = {"batch_size": 2, "view_px": 64, "patch_px": 16}


@pytest.mark.parametrize("over", ["all", "masked"])
def test_losses_of_both_steps_agree_and_move(over):
    assert loss_gap(CPU, SIZES, BATCH, over=over) < 1e-5
    ours = our_step(CPU, SIZES, BATCH)
    losses = [float(ours()["loss"]) for _ in range(4)]
    assert all(a > b for a, b in pairwise(losses))


def test_the_plain_step_drops_paths_clips_and_follows():
    step = plain_step(CPU, SIZES | {"drop_path_rate": 0.5}, BATCH)
    assert step() != step()


def test_noise_has_masks_and_local_crops():
    batch = noise_batch(3, 64, 16, CPU, num_local=2, local_px=32)
    assert batch.local_views.shape == (3, 2, 3, 32, 32)
    torch.testing.assert_close(
        batch.known_masked_idx, batch.is_masked.flatten().nonzero().squeeze(1)
    )
    assert 0.2 < batch.is_masked.float().mean() < 0.35


@pytest.mark.parametrize("num_local", [0, 1])
def test_rows(num_local, tmp_path):
    found = list(
        measure(
            Bench(CPU, rounds=1),
            **SIZES,
            batch_size=1,
            memory_batch_size=0,
            num_local=num_local,
            local_px=32,
            variants={"ours": {}, "recomputed": {"recompute_blocks": 12}},
            plain=["32-true"],
            promised={"ours": 1.0},
            profile=str(tmp_path / "profile") if num_local else None,
        )
    )
    (rows,) = found
    names = [row.variant for row in rows]
    assert names == (
        ["ours", "recomputed"] if num_local else ["plain 32-true", "ours", "recomputed"]
    )
    by_name = {row.variant: row for row in rows}
    assert by_name["recomputed"].gflop > 1.05 * by_name["ours"].gflop
    if num_local:
        assert "aten::addmm" in (tmp_path / "profile" / "kernels.txt").read_text()
        assert (tmp_path / "profile" / "trace.json").stat().st_size > 1000
    if not num_local:
        assert by_name["plain 32-true"].gflop > 1.05 * by_name["ours"].gflop
        assert by_name["ours"].error < 1e-5
        assert by_name["ours"].promised == 1.0


@pytest.mark.slow
def test_memory_is_measured_apart():
    how = {"variants": {"ours": {}}, "plain": ["32-true"], "promised": {}}
    sizes = SIZES | {"num_prototypes": 8192}
    local = {"num_local": 0, "local_px": 32}
    bench = Bench(CPU, rounds=1)
    _, rows = measure(bench, **sizes, batch_size=1, memory_batch_size=8, **local, **how)
    plain, ours = rows
    assert ours.peak_mib / plain.peak_mib == ours.memory_share < 0.9
