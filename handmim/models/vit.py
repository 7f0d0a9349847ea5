"""Vision transformer with mask tokens: a thin coat over timm's, whose weights timm loads back."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from handmim.models import encoder
from handmim.models.encoder import Sizes
from handmim.types import Tokens
from handmim.utils.arguments import one_of
from handmim.utils.tensor_files import save_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh", "ReLU": "relu"}
PIXEL_NORMS = ("imagenet", "per_image")


def standardise_per_image(image: Tensor, floor: float = 0.03) -> Tensor:
    """[B, 3, H, W] with channel means 0, divided by the RMS over all channels + floor."""
    centred = image - image.mean(dim=(-2, -1), keepdim=True)
    return centred / (centred.square().mean(dim=(-3, -2, -1), keepdim=True).sqrt() + floor)


def activation_name(module: nn.Module | None) -> str:
    """timm's name of an activation."""
    return ACTIVATIONS.get(type(module).__name__, type(module).__name__)


class ViT(nn.Module):
    """timm's plain ViT with one class token, learned positions and a learned mask token; images
    come in as [0, 1] and are normalised here.

    img_px: sets the grid of learned positions; images of other sides are taken too. size: further
    timm arguments (embed_dim, depth, num_heads, mlp_ratio). recompute_blocks: the first blocks that
    keep no activations and run twice instead (Chen et al. 2016, arXiv 1604.06174)."""

    timm_args: dict[str, Any]
    net: Any  # timm's VisionTransformer, whose attributes are untyped
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        arch: str = "vit_small_patch16_224",
        *,
        img_px: int = 224,
        patch_px: int = 16,
        drop_path_rate: float = 0.0,
        pixel_norm: str = "imagenet",
        size: Mapping[str, Any] | None = None,
        attention: str = "auto",
        recompute_blocks: int = 0,
    ) -> None:
        super().__init__()
        one_of("attention", attention, encoder.ATTENTIONS)
        one_of("pixel_norm", pixel_norm, PIXEL_NORMS)
        if img_px % patch_px:
            raise ValueError(f"img_px must be a multiple of patch_px, got {img_px} and {patch_px}")
        self.timm_name = arch
        self.timm_args = {"img_size": img_px, "patch_size": patch_px, "num_classes": 0}
        self.timm_args |= size or {}
        self.img_px, self.patch_px, self.pixel_norm = img_px, patch_px, pixel_norm
        self.net = timm.create_model(
            arch, pretrained=False, drop_path_rate=drop_path_rate, **self.timm_args
        )
        net, blocks = self.net, self.net.blocks
        has_parts = net.cls_token is not None and net.pos_embed is not None
        if not has_parts or net.num_prefix_tokens != 1 or not all(map(encoder.is_plain, blocks)):
            raise ValueError(f"{arch} is not a plain ViT with one class token (arch)")
        self.net.patch_embed.strict_img_size = False  # local crops are smaller
        self.embed_dim: int = self.net.embed_dim
        self.grid_hw: tuple[int, int] = tuple(self.net.patch_embed.grid_size)
        self.num_patches = self.grid_hw[0] * self.grid_hw[1]
        self.depth = len(blocks)
        if not 0 <= recompute_blocks <= self.depth:
            raise ValueError(f"recompute_blocks must be 0 to {self.depth}, got {recompute_blocks}")
        self.attention, self.recompute_blocks = attention, recompute_blocks
        self._compiled: Callable[..., Tensor] | None = None
        self.num_heads: int = blocks[0].attn.num_heads
        self.norm_eps: float = blocks[0].norm1.eps
        self.activation = activation_name(blocks[0].mlp.act)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        nn.init.normal_(self.mask_token, std=0.02)
        for name, values in (("pixel_mean", IMAGENET_MEAN), ("pixel_std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] to what the transformer expects."""
        if self.pixel_norm == "per_image":
            return standardise_per_image(image)
        return (image - self.pixel_mean) / self.pixel_std

    def grid_of(self, image: Tensor) -> tuple[int, int]:
        """Rows and columns of patches in [B, 3, H, W], which they have to fill."""
        height, width = image.shape[-2:]
        side = self.patch_px
        if height % side or width % side or not min(height, width):
            text = f"multiples of {side} px, got {height} x {width} (view_px, local_px, img_px)"
            raise ValueError(f"sides of images must be {text}")
        return height // side, width // side

    def forward(
        self,
        image: Tensor,
        is_masked: Tensor | None = None,
        *,
        drop_masked: bool = False,
        taps: Sequence[int] = (),
        patch_idx: Tensor | None = None,
        local: Tensor | None = None,
    ) -> Tokens:
        """Encode [B, 3, H, W] images in [0, 1] whose sides are multiples of patch_px.

        Args:
            is_masked: [B, N] bool; the mask token replaces True patches before positions are added,
                or `drop_masked` leaves them out, as many in each row.
            taps: blocks, counted from 1, whose patch tokens come back too.
            patch_idx: [M] indices in B * N: the last block finishes these patches alone.
            local: [b, 3, h, w] smaller images encoded along, for their class tokens.
        Returns: Tokens after the final norm: cls [B, D], patches [B, N, D] (visible ones where
            masked ones were dropped; [M, D] with patch_idx), taps, local_cls [b, D]."""
        if any(not 1 <= n <= self.depth for n in taps):
            raise ValueError(f"taps are blocks 1 to {self.depth}, got {tuple(taps)} (tap_layers)")
        if patch_idx is not None and (taps or drop_masked):
            raise ValueError("patch_idx needs whole images without taps")
        batches = [self._embedded(image, is_masked, drop_masked)]
        if local is not None:
            batches.append(self._embedded(local))
        rows, sizes = encoder.pack(batches)
        keep = None if patch_idx is None else encoder.rows_of(patch_idx, sizes)
        rows, tapped = self._encoded(rows, sizes, taps, keep)
        norm, grid_hw = self.net.norm, self.grid_of(image)
        if patch_idx is not None:
            counts = [len(image), len(patch_idx), 0 if local is None else len(local)]
            cls, patches, local_cls = norm(rows).split(counts)
            return Tokens(cls, patches, grid_hw, (), None if local is None else local_cls)
        whole, *others = encoder.unpack(norm(rows), sizes)
        kept = tuple(encoder.unpack(norm(tap), sizes)[0][:, 1:] for tap in tapped)
        return Tokens(whole[:, 0], whole[:, 1:], grid_hw, kept, others[0][:, 0] if others else None)

    def compile_blocks(self) -> None:
        """Let torch.compile fuse each block; the first batches of each size wait for it."""
        self._compiled = torch.compile(encoder.run_block)

    def _embedded(
        self, image: Tensor, is_masked: Tensor | None = None, drop_masked: bool = False
    ) -> Tensor:
        net, grid_hw = self.net, self.grid_of(image)
        x = net.patch_embed(self.normalise(image))  # [B, N, D]
        if is_masked is not None and not drop_masked:
            x = torch.where(is_masked.unsqueeze(-1), self.mask_token.to(x.dtype), x)
        positions = net.pos_embed
        if grid_hw != self.grid_hw:  # bicubic, fp32
            positions = resample_abs_pos_embed(positions, list(grid_hw), list(self.grid_hw))
        x = torch.cat([net.cls_token.expand(len(x), -1, -1), x], dim=1) + positions
        if is_masked is not None and drop_masked:
            x = encoder.visible(x, is_masked)
        return net.norm_pre(net.pos_drop(x))

    def _encoded(
        self, x: Tensor, sizes: Sizes, taps: Sequence[int], keep: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Packed rows after all blocks, `keep` of them where given, and after each tapped block."""
        after: dict[int, Tensor] = {}
        for number, block in enumerate(self.net.blocks, start=1):
            if number == self.depth and keep is not None:
                shares = encoder.shares_of(block, x, sizes)
                x = encoder.run_block(block, x, sizes, self.attention, shares, keep)
            elif number <= self.recompute_blocks and torch.is_grad_enabled():
                x = checkpoint(self._one_block, block, x, sizes, use_reentrant=False)
            else:
                x = self._one_block(block, x, sizes)
            if number in taps:
                after[number] = x
        return x, [after[n] for n in taps]

    def _one_block(self, block: Any, x: Tensor, sizes: Sizes) -> Tensor:
        if self._compiled is None:
            return encoder.run_block(block, x, sizes, self.attention)
        return self._compiled(block, x, sizes, self.attention, encoder.shares_of(block, x, sizes))

    def layer_of(self, name: str) -> int:
        """Depth of a parameter: 0 for the embedding, its block's number, depth + 1 for the norm."""
        if name.startswith("net.blocks."):
            return int(name.split(".")[2]) + 1
        return self.depth + 1 if name.startswith("net.norm.") else 0

    def freeze_below(self, trained_blocks: int | None) -> tuple[nn.Module, ...]:
        """Take the gradient from all but the last blocks and the final norm; None trains all, 0
        nothing. Returns: modules that stay in eval mode, so that none of their paths is dropped."""
        if trained_blocks is None:
            return ()
        if not 0 <= trained_blocks <= self.depth:
            blocks = f"0 to {self.depth}, the blocks of this backbone"
            raise ValueError(f"trained_blocks must be null or {blocks}, got {trained_blocks}")
        top_frozen = self.depth - trained_blocks if trained_blocks else self.depth + 1
        for name, parameter in self.named_parameters():
            if self.layer_of(name) <= top_frozen:
                parameter.requires_grad_(False)
        net = self.net
        below = (net.patch_embed, net.pos_drop, net.norm_pre, *net.blocks[:top_frozen])
        return tuple(module.eval() for module in (below if trained_blocks else (self,)))

    def export(self, path: Path, extra: Mapping[str, str] | None = None) -> None:
        """Write the weights as safetensors under timm's own names, with metadata for
        timm.create_model (`timm_name`, `timm_args`); the mask token is left out."""
        meta = {"timm_name": self.timm_name, "timm_args": json.dumps(self.timm_args)}
        meta |= {"pixel_norm": self.pixel_norm, "num_heads": str(self.num_heads), **(extra or {})}
        weights = {k: v.detach().cpu().contiguous() for k, v in self.net.state_dict().items()}
        save_weights(weights, path, meta)
