from functools import partial

import pytest
import torch

from handmim.data.loader import collate_hands
from handmim.data.synthetic import SyntheticHands
from handmim.engine.checkpoint import load_checkpoint
from handmim.engine.optim import OptimizerConfig, Schedule
from handmim.engine.trainer import Trainer
from handmim.evaluation.inference import InferenceModule
from handmim.evaluation.scoring import EvalHook, score
from handmim.models.teacher import Averaging, averaging_of
from handmim.models.weights.load import load_initial
from handmim.types import HandBatch, StepInfo
from handmim.utils.run import Run
from tests.tasks.small_tasks import SCENE, small_augment, small_hand_task
from tests.tasks.test_keypoints_task import build as keypoint_task
from tests.tasks.test_keypoints_task import photo

CPU = torch.device("cpu")
PLAIN = {"decay": 0.75, "warmup": False}


@pytest.fixture(scope="module")
def hands(tmp_path_factory, hand_path):
    folder = tmp_path_factory.mktemp("c")
    return SyntheticHands(hand_path, "train", 12, folder, SCENE, num_workers=0)


@pytest.fixture(scope="module")
def augment():
    return small_augment()


@pytest.fixture(scope="module")
def batch(hands, augment):
    return augment.evaluate(collate_hands([hands[i] for i in range(4)]))


def moved(task, by: float) -> None:
    """Add a number to all that is trained."""
    with torch.no_grad():
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter += by


def live(task) -> dict[str, torch.Tensor]:
    return {n: v.clone() for n, v in task._live().state_dict().items()}


def estimates(task, batch: HandBatch) -> torch.Tensor:
    with torch.no_grad():
        return task.predict(batch.image, batch.joint_convention).joints_root_m


def test_decay_warms_up_by_hand():
    averaging = Averaging(0.9998)
    assert [averaging(n) for n in (0, 1, 8)] == [0.1, 2 / 11, 0.5]
    assert averaging(44_990) == pytest.approx(44_991 / 45_000)  # = 0.9998
    assert averaging(44_989) < 0.9998 == averaging(44_991) == averaging(10**9)
    assert [Averaging(0.9998, warmup=False)(n) for n in (0, 7)] == [0.9998, 0.9998]
    assert averaging_of(None) is None
    assert averaging_of(0.9) == Averaging(decay=0.9, warmup=True)
    assert averaging_of({}) == Averaging(decay=0.9998, warmup=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1\.0"),
        ({"decay": -0.1}, r"decay must be in"),
        ({"momentum": 0.9}, r"no settings \['momentum'\], they have \['decay', 'warmup'\]"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        averaging_of(settings)


def test_the_average_by_hand(hand):
    task = small_hand_task(hand, average=PLAIN)
    start = live(task)
    moved(task, 1.0)
    assert task.after_step(StepInfo(0, 9)) == {"schedule/average_decay": 0.75}
    moved(task, 1.0)
    task.after_step(StepInfo(1, 9))
    trained = {n for n, p in task._live().named_parameters() if p.requires_grad}
    for name, value in task.averaged.net.state_dict().items():
        # 0 -> 0.25 -> 0.75 * 0.25 + 0.25 * 2; the mask token and buffers stand still
        want = start[name] + (0.6875 if name in trained else 0.0)
        torch.testing.assert_close(value, want, msg=name)


def test_the_first_step_counts_nine_tenths_with_warmup(hand):
    task = small_hand_task(hand, average={"decay": 0.9998})
    before = task.averaged.net["head"].cls_proj.weight.clone()
    moved(task, 1.0)
    assert task.after_step(StepInfo(0, 9)) == {"schedule/average_decay": 0.1}
    torch.testing.assert_close(task.averaged.net["head"].cls_proj.weight, before + 0.9)


def test_without_an_average_nothing_follows(hand, batch):
    task = small_hand_task(hand)
    assert task.after_step(StepInfo(0, 9)) == {}
    assert not [n for n in task.state_dict() if n.startswith("averaged")]
    assert task.export_backbone is task.backbone


def test_it_starts_at_the_weights_after_the_labels_were_looked_at(hand, hands, augment, batch):
    task = small_hand_task(hand, average=PLAIN)
    task.head.standardise_cls = True
    task.averaged.net["head"].standardise_cls = True
    moved(task, 0.005)  # as initial weights do, which are loaded after construction
    task.start_from_labels(hands, augment, CPU)
    averaged = task.averaged.net.state_dict()
    for name, value in live(task).items():
        assert torch.equal(averaged[name], value), name
    kept = task.averaged.net["head"]
    assert torch.equal(kept.mean_rot6d, task.head.mean_rot6d)
    assert kept.cls_std.std() > 0  # measured, no longer the ones it was built with
    plain = small_hand_task(hand)
    plain.head.standardise_cls = True
    plain.load_state_dict({k: v for k, v in task.state_dict().items() if "averaged" not in k})
    assert torch.equal(estimates(task.eval(), batch), estimates(plain.eval(), batch))


def test_buffers_follow(hand):
    task = small_hand_task(hand, average=PLAIN)
    task.head.mean_cam.fill_(3.0)
    task.after_step(StepInfo(0, 9))
    assert task.averaged.net["head"].mean_cam.tolist() == [3.0] * 3


def test_evaluation_asks_the_average_and_training_the_live_weights(hand, hands, augment, batch):
    task = small_hand_task(hand, average=PLAIN)
    task.start_from_labels(hands, augment, CPU)
    start = estimates(task.eval(), batch)
    task.train()
    moved(task, 0.02)
    assert not torch.equal(estimates(task, batch), start)  # no dropout: the weights alone differ
    assert torch.equal(estimates(task.eval(), batch), start)
    metrics, _ = score(InferenceModule(task, augment), hands)
    bare = small_hand_task(hand)
    bare._live().load_state_dict(task.averaged.net.state_dict())
    theirs, _ = score(InferenceModule(bare, augment), hands)
    assert metrics == theirs
    assert task.export_backbone is task.averaged.net["backbone"]


def test_no_gradient_reaches_the_average_and_no_optimizer_holds_it(hand, batch):
    task = small_hand_task(hand, average=PLAIN).train()
    own = [m for m in task.averaged.modules() if m is not task.hand]
    assert not any(module.training for module in own)
    task(batch, StepInfo(0, 9)).loss.backward()
    optimizer = OptimizerConfig(partial(torch.optim.AdamW), 1e-3).build(task, task.lr_scales())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for parameter in task.averaged.parameters():
        assert parameter.grad is None
        assert id(parameter) not in held


def test_constants_and_frozen_blocks_are_not_copied(hand):
    task = small_hand_task(hand, average=PLAIN, trained_blocks=1)
    kept = task.averaged.net["backbone"].net
    assert task.averaged.net["head"].hand is task.head.hand
    assert kept.blocks[0] is task.backbone.net.blocks[0]
    assert kept.blocks[1] is not task.backbone.net.blocks[1]
    moved(task, 1.0)
    before = {n: p.clone() for n, p in kept.blocks[0].named_parameters()}
    task.after_step(StepInfo(0, 9))
    assert all(torch.equal(p, before[n]) for n, p in kept.blocks[0].named_parameters())
    whole = small_hand_task(hand, average=PLAIN, trained_blocks=0)
    assert whole.export_backbone is whole.backbone


def trained(folder, hand, hands, augment, *, resume="never", stop_after=None, **options):
    run = Run.start("r", folder, 0, {}, accelerator="cpu", resume=resume)
    task = small_hand_task(hand, **options)
    if resume == "never":
        task.start_from_labels(hands, augment, CPU)
    recipe = OptimizerConfig(partial(torch.optim.AdamW), Schedule(1e-2, 1e-4), clip_norm=1.0)
    result = Trainer(max_steps=6, batch_size=4, log_every=1, stop_after=stop_after).fit(
        run,
        task,
        hands,
        collate_hands,
        augment,
        recipe,
        hooks=[EvalHook(hands, augment, every=3)],
        resume=resume,
    )
    return task, result


@pytest.mark.parametrize("options", [{}, {"trained_blocks": 1}])
def test_interrupted_and_resumed_averages_are_the_same(tmp_path, hand, hands, augment, options):
    options = {"average": {"decay": 0.9998}, **options}
    whole, _ = trained(tmp_path / "whole", hand, hands, augment, **options)
    trained(tmp_path / "parts", hand, hands, augment, stop_after=4, **options)
    parts, _ = trained(tmp_path / "parts", hand, hands, augment, resume="auto", **options)
    mine, theirs = whole.state_dict(), parts.state_dict()
    assert any(n.startswith("averaged.net.head.") for n in mine)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    saved = load_checkpoint(tmp_path / "whole" / "last.pt")["task"]
    assert all(torch.equal(value, saved[name]) for name, value in mine.items())
    head = whole.averaged.net["head"].cls_proj.weight
    assert not torch.equal(head, whole.head.cls_proj.weight)


def test_a_checkpoint_gives_its_averaged_backbone_to_other_runs(tmp_path, hand, hands, augment):
    task, _ = trained(tmp_path, hand, hands, augment, average=PLAIN)
    other = small_hand_task(hand)
    report = load_initial(other.backbone, str(tmp_path / "last.pt"))
    assert report.prefix == "task.averaged.net.backbone.net."
    kept = task.averaged.net["backbone"].net.blocks[1].attn.qkv.weight
    assert torch.equal(other.backbone.net.blocks[1].attn.qkv.weight, kept)
    assert not torch.equal(task.backbone.net.blocks[1].attn.qkv.weight, kept)


def test_bare_joints_are_averaged_too(augment):
    photos = [photo(i) for i in range(6)]
    task = keypoint_task(average=PLAIN)
    task.start_from_labels(photos, augment, CPU)
    batch = augment.evaluate(collate_hands(photos))
    start = estimates(task.eval(), batch)
    moved(task.train(), 0.02)
    assert not torch.equal(estimates(task, batch), start)
    assert torch.equal(estimates(task.eval(), batch), start)
    assert task.averaged.net["head"].mean_joints_crop_ndc.abs().max() > 0
