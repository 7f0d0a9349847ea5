"""The hand layer against smplx: pose and shape to vertices and joints, forward and backward."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmark.race import Bench, Row, compared
from handmim.hand.adapters import smplx_data
from handmim.hand.arrays import HandArrays
from handmim.hand.io import load_hand_arrays
from handmim.hand.model import HandModel

Layer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
HANDS_OF_A_ROUND = 64  # one call with few is too short for a clock


def plain_smplx(arrays: HandArrays) -> nn.Module:
    """`smplx.MANO` as its users build it for all 45 angles, without parameters of its own."""
    import smplx

    with contextlib.redirect_stdout(io.StringIO()):  # it remarks on ten betas
        return smplx.MANO(
            model_path="",
            data_struct=smplx_data(arrays),
            is_rhand=arrays.side == "right",
            use_pca=False,
            num_pca_comps=45,
            flat_hand_mean=True,
            **{
                f"create_{name}": False
                for name in ("betas", "global_orient", "hand_pose", "transl", "body_pose")
            },
        )


def poses(batch_size: int, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Axis-angle [B, 48] radians and betas [B, 10] of hands that are bent and of any shape."""
    g = torch.Generator().manual_seed(seed)
    pose = 0.4 * torch.randn(batch_size, 48, generator=g)
    return pose.to(device), torch.randn(batch_size, 10, generator=g).to(device)


def forward_backward(layer: Layer, pose: Tensor, betas: Tensor, times: int) -> Callable[[], object]:
    """Work: vertices and joints, and the gradients of pose and betas from theirs."""
    inputs = (pose.clone().requires_grad_(), betas.clone().requires_grad_())
    g = torch.Generator(pose.device).manual_seed(1)
    grads = [torch.randn(out.shape, generator=g, device=pose.device) for out in layer(pose, betas)]

    def work() -> None:
        for _ in range(times):
            torch.autograd.grad(layer(*inputs), inputs, grads)

    return work


def measure(
    bench: Bench, *, hand: str, batch_sizes: Sequence[int], asked: Sequence[float]
) -> Iterator[list[Row]]:
    """A case per batch size; ours answers with 21 joints instead of 16.

    Args:
        bench: where and how long.
        hand: file of the hand model.
        batch_sizes: hands at a time.
        asked: promised speedups, one per batch size.
    """
    arrays = load_hand_arrays(Path(hand))
    ours, theirs = HandModel(arrays).to(bench.device), plain_smplx(arrays).to(bench.device)

    def smplx(pose: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        out = theirs(betas=betas, global_orient=pose[:, :3], hand_pose=pose[:, 3:])
        return out.vertices, out.joints

    def handmim(pose: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        mesh = ours(pose, betas)
        return mesh.verts_m, mesh.joints_m

    for size, promise in zip(batch_sizes, asked, strict=True):
        pose, betas = poses(size, bench.device)
        times = max(HANDS_OF_A_ROUND // size, 1)
        layers: dict[str, Layer] = {"smplx": smplx, "handmim": handmim}
        seconds = bench.race(
            {name: forward_backward(layer, pose, betas, times) for name, layer in layers.items()}
        )
        with torch.no_grad():
            off = float((smplx(pose, betas)[0] - handmim(pose, betas)[0]).abs().max())
        yield compared(
            "hand",
            f"batch {size}, forward and backward",
            {name: [s / times for s in each] for name, each in seconds.items()},
            "smplx",
            items=size,
            unit="hands",
            asked={"handmim": promise},
            more={"handmim": {"error": off, "error_unit": "m"}},
        )
