"""Pixels and colours of planned views: in torch for a whole batch on any device, or in OpenCV image
by image, which is quicker on a CPU and ends in uint8: values may differ by a few of 255.

Brightness, contrast, saturation, hue and grey are affine in RGB, so they are composed into one 3 x
4 map per image. Hue is a rotation in the chroma plane (YIQ), not a shift of HSV angles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric.utilities import move_data_to_device
from numpy.typing import NDArray
from torch import Tensor

from handmim.geometry.crop import pixels_in_source, px_from_px
from handmim.types import CropBatch, PretrainBatch
from handmim.utils.arguments import above, shares

Images = NDArray[np.uint8]  # [..., H, W, 3] RGB

PADDINGS = {
    "reflection": cv2.BORDER_REFLECT,
    "zeros": cv2.BORDER_CONSTANT,
    "border": cv2.BORDER_REPLICATE,
}
_IDENTITY = np.eye(3, dtype=np.float32)
_SOLARISED = np.minimum(np.arange(256), 255 - np.arange(256)).astype(np.uint8)
LUMA = (0.299, 0.587, 0.114)
_YIQ_FROM_RGB = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
_RGB_FROM_YIQ = torch.linalg.inv(torch.tensor(_YIQ_FROM_RGB)).tolist()


class ColourPlan(NamedTuple):
    """Random colour changes of P images, of which n change. No field has to be read on the host to
    be used on a device."""

    rows: Tensor | None  # [n] int64 the images that change; None is all P in order
    linear: Tensor  # [n, 3, 3] rgb' = linear rgb + lift * mean luma of the image
    lift: Tensor  # [n]
    blur_rows: Tensor  # [m] int64 of the n: blurred images
    blur_sigma_px: Tensor  # [m]
    blur_radius: int  # of the kernels, in pixels
    solar_rows: Tensor  # [s] int64 of the n: solarised images
    noise_rows: Tensor  # [k] int64 of the n: images with noise
    noise: Tensor  # [k, 3, H, W]


@lru_cache
def _luma(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(LUMA, dtype=dtype, device=device)  # kept: copying it would wait


def colour_maps(
    brightness: Tensor, contrast: Tensor, saturation: Tensor, hue_rad: Tensor
) -> tuple[Tensor, Tensor]:
    """Compose [B] jitters, in this order, into rgb' = linear rgb + lift * mean luma: [B, 3, 3] and
    [B]. Factors of 1 change nothing; hue rotates the chroma plane."""
    b = len(brightness)
    eye = torch.eye(3, dtype=brightness.dtype, device=brightness.device).expand(b, 3, 3)
    grey = brightness.new_tensor(LUMA).expand(3, 3)
    saturate = saturation[:, None, None] * eye + (1 - saturation)[:, None, None] * grey
    yiq = brightness.new_tensor(_YIQ_FROM_RGB)
    cos, sin = hue_rad.cos(), hue_rad.sin()
    rotation = torch.zeros(b, 3, 3, dtype=brightness.dtype, device=brightness.device)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1], rotation[:, 1, 2], rotation[:, 2, 1], rotation[:, 2, 2] = cos, -sin, sin, cos
    hue = brightness.new_tensor(_RGB_FROM_YIQ) @ rotation @ yiq
    chroma = hue @ saturate  # grey is a fixed point, so the lift below passes unchanged
    return chroma * (brightness * contrast)[:, None, None], (1 - contrast) * brightness


def gaussian_blur(image: Tensor, sigma_px: Tensor, radius: int) -> Tensor:
    """Blur every image of [B, C, H, W] by its own sigma [B] in pixels, 0 is no blur, with kernels
    of this half width."""
    b, c = image.shape[:2]
    offset = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (offset / sigma_px.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(c, dim=0)  # [B*C, 2r+1]
    x = F.pad(image.reshape(1, b * c, *image.shape[2:]), (radius,) * 4, mode="reflect")
    x = F.conv2d(x, kernel[:, None, None, :], groups=b * c)
    x = F.conv2d(x, kernel[:, None, :, None], groups=b * c)
    return x.reshape(image.shape)


@dataclass(kw_only=True, eq=False)
class ColourJitter:
    """Random photometric changes, drawn per image from an explicit generator."""

    brightness: float = 0.4  # factors are drawn from 1 +- brightness, contrast, saturation
    contrast: float = 0.4
    saturation: float = 0.2
    hue_deg: float = 36.0  # rotation of the chroma plane, +- this
    jitter_prob: float = 0.8  # of all four together
    grey_prob: float = 0.2
    blur_prob: float = 0.1
    blur_sigma_px: float = 2.0  # highest, in pixels of the view
    solarise_prob: float = 0.0
    apply_prob: float = 1.0  # share of images that are changed at all
    noise_prob: float = 0.0  # each value gets its own Gaussian noise, last of all
    noise_std: float = 0.05  # highest; each image's deviation is drawn from 0 to this

    def __post_init__(self) -> None:
        shares(brightness=self.brightness, contrast=self.contrast, noise_prob=self.noise_prob)
        above(0, noise_std=self.noise_std)

    def draw(
        self, num: int, size_hw: tuple[int, int], generator: torch.Generator
    ) -> ColourPlan | None:
        """Changes of `num` images of one size; None where nothing changes."""
        rows: Tensor | None = None
        if self.apply_prob < 1.0:
            rows = (torch.rand(num, generator=generator) < self.apply_prob).nonzero().squeeze(1)
            num = len(rows)
            if not num:
                return None
        u = torch.rand(num, 9, generator=generator)
        on = (u[:, 0] < self.jitter_prob).float()
        signed = 2 * u - 1
        linear, lift = colour_maps(
            1 + on * self.brightness * signed[:, 1],
            1 + on * self.contrast * signed[:, 2],
            (1 + on * self.saturation * signed[:, 3]) * (u[:, 5] >= self.grey_prob),
            on * math.radians(self.hue_deg) * signed[:, 4],
        )
        blurred = (u[:, 6] < self.blur_prob).nonzero().squeeze(1)
        sigma = 0.1 + u[blurred, 7] * (self.blur_sigma_px - 0.1)
        radius = max(1, math.ceil(2.5 * max(sigma.tolist(), default=0.0)))
        solarised = (u[:, 8] < self.solarise_prob).nonzero().squeeze(1)
        noise_rows, noise = torch.zeros(0, dtype=torch.long), torch.zeros(0, 3, *size_hw)
        if self.noise_prob > 0:
            v = torch.rand(num, 2, generator=generator)
            noise_rows = (v[:, 0] < self.noise_prob).nonzero().squeeze(1)
            noise = torch.randn(len(noise_rows), 3, *size_hw, generator=generator)
            noise = noise * (self.noise_std * v[noise_rows, 1])[:, None, None, None]
        return ColourPlan(rows, linear, lift, blurred, sigma, radius, solarised, noise_rows, noise)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """[B, 3, H, W] in [0, 1] to the same; randomness is drawn on the CPU on any device."""
        height, width = image.shape[-2:]
        plan = self.draw(len(image), (height, width), generator)
        return coloured(image, move_data_to_device(plan, image.device))


def coloured(image: Tensor, plan: ColourPlan | None) -> Tensor:
    """[P, 3, H, W] in [0, 1] changed by a plan on the same device; the input is not modified."""
    if plan is None:
        return image
    part = image if plan.rows is None else image[plan.rows]
    luma = (part.mean(dim=(-2, -1)) * _luma(image.device, image.dtype)).sum(dim=1)
    constant = (plan.lift * luma)[:, None, None].expand(-1, 3, 1)
    flat = torch.baddbmm(constant, plan.linear, part.flatten(2))
    out = flat.clamp_(0, 1).reshape(part.shape)
    if len(plan.blur_rows):
        blurred = gaussian_blur(out[plan.blur_rows], plan.blur_sigma_px, plan.blur_radius)
        out[plan.blur_rows] = blurred
    if len(plan.solar_rows):
        bright = out[plan.solar_rows]
        out[plan.solar_rows] = torch.where(bright > 0.5, 1 - bright, bright)
    if len(plan.noise_rows):
        out[plan.noise_rows] = (out[plan.noise_rows] + plan.noise).clamp(0, 1)
    return out if plan.rows is None else image.index_copy(0, plan.rows, out)


class PlannedViews(NamedTuple):
    """V views of each of B crops before they are cut."""

    crop_from_view: Tensor  # [B, V, 2, 3]
    source: Tensor  # [B V] int64 images that views are cut from, of the crops, then their partners
    side_px: int
    displacement_ndc: Tensor | None  # [B, V, 2, c, c]
    # of the B V views; or of the B first and the B (V - 1) later ones
    colours: tuple[ColourPlan | None, ...]
    padding: str  # what lies outside the image, a key of `PADDINGS`
    keep_clean: bool  # also keep the views before colour augmentation


class PlannedCrops(NamedTuple):
    """Crops and all random choices for their views; partners only where one is used."""

    crops: CropBatch
    views: PlannedViews
    local: PlannedViews | None
    fields: dict[str, Any]  # of `PretrainBatch`, which are known without pixels


def sample_views(
    source: Tensor,
    source_from_view: Tensor,
    view_px: int,
    control: Tensor | None = None,
    padding: str = "reflection",
) -> Tensor:
    """Cut a view out of each image, bilinearly: [P, 3, S, S] by maps [P, 2, 3] and warps [P, 2, c,
    c] -> [P, 3, view_px, view_px]; `padding` is a key of `PADDINGS`."""
    at_ndc = pixels_in_source(source_from_view, view_px, control).to(source.dtype)
    return F.grid_sample(source, at_ndc, padding_mode=padding, align_corners=False)


def make_views(plan: PlannedCrops, *, on_cpu: bool) -> PretrainBatch:
    """Planned views: in OpenCV as uint8 of 0 to 255, channels last in memory, or in torch on the
    device of the plan as float in [0, 1], where nothing waits for the device."""
    image, partner = plan.crops.image, plan.crops.partner
    stored = image if partner is None else torch.cat([image, partner])
    if on_cpu:
        pixels = np.ascontiguousarray(stored.permute(0, 2, 3, 1).numpy())
        cut = partial(_opencv_views, [cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA) for rgb in pixels])
    else:
        cut = partial(_torch_views, stored.float().div_(255.0))
    views, clean_views = cut(plan.views)
    local = None if plan.local is None else cut(plan.local)[0]
    return PretrainBatch(views, clean_views=clean_views, local_views=local, **plan.fields)


def _torch_views(images: Tensor, plan: PlannedViews) -> tuple[Tensor, Tensor | None]:
    maps, warps = plan.crop_from_view, plan.displacement_ndc
    if len(images) == len(maps):  # no partners; quicker than by index
        source = images.repeat_interleave(maps.shape[1], dim=0)
    else:
        source = images.index_select(0, plan.source)
    warps = None if warps is None else warps.flatten(0, 1)
    clean = sample_views(source, maps.flatten(0, 1), plan.side_px, warps, padding=plan.padding)
    clean = clean.unflatten(0, maps.shape[:2])
    parts = [clean] if len(plan.colours) == 1 else [clean[:, :1], clean[:, 1:]]
    done = [
        coloured(part.flatten(0, 1), colours).unflatten(0, part.shape[:2])
        for part, colours in zip(parts, plan.colours, strict=True)
    ]
    views = done[0] if len(done) == 1 else torch.cat(done, dim=1)
    return views, clean if plan.keep_clean else None


def _opencv_views(images: list[Images], plan: PlannedViews) -> tuple[Tensor, Tensor | None]:
    shape = plan.crop_from_view.shape[:2]
    views = cut_views([images[i] for i in plan.source.tolist()], plan)
    clean = views.copy() if plan.keep_clean else views
    rows = views.reshape(*shape, *views.shape[1:])
    parts = [rows] if len(plan.colours) == 1 else [rows[:, :1], rows[:, 1:]]
    for part, colours in zip(parts, plan.colours, strict=True):
        colour_images([view for row in part for view in row], colours)
    out = [torch.from_numpy(x).unflatten(0, shape).movedim(-1, -3) for x in (views, clean)]
    return out[0], out[1] if plan.keep_clean else None


def as_float(batch: PretrainBatch) -> PretrainBatch:
    """The same batch with its uint8 images in [0, 1]."""
    fields = {name: getattr(batch, name) for name in ("views", "clean_views", "local_views")}
    return batch._replace(**{k: x.float().div_(255.0) for k, x in fields.items() if x is not None})


def cut_views(sources: Sequence[Images], plan: PlannedViews) -> Images:
    """`sample_views` in OpenCV of one square image for each view: [B V, side_px, side_px, 3]. They
    have a fourth channel: four are warped more than twice as quickly as three."""
    side, border, side_px = sources[0].shape[0], PADDINGS[plan.padding], plan.side_px
    out = np.empty((len(sources), side_px, side_px, 3), np.uint8)
    four = np.empty((side_px, side_px, 4), np.uint8)
    if plan.displacement_ndc is not None:
        at_ndc = pixels_in_source(plan.crop_from_view, side_px, plan.displacement_ndc)
        at_px = ((at_ndc.flatten(0, 1) + 1) * (side / 2) - 0.5).numpy()
        for source, view, at in zip(sources, out, at_px, strict=True):
            x, y = np.ascontiguousarray(at[..., 0]), np.ascontiguousarray(at[..., 1])
            cv2.remap(source, x, y, cv2.INTER_LINEAR, dst=four, borderMode=border)
            cv2.cvtColor(four, cv2.COLOR_RGBA2RGB, dst=view)
        return out
    maps = px_from_px(plan.crop_from_view.double(), side, side_px)
    maps[..., 2] += (maps[..., :2].sum(dim=-1) - 1) / 2  # OpenCV counts from a pixel's centre
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = side_px, side_px
    for source, view, m in zip(sources, out, maps.flatten(0, 1).numpy(), strict=True):
        cv2.warpAffine(source, m, size, dst=four, flags=flags, borderMode=border)
        cv2.cvtColor(four, cv2.COLOR_RGBA2RGB, dst=view)
    return out


def colour_images(images: list[Images], plan: ColourPlan | None) -> None:
    """Change the colours of images by a plan, in place."""
    if plan is None:
        return
    if plan.rows is not None:
        images = [images[i] for i in plan.rows.tolist()]
    for image, m, lift in zip(images, plan.linear.numpy(), plan.lift.tolist(), strict=True):
        if lift == 0 and np.abs(m - _IDENTITY).max() < 1e-6:
            continue
        constant = np.full((3, 1), lift * np.dot(LUMA, cv2.mean(image)[:3]), np.float32)
        cv2.transform(image, np.hstack([m, constant]), dst=image)
    for row, sigma in zip(plan.blur_rows.tolist(), plan.blur_sigma_px.tolist(), strict=True):
        radius = min(plan.blur_radius, int(np.ceil(4 * sigma)))  # weights beyond are nothing
        kernel = cv2.getGaussianKernel(2 * radius + 1, sigma)
        image = images[row]
        cv2.sepFilter2D(image, -1, kernel, kernel, dst=image, borderType=cv2.BORDER_REFLECT_101)
    for row in plan.solar_rows.tolist():
        cv2.LUT(images[row], _SOLARISED, dst=images[row])
    for row, noise in zip(plan.noise_rows.tolist(), plan.noise, strict=True):
        noisy = images[row] + 255 * noise.permute(1, 2, 0).numpy()
        images[row][:] = noisy.round().clip(0, 255)


def mix_amplitudes(image: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Images [B, 3, S, S] in [0, 1] whose amplitude spectra move by a share [B] in [0, 1] towards
    those of others; phases and means stay."""
    spectrum = torch.fft.rfft2(image)
    amplitude, wanted = spectrum.abs(), torch.fft.rfft2(other).abs()
    mixed = torch.lerp(amplitude, wanted, share.to(image)[:, None, None, None])
    gain = mixed / amplitude.clamp(min=1e-6)
    gain[..., 0, 0] = 1.0
    return torch.fft.irfft2(spectrum * gain, s=image.shape[-2:]).clamp(0, 1)
