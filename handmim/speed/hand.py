"""The hand layer against smplx: pose and shape to vertices and joints, forward and backward."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handmim.hand.adapters import SmplxHand
from handmim.hand.model import HandLayer, HandModel
from handmim.speed.race import Bench, Row, compared


def poses(batch_size: int, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Axis-angle [B, 48] radians and betas [B, 10] of hands that are bent and of any shape."""
    g = torch.Generator().manual_seed(seed)
    pose = 0.4 * torch.randn(batch_size, 48, generator=g)
    return pose.to(device), torch.randn(batch_size, 10, generator=g).to(device)


def forward_backward(layer: HandLayer, pose: Tensor, betas: Tensor) -> Callable[[], object]:
    """Work: vertices and joints, and the gradients of pose and betas."""
    pose, betas = pose.clone().requires_grad_(), betas.clone().requires_grad_()

    def work() -> None:
        mesh = layer(pose, betas)
        torch.autograd.grad(mesh.verts_m.sum() + mesh.joints_m.sum(), (pose, betas))

    return work


def measure(
    bench: Bench, *, hand: str, batch_sizes: Sequence[int], asked: Sequence[float]
) -> Iterator[list[Row]]:
    """A case per batch size.

    Args:
        bench: where and how long.
        hand: file of the hand model.
        batch_sizes: hands at a time.
        asked: promised speedups, one per batch size.
    """
    ours = HandModel.from_file(Path(hand)).to(bench.device)
    theirs = SmplxHand.from_file(Path(hand)).to(bench.device)
    for size, promise in zip(batch_sizes, asked, strict=True):
        pose, betas = poses(size, bench.device)
        layers: dict[str, Any] = {"smplx": theirs, "handmim": ours}
        seconds = bench.race({k: forward_backward(v, pose, betas) for k, v in layers.items()})
        with torch.no_grad():
            off = float((ours(pose, betas).verts_m - theirs(pose, betas).verts_m).abs().max())
        yield compared(
            "hand",
            f"batch {size}, forward and backward",
            seconds,
            "smplx",
            items=size,
            unit="hands",
            asked={"handmim": promise},
            more={"handmim": {"error": off, "error_unit": "m"}},
        )
