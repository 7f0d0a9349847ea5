"""Every regression loss at once, built from its yaml, on rendered hands through the real head."""

from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from hydra.utils import instantiate

from handmim.data.augment import HandAugment
from handmim.data.loader import collate_hands
from handmim.data.synthetic import SyntheticHands
from handmim.losses.hand import hand_masks
from handmim.types import HandBatch, StepInfo
from handmim.utils.entry import compose

REPO = Path(__file__).parents[2]
SCENE = {"image_px": 40, "view": "cone", "background": "studio", "objects": 0.0, "occluders": 0.0}
PLAIN = "joints3d,joints2d,verts,rotations,betas,prior,edges,direct_keypoints"
EVERY = f"loss=[{PLAIN},joints3d_abs,heatmaps,silhouette]"
DRAWN = ("task.head.heatmaps=true", "task.head.silhouette=true")
INFO = StepInfo(0, 10)


@pytest.fixture(scope="module")
def batch(tmp_path_factory, hand_path) -> HandBatch:
    """Eight augmented images of 32 px."""
    folder = tmp_path_factory.mktemp("c")
    hands = SyntheticHands(hand_path, "train", 8, folder, SCENE, num_workers=0)
    augment = HandAugment(img_px=32, scale=(0.6, 1.0), rotation_deg=40.0)
    stored = collate_hands([hands[i] for i in range(8)])
    return augment(stored, torch.Generator().manual_seed(0), INFO)


def build(*overrides: str):
    torch.manual_seed(0)
    small = ("backbone=vit_nano_p8", "task.backbone.img_px=32")
    if "head=direct" not in overrides:
        small += ("head=pymaf_small", "task.head.num_steps=2")
    with initialize_config_dir(str(REPO / "configs"), version_base="1.3"):
        paths = f"paths.data_dir={REPO / 'data'}"
        return instantiate(compose("finetune", [*small, *overrides, paths]).task)


def test_all_of_them_train_and_each_is_reported(batch):
    task = build(EVERY, *DRAWN, "task.head.camera=pinhole")
    result = task(batch, INFO)
    result.loss.backward()
    names = {n.removeprefix("loss/") for n in result.scalars if n != "loss"}
    singles = set(EVERY[6:-1].split(",")) - {"direct_keypoints"}
    assert names == singles | {"direct3d", "direct2d"}
    assert all(torch.isfinite(v) for v in result.scalars.values())
    assert result.scalars["loss/prior"] == 0.0  # all have MANO parameters
    assert all(v > 0 for n, v in result.scalars.items() if n != "loss/prior")
    assert 0.5 < result.scalars["loss/silhouette"] < 1.0  # nothing is known yet: about ln 2
    named = {n: p for n, p in task.named_parameters() if p.requires_grad}
    assert not [n for n, p in named.items() if p.grad is None]
    assert not [n for n in task.state_dict() if n.startswith("losses")]


def test_what_a_head_does_not_give_is_asked_for(batch):
    with pytest.raises(ValueError, match=r"camera=pinhole"):
        build("loss=[joints3d_abs]")(batch, INFO)
    with pytest.raises(ValueError, match=r"head\.heatmaps=true"):
        build("loss=[heatmaps]")(batch, INFO)
    with pytest.raises(ValueError, match=r"head\.silhouette=true"):
        build("loss=[silhouette]")(batch, INFO)


def test_a_head_that_could_not_train_whole_is_refused():
    cases = {
        r"draws \['silhouette'\] and no loss": ["task.head.silhouette=true"],
        r"taps blocks \[9\] of a backbone that has 1 to 3": ["task.head.taps=[9]"],
        r"without a gradient.*task\.head\.detach=false": ["task.step_weights=last"],
        r"step_weights=\[0\.0, 1\.0\] would": ["task.step_weights=[0.0,1.0]"],
        r"DirectHead regresses no hand model": ["head=direct"],
    }
    for message, overrides in cases.items():
        with pytest.raises(Exception, match=message):
            build(*overrides)
    build("task.step_weights=last", "head=iterative")  # one update, shared by all steps


def test_steps_are_weighted_by_the_task(batch):
    found = {}
    for overrides in ("null", "last", "[1.0,1.0]", "[1.0,0.0]", "[0.5,1.0]"):
        task = build(f"task.step_weights={overrides}", "task.head.detach=false")
        found[overrides] = task.eval()(batch, INFO).loss.item()
    first, last = found["[1.0,0.0]"], found["last"]
    assert found["null"] == pytest.approx((first + last) / 2, rel=1e-5)
    assert found["[1.0,1.0]"] == pytest.approx(found["null"], rel=1e-5)
    assert found["[0.5,1.0]"] == pytest.approx((first + 2 * last) / 3, rel=1e-5)
    assert first != last
    with pytest.raises(ValueError, match=r"3 weights .* for 2 refinement steps"):
        build("task.step_weights=[1.0,1.0,1.0]")(batch, INFO)
    with pytest.raises(Exception, match=r"step_weights"):
        build("task.step_weights=best")


@pytest.mark.parametrize("overrides", [(), ("task.step_weights=[0.2,1.0]",)])
def test_every_refinement_has_a_gradient_whatever_its_weight(batch, overrides):
    task = build(*overrides)
    task(batch, INFO).loss.backward()
    sums = [sum(float(p.grad.abs().sum()) for p in r.parameters()) for r in task.head.regressors]
    assert all(total > 0 for total in sums)


def test_the_mask_follows_the_augmented_image(batch, hand):
    faces = torch.from_numpy(hand.faces).long()
    expected = hand_masks(batch.verts_cam_m, batch.K_crop_px, faces, 32, (32, 32))
    with torch.autocast(
        "cpu", torch.bfloat16
    ):  # training in half precision draws the same ground truth
        masks = hand_masks(batch.verts_cam_m, batch.K_crop_px, faces, 32, (32, 32))
    assert torch.equal(masks, expected)
    column, row = ((batch.kp2d_crop_ndc + 1) * 16).floor().long().unbind(-1)
    is_inside = (batch.kp2d_crop_ndc.abs() < 1).all(dim=-1)
    image = torch.arange(8)[:, None].expand(8, 21)
    hit = masks[image, row.clamp(0, 31), column.clamp(0, 31)][is_inside]
    assert is_inside.float().mean() > 0.8
    assert hit.float().mean() > 0.9  # a fingertip may lie on the rim
    assert masks.float().mean() < 0.5
