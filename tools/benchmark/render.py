"""The renderer: pictures per second of one processor core, by scene."""

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmark.race import Bench, Row, compared
from handmim.hand.io import load_hand_arrays
from handmim.render.scene import SceneRenderer, SceneSettings


def next_pictures(renderer: SceneRenderer, num: int) -> Callable[[], object]:
    """Work: the next `num` pictures of a scene."""
    rounds = count()
    renderer.render(0)  # compiles, and draws the first block of poses

    def work() -> None:
        start = num * next(rounds)
        for index in range(start, start + num):
            renderer.render(index)

    return work


def measure(
    bench: Bench,
    *,
    hand: str,
    pictures: int,
    scenes: Mapping[str, Mapping[str, Any]],
    reference: str,
    asked_per_s: Mapping[str, float],
) -> Iterator[list[Row]]:
    """One case: the scenes in turns, on a processor whatever the device is.

    Args:
        bench: how long.
        hand: file of the hand model.
        pictures: of each scene and round.
        scenes: fields of `SceneSettings` by name.
        reference: scene that the others' speed is relative to.
        asked_per_s: promised pictures per second by name.
    """
    arrays = load_hand_arrays(Path(hand))
    works = {
        name: next_pictures(SceneRenderer(arrays, SceneSettings(**fields)), pictures)
        for name, fields in scenes.items()
    }
    seconds = Bench(torch.device("cpu"), bench.rounds).race(works)
    more = {name: {"asked_per_s": rate} for name, rate in asked_per_s.items()}
    case = "random hand photographs"
    yield compared("render", case, seconds, reference, items=pictures, unit="pictures", more=more)
