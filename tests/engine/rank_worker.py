"""One of several training processes: `python -m tests.engine.rank_worker FOLDER JOB:CASE...`.

Every process writes <FOLDER>/rank<R>.json: what each job left, or its error.
"""

import json
import math
import sys
from pathlib import Path

import torch
from hydra.utils import instantiate

from handmim.engine.step import RunningMeans, TrainStep
from handmim.types import StepInfo
from handmim.utils.run import Run
from handmim.utils.seed import seed_everything
from tests.engine.rank_cases import IDLE, batch_of, cases, composed

STEPS, MANY = 3, 20


def train(fabric, cfg, batches) -> tuple[torch.nn.Module, list[float]]:
    """Losses of a few steps on given batches, one for each."""
    seed_everything(0)
    task = instantiate(cfg.task).to(fabric.device)
    sizes = {"batch_size": 8, "accumulate": cfg.trainer.accumulate}
    step = TrainStep(fabric, task, instantiate(cfg.optim), **sizes)
    task.train()
    outputs = [step(batch, StepInfo(i, len(batches))) for i, batch in enumerate(batches)]
    return task, [float(output.result.loss.detach()) for output in outputs]


def digest(task: torch.nn.Module) -> list[float]:
    """Two sums over everything that the task keeps, whatever the order of its entries."""
    state = [t.double() for t in task.state_dict().values()]
    sums = [(float(t.sum()), float(t.square().sum())) for t in state]
    return [math.fsum(column) for column in zip(*sums, strict=True)]


def own_batches(run: Run, case) -> dict:
    """Steps in which every process has a batch of its own."""
    cfg = composed(case)
    infos = [StepInfo(step, STEPS) for step in range(STEPS)]
    return trained(run, cfg, [batch_of(cfg, 4, i.step, run.rank, i) for i in infos])


def same_batch(run: Run, case, num: int = 8, steps: int = STEPS) -> dict:
    """Steps with the processes' parts of batches that are the same for any number of processes."""
    cfg = composed(case)
    share = num // run.world_size
    part = run.rank * share, (run.rank + 1) * share
    infos = [StepInfo(step, steps) for step in range(steps)]
    return trained(run, cfg, [batch_of(cfg, num, i.step, 0, i).part(*part) for i in infos])


def many_steps(run: Run, case) -> dict:
    return same_batch(run, case, steps=MANY)


def trained(run: Run, cfg, batches) -> dict:
    task, losses = train(run.fabric, cfg, batches)
    return {"losses": losses, "digest": digest(task)}


def logged(run: Run, case) -> dict:
    """Means of scalars that differ between processes, in value and in name."""
    means = RunningMeans()
    for value in (1.0,) if run.rank == 0 else (3.0, 5.0):
        means.add({"loss": torch.tensor(value), f"only/{run.rank}": torch.tensor(value)})
    return means.take()


JOBS = {"own": own_batches, "same": same_batch, "many": many_steps, "logged": logged}


def work(run: Run, jobs: list[str]) -> dict:
    """What each JOB:CASE gives."""
    known, found = cases() | IDLE, {}
    for name in jobs:
        job, case = name.split(":")
        try:
            found[name] = JOBS[job](run, known.get(case))
        except (ValueError, RuntimeError) as error:  # the test names it
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    run = Run.start("ranks", folder / "run", 0, {}, accelerator="cpu")
    (folder / f"rank{run.rank}.json").write_text(json.dumps(work(run, sys.argv[2:])))
