"""A trained model at work: pictures a second, latency, and where the time goes."""

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark.ceiling import flops_of, matmul_flops_per_s
from benchmark.race import Bench, Row, compared
from benchmark.references.plain_predictor import predict_one_by_one
from handmim.data.augment import HandAugment
from handmim.evaluation.inference import InferenceModule
from handmim.evaluation.predictor import PRECISIONS, HandPredictor, autocast_of
from handmim.hand.skeleton import ROOT_JOINT
from handmim.losses.joints import JointLoss
from handmim.models.heads.hand_head import HandHead
from handmim.models.vit import ViT
from handmim.tasks.mesh import HandRegressionTask
from handmim.utils.timer import Stages

Crops = NDArray[np.uint8]

PLAIN = "one by one"


def model(
    backbone: ViT, head: Callable[..., HandHead], stored_scale: float
) -> tuple[HandRegressionTask, HandAugment]:
    """A task of random weights that answer to the picture, and its crop rule."""
    losses = {"joints3d": JointLoss(root_joint=ROOT_JOINT)}  # a task wants one
    task = HandRegressionTask(backbone, head, losses).eval()
    for name, weight in task.head.named_parameters():
        if name.endswith("out.weight"):  # near zero before training
            torch.nn.init.normal_(weight, std=0.02)
    return task, HandAugment(img_px=backbone.img_px, scale=(stored_scale, stored_scale))


def noise_crops(num: int, side_px: int) -> Crops:
    """[N, S, S, 3] of no hands."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (num, side_px, side_px, 3), dtype=np.uint8)


def predictor(
    task: HandRegressionTask,
    augment: HandAugment,
    device: torch.device,
    batch_size: int,
    precision: str = "32-true",
    **options: Any,
) -> HandPredictor:
    """A model at a precision; options as `InferenceModule` takes them."""
    autocast = autocast_of(precision, device)
    module = InferenceModule(task, augment, device, autocast=autocast, **options)
    return HandPredictor(module, batch_size)


def stage_shares(predictor: HandPredictor, crops: Crops) -> str:
    """Where a batch's time goes, by stage."""
    stages = Stages(predictor.device)
    for _ in range(3):
        predictor(crops, stages=stages)
    seconds = stages.seconds_per_item
    total = sum(seconds.values())
    return ", ".join(f"{stage} {each / total:.0%}" for stage, each in seconds.items())


def measure(
    bench: Bench,
    *,
    backbone: ViT,
    head: Callable[..., HandHead],
    crop_px: int,
    batch_sizes: Sequence[int],
    variants: Mapping[str, Mapping[str, Any]],
    asked: Mapping[str, float],
) -> Iterator[list[Row]]:
    """A case per batch size: crops as arrays to hands as arrays.

    Args:
        bench: where and how long.
        backbone, head: of the model.
        crop_px: side of the stored crops; the model looks at seven eighths of it.
        batch_sizes: crops at a time.
        variants: precision and arguments of `InferenceModule` by name.
        asked: promised speedups by variant, at every batch size.
    """
    task, augment = model(backbone, head, 7 / 8)
    task = task.to(bench.device)
    crops = noise_crops(max(batch_sizes), crop_px)
    truth = np.stack([a["joints_root_m"] for a in predict_one_by_one(task, augment, crops)])
    one = HandPredictor(InferenceModule(task, augment, bench.device), batch_size=1)
    flops = flops_of(lambda: one(crops[:1]))
    rates = {
        how.get("precision", "32-true"): matmul_flops_per_s(
            bench.device, PRECISIONS[how.get("precision", "32-true")] or torch.float32
        )
        for how in variants.values()
    }
    for size in batch_sizes:
        some = crops[:size]
        # each with a model of its own: compiling changes it
        predictors = {
            name: predictor(copy.deepcopy(task), augment, bench.device, size, **how)
            for name, how in variants.items()
        }
        works: dict[str, Callable[[], object]] = {
            PLAIN: partial(predict_one_by_one, task, augment, some)
        }
        works |= {name: partial(predict, some) for name, predict in predictors.items()}
        seconds = bench.race(works)
        more: dict[str, dict[str, Any]] = {}
        for name, predict in predictors.items():
            rate = flops * size / statistics.median(seconds[name])
            off = float(np.abs(predict(some).joints_root_m - truth[:size]).max())
            more[name] = {
                "gflop": flops * size / 1e9,
                "ceiling_share": rate / rates[variants[name].get("precision", "32-true")],
                "error": off,
                "error_unit": "m",
                "note": stage_shares(predict, some),
            }
        yield compared(
            "inference",
            f"{backbone.timm_name}, batch {size}",
            seconds,
            PLAIN,
            items=size,
            unit="pictures",
            asked=asked,
            more=more,
        )
