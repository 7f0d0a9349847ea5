"""Inference of a whole model: images per second, latency, and time by stage."""

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark.core import Bench, Row, Work, compared, flops_of, peak_flops_per_s
from handmim.data.augment import HandAugment
from handmim.evaluation.inference import InferenceModule
from handmim.evaluation.predictor import PRECISIONS, HandPredictor, autocast_of
from handmim.geometry.crop import similarity
from handmim.hand.skeleton import ROOT_JOINT
from handmim.losses.hand import JointLoss
from handmim.models.heads.hand_head import HandHead
from handmim.models.vit import ViT
from handmim.tasks.mesh import HandRegressionTask
from handmim.utils.timer import Stages

Crops = NDArray[np.uint8]

PLAIN = "one by one"


def model(
    backbone: ViT, head: Callable[..., HandHead], stored_scale: float
) -> tuple[HandRegressionTask, HandAugment]:
    """A task of random weights whose predictions depend on the image, and its augmentation."""
    losses = {"joints3d": JointLoss(root_joint=ROOT_JOINT)}  # a task requires one
    task = HandRegressionTask(backbone, head, losses).eval()
    for name, weight in task.head.named_parameters():
        if name.endswith("out.weight"):  # near zero before training
            torch.nn.init.normal_(weight, std=0.02)
    return task, HandAugment(img_px=backbone.img_px, scale=(stored_scale, stored_scale))


def noise_crops(num: int, side_px: int) -> Crops:
    """[N, S, S, 3] noise."""
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


def predict_one_by_one(
    task: HandRegressionTask, augment: HandAugment, crops: Crops
) -> list[dict[str, Any]]:
    """Vertices, joints and parameters of [N, S, S, 3] crops of right hands as most demonstration
    code predicts them: one image at a time, fp32, eager, fetched piece by piece."""
    device = next(task.parameters()).device
    scale = torch.tensor([augment.evaluation_scale])
    predictions = []
    for crop in crops:
        with torch.no_grad():
            stored = torch.from_numpy(crop.transpose(2, 0, 1)[None].copy()).to(device)
            source_from_crop = similarity(scale, torch.zeros(1), torch.zeros(1, 2)).to(device)
            image = augment.cut(stored, source_from_crop)
            state = task.predict(image)
        fields = {name: value for name, value in state._asdict().items() if value is not None}
        predictions.append({name: value.cpu().numpy()[0] for name, value in fields.items()})
    return predictions


def stage_shares(predictor: HandPredictor, crops: Crops) -> str:
    """Shares of a batch's time by stage."""
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
    promised: Mapping[str, float],
) -> Iterator[list[Row]]:
    """A case per batch size: crops as arrays to hands as arrays; `variants` are a precision
    and arguments of `InferenceModule` by name. The model takes seven eighths of a crop's side."""
    task, augment = model(backbone, head, 7 / 8)
    task = task.to(bench.device)
    crops = noise_crops(max(batch_sizes), crop_px)
    expected = np.stack([a["joints_root_m"] for a in predict_one_by_one(task, augment, crops)])
    one = HandPredictor(InferenceModule(task, augment, bench.device), batch_size=1)
    flops = flops_of(lambda: one(crops[:1]))
    rates = {
        kwargs.get("precision", "32-true"): peak_flops_per_s(
            bench.device, PRECISIONS[kwargs.get("precision", "32-true")] or torch.float32
        )
        for kwargs in variants.values()
    }
    for size in batch_sizes:
        some = crops[:size]
        # each with a model of its own: compiling changes it
        predictors = {
            name: predictor(copy.deepcopy(task), augment, bench.device, size, **kwargs)
            for name, kwargs in variants.items()
        }
        works: dict[str, Work] = {PLAIN: partial(predict_one_by_one, task, augment, some)}
        works |= {name: partial(predict, some) for name, predict in predictors.items()}
        seconds = bench.race(works)
        more: dict[str, dict[str, Any]] = {}
        for name, predict in predictors.items():
            rate = flops * size / statistics.median(seconds[name])
            off = float(np.abs(predict(some).joints_root_m - expected[:size]).max())
            more[name] = {
                "gflop": flops * size / 1e9,
                "peak_share": rate / rates[variants[name].get("precision", "32-true")],
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
            unit="images",
            promised=promised,
            more=more,
        )
