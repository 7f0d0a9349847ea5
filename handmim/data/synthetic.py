"""Rendered hands with full truth: drawn once by several processes into a cache, then read from
memory maps."""

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from handmim.contracts import HandSample
from handmim.hand.arrays import HandArrays, load_hand_arrays
from handmim.render.scene import POSE_BLOCK, RENDERER_VERSION, SceneRenderer, SceneSettings

log = logging.getLogger(__name__)

FIELDS: dict[str, tuple[tuple[int, ...], str]] = {
    "K_px": ((3, 3), "float32"),
    "verts_cam_m": ((778, 3), "float32"),
    "joints_cam_m": ((21, 3), "float32"),
    "rotmats": ((16, 3, 3), "float32"),
    "betas": ((10,), "float32"),
    "transl_m": ((3,), "float32"),
}


def cache_name(hand_sha256: str, settings: SceneSettings, seed: int) -> str:
    """Folder name that changes whenever the pictures would: hand model, settings, seed,
    renderer."""
    facts = [RENDERER_VERSION, hand_sha256, settings.plain(), seed]
    if settings.photos_dir is not None:  # other photos make other pictures
        photos = sorted(p for p in Path(settings.photos_dir).rglob("*") if p.is_file())
        facts.append([[p.name, p.stat().st_size] for p in photos])
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"synthetic-{settings.image_px}px-{digest[:12]}"


def _render_block(renderer: SceneRenderer, maps: dict[str, Any], start: int, stop: int) -> None:
    for i in range(start, stop):
        hand = renderer.render(i)
        maps["image"][i] = hand.image
        for name in FIELDS:
            maps[name][i] = getattr(hand, name)


def _worker(
    arrays: HandArrays, settings: SceneSettings, seed: int, split: str, folder: Path, num: int,
    blocks: Any,
) -> None:  # fmt: skip
    cv2.setNumThreads(1)
    renderer = SceneRenderer(arrays, settings, seed, split)
    maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("image", *FIELDS)}
    while True:
        with blocks.get_lock():
            start = blocks.value
            blocks.value += POSE_BLOCK
        if start >= num:
            break
        _render_block(renderer, maps, start, min(start + POSE_BLOCK, num))
    for array in maps.values():
        array.flush()


def render_cache(
    target: Path, arrays: HandArrays, settings: SceneSettings, seed: int, split: str, num: int,
    num_workers: int,
) -> None:  # fmt: skip
    """Render pictures 0 .. num - 1 of a split into `target`, which appears whole or not at all.

    Raises: PermissionError when the folder cannot be made; RuntimeError when a worker dies.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise PermissionError(
            f"cannot write the cache {target}: {error} (data.cache_dir)"
        ) from error
    began = time.perf_counter()
    log.info("rendering %d %s pictures of %d px into %s", num, split, settings.image_px, target)
    try:
        side = settings.image_px
        shapes = {"image": ((side, side, 3), "uint8"), **FIELDS}
        for name, (shape, dtype) in shapes.items():
            path = partial / f"{name}.npy"
            np.lib.format.open_memmap(path, "w+", np.dtype(dtype), (num, *shape)).flush()
        # One picture here compiles the kernels once, before several processes would do it at the
        # same time.
        SceneRenderer(arrays, settings, seed, split).render(0)
        context = multiprocessing.get_context("spawn")
        blocks = context.Value("q", 0)
        job = (arrays, settings, seed, split, partial, num, blocks)
        workers = [context.Process(target=_worker, args=job) for _ in range(num_workers)]
        if not workers:
            _worker(*job)
        # One thread each, like a loader's worker: the pictures are the parallelism.
        with _single_threaded():
            for worker in workers:
                worker.start()
        last = time.perf_counter()
        while any(worker.is_alive() for worker in workers):
            workers[0].join(timeout=0.5)
            if time.perf_counter() - last > 15:
                last = time.perf_counter()
                done = min(blocks.value, num)
                rate = done / max(last - began, 1e-9)
                log.info("rendered %d of %d, %.0f images/s", done, num, rate)
        if any(worker.exitcode for worker in workers):
            raise RuntimeError(f"a rendering process failed: {[w.exitcode for w in workers]}")
        meta = {"hand": arrays.name, "hand_sha256": arrays.sha256, "split": split, "num": num}
        meta |= {"seed": seed, "renderer": RENDERER_VERSION, "scene": settings.plain()}
        (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        with contextlib.suppress(OSError):  # another process was faster: its pictures are the same
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    seconds = time.perf_counter() - began
    log.info("rendered %d pictures in %.0f s (%.0f images/s)", num, seconds, num / seconds)


@contextlib.contextmanager
def _single_threaded() -> Any:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class SyntheticHands(Dataset[HandSample]):
    """Rendered hand photographs of one split.

    Args:
        hand_path: hand model to draw.
        split: "train", "val" or "test": disjoint draws of pose, shape, light and place.
        num: pictures; picture i does not depend on it, so a larger cache serves smaller sets.
        cache_dir: where pictures are kept; the folder's name holds a hash of everything they depend
            on.
        scene: `SceneSettings` or its fields.
        seed: of the whole set.
        num_workers: processes that render when the cache lacks the pictures; 0 renders in this one.
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
        num_workers: int = 2,
    ) -> None:
        if num < 1:
            raise ValueError(f"num must be >= 1, got {num} (data.num_{split})")
        if num_workers < 0:
            raise ValueError(f"num_workers must be >= 0, got {num_workers} (data.num_workers)")
        settings = scene if isinstance(scene, SceneSettings) else SceneSettings(**scene)
        arrays = load_hand_arrays(hand_path)
        self.hand_sha256, self.num, self.split = arrays.sha256, num, split
        base = Path(cache_dir) / cache_name(arrays.sha256, settings, seed)
        folder = self._find(base, split, num)
        if folder is None:
            folder = base / f"{split}-{num}"
            render_cache(folder, arrays, settings, seed, split, num, num_workers)
        self.folder = folder
        self._maps: dict[str, NDArray[Any]] = {}

    @staticmethod
    def _find(base: Path, split: str, num: int) -> Path | None:
        """The smallest cache that holds at least `num` pictures."""
        have = [p for p in base.glob(f"{split}-*") if (p / "meta.json").is_file()]
        enough = [p for p in have if int(p.name.split("-")[1]) >= num]
        return min(enough, key=lambda p: int(p.name.split("-")[1]), default=None)

    def __len__(self) -> int:
        return self.num

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # every process opens its own maps

    def __getitem__(self, index: int) -> HandSample:
        if not 0 <= index < self.num:
            raise IndexError(f"index {index} of {self.num} pictures")
        if not self._maps:
            names = ("image", *FIELDS)
            self._maps = {n: np.load(self.folder / f"{n}.npy", mmap_mode="r") for n in names}
        m = {name: np.array(values[index]) for name, values in self._maps.items()}
        homogeneous = m["joints_cam_m"] @ m["K_px"].T
        return HandSample(
            image=m["image"],
            sample_id=f"{self.split}/{index}",
            K_crop_px=m["K_px"],
            has_K=True,
            kp2d_crop_px=homogeneous[:, :2] / homogeneous[:, 2:],
            kp2d_valid=np.ones(21, bool),
            joints_cam_m=m["joints_cam_m"],
            joints_valid=np.ones(21, bool),
            verts_cam_m=m["verts_cam_m"],
            has_verts=True,
            rotmats=m["rotmats"],
            betas=m["betas"],
            has_mano=True,
        )
