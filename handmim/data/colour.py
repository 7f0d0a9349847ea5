"""Photometric augmentation: one colour matrix per image, plus blur, solarisation and noise.

Brightness, contrast, saturation, hue and grey are affine in RGB, so they are composed into one 3 x
4 map per image. Hue is a rotation in the chroma plane (YIQ), not a shift of HSV angles. Drawing
(`ColourPlan`) and applying are separate: `handmim.data.pixels` applies the same plan in OpenCV.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor

from handmim.utils.arguments import above, shares

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
        noise_rows, noise = torch.zeros(0, dtype=torch.long), torch.zeros(0, 3, *size_hw)
        if self.noise_prob > 0:
            v = torch.rand(num, 2, generator=generator)
            noise_rows = (v[:, 0] < self.noise_prob).nonzero().squeeze(1)
            noise = torch.randn(len(noise_rows), 3, *size_hw, generator=generator)
            noise = noise * (self.noise_std * v[noise_rows, 1])[:, None, None, None]
        return ColourPlan(
            rows=rows,
            linear=linear,
            lift=lift,
            blur_rows=blurred,
            blur_sigma_px=sigma,
            blur_radius=max(1, math.ceil(2.5 * max(sigma.tolist(), default=0.0))),
            solar_rows=(u[:, 8] < self.solarise_prob).nonzero().squeeze(1),
            noise_rows=noise_rows,
            noise=noise,
        )

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """[B, 3, H, W] in [0, 1] to the same; randomness is drawn on the CPU on any device."""
        height, width = image.shape[-2:]
        plan = self.draw(len(image), (height, width), generator)
        return coloured(image, move_data_to_device(plan, image.device))


def coloured(image: Tensor, plan: ColourPlan | None) -> Tensor:
    """[P, 3, H, W] in [0, 1] changed by a plan on the same device; the input is not modified."""
    if plan is None:
        return image
    if plan.rows is None:
        return _changed(image, plan)
    return image.index_copy(0, plan.rows, _changed(image[plan.rows], plan))


def _changed(image: Tensor, plan: ColourPlan) -> Tensor:
    luma = (image.mean(dim=(-2, -1)) * _luma(image.device, image.dtype)).sum(dim=1)
    constant = (plan.lift * luma)[:, None, None].expand(-1, 3, 1)
    flat = torch.baddbmm(constant, plan.linear, image.flatten(2))
    image = flat.clamp_(0, 1).reshape(image.shape)
    if len(plan.blur_rows):
        blurred = gaussian_blur(image[plan.blur_rows], plan.blur_sigma_px, plan.blur_radius)
        image[plan.blur_rows] = blurred
    if len(plan.solar_rows):
        part = image[plan.solar_rows]
        image[plan.solar_rows] = torch.where(part > 0.5, 1 - part, part)
    if len(plan.noise_rows):
        image[plan.noise_rows] = (image[plan.noise_rows] + plan.noise).clamp(0, 1)
    return image
