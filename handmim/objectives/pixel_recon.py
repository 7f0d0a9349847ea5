"""Pixel reconstruction of masked patches (He et al. 2022, MAE; Xie et al. 2022, SimMIM)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from handmim.losses.composite import choice, loss_dataclass, positive
from handmim.objectives.base import Objective, Setup, StepContext, view_weights
from handmim.utils.arguments import at_least, shares


def patchify(image: Tensor, patch_px: int) -> Tensor:
    """[B, 3, H, W] to [B, N, p*p*3]: patches row by row; inside row, column, then channel."""
    b, c, height, width = image.shape
    h, w = height // patch_px, width // patch_px
    x = image.reshape(b, c, h, patch_px, w, patch_px)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, patch_px * patch_px * c)


def unpatchify(patches: Tensor, patch_px: int, grid_hw: tuple[int, int]) -> Tensor:
    """Inverse of `patchify`: [B, N, p*p*3] to [B, 3, H, W]."""
    h, w = grid_hw
    x = patches.reshape(len(patches), h, w, patch_px, patch_px, 3)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, h * patch_px, w * patch_px)


class PixelHead(nn.Module):
    """LayerNorm and one linear map from a token to its patch's pixels."""

    def __init__(self, dim: int, patch_px: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, patch_px * patch_px * 3)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, patches: Tensor, idx: Tensor, is_dropped: Tensor | None = None) -> Tensor:
        """[V, N, D] tokens and [M] indices in V * N to [M, p*p*3]; no patch may be dropped."""
        return torch.as_tensor(self.out(self.norm(patches.flatten(0, 1)[idx])))


class PixelDecoder(nn.Module):
    """A light transformer over the tokens of all patches, after which pixels are a linear map.

    Patches that were dropped from the encoder come back as its own mask token. A width of None is
    that of the tokens, a num_heads of None a head per 32 channels.
    """

    positions: Tensor

    def __init__(
        self,
        dim: int,
        patch_px: int,
        grid_hw: tuple[int, int],
        *,
        depth: int = 2,
        width: int | None = None,
        num_heads: int | None = None,
    ) -> None:
        super().__init__()
        at_least(1, depth=depth)
        width = dim if width is None else width
        num_heads = max(1, width // 32) if num_heads is None else num_heads
        if width < 8 or width % 4 or num_heads < 1 or width % num_heads:
            got = f"got {width} and {num_heads}"
            raise ValueError(f"width must be a multiple of 4, at least 8, and of num_heads, {got}")
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width, num_heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, patch_px * patch_px * 3)
        positions = build_sincos2d_pos_embed(list(grid_hw), dim=width)
        self.register_buffer("positions", positions, persistent=False)  # [N, width]
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, patches: Tensor, idx: Tensor, is_dropped: Tensor | None = None) -> Tensor:
        """[V, N, D] tokens, or those that are not dropped, and [M] indices in V * N to
        [M, p*p*3]; is_dropped [V, N] bool."""
        x = self.embed(patches)
        if is_dropped is not None:
            whole = self.mask_token.to(x.dtype).repeat(*is_dropped.shape, 1)
            whole[~is_dropped] = x.flatten(0, 1)
            x = whole
        x = self.blocks(x + self.positions)
        return self.out(self.norm(x.flatten(0, 1)[idx]))


class PixelTargets(NamedTuple):
    """Reconstructed patches only."""

    pred: Tensor  # [M, p*p*3]
    target: Tensor  # [M, p*p*3] in [0, 1]
    weight: Tensor  # [M], 1 / (reconstructed patches of that view)
    num_views: int  # also those without a reconstructed patch


@loss_dataclass
class PixelRecon(Objective):
    """Mean error of masked patches of the augmented view, in each view first, then over views."""

    reads = frozenset({"visible_patches"})
    head: str = choice("linear", "decoder")  # the latter for dropped patches (task.mask_mode=drop)
    depth: int = 2  # of the decoder, like the next two
    width: int | None = None
    num_heads: int | None = None
    tap_layers: Sequence[float] = (1.0,)  # blocks whose mean tokens are read, as shares of all
    kind: str = choice("mse", "l1")  # MAE or SimMIM
    # Every target patch gets mean 0 and variance 1 (MAE); else raw [0, 1] values (SimMIM).
    per_patch_norm: bool = True
    min_var: float = positive(1e-4)  # the noise of a uniform background is no target
    clean_target: bool = False  # pixels before colour augmentation; requires views.keep_clean=true
    visible_share: float = 0.0  # of the visible patches that are reconstructed too

    def __post_init__(self) -> None:
        super().__post_init__()
        shares(visible_share=self.visible_share)
        taps = list(map(float, self.tap_layers))
        if not taps or not all(0.0 < share <= 1.0 for share in taps):
            raise ValueError(f"tap_layers must be shares of the depth in (0, 1], got {taps}")
        if self.head == "linear":
            self.reads = self.reads | {"masked_patches"}

    def build(self, setup: Setup) -> None:
        blocks = (max(round(share * setup.depth), 1) for share in self.tap_layers)
        self.taps = tuple(dict.fromkeys(blocks))  # shares of one block count once
        self.patch_px = setup.patch_px
        self.to_pixels: PixelHead | PixelDecoder
        if self.head == "linear":
            self.to_pixels = PixelHead(setup.dim, setup.patch_px)
        else:
            sizes: dict[str, Any] = {"width": self.width, "num_heads": self.num_heads}
            shape = setup.dim, setup.patch_px, setup.grid_hw
            self.to_pixels = PixelDecoder(*shape, depth=self.depth, **sizes)
            self.to_pixels.mask_token.requires_grad_(setup.drops_masked)

    def predict(self, ctx: StepContext) -> PixelTargets:
        batch, is_masked = ctx.batch, ctx.is_masked
        source = batch.clean_views if self.clean_target else batch.views
        if source is None:
            raise ValueError("clean_target=true requires views.keep_clean=true")
        is_target, idx = is_masked, batch.masked_idx
        if self.visible_share > 0 and self.training:
            chance = torch.rand(is_masked.shape, device=is_masked.device)
            is_target = is_masked | (chance < self.visible_share)
            idx = is_target.flatten().nonzero().squeeze(1)  # waits for the device
        tokens = torch.stack([ctx.tapped[block] for block in self.taps]).mean(dim=0)
        pred = self.to_pixels(tokens, idx, is_masked if ctx.drops_masked else None)
        target = patchify(source.flatten(0, 1), self.patch_px).flatten(0, 1)[idx]
        return PixelTargets(pred, target, view_weights(is_target, idx), len(is_target))

    def loss(self, ctx: StepContext, prediction: PixelTargets) -> Tensor:
        pred, target, weight, num_views = prediction
        if self.per_patch_norm:
            centred = target - target.mean(dim=-1, keepdim=True)
            var = centred.square().mean(dim=-1, keepdim=True)
            target = centred * var.clamp(min=self.min_var).rsqrt()
        difference = pred.float() - target.float()
        error = difference.square() if self.kind == "mse" else difference.abs()
        return (error.mean(dim=-1) * weight).sum() / num_views
