"""Files of a table, plots and published copies, with runs that cost nothing."""

import math

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from handmim.experiments.plots import curve_plot, dot_plot, line_plot, save_plot
from handmim.experiments.results import curves_of, publish, write_results
from handmim.experiments.stages import make_run
from tests.experiments.conftest import FakeStages, planned

CURVES = {"pa_mpvpe_mm": "PA-MPVPE, mm", "mpjpe_mm": "MPJPE, mm"}
COMPARED = {"curves": CURVES, "baseline": "random"}
COLUMNS = {"finetune_*/mpjpe_mm": {"label": "* %, mm"}}


class Finetunings(FakeStages):
    """Two shares of 200 labels; random ends at 20 and 10 mm, patch a quarter lower, plus seed."""

    def run(self, run):
        share = 1.0 if run.variant.name == "random" else 0.75
        made = {}
        for stage, num, mm in (("finetune_5", 10, 20.0), ("finetune_100", 200, 10.0)):
            metrics = {"num_labels": num, "mpjpe_mm": share * (mm + run.seed)}
            made[stage] = self.kept(run, stage, metrics)
        return made


def filled(folder, seeds=2, variants=("random", "patch")):
    plan = planned(folder, table=COMPARED, columns=COLUMNS, seeds=seeds)
    for run in plan.chosen():
        if run.variant.name in variants:
            make_run(run, Finetunings().run)
    return plan


def test_spots_are_seeds_by_number_of_labels_and_metrics_nobody_has_make_no_panel(tmp_path):
    plan = filled(tmp_path)
    curves = curves_of(plan.table, plan.shown())
    assert list(curves) == ["MPJPE, mm"]
    assert curves["MPJPE, mm"] == {
        "random init": [(10, (20.0, 21.0)), (200, (10.0, 11.0))],
        "patch": [(10, (15.0, 15.75)), (200, (7.5, 8.25))],
    }


def test_the_table_gives_the_change_against_its_baseline_seed_by_seed(tmp_path):
    write_results(filled(tmp_path))
    text = (tmp_path / "table.md").read_text()
    assert "## Against random init" in text
    # both seeds a quarter lower, whatever the seed adds
    assert "| patch | -25.0 % ± 0.0 | -25.0 % ± 0.0 |" in text
    head, _, patch = (tmp_path / "table.csv").read_text().splitlines()
    by_head = dict(zip(head.split(","), patch.split(","), strict=True))
    assert by_head["finetune_100/mpjpe_mm:change"] == "-25"
    commits = (tmp_path / "table.md").read_text().partition("; code ")[2].partition(" (+")[0]
    assert by_head["commits"] == commits.replace(",", "") != ""


@pytest.mark.parametrize("variants", [("patch",), ("random",), ()])
def test_without_the_baseline_or_anything_beside_it_no_change_is_given(tmp_path, variants):
    write_results(filled(tmp_path, variants=variants))
    assert "Against" not in (tmp_path / "table.md").read_text()
    assert cv2.imread(str(tmp_path / "curve.png")) is not None


def test_dots_lie_where_their_values_are():
    (axis,) = dot_plot("t", {"mm": {"a": (10.0,), "b": (), "c": (15.0, 20.0)}}).axes
    dots = [line.get_xydata().tolist() for line in axis.lines if line.get_marker() == "o"]
    assert dots == [[[10.0, 0.0]], [], [[15.0, 2.0], [20.0, 2.0]]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c"]


def test_panels_continue_in_further_lines():
    def size(num):
        return dot_plot("t", {str(i): {"a": (1.0, 2.0)} for i in range(num)}).get_size_inches()

    assert size(5)[0] == size(4)[0]
    assert size(5)[1] > size(4)[1]


def test_curves_have_a_log_scale_a_band_of_the_spread_and_dots():
    spots = [(10, (1.0, 3.0)), (1000, (2.0, 2.0))]
    (axis,) = curve_plot("t", {"mm": {"a": spots, "b": []}}).axes
    assert axis.get_xscale() == "log"
    mean = next(line for line in axis.lines if line.get_label() == "a")
    assert mean.get_xydata().tolist() == [[10, 2.0], [1000, 2.0]]
    band = axis.collections[0].get_paths()[0].vertices
    assert np.isclose(band[:, 1].min(), 2 - 2**0.5)
    assert np.isclose(band[:, 1].max(), 2 + 2**0.5)


def test_scalars_without_two_points_make_no_panel():
    runs = {"x": [{"step": 0, "a": 1.0, "b": 2.0}, {"step": 5, "a": math.nan, "b": 3.0}], "y": []}
    (axis,) = line_plot(runs, {"first": "a", "second": "b", "third": "c"}).axes
    assert axis.get_title() == "second"
    assert axis.lines[0].get_xydata().tolist() == [[0, 2.0], [5, 3.0]]
    assert line_plot({"x": [{"step": s, "a": math.inf} for s in (1, 2)]}, {"t": "a"}).axes == []


@pytest.mark.parametrize(
    "curves",
    [
        {},
        {"mm": {"a": []}},
        {"mm": {"a": [(1, (5.0,))], "b": []}},
        {"mm": {"a": [(7, (5.0, 5.0)), (7, (6.0,))]}},
        {str(i): {f"variant {j}": [(3, (1.0,))] for j in range(30)} for i in range(5)},
    ],
)
def test_few_or_many_curves_are_written_as_png_and_pdf(curves, tmp_path):
    save_plot(curve_plot("Label efficiency", curves), tmp_path / "curve")
    assert cv2.imread(str(tmp_path / "curve.png")).std() > 1
    assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_plot_without_panels_is_written(tmp_path):
    assert isinstance(dot_plot("t", {}), Figure)
    save_plot(dot_plot("t", {}), tmp_path / "plot")


def test_curves_are_published_beside_the_other_files(tmp_path):
    write_results(filled(tmp_path / "t"))
    copies = publish("labels", tmp_path / "t", tmp_path / "out")
    names = {"labels.csv", "labels.png", "labels-curve.png"}
    assert {p.name for p in copies} == {p.name for p in (tmp_path / "out").iterdir()} == names
