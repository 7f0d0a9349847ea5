"""Regression heads beside the backbone that they sit on, forward and backward."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.ceiling import flops_of
from benchmark.race import Bench, Row, compared
from handmim.models.heads.hand_head import HandHead
from handmim.models.vit import ViT
from handmim.types import Intrinsics, Tokens

Work = Callable[[], object]


def measure(
    bench: Bench,
    *,
    backbone: ViT,
    heads: Mapping[str, Callable[..., HandHead]],
    batch_size: int,
    shares: Mapping[str, float],
) -> Iterator[list[Row]]:
    """One case: the backbone, with which its heads are compared; random pictures.

    Time is of forward and backward passes, operations are of forward ones.

    Args:
        bench: where and how long.
        backbone: that brings the tokens.
        heads: makers of heads that regress a hand model, by name.
        batch_size: pictures at a time.
        shares: of the backbone's time that heads promise to stay within.
    Raises: ValueError for a promise without its head.
    """
    unknown = sorted(set(shares) - set(heads))
    if unknown:
        raise ValueError(f"no heads {unknown}; there are {sorted(heads)} (suites.head.shares)")
    backbone = backbone.to(bench.device)
    backbone.mask_token.requires_grad_(False)  # nothing is hidden
    side = backbone.img_px
    pictures = torch.rand(batch_size, 3, side, side, device=bench.device)
    built = {name: make(dim=backbone.embed_dim).to(bench.device) for name, make in heads.items()}
    works = {"backbone": _backbone_work(backbone, pictures)}
    works |= {name: _head_work(head, backbone, pictures) for name, head in built.items()}
    seconds = bench.race(works)
    time = {name: statistics.median(each) for name, each in seconds.items()}
    flops = {"backbone": forward_flops(backbone, pictures)}
    more = {}
    for name, head in built.items():
        flops[name] = forward_flops(head, *inputs_of(head, backbone, pictures))
        more[name] = {
            "note": f"{time[name] / time['backbone']:.1%} of its time,"
            f" {flops[name] / flops['backbone']:.1%} of its operations,"
            f" {sum(p.numel() for p in head.parameters()) / 1e6:.2f} M parameters"
        }
    yield compared(
        "head",
        f"heads on a backbone, batch {batch_size}, forward and backward",
        seconds,
        "backbone",
        items=batch_size,
        unit="pictures",
        asked={name: 1 / share for name, share in shares.items()},
        more=more,
    )


def _backbone_work(backbone: ViT, pictures: Tensor) -> Work:
    def work() -> None:
        backbone.zero_grad()
        tokens = backbone(pictures)
        _squares([tokens.cls, tokens.patches]).backward()

    return work


def _head_work(head: HandHead, backbone: ViT, pictures: Tensor) -> Work:
    tokens, intrinsics = inputs_of(head, backbone, pictures)

    def work() -> None:
        head.zero_grad()
        out = head(_leaves(tokens), intrinsics)
        _squares([s.verts_root_m for s in out.steps] + [s.cam for s in out.steps]).backward()

    return work


def inputs_of(head: HandHead, backbone: ViT, pictures: Tensor) -> tuple[Tokens, Intrinsics]:
    """What a head is called with: tokens of the pictures and a camera that is known."""
    with torch.no_grad():
        tokens = backbone(pictures, taps=head.tapped_blocks)
    batch_size, side = len(pictures), pictures.shape[-1]
    focal = torch.diag(torch.tensor([2.0 * side, 2.0 * side, 1.0], device=pictures.device))
    known = torch.ones(batch_size, dtype=torch.bool, device=pictures.device)
    return tokens, Intrinsics(focal.expand(batch_size, 3, 3), known, side)


def forward_flops(module: nn.Module, *inputs: Any) -> int:
    """Operations of a call without gradients; of depthwise convolutions' backward passes PyTorch
    counts too many."""
    with torch.no_grad():
        return flops_of(lambda: module(*inputs))


def _squares(parts: Sequence[Tensor]) -> Tensor:
    """A loss that every number takes part in."""
    return torch.stack([part.float().square().sum() for part in parts]).sum()


def _leaves(tokens: Tokens) -> Tokens:
    """Tokens whose gradient ends in them, as it would go on into the backbone."""
    cls, patches = (t.detach().requires_grad_() for t in (tokens.cls, tokens.patches))
    taps = tuple(t.detach().requires_grad_() for t in tokens.taps)
    return Tokens(cls, patches, tokens.grid_hw, taps)
