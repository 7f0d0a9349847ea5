"""Perfect parameters give zero error through dataset, crop, prediction, submission and scorer."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from handmim.data.augment import HandAugment
from handmim.data.freihand import FreiHand
from handmim.data.ho3d import Ho3d, read_meta
from handmim.data.label_files import read_ground_truth
from handmim.data.samples import mirror_sample
from handmim.evaluation.benchmarks import BENCHMARKS, Benchmark, score_report
from handmim.evaluation.inference import InferenceModule
from handmim.evaluation.report import benchmark_of, score_file, submit
from handmim.evaluation.scoring import predict_camera_hands, score
from handmim.evaluation.submission import read_submission, write_submission
from handmim.losses.hand import JointLoss
from handmim.models.heads.pymaf import PyMafHead
from handmim.models.vit import ViT
from handmim.tasks.mesh import HandRegressionTask

LENGTHS = (
    "abs_mpjpe_mm", "mpjpe_mm", "pa_mpjpe_mm", "abs_mpvpe_mm", "mpvpe_mm", "pa_mpvpe_mm",
)  # fmt: skip


@pytest.fixture(scope="module")
def task(hand):
    size = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    backbone = ViT("vit_tiny_patch16_224", img_px=32, patch_px=8, pixel_norm="per_image", size=size)
    head = partial(
        PyMafHead, hand=hand, channels=8, grid_side=2, num_points=4, point_dims=(8,), cls_dim=8
    )
    return HandRegressionTask(backbone, head, {"joints3d": JointLoss(root_joint=9)})


@pytest.fixture
def augment():
    return HandAugment(img_px=48, scale=(0.8, 1.0))


def predicted(task, dataset, augment, **how):
    module = InferenceModule(task, augment, source="ground_truth")
    return predict_camera_hands(module, dataset, batch_size=5, **how)


def written_and_scored(hands, benchmark: Benchmark, gt, folder):
    joints, verts = benchmark.canonical_to_benchmark(hands.joints_cam_m, hands.verts_cam_m)
    path = write_submission(folder, joints, verts)
    return score_report(benchmark, read_submission(path), gt)


def assert_perfect(report):
    for name in LENGTHS:
        assert report[name] < 0.01, name
    assert report["pa_f5"] == 1.0
    assert report["abs_auc_verts"] > 0.99


@pytest.mark.parametrize("split", ["evaluation", "val"])
def test_freihand_from_parameters(task, augment, freihand_tree, tmp_path, split):
    data = FreiHand(
        freihand_tree, "standin", split=split, versions=("gs",), val_fraction=0.3,
        image_px=64, cache_dir=tmp_path,
    )  # fmt: skip
    assert data[0].has_mano
    hands = predicted(task, data, augment)
    gt = read_ground_truth(freihand_tree, tmp_path)
    if split == "val":
        gt = tuple(data.labels[n][data.ids] for n in ("xyz", "verts"))
    benchmark = benchmark_of("freihand", len(data))
    assert_perfect(written_and_scored(hands, benchmark, gt, tmp_path))


@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize("placement", ["predicted", "given_wrist"])
def test_ho3d_evaluation(task, augment, request, tmp_path, version, placement):
    tree = request.getfixturevalue(f"ho3d_{version}_tree")
    data = Ho3d(tree, "standin", split="evaluation", image_px=64, cache_dir=tmp_path)
    hands = predicted(task, data, augment, placement=placement)
    benchmark = benchmark_of(f"ho3d_{version}", len(data))
    report = written_and_scored(hands, benchmark, read_ground_truth(tree, tmp_path), tmp_path)
    assert_perfect(report)
    assert report["st_mpjpe_mm"] < 0.01


def test_ho3d_from_parameters(task, augment, ho3d_v3_tree, tmp_path):
    # Only training frames carry handPose: they are scored against the joints in their metas and
    # against vertices that smplx poses in the file's own OpenGL axes.
    smplx = pytest.importorskip("smplx")
    from smplx.utils import Struct

    data = Ho3d(ho3d_v3_tree, "standin", split="all", image_px=64, cache_dir=tmp_path)
    data.frames = data.frames[:6]
    arrays = task.head.hand.arrays
    struct = Struct(
        v_template=arrays.v_template, f=arrays.faces, shapedirs=arrays.shapedirs,
        posedirs=arrays.posedirs, J_regressor=arrays.J_regressor, weights=arrays.weights,
        kintree_table=np.array([[2**32 - 1, *arrays.parents[1:]], range(16)], np.uint32),
        hands_mean=arrays.hands_mean, hands_components=arrays.hands_components,
    )  # fmt: skip
    layer = smplx.MANO(
        model_path="", data_struct=struct, is_rhand=True, use_pca=False, flat_hand_mean=True
    )
    metas = [read_meta(data.root, "train", frame) for frame in data.frames]
    pose, trans, betas = (
        torch.from_numpy(np.stack([np.asarray(m[k], np.float32) for m in metas]))
        for k in ("handPose", "handTrans", "handBeta")
    )
    with torch.no_grad():
        mesh = layer(global_orient=pose[:, :3], hand_pose=pose[:, 3:], betas=betas, transl=trans)
    gt = np.stack([m["handJoints3D"] for m in metas]), mesh.vertices.numpy()
    for placement in ("predicted", "given_wrist"):
        hands = predicted(task, data, augment, placement=placement)
        benchmark = benchmark_of("ho3d_v3", len(data))
        assert_perfect(written_and_scored(hands, benchmark, gt, tmp_path))


def test_left_hands_come_back_as_left_hands(task, augment, freihand_tree, tmp_path):
    data = FreiHand(freihand_tree, "standin", split="evaluation", image_px=64, cache_dir=tmp_path)
    right = [data[i] for i in range(4)]
    left = [mirror_sample(s) for s in right]
    hands, mirrored = (predicted(task, s, augment) for s in (right, left))
    np.testing.assert_allclose(mirrored.verts_cam_m, hands.verts_cam_m * [-1, 1, 1], atol=1e-5)
    np.testing.assert_allclose(mirrored.joints_cam_m, [s.joints_cam_m for s in left], atol=1e-5)


def test_root_relative_scores_of_labels_are_zero_too(task, augment, freihand_tree, tmp_path):
    data = FreiHand(freihand_tree, "standin", split="evaluation", image_px=64, cache_dir=tmp_path)
    metrics, _ = score(InferenceModule(task, augment, source="ground_truth"), data)
    assert metrics["mpjpe_mm"] < 0.01
    assert metrics["mpvpe_mm"] < 0.01
    far, _ = score(InferenceModule(task, augment, source="mean_hand"), data)
    assert far["pa_mpjpe_mm"] > 5


def test_a_submission_is_what_is_scored_and_can_be_scored_again(
    task, augment, freihand_tree, tmp_path
):
    data = FreiHand(freihand_tree, "standin", split="evaluation", image_px=64, cache_dir=tmp_path)
    mean = InferenceModule(task, augment, source="mean_hand")
    hands = predict_camera_hands(mean, data, batch_size=3, num_images=2)
    assert hands.sheet is not None
    gt = read_ground_truth(freihand_tree, tmp_path)
    run = SimpleNamespace(dir=tmp_path, is_main=True)
    report = submit(run, "freihand", hands, gt)
    path = tmp_path / "pred.json"
    again = score_file(path, benchmark_of("freihand", len(data)), gt, "pred.json")
    assert report["official"] == again["official"]
    assert report["pa_mpjpe_mm"] == pytest.approx(10 * report["official"]["xyz_al_mean3d"])
    low, high = report["interval_95"]["pa_mpjpe_mm"]
    assert low < report["pa_mpjpe_mm"] < high
    metrics, _ = score(InferenceModule(task, augment, source="mean_hand"), data)
    for name in ("mpjpe_mm", "mpvpe_mm", "pa_mpvpe_mm"):
        assert report[name] == pytest.approx(metrics[name], abs=1e-3), name
    joints = [j["pa_mm"] for j in report["per_joint"].values()]
    assert np.mean(joints) == pytest.approx(report["pa_mpjpe_mm"])
    bare = submit(run, "freihand", hands, None)
    assert "official" not in bare
    assert bare["submission"] == "pred.zip"


def test_what_a_set_lacks_is_named(task, augment, ho3d_v2_tree, freihand_tree, tmp_path):
    with pytest.raises(ValueError, match=r"benchmark must be one of \('freihand'.* got 'dexycb'"):
        benchmark_of("dexycb", 3)
    assert set(BENCHMARKS) == {"freihand", "ho3d_v2", "ho3d_v3"}
    data = FreiHand(freihand_tree, "standin", split="evaluation", image_px=64, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="placement must be one of"):
        predicted(task, data, augment, placement="guessed")
    hands = predicted(task, data, augment)
    behind = hands._replace(joints_cam_m=-hands.joints_cam_m, verts_cam_m=-hands.verts_cam_m)
    run = SimpleNamespace(dir=tmp_path, is_main=True)
    report = submit(run, "freihand", behind, read_ground_truth(freihand_tree, tmp_path))
    assert "behind-camera" in [f["name"] for f in report["findings"]]
    assert report["abs_mpjpe_mm"] > 500, "scored all the same, as the servers would"
    path, gt = (
        tmp_path / "pred.json",
        tuple(t[:5] for t in read_ground_truth(freihand_tree, tmp_path)),
    )
    with pytest.raises(ValueError, match=r"pred\.json cannot be scored .* count: "):
        score_file(path, benchmark_of("freihand", 5), gt, "pred.json")
