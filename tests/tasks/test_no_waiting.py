"""A training step never asks the device for a number: the whole of it runs on the meta device,
where there are shapes and no numbers, and whatever would wait raises."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from handmim.engine.optim import clip_per_tensor
from handmim.engine.step import FiniteGuard, RunningMeans
from handmim.types import CropBatch, StepInfo
from handmim.utils.config import drop_unbuilt
from handmim.utils.run import Run
from handmim.utils.seed import step_generator

CONFIGS = Path(__file__).parents[2] / "configs"
META = torch.device("meta")
WAYS = {
    "handmim": [],
    "handmim-plain": [],
    "ibot": ["views.num_local=2", "views.local_px=24", "optim.clip_by=per_tensor"],
    "dino": [],
    "simmim": [],
    "swav": ["task.objectives.swav.queue_size=8", "views.num_local=2", "views.local_px=24"],
    "lejepa": [],
    "peclr": [],
}


def built(method: str, overrides: list[str]):
    quick = [
        "backbone=vit_nano_p8",
        "data=folder",
        "data.root=x",
        "task.backbone.drop_path_rate=0.1",
    ]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("pretrain", [f"method={method}", *quick, *overrides])
    drop_unbuilt(cfg.task)
    return instantiate(cfg.task), instantiate(cfg.views), instantiate(cfg.optim)


@pytest.mark.parametrize("method", list(WAYS))
def test_views_losses_gradients_teacher_and_logging_wait_for_nothing(method, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # has no meta device
    task, views, recipe = built(method, WAYS[method])
    task = task.to(META).train()
    crops = CropBatch(torch.zeros(4, 3, 64, 64, dtype=torch.uint8, device=META))
    run = Run.start("meta", tmp_path, 0, {}, accelerator="cpu")
    means, guard = RunningMeans(), FiniteGuard(run, task)
    for step in range(2):
        info = StepInfo(step, 10)
        batch = views(crops, step_generator(0, "prepare", step, 0), info)
        assert batch.views.device == META
        result = task(batch, info)
        result.loss.backward()
        task.before_update(info)
        params = [p for p in task.parameters() if p.grad is not None]
        if recipe.clip_by == "per_tensor":
            clip_per_tensor(params, 3.0)
        else:
            torch.nn.utils.clip_grad_norm_(params, 3.0, error_if_nonfinite=False)
        guard.note(step, result.loss)
        task.after_step(info)
        means.add(result.scalars)
    assert {"loss"} <= set(means._sums)


def test_the_meta_device_does_raise_where_something_waits():
    with pytest.raises(RuntimeError, match="meta tensors"):
        bool(torch.zeros((), device=META) > 0)
    with pytest.raises(NotImplementedError, match=r"torch\.nonzero"):
        torch.zeros(4, device=META).nonzero()
