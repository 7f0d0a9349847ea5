"""The recipe as configs give it: rates, drop path, lower precision."""

from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from handmim.data.loader import collate_hands
from handmim.data.synthetic import SyntheticHands
from handmim.engine.optim import OptimizerConfig
from handmim.engine.trainer import Trainer
from handmim.evaluation.scoring import EvalHook
from handmim.utils.run import Run
from tests.tasks.small_tasks import SCENE, small_augment, small_hand_task

REPO = Path(__file__).parents[2]


def composed(*overrides: str):
    with initialize_config_dir(str(REPO / "configs"), version_base="1.3"):
        return compose("finetune", overrides=[f"paths.data_dir={REPO / 'data'}", *overrides])


def built(*overrides: str):
    return instantiate(composed("backbone=vit_nano_p8", "head=pymaf_small", *overrides).task)


@pytest.fixture(scope="module")
def hands(tmp_path_factory, hand_path):
    folder = tmp_path_factory.mktemp("c")
    return SyntheticHands(hand_path, "train", 8, folder, SCENE, num_workers=0)


def test_rates_warm_up_and_fall_along_a_cosine():
    recipe = instantiate(composed().optim)
    optimizer = torch.optim.AdamW(
        [{"params": [torch.zeros(1, requires_grad=True)], "lr_scale": 0.5, "decays": True}]
    )
    total, top, end = 1001, 5e-4, 1e-6
    lr = {n: recipe.apply(optimizer, n, total, 64)["schedule/lr"] for n in (0, 14, 29, 30, 515)}
    assert lr[0] == pytest.approx(top / 30)  # 3 % of 1001 steps
    assert lr[14] == pytest.approx(top / 2)
    assert lr[29] == lr[30] == pytest.approx(top)
    assert lr[515] == pytest.approx((top + end) / 2)  # half-way between 30 and 1000
    assert optimizer.param_groups[0]["lr"] == pytest.approx(lr[515] / 2)
    assert recipe.apply(optimizer, 1000, total, 64)["schedule/lr"] == pytest.approx(end)
    assert recipe.apply(optimizer, 0, total, 128)["schedule/lr"] == lr[0]  # of any batch


def test_layers_decay_as_configured():
    scales = built("task.backbone_lr_scale=0.2", "task.layer_decay=0.75").lr_scales()
    assert scales["backbone.net.norm.weight"] == pytest.approx(0.2)
    assert scales["backbone.net.blocks.2.mlp.fc1.weight"] == pytest.approx(0.2 * 0.75)
    assert scales["backbone.net.pos_embed"] == pytest.approx(0.2 * 0.75**4)


def test_drop_path_reaches_the_blocks():
    net = built("task.backbone.drop_path_rate=0.3").backbone.net
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in net.blocks]
    assert rates == pytest.approx([0.0, 0.15, 0.3])


def test_average_and_trained_blocks_reach_the_task():
    task = built("task.average={decay: 0.99, warmup: false}", "task.trained_blocks=1")
    assert (task.averaging.decay, task.averaging.warmup) == (0.99, False)
    assert not any(p.requires_grad for p in task.backbone.net.blocks[1].parameters())
    assert all(p.requires_grad for p in task.backbone.net.blocks[2].parameters())
    plain = built()
    assert plain.averaged is None
    assert all(p.requires_grad for p in plain.backbone.net.parameters())


def test_head_first_reaches_the_task():
    assert [built(*o).head_first for o in ((), ("task.head_first=0.3",))] == [0.0, 0.3]
    bare = ("task=keypoints", "head=direct", "loss=[direct_keypoints]", "task.head_first=0.2")
    assert built(*bare).head_first == 0.2


@pytest.mark.parametrize("camera", ["weak", "pinhole"])
def test_the_hand_stays_in_fp32_under_bf16(hand, hands, camera):
    task = small_hand_task(hand, camera=camera).train()
    batch = small_augment().evaluate(collate_hands([hands[i] for i in range(4)]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (batch.image.flatten(1) @ batch.image.flatten(1).T).dtype == torch.bfloat16
        steps = task.refinements(batch.image, batch.intrinsics).steps
    for state in steps:
        floating = [f for f in state if f is not None and f.is_floating_point()]
        assert {f.dtype for f in floating} == {torch.float32}
        mesh = hand(state.rotmats, state.betas)
        root = mesh.joints_m[:, 9, None]
        torch.testing.assert_close(state.verts_root_m, mesh.verts_m - root, atol=1e-6, rtol=0)
        transl, is_metric = task.head.crop_camera.root_translation(state.cam, batch.intrinsics)
        assert (is_metric is None) is (camera == "weak")
        crop_camera = task.head.crop_camera
        seen = crop_camera.project(state.verts_root_m, state.cam, transl, batch.intrinsics)
        torch.testing.assert_close(state.verts_crop_ndc, seen, atol=1e-5, rtol=0)
        gram = state.rotmats.transpose(-1, -2) @ state.rotmats
        torch.testing.assert_close(gram, torch.eye(3).expand_as(gram), atol=1e-5, rtol=0)


def test_bf16_training_runs_with_fp32_weights(tmp_path, hand, hands):
    run = Run.start("r", tmp_path, 0, {}, accelerator="cpu", precision="bf16-mixed")
    task, augment = small_hand_task(hand, average={"decay": 0.99}), small_augment()
    task.start_from_labels(hands, augment, run.device)
    before = task.head.cls_proj.weight.clone()
    dtypes = set()
    task.backbone.net.blocks[0].mlp.fc1.register_forward_hook(
        lambda _, __, out: dtypes.add(out.dtype)
    )
    result = Trainer(max_steps=3, batch_size=4, log_every=1, keep_best="auto").fit(
        run,
        task,
        hands,
        collate_hands,
        augment,
        OptimizerConfig(partial(torch.optim.AdamW), 1e-3, clip_norm=1.0),
        hooks=[EvalHook(hands, augment, every=2)],
    )
    assert dtypes == {torch.bfloat16}
    assert result.best is not None
    assert result.best.metric == "val/pa_mpvpe_mm"
    assert {p.dtype for p in task.parameters()} == {torch.float32}
    assert not torch.equal(task.head.cls_proj.weight, before)
    assert all(bool(p.isfinite().all()) for p in task.parameters())
