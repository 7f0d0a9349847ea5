from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from handmim.speed.estimate import Probe, carried, estimate, estimate_table

CONFIGS = Path(__file__).parents[2] / "configs"
QUICK = {"pretrain": "quickstart_pretrain", "finetune": "quickstart_finetune"}


def composed(entry: str, *words: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(entry, [f"experiment={QUICK[entry]}", "machine.accelerator=cpu", *words])


def test_lines_are_followed():
    probes = Probe(4, 1.0, 100.0), Probe(8, 1.5, 180.0)
    assert carried(probes, 16) == Probe(16, 2.5, 340.0)
    assert carried(probes, 8) == probes[1]
    assert carried(probes[:1], 4) == probes[0]
    # noise may let a line fall; a larger batch costs no less
    assert carried((Probe(4, 1.5, 100.0), Probe(8, 1.4, 90.0)), 16) == Probe(16, 1.4, 90.0)


@pytest.mark.parametrize("entry", [pytest.param("pretrain", marks=pytest.mark.slow), "finetune"])
def test_a_small_run_is_measured_as_it_is(entry):
    cfg = composed(entry, "trainer.batch_size=4", "trainer.max_steps=360")
    found = estimate(cfg)
    assert found.probes[-1].samples == 4
    assert found.seconds == found.probes[-1].seconds
    assert found.hours == pytest.approx(found.seconds / 10)
    assert found.images_per_s == pytest.approx(4 / found.seconds)
    assert 0.3 < found.parameters < 3
    assert found.mib > 4 * found.parameters  # weights, moments and gradients at least
    console = Console(width=90, record=True)
    console.print(estimate_table(found))
    assert "measured at 2 and 4 samples" in console.export_text()


def test_parts_and_processes_share_a_batch(monkeypatch):
    probes = Probe(2, 1.0, 50.0), Probe(4, 2.0, 60.0)
    monkeypatch.setattr(
        "handmim.speed.estimate._probed", lambda cfg, part: (probes, 1.0, 4 * 10**9)
    )
    words = ["trainer.batch_size=64", "trainer.accumulate=2", "machine.devices=4"]
    found = estimate(composed("pretrain", *words))
    # 8 samples at a time: 4 s and 80 MiB, twice a step
    assert (found.seconds, found.mib, found.gflop, found.images_per_s) == (8.0, 80.0, 16.0, 8.0)
    with pytest.raises(ValueError, match=r"64 does not divide by 4 processes and 3 parts"):
        estimate(composed("pretrain", words[0], "trainer.accumulate=3", words[2]))
