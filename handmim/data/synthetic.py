"""Rendered hands with full ground truth: rendered once into a cache, then read by memory map."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch.utils.data import Dataset

from handmim.data.datasets import digest_of
from handmim.data.samples import hand_sample
from handmim.hand.conventions import project_px
from handmim.hand.io import load_hand_arrays
from handmim.render.cache import open_split, read_sample, render_split
from handmim.render.scene import RENDERER_VERSION, SceneSettings
from handmim.types import HandSample
from handmim.utils.arguments import at_least


def cache_name(file_sha256: str, settings: SceneSettings, seed: int) -> str:
    """Folder name that changes with the images: hand file, settings, seed, renderer."""
    facts = [RENDERER_VERSION, file_sha256, settings.plain(), seed]
    if settings.photos_dir is not None:  # other photos make other images
        photos = sorted(p for p in Path(settings.photos_dir).rglob("*") if p.is_file())
        facts.append([[p.name, p.stat().st_size] for p in photos])
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"synthetic-{settings.image_px}px-{digest[:12]}"


class SyntheticHands(Dataset[HandSample]):
    """Rendered hand photographs of one split, "train", "val" or "test": disjoint draws.

    Image i does not depend on `num`, so a larger cache serves smaller sets. What the cache lacks is
    rendered by `num_workers` processes: None takes every core, 0 renders in this one.
    Raises: ValueError for a bad number, split or scene.
    """

    def __init__(
        self,
        hand_path: str | Path,
        split: str,
        num: int,
        cache_dir: str | Path,
        scene: SceneSettings | Mapping[str, Any],
        *,
        seed: int = 0,
        num_workers: int | None = None,
    ) -> None:
        at_least(1, num=num)
        at_least(0, num_workers=num_workers or 0)
        settings = scene if isinstance(scene, SceneSettings) else SceneSettings(**scene)
        arrays = load_hand_arrays(hand_path)
        self.hand_sha256, self.num, self.split = arrays.sha256, num, split
        base = Path(cache_dir) / cache_name(arrays.file_sha256, settings, seed)
        found = base.glob(f"{split}-*/meta.json")
        sizes = [path.parent.name.removeprefix(f"{split}-") for path in found]
        enough = [int(size) for size in sizes if size.isdecimal() and int(size) >= num]
        folder = base / f"{split}-{min(enough, default=num)}"
        if not enough:
            job = {"hand_path": hand_path, "seed": seed, "split": split, "num": num}
            render_split(folder, settings, job, num_workers)
        self.folder = folder
        self.image_px = settings.image_px
        open_split(folder, self.image_px, num)  # a damaged cache ends here, not in mid-run
        self.source = f"{base.name}, part {split}, the first {num}"
        self._maps: dict[str, NDArray[Any]] = {}

    def label_id(self, index: int) -> str:
        """Part and number of an image."""
        return f"{self.split}/{index}"

    def fingerprint(self) -> str:
        """Digest of the settings; images rendered elsewhere may differ in rounding."""
        return digest_of(self.folder.parent.name, self.split)

    def __len__(self) -> int:
        return self.num

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # every process opens its own maps

    def __getitem__(self, index: int) -> HandSample:
        if not 0 <= index < self.num:
            raise IndexError(f"index {index} of {self.num} images")
        if not self._maps:
            self._maps = open_split(self.folder, self.image_px, self.num)
        m = read_sample(self._maps, index, self.folder)
        same = "joints_cam_m", "verts_cam_m", "rotmats", "betas"
        labels: dict[str, Any] = {name: m[name] for name in same}
        labels |= {"K_crop_px": m["K_px"], "kp2d_crop_px": project_px(m["joints_cam_m"], m["K_px"])}
        return hand_sample(m["image"], self.label_id(index), **labels)
