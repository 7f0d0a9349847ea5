import torch

from benchmark.core import Bench
from benchmark.hands import measure


def test_answers_agree_with_smplx(hand_path):
    bench = Bench(torch.device("cpu"), rounds=1)
    cases = list(measure(bench, hand=str(hand_path), batch_sizes=[1, 3], promised=[1.0, 1.0]))
    assert [len(rows) for rows in cases] == [2, 2]
    for theirs, ours in cases:
        assert (theirs.variant, ours.variant) == ("smplx", "handmim")
        assert 0 < ours.error < 1e-6
        assert ours.speedup > 0
    assert ours.case == "batch 3, forward and backward"
