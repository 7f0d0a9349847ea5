"""Reading images and making two views of each, against Pillow and torchvision as iBOT composes
them, per core; and the whole loader in wall time."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmark.core import Bench, Row, Work, compared
from benchmark.references.pil_views import PilViews
from handmim.data.crops import CropFolder, Crops
from handmim.data.loader import collate_crops
from handmim.data.packed import PackedCrops
from handmim.data.packing import CODINGS, pack_crops
from handmim.data.pixels import ColourJitter, as_float
from handmim.data.views import MaskSampler, ViewMaker
from handmim.engine.loader import PrefetchingLoader
from handmim.hand.io import load_hand_arrays
from handmim.images.decode import decode_image, simplejpeg
from handmim.render.scene import SceneRenderer, SceneSettings
from handmim.types import PretrainBatch, StepInfo
from handmim.utils.seed import step_generator
from handmim.utils.timer import wait_for

QUALITY = 92
STRONGEST = 40.0  # grain, in grey levels
INFO = StepInfo(0, 1)
WARM = 2  # steps of the loader before the clock starts
PIL, FLOAT, UINT8 = "PIL and torchvision", "handmim, float", "handmim, uint8"
ROTATED, WARP = "handmim, uint8, rotated", "handmim, colours left to the device"
UPRIGHT = {"rotation_deg": 0.0, "full_rotation_prob": 0.0, "shared_rotation_deg": 0.0}


def write_jpegs(
    folder: Path, hand: str | Path, num: int, size_wh: tuple[int, int], mean_kib: float
) -> list[Path]:
    """Write `num` rendered hands as JPEGs, with as much grain as makes their mean size `mean_kib`;
    what no or the strongest grain gives is accepted."""
    width, height = size_wh
    side = min(width, height)
    scene = SceneRenderer(load_hand_arrays(hand), SceneSettings(image_px=side), 0, "train")
    top = (max(width, height) - side) // 2
    rest = max(width, height) - side - top
    pads = (0, 0, top, rest) if width > height else (top, rest, 0, 0)
    rendered = [
        cv2.copyMakeBorder(scene.render(i).image, *pads, cv2.BORDER_REFLECT) for i in range(num)
    ]
    files = _encoded(rendered, _grain(rendered, mean_kib * 1024))
    paths = [folder / f"{width}x{height}_{i:03d}.jpg" for i in range(num)]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    return paths


def _encoded(images: Sequence[NDArray[np.uint8]], grain: float) -> list[bytes]:
    rng = np.random.default_rng(0)
    files = []
    for image in images:
        noise = cv2.GaussianBlur(rng.normal(0, grain, image.shape), (0, 0), 0.8)
        noisy = (image + noise).round().clip(0, 255).astype(np.uint8)
        quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        files.append(cv2.imencode(".jpg", noisy[..., ::-1], quality)[1].tobytes())
    return files


def _grain(images: Sequence[NDArray[np.uint8]], num_bytes: float) -> float:
    """Deviation of noise with which the first few files are this large, by halving."""
    low, high = 0.0, STRONGEST
    for _ in range(8):
        middle = (low + high) / 2
        small = np.mean([len(file) for file in _encoded(images[:6], middle)]) < num_bytes
        low, high = (middle, high) if small else (low, middle)
    return low


def like_ibot(view_px: int, *, rotated: bool = False, coloured: bool = True) -> ViewMaker:
    """Views with the reference's probabilities and strengths; `rotated` as ours are by default."""
    shared = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue_deg": 36.0}
    shared |= {"apply_prob": float(coloured)}
    return ViewMaker(
        view_px=view_px,
        patch_px=16,
        masks=MaskSampler(masked_share=0.0),  # the reference draws none
        colour=ColourJitter(**shared, blur_prob=1.0),
        colour_later={"blur_prob": 0.1, "solarise_prob": 0.2},
        scale=(0.4, 1.0),  # of the side
        flip_prob=0.5,
        augment_on="cpu",
        **({} if rotated else UPRIGHT),  # type: ignore[arg-type]
    )


def views_of(
    crops: Crops, make: ViewMaker, *, as_floats: bool = False
) -> Callable[[], PretrainBatch]:
    """Work: stored images to a batch of views."""
    number = iter(range(10**9))
    indices = range(len(crops))

    def work() -> PretrainBatch:
        generator = torch.Generator().manual_seed(next(number))
        batch = make.on_host(collate_crops([crops[i] for i in indices]), generator, INFO)
        return as_float(batch) if as_floats else batch

    return work


def decoders(paths: Sequence[Path], crop_px: int) -> dict[str, Work]:
    """Works: all files to pixels, by decoder."""

    def each(read: Callable[[Path], object]) -> Work:
        return lambda: [read(path) for path in paths]

    def by_opencv(path: Path) -> Any:
        raw = np.frombuffer(path.read_bytes(), np.uint8)
        return cv2.cvtColor(cv2.imdecode(raw, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    name = "handmim, OpenCV" if simplejpeg is None else "handmim, simplejpeg"
    return {
        "PIL": each(lambda path: np.asarray(Image.open(path).convert("RGB"))),
        "OpenCV": each(by_opencv),
        name: each(lambda p: decode_image(p.read_bytes(), p)),
        f"{name}, at a crop's size": each(
            lambda path: decode_image(path.read_bytes(), path, crop_px)
        ),
    }


def pil_views(paths: Sequence[Path], view_px: int) -> Callable[[], list[tuple[Tensor, Tensor]]]:
    """Work: the reference on all files."""
    reference = PilViews(view_px)
    return lambda: [reference(path) for path in paths]


def measure(
    bench: Bench,
    *,
    hand: str,
    num: int,
    view_px: int,
    sources: Mapping[str, Mapping[str, Any]],
) -> Iterator[list[Row]]:
    """Cases: decoding, then two views, by kind of file; the device has no part in it.

    More than a few dozens of images at once would measure the memory they go to.
    """
    with tempfile.TemporaryDirectory() as temporary:
        for name, source in sources.items():
            folder = Path(temporary) / name
            folder.mkdir()
            width, height = source["size_wh"]
            paths = write_jpegs(folder, hand, num, (width, height), source["mean_kib"])
            kib = sum(path.stat().st_size for path in paths) / 1024 / num
            files = f"{width}x{height} JPEGs of {kib:.0f} KiB"
            crop_px = source["crop_px"]
            seconds = bench.race(decoders(paths, crop_px))
            common: dict[str, Any] = {"items": num, "unit": "images"}
            common["promised"] = source["promised"]
            yield compared("data", f"decode {files}", seconds, "PIL", **common)
            plain = like_ibot(view_px)
            crops = CropFolder(folder, image_px=crop_px, verify=False)
            works: dict[str, Work] = {
                PIL: pil_views(paths, view_px),
                FLOAT: views_of(crops, plain, as_floats=True),
                UINT8: views_of(crops, plain),
                ROTATED: views_of(crops, like_ibot(view_px, rotated=True)),
                WARP: views_of(crops, like_ibot(view_px, coloured=False)),
            }
            for coding in CODINGS:
                file = Path(temporary) / f"{name}.{coding}"
                pack_crops(folder, file, image_px=crop_px, coding=coding)
                works[f"{UINT8}, packed as {coding}"] = views_of(PackedCrops(file), plain)
            yield compared("data", f"two views of {files}", bench.race(works), PIL, **common)


def load_steps(
    loader: PrefetchingLoader,
    make: ViewMaker,
    num_steps: int,
    batch_size: int,
    consumed_per_s: float | None,
) -> tuple[float, float]:
    """Seconds of `num_steps` batches after the first few, and the share of waiting, for a training
    that consumes so many images per second; None takes as many as come."""
    batches = iter(loader)
    began = waited = 0.0
    for step in range(WARM + num_steps):
        if step == WARM:
            began, waited = time.perf_counter(), loader.waited_s
        started = time.perf_counter()
        make(next(batches), step_generator(0, "prepare", step, 0), INFO)
        wait_for(loader.device)
        if consumed_per_s is not None:
            time.sleep(max(0.0, batch_size / consumed_per_s - time.perf_counter() + started))
    seconds = time.perf_counter() - began
    return seconds, (loader.waited_s - waited) / seconds


def measure_loader(
    bench: Bench,
    *,
    hand: str,
    num: int,
    view_px: int,
    batch_size: int,
    num_steps: int,
    num_workers: Sequence[int],
    augment_on: Sequence[str],
    consumed_per_s: float | None,
) -> Iterator[list[Row]]:
    """A case per device that makes the pixels, a row per number of processes; measured once."""
    fabric = Fabric(accelerator=bench.device.type, devices=1)
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder), hand, num, (224, 224), 16)
        crops = CropFolder(folder, image_px=224, verify=False)
        total = WARM + num_steps
        for where in augment_on:
            make, rows = like_ibot(view_px), []
            make.augment_on = where
            for workers in num_workers:
                loader = PrefetchingLoader(
                    fabric, crops, collate_crops, make,
                    batch_size=batch_size, total_steps=total, num_workers=workers,
                )  # fmt: skip
                seconds, waited = load_steps(loader, make, num_steps, batch_size, consumed_per_s)
                name = f"{workers} processes, waiting {100 * waited:.0f} %"
                rate, ms = num_steps * batch_size / seconds, 1e3 * seconds / num_steps
                rows.append(Row("loader", f"views on {where}", name, ms, per_s=rate, unit="images"))
            yield rows
