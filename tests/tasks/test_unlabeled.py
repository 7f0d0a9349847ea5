"""Unlabeled crops beside labels: pairs, moments of tokens, consensus of views, the pretext."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from handmim.data.datasets import size_of
from handmim.data.pixels import mix_amplitudes
from handmim.data.synthetic import SyntheticHands
from handmim.data.unlabeled import CollatePairs, Pairs, PreparePairs
from handmim.data.views import MaskSampler, ViewMaker
from handmim.engine.checkpoint import load_checkpoint
from handmim.engine.optim import OptimizerConfig
from handmim.engine.trainer import Trainer
from handmim.evaluation.inference import InferenceModule
from handmim.evaluation.scoring import EvalHook, MomentsHook, score
from handmim.geometry.camera import project_weak
from handmim.geometry.crop import from_source
from handmim.geometry.rotation import rotation_about_z
from handmim.models.token_norm import LABELLED, UNLABELED
from handmim.models.vit import ViT
from handmim.objectives.hog import PatchHog
from handmim.tasks.pretrain import HandMimTask
from handmim.tasks.unlabeled import Consensus, Pretext
from handmim.types import CropSample, StepInfo
from handmim.utils.run import Run
from tests.tasks.small_tasks import SCENE, small_augment, small_hand_task
from tests.tasks.test_keypoints_task import build as keypoint_task

SIZE = {"embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def hands(tmp_path_factory, hand_path):
    folder = tmp_path_factory.mktemp("c")
    return SyntheticHands(hand_path, "train", 8, folder, SCENE, num_workers=0)


class Photos(torch.utils.data.Dataset):
    """Crops of another look: darker, and with a stripe."""

    def __init__(self, hands, num: int = 6) -> None:
        self.hands, self.num = hands, num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> CropSample:
        image = self.hands[index % len(self.hands)].image // 3
        image[index % 8 :: 8] = 255
        return CropSample(image, f"photo {index}")


def views(num_views: int = 2, **options) -> ViewMaker:
    from handmim.data.pixels import ColourJitter

    return ViewMaker(
        view_px=32,
        patch_px=8,
        num_views=num_views,
        colour=ColourJitter(),
        masks=MaskSampler(),
        **{"full_rotation_prob": 0.0, "scale": (0.9, 1.0), **options},
    )


def pretext(**options) -> Pretext:
    torch.manual_seed(1)
    backbone = ViT("vit_tiny_patch16_224", img_px=32, patch_px=8, pixel_norm="per_image", size=SIZE)
    return Pretext(HandMimTask(backbone, {"patch_hog": PatchHog()}, export="student"), **options)


def consensus(**options) -> Consensus:
    return Consensus(**{"start": 0.0, **options})


def joint_batch(hands, terms: dict[str, ViewMaker], **options):
    pairs = Pairs(hands, Photos(hands))
    batch = CollatePairs(0.5)([pairs[i] for i in range(4)])
    prepare = PreparePairs(augment=small_augment(), views=terms, **options)
    return prepare(batch, torch.Generator().manual_seed(0), StepInfo(0, 10))


def test_an_epoch_of_pairs_has_every_sample_of_both_sets(hands):
    for num in (3, 21):
        pairs = Pairs(hands, Photos(hands, num))
        drawn = [pairs[i] for i in range(len(pairs))]
        assert len({hand.sample_id for hand, _ in drawn}) == size_of(hands)
        assert len({crop.sample_id for _, crop in drawn}) == num
        with pytest.raises(IndexError, match=f"index {len(pairs)} of {len(pairs)} pairs"):
            pairs[len(pairs)]


@pytest.mark.parametrize(("share", "num"), [(0.0, 1), (0.5, 2), (1.0, 4)])
def test_a_batch_has_the_share_of_crops(hands, share, num):
    pairs = Pairs(hands, Photos(hands))
    batch = CollatePairs(share)([pairs[i] for i in range(4)])
    assert (len(batch.hands.image), len(batch.crops.image)) == (4, num)


def test_hands_are_augmented_as_without_crops(hands):
    from handmim.data.loader import collate_hands

    alone = small_augment()(
        collate_hands([hands[i] for i in range(4)]),
        torch.Generator().manual_seed(0),
        StepInfo(0, 10),
    )
    batch = joint_batch(hands, {"consensus": views(3)})
    assert torch.equal(batch.hands.image, alone.image)
    assert batch.views["consensus"].views.shape == (2, 3, 3, 32, 32)
    part = batch.part(2, 4)
    assert torch.equal(part.hands.image, alone.image[2:])
    assert torch.equal(part.views["consensus"].views, batch.views["consensus"].views[1:])


def test_amplitudes_are_mixed_and_phases_stay():
    generator = torch.Generator().manual_seed(0)
    image, other = (0.5 + 0.05 * torch.randn(3, 3, 16, 16, generator=generator) for _ in range(2))
    mixed = mix_amplitudes(image, other, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(mixed[0], image[0])
    before, after = torch.fft.rfft2(image), torch.fft.rfft2(mixed)
    wanted = torch.fft.rfft2(other).abs()
    torch.testing.assert_close(after.abs()[2, :, 1:], wanted[2, :, 1:], atol=1e-4, rtol=1e-3)
    half = (before.abs() + wanted)[1] / 2
    torch.testing.assert_close(after.abs()[1, :, 1:], half[:, 1:], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(mixed.mean(dim=(-1, -2)), image.mean(dim=(-1, -2)))
    turn = (after / before)[:, :, 1:, 1:-1]  # real and positive where the phase is the same
    assert (turn.imag.abs() < 1e-2 * turn.real).all()


def test_spectra_reach_the_hands_alone(hands):
    plain, mixed = (joint_batch(hands, {}, spectrum_prob=p) for p in (0.0, 1.0))
    assert not torch.allclose(plain.hands.image, mixed.hands.image, atol=1e-2)
    assert torch.equal(plain.hands.kp2d_crop_ndc, mixed.hands.kp2d_crop_ndc)
    assert torch.equal(plain.crops.image, mixed.crops.image)


def test_moments_are_those_of_the_weights_that_predict(hands, hand):
    task = small_hand_task(hand, token_norm="patches", average=0.5)
    info, run = StepInfo(1, 2), SimpleNamespace(device="cpu")
    with torch.no_grad():
        for parameter in task.averaged.net["backbone"].parameters():
            parameter += 0.05
    task.eval()
    MomentsHook({LABELLED: hands, UNLABELED: Photos(hands)}, small_augment())(task, info, run)
    norm = task.averaged.net["token_norm"]
    assert bool(norm.adapted)
    assert bool(task.token_norm.adapted)  # else the next step would take it back
    images = small_augment().evaluate_images(
        torch.stack([torch.from_numpy(Photos(hands)[i].image) for i in range(6)]).permute(
            0, 3, 1, 2
        )
    )
    with torch.no_grad():
        patches = task.averaged.net["backbone"](images).patches
    mean = norm.norms[UNLABELED][0].running_mean
    torch.testing.assert_close(mean, patches.mean(dim=(0, 1)), atol=1e-5, rtol=1e-4)


class Oracle(torch.nn.Module):
    """Predicts of every view what is really in it, with noise on some joints."""

    def __init__(self, hand, maps: torch.Tensor, noise: float) -> None:
        super().__init__()
        b, g = maps.shape[:2]
        generator = torch.Generator().manual_seed(3)
        pose = hand.mean_rotmats.float().expand(b, -1, -1, -1)
        joints = hand(pose, torch.zeros(b, hand.num_betas)).joints_m
        joints = joints - joints[:, 9, None]
        cam = torch.tensor([0.0, 0.01, -0.01]).expand(b, -1)
        self.in_source = project_weak(joints, cam, 8.0)
        angle = torch.atan2(maps[..., 1, 0], maps[..., 0, 0])
        rotated = joints[:, None] @ rotation_about_z(angle)
        seen = from_source(self.in_source[:, None].expand(b, g, -1, -1), maps)
        jitter = noise * torch.randn(seen.shape, generator=generator)
        jitter[:, :, ::2] = 0  # every second joint is sure
        self.root_m = joints
        self.state = SimpleNamespace(
            joints_crop_ndc=(seen + jitter).flatten(0, 1),
            joints_root_m=rotated.flatten(0, 1),
            verts_root_m=torch.zeros(b * g, 5, 3),
        )

    def refinements(self, image, intrinsics, domain, *, as_teacher):
        assert (domain, as_teacher) == (UNLABELED, True)
        return SimpleNamespace(steps=(None, self.state))


def test_consensus_labels_are_the_hand_of_each_view(hands, hand):
    batch = joint_batch(hands, {"consensus": views(4, keep_clean=True)}).views["consensus"]
    maps = batch.source_from_view
    oracle = Oracle(hand, maps, 0.05).train()
    labels, spread = consensus(kept=0.5, student_views=2).labels(oracle, batch)
    assert oracle.training
    assert spread > 0
    assert torch.equal(labels.image, batch.views[:, :2].flatten(0, 1))
    sure = torch.arange(21) % 2 == 0
    assert labels.kp2d_valid[:, ~sure].sum() == 0
    assert labels.kp2d_valid[:, sure].float().mean() > 0.9
    seen = from_source(oracle.in_source[:, None].expand(-1, 2, -1, -1), maps[:, :2])
    difference = (labels.kp2d_crop_ndc - seen.flatten(0, 1))[:, sure]
    assert difference.abs().max() < 1e-5
    angle = torch.atan2(maps[..., 1, 0], maps[..., 0, 0])[:, :2]
    rotated = (oracle.root_m[:, None] @ rotation_about_z(angle)).flatten(0, 1)
    torch.testing.assert_close(labels.joints_cam_m, rotated, atol=1e-6, rtol=0)
    assert labels.joints_valid[:, 9].all()
    assert not labels.has_mano.any()


def test_the_teacher_predicts_by_averaged_weights_while_the_live_ones_train(hands, hand):
    options = {"average": 0.5, "token_norm": "all", "drop_path_rate": 0.5}
    task = small_hand_task(hand, **options).train()
    net = task.averaged.net
    with torch.no_grad():
        for parameter in net["backbone"].parameters():
            parameter += 0.05
    before = {name: value.clone() for name, value in task.state_dict().items()}
    image = joint_batch(hands, {}).hands.image
    found = task.refinements(image, None, UNLABELED, as_teacher=True).steps[-1]
    tokens = net["token_norm"](net["backbone"](image), UNLABELED, of_batch=True)
    assert torch.equal(found.joints_root_m, net["head"](tokens).steps[-1].joints_root_m)
    assert task.training
    assert task.backbone.training
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_bare_joints_are_standardised_too():
    task = keypoint_task(token_norm="patches").train()
    image = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = []
    task.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    task.refinements(image, None, LABELLED)
    assert seen[0].patches.mean(dim=(0, 1)).abs().max() < 1e-5


def test_consensus_waits_and_needs_averaged_weights(hands, hand):
    batch = joint_batch(hands, {"consensus": views(3)})
    task = small_hand_task(hand, average=0.5).train()
    task.add_unlabeled({"consensus": consensus(start=0.5)})
    early, late = (task(batch, StepInfo(step, 10)).scalars for step in (4, 5))
    assert "consensus/spread_ndc" not in early
    assert {"consensus/spread_ndc", "consensus/loss/joints3d"} <= set(late)
    assert late["loss"] > early["loss"]
    with pytest.raises(ValueError, match=r"the average of the weights.*task\.average"):
        small_hand_task(hand).add_unlabeled({"consensus": consensus()})
    for wrong in ({"start": 1.0}, {"kept": 1.5}, {"student_views": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            consensus(**wrong)


def test_the_pretext_trains_the_backbone_of_the_regression(hands, hand):
    term = pretext(weight=0.7)
    batch = joint_batch(hands, {"pretext": views()})
    task = small_hand_task(hand).train()
    task.add_unlabeled({"pretext": term})
    assert term.method.student["backbone"] is task.backbone
    info = StepInfo(0, 10)
    result = task(batch, info)
    own, _ = task.losses(task.outputs(batch.hands), batch.hands, info)
    alone = term.method(batch.views["pretext"], info).loss
    torch.testing.assert_close(result.loss, own + 0.7 * alone)
    result.loss.backward()
    assert task.backbone.mask_token.grad is not None
    assert len(list(task.parameters())) == len(set(task.parameters()))


def fitted(folder, hands, hand, *, stop_after=None, resume="never"):
    run = Run.start("r", folder, 0, {}, accelerator="cpu", resume=resume)
    task = small_hand_task(hand, average=0.5, token_norm="patches")
    term = pretext()
    task.add_unlabeled({"pretext": term, "consensus": consensus()})
    augment, photos = small_augment(), Photos(hands)
    if resume == "never":
        task.start_from_labels(hands, augment, run.device)
    made = {"pretext": views(), "consensus": views(3, keep_clean=True)}
    prepare = PreparePairs(augment=augment, views=made, spectrum_prob=0.5)
    hooks = [
        MomentsHook({LABELLED: hands, UNLABELED: photos}, augment, 2),
        EvalHook(hands, augment, every=2),
        EvalHook(hands, augment, every=2, domain=LABELLED, name="renders"),
    ]
    parts = run, task, Pairs(hands, photos), CollatePairs(0.5), prepare
    config = OptimizerConfig(partial(torch.optim.AdamW), 1e-3, clip_norm=1.0)
    trainer = Trainer(max_steps=5, batch_size=4, log_every=1, stop_after=stop_after)
    result = trainer.fit(*parts, config, hooks=hooks, resume=resume)
    return task, result, load_checkpoint(folder / "last.pt")


def test_a_killed_run_goes_on_bit_for_bit(hands, hand, tmp_path):
    _, whole, straight = fitted(tmp_path / "a", hands, hand)
    fitted(tmp_path / "b", hands, hand, stop_after=3)
    _, resumed, parts = fitted(tmp_path / "b", hands, hand, resume="auto")
    assert whole.scalars.keys() == resumed.scalars.keys()
    assert whole.scalars["loss"] == resumed.scalars["loss"]
    assert straight["task"].keys() == parts["task"].keys()
    for name, value in straight["task"].items():
        assert torch.equal(value, parts["task"][name]), name


def test_each_domain_is_scored_by_its_moments(hands, hand, tmp_path):
    task, _, _ = fitted(tmp_path, hands, hand)
    task.eval()
    scored = {
        domain: score(InferenceModule(task, small_augment(), domain=domain), hands)[0]
        for domain in (None, UNLABELED, LABELLED)
    }
    assert scored[None] == scored[UNLABELED]
    assert scored[None] != scored[LABELLED]
    rows = [line for line in (tmp_path / "scalars.jsonl").read_text().splitlines() if "val" in line]
    assert '"val/mpjpe_mm"' in rows[-1]
    assert '"val_renders/mpjpe_mm"' in rows[-1]
