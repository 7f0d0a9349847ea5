from functools import partial

import pytest
import torch
from torch import nn

from handmim.engine.optim import (
    OptimizerConfig,
    Schedule,
    as_schedule,
    clip_per_tensor,
    load_optimizer,
    param_groups,
)
from handmim.utils.run import Run
from tests.engine.toy import ToyTask


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


def two_layers(order):
    module = nn.ModuleDict({name: nn.Linear(2, width) for name, width in order})
    optimizer = torch.optim.Adam(param_groups(module, {}))
    return module, optimizer


def test_an_optimizer_is_loaded_by_names_where_parameters_moved():
    old, its_optimizer = two_layers([("a", 3), ("b", 4)])
    sum(p.sum() for p in old["b"].parameters()).backward()
    its_optimizer.step()
    module, optimizer = two_layers([("b", 4), ("a", 3)])
    load_optimizer(optimizer, its_optimizer.state_dict(), module, list(old.state_dict()))
    moments = optimizer.state[module["b"].weight]["exp_avg"]
    assert torch.equal(moments, its_optimizer.state[old["b"].weight]["exp_avg"])
    assert module["a"].weight not in optimizer.state


def test_an_optimizer_of_other_parameters_is_refused():
    module, optimizer = two_layers([("a", 3)])
    _, more = two_layers([("a", 3), ("b", 4)])
    with pytest.raises(ValueError, match="this run trains other"):
        load_optimizer(optimizer, more.state_dict(), module, list(module.state_dict()))


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


def test_rates_follow_schedule_and_factor():
    task = ToyTask()
    r = OptimizerConfig(partial(torch.optim.AdamW), 0.1, weight_decay=0.2, lr_reference_batch=8)
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
    r = OptimizerConfig(partial(torch.optim.SGD), 1.0, clip_norm=1.0, clip_by=clip_by)
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
    r = OptimizerConfig(partial(torch.optim.SGD), 1.0)
    module, optimizer = run.fabric.setup(task, r.build(task, {}))
    assert r.clip(run.fabric, module, optimizer) is None
    with pytest.raises(ValueError, match=r"clip_by"):
        OptimizerConfig(partial(torch.optim.SGD), 1.0, clip_by="tensor")
