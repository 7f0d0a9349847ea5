"""Reading pictures and making two views of each, against Pillow and torchvision composed as iBOT
composes them; per core."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from benchmark.pictures import write_jpegs
from benchmark.race import Bench, Row, compared
from benchmark.references.pil_views import PilViews
from handmim.data.colour import ColourJitter
from handmim.data.crops import CropFolder
from handmim.data.loader import collate_crops
from handmim.data.masking import MaskSampler
from handmim.data.packed import CODINGS, PackedCrops
from handmim.data.packing import pack_crops
from handmim.data.pixels import as_float
from handmim.data.views import ViewMaker
from handmim.images.decode import decode_rgb, turbo
from handmim.types import CropSample, PretrainBatch, StepInfo

INFO = StepInfo(0, 1)
PIL, FLOAT, UINT8 = "PIL and torchvision", "handmim, float", "handmim, uint8"
TURNED, WARP = "handmim, uint8, turned", "handmim, colours left to the device"
STILL = {"rotation_deg": 0.0, "full_rotation_prob": 0.0, "shared_rotation_deg": 0.0}


def like_ibot(view_px: int, *, turned: bool = False, coloured: bool = True) -> ViewMaker:
    """Views with the reference's probabilities and strengths; `turned` as ours are by default."""
    shared = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue_deg": 36.0}
    shared |= {"apply_prob": float(coloured)}
    return ViewMaker(
        view_px=view_px,
        patch_px=16,
        masks=MaskSampler(masked_share=0.0),  # the reference draws none
        colour=ColourJitter(**shared, blur_prob=1.0),
        colour_later=ColourJitter(**shared, blur_prob=0.1, solarise_prob=0.2),
        scale=(0.4, 1.0),  # of the side
        flip_prob=0.5,
        augment_on="cpu",
        **({} if turned else STILL),  # type: ignore[arg-type]
    )


def views_of(
    crops: Dataset[CropSample], make: ViewMaker, *, as_floats: bool = False
) -> Callable[[], PretrainBatch]:
    """Work: stored pictures to a batch of views."""
    number = iter(range(10**9))
    places = range(len(crops))  # type: ignore[arg-type]

    def work() -> PretrainBatch:
        generator = torch.Generator().manual_seed(next(number))
        batch = make.on_host(collate_crops([crops[i] for i in places]), generator, INFO)
        return as_float(batch) if as_floats else batch

    return work


def _by_opencv(raw: bytes) -> Any:
    return cv2.cvtColor(
        cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
    )


def decoders(paths: Sequence[Path], crop_px: int) -> dict[str, Callable[[], object]]:
    """Works: all files to pixels, by decoder."""

    def each(read: Callable[[Path], object]) -> Callable[[], object]:
        return lambda: [read(path) for path in paths]

    found: dict[str, Callable[[], object]] = {
        "PIL": each(lambda path: np.asarray(Image.open(path).convert("RGB"))),
        "OpenCV": each(lambda path: _by_opencv(path.read_bytes())),
    }
    name = "handmim, OpenCV" if turbo() is None else "handmim, simplejpeg"
    found[name] = each(lambda path: decode_rgb(path.read_bytes()))
    found[f"{name}, as a crop wants"] = each(lambda path: decode_rgb(path.read_bytes(), crop_px))
    return found


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
    """Cases: decoding, then two views, by kind of file.

    Args:
        bench: where and how long; the device has no part in it.
        hand: file of the hand model, for the pictures.
        num: pictures; more than a few dozens at once would measure the memory they go to.
        view_px: side of the views.
        sources: by name `size_wh`, `mean_kib`, `crop_px` (side of the crops that ours cuts from)
            and `asked`, promised speedups by variant.
    """
    with tempfile.TemporaryDirectory() as place:
        for name, source in sources.items():
            folder = Path(place) / name
            folder.mkdir()
            width, height = source["size_wh"]
            paths = write_jpegs(folder, hand, num, (width, height), source["mean_kib"])
            kib = sum(path.stat().st_size for path in paths) / 1024 / num
            told = f"{width}x{height} JPEGs of {kib:.0f} KiB"
            crop_px, asked = source["crop_px"], source["asked"]
            seconds = bench.race(decoders(paths, crop_px))
            how: dict[str, Any] = {"items": num, "unit": "pictures", "asked": asked}
            yield compared("data", f"decode {told}", seconds, "PIL", **how)
            plain = like_ibot(view_px)
            crops = CropFolder(folder, image_px=crop_px, verify=False)
            works: dict[str, Callable[[], object]] = {
                PIL: pil_views(paths, view_px),
                FLOAT: views_of(crops, plain, as_floats=True),
                UINT8: views_of(crops, plain),
                TURNED: views_of(crops, like_ibot(view_px, turned=True)),
                WARP: views_of(crops, like_ibot(view_px, coloured=False)),
            }
            for coding in CODINGS:
                file = Path(place) / f"{name}.{coding}"
                pack_crops(folder, file, image_px=crop_px, coding=coding)
                works[f"{UINT8}, packed as {coding}"] = views_of(PackedCrops(file), plain)
            seconds = bench.race(works)
            yield compared("data", f"two views of {told}", seconds, PIL, **how)
