import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from handmim.contracts import StepInfo, StepResult
from handmim.engine.checkpoint import (
    check_same_run,
    check_targets,
    load_checkpoint,
    save_checkpoint,
)
from handmim.engine.loop import StopRun, Trainer
from handmim.engine.optim import OptimRecipe, clip_per_tensor, param_groups, scaled_lr
from handmim.engine.sampler import StepSampler
from handmim.engine.schedule import Schedule, as_schedule
from handmim.utils.files import replaced_folder
from handmim.utils.run import Run


class ToyBatch(NamedTuple):
    x: Tensor
    noise: Tensor


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

    def pictures(self, batch: ToyBatch) -> dict:
        return {}


TASKS: list[ToyTask] = []
DATA = [torch.tensor([float(i), i % 3, 1.0]) / 10 for i in range(11)]


def collate(samples: list[Tensor]) -> ToyBatch:
    return ToyBatch(torch.stack(samples), torch.zeros(len(samples), 3))


def prepare(batch: ToyBatch, generator: torch.Generator, info: StepInfo) -> ToyBatch:
    return batch._replace(noise=torch.randn(batch.x.shape, generator=generator))


def recipe() -> OptimRecipe:
    lr = Schedule(0.05, 0.001, warmup_fraction=0.2)
    return OptimRecipe(partial(torch.optim.AdamW), lr, weight_decay=0.01, clip_norm=1.0)


def fit(
    folder: Path,
    *,
    resume: str = "never",
    stop_after: int | None = None,
    make=ToyTask,
    meta=None,
    hooks=(),
    **kwargs,
):
    run = Run.start("toy", folder, 0, {"x": 1}, accelerator="cpu", resume=resume)
    task = make()
    TASKS.append(task)
    settings = {"max_steps": 10, "batch_size": 4, "log_every": 2, "stop_after": stop_after} | kwargs
    trainer = Trainer(**settings)
    how = {"resume": resume, "meta": meta, "hooks": hooks}
    result = trainer.fit(run, task, DATA, collate, prepare, recipe(), **how)
    return task, result


def rows(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in found]


def test_loss_falls_and_everything_is_logged(tmp_path):
    _, result = fit(tmp_path, max_steps=120)
    logged = rows(tmp_path)
    assert sum(r["loss"] for r in logged[-5:]) < 0.5 * sum(r["loss"] for r in logged[:5])
    assert [row["step"] for row in logged] == list(range(2, 121, 2))
    assert {"schedule/lr", "schedule/momentum", "gradient_norm"} <= set(logged[0])
    assert result.step == 120
    assert not result.interrupted
    assert {"config.yaml", "run.json", "log.txt", "last.pt"} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, stop):
    whole, _ = fit(tmp_path / "whole")
    first, result = fit(tmp_path / "parts", stop_after=stop)
    assert result.interrupted
    assert result.step == stop
    second, result = fit(tmp_path / "parts", resume="auto")
    assert not result.interrupted
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert first.seen + second.seen == whole.seen
    a = load_checkpoint(tmp_path / "whole" / "last.pt")["optimizer"]["state"]
    b = load_checkpoint(tmp_path / "parts" / "last.pt")["optimizer"]["state"]
    assert all(torch.equal(a[i]["exp_avg"], b[i]["exp_avg"]) for i in a)
    if stop % 2 == 0:  # logged means are cut where the run was
        assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_same_seed_gives_the_same_run_and_another_does_not(tmp_path):
    a, _ = fit(tmp_path / "a")
    b, _ = fit(tmp_path / "b")
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert torch.equal(a.linear.weight, b.linear.weight)


def test_signal_saves_and_the_handler_is_restored(tmp_path):
    class Interrupting(ToyTask):
        def after_step(self, info):
            if info.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().after_step(info)

    before = signal.getsignal(signal.SIGTERM)
    _, result = fit(tmp_path, make=Interrupting)
    assert result.interrupted
    assert result.step == 4
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4
    assert signal.getsignal(signal.SIGTERM) is before


def test_nonfinite_loss_stops_before_the_update_and_keeps_the_batch(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 5 \(bad: loss\).*no update"):
        fit(tmp_path, make=partial(ToyTask, poison_step=5))
    poisoned = TASKS[-1]
    clean, _ = fit(tmp_path / "clean", stop_after=5)
    assert torch.equal(poisoned.linear.weight, clean.linear.weight)
    kept = load_checkpoint(tmp_path / "nonfinite_step_0000005_rank0.pt")
    assert kept["batch"]["x"].shape == (4, 3)


def test_a_nonfinite_gradient_of_a_finite_loss_is_refused_too(tmp_path):
    class Sharp(ToyTask):
        def forward(self, batch, info):
            result = super().forward(batch, info)
            if info.step != 3:
                return result
            zero = (self.linear.weight * 0).sum()  # sqrt has an infinite slope at 0
            return StepResult(result.loss + zero.sqrt(), result.scalars)

    with pytest.raises(FloatingPointError, match="gradient norm is not finite at step 3"):
        fit(tmp_path, make=Sharp)
    assert TASKS[-1].linear.weight.isfinite().all()


def test_hooks_run_when_due_without_gradients(tmp_path):
    class Hook:
        every, at_start = 4, True

        def __init__(self):
            self.calls = []

        def __call__(self, task, info, run):
            self.calls.append((info.step, task.training, torch.is_grad_enabled()))
            return {"probe/x": float(info.step)}

    hook, task = Hook(), ToyTask()
    run = Run.start("toy", tmp_path, 0, {}, accelerator="cpu")
    Trainer(max_steps=10, batch_size=4, log_every=5).fit(
        run, task, DATA, collate, prepare, recipe(), hooks=[hook]
    )
    assert hook.calls == [(step, False, False) for step in (0, 4, 8, 10)]
    probed = {row["step"]: row["probe/x"] for row in rows(tmp_path) if "probe/x" in row}
    assert probed == {0: 0.0, 4: 4.0, 8: 8.0, 10: 10.0}
    assert task.training


class Stopping:
    every, at_start = 3, True

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, task, info, run):
        if info.step == self.at:
            raise StopRun("the points are dead", {"alarms/x": 1.0})
        return {"alarms/x": 0.0}


def test_a_hook_stops_the_run_which_keeps_its_reason_and_can_go_on(tmp_path):
    _, result = fit(tmp_path, hooks=[Stopping(at=6)])
    assert (result.step, result.interrupted, result.reason) == (6, True, "the points are dead")
    stopped = json.loads((tmp_path / "run.json").read_text())["stopped"]
    assert stopped == {"step": 6, "reason": "the points are dead"}
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 6
    assert {r["step"]: r["alarms/x"] for r in rows(tmp_path) if "alarms/x" in r} == {
        0: 0.0,
        3: 0.0,
        6: 1.0,
    }
    assert "the points are dead: stopped after step 6" in (tmp_path / "log.txt").read_text()
    parts, result = fit(tmp_path, resume="auto")
    assert (result.interrupted, result.reason) == (False, None)
    whole, _ = fit(tmp_path.parent / "whole")
    assert torch.equal(whole.linear.weight, parts.linear.weight)
    assert "stopped" not in json.loads((tmp_path / "run.json").read_text())


@pytest.mark.parametrize(("at", "early"), [(0, True), (10, False)])
def test_a_run_may_be_stopped_before_its_first_and_after_its_last_step(at, early, tmp_path):
    _, result = fit(tmp_path, hooks=[Stopping(at)])
    assert (result.step, result.interrupted, result.reason) == (at, early, "the points are dead")
    assert json.loads((tmp_path / "run.json").read_text())["stopped"]["step"] == at


def test_hooks_draw_beside_the_task(tmp_path):
    class Drawing:
        every, at_start = None, False

        def __call__(self, task, info, run):
            return {}

        def pictures(self, task, run):
            assert not task.training
            return {"grey": np.full((4, 4, 3), 128, np.uint8)}

    task, _ = fit(tmp_path, hooks=[Drawing(), Stopping(99)], picture_every=4)
    drawn = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert drawn == [f"step_{step:07d}_grey.png" for step in (4, 8, 10)]
    assert task.training


def test_resume_refuses_other_settings(tmp_path):
    fit(tmp_path, stop_after=3)
    with pytest.raises(ValueError, match="batch_size: 4 there, 8 here"):
        fit(tmp_path, resume="auto", batch_size=8)


@pytest.mark.parametrize(
    ("key", "free"),
    [
        ("optim.lr.start", False),
        ("task.losses.a.weight", False),
        ("data.train.split", False),
        ("data.image_px", False),
        ("hand.left_shapedirs", False),
        ("machine.precision", False),
        ("seed", False),
        ("trainer.max_steps", False),
        ("machine.devices", True),
        ("trainer.save_every", True),
        ("name", True),
        ("paths.run_root", True),
        ("probe.every", True),
        ("data.num_workers", True),
        ("data.val.num", True),
        # moved files: counts and hashes are compared instead
        ("data.train.root", True),
        ("data.train.hand_path", True),
        ("hand.path", True),
        ("task.head.hand.path", True),
        ("data.test.split", True),
    ],
)
def test_every_setting_that_decides_the_result_is_compared(key, free, tmp_path):
    def nested(value):
        for part in reversed(key.split(".")):
            value = {part: value}
        return value

    saved = {"identity": {}, "config": nested(1)}
    if free:
        check_same_run(saved, {}, nested(2), tmp_path)
        return
    with pytest.raises(ValueError, match=f"{key}: 1 there, 2 here"):
        check_same_run(saved, {}, nested(2), tmp_path)
    with pytest.raises(ValueError, match=f"{key}: 1 there, None here"):
        check_same_run(saved, {}, {}, tmp_path)


def test_content_named_by_a_hash_must_be_the_same(tmp_path):
    fit(tmp_path, stop_after=3, meta={"hand": "a", "hand_sha256": "1" * 64})
    fit(tmp_path, resume="auto", stop_after=1, meta={"hand": "b", "hand_sha256": "1" * 64})
    with pytest.raises(ValueError, match=r"hand_sha256: 1+ there, 2+ here"):
        fit(tmp_path, resume="auto", meta={"hand": "a", "hand_sha256": "2" * 64})


def test_only_our_own_parts_are_built_from_a_checkpoint():
    for good in (
        "handmim.tasks.finetune.HandRegressionTask",
        "handmim.hand.model.HandModel.from_file",
        "handmim.hand.adapters.SmplxHand.from_file",
        "handmim.engine.schedule.Schedule",
        "torch.optim.AdamW",
    ):
        check_targets({"task": {"part": {"_target_": good}}})
    for bad in (
        "os.system",
        "handmim.utils.run.subprocess.getoutput",
        "handmim.utils.run.shutil.rmtree",
        "handmim.data.crops.os.system",
        "handmim.data.crops.Path",
        "handmim.data.loader.np.load",
        "handmim.data.crops.read_rgb",
        "handmim.engine.checkpoint.save_checkpoint",
        "handmim.synthesis.runner.synthesize",
        "handmim.models.nothing.Here",
        "torch.optim.torch.load",
    ):
        with pytest.raises(ValueError, match="refused"):
            check_targets({"task": {"losses": [{"_target_": bad}]}})
    with pytest.raises(ValueError, match="refused"):
        check_targets({"task": "${oc.create:'{_target_: os.system}'}"})


def test_folder_that_holds_a_run_is_protected(tmp_path):
    fit(tmp_path)
    with pytest.raises(FileExistsError, match=r"resume=auto.*name=.*overwrite=true"):
        fit(tmp_path)
    other = tmp_path.parent / "other"
    fit(other)
    with pytest.raises(FileExistsError):  # a checkpoint from elsewhere does not open this folder
        fit(tmp_path, resume=str(other / "last.pt"))
    Run.start("toy", tmp_path, 0, {}, accelerator="cpu", overwrite=True)
    assert not (tmp_path / "last.pt").exists()
    aside = replaced_folder(tmp_path)
    assert (aside / "last.pt").exists(), "kept until the new run has a result"
    fit(tmp_path, stop_after=2)
    assert not aside.exists()
    with pytest.raises(ValueError, match="resume must be"):
        Run.start("toy", tmp_path, 0, {}, accelerator="cpu", resume="nowhere.pt")


def test_checkpoint_is_whole_or_absent(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(AttributeError):
        save_checkpoint(path, {"step": 2, "bad": lambda: None})  # cannot be pickled: fails half-way
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)
    torch.save({"model": 1}, path)
    with pytest.raises(ValueError, match="not a handmim checkpoint"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


def test_schedule_hand_values():
    s = Schedule(1.0, 0.0, warmup_fraction=0.2)
    assert [s(i, 11) for i in (0, 1, 2)] == [0.5, 1.0, 1.0]  # two warm-up steps of eleven
    assert s(6, 11) == pytest.approx(0.5)  # half-way between steps 2 and 10
    assert s(10, 11) == pytest.approx(0.0)
    assert s(99, 11) == pytest.approx(0.0)
    assert Schedule(2.0, 1.0, shape="linear")(5, 11) == pytest.approx(1.5)
    assert as_schedule(0.3)(7, 10) == 0.3
    assert Schedule(0.07, warmup_start=0.04, warmup_steps=2)(0, 10) == pytest.approx(0.055)
    with pytest.raises(ValueError, match="shape"):
        Schedule(1.0, shape="step")
    with pytest.raises(ValueError, match="not both"):
        Schedule(1.0, warmup_fraction=0.1, warmup_steps=3)


def test_epochs_are_permutations_and_ranks_share_the_batch():
    whole = [i for batch in StepSampler(11, 4, 0, start_step=0, end_step=11) for i in batch]
    assert len(whole) == 44
    for epoch in range(4):
        assert sorted(whole[11 * epoch : 11 * epoch + 11]) == list(range(11))
    assert whole[:11] != whole[11:22]
    late = [i for batch in StepSampler(11, 4, 0, start_step=5, end_step=11) for i in batch]
    assert late == whole[20:]
    ranks = [
        list(StepSampler(11, 4, 0, start_step=0, end_step=3, rank=r, world_size=2)) for r in (0, 1)
    ]
    assert [a + b for a, b in zip(*ranks, strict=True)] == [whole[i : i + 4] for i in (0, 4, 8)]
    assert next(iter(StepSampler(2, 5, 0, start_step=0, end_step=1))).__len__() == 5
    with pytest.raises(ValueError, match="multiple of the 3"):
        StepSampler(11, 4, 0, start_step=0, end_step=1, world_size=3)


def test_groups_spare_biases_and_scale_rates():
    groups = param_groups(ToyTask(), {"linear.bias": 0.5})
    assert [(g["lr_scale"], g["decays"], len(g["params"])) for g in groups] == [
        (0.5, False, 1),
        (1.0, True, 1),
    ]
    with pytest.raises(ValueError, match="do not exist"):
        param_groups(ToyTask(), {"nothing": 1.0})
    with pytest.raises(ValueError, match="frozen"):
        param_groups(ToyTask().requires_grad_(False), {})
    assert scaled_lr(1e-3, 512, 256) == 2e-3
    assert scaled_lr(1e-3, 512, None) == 1e-3


def test_rates_follow_schedule_and_factor():
    task = ToyTask()
    r = OptimRecipe(partial(torch.optim.AdamW), 0.1, weight_decay=0.2, lr_reference_batch=8)
    optimizer = r.build(task, task.lr_scales())
    assert r.apply(optimizer, 0, 10, batch_size=4) == {
        "schedule/lr": 0.05,
        "schedule/weight_decay": 0.2,
    }
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.025, 0.0),
        (0.05, 0.2),
    ]


def test_clipping_per_tensor_leaves_short_gradients_alone():
    a, b, idle = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad, b.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    clip_per_tensor([a, b, idle], 1.0)
    torch.testing.assert_close(a.grad, torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(b.grad, torch.tensor([0.3, 0.4]))
    assert idle.grad is None


@pytest.mark.parametrize("clip_by", ["global", "per_tensor"])
def test_both_ways_of_clipping_report_the_norm_before_it(clip_by, tmp_path):
    run = Run.start("toy", tmp_path, 0, {}, accelerator="cpu")
    r = OptimRecipe(partial(torch.optim.SGD), 1.0, clip_norm=1.0, clip_by=clip_by)
    task = ToyTask()
    module, optimizer = run.fabric.setup(task, r.build(task, {}))
    weight, bias = task.linear.weight, task.linear.bias
    weight.grad, bias.grad = torch.tensor([[0.0, 0.0, 12.0]]), torch.tensor([5.0])
    assert r.clip(run.fabric, module, optimizer) == pytest.approx(13.0)
    lengths = {"global": (12 / 13, 5 / 13), "per_tensor": (1.0, 1.0)}[clip_by]
    assert (weight.grad.norm().item(), bias.grad.item()) == pytest.approx(lengths, rel=1e-4)


def test_without_a_limit_nothing_is_clipped(tmp_path):
    run = Run.start("toy", tmp_path, 0, {}, accelerator="cpu")
    task = ToyTask()
    r = OptimRecipe(partial(torch.optim.SGD), 1.0)
    module, optimizer = run.fabric.setup(task, r.build(task, {}))
    assert r.clip(run.fabric, module, optimizer) is None
    with pytest.raises(ValueError, match=r"clip_by.*optim\.clip_by"):
        OptimRecipe(partial(torch.optim.SGD), 1.0, clip_by="tensor")
