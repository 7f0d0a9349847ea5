from functools import partial

import numpy as np
import pytest
import torch

from handmim.data.loader import collate_hands
from handmim.data.synthetic import SyntheticHands
from handmim.engine.log import draw
from handmim.evaluation.inference import InferenceModule
from handmim.evaluation.scoring import score
from handmim.geometry.camera import fit_weak
from handmim.geometry.rotation import chordal_mean
from handmim.tasks.mesh import mean_hand
from handmim.tasks.regression import evaluation_crops
from handmim.types import HandBatch, StepInfo
from tests.tasks.relabelled import Relabelled
from tests.tasks.small_tasks import SCENE, small_augment, small_hand_task


@pytest.fixture(scope="module")
def hands(tmp_path_factory, hand_path):
    return SyntheticHands(
        hand_path, "train", 24, tmp_path_factory.mktemp("c"), SCENE, num_workers=0
    )


@pytest.fixture(scope="module")
def augment():
    return small_augment()


@pytest.fixture
def make(hand):
    return partial(small_hand_task, hand)


def whole_batch(hands) -> HandBatch:
    return collate_hands([hands[i] for i in range(len(hands))])


def test_mean_hand_is_the_chordal_mean_and_the_mean_camera(hands, augment, hand):
    rotmats, cam = mean_hand(evaluation_crops(hands, augment, batch_size=7), 8.0, hand)
    b = augment.evaluate(whole_batch(hands))
    torch.testing.assert_close(rotmats, chordal_mean(b.rotmats))
    joints = b.joints_cam_m - b.joints_cam_m[:, 9:10]
    torch.testing.assert_close(cam, fit_weak(joints, b.kp2d_crop_ndc, 8.0).mean(dim=0))


def test_class_tokens_are_measured_on_the_training_images(make, hands, augment):
    task = make()
    task.head.standardise_cls = True
    task.start_from_labels(hands, augment, torch.device("cpu"))
    with torch.no_grad():
        cls = task.backbone(augment.evaluate(whole_batch(hands)).image).cls
    torch.testing.assert_close(task.head.cls_mean, cls.mean(dim=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        task.head.cls_std, cls.std(dim=0, correction=0).clamp(min=1e-2), atol=1e-5, rtol=1e-4
    )
    assert task.training


def test_joints_alone_place_the_mean_hand_too(hands, augment, hand):
    bare = Relabelled(hands, has_mano=False, has_verts=False)
    rotmats, cam = mean_hand(evaluation_crops(bare, augment), 8.0, hand)
    torch.testing.assert_close(rotmats[1:], hand.mean_rotmats[1:].float())
    gt, true_cam = mean_hand(evaluation_crops(hands, augment), 8.0, hand)
    torch.testing.assert_close(cam, true_cam)
    # nearest rotation of a bent hand to the mean pose: near the true turn, not equal to it
    angle = ((rotmats[0] @ gt[0].T).trace() - 1).div(2).clamp(-1, 1).acos()
    assert float(angle.rad2deg()) < 15


def test_joints_in_the_image_place_the_mean_hand(hands, augment, hand):
    no = np.zeros(21, bool)
    flat = Relabelled(hands, has_mano=False, has_verts=False, joints_valid=no)
    rotmats, cam = mean_hand(evaluation_crops(flat, augment), 8.0, hand)
    gt, true_cam = mean_hand(evaluation_crops(hands, augment), 8.0, hand)
    angle = ((rotmats[0] @ gt[0].T).trace() - 1).div(2).clamp(-1, 1).acos()
    assert float(angle.rad2deg()) < 40
    assert float(cam[0]) == pytest.approx(float(true_cam[0]), abs=0.25)
    with pytest.raises(ValueError, match="MANO parameters or all 21 joints"):
        mean_hand(evaluation_crops(Relabelled(flat, kp2d_valid=no), augment), 8.0, hand)


def test_a_few_images_can_be_learned_by_heart(make, hands, augment):
    task = make()
    task.head.set_mean_hand(*mean_hand(evaluation_crops(hands, augment), 8.0, task.head.hand))
    batch = augment.evaluate(HandBatch(*(f[:8] for f in whole_batch(hands))))
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=2e-3)
    for step in range(150):
        result = task(batch, StepInfo(step, 150))
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    target = batch.joints_cam_m - batch.joints_cam_m[:, 9:10]

    def mpjpe_mm(state):
        return float((state.joints_root_m - target).norm(dim=-1).mean().detach() * 1e3)

    task.eval()
    steps = task.refinements(batch.image).steps
    assert mpjpe_mm(steps[-1]) < 0.35 * mpjpe_mm(steps[0])


def test_every_trained_part_gets_a_gradient(make, hands, augment):
    task = make()
    generator = torch.Generator().manual_seed(0)
    batch = augment(whole_batch(hands), generator, StepInfo(0, 10))
    task(batch, StepInfo(0, 10)).loss.backward()
    named = {n: p for n, p in task.named_parameters() if p.requires_grad}
    idle = [n for n, p in named.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []
    assert "backbone.mask_token" not in named


def test_learning_rates_fall_towards_the_input(make):
    task = make(backbone_lr_scale=0.5, layer_decay=0.5)
    scales = task.lr_scales()
    assert scales["backbone.net.norm.weight"] == 0.5
    assert scales["backbone.net.blocks.1.attn.qkv.weight"] == 0.25
    assert scales["backbone.net.blocks.0.attn.qkv.weight"] == 0.125
    assert scales["backbone.net.patch_embed.proj.weight"] == 0.0625
    assert not any(n.startswith("head") for n in scales)


def test_scores_of_the_mean_hand_are_those_of_a_constant(make, hands, augment):
    task = make()
    task.head.set_mean_hand(*mean_hand(evaluation_crops(hands, augment), 8.0, task.head.hand))
    mean = InferenceModule(task, augment, source="mean_hand")
    metrics, sheet = score(mean, hands, batch_size=7, num_images=4)
    b = augment.evaluate(whole_batch(hands))
    state = task.head.decode(task.head.mean_state(1))
    gap = state.joints_root_m - (b.joints_cam_m - b.joints_cam_m[:, 9:10])
    assert metrics["mpjpe_mm"] == pytest.approx(float(gap.norm(dim=-1).mean() * 1e3), rel=1e-4)
    assert metrics["num_samples"] == len(hands)
    assert sheet is not None
    assert sheet.dtype == np.uint8
    seen = (state.joints_crop_ndc - b.kp2d_crop_ndc).norm(dim=-1).mean() / 2 * 100
    assert metrics["err2d_percent"] == pytest.approx(float(seen), rel=1e-4)
    other, none = score(InferenceModule(task, augment), hands, batch_size=24)
    assert none is None
    assert set(other) == set(metrics)


def test_mirrored_predictions_are_warned_about_and_untrained_ones_are_not(
    make, hands, augment, caplog
):
    task = make()
    score(InferenceModule(task, augment), hands)
    assert not caplog.records

    flip = torch.tensor([-1, 1, 1])

    class Mirrored(InferenceModule):
        def estimate(self, stored):
            joints = stored.joints_cam_m - stored.joints_cam_m[:, 9:10]
            return super().estimate(stored)._replace(joints_root_m=joints * flip)

    score(Mirrored(task, augment), hands)
    assert "100% of the predicted hands are mirror images of the ground truth" in caplog.text


def test_only_what_is_labelled_is_scored(make, hands, augment):
    task = make()
    no = np.zeros(21, bool)
    mean = InferenceModule(task, augment, source="mean_hand")
    whole, _ = score(mean, hands)
    flat = Relabelled(hands, has_mano=False, has_verts=False, joints_valid=no)
    metrics, _ = score(mean, flat)
    assert set(metrics) == {"err2d_percent", "pck10", "num_2d"}
    assert metrics["err2d_percent"] == pytest.approx(whole["err2d_percent"])
    half = [flat[0], hands[1], hands[2]]
    metrics, _ = score(mean, half)
    alone, _ = score(mean, half[1:])
    assert (metrics["num_samples"], metrics["num_2d"]) == (2, 3)
    assert metrics["mpjpe_mm"] == pytest.approx(alone["mpjpe_mm"], rel=1e-6)
    bare = Relabelled(flat, kp2d_valid=no)
    with pytest.raises(ValueError, match="nothing of this set is labelled"):
        score(mean, bare)


def test_scores_do_not_depend_on_the_batch_size(make, hands, augment):
    task = make()
    a, _ = score(InferenceModule(task, augment), hands, batch_size=5)
    b, _ = score(InferenceModule(task, augment), hands, batch_size=24)
    for key in a:
        assert a[key] == pytest.approx(b[key], rel=1e-4), key


def test_images_show_prediction_and_ground_truth(make, hands, augment):
    task = make()
    drawn = draw(task, augment.evaluate(whole_batch(hands)), (), None)
    assert drawn["predictions"].std() > 5
    assert task.training


def test_checkpoints_remember_the_hand(make):
    task = make()
    assert task.hand_metadata() == {"hand": task.hand.name, "hand_sha256": task.hand.sha256}
