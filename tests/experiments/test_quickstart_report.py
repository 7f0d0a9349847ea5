import json
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from handmim.experiments.quickstart import data_url, latest, write_report

NAMES = ("mean_hand", "scratch", "handmim")
KEYS = ("mpjpe_mm", "mpvpe_mm", "pa_mpjpe_mm", "pa_mpvpe_mm", "pa_f5", "pa_f15", "seconds")


class Tags(HTMLParser):
    """Counts tags that come in pairs."""

    PAIRED = ("figure", "table", "tr", "td", "h1", "h2", "p", "figcaption")

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


@pytest.fixture
def folder(tmp_path):
    """A quickstart's folder with scalars and one kind of image."""
    for stage in ("pretrain", "scratch", "handmim"):
        (tmp_path / stage / "images").mkdir(parents=True)
        rows = [
            {"step": s, "loss": 5.0 - s, "loss/<x>": 1.0 / (s + 1), "val/mpjpe_mm": 30.0 - s}
            for s in range(3)
        ]
        lines = "\n".join(map(json.dumps, rows))
        (tmp_path / stage / "scalars.jsonl").write_text(lines + "\n")
        for step in (2, 10):
            path = tmp_path / stage / "images" / f"step_{step:07d}_views.png"
            cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    return tmp_path


@pytest.fixture
def rows():
    return [
        {"name": name, "seed": 0, "total_seconds": 61.0, **dict.fromkeys(KEYS, 20.0 - i)}
        for i, name in enumerate(NAMES)
    ]


def test_the_report_has_every_part(folder, rows):
    text = write_report(folder, rows).read_text()
    tags = Tags()
    tags.feed(text)
    assert not any(tags.open.values())
    assert tags.seen["figure"] == 8
    assert tags.seen["tr"] == 4
    assert "head start" in text
    assert text.count("data:image/") == 3  # two plots, one image
    assert "(no image predictions.png)" in text


def test_the_best_row_of_the_report_is_marked(folder, rows):
    text = write_report(folder, rows).read_text()
    assert text.count("class=best") == 1
    assert "<tr class=best><td>HandMIM-pretrained</td><td>18.00</td>" in text


def test_text_of_the_report_is_escaped(folder, rows, monkeypatch):
    monkeypatch.setitem(rows[0], "total_seconds", 1.0)
    monkeypatch.setattr("handmim.experiments.quickstart.LIMIT", "1 < 2")
    assert "1 &lt; 2" in write_report(folder, rows).read_text()


def test_the_latest_image_of_a_name_is_found(folder):
    (folder / "pretrain" / "images" / "step_0000010_probe_views.png").touch()
    assert latest(folder / "pretrain", "views").name == "step_0000010_views.png"
    assert latest(folder / "pretrain", "nothing").name == "nothing.png"


def test_a_large_image_is_embedded_as_jpeg(tmp_path):
    path = tmp_path / "big.png"
    noise = np.random.default_rng(0).integers(0, 255, (600, 800, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 2))
    url = data_url(path)
    assert url.startswith("data:image/jpeg;base64,")
    assert len(url) < 0.8 * path.stat().st_size
    cv2.imwrite(str(path), noise[:9, :9])
    assert data_url(path).startswith("data:image/png;base64,")
