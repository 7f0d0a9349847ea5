import math

import pytest
import torch

from handmim.contracts import HandBatch, HandOutputs, HandState
from handmim.geometry.rotation import axis_angle_to_matrix
from handmim.losses.joints import Joints2D, Joints3D
from handmim.losses.mano_params import Betas, Rotations
from handmim.losses.prior import Prior
from handmim.losses.verts import Verts

TERMS = [Joints3D(root_joint=9), Joints2D(), Verts(root_joint=9), Rotations(), Betas()]


def random_batch(b: int, seed: int = 0) -> HandBatch:
    g = torch.Generator().manual_seed(seed)
    ones = torch.ones(b, dtype=torch.bool)
    return HandBatch(
        image=torch.zeros(b, 3, 8, 8),
        was_left=~ones,
        joint_rule=torch.zeros(b, dtype=torch.long),
        K_crop_px=torch.eye(3).expand(b, 3, 3),
        has_K=ones,
        kp2d_crop_ndc=torch.randn(b, 21, 2, generator=g),
        kp2d_valid=ones[:, None].expand(b, 21),
        joints_cam_m=torch.randn(b, 21, 3, generator=g),
        joints_valid=ones[:, None].expand(b, 21),
        verts_cam_m=torch.randn(b, 30, 3, generator=g),
        has_verts=ones,
        rotmats=axis_angle_to_matrix(torch.randn(b, 16, 3, generator=g)),
        betas=torch.randn(b, 10, generator=g),
        has_mano=ones,
    )


def truth_as_state(batch: HandBatch) -> HandState:
    root = batch.joints_cam_m[:, 9, None]
    return HandState(
        rotmats=batch.rotmats.clone(),
        betas=batch.betas.clone(),
        cam=torch.zeros(len(batch.betas), 3),
        verts_root_m=batch.verts_cam_m - root,
        joints_root_m=batch.joints_cam_m - root,
        verts_crop_ndc=torch.zeros(len(batch.betas), 30, 2),
        joints_crop_ndc=batch.kp2d_crop_ndc.clone(),
    )


def outputs(state: HandState) -> HandOutputs:
    wrong_start = HandState(*(field + 100.0 for field in state[:7]))
    return HandOutputs(steps=(wrong_start, state, state))


@pytest.mark.parametrize("term", TERMS, ids=lambda t: type(t).__name__)
def test_truth_costs_nothing_and_the_mean_hand_is_not_scored(term):
    batch = random_batch(3)
    assert term(outputs(truth_as_state(batch)), batch).item() == pytest.approx(0.0, abs=1e-7)


def test_hand_values():
    batch = random_batch(2)
    state = truth_as_state(batch)
    off = state._replace(
        joints_root_m=state.joints_root_m + torch.tensor([0.003, 0.0, 0.0]),
        joints_crop_ndc=state.joints_crop_ndc + torch.tensor([0.1, 0.3]),
        verts_root_m=state.verts_root_m - 0.002,
        betas=state.betas + 0.5,
        rotmats=state.rotmats @ axis_angle_to_matrix(torch.tensor([0.0, 0.0, math.pi / 3])),
    )
    out = outputs(off)
    assert Joints3D(root_joint=9)(out, batch).item() == pytest.approx(
        0.001, rel=1e-3
    )  # mean of (3, 0, 0) mm
    assert Joints2D()(out, batch).item() == pytest.approx(0.2, rel=1e-4)
    assert Verts(root_joint=9)(out, batch).item() == pytest.approx(0.002, rel=1e-3)
    assert Betas()(out, batch).item() == pytest.approx(0.25, rel=1e-4)
    assert Rotations()(out, batch).item() == pytest.approx(
        4 * (1 - math.cos(math.pi / 3)), rel=1e-4
    )


@pytest.mark.parametrize("term", TERMS, ids=lambda t: type(t).__name__)
def test_mixed_batch_is_the_mean_of_its_parts(term):
    whole, bare = random_batch(2, seed=1), random_batch(2, seed=2)
    off = torch.zeros(2, dtype=torch.bool)
    bare = bare._replace(
        kp2d_valid=off[:, None].expand(2, 21), joints_valid=off[:, None].expand(2, 21),
        has_verts=off, has_mano=off,
    )  # fmt: skip
    both = HandBatch(*(torch.cat(pair) for pair in zip(whole, bare, strict=True)))
    state = truth_as_state(random_batch(4, seed=3))
    half = lambda s, i: HandState(*(field[i] for field in s[:7]))  # noqa: E731
    joint = term(outputs(state), both)
    first = term(outputs(half(state, slice(0, 2))), whole)
    second = term(outputs(half(state, slice(2, 4))), bare)
    assert second.item() == 0.0
    assert joint.item() == pytest.approx(0.5 * first.item(), rel=1e-5)


def test_2d_only_sample_reaches_nothing_but_the_2d_term():
    batch = random_batch(1)
    off = torch.zeros(1, dtype=torch.bool)
    batch = batch._replace(joints_valid=off[:, None].expand(1, 21), has_verts=off, has_mano=off)
    state = truth_as_state(random_batch(1, seed=5))
    costs = {type(t).__name__: t(outputs(state), batch).item() for t in TERMS}
    assert costs.pop("Joints2D") > 0.1
    assert set(costs.values()) == {0.0}


def test_joint_without_label_does_not_count():
    batch = random_batch(1)
    valid = batch.joints_valid.clone()
    valid[0, 3] = False
    state = truth_as_state(batch)
    joints = state.joints_root_m.clone()
    joints[0, 3] += 10.0
    out = outputs(state._replace(joints_root_m=joints))
    assert Joints3D(root_joint=9)(out, batch._replace(joints_valid=valid)).item() < 1e-6


def test_the_prior_pulls_only_hands_without_parameters():
    batch = random_batch(2)
    free = batch._replace(has_mano=torch.tensor([False, False]))
    mean = truth_as_state(batch)
    same = mean._replace(betas=torch.zeros(2, 10))
    assert Prior()(HandOutputs((mean, same)), free).item() == pytest.approx(0.0, abs=1e-7)
    assert Prior()(HandOutputs((mean, truth_as_state(random_batch(2, 5)))), batch).item() == 0.0
    # one of 15 fingers turned by 90 degrees: 4 (1 - cos) / 15; betas of 2: 0.1 * 4
    turned = same.rotmats.clone()
    turned[:, 3] = axis_angle_to_matrix(torch.tensor([0.0, 0.0, math.pi / 2])) @ turned[:, 3]
    off = same._replace(rotmats=turned, betas=torch.full((2, 10), 2.0))
    value = Prior(betas_weight=0.1)(HandOutputs((mean, off)), free).item()
    assert value == pytest.approx(4 / 15 + 0.4, rel=1e-5)
    # the wrist is free: only 2D or 3D labels place the hand
    wrist = same.rotmats.clone()
    wrist[:, 0] = torch.eye(3)
    out = HandOutputs((mean, same._replace(rotmats=wrist)))
    assert Prior()(out, free).item() == pytest.approx(0.0, abs=1e-7)
