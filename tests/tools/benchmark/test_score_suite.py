"""Both scorers say the same of the same hands."""

import builtins

import numpy as np
import pytest
import torch

from benchmark.core import Bench
from benchmark.references import scipy_scorer
from benchmark.score import CASES, gap, hands, measure
from handmim.evaluation.benchmarks import FREIHAND
from handmim.metrics.pose import F_THRESHOLDS_M


@pytest.fixture(scope="module")
def arrays(hand_path):
    return hands(hand_path, 20, 0.145, 0.02)


def test_hands_are_as_wrong_as_published_methods(arrays):
    scores = FREIHAND.score(*arrays)
    assert 0.55 < scores["mesh_al_mean3d"] < 0.85
    assert 0.5 < scores["f_al_score_5"] < 0.9


@pytest.mark.parametrize("case", CASES)
def test_ours_and_the_plain_scorer_agree(arrays, case):
    works = CASES[case][1]
    few = [a[:5] for a in arrays]
    truth = works["scipy"](few)
    for name in set(works) - {"scipy"}:
        assert gap(works[name](few), truth) < (1e-4 if "training" in case else 1e-9), name


def test_other_figures_are_no_agreement():
    assert gap({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.5}) == 0.5
    assert gap(np.zeros(3), np.array([0, 0, -4.0])) == 4.0
    with pytest.raises(ValueError, match=r"differ in \['b'\]"):
        gap({"a": 1.0, "b": 2.0}, {"a": 1.0})
    assert scipy_scorer.F_THRESHOLDS_M == F_THRESHOLDS_M


def test_rows(hand_path):
    sizes = {"num": 8, "num_plain": 2, "num_files": 2, "rotation_rad": 0.1, "shift_m": 0.01}
    bench = Bench(torch.device("cpu"), rounds=1)
    promised = {"FreiHAND, all metrics": 2.0}
    found = list(measure(bench, hand=str(hand_path), **sizes, promised=promised))
    assert len(found) == len(CASES) + 2
    names = [[row.variant for row in rows] for rows in found]
    assert names[0] == ["scipy, 2 samples x 4", "handmim"]
    assert names[-1] == ["json", "handmim"]
    for rows in found:
        assert rows[0].speedup is None
        assert all(row.error < 1e-4 for row in rows[1:])
    assert [rows[1].promised for rows in found] == [2.0] + [None] * (len(found) - 1)


def test_without_scipy_it_says_where_it_comes_from(monkeypatch):
    real = builtins.__import__

    def no_scipy(name, *rest):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_scipy)
    with pytest.raises(ImportError, match=r"needs scipy: pip install -e '\.\[dev\]'"):
        scipy_scorer.scipy_parts()
