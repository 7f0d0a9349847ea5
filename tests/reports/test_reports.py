import json
import math
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from handmim.reports.html import curve, figure, page, series, table
from handmim.reports.quickstart import latest, write_report


class Balance(HTMLParser):
    """Counts opened and closed tags that must come in pairs."""

    PAIRED = (
        "svg",
        "figure",
        "table",
        "div",
        "h1",
        "h2",
        "p",
        "html",
        "body",
        "figcaption",
        "text",
    )

    def __init__(self):
        super().__init__()
        self.open = dict.fromkeys(self.PAIRED, 0)
        self.seen = dict.fromkeys(self.PAIRED, 0)

    def handle_starttag(self, tag, attrs):
        if tag in self.open:
            self.open[tag] += 1
            self.seen[tag] += 1

    def handle_endtag(self, tag):
        if tag in self.open:
            self.open[tag] -= 1


def check(html: str) -> Balance:
    parser = Balance()
    parser.feed(html)
    assert not any(parser.open.values()), parser.open
    return parser


def test_a_curve_maps_extremes_to_the_frame():
    svg = curve(
        "loss", {"a": [(0, 3.0), (10, 1.0)], "b": [(0, 2.0), (10, 2.0)]}, width=320, height=190
    )
    check(svg)
    assert (
        "52.0,24.0 312.0,156.0" in svg
    )  # highest value at the top left, lowest at the bottom right
    assert ">3<" in svg
    assert ">1<" in svg
    assert curve("nothing", {"a": [(0, 1.0)]}) == ""


def test_series_leaves_out_what_is_missing_or_not_finite():
    rows = [{"step": 1, "x": 2.0}, {"step": 2}, {"step": 3, "x": math.nan}, {"step": 4, "x": 1.0}]
    assert series(rows, "x") == [(1, 2.0), (4, 1.0)]


def test_text_is_escaped_and_the_best_row_marked():
    html = table(["<a>"], [["1 < 2"], ["b"]], best=1)
    check(html)
    assert "&lt;a&gt;" in html
    assert "1 &lt; 2" in html
    assert html.count("class=best") == 1


def test_pictures_are_inside_the_page_and_missing_ones_are_said(tmp_path):
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    assert "data:image/" in figure(path, "seen")
    missing = figure(tmp_path / "gone.png", "not there")
    assert "no picture gone.png" in missing
    check(page("t", [figure(path, "a"), missing]))


def test_large_pictures_are_stored_smaller_than_png(tmp_path):
    path = tmp_path / "big.png"
    noise = np.random.default_rng(0).integers(0, 255, (600, 800, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 2))
    assert len(figure(path, "x")) < 0.8 * path.stat().st_size


def test_the_report_has_every_part(tmp_path):
    for stage in ("pretrain", "scratch", "handmim"):
        folder = tmp_path / stage
        (folder / "images").mkdir(parents=True)
        lines = [
            {
                "step": s,
                "loss": 5.0 - s,
                "loss/x": 1.0 / (s + 1),
                "loss/class_hog": 1.0 / (s + 1),
                "val/mpjpe_mm": 30.0 - s,
            }
            for s in range(3)
        ]
        (folder / "scalars.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        for step in (2, 10):
            cv2.imwrite(
                str(folder / "images" / f"step_{step:07d}_views.png"),
                np.zeros((8, 8, 3), np.uint8),
            )
    (tmp_path / "pretrain" / "images" / "step_0000010_probe_views.png").touch()
    assert latest(tmp_path / "pretrain", "views").name == "step_0000010_views.png"
    keys = ("mpjpe_mm", "pa_mpjpe_mm", "pa_mpvpe_mm", "pa_f5", "pa_f15", "seconds")
    rows = [
        {"name": name, "seed": 0, "total_seconds": 61.0, **dict.fromkeys(keys, 20.0 - i)}
        for i, name in enumerate(("mean_hand", "scratch", "handmim"))
    ]
    text = write_report(tmp_path, rows).read_text()
    seen = check(text).seen
    assert seen["svg"] >= 2
    assert seen["figure"] >= 5
    assert "head start" in text
    assert ">class token tells contours<" in text
    assert ">x<" in text
    assert "18.00" in text


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_constant_or_broken_curve_does_not_break_the_page(value):
    assert curve("flat", {"a": [(0, 1.0), (1, 1.0)]}) != ""
    assert series([{"step": 0, "x": value}], "x") == []
