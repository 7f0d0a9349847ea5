"""Hands partly out of sight: cut-outs and pasted objects for labelled training crops.

Both parts only paint. No label changes: a joint that is covered is still to be found. Everything is
drawn per sample from the CPU generator, so that what covers a hand depends on that sample and the
generator alone, unless its texture is a neighbour's by choice.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from handmim.data.occluder_shapes import SIDES, cover, draw_sides, log_uniform, shrinking
from handmim.data.view_pixels import sample_views
from handmim.geometry.camera import cell_centres_ndc
from handmim.geometry.crop import similarity

TEXTURES = ("batch", "noise")
FILLS = ("mean", "noise")
# Factors on the colours of textures from the batch: else an object cut from a plain background
# would look like more of it, and a covered finger like a missing one.
TINT = (0.4, 1.2)
NOISE_CELLS = 12  # of procedural texture, along a side


def _checked(part: str, name: str, bounds: Sequence[float], highest: float) -> tuple[float, float]:
    low, high = bounds
    if not 0.0 < low <= high <= highest:
        limit = "" if math.isinf(highest) else f" <= {highest:g}"
        raise ValueError(
            f"need 0 < low <= high{limit}, got {name}={bounds} (augment.{part}.{name})"
        )
    return low, high


def _check_share(part: str, name: str, share: float) -> None:
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{name} is a share, got {share} (augment.{part}.{name})")


def in_picture(kp2d_crop_ndc: Tensor, kp2d_valid: Tensor) -> Tensor:
    """Which labelled joints lie inside the crop: [B, 21, 2] and [B, 21] to [B, 21] bool."""
    return kp2d_valid & (kp2d_crop_ndc.abs() < 1).all(dim=-1)


def pick_joint(kp2d_crop_ndc: Tensor, is_seen: Tensor, u: Tensor) -> Tensor:
    """One of the seen joints of every sample, or the crop's centre where there is none.

    Args:
        kp2d_crop_ndc: [B, 21, 2].
        is_seen: [B, 21] bool.
        u: [B] uniform in [0, 1).
    Returns: [B, 2] ndc.
    """
    rank = is_seen.long().cumsum(dim=1)
    wanted = (u * rank[:, -1]).long() + 1
    chosen = is_seen & (rank == wanted[:, None])
    return torch.where(chosen.unsqueeze(-1), kp2d_crop_ndc, 0.0).sum(dim=1)


class HandCutOut:
    """A rectangle about a random joint is erased, as in random erasing (Zhong et al. 2020, arXiv
    1708.04896), but where the hand is.

    The rectangle is upright and holds the joint: its centre lies off it by up to half of its half
    sides. Where no labelled joint is in the picture it lies about the crop's centre.

    Args:
        prob: share of samples.
        area: lowest and highest share of the crop's area, before the crop's border cuts it.
        aspect: lowest and highest width / height, drawn log-uniformly.
        fill: "mean" colour of the picture, uniform "noise" per pixel, or a grey value in [0, 1].
    Raises: ValueError for settings that do not fit.
    """

    def __init__(
        self,
        *,
        prob: float = 0.3,
        area: Sequence[float] = (0.02, 0.12),
        aspect: Sequence[float] = (0.5, 2.0),
        fill: str | float = "mean",
    ) -> None:
        _check_share("cut_out", "prob", prob)
        is_grey = isinstance(fill, int | float) and 0.0 <= fill <= 1.0
        if not (is_grey or fill in FILLS):
            raise ValueError(
                f"fill must be one of {FILLS} or a grey in [0, 1], got {fill!r} "
                "(augment.cut_out.fill)"
            )
        self.area = _checked("cut_out", "area", area, 1.0)
        self.aspect = _checked("cut_out", "aspect", aspect, math.inf)
        self.prob, self.fill = prob, fill

    def __call__(
        self, image: Tensor, kp2d_crop_ndc: Tensor, kp2d_valid: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Augmented crops and their joints to crops with rectangles.

        Args:
            image: [B, 3, H, W] in [0, 1]; stays as it is.
            kp2d_crop_ndc, kp2d_valid: [B, 21, 2] and [B, 21].
            generator: CPU.
        Returns: [B, 3, H, W].
        """
        u = torch.rand(len(image), 6, generator=generator)
        rows = (u[:, 0] < self.prob).nonzero().squeeze(1)
        if not len(rows):
            return image
        noise: Tensor | None = None
        if self.fill == "noise":
            noise = torch.rand(len(rows), *image.shape[1:], generator=generator).to(image)
        rows, u = rows.to(image.device), u[rows].to(image.device)
        kp2d, picture = kp2d_crop_ndc[rows], image[rows]
        joint = pick_joint(kp2d, in_picture(kp2d, kp2d_valid[rows]), u[:, 1])
        share, aspect = log_uniform(u[:, 2], *self.area), log_uniform(u[:, 3], *self.aspect)
        half = (share[:, None] * torch.stack([aspect, 1 / aspect], dim=1)).sqrt()  # the crop's is 1
        centre = joint + (u[:, 4:] - 0.5) * half
        at = cell_centres_ndc(image.shape[-1], image.device)
        inside = (at - centre[..., None]).abs() < half[..., None]  # [n, 2, W]
        is_cut = (inside[:, 1, :, None] & inside[:, 0, None, :]).unsqueeze(1)
        if noise is not None:
            paint = noise
        elif self.fill == "mean":
            paint = picture.mean(dim=(-2, -1), keepdim=True)
        else:
            paint = torch.full_like(picture[:, :, :1, :1], float(self.fill))
        return image.index_copy(0, rows, torch.where(is_cut, paint, picture))


class OccluderPaste:
    """An opaque object before the hand: an ellipse, an irregular polygon or a bar in any direction.

    The shape covers a random joint, which lies anywhere in its inner part, and shrinks towards it
    until it covers, to the pixel, no more joints than allowed (`shrinking`). Only labelled joints
    in the picture count; where there is none the shape lies about the crop's centre as it is.

    Args:
        prob: share of samples.
        area: lowest and highest share of the crop's area before shrinking and the crop's border.
        max_joints: share of the labelled joints in the picture that may be covered.
        texture: "batch" cuts it from a random part of another sample's picture (its own in a batch
            of one) and tints it, so that the sample depends on its neighbour; "noise" draws
            blotches of colour.
        border_px: width of the soft border.
    Raises: ValueError for settings that do not fit.
    """

    def __init__(
        self,
        *,
        prob: float = 0.3,
        area: Sequence[float] = (0.04, 0.2),
        max_joints: float = 0.5,
        texture: str = "batch",
        border_px: float = 1.5,
    ) -> None:
        _check_share("occluder", "prob", prob)
        if not 0.0 < max_joints <= 1.0:
            raise ValueError(
                f"max_joints is a share above 0, got {max_joints} (augment.occluder.max_joints)"
            )
        if texture not in TEXTURES:
            raise ValueError(
                f"texture must be one of {TEXTURES}, got {texture!r} (augment.occluder.texture)"
            )
        if border_px <= 0:
            raise ValueError(f"border_px must be > 0, got {border_px} (augment.occluder.border_px)")
        self.area = _checked("occluder", "area", area, 1.0)
        self.prob, self.max_joints = prob, max_joints
        self.texture, self.border_px = texture, border_px

    def __call__(
        self, image: Tensor, kp2d_crop_ndc: Tensor, kp2d_valid: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Augmented crops and their joints to crops with objects before the hands.

        Args:
            image: [B, 3, H, W] in [0, 1]; stays as it is.
            kp2d_crop_ndc, kp2d_valid: [B, 21, 2] and [B, 21].
            generator: CPU.
        Returns: [B, 3, H, W].
        """
        b = len(image)
        u = torch.rand(b, 12, generator=generator)
        irregular = torch.rand(b, SIDES, generator=generator)
        rows = (u[:, 0] < self.prob).nonzero().squeeze(1)
        if not len(rows):
            return image
        source = self._source(image, rows, generator)
        rows, u, irregular = (x.to(image.device) for x in (rows, u[rows], irregular[rows]))
        kp2d = kp2d_crop_ndc[rows]
        is_seen = in_picture(kp2d, kp2d_valid[rows])
        joint = pick_joint(kp2d, is_seen, u[:, 1])
        normals, reach = draw_sides(u[:, 2:8], irregular, self.area)
        side, offsets = image.shape[-1], kp2d - joint[:, None]
        spare = 1.5 / side  # 0.75 px: the pixel of a free joint stays as it is
        factor = shrinking(offsets, is_seen, normals, reach, self.max_joints, spare)
        alpha = cover(side, joint, normals, reach * factor[:, None], self.border_px)
        # A part of the source about a third to two thirds as wide, turned by anything.
        part = similarity(0.35 + 0.3 * u[:, 8], 2 * math.pi * u[:, 9], u[:, 10:] - 0.5)
        texture = sample_views(source, part[:, None], side).squeeze(1)
        return image.index_copy(0, rows, torch.lerp(image[rows], texture, alpha))

    def _source(self, image: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """[n, 3, S, S] pictures that textures of the chosen rows are cut from."""
        b, n = len(image), len(rows)
        colour = torch.rand(n, 3, 1, 1, generator=generator)
        if self.texture == "batch":
            u = torch.rand(n, generator=generator)
            step = 1 + (u * (b - 1)).long()  # 1 .. B - 1: never the sample itself
            other = image[((rows + step) % b).to(image.device)]
            return (other * log_uniform(colour, *TINT).to(image)).clamp(0, 1)
        blotches = torch.rand(n, 3, NOISE_CELLS, NOISE_CELLS, generator=generator)
        return (0.7 * colour + 0.3 * blotches).to(image)
