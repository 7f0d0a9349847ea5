"""Curves against the number of labels, with cells that cost nothing."""

import math

import cv2
import numpy as np
import pytest

from handmim.ablation.cell import run_cell
from handmim.ablation.collect import collect
from handmim.ablation.curves import COLOURS, Spot, curve_plot, curves_of
from handmim.ablation.publish import publish
from tests.ablation.conftest import FakeRuns, planned

CURVES = {"pa_mpvpe_mm": "PA-MPVPE, mm", "mpjpe_mm": "MPJPE, mm"}
ASKED = {"curves": CURVES, "baseline": "random"}
COLUMNS = {"finetune_*/mpjpe_mm": {"label": "* %, mm"}}


class Finetunes(FakeRuns):
    """Two shares of 200 labels; random ends at 20 and 10 mm, patch a quarter lower, plus seed."""

    def run(self, cell):
        share = 1.0 if cell.row.name == "random" else 0.75
        made = {}
        for stage, num, mm in (("finetune_5", 10, 20.0), ("finetune_100", 200, 10.0)):
            figures = {"num_labels": num, "mpjpe_mm": share * (mm + cell.seed)}
            made[stage] = self._kept(cell, stage, figures)
        return made


def filled(folder, seeds=2, rows=("random", "patch")):
    plan = planned(folder, table=ASKED, columns=COLUMNS, seeds=seeds)
    for cell in plan.chosen():
        if cell.row.name in rows:
            run_cell(cell, Finetunes())
    return plan


def test_spots_are_seeds_by_number_of_labels_and_figures_nobody_has_make_no_panel(tmp_path):
    plan = filled(tmp_path)
    curves = curves_of(plan.table, plan.shown())
    assert list(curves) == ["MPJPE, mm"]
    assert curves["MPJPE, mm"] == {
        "random init": [Spot(10, (20.0, 21.0)), Spot(200, (10.0, 11.0))],
        "patch": [Spot(10, (15.0, 15.75)), Spot(200, (7.5, 8.25))],
    }


def test_the_table_tells_the_change_against_its_baseline_seed_by_seed(tmp_path):
    collect(filled(tmp_path))
    text = (tmp_path / "table.md").read_text()
    assert "## Against random init" in text
    # both seeds a quarter lower, whatever the seed adds
    assert "| patch | -25.0 % ± 0.0 | -25.0 % ± 0.0 |" in text
    head, _, patch = (tmp_path / "table.csv").read_text().splitlines()
    by_head = dict(zip(head.split(","), patch.split(","), strict=True))
    assert by_head["finetune_100/mpjpe_mm:change"] == "-25"


@pytest.mark.parametrize("rows", [("patch",), ("random",), ()])
def test_without_the_baseline_or_anything_beside_it_no_change_is_told(tmp_path, rows):
    collect(filled(tmp_path, rows=rows))
    assert "Against" not in (tmp_path / "table.md").read_text()
    assert cv2.imread(str(tmp_path / "curve.png")) is not None


def test_a_baseline_must_be_a_row(tmp_path):
    with pytest.raises(ValueError, match=r"no row 'nope'.*\['random', 'patch'\].*table\.baseline"):
        planned(tmp_path, table={"baseline": "nope"})


def places(picture, colour):
    """x and y of everything in a colour, panels only."""
    near = (picture[:, :, ::-1].astype(int) - colour).__abs__().sum(axis=2) < 30
    near[:60] = False
    return np.nonzero(near)[::-1]


def test_numbers_of_labels_stand_on_a_log_scale():
    def middle(*nums):
        spots = [Spot(num, (float(i),)) for i, num in enumerate(nums)]
        x, y = places(curve_plot("t", {"mm": {"a": [], "b": spots}}), COLOURS[1])
        left, right, height = x.min(), x.max(), y.max() - y.min()
        bend = [x[np.abs(y - y.max() + height * i / 2) < 2].mean() for i in (0, 1, 2)]
        return (bend[1] - left) / (right - left)

    assert middle(10, 100, 1000) == pytest.approx(0.5, abs=0.02)
    assert middle(10, 20, 1000) == pytest.approx(math.log(2) / math.log(100), abs=0.03)


def test_a_band_spans_mean_and_spread_and_one_seed_has_none():
    def shaded(*values):
        spots = [Spot(10, values), Spot(100, values)]
        picture = curve_plot("t", {"mm": {"a": [], "b": spots}}).astype(int)
        tint = 255 + 0.16 * (np.array(COLOURS[1])[::-1] - 255)
        return np.count_nonzero(np.abs(picture - tint).sum(axis=2) < 12)

    assert shaded(1.0, 2.0) > 5000
    assert shaded(1.0) < 50  # edges of the line


@pytest.mark.parametrize(
    "curves",
    [
        {},
        {"mm": {"a": []}},
        {"mm": {"a": [Spot(1, (5.0,))], "b": []}},
        {"mm": {"a": [Spot(7, (5.0, 5.0)), Spot(7, (6.0,))]}},
        {str(i): {f"row {j}": [Spot(3, (1.0,))] for j in range(30)} for i in range(5)},
    ],
)
def test_little_or_much_is_drawn_as_well(curves):
    assert curve_plot("Label efficiency", curves).std() > 1


def test_curves_are_published_beside_the_other_files(tmp_path):
    collect(filled(tmp_path / "t"))
    publish("labels", tmp_path / "t", tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"labels-curve.png", *(f"labels.{end}" for end in ("md", "csv", "png", "json"))}
    assert not list((tmp_path / "t").glob(".*.png"))
