"""FreiHAND, public version 2: crops of 224 px, four backgrounds per hand, lists of labels in
JSON."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handmim.data.label_files import VERSIONS
from handmim.hand.conventions import freihand_vector, regressed_joints
from handmim.hand.poses import sample_betas
from handmim.hand.skeleton import FINGERTIP_VERTS, ROOT_JOINT
from handmim.render.scene import RNG, SceneRenderer, ShadedScene, random_orientation
from synthesis.layout import (
    METRE_DIGITS,
    Labels,
    entries,
    json_list,
    needs_items,
    write_image,
    write_text,
)
from synthesis.scenes import SceneSource

SPLITS = {"training": "train", "evaluation": "test"}
LISTS = {"K": None, "mano": None, "scale": METRE_DIGITS, "verts": METRE_DIGITS, "xyz": METRE_DIGITS}
HAND, BACKDROP = 0, 1  # purposes of randomness


def green_screen(rng: RNG, size: int) -> NDArray[np.float32]:
    """[S, S, 3] cloth of a saturated green, unevenly lit."""
    green = np.array([0.12, 0.52, 0.22]) * rng.uniform(0.8, 1.2) + rng.normal(0, 0.02, 3)
    x, y = np.float32(np.arange(size) / size), np.float32(np.arange(size)[:, None] / size)
    light = 1 + rng.uniform(-0.25, 0.25) * (x - 0.5) + rng.uniform(-0.25, 0.25) * (y - 0.5)
    folds = 1 + 0.03 * np.sin(rng.uniform(4, 14) * (x + rng.normal() * y) + rng.uniform(0, 6))
    return np.clip(green * (light * folds)[..., None], 0, 1).astype(np.float32)


class FreiHandLayout:
    """FreiHAND's files.

    Args:
        num: unique training samples; images are four times as many.
        num_eval: evaluation samples, each before a green screen or in a room; their truth is
            written too, as the later archive has it.
    """

    side_multiple = 1

    def __init__(self, num: int, num_eval: int) -> None:
        needs_items(num, num_eval, 10**8 // len(VERSIONS), "freihand")
        self.counts = {"training": num, "evaluation": num_eval}
        self.images_per_item = {"training": len(VERSIONS), "evaluation": 1}

    def files(self) -> Iterator[str]:
        """Every file below the root, relative to it."""
        for part, num in self.counts.items():
            yield from (f"{part}_{name}.json" for name in LISTS)
            for image_id in range(num * self.images_per_item[part]):
                yield f"{part}/rgb/{image_id:08d}.jpg"
        yield from (f"training/mask/{i:08d}.jpg" for i in range(self.counts["training"]))

    def write(self, source: SceneSource, root: Path, part: str, index: int) -> Labels:
        """Images of one hand before all its backgrounds, its mask and its labels."""
        split = SPLITS[part]
        renderer, rng = source.renderer(split), source.rng(split, HAND, index)
        rotation = random_orientation(source.settings, rng)
        rotmats = np.concatenate([rotation[None], renderer.fingers(index)])
        betas = sample_betas(1, 10, rng)[0]
        scene = renderer.shade(rotmats, betas, rng)
        lens = rng.bit_generator.state
        mask: NDArray[np.bool_] | None = None
        for version in range(self.images_per_item[part]):
            rng.bit_generator.state = lens  # hand, camera, light and lens stay; the backdrop goes
            other = source.rng(split, BACKDROP, index, version)
            on_green = version == 0 if part == "training" else other.random() < 0.5
            backdrop = self._backdrop(renderer, other, on_green)
            image, mask = renderer.finish(scene, backdrop, rng)
            image_id = index + version * self.counts[part]
            write_image(root / part / "rgb" / f"{image_id:08d}.jpg", image)
        if part == "training" and mask is not None:
            grey = np.repeat(mask[..., None].astype(np.uint8) * np.uint8(255), 3, axis=2)
            write_image(root / part / "mask" / f"{index:08d}.jpg", grey)
        return self._labels(source, scene, rotmats, betas)

    @staticmethod
    def _backdrop(renderer: SceneRenderer, rng: RNG, on_green: bool) -> NDArray[np.float32]:
        size = renderer.settings.image_px
        return green_screen(rng, size) if on_green else renderer.backdrops.crop(rng, size)

    @staticmethod
    def _labels(
        source: SceneSource,
        scene: ShadedScene,
        rotmats: NDArray[np.floating],
        betas: NDArray[np.floating],
    ) -> Labels:
        arrays, verts = source.arrays, scene.verts_cam_m
        xyz = regressed_joints(verts, arrays.J_regressor, FINGERTIP_VERTS["freihand"])
        root_cam_m = xyz[ROOT_JOINT]
        vector = freihand_vector(rotmats, betas, root_cam_m, scene.K_px, arrays.hands_mean)
        scale = np.array(np.linalg.norm(xyz[9] - xyz[10]))
        return {"K": scene.K_px, "mano": vector[None], "scale": scale, "verts": verts, "xyz": xyz}

    def assemble(self, root: Path, blocks: Callable[[str], Iterator[Labels]], temp: Path) -> None:
        """Write the ten lists."""
        for part in self.counts:
            for name, digits in LISTS.items():
                text = json_list(entries(blocks(part), name), digits)
                write_text(root / f"{part}_{name}.json", text, temp)
