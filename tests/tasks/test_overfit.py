"""Every head can learn a few images by heart: 64 renders to below 2 mm per vertex."""

import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from handmim.data.loader import collate_hands
from handmim.tasks.mesh import HandRegressionTask
from handmim.types import HandBatch, HandState, StepInfo
from tests.engine.rank_cases import SMALL

REPO = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
LR, WARMUP = 2e-3, 30  # of AdamW without decay, then a cosine: the same for every head
STEPS = 200


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("renders")


def composed(cache: Path, num: int, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(REPO / "configs"), version_base="1.3"):
        return compose(
            "finetune",
            overrides=[
                "experiment=cpu_finetune",
                f"data.num_train={num}",
                "data.num_workers=0",
                f"data.cache_dir={cache}",
                f"paths.data_dir={REPO / 'data'}",
                *overrides,
            ],
        )


def learned_by_heart(cfg: DictConfig, steps: int) -> tuple[HandBatch, HandState]:
    """The images as evaluation crops them, and the estimate after `steps` of training on them."""
    torch.manual_seed(0)
    task: HandRegressionTask = instantiate(cfg.task)
    augment, renders = instantiate(cfg.augment), instantiate(cfg.data.train)
    some = [renders[i] for i in range(len(renders))]
    task.start_from_labels(some, augment, CPU)
    batch = augment.evaluate(collate_hands(some))
    params = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=LR, weight_decay=0.0)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    task.train()
    for step in range(steps):
        task(batch, StepInfo(step, steps)).loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    task.eval()
    with torch.no_grad():
        estimate = task.predict(batch.image, batch.joint_convention, batch.intrinsics)
    assert isinstance(estimate, HandState)
    return batch, estimate


def mm(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm(dim=-1).mean() * 1e3)


def mpvpe_mm(batch: HandBatch, estimate: HandState) -> float:
    return mm(estimate.verts_root_m, batch.verts_cam_m - batch.joints_cam_m[:, 9, None])


def test_eight_images_are_learned_quickly(cache):
    batch, estimate = learned_by_heart(composed(cache, 8, *SMALL["iterative_small"]), 60)
    assert mpvpe_mm(batch, estimate) < 5.0


@pytest.mark.slow
@pytest.mark.parametrize("head", [("head=pymaf_small",), *SMALL.values()], ids=lambda v: v[0])
def test_every_head_learns_64_images_by_heart(cache, head):
    batch, estimate = learned_by_heart(composed(cache, 64, *head), STEPS)
    assert mpvpe_mm(batch, estimate) < 2.0


@pytest.mark.slow
def test_a_true_camera_learns_where_hands_stand(cache):
    cfg = composed(cache, 64, *SMALL["iterative_small"], "task.head.camera=pinhole")
    batch, estimate = learned_by_heart(cfg, STEPS)
    assert mpvpe_mm(batch, estimate) < 2.0
    assert estimate.transl_cam_m is not None
    assert estimate.is_metric is not None
    assert estimate.is_metric.all()
    placed = estimate.joints_root_m + estimate.transl_cam_m[:, None]
    assert mm(placed, batch.joints_cam_m) < 20.0
