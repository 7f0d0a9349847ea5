"""The hand layer against smplx, regression heads beside their backbone, and the renderer."""

import contextlib
import io
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.core import Bench, Row, Work, compared, flops_of
from handmim.hand.adapters import smplx_data
from handmim.hand.io import HandArrays, load_hand_arrays
from handmim.hand.model import HandModel
from handmim.models.heads.hand_head import HandHead
from handmim.models.vit import ViT
from handmim.render.scene import SceneRenderer, SceneSettings
from handmim.types import Intrinsics, Tokens

Layer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
HANDS_OF_A_ROUND = 64  # one call with few is too short for a clock


def plain_smplx(arrays: HandArrays) -> nn.Module:
    """`smplx.MANO` as its users build it for all 45 angles, without parameters of its own."""
    import smplx

    names = ("betas", "global_orient", "hand_pose", "transl", "body_pose")
    with contextlib.redirect_stdout(io.StringIO()):  # it remarks on ten betas
        return smplx.MANO(
            model_path="",
            data_struct=smplx_data(arrays),
            is_rhand=arrays.side == "right",
            use_pca=False,
            num_pca_comps=45,
            flat_hand_mean=True,
            **{f"create_{name}": False for name in names},
        )


def poses(batch_size: int, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Axis-angle [B, 48] radians and betas [B, 10] of hands that are bent and of any shape."""
    g = torch.Generator().manual_seed(seed)
    pose = 0.4 * torch.randn(batch_size, 48, generator=g)
    return pose.to(device), torch.randn(batch_size, 10, generator=g).to(device)


def forward_backward(layer: Layer, pose: Tensor, betas: Tensor, times: int) -> Work:
    """Work: vertices and joints, and the gradients of pose and betas from theirs."""
    inputs = (pose.clone().requires_grad_(), betas.clone().requires_grad_())
    g = torch.Generator(pose.device).manual_seed(1)
    grads = [torch.randn(out.shape, generator=g, device=pose.device) for out in layer(pose, betas)]

    def work() -> None:
        for _ in range(times):
            torch.autograd.grad(layer(*inputs), inputs, grads)

    return work


def measure(
    bench: Bench, *, hand: str, batch_sizes: Sequence[int], promised: Sequence[float]
) -> Iterator[list[Row]]:
    """A case per batch size; ours returns 21 joints instead of 16."""
    arrays = load_hand_arrays(Path(hand))
    ours, theirs = HandModel(arrays).to(bench.device), plain_smplx(arrays).to(bench.device)

    def smplx(pose: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        out = theirs(betas=betas, global_orient=pose[:, :3], hand_pose=pose[:, 3:])
        return out.vertices, out.joints

    def handmim(pose: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        mesh = ours(pose, betas)
        return mesh.verts_m, mesh.joints_m

    for size, promise in zip(batch_sizes, promised, strict=True):
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
            promised={"handmim": promise},
            more={"handmim": {"error": off, "error_unit": "m"}},
        )


def measure_heads(
    bench: Bench,
    *,
    backbone: ViT,
    heads: Mapping[str, Callable[..., HandHead]],
    batch_size: int,
    shares: Mapping[str, float],
) -> Iterator[list[Row]]:
    """One case: heads against their backbone, on random images.

    Time is of forward and backward passes, operations are of forward ones. `shares` of the
    backbone's time are promised.

    Raises: ValueError for a promise without its head.
    """
    unknown = sorted(set(shares) - set(heads))
    if unknown:
        raise ValueError(f"shares must name heads of {sorted(heads)}, got {unknown}")
    backbone = backbone.to(bench.device)
    backbone.mask_token.requires_grad_(False)  # nothing is masked
    side = backbone.img_px
    images = torch.rand(batch_size, 3, side, side, device=bench.device)
    built = {name: make(dim=backbone.embed_dim).to(bench.device) for name, make in heads.items()}
    works = {"backbone": _backbone_work(backbone, images)}
    works |= {name: _head_work(head, backbone, images) for name, head in built.items()}
    seconds = bench.race(works)
    time = {name: statistics.median(each) for name, each in seconds.items()}
    whole = forward_flops(backbone, images)
    more = {}
    for name, head in built.items():
        flops = forward_flops(head, *inputs_of(head, backbone, images))
        more[name] = {
            "note": f"{time[name] / time['backbone']:.1%} of its time,"
            f" {flops / whole:.1%} of its operations,"
            f" {sum(p.numel() for p in head.parameters()) / 1e6:.2f} M parameters"
        }
    yield compared(
        "head",
        f"heads on a backbone, batch {batch_size}, forward and backward",
        seconds,
        "backbone",
        items=batch_size,
        unit="images",
        promised={name: 1 / share for name, share in shares.items()},
        more=more,
    )


def _backbone_work(backbone: ViT, images: Tensor) -> Work:
    def work() -> None:
        backbone.zero_grad()
        tokens = backbone(images)
        _squares([tokens.cls, tokens.patches]).backward()

    return work


def _head_work(head: HandHead, backbone: ViT, images: Tensor) -> Work:
    tokens, intrinsics = inputs_of(head, backbone, images)

    def work() -> None:
        head.zero_grad()
        out = head(_leaves(tokens), intrinsics)
        _squares([s.verts_root_m for s in out.steps] + [s.cam for s in out.steps]).backward()

    return work


def inputs_of(head: HandHead, backbone: ViT, images: Tensor) -> tuple[Tokens, Intrinsics]:
    """Inputs of a head: tokens of the images and a known camera."""
    with torch.no_grad():
        tokens = backbone(images, taps=head.tapped_blocks)
    batch_size, side = len(images), images.shape[-1]
    focal = torch.diag(torch.tensor([2.0 * side, 2.0 * side, 1.0], device=images.device))
    known = torch.ones(batch_size, dtype=torch.bool, device=images.device)
    return tokens, Intrinsics(focal.expand(batch_size, 3, 3), known, side)


def forward_flops(module: nn.Module, *inputs: Any) -> int:
    """Operations without gradients: PyTorch counts too many of depthwise convolutions' backward
    passes."""
    with torch.no_grad():
        return flops_of(lambda: module(*inputs))


def _squares(parts: Sequence[Tensor]) -> Tensor:
    """A loss of every number."""
    return torch.stack([part.float().square().sum() for part in parts]).sum()


def _leaves(tokens: Tokens) -> Tokens:
    """Tokens whose gradient ends in them, as it would go on into the backbone."""
    cls, patches = (t.detach().requires_grad_() for t in (tokens.cls, tokens.patches))
    taps = tuple(t.detach().requires_grad_() for t in tokens.taps)
    return Tokens(cls, patches, tokens.grid_hw, taps)


def next_images(renderer: SceneRenderer, num: int) -> Work:
    """Work: the next `num` images of a scene."""
    rounds = count()
    renderer.render(0)  # compiles, and draws the first block of poses

    def work() -> None:
        start = num * next(rounds)
        for index in range(start, start + num):
            renderer.render(index)

    return work


def measure_render(
    bench: Bench,
    *,
    hand: str,
    images: int,
    scenes: Mapping[str, Mapping[str, Any]],
    reference: str,
    promised_per_s: Mapping[str, float],
) -> Iterator[list[Row]]:
    """One case: fields of `SceneSettings` by name, on a processor whatever the device is."""
    arrays = load_hand_arrays(Path(hand))
    works = {
        name: next_images(SceneRenderer(arrays, SceneSettings(**fields)), images)
        for name, fields in scenes.items()
    }
    seconds = Bench(torch.device("cpu"), bench.rounds).race(works)
    more = {name: {"promised_per_s": rate} for name, rate in promised_per_s.items()}
    case = "random hand images"
    yield compared("render", case, seconds, reference, items=images, unit="images", more=more)
