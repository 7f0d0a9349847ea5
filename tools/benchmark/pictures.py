"""Photographs to measure readers with: rendered hands as JPEGs of a given mean size."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.hand.io import load_hand_arrays
from handmim.render.scene import SceneRenderer, SceneSettings

QUALITY = 92
KIB = 1024
STRONGEST = 40.0  # grain, in grey levels


def write_jpegs(
    folder: Path, hand: str | Path, num: int, size_wh: tuple[int, int], mean_kib: float
) -> list[Path]:
    """Render hands, add as much grain as makes their files as large as photographs', and write
    them.

    Args:
        folder: that they go to.
        hand: file of the hand model.
        num: pictures.
        size_wh: width and height in pixels.
        mean_kib: wanted mean size of a file; what no or the strongest grain gives is accepted.
    """
    width, height = size_wh
    side = min(width, height)
    scene = SceneRenderer(load_hand_arrays(hand), SceneSettings(image_px=side), 0, "train")
    top = (max(width, height) - side) // 2
    rest = max(width, height) - side - top
    pads = (0, 0, top, rest) if width > height else (top, rest, 0, 0)
    rendered = [
        cv2.copyMakeBorder(scene.render(i).image, *pads, cv2.BORDER_REFLECT) for i in range(num)
    ]
    files = _files(rendered, _grain(rendered, mean_kib * KIB))
    paths = [folder / f"{width}x{height}_{i:03d}.jpg" for i in range(num)]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    return paths


def _files(pictures: Sequence[NDArray[np.uint8]], grain: float) -> list[bytes]:
    rng = np.random.default_rng(0)
    files = []
    for picture in pictures:
        noise = cv2.GaussianBlur(rng.normal(0, grain, picture.shape), (0, 0), 0.8)
        noisy = (picture + noise).round().clip(0, 255).astype(np.uint8)
        quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        files.append(cv2.imencode(".jpg", noisy[..., ::-1], quality)[1].tobytes())
    return files


def _grain(pictures: Sequence[NDArray[np.uint8]], wanted: float) -> float:
    """Deviation of noise with which the first few files are this large, by halving."""
    low, high = 0.0, STRONGEST
    for _ in range(8):
        middle = (low + high) / 2
        small = np.mean([len(file) for file in _files(pictures[:6], middle)]) < wanted
        low, high = (middle, high) if small else (low, middle)
    return low
