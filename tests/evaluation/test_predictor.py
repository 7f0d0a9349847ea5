"""Arrays in, hands out: the same as the evaluation path says of the same crops."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torch.utils.data import Dataset

from handmim.data.augment import HandAugment
from handmim.data.samples import hand_sample, mirror_sample
from handmim.engine.checkpoint import save_checkpoint
from handmim.evaluation.inference import InferenceModule
from handmim.evaluation.predictor import (
    HandPredictor,
    hand_config,
    load_model,
    read_model_checkpoint,
)
from handmim.evaluation.scoring import estimates, predict_camera_hands
from handmim.types import HandSample
from handmim.utils.config import resolved
from handmim.utils.timer import Stages
from tests.pipelines.test_evaluate import SMALL, composed

NUM, SIDE = 11, 72


def checkpoint(folder, hand_path, *overrides):
    """As fine-tuning would leave it, with random weights that do see the image."""
    cfg = composed("finetune", "data=synthetic", f"hand.path={hand_path}", *overrides)
    torch.manual_seed(0)
    task = instantiate(cfg.task)
    for name, weight in task.head.named_parameters():
        if name.endswith("out.weight"):
            torch.nn.init.normal_(weight, std=0.05)
    state = {"step": 1, "task": task.state_dict(), "meta": task.hand_metadata()}
    path = folder / "last.pt"
    save_checkpoint(path, {**state, "config": resolved(cfg)})
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, hand_path):
    overrides = [*SMALL, "task.head.camera=pinhole", "augment.scale=[0.7,1.0]"]
    return checkpoint(tmp_path_factory.mktemp("trained"), hand_path, *overrides)


@pytest.fixture(scope="module")
def joints_only(tmp_path_factory, hand_path):
    overrides = ["task=keypoints", "head=direct", "loss=[direct_keypoints]", *SMALL[4:]]
    return checkpoint(tmp_path_factory.mktemp("joints"), hand_path, *overrides)


@pytest.fixture(scope="module")
def crops():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (NUM, 9, 9, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, SIDE // 9, SIDE // 9, 1), np.uint8))


@pytest.fixture(scope="module")
def intrinsics():
    rng = np.random.default_rng(1)
    K = np.tile(np.diag([150.0, 155.0, 1.0]), (NUM, 1, 1))
    K[:, :2, 2] = SIDE / 2 + rng.normal(0, 9, (NUM, 2))
    return K


PAGE = Path(__file__).parents[2] / "docs" / "finetuning.md"
IS_RIGHT = np.arange(NUM) % 3 != 1


class Crops(Dataset[HandSample]):
    def __init__(self, crops, K_px, joint_convention="model"):
        self.samples = [
            hand_sample(
                image,
                f"{i}",
                is_right=bool(IS_RIGHT[i]),
                K_crop_px=K,
                joint_convention=joint_convention,
            )
            for i, (image, K) in enumerate(zip(crops, K_px, strict=True))
        ]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def evaluated(path, dataset, batch_size=4):
    """The evaluation path: hands before the camera, and estimates batch by batch."""
    saved = read_model_checkpoint(path)
    task, augment = load_model(saved, hand_config(saved, {}), str(path))
    module = InferenceModule(task, augment)
    states = list(estimates(module, dataset, batch_size, 0))
    hands = None
    if states[0][1].verts_root_m is not None:
        hands = predict_camera_hands(module, dataset, batch_size=batch_size)
    return hands, states


@pytest.mark.parametrize("joint_convention", ["model", "freihand"])
def test_hands_before_the_camera_are_those_of_the_evaluation(
    trained, crops, intrinsics, joint_convention
):
    predictor = HandPredictor.from_checkpoint(
        trained, batch_size=4, joint_convention=joint_convention
    )
    ours = predictor(crops, intrinsics, IS_RIGHT)
    theirs, states = evaluated(trained, Crops(crops, intrinsics, joint_convention))
    for points, expected in (
        (ours.joints_root_m, theirs.joints_cam_m),
        (ours.verts_root_m, theirs.verts_cam_m),
    ):
        np.testing.assert_allclose(points + ours.transl_cam_m[:, None], expected, atol=1e-6)
    betas = torch.cat([state.betas for _, state in states]).numpy()
    np.testing.assert_allclose(ours.betas, betas, atol=1e-6)
    assert ours.betas.std(axis=0).min() > 1e-4, "images make a difference"
    assert all(a.dtype == np.float32 for a in (ours.joints_root_m, ours.rotmats, ours.betas))


def test_pixels_are_those_of_the_given_crops(trained, crops, intrinsics):
    ours = HandPredictor.from_checkpoint(trained)(crops, intrinsics, IS_RIGHT)
    # The head's camera is the true one where K is known: points project to where they are seen.
    points = ours.verts_root_m + ours.transl_cam_m[:, None]
    seen = points @ intrinsics.transpose(0, 2, 1)
    np.testing.assert_allclose(ours.verts_crop_px, seen[..., :2] / seen[..., 2:], atol=1e-2)
    assert ours.joints_crop_px.shape == (NUM, 21, 2)


def test_a_left_hand_is_the_mirrored_right_hand(trained, crops, intrinsics):
    predictor = HandPredictor.from_checkpoint(trained)
    sample = mirror_sample(hand_sample(crops[0], "x", K_crop_px=intrinsics[0]))
    right = predictor(crops[:1], intrinsics[:1])
    left = predictor(sample.image[None], sample.K_crop_px[None], np.array([False]))
    flip = np.array([-1.0, 1, 1])
    np.testing.assert_allclose(left.verts_root_m, right.verts_root_m * flip, atol=1e-6)
    np.testing.assert_allclose(left.transl_cam_m, right.transl_cam_m * flip, atol=1e-5)
    np.testing.assert_allclose(
        left.joints_crop_px, [SIDE, 0] + right.joints_crop_px * [-1, 1], atol=1e-3
    )
    wrist = right.rotmats[0, 0]
    np.testing.assert_allclose(left.rotmats[0, 0], wrist * np.outer(flip, flip), atol=1e-6)


def test_any_number_of_crops_in_any_batches(trained, crops, intrinsics):
    whole = HandPredictor.from_checkpoint(trained, batch_size=64)(crops, intrinsics, IS_RIGHT)
    for batch_size in (1, 3, NUM):
        predictor = HandPredictor.from_checkpoint(trained, batch_size=batch_size)
        parts = predictor(crops, intrinsics, IS_RIGHT)
        for a, b in zip(parts, whole, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
    # filled up as compiled and recorded models want it
    predictor = HandPredictor.from_checkpoint(trained, batch_size=8)
    predictor.module.has_fixed_batches = True
    shapes = []
    predictor.module.task.active_backbone.register_forward_pre_hook(
        lambda _, args: shapes.append(args[0].shape[0])
    )
    filled = predictor(crops, intrinsics, IS_RIGHT)
    assert shapes == [8, 8]
    for a, b in zip(filled, whole, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_intrinsics_may_be_unknown_or_shared(trained, crops, intrinsics):
    predictor = HandPredictor.from_checkpoint(trained)
    none = predictor(crops)
    assert np.isnan(none.transl_cam_m).all()
    some = intrinsics.copy()
    some[4] = np.nan
    hands = predictor(crops, some)
    assert np.isnan(hands.transl_cam_m).all(axis=1).tolist() == [i == 4 for i in range(NUM)]
    np.testing.assert_allclose(hands.joints_crop_px[4], none.joints_crop_px[4], atol=1e-4)
    shared = predictor(crops, intrinsics[2])
    np.testing.assert_allclose(shared.transl_cam_m[2], hands.transl_cam_m[2], atol=1e-6)


def test_bare_joints_are_predicted_too(joints_only, crops, intrinsics):
    ours = HandPredictor.from_checkpoint(joints_only, batch_size=4)(crops, intrinsics, IS_RIGHT)
    _, states = evaluated(joints_only, Crops(crops, intrinsics))
    assert ours.verts_root_m is None
    assert ours.verts_crop_px is None
    assert ours.rotmats is None
    joints = torch.cat([state.joints_root_m for _, state in states]).numpy()
    flip = np.where(IS_RIGHT[:, None, None], 1.0, [-1.0, 1, 1])
    np.testing.assert_allclose(ours.joints_root_m, joints * flip, atol=1e-6)
    assert np.isfinite(ours.transl_cam_m).all()


def test_stages_have_times_and_change_nothing(trained, crops):
    predictor = HandPredictor.from_checkpoint(trained, batch_size=4)
    stages = Stages(predictor.device)
    timed = predictor(crops, stages=stages)
    seconds = stages.seconds_per_item
    assert list(seconds) == ["upload", "crop", "backbone", "head and hand", "download"]
    assert all(0 < s < 1 for s in seconds.values())
    lines = str(stages).splitlines()
    assert lines[-1].split()[:1] == ["all"]
    assert lines[-1].endswith("100.0%")
    for a, b in zip(timed, predictor(crops), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(stages.laps["backbone"]) == 3, "hooks are gone after the call"


def test_bfloat16_is_near(trained, crops):
    full = HandPredictor.from_checkpoint(trained)(crops)
    half = HandPredictor.from_checkpoint(trained, precision="bf16-mixed")(crops)
    error = np.abs(half.joints_root_m - full.joints_root_m).max()
    assert 1e-7 < error < 5e-3


def test_what_cannot_be_is_refused(trained, crops, monkeypatch):
    make = HandPredictor.from_checkpoint
    for overrides, message in (
        ({"cuda_graph": True}, "needs a CUDA device, got device=cpu"),
        ({"precision": "half"}, r"precision must be one of \('32-true'"),
        ({"joint_convention": "mine"}, "joint_convention must be one of"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make(trained, **overrides)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no GPU here"):
        make(trained, device="cuda")
    predictor = make(trained)
    for given, message in (
        ((crops[0],), r"crops must be \[N, S, S, 3\] .* got \(72, 72, 3\)"),
        ((crops[:, :50],), r"crops must be \[N, S, S, 3\]"),
        ((crops.astype(np.float32),), r"of uint8 in 0..255.* got \(11, 72, 72, 3\) of float32"),
        ((crops[:0],), "N >= 1"),
        ((crops, np.eye(3)[None]), r"require K_px \[3, 3\] or \[11, 3, 3\]"),
        ((crops, None, IS_RIGHT[:4]), r"is_right \[11\]"),
        ((crops, None, np.array(["left"] * NUM)), r"is_right \[11\] of bool, got .* of <U4"),
        ((crops, np.zeros((3, 3))), "focal lengths in K_px must be > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor(*given)


def test_the_example_of_the_documentation_runs(trained, crops, tmp_path, monkeypatch):
    (text,) = [t for t in PAGE.read_text().split("```") if "handmim.load(" in t]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tuned").mkdir(parents=True)
    (tmp_path / "runs" / "tuned" / "last.pt").write_bytes(trained.read_bytes())
    (tmp_path / "hands").mkdir()
    for i, crop in enumerate(crops[:3]):
        cv2.imwrite(str(tmp_path / "hands" / f"{i}.jpg"), crop)
    place: dict = {}
    exec(text.removeprefix("python"), place)
    assert place["hands"].verts_root_m.shape == (3, 778, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_a_compiled_model_says_the_same(trained, crops, intrinsics):
    plain = HandPredictor.from_checkpoint(trained)(crops, intrinsics, IS_RIGHT)
    predictor = HandPredictor.from_checkpoint(trained, batch_size=4, compile=True)
    for a, b in zip(predictor(crops, intrinsics, IS_RIGHT), plain, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_a_recorded_model_says_the_same(trained, crops, intrinsics, compile):
    plain = HandPredictor.from_checkpoint(trained, "cuda", batch_size=4)
    recorded = HandPredictor.from_checkpoint(
        trained, "cuda", batch_size=4, cuda_graph=True, compile=compile
    )
    expected = plain(crops, intrinsics, IS_RIGHT)
    for _ in range(2):
        for a, b in zip(recorded(crops, intrinsics, IS_RIGHT), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
    shuffled = recorded(crops[::-1].copy(), intrinsics[::-1], IS_RIGHT[::-1])
    np.testing.assert_allclose(shuffled.betas[::-1], expected.betas, atol=1e-4)
    stages = Stages(recorded.device)
    recorded(crops, intrinsics, IS_RIGHT, stages)
    assert list(stages.seconds_per_item) == ["upload", "model", "download"]


def test_the_crop_is_the_evaluation_crop(trained):
    saved = read_model_checkpoint(trained)
    task, augment = load_model(saved, hand_config(saved, {}), str(trained))
    module = InferenceModule(task, augment)
    side = float(module.source_from_crop[0, 0, 0])
    assert side == pytest.approx((0.7 * 1.0) ** 0.5)
    assert isinstance(augment, HandAugment)
