from functools import partial

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from handmim.engine.checkpoint import load_checkpoint, save_checkpoint
from handmim.engine.optim import OptimizerConfig, clip_per_tensor
from handmim.engine.step import FiniteGuard, NotFiniteError, TrainStep
from handmim.types import StepInfo
from handmim.utils.run import Run
from tests.engine.toy import ToyBatch, ToyTask, fit, optimizer_config


def train_step(accumulate: int) -> tuple[ToyTask, TrainStep]:
    torch.manual_seed(0)
    task = ToyTask()
    task.dropout.p = 0.0  # draws differ with the parts
    sizes = {"batch_size": 6, "accumulate": accumulate}
    return task, TrainStep(Fabric(accelerator="cpu"), task, optimizer_config(), **sizes)


def batch(num: int = 6) -> ToyBatch:
    g = torch.Generator().manual_seed(1)
    return ToyBatch(torch.rand(num, 3, generator=g), torch.zeros(num, 3))


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_parts_give_the_gradients_and_losses_of_the_whole(parts):
    found = []
    for accumulate in (1, parts):
        task, step = train_step(accumulate)
        result = step.backward(batch(), StepInfo(0, 5))
        found.append((result.loss.detach(), result.scalars["loss"], task.linear.weight.grad))
        assert len(task.seen) == accumulate
    torch.testing.assert_close(found[0], found[1])


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"6 samples.*into 4 parts \(accumulate"):
        train_step(4)[1].backward(batch(), StepInfo(0, 5))


def test_that_is_said_before_anything_is_trained(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"batch_size 4 does not divide by 1 processes and the parts of accumulate 3",
    ):
        fit(tmp_path, accumulate=3)


def test_a_step_in_parts_is_one_step_of_everything(tmp_path):
    """Schedules, averages and hooks count steps, not parts."""

    class Steady(ToyTask):
        def __init__(self):
            super().__init__()
            self.dropout.p, self.updates = 0.0, 0

        def after_step(self, info):
            self.updates += 1
            return super().after_step(info)

    whole, _ = fit(tmp_path / "whole", make=Steady)
    parts, result = fit(tmp_path / "parts", make=Steady, accumulate=2)
    assert result.step == parts.updates == 10
    assert len(parts.seen) == 2 * len(whole.seen)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, parts.state_dict()[name])


def test_the_first_bad_step_is_remembered(tmp_path):
    guard = FiniteGuard(Run.start("toy", tmp_path, 0, {}, accelerator="cpu"), ToyTask())
    good, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    guard.note(3, good, None)
    guard.check(3)
    guard.note(4, good, torch.tensor(float("inf")))
    guard.note(5, bad, good)
    guard.note(6, good)
    guard.note(0)  # nothing to see
    with pytest.raises(NotFiniteError, match="not finite at step 4") as error:
        guard.check(6)
    assert (error.value.step, error.value.was_updated) == (4, True)
    guard.forget()
    guard.check(7)


@pytest.mark.parametrize(
    ("fused", "precision", "expected"),
    [
        (None, "32-true", True),
        (None, "bf16-mixed", True),
        (None, "16-mixed", None),
        (False, "32-true", None),
        (True, "16-mixed", True),
    ],
)
def test_the_fused_form_is_taken_where_gradients_come_unscaled(fused, precision, expected):
    how = OptimizerConfig(torch.optim.AdamW, lr=0.1, fused=fused)
    optimizer = how.build(nn.Linear(2, 2), {}, precision)
    assert all(group["fused"] is expected for group in optimizer.param_groups)


def test_optimizers_without_a_fused_form_are_left_as_they_are():
    how = OptimizerConfig(partial(torch.optim.Adadelta, rho=0.5), lr=0.1)
    assert "fused" not in how.build(nn.Linear(2, 2), {}).param_groups[0]


@pytest.mark.parametrize("form", [{"fused": False}, {"foreach": True}, {"differentiable": True}])
def test_a_form_that_is_chosen_by_hand_stays(form):
    how = OptimizerConfig(partial(torch.optim.AdamW, **form), lr=0.1)
    group = how.build(nn.Linear(2, 2), {}).param_groups[0]
    assert not group["fused"]
    assert all(group[name] is value for name, value in form.items())


def test_a_checkpoint_of_another_form_goes_on_in_this_runs(tmp_path):
    fit(tmp_path, stop_after=4)
    path = tmp_path / "last.pt"
    state = load_checkpoint(path)
    for group in state["optimizer"]["param_groups"]:
        assert group["fused"]
        group["fused"] = None
    save_checkpoint(path, state)
    fit(tmp_path, resume="auto")
    assert all(group["fused"] for group in load_checkpoint(path)["optimizer"]["param_groups"])


def test_fused_steps_equal_the_loop():
    weights = []
    for fused in (True, False):
        torch.manual_seed(0)
        layer = nn.Linear(5, 3).double()
        how = OptimizerConfig(torch.optim.AdamW, lr=0.1, weight_decay=0.1, fused=fused)
        optimizer = how.build(layer, {"weight": 0.5})
        for step in range(4):
            how.apply(optimizer, step, 4, 1)
            layer(torch.ones(2, 5, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(layer.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-12, atol=0)


def test_tensors_are_clipped_each_for_itself():
    grads = [torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4]), None]
    params = [nn.Parameter(torch.zeros(2)) for _ in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else grad.clone()
    clip_per_tensor(params, 1.0)
    torch.testing.assert_close(params[0].grad, torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(params[1].grad, grads[1])
    assert params[2].grad is None
