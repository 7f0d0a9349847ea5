import pytest
import torch

from benchmark.race import Bench
from benchmark.render import measure, next_pictures
from handmim.render.scene import SceneRenderer

STUDIO = {"background": "studio", "objects": 0.0}


def test_every_round_draws_the_next_pictures(monkeypatch):
    drawn = []
    monkeypatch.setattr(SceneRenderer, "render", lambda self, index: drawn.append(index))
    work = next_pictures(object.__new__(SceneRenderer), 3)
    work()
    work()
    assert drawn == [0, 0, 1, 2, 3, 4, 5]


def test_a_row_per_scene(hand_path):
    scenes = {"tiny": {"image_px": 16, **STUDIO}, "large": {"image_px": 128, **STUDIO}}
    (rows,) = measure(
        Bench(torch.device("cpu"), rounds=2),
        hand=str(hand_path),
        pictures=2,
        scenes=scenes,
        reference="large",
        asked_per_s={"large": 1e9},
    )
    tiny, large = rows
    assert (tiny.variant, large.variant) == ("tiny", "large")
    assert tiny.speedup > 1
    assert large.speedup is None
    assert (tiny.asked_per_s, large.asked_per_s) == (None, 1e9)
    assert large.per_s == pytest.approx(2e3 / large.ms)
