from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from benchmark.estimate import Probe, duration, estimate, estimate_table, extrapolated

CONFIGS = Path(__file__).parents[3] / "configs"
QUICK = {"pretrain": "quickstart_pretrain", "finetune": "quickstart_finetune"}


def composed(entry: str, *overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(entry, [f"experiment={QUICK[entry]}", "machine.accelerator=cpu", *overrides])


def test_lines_are_followed():
    probes = Probe(4, 1.0, 100.0), Probe(8, 1.5, 180.0)
    assert extrapolated(probes, 16) == Probe(16, 2.5, 340.0)
    assert extrapolated(probes, 8) == probes[1]
    assert extrapolated(probes[:1], 4) == probes[0]
    assert extrapolated(probes[:1], 12) == Probe(12, 3.0, 300.0)  # one probe: from zero
    # noise may let a line fall; a larger batch costs no less
    assert extrapolated((Probe(4, 1.5, 100.0), Probe(8, 1.4, 90.0)), 16) == Probe(16, 1.4, 90.0)


def test_slow_steps_are_measured_at_two_sizes_all_the_same(monkeypatch):
    sizes = []

    def timed(content, samples, fabric):
        sizes.append(samples)
        return 3.0 * samples, 1.0, 10**9 * samples

    monkeypatch.setattr("benchmark.estimate._timed", timed)
    monkeypatch.setattr("benchmark.estimate._mib", lambda content, num, device: 9.0 * num)
    found = estimate(composed("pretrain", "trainer.batch_size=64"))
    assert sizes == [2, 4]
    assert (found.seconds, found.mib, found.gflop) == (192.0, 576.0, 64.0)


def test_devices_that_are_no_number_are_refused():
    with pytest.raises(ValueError, match=r"a number of devices here, got -1"):
        estimate(composed("pretrain", "machine.devices=-1"))


def test_durations_have_their_unit():
    assert [duration(s) for s in (0.1234, 90.0, 600.0, 7200.0)] == [
        "0.123 s",
        "90 s",
        "10.0 min",
        "2.0 h",
    ]


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
    monkeypatch.setattr("benchmark.estimate._probed", lambda cfg, part: (probes, 1.0, 4 * 10**9))
    overrides = ["trainer.batch_size=64", "trainer.accumulate=2", "machine.devices=4"]
    found = estimate(composed("pretrain", *overrides))
    # 8 samples at a time: 4 s and 80 MiB, twice a step
    assert (found.seconds, found.mib, found.gflop, found.images_per_s) == (8.0, 80.0, 16.0, 8.0)
    with pytest.raises(ValueError, match=r"64 does not divide by 4 processes and 3 parts"):
        estimate(composed("pretrain", overrides[0], "trainer.accumulate=3", overrides[2]))
