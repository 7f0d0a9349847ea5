"""The pretraining step against a plain one of the same mathematics, and how it scales."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from benchmark.core import Bench, Row, compared, flops_of, peak_flops_per_s, peak_mib
from benchmark.references.plain_step import PlainStep
from handmim.data.views import MaskSampler
from handmim.engine.optim import OptimizerConfig
from handmim.engine.step import TrainStep
from handmim.models.teacher import Centering
from handmim.models.vit import ViT
from handmim.objectives.distillation import ClassDistill, PatchDistill, ProjectionHead
from handmim.pipelines.train import compile_backbones
from handmim.tasks.pretrain import HandMimTask
from handmim.types import PretrainBatch, StepInfo
from handmim.utils.files import write_atomic

LR, DECAY, MOMENTUM, CLIP, TEMP = 1e-4, 0.04, 0.9995, 3.0, 0.04
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}

Step = Callable[[], Mapping[str, Any]]


def noise_batch(
    batch_size: int,
    view_px: int,
    patch_px: int,
    device: torch.device,
    *,
    num_local: int = 0,
    local_px: int = 96,
) -> PretrainBatch:
    """Two views of noise, 30 % of the patches of each masked in blocks, and local crops."""
    g = torch.Generator().manual_seed(0)
    grid = (view_px // patch_px, view_px // patch_px)
    masks = MaskSampler(ratio=(0.3, 0.3), masked_share=1.0)
    is_masked = masks((batch_size, 2), grid, g, StepInfo(0, 1))
    local = torch.rand(batch_size, num_local, 3, local_px, local_px, generator=g)
    return PretrainBatch(
        torch.rand(batch_size, 2, 3, view_px, view_px, generator=g).to(device),
        torch.eye(2, 3, device=device).expand(batch_size, 2, 2, 3),
        is_masked.to(device),
        local_views=local.to(device) if num_local else None,
        known_masked_idx=is_masked.flatten().nonzero().squeeze(1).to(device),
    )


def networks(
    arch: str,
    view_px: int,
    patch_px: int,
    num_prototypes: int,
    drop_path_rate: float,
    **kwargs: Any,
) -> tuple[ViT, Callable[..., ProjectionHead]]:
    """A backbone and the constructor of its head, the same ones at every call."""
    torch.manual_seed(0)
    kwargs |= {"img_px": view_px, "patch_px": patch_px, "drop_path_rate": drop_path_rate}
    return ViT(arch, **kwargs), partial(ProjectionHead, num_prototypes=num_prototypes)


def our_step(
    device: torch.device,
    sizes: Mapping[str, Any],
    batch_args: Mapping[str, Any],
    precision: str = "32-true",
    *,
    over: str = "all",
    compiled: bool = False,
    **kwargs: Any,
) -> Step:
    """Our step as the loop takes it, iBOT's two losses.

    Args:
        device: where.
        sizes: of `networks`.
        batch_args: of `noise_batch`.
        precision: Fabric's.
        over: patches that the centre follows, "all" (iBOT) or "masked" (DINOv2).
        compiled: let torch.compile fuse blocks.
        kwargs: further arguments of the ViT.
    """
    fabric = Fabric(accelerator=device.type, devices=1, precision=precision)  # type: ignore[arg-type]
    backbone, head = networks(**sizes, **kwargs)
    task = HandMimTask(
        backbone,
        {"patch_distill": PatchDistill(), "class_distill": ClassDistill()},
        {"projection": head},
        centering=partial(Centering, over=over),
        momentum=MOMENTUM,
        teacher_temp=TEMP,
    ).to(device)
    if compiled:
        compile_backbones(task)
    config = OptimizerConfig(torch.optim.AdamW, LR, DECAY, CLIP, clip_by="per_tensor")
    step = TrainStep(fabric, task, config, batch_size=1)
    batch, info = noise_batch(device=device, **batch_args), StepInfo(0, 1)
    return lambda: step(batch, info).result.scalars


def plain_step(
    device: torch.device,
    sizes: Mapping[str, Any],
    batch_args: Mapping[str, Any],
    precision: str = "32-true",
    *,
    over: str = "all",
) -> Step:
    """The plain step on the same batch, from the same weights; arguments as `our_step`."""
    backbone, head = networks(**sizes)
    rates = {"lr": LR, "weight_decay": DECAY, "momentum": MOMENTUM, "clip_norm": CLIP}
    plain = PlainStep(
        backbone.to(device),
        head(dim=backbone.embed_dim).to(device),
        **rates,
        teacher_temp=TEMP,
        precision=precision,
        over=over,
    )
    batch = noise_batch(device=device, **batch_args)
    return lambda: plain(batch)


def loss_gap(
    device: torch.device,
    sizes: Mapping[str, Any],
    batch_args: Mapping[str, Any],
    steps: int = 3,
    **kwargs: Any,
) -> float:
    """Largest difference of the losses of both over some steps, no paths dropped; `kwargs` of
    `our_step`, in whose precision both run."""
    sizes = {**sizes, "drop_path_rate": 0.0}
    ours = our_step(device, sizes, batch_args, **kwargs)
    same = {"over": kwargs.get("over", "all")}
    plain = plain_step(device, sizes, batch_args, kwargs.get("precision", "32-true"), **same)
    pairs = [(ours(), plain()) for _ in range(steps)]
    return max(abs(float(a["loss"]) - float(b["loss"])) for a, b in pairs)


def write_profile(step: Step, folder: Path) -> None:
    """Profile one step: a trace with every call, and a table by kernel."""
    folder.mkdir(parents=True, exist_ok=True)
    step()
    with torch.profiler.profile(profile_memory=True) as found:  # of all devices that there are
        step()
    found.export_chrome_trace(str(folder / "trace.json"))
    by_time = f"self_{'cuda' if torch.cuda.is_available() else 'cpu'}_time_total"
    table = found.key_averages().table(sort_by=by_time, row_limit=40, max_name_column_width=60)
    write_atomic(folder / "kernels.txt", table + "\n")


def measure(
    bench: Bench,
    *,
    arch: str,
    batch_size: int,
    memory_batch_size: int,
    view_px: int,
    patch_px: int,
    num_prototypes: int,
    drop_path_rate: float,
    num_local: int,
    local_px: int,
    variants: Mapping[str, Mapping[str, Any]],
    plain: Sequence[str],
    promised: Mapping[str, float],
    over: str = "all",
    profile: str | None = None,
) -> Iterator[list[Row]]:
    """Speed at one batch size, memory at another; a compiled variant has no measured memory.

    With local crops, which the plain step does not have, the case has our variants alone. `profile`
    is a folder for a profile of a step of the last variant: trace.json (for chrome://tracing or
    perfetto.dev) and kernels.txt.
    """
    sizes = {
        "arch": arch,
        "view_px": view_px,
        "patch_px": patch_px,
        "num_prototypes": num_prototypes,
        "drop_path_rate": drop_path_rate,
    }
    batch_args: dict[str, Any] = {"batch_size": batch_size, "view_px": view_px}
    batch_args |= {"patch_px": patch_px, "num_local": num_local, "local_px": local_px}
    device = bench.device
    makers: dict[str, tuple[Callable[..., Step], dict[str, Any]]] = {}
    if not num_local:
        makers = {
            f"plain {name}": (plain_step, {"precision": name, "over": over}) for name in plain
        }
    makers |= {name: (our_step, {"over": over, **kwargs}) for name, kwargs in variants.items()}
    steps = {
        name: make(device, sizes, batch_args, **kwargs) for name, (make, kwargs) in makers.items()
    }
    reference = next(iter(steps))
    rates = {p: peak_flops_per_s(device, dtype) for p, dtype in DTYPES.items()}
    seconds = bench.race(steps)
    more: dict[str, dict[str, Any]] = {}
    for name, (_, kwargs) in makers.items():
        flops = flops_of(steps[name])
        rate = flops / statistics.median(seconds[name])
        share = rate / rates[kwargs.get("precision", "32-true")]
        more[name] = {"gflop": flops / 1e9, "peak_share": share}
    if profile is not None:
        write_profile(steps[next(reversed(steps))], Path(profile))
    steps.clear()
    if not num_local:
        ours = next(iter(variants))
        few = {**batch_args, "batch_size": min(batch_size, 2)}
        gap = loss_gap(device, sizes, few, **makers[ours][1])
        more.setdefault(ours, {}).update(error=gap, error_unit="loss")
    case = f"{arch}, {batch_size} crops, {view_px} px, K {num_prototypes}, centre over {over}"
    case += f", {num_local} local crops" if num_local else ""
    yield compared(
        "step",
        case,
        seconds,
        reference,
        items=batch_size,
        unit="crops",
        promised=promised,
        more=more,
    )
    for precision in () if num_local else plain[1:]:  # against the plain step in this precision
        own = [k for k, (_, kwargs) in makers.items() if kwargs.get("precision") == precision]
        of_own = {name: seconds[name] for name in own}
        yield compared(
            "step", f"{case}, in {precision}", of_own, own[0], items=batch_size, unit="crops"
        )
    if memory_batch_size:
        yield _memory(makers, sizes, {**batch_args, "batch_size": memory_batch_size}, device)


def _memory(
    makers: Mapping[str, tuple[Callable[..., Step], dict[str, Any]]],
    sizes: Mapping[str, Any],
    batch_args: Mapping[str, Any],
    device: torch.device,
) -> list[Row]:
    """Peaks, and their shares of the plain step's at the same precision where that was measured."""
    peaks = {
        name: peak_mib(partial(make, **kwargs), device, sizes, batch_args, device=device)
        for name, (make, kwargs) in makers.items()
        if not kwargs.get("compiled")
    }
    rows = []
    for name, peak in peaks.items():
        plain = peaks.get(f"plain {makers[name][1].get('precision', '32-true')}")
        share = None if plain is None or makers[name][0] is plain_step else peak / plain
        case = f"peak memory, {batch_args['batch_size']} crops"
        rows.append(Row("step", case, name, peak_mib=peak, memory_share=share))
    return rows


def measure_scaling(
    bench: Bench,
    *,
    arch: str,
    drop_path_rate: float,
    precision: str,
    base: Mapping[str, int],
    grow: Mapping[str, Sequence[int]],
) -> Iterator[list[Row]]:
    """A case per size that grows, the others as in the base; speed is relative to its first value,
    per crop.

    Raises: ValueError for a name that is no size.
    """
    unknown = sorted(set(grow) - set(base))
    if unknown:
        raise ValueError(f"grow must name sizes of {sorted(base)}, got {unknown}")
    for name, values in grow.items():
        steps, more = {}, {}
        for value in values:
            made = {**base, name: value}
            batch = {k: made[k] for k in ("batch_size", "view_px", "patch_px")}
            sizes: dict[str, Any] = {
                "arch": arch,
                "drop_path_rate": drop_path_rate,
                **{k: made[k] for k in ("view_px", "patch_px", "num_prototypes")},
            }
            make, label = partial(our_step, precision=precision), str(value)
            steps[label] = make(bench.device, sizes, batch)
            more[label] = {
                "gflop": flops_of(steps[label]) / 1e9,
                "peak_mib": peak_mib(make, bench.device, sizes, batch, device=bench.device),
            }
        seconds, num = bench.race(steps), base["batch_size"]
        per_crop = {}
        for value, (label, times) in zip(values, seconds.items(), strict=True):
            crops = value if name == "batch_size" else num
            per_crop[label] = [s / crops for s in times]
        first = str(values[0])
        yield compared("scaling", f"{name}, per crop", per_crop, first, unit="crops", more=more)
