import pytest
import torch

from benchmark.core import Bench
from benchmark.hands import measure_render, next_images
from handmim.render.scene import SceneRenderer

STUDIO = {"background": "studio", "objects": 0.0}


def test_every_round_draws_the_next_images(monkeypatch):
    drawn = []
    monkeypatch.setattr(SceneRenderer, "render", lambda self, index: drawn.append(index))
    work = next_images(object.__new__(SceneRenderer), 3)
    work()
    work()
    assert drawn == [0, 0, 1, 2, 3, 4, 5]


def test_a_row_per_scene(hand_path):
    scenes = {"tiny": {"image_px": 16, **STUDIO}, "large": {"image_px": 128, **STUDIO}}
    (rows,) = measure_render(
        Bench(torch.device("cpu"), rounds=2),
        hand=str(hand_path),
        images=2,
        scenes=scenes,
        reference="large",
        promised_per_s={"large": 1e9},
    )
    tiny, large = rows
    assert (tiny.variant, large.variant) == ("tiny", "large")
    assert tiny.speedup > 1
    assert large.speedup is None
    assert (tiny.promised_per_s, large.promised_per_s) == (None, 1e9)
    assert large.per_s == pytest.approx(2e3 / large.ms)
