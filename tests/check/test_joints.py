"""Unit, order and axes are told from joints alone, in any pose."""

import numpy as np
import pytest
import torch

from handmim.check.benchmarks import shares_in_masks
from handmim.data.label_checks import (
    METRES,
    bones,
    note_cameras,
    order_of,
    settle_axes,
    settle_unit,
    unit_of,
)
from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.skeleton import LABEL_ORDERS, SKELETONS
from handmim.utils.findings import Notes


@pytest.fixture(scope="module")
def joints(hand):
    """[16, 21, 3] random poses of random hands, half a metre away."""
    rng = np.random.default_rng(0)
    turns = rng.normal(0, 0.5, (16, 16, 3))
    turns[:, 0] = rng.normal(0, 2, (16, 3))
    betas = torch.from_numpy(rng.normal(0, 1, (16, 10)))
    posed = hand(torch.from_numpy(rotvec_to_matrix(turns)), betas).joints_m.double().numpy()
    return posed - posed.mean(axis=1, keepdims=True) + [0.02, 0.01, 0.5]


@pytest.mark.parametrize("unit", METRES)
def test_the_unit_is_noted_and_mended(joints, unit):
    scaled = joints / METRES[unit]
    assert unit_of(scaled) == unit
    notes = Notes()
    np.testing.assert_allclose(settle_unit(notes, scaled, "file"), joints, rtol=1e-12)
    assert [f.level for f in notes.findings] == ["ok" if unit == "m" else "error"]


@pytest.mark.parametrize("factor", [0.0, 1e-3, 8.0, 1e5])
def test_points_that_are_no_hand_in_any_unit_are_refused(joints, factor):
    assert unit_of(joints * factor) is None
    with pytest.raises(ValueError, match="no hand"):
        settle_unit(Notes(), joints * factor, "file")


@pytest.mark.parametrize("order", LABEL_ORDERS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_order_is_noted_in_space_and_in_the_image(joints, order, dimensions):
    assert sorted(LABEL_ORDERS[order]) == list(range(21))
    theirs = np.empty_like(joints)
    theirs[:, list(LABEL_ORDERS[order])] = joints  # canonical[i] = theirs[order[i]]
    for expected in ("canonical", "ho3d"):
        assert order_of(theirs[..., :dimensions], expected) == order


def test_orders_agree_with_the_skeletons():
    assert LABEL_ORDERS["canonical"] == SKELETONS["freihand"]
    assert LABEL_ORDERS["ho3d"] == SKELETONS["ho3d"]


def test_bones_have_their_lengths(hand, hand_arrays):
    flat = hand(torch.zeros(1, 48), torch.zeros(1, 10)).joints_m.double().numpy()
    # the middle finger's first bone, of the stand-in's own table of measures: 44.6 mm
    assert bones(flat)[0, 9] * 1e3 == pytest.approx(44.6, abs=0.1)


def test_axes_are_mended_only_where_most_hands_are_behind_the_camera(joints):
    notes = Notes()
    turned = joints * [1, -1, -1]
    np.testing.assert_array_equal(settle_axes(notes, turned, 1, "file"), joints)
    np.testing.assert_array_equal(settle_axes(notes, turned, -1, "file"), turned)
    few = np.concatenate([joints, turned[:2]])
    np.testing.assert_array_equal(settle_axes(notes, few, 1, "file"), few)
    assert [f.level for f in notes.findings] == ["error", "ok", "error"]


def test_intrinsics_that_no_camera_of_these_images_has():
    good = np.array([[600.0, 0, 320], [0, 610, 240], [0, 0, 1]])
    far = good + np.array([[0, 0, 700], [0, 0, 0], [0, 0, 0]])
    stretched = good * [[2, 1, 1], [1, 1, 1], [1, 1, 1]]
    short = good * [[0.1, 1, 1], [1, 0.1, 1], [1, 1, 1]]
    negative = good * [[-1, 1, 1], [1, -1, 1], [1, 1, 1]]
    bad = [good.T, far, stretched, short, negative, np.full((3, 3), np.nan), np.zeros((3, 3))]
    found = [note_cameras(Notes(), K[None], (640, 480), "K") for K in (good, *bad)]
    assert found == [True] + [False] * len(bad)


def test_shares_in_masks_by_hand():
    left, right = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    left[:, :30], right[:, 30:] = True, True
    inside, outside = [5.0, 5.0], [5.0, 45.0]  # the second is below the image
    points = np.array([[inside, outside, inside, inside], [[55.0, 5.0]] * 4])
    # first sample: three of four on its own mask; second: all; on each other's: none
    assert shares_in_masks(points, [left, right]) == (0.875, 0.0)
    points[1, 0] = np.nan
    assert shares_in_masks(points, [left, right]) == (0.75, 0.0)
