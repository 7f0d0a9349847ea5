import numpy as np
import pytest

from handmim.ablation.canvas import axis_ticks
from handmim.ablation.plot import DOT, dot_plot


def dots(picture):
    """Columns where a dot is drawn, from left to right."""
    is_dot = (picture[:, :, ::-1].astype(int) - DOT).__abs__().sum(axis=2) < 30
    columns = np.flatnonzero(is_dot.any(axis=0))
    return [int(g.mean()) for g in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)]


def test_dots_lie_where_their_values_are():
    picture = dot_plot("t", {"mm": {"a": (10.0,), "b": (15.0,), "c": (20.0,)}})
    left, middle, right = dots(picture)
    assert middle == pytest.approx((left + right) / 2, abs=1.5)
    assert right - left > 100


def test_a_variant_without_values_and_equal_values_are_drawn():
    assert len(dots(dot_plot("t", {"mm": {"a": (), "b": (0.0, 0.0)}}))) == 1
    assert dot_plot("t", {}).ndim == 3


def test_panels_go_on_in_further_lines():
    panel = {"a": (1.0, 2.0)}
    one = dot_plot("t", {str(i): panel for i in range(4)})
    two = dot_plot("t", {str(i): panel for i in range(5)})
    assert two.shape[1] == one.shape[1]
    assert two.shape[0] > one.shape[0]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (11.9351, 11.9366), (-3.0, 250.0)])
def test_ticks_are_few_round_and_inside(low, high):
    ticks = axis_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
