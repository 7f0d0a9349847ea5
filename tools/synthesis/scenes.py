"""What every synthesised dataset is drawn with: a hand that can be posed, a scene, one seed."""

from dataclasses import replace

import cv2
import numpy as np

from handmim.hand.io import HandArrays, load_hand_arrays
from handmim.hand.skeleton import CHAIN_FINGERS, FINGERS
from handmim.render.scene import SPLITS, SceneRenderer, SceneSettings

# What posing and drawing need beyond MANO's own arrays.
RIG = ("axes", "limits", "J", "tips", "wrist_ring")


def with_rig(arrays: HandArrays) -> HandArrays:
    """A hand model with joint axes, limits and wrist ring: its own, else the stand-in's.

    The stand-in shares MANO's rest pose and the numbers of the vertices at fingertips and wrist, so
    its axes serve MANO too; joints and ends of the digits are always the model's own.

    Raises: ValueError for a left hand, and when some are there and some are not.
    """
    if arrays.side != "right":
        raise ValueError(f"{arrays.name} is a left hand: sets of right hands are written")
    have = [key for key in RIG if key in arrays.extras]
    if len(have) == len(RIG):
        return arrays
    if have:
        raise ValueError(
            f"{arrays.name} has {have} but not {sorted(set(RIG) - set(have))}: it can be posed "
            "neither by its own joint axes nor by the stand-in's"
        )
    standin = load_hand_arrays("standin")
    tip_ids = [arrays.tip_ids[FINGERS.index(finger)] for finger in CHAIN_FINGERS]
    extras = {key: standin.extras[key] for key in ("axes", "limits", "wrist_ring")}
    extras["J"] = arrays.J_regressor @ arrays.v_template
    extras["tips"] = arrays.v_template[tip_ids]
    return replace(arrays, extras=arrays.extras | extras)


class SceneSource:
    """A hand before a camera, reproducibly.

    Args:
        arrays: the hand.
        settings: what images look like.
        seed: of everything random.
    """

    def __init__(self, arrays: HandArrays, settings: SceneSettings, seed: int) -> None:
        cv2.setNumThreads(1)
        self.arrays, self.settings, self.seed = with_rig(arrays), settings, seed
        self._renderers: dict[str, SceneRenderer] = {}

    def renderer(self, split: str) -> SceneRenderer:
        """The renderer of a split: disjoint poses, shapes and backdrops."""
        if split not in self._renderers:
            made = SceneRenderer(self.arrays, self.settings, self.seed, split)
            self._renderers[split] = made
        return self._renderers[split]

    def rng(self, split: str, stream: int, *numbers: int) -> np.random.Generator:
        """A generator for one purpose and numbers.

        Args:
            split: "train", "val" or "test".
            stream: purpose, 0 .. 255.
            numbers: which recording, frame, ...; the same count of numbers for one purpose.
        """
        # Words that no other generator of the renderer starts with.
        words = [self.seed, SPLITS.index(split), 2**31 + 256 + stream, *numbers, 1]
        return np.random.default_rng(np.random.SeedSequence(words))
