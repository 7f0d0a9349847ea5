"""A ViT's blocks over several batches of sequences at once: timm's modules, called our own way.

Sequences of different lengths lie one after another, so that all but attention is one call (as in
DINOv2, arXiv 2304.07193). In the last block, rows that nobody reads are keys and values alone."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

ATTENTIONS = ("auto", "fused", "written_out")

Sizes = tuple[tuple[int, int], ...]  # (sequences, tokens of each), by batch


def is_plain(block: nn.Module) -> bool:
    """Whether a block is timm's plain one, which `run_block` takes apart."""
    attn: Any = getattr(block, "attn", None)
    return type(block) is Block and type(attn) is Attention and getattr(attn, "gate", None) is None


def pack(batches: Sequence[Tensor]) -> tuple[Tensor, Sizes]:
    """Batches [B, T, D] of sequences to rows [R, D] one after another, and their sizes."""
    sizes = tuple((b.shape[0], b.shape[1]) for b in batches)
    rows = [b.flatten(0, 1) for b in batches]
    return rows[0] if len(rows) == 1 else torch.cat(rows), sizes


def unpack(rows: Tensor, sizes: Sizes) -> list[Tensor]:
    """The inverse of `pack`."""
    parts = rows.split([b * t for b, t in sizes])
    return [part.unflatten(0, size) for part, size in zip(parts, sizes, strict=True)]


def rows_of(patch_idx: Tensor, sizes: Sizes) -> Tensor:
    """Rows of packed views' class tokens, of patches at [M] in B * N, of other class tokens."""
    first, cls = 0, []
    for num, length in sizes:
        cls.append(torch.arange(num, device=patch_idx.device) * length + first)
        first += num * length
    # Each class token before a patch moves it on by one.
    patches = patch_idx + patch_idx // (sizes[0][1] - 1) + 1
    return torch.cat([cls[0], patches, *cls[1:]])


def visible(tokens: Tensor, is_masked: Tensor) -> Tensor:
    """[B, 1 + N, D] and [B, N] bool to [B, 1 + visible, D]: the class token always stays."""
    stays = ~F.pad(is_masked, (1, 0))
    counts = stays.sum(dim=1)
    low, high = torch.stack(torch.aminmax(counts)).tolist()
    if low != high:
        raise ValueError(
            f"dropping masked patches needs as many in every view, got {low - 1} to {high - 1} "
            "visible ones (views.masks: exact_count=true masked_share=1.0, task.mask_mode=replace)"
        )
    return tokens[stays].view(len(tokens), high, -1)


def attend(attn: Attention, qkv: Tensor, attention: str = "auto") -> Tensor:
    """Self-attention of sequences before the output projection: [B, T, 3 D] to [B, T, D]. "auto" is
    "fused", but "written_out" in bfloat16 on a CPU, where the kernel's backward is the slower."""
    q, k, v = qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    written = attention == "written_out"
    if attention == "auto":
        written = q.device.type == "cpu" and q.dtype == torch.bfloat16
    dropout = attn.attn_drop.p if attn.training else 0.0
    if written:
        b, heads, t = q.shape[:3]
        q, k, v = (x.reshape(b * heads, t, -1) for x in (q, k, v))
        nothing = q.new_zeros(()).expand(b * heads, t, t)  # of which beta=0 reads nothing
        weights = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=attn.scale)
        weights = F.dropout(weights.softmax(dim=-1), dropout)
        mixed = (weights @ v).unflatten(0, (b, heads))
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=attn.scale)
    return mixed.transpose(1, 2).flatten(2)


def attention_branch(
    block: Any, x: Tensor, sizes: Sizes, attention: str, keep: Tensor | None = None
) -> Tensor:
    """The attention branch of packed rows [R, D]: of all, or of [K, D] that are kept."""
    each = unpack(block.attn.qkv(block.norm1(x)), sizes)
    values = block.attn.norm(pack([attend(block.attn, qkv, attention) for qkv in each])[0])
    values = values if keep is None else values[keep]
    return block.ls1(block.attn.proj_drop(block.attn.proj(values)))


def run_block(
    block: Any,
    x: Tensor,
    sizes: Sizes,
    attention: str,
    shares: tuple[Tensor | None, Tensor | None] | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """A block that `is_plain` on packed rows [R, D]. With `shares`, draws made outside as compilers
    take them (`shares_of`), to [K, D] where rows `keep` [K] alone are required."""

    def feed_forward(x: Tensor, *_: Any) -> Tensor:
        return block.ls2(block.mlp(block.norm2(x)))

    if shares is None:
        attend_all = partial(attention_branch, block, attention=attention)
        x = _added(block.drop_path1, x, sizes, attend_all)
        return _added(block.drop_path2, x, sizes, feed_forward)
    branch, (first, second) = attention_branch(block, x, sizes, attention, keep), shares
    if keep is not None:
        x = x[keep]
        first, second = (None if s is None else s[keep] for s in shares)
    x = _scaled(x, branch, first)
    return _scaled(x, feed_forward(x), second)


def shares_of(block: Any, x: Tensor, sizes: Sizes) -> tuple[Tensor | None, Tensor | None]:
    """[R, 1] factors on both branches under stochastic depth, one draw per sequence, or None."""
    first, second = (_shares(drop, x, sizes) for drop in (block.drop_path1, block.drop_path2))
    return first, second


def _shares(drop_path: nn.Module, x: Tensor, sizes: Sizes) -> Tensor | None:
    if isinstance(drop_path, nn.Identity) or not drop_path.training:
        return None
    each = [drop_path(x.new_ones(b, 1, 1)).expand(b, t, 1) for b, t in sizes]
    return pack(each)[0]


def _scaled(x: Tensor, branch: Tensor, shares: Tensor | None) -> Tensor:
    return x + branch if shares is None else x + branch * shares


def _added(
    drop_path: nn.Module, x: Tensor, sizes: Sizes, branch: Callable[[Tensor, Sizes], Tensor]
) -> Tensor:
    """A CPU leaves out what is dropped; elsewhere it is multiplied by 0, without waiting."""
    shares = _shares(drop_path, x, sizes)
    drops = shares is not None and x.device.type == "cpu" and not bool(shares.all())
    if shares is None or not drops or not bool(shares.any()):  # of nothing, no gradients, not 0
        return _scaled(x, branch(x, sizes), shares)
    rows = shares.squeeze(1).nonzero().squeeze(1)
    num_kept = [int(part[:, 0].count_nonzero()) for part in unpack(shares, sizes)]
    kept = tuple((num, t) for num, (_, t) in zip(num_kept, sizes, strict=True))
    part = branch(x[rows], kept) * shares[rows]
    return x.index_add(0, rows, part.to(x.dtype))
