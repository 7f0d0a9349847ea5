"""The head alone at first, then all: what waits, when it joins, and resumed runs."""

from functools import partial

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from handmim.data.loader import collate_hands
from handmim.data.synthetic import SyntheticHands
from handmim.engine.checkpoint import load_checkpoint
from handmim.engine.optim import OptimizerConfig, Schedule
from handmim.engine.step import TrainStep
from handmim.engine.trainer import Trainer
from handmim.types import StepInfo
from handmim.utils.run import Run
from tests.tasks.small_tasks import SCENE, small_augment, small_hand_task

TOTAL = 6
HALF = {"head_first": 0.5}  # steps 0, 1, 2


@pytest.fixture(scope="module")
def hands(tmp_path_factory, hand_path):
    folder = tmp_path_factory.mktemp("c")
    return SyntheticHands(hand_path, "train", 8, folder, SCENE, num_workers=0)


@pytest.fixture(scope="module")
def batch(hands):
    return small_augment().evaluate(collate_hands([hands[i] for i in range(4)]))


def recipe() -> OptimizerConfig:
    make = partial(torch.optim.AdamW)
    return OptimizerConfig(make, Schedule(1e-2, 1e-4), weight_decay=0.5, clip_norm=0.1)


def steps(tmp_path, task, batch, num=TOTAL, **options):
    """A step at a time: backbone and head after it, and the optimizer."""
    run = Run.start("r", tmp_path, 0, {}, accelerator="cpu")
    step = TrainStep(run.fabric, task, recipe(), batch_size=4, **options)
    task.train()
    for number in range(num):
        step(batch, StepInfo(number, TOTAL))
        yield step.optimizer


def weights(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_the_backbone_waits_byte_for_byte_then_joins(tmp_path, hand, batch):
    task = small_hand_task(hand, drop_path_rate=0.5, **HALF)
    start, head = weights(task.backbone), weights(task.head)
    trained = {n for n, p in task.backbone.named_parameters() if p.requires_grad}
    for number, optimizer in enumerate(steps(tmp_path, task, batch)):
        assert not same(head, weights(task.head))
        head = weights(task.head)
        moments = {n: optimizer.state.get(p) for n, p in task.backbone.named_parameters()}
        if number < 3:
            assert same(start, weights(task.backbone))
            assert not any(moments.values())
        else:
            now = weights(task.backbone)
            assert {n for n in now if not torch.equal(now[n], start[n])} == trained
            # Moments count from the first step that it takes part in.
            assert {int(moments[n]["step"]) for n in trained} == {number - 2}


def test_waiting_equals_a_head_alone(tmp_path, hand, batch):
    """With drop path, clipping and decay: as `trained_blocks=0` at the same steps."""
    found = []
    for options in (HALF, {"trained_blocks": 0}):
        task = small_hand_task(hand, drop_path_rate=0.5, **options)
        for _ in steps(tmp_path, task, batch, num=3):
            pass
        found.append(weights(task.head))
    assert same(*found)


def test_activations_are_not_kept_while_it_waits(hand, batch):
    task, kept, in_backbone = small_hand_task(hand, **HALF).train(), [0], []

    def count(tensor):
        kept[0] += 1
        return tensor

    task.backbone.register_forward_pre_hook(lambda *_: in_backbone.append(-kept[0]))
    task.backbone.register_forward_hook(lambda *_: in_backbone.append(kept[0]))
    with saved_tensors_hooks(count, lambda tensor: tensor):
        losses = [task(batch, StepInfo(number, TOTAL)).loss for number in (2, 3)]
    assert sum(in_backbone[:2]) == 0 < sum(in_backbone[2:])
    assert torch.equal(*losses)  # the weights are the same
    # Several processes wait for a gradient of every parameter; this one moves nothing.
    losses[0].backward()
    grads = {p.grad for p in task.backbone.parameters() if p.requires_grad}
    assert all(grad is not None and not grad.any() for grad in grads)


def test_paths_are_dropped_from_the_step_it_joins(hand, batch):
    task = small_hand_task(hand, depth=3, drop_path_rate=0.5, trained_blocks=1, **HALF).train()
    modes = []
    for number in (2, 3, 1):
        task(batch, StepInfo(number, TOTAL))
        modes.append([block.training for block in task.backbone.net.blocks])
    assert modes == [[False] * 3, [False, False, True], [False] * 3]
    task.eval()
    task(batch, StepInfo(3, TOTAL))
    assert not any(module.training for module in task.modules())


@pytest.mark.parametrize(
    ("share", "total", "num"),
    [(0.0, 10, 0), (0.3, 10, 3), (0.5, 6, 3), (0.99, 10, 9), (0.9, 1, 0)],
)
def test_number_of_steps(hand, share, total, num):
    task = small_hand_task(hand, head_first=share)
    waits = [task.head_alone(StepInfo(step, total)) for step in range(total)]
    assert waits == [step < num for step in range(total)]


@pytest.mark.parametrize("share", [1.0, -0.1])
def test_shares_without_a_second_part_are_refused(hand, share):
    with pytest.raises(ValueError, match=rf"head_first must be in \[0, 1\), got {share}"):
        small_hand_task(hand, head_first=share)


def trained(folder, hand, hands, *, resume="never", stop_after=None, precision="32-true"):
    run = Run.start("r", folder, 0, {}, accelerator="cpu", precision=precision, resume=resume)
    more = {"average": {"decay": 0.9}, "layer_decay": 0.5, "trained_blocks": 1, **HALF}
    task = small_hand_task(hand, drop_path_rate=0.3, backbone_lr_scale=0.3, **more)
    augment = small_augment()
    if resume == "never":
        task.start_from_labels(hands, augment, run.device)
    trainer = Trainer(max_steps=TOTAL, batch_size=4, accumulate=2, stop_after=stop_after)
    trainer.fit(run, task, hands, collate_hands, augment, recipe(), resume=resume)
    return task, load_checkpoint(folder / "last.pt")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_interrupted_in_both_parts_and_resumed_is_the_same(tmp_path, hand, hands, precision):
    _, whole = trained(tmp_path / "whole", hand, hands, precision=precision)
    parts = {"precision": precision, "stop_after": 2}
    trained(tmp_path / "parts", hand, hands, **parts)  # the backbone waits
    _, half = trained(tmp_path / "parts", hand, hands, resume="auto", **parts)  # it has joined
    assert half["step"] == 4
    task, resumed = trained(tmp_path / "parts", hand, hands, resume="auto", precision=precision)
    assert same(whole["task"], resumed["task"])
    for state in (whole, resumed):
        state["moments"] = {
            f"{i}.{k}": v for i, of in state["optimizer"]["state"].items() for k, v in of.items()
        }
    assert same(whole["moments"], resumed["moments"])
    averaged, live = (net.state_dict() for net in (task.averaged.net["backbone"], task.backbone))
    name = "net.blocks.1.mlp.fc1.weight"
    assert not torch.equal(averaged[name], live[name])
