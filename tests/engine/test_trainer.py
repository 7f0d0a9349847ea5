import json
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch

from handmim.engine.checkpoint import (
    load_checkpoint,
)
from handmim.engine.trainer import Trainer
from handmim.types import StepResult
from handmim.utils.run import Run
from tests.engine.toy import DATA, TASKS, ToyTask, collate, fit, optimizer_config, prepare, rows


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
    c, _ = fit(tmp_path / "c", seed=1)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert torch.equal(a.linear.weight, b.linear.weight)
    assert a.seen != c.seen
    assert not torch.equal(a.linear.weight, c.linear.weight)


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


@pytest.mark.parametrize("due", ["logged", "saved", "stopped", "hook"])
def test_what_goes_wrong_between_checks_is_seen_before_anything_is_saved(tmp_path, due):
    """Checked at steps 0 and 100; poisoned at the third, noticed after the next that is due."""

    class Hook:
        every, at_start = 4, False

        def __call__(self, task, info, run):
            raise AssertionError("called on lost weights")

    how = {
        "logged": {"log_every": 4},
        "saved": {"save_every": 4},
        "stopped": {"stop_after": 4},
        "hook": {"hooks": [Hook()]},
    }[due]
    quiet = {"max_steps": 8, "log_every": 50, "check_finite_every": 100}
    fit(tmp_path, **quiet, stop_after=1)
    before = load_checkpoint(tmp_path / "last.pt")
    if due == "stopped":
        how = {"stop_after": 3}
    with pytest.raises(FloatingPointError, match=r"finite at step 2.*check_finite_every=1"):
        fit(tmp_path, resume="auto", make=partial(ToyTask, poison_step=2), **(quiet | how))
    after = load_checkpoint(tmp_path / "last.pt")
    assert after["step"] == before["step"] == 1


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
        run, task, DATA, collate, prepare, optimizer_config(), hooks=[hook]
    )
    assert hook.calls == [(step, False, False) for step in (0, 4, 8, 10)]
    probed = {row["step"]: row["probe/x"] for row in rows(tmp_path) if "probe/x" in row}
    assert probed == {0: 0.0, 4: 4.0, 8: 8.0, 10: 10.0}
    assert task.training


class Stopping:
    every, at_start, stop_reason = 3, True, None

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, task, info, run):
        self.stop_reason = "the points are dead" if info.step == self.at else None
        return {"collapse/x": float(info.step == self.at)}


def test_a_hook_stops_the_run_which_keeps_its_reason_and_can_go_on(tmp_path):
    _, result = fit(tmp_path, hooks=[Stopping(at=6)])
    assert (result.step, result.interrupted, result.reason) == (6, True, "the points are dead")
    stopped = json.loads((tmp_path / "run.json").read_text())["stopped"]
    assert stopped == {"step": 6, "reason": "the points are dead"}
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 6
    assert {r["step"]: r["collapse/x"] for r in rows(tmp_path) if "collapse/x" in r} == {
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

        def images(self, task, run):
            assert not task.training
            return {"grey": np.full((4, 4, 3), 128, np.uint8)}

    task, _ = fit(tmp_path, hooks=[Drawing(), Stopping(99)], image_every=4)
    drawn = sorted(p.name for p in (tmp_path / "images").iterdir())
    assert drawn == [f"step_{step:07d}_grey.png" for step in (4, 8, 10)]
    assert task.training
