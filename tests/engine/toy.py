"""A task of one layer, to be trained in no time."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from handmim.engine.optim import OptimizerConfig, Schedule
from handmim.engine.trainer import Trainer
from handmim.types import StepInfo, StepResult
from handmim.utils.json_files import read_rows
from handmim.utils.run import Run


class ToyBatch(NamedTuple):
    x: Tensor
    noise: Tensor

    def part(self, start: int, stop: int) -> "ToyBatch":
        return ToyBatch(self.x[start:stop], self.noise[start:stop])


class ToyTask(nn.Module):
    """One linear layer with dropout; a buffer counts the steps as an EMA would."""

    def __init__(self, poison_step: int = -1) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(3, 1), nn.Dropout(0.1)
        self.register_buffer("ema", torch.zeros(1, 3))
        self.poison_step = poison_step
        self.seen: list[list[float]] = []

    def forward(self, batch: ToyBatch, info: StepInfo) -> StepResult:
        self.seen.append(batch.x[:, 0].tolist())
        out = self.linear(self.dropout(batch.x + 0.02 * batch.noise))
        loss = (out.squeeze(1) - 3 * batch.x.sum(dim=1)).square().mean()
        if info.step == self.poison_step:
            loss = loss * float("nan")
        return StepResult(loss, {"loss": loss.detach()})

    def before_update(self, info: StepInfo) -> None:
        pass

    def after_step(self, info: StepInfo) -> dict[str, float]:
        self.ema.lerp_(self.linear.weight.detach(), 0.5)
        return {"schedule/momentum": 0.5}

    def lr_scales(self) -> dict[str, float]:
        return {"linear.bias": 0.5}

    def images(self, batch: ToyBatch) -> dict:
        return {}


TASKS: list[ToyTask] = []
DATA = [torch.tensor([float(i), i % 3, 1.0]) / 10 for i in range(11)]


def collate(samples: list[Tensor]) -> ToyBatch:
    return ToyBatch(torch.stack(samples), torch.zeros(len(samples), 3))


def prepare(batch: ToyBatch, generator: torch.Generator, info: StepInfo) -> ToyBatch:
    return batch._replace(noise=torch.randn(batch.x.shape, generator=generator))


def optimizer_config() -> OptimizerConfig:
    lr = Schedule(0.05, 0.001, warmup_fraction=0.2)
    return OptimizerConfig(partial(torch.optim.AdamW), lr, weight_decay=0.01, clip_norm=1.0)


def fit(
    folder: Path,
    *,
    resume: str = "never",
    stop_after: int | None = None,
    make=ToyTask,
    meta=None,
    hooks=(),
    seed: int = 0,
    **kwargs,
):
    run = Run.start("toy", folder, seed, {"x": 1}, accelerator="cpu", resume=resume)
    task = make()
    TASKS.append(task)
    settings = {"max_steps": 10, "batch_size": 4, "log_every": 2, "stop_after": stop_after} | kwargs
    trainer = Trainer(**settings)
    how = {"resume": resume, "meta": meta, "hooks": hooks}
    result = trainer.fit(run, task, DATA, collate, prepare, optimizer_config(), **how)
    return task, result


def rows(folder: Path) -> list[dict]:
    found = read_rows(folder / "scalars.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in found]
