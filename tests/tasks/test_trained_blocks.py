from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch.autograd.graph import saved_tensors_hooks

from handmim.data.loader import collate_hands
from handmim.data.synthetic import SyntheticHands
from handmim.engine.optim import OptimizerConfig
from handmim.types import StepInfo
from tests.tasks.small_tasks import SCENE, small_augment, small_hand_task

DEPTH = 3
FIRST = StepInfo(0, 10)


@pytest.fixture(scope="module")
def batch(tmp_path_factory, hand_path):
    folder = tmp_path_factory.mktemp("c")
    hands = SyntheticHands(hand_path, "train", 4, folder, SCENE, num_workers=0)
    return small_augment().evaluate(collate_hands([hands[i] for i in range(4)]))


def build(hand, k, **options):
    return small_hand_task(hand, depth=DEPTH, trained_blocks=k, **options).train()


def part_of(name: str) -> str:
    """head, block 1.., norm or embedding."""
    if name.startswith("head."):
        return "head"
    words = name.removeprefix("backbone.net.").split(".")
    if words[0] == "blocks":
        return f"block {int(words[1]) + 1}"
    return "norm" if words[0] == "norm" else "embedding"


BLOCKS = [f"block {i + 1}" for i in range(DEPTH)]
MOVES = {
    None: {"head", "norm", "embedding", *BLOCKS},
    0: {"head"},
    1: {"head", "norm", BLOCKS[-1]},
    2: {"head", "norm", *BLOCKS[-2:]},
    DEPTH: {"head", "norm", *BLOCKS},
}


@pytest.mark.parametrize("k", list(MOVES))
def test_a_step_moves_the_top_alone(hand, batch, k):
    task = build(hand, k)
    before = {n: p.clone() for n, p in task.named_parameters()}
    recipe = OptimizerConfig(partial(torch.optim.AdamW), 1e-2, weight_decay=0.5)
    optimizer = recipe.build(task, task.lr_scales())
    recipe.apply(optimizer, 0, 10, 4)
    task(batch, FIRST).loss.backward()
    optimizer.step()
    moved = {n for n, p in task.named_parameters() if not torch.equal(p, before[n])}
    expected = {n for n in before if part_of(n) in MOVES[k] and n != "backbone.mask_token"}
    assert moved == expected
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = dict(task.named_parameters())
    assert held == {id(named[n]) for n in expected}
    assert all(named[n].grad is None for n in set(named) - expected)


def test_a_head_alone_leaves_the_backbone_byte_for_byte(hand, batch, tmp_path):
    task = build(hand, 0)
    task.export_backbone.export(tmp_path / "before.safetensors")
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        task(batch, StepInfo(step, 3)).loss.backward()
        optimizer.step()
    task.export_backbone.export(tmp_path / "after.safetensors")
    before, after = (load_file(tmp_path / f"{n}.safetensors") for n in ("before", "after"))
    assert before.keys() == after.keys()
    for name, value in before.items():  # of whole files, the order of facts differs
        assert value.numpy().tobytes() == after[name].numpy().tobytes(), name


@pytest.mark.parametrize("k", [None, 0, 1, DEPTH])
def test_what_is_frozen_answers_the_same_in_training(hand, batch, k):
    task = build(hand, k, drop_path_rate=0.9)
    outputs: dict[str, list[torch.Tensor]] = {}
    for i, block in enumerate(task.backbone.net.blocks):
        block.register_forward_hook(
            lambda _, __, out, i=i: outputs.setdefault(BLOCKS[i], []).append(out.detach())
        )
    for mode in (True, True, False):
        task.train(mode)
        task.active_backbone(batch.image)
    for name, (one, two, evaluated) in outputs.items():
        number = int(name.split()[1])
        # timm lets rates rise from 0: the first block drops no path
        still = number == 1 or (k is not None and number <= DEPTH - k)
        assert torch.equal(one, evaluated) is still, name
        assert torch.equal(one, two) is still, name


def test_what_is_frozen_never_starts_in_training_mode(hand):
    task = small_hand_task(hand, depth=DEPTH, trained_blocks=1)
    blocks = task.backbone.net.blocks
    assert [block.training for block in blocks] == [False, False, True]
    assert not task.backbone.net.patch_embed.training


@pytest.mark.parametrize("k", [0, 1, 2, DEPTH])
def test_activations_of_what_is_frozen_are_not_kept(hand, batch, k):
    task, kept = build(hand, k), [0]

    def count(tensor):
        kept[0] += 1
        return tensor

    after = []
    for block in task.backbone.net.blocks:
        block.mlp.register_forward_hook(lambda *_: after.append(kept[0]))
    with saved_tensors_hooks(count, lambda tensor: tensor):
        task.active_backbone(batch.image)
    assert [n > 0 for n in after] == [i >= DEPTH - k for i in range(DEPTH)]
    assert (kept[0] > 0) is (k > 0)


@pytest.mark.parametrize("k", [-1, DEPTH + 1])
def test_numbers_that_are_no_numbers_of_blocks_are_refused(hand, k):
    with pytest.raises(ValueError, match=rf"null or 0 to {DEPTH}.*got {k}"):
        build(hand, k)


def test_rates_of_what_is_trained_do_not_depend_on_what_is_frozen(hand):
    whole = build(hand, None, layer_decay=0.5).lr_scales()
    assert build(hand, 1, layer_decay=0.5).lr_scales() == whole
