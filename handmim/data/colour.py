"""Photometric augmentation of a batch as one colour matrix per picture, plus blur, solarisation and
noise.

Brightness, contrast, saturation, hue and grey are affine in RGB, so they are composed into one 3 x
4 map per picture and applied at once. Hue is a rotation in the chroma plane (YIQ), not a shift of
HSV angles.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)
_YIQ_FROM_RGB = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
_RGB_FROM_YIQ = torch.linalg.inv(torch.tensor(_YIQ_FROM_RGB)).tolist()


def colour_matrices(
    brightness: Tensor, contrast: Tensor, saturation: Tensor, hue_rad: Tensor, mean_luma: Tensor
) -> Tensor:
    """Compose the jitters, in this order, into rgb' = M[:, :3] rgb + M[:, 3].

    Args:
        brightness, contrast, saturation: [B] factors, 1 = unchanged.
        hue_rad: [B] rotation of the chroma plane.
        mean_luma: [B] mean luma of each picture, the pivot of contrast.
    Returns: [B, 3, 4].
    """
    b = len(brightness)
    luma = mean_luma.new_tensor(_LUMA)
    eye = torch.eye(3, dtype=mean_luma.dtype, device=mean_luma.device).expand(b, 3, 3)
    grey = luma.expand(3, 3)
    saturate = saturation[:, None, None] * eye + (1 - saturation)[:, None, None] * grey
    yiq = mean_luma.new_tensor(_YIQ_FROM_RGB)
    cos, sin = hue_rad.cos(), hue_rad.sin()
    turn = torch.zeros(b, 3, 3, dtype=mean_luma.dtype, device=mean_luma.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, -sin, sin, cos
    hue = mean_luma.new_tensor(_RGB_FROM_YIQ) @ turn @ yiq
    chroma = hue @ saturate  # grey is a fixed point, so the constant below passes unchanged
    linear = chroma * (brightness * contrast)[:, None, None]
    constant = (1 - contrast) * brightness * mean_luma
    return torch.cat([linear, constant[:, None, None].expand(b, 3, 1)], dim=-1)


def gaussian_blur(image: Tensor, sigma_px: Tensor) -> Tensor:
    """Blur every picture by its own sigma: [B, C, H, W] and [B] pixels, best on the CPU, which the
    width of the kernel is read from; sigma 0 leaves a picture as it is."""
    b, c = image.shape[:2]
    radius = max(1, math.ceil(2.5 * float(sigma_px.max())))
    sigma_px = sigma_px.to(image.device)
    offset = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (offset / sigma_px.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(c, dim=0)  # [B*C, 2r+1]
    x = F.pad(image.reshape(1, b * c, *image.shape[2:]), (radius,) * 4, mode="reflect")
    x = F.conv2d(x, kernel[:, None, None, :], groups=b * c)
    x = F.conv2d(x, kernel[:, None, :, None], groups=b * c)
    return x.reshape(image.shape)


class ColourJitter:
    """Random photometric changes, drawn per picture from an explicit generator.

    Args:
        brightness, contrast, saturation: factors are drawn from 1 +- these.
        hue_deg: rotation of the chroma plane is drawn from +- this.
        jitter_prob, grey_prob, blur_prob, solarise_prob: how often each applies.
        blur_sigma_px: highest blur, in pixels of the view.
        noise_prob: how often each value gets its own Gaussian noise, last of all.
        noise_std: its highest deviation; each picture's is drawn from 0 to this.
        apply_prob: share of pictures that are changed at all.
    """

    def __init__(
        self,
        *,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.2,
        hue_deg: float = 36.0,
        jitter_prob: float = 0.8,
        grey_prob: float = 0.2,
        blur_prob: float = 0.1,
        blur_sigma_px: float = 2.0,
        solarise_prob: float = 0.0,
        apply_prob: float = 1.0,
        noise_prob: float = 0.0,
        noise_std: float = 0.05,
    ) -> None:
        for name, value in (("brightness", brightness), ("contrast", contrast)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {value} (views.colour.{name})")
        if not 0.0 <= noise_prob <= 1.0:
            raise ValueError(f"noise_prob is a share, got {noise_prob} (colour.noise_prob)")
        if noise_std <= 0:
            raise ValueError(
                f"noise_std must be > 0, got {noise_std} (colour.noise_std; noise_prob=0 is none)"
            )
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.hue_rad = math.radians(hue_deg)
        self.jitter_prob, self.grey_prob = jitter_prob, grey_prob
        self.blur_prob, self.blur_sigma_px = blur_prob, blur_sigma_px
        self.solarise_prob, self.apply_prob = solarise_prob, apply_prob
        self.noise_prob, self.noise_std = noise_prob, noise_std

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """[B, 3, H, W] in [0, 1] to the same; randomness is drawn on the CPU whatever the
        device."""
        if self.apply_prob >= 1.0:
            return self._changed(image, generator)
        is_chosen = torch.rand(len(image), generator=generator) < self.apply_prob
        if not is_chosen.any():
            return image
        where = is_chosen.nonzero().squeeze(1).to(image.device)
        return image.index_copy(0, where, self._changed(image[where], generator))

    def _changed(self, image: Tensor, generator: torch.Generator) -> Tensor:
        b, device = len(image), image.device
        u = torch.rand(b, 9, generator=generator)
        on = (u[:, 0] < self.jitter_prob).float()
        factor = lambda column, width: 1 + on * width * (2 * u[:, column] - 1)  # noqa: E731
        saturation = factor(3, self.saturation) * (u[:, 5] >= self.grey_prob)
        hue = on * self.hue_rad * (2 * u[:, 4] - 1)
        luma = (image.mean(dim=(-2, -1)) * image.new_tensor(_LUMA)).sum(dim=1)
        matrix = colour_matrices(
            factor(1, self.brightness).to(device),
            factor(2, self.contrast).to(device),
            saturation.to(device),
            hue.to(device),
            luma,
        )
        flat = torch.baddbmm(matrix[:, :, 3:], matrix[:, :, :3], image.flatten(2))
        image = flat.clamp_(0, 1).reshape(image.shape)
        if self.blur_prob > 0:
            blurred = (u[:, 6] < self.blur_prob).nonzero().squeeze(1)
            if len(blurred):
                sigma = 0.1 + u[blurred, 7] * (self.blur_sigma_px - 0.1)
                blurred = blurred.to(device)
                image[blurred] = gaussian_blur(image[blurred], sigma)
        if self.solarise_prob > 0:
            solarised = (u[:, 8] < self.solarise_prob).to(device)[:, None, None, None]
            image = torch.where(solarised & (image > 0.5), 1 - image, image)
        return image if self.noise_prob == 0 else self._noisy(image, generator)

    def _noisy(self, image: Tensor, generator: torch.Generator) -> Tensor:
        u = torch.rand(len(image), 2, generator=generator)
        rows = (u[:, 0] < self.noise_prob).nonzero().squeeze(1)
        noise = torch.randn(len(rows), *image.shape[1:], generator=generator)
        noise *= (self.noise_std * u[rows, 1])[:, None, None, None]
        rows = rows.to(image.device)
        return image.index_copy(0, rows, (image[rows] + noise.to(image)).clamp(0, 1))
