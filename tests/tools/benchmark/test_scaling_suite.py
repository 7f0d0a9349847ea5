import pytest
import torch

from benchmark.core import Bench
from benchmark.step import measure_scaling

BASE = {"batch_size": 1, "view_px": 32, "patch_px": 16, "num_prototypes": 64}


def rows(grow):
    how = {"arch": "vit_tiny_patch16_224", "drop_path_rate": 0.0, "precision": "32-true"}
    return list(measure_scaling(Bench(torch.device("cpu"), rounds=1), **how, base=BASE, grow=grow))


def test_more_costs_more(monkeypatch):
    monkeypatch.setattr("benchmark.step.peak_mib", lambda make, *args, device: 1.0)
    found = rows({"batch_size": [1, 3], "view_px": [32, 64], "num_prototypes": [64, 4096]})
    assert [len(case) for case in found] == [2, 2, 2]
    for small, large in found:
        assert large.gflop > 1.05 * small.gflop
    batch = found[0]
    assert batch[1].gflop == pytest.approx(3 * batch[0].gflop, rel=0.2)
    assert all(row.peak_mib == 1.0 for case in found for row in case)


def test_unknown_sizes_are_named():
    with pytest.raises(ValueError, match=r"grow must name sizes of .*, got \['depth'\]"):
        rows({"depth": [1]})
