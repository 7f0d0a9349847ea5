"""Unlabeled crops beside labels: what is refused, and what must not be lost on the way."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning_fabric import Fabric

from handmim.data.synthetic import SyntheticHands
from handmim.data.unlabeled import CollatePairs, Pairs
from handmim.engine.checkpoint import check_config, load_checkpoint, save_checkpoint
from handmim.engine.step import _plain
from handmim.evaluation.scoring import MomentsHook
from handmim.models.token_norm import LABELLED, UNLABELED
from handmim.models.vit import ViT
from handmim.objectives.hog import PatchHog
from handmim.pipelines.dry_run import dry_run_step
from handmim.pipelines.train import join_unlabeled
from handmim.tasks.pretrain import HandMimTask, method_of_run, views_of_run
from handmim.tasks.unlabeled import Pretext
from handmim.types import StepInfo
from handmim.utils.files import UnreadableSample
from tests.tasks.small_tasks import SCENE, small_augment, small_hand_task
from tests.tasks.test_keypoints_task import build as keypoint_task
from tests.tasks.test_unlabeled import (
    SIZE,
    Oracle,
    Photos,
    consensus,
    joint_batch,
    pretext,
    views,
)

REPO = Path(__file__).parents[2]
INFO = StepInfo(5, 10)


@pytest.fixture(scope="module")
def hands(tmp_path_factory, hand_path):
    folder = tmp_path_factory.mktemp("c")
    return SyntheticHands(hand_path, "train", 8, folder, SCENE, num_workers=0)


def composed(*overrides: str):
    with initialize_config_dir(str(REPO / "configs"), version_base="1.3"):
        own = ["unlabeled=folder", "unlabeled.data.root=x", f"paths.data_dir={REPO / 'data'}"]
        return compose("finetune", overrides=[*own, *overrides])


@pytest.mark.parametrize(
    "wrong",
    [{"aspect": 0.1}, {"flip_prob": 0.5}, {"warp_ndc": 0.1}, {"partner_prob": 0.5}],
    ids=str,
)
def test_views_that_no_rotation_carries_back_are_refused(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=rf"{name}={value} \(unlabeled\.terms\.consensus"):
        consensus().check_views(views(3, **wrong))
    with pytest.raises(ValueError, match="student_views=4 of num_views=3"):
        consensus(student_views=4).check_views(views(3))
    consensus(student_views=3).check_views(views(3))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("unlabeled.share=1.5", "share must be in"),
        ("unlabeled.val=photos", "unlabeled.val must be one of"),
        ("+unlabeled.terms.consensus.views.flip_prob=0.5", "flip_prob=0.5"),
        ("unlabeled.terms.consensus.term.student_views=9", "student_views=9"),
    ],
)
def test_settings_are_refused_before_a_run_is_begun(hand, override, message):
    cfg = composed("consensus=views", override)
    with pytest.raises(ValueError, match=message):
        join_unlabeled(cfg.unlabeled, small_hand_task(hand, average=0.5), small_augment())


def test_labels_are_in_fp32_under_bf16(hands, hand):
    batch = joint_batch(hands, {"consensus": views(4)}).views["consensus"]
    oracle = Oracle(hand, batch.source_from_view, 0.05)
    plain, _ = consensus().labels(oracle, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        labels, _ = consensus().labels(oracle, batch)
    assert torch.equal(plain.joints_cam_m, labels.joints_cam_m)
    assert torch.equal(plain.kp2d_crop_ndc, labels.kp2d_crop_ndc)


def test_bare_joints_have_a_consensus(hands):
    task = keypoint_task(average=0.5).train()
    task.add_unlabeled({"consensus": consensus()})
    batch = joint_batch(hands, {"consensus": views(3)})
    result = task(batch, INFO)
    result.loss.backward()
    assert result.scalars["consensus/loss/direct3d"].isfinite()


def test_a_backbone_that_waits_gets_nothing_of_the_consensus(hands, hand):
    task = small_hand_task(hand, average=0.5, head_first=0.8, drop_path_rate=0.5).train()
    task.add_unlabeled({"consensus": consensus()})
    modes = []
    task.backbone.register_forward_hook(lambda *_: modes.append(task.backbone.training))
    task(joint_batch(hands, {"consensus": views(3)}), INFO)
    assert modes == [False, False]  # labels, and the student's views


def test_parts_without_crops_are_refused(hands):
    pairs = Pairs(hands, Photos(hands))
    batch = CollatePairs(0.25)([pairs[i] for i in range(4)])
    with pytest.raises(ValueError, match=r"unlabeled\.share.*trainer\.accumulate"):
        batch.part(0, 1)


def test_measured_moments_survive_steps_of_averaged_weights(hands, hand):
    task = small_hand_task(hand, token_norm="patches", average=0.5)
    domains = {LABELLED: hands, UNLABELED: Photos(hands)}
    run = type("R", (), {"device": "cpu"})
    MomentsHook(domains, small_augment())(task.eval(), INFO, run)
    norm = task.averaged.net["token_norm"]
    before = norm.norms[UNLABELED][0].running_mean.clone()
    task.train().after_step(INFO)
    assert bool(norm.adapted)
    assert torch.equal(norm.norms[UNLABELED][0].running_mean, before)


class Damaged(Photos):
    """Photos with one that cannot be read."""

    def __getitem__(self, index: int):
        if index == 2:
            raise UnreadableSample("photo 2", "is cut off")
        return super().__getitem__(index)


def test_moments_are_measured_without_unreadable_crops(hands, hand):
    task = small_hand_task(hand, token_norm="patches").eval()
    run = type("R", (), {"device": "cpu"})
    MomentsHook({UNLABELED: Damaged(hands)}, small_augment())(task, INFO, run)
    assert bool(task.token_norm.adapted)
    with pytest.raises(ValueError, match="no unlabeled image can be read"):
        task.measure_tokens(UNLABELED, [])


def network(**options) -> ViT:
    given = {"pixel_norm": "per_image", "size": SIZE, **options}
    return ViT("vit_tiny_patch16_224", img_px=32, patch_px=8, **given)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"size": {**SIZE, "embed_dim": 48}}, "mask_token"),
        ({"size": {**SIZE, "num_heads": 3}}, "num_heads"),
        ({"pixel_norm": "imagenet"}, "pixel_norm"),
    ],
)
def test_a_pretraining_of_another_backbone_is_refused(hand, other, named):
    term = Pretext(HandMimTask(network(**other), {"patch_hog": PatchHog()}, export="student"))
    with pytest.raises(ValueError, match=rf"unlabeled\.terms\.pretext\.run.*{named}"):
        small_hand_task(hand).add_unlabeled({"pretext": term})


def test_a_pretext_needs_a_backbone_that_is_trained(hand):
    with pytest.raises(ValueError, match=r"task\.trained_blocks"):
        small_hand_task(hand, trained_blocks=0).add_unlabeled({"pretext": pretext()})
    small_hand_task(hand, trained_blocks=1).add_unlabeled({"pretext": pretext()})


def test_the_teacher_of_a_pretext_starts_as_the_backbone(hand):
    task = small_hand_task(hand)
    term = Pretext(HandMimTask(network(), {"patch_hog": PatchHog()}))
    task.add_unlabeled({"pretext": term})
    theirs = term.method.teacher.net["backbone"].state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in task.backbone.state_dict().items())


@pytest.mark.parametrize("which", [method_of_run, views_of_run])
def test_folders_of_no_pretraining_are_refused(tmp_path, which):
    with pytest.raises(FileNotFoundError, match=r"unlabeled\.terms\.pretext\.run=.*no last\.pt"):
        which(str(tmp_path))
    task = {"_target_": "handmim.engine.optim.Schedule", "start": 1.0}
    for config in (None, {"task": task}, {"task": task, "views": task}):
        save_checkpoint(tmp_path / "last.pt", {"config": config, "task": {}})
        with pytest.raises(ValueError, match=r"unlabeled\.terms\.pretext\.run"):
            which(str(tmp_path))


def test_runs_with_a_pretext_can_be_loaded():
    target = "handmim.tasks.pretrain.method_of_run"
    check_config({"unlabeled": {"terms": {"pretext": {"method": {"_target_": target}}}}})
    with pytest.raises(ValueError, match="refused"):
        check_config({"task": {"method": {"_target_": target}}})


def test_batches_of_a_refused_step_can_be_read(hands, tmp_path):
    batch = joint_batch(hands, {"consensus": views(2)})
    save_checkpoint(tmp_path / "x.pt", {"batch": _plain(batch)})
    kept = load_checkpoint(tmp_path / "x.pt")["batch"]
    assert torch.equal(kept["hands"]["image"], batch.hands.image)
    assert torch.equal(kept["views"]["consensus"]["views"], batch.views["consensus"].views)


def test_a_dry_run_counts_the_unlabeled_crops():
    small = ["backbone=vit_nano_p8", "head=pymaf_small", "trainer.batch_size=4"]
    cfg = composed(*small, "consensus=views", "task.average=0.9", "trainer.max_steps=10")
    cfg.unlabeled.terms.consensus.term.start = 0.0
    seen = []
    fabric = Fabric(accelerator="cpu", devices=1)
    forward = consensus().labels.__func__
    with pytest.MonkeyPatch.context() as patch:
        owner = "handmim.tasks.unlabeled.Consensus.labels"
        patch.setattr(owner, lambda *a: seen.append(len(a[2].views)) or forward(*a))
        dry_run_step(cfg, fabric)[0](5)
    assert seen == [2]
