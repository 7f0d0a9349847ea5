"""The quick maker of pixels against the plain one, on the same plan."""

import pickle

import cv2
import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import Dataset

from handmim.data.loader import collate_crops
from handmim.data.pixels import ColourJitter, PlannedCrops
from handmim.data.views import MaskSampler, ViewMaker
from handmim.engine.loader import PrefetchingLoader
from handmim.types import CropBatch, CropSample, PretrainBatch, StepInfo

INFO = StepInfo(0, 1)
CPU = torch.device("cpu")
STILL = {"jitter_prob": 0.0, "grey_prob": 0.0, "blur_prob": 0.0}
GEOMETRY = {
    "scale": (0.5, 1.3),
    "rotation_deg": 60.0,
    "full_rotation_prob": 0.3,
    "aspect": 0.15,
    "flip_prob": 0.5,
    "shift_ndc": 0.5,
    "shared_full_rotation_prob": 0.5,
}
LATER = {"blur_prob": 0.4, "solarise_prob": 0.3}
BUSY = ColourJitter(**LATER)
CASES = {
    "default": ({}, ColourJitter()),
    "colours": ({}, BUSY),
    "reflection": (GEOMETRY, ColourJitter(**STILL)),
    "zeros": ({**GEOMETRY, "padding": "zeros"}, ColourJitter(**STILL)),
    "border": ({**GEOMETRY, "padding": "border"}, ColourJitter(**STILL)),
    "warped": ({**GEOMETRY, "warp_ndc": 0.1}, ColourJitter(**STILL)),
    "some": ({}, ColourJitter(apply_prob=0.5)),
    "none": ({}, ColourJitter(apply_prob=0.0)),
    "noise": ({}, ColourJitter(**STILL, noise_prob=0.5)),
    "later": ({"colour_later": LATER, "num_views": 3}, ColourJitter(blur_prob=1.0)),
    "local": ({"num_local": 3, "local_px": 16, "keep_clean": True, "colour_later": LATER}, BUSY),
    "partners": ({"partner_prob": 0.5, "num_views": 3, **GEOMETRY}, BUSY),
}


def crops(b: int = 10, side: int = 56) -> CropBatch:
    """Images with edges and fine grain, some of them bright, some dark."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(b):
        image = np.full((side, side, 3), rng.integers(30, 220, 3), np.uint8)
        for _disc in range(4):
            centre, radius = rng.integers(0, side, 2), int(rng.integers(4, side // 2))
            fill = [int(c) for c in rng.integers(0, 256, 3)]
            cv2.circle(image, [int(c) for c in centre], radius, fill, -1)
        grain = rng.normal(0, 4.0, image.shape)
        images.append((cv2.GaussianBlur(image, (0, 0), 0.7) + grain).clip(0, 255).astype("u1"))
    stack = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return CropBatch(stack, partner=stack.flip(0), group=torch.arange(b))


def maker(colour: ColourJitter, **kwargs: object) -> ViewMaker:
    return ViewMaker(view_px=48, patch_px=8, masks=MaskSampler(), colour=colour, **kwargs)


def both(make: ViewMaker, batch: CropBatch, seed: int = 3) -> tuple[PretrainBatch, PretrainBatch]:
    """Plain, quick."""
    made = []
    for place in ("device", "cpu"):
        make.augment_on = place
        made.append(make(batch, torch.Generator().manual_seed(seed), INFO))
    return made[0], made[1]


def grey_levels_apart(a: Tensor, b: Tensor) -> Tensor:
    return 255 * (a - b).abs().flatten()


@pytest.mark.parametrize("case", list(CASES))
def test_both_makers_make_the_same_pixels(case: str):
    settings, colour = CASES[case]
    plain, quick = both(maker(colour, **settings), crops())
    for name, a, b in zip(plain._fields, plain, quick, strict=True):
        if name not in ("views", "clean_views", "local_views"):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, name
        elif a is not None:
            assert a.dtype == b.dtype == torch.float32
            assert a.shape == b.shape
            apart = grey_levels_apart(a, b)
            # Colours are stretched at most (1.4 brightness x 1.4 contrast) about twofold after
            # the first rounding, and turned in hue; kernels of blurs round to 1/256 or so.
            assert apart.mean() < 0.45
            assert apart.quantile(0.999) < 4  # OpenCV 4: 5 bits of weights; 5: 1.4
            assert apart.max() < 8


def test_geometry_alone_is_one_rounding_off():
    for settings in (GEOMETRY, {**GEOMETRY, "warp_ndc": 0.1}):
        plain, quick = both(maker(ColourJitter(**STILL), **settings), crops())
        apart = grey_levels_apart(plain.views, quick.views)
        assert apart.mean() < 0.35  # of a rounding: 0.25
        assert apart.max() < 6  # versions of OpenCV whose weights are of 5 bits


def test_the_pivot_of_contrast_is_the_mean_luma_of_the_view():
    # Half black, half white, seen half: where contrast turns about another mean, all levels shift.
    image = torch.zeros(6, 3, 64, 64, dtype=torch.uint8)
    image[:, :, :, 20:] = 180
    strong = ColourJitter(
        brightness=0.0, contrast=1.0, saturation=0.0, hue_deg=0.0, jitter_prob=1.0, grey_prob=0.0,
        blur_prob=0.0,
    )  # fmt: skip
    plain, quick = both(maker(strong, scale=(0.3, 0.5), shift_ndc=0.5), CropBatch(image))
    assert plain.views.flatten(2).mean(dim=2).std() > 0.05
    assert grey_levels_apart(plain.views, quick.views).mean() < 0.4


def test_who_makes_pixels_and_what_the_host_does_for_it():
    batch, g = crops(4), torch.Generator()
    cuda = torch.device("cuda")
    for place, device, is_host in (
        ("auto", CPU, True), ("auto", cuda, False), ("cpu", cuda, True), ("device", CPU, False),
    ):  # fmt: skip
        make = maker(BUSY, augment_on=place)
        early = make.host_part(device)(batch, g.manual_seed(0), INFO)
        if is_host:
            assert early.views.dtype == torch.uint8
        else:
            assert isinstance(early, PlannedCrops)
        late = make(early, g.manual_seed(1), INFO)  # draws nothing more
        once = make(batch, g.manual_seed(0), INFO)
        if place == "auto" and device == cuda:
            make.augment_on = "device"
            once = make(batch, g.manual_seed(0), INFO)
        elif place == "cpu":
            assert torch.equal(once.is_masked, late.is_masked)
        assert torch.equal(once.views, late.views)
        again = pickle.loads(pickle.dumps(make.host_part(device)))  # noqa: S301  loaders do this
        assert type(again(batch, g.manual_seed(0), INFO)) is type(early)


def test_memory_order_of_crops_does_not_matter():
    batch = crops()
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    other = CropBatch(batch.image.contiguous(), batch.partner.contiguous(), batch.group)
    for place in ("cpu", "device"):
        make = maker(BUSY, partner_prob=0.5, augment_on=place)
        a, b = (make(x, torch.Generator().manual_seed(0), INFO).views for x in (batch, other))
        assert torch.equal(a, b)
    assert torch.equal(batch.image, crops().image), "crops stay as they are"


@pytest.mark.parametrize("settings", [{}, {"warp_ndc": 0.1, "partner_prob": 0.5}])
def test_pixels_are_made_without_asking_the_device_for_a_number(settings):
    # On the meta device there are none, and whatever would wait for one raises.
    colour = ColourJitter(noise_prob=0.5, blur_prob=0.5, solarise_prob=0.5, apply_prob=0.7)
    make = maker(colour, num_local=2, local_px=16, colour_later=LATER, keep_clean=True, **settings)
    planned = make.draw(crops(4), torch.Generator().manual_seed(0), INFO)
    there = move_data_to_device(planned, torch.device("meta"))
    assert there.views.colours[0].blur_radius == planned.views.colours[0].blur_radius
    views = make(there, torch.Generator(), INFO)
    assert views.views.device.type == views.local_views.device.type == "meta"
    assert views.views.shape == views.clean_views.shape == (4, 2, 3, 48, 48)
    assert views.num_masked == planned.fields["num_masked"]


class Images(Dataset):
    def __init__(self) -> None:
        self.image = crops(6).image.permute(0, 2, 3, 1).numpy()

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> CropSample:
        return CropSample(self.image[index], str(index), partner=self.image[-1 - index])


@pytest.mark.parametrize("place", ["cpu", "device"])
def test_views_do_not_depend_on_the_number_of_workers(place: str):
    make = maker(BUSY, augment_on=place, partner_prob=0.5, num_local=2, local_px=16)
    fabric = Fabric(accelerator="cpu", devices=1)
    made = []
    for num_workers in (0, 2):
        sizes = {"batch_size": 4, "total_steps": 9, "num_workers": num_workers}
        g = torch.Generator()
        with PrefetchingLoader(fabric, Images(), collate_crops, make, **sizes) as loader:
            batches = [loader.batch_of(step) for step in (3, 4, 5)]
        made.append([make(batch, g, StepInfo(0, 9)) for batch in batches])
    for one, other in zip(*made, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    assert len(made[0]) == 3
    assert not torch.equal(made[0][0].is_masked, made[0][1].is_masked)
