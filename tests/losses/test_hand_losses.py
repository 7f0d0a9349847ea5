"""Values of the regression losses, derived by hand; laws are in test_hand_loss_laws.py."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from handmim.geometry.rotation import axis_angle_to_matrix
from handmim.losses.composite import CompositeLoss, over_steps
from handmim.losses.hand import (
    CameraJointLoss,
    EdgeLoss,
    JointLoss,
    JointLoss2D,
    PriorLoss,
    RotationLoss,
    ShapeLoss,
    VertexLoss,
    unique_edges,
)
from handmim.models.heads.direct import KeypointOutputs, KeypointState
from handmim.types import HandOutputs, StepInfo
from tests.losses.hand_cases import (
    SMOOTH,
    TERMS,
    random_batch,
    random_outputs,
    rows,
    truth_as_state,
)

INFO = StepInfo(0, 10)


def off_by(batch, **shifts):
    """A start that is far off, then the truth moved by so much, twice."""
    state = truth_as_state(batch)
    off = state._replace(**{name: getattr(state, name) + shift for name, shift in shifts.items()})
    return HandOutputs((off._replace(betas=off.betas + 100.0), off, off))


@pytest.mark.parametrize(
    ("term", "shifts", "wanted"),
    [
        # 3 mm along one of three axes
        (JointLoss(root_joint=9), {"joints_root_m": torch.tensor([0.003, 0.0, 0.0])}, 0.001),
        (JointLoss2D(), {"joints_crop_ndc": torch.tensor([0.1, -0.3])}, 0.2),
        (VertexLoss(root_joint=9), {"verts_root_m": -0.002}, 0.002),
        (ShapeLoss(), {"betas": 0.5}, 0.25),
        # the root 6 cm too far away; the same error twice in opposite directions is none
        (CameraJointLoss(), {"transl_cam_m": torch.tensor([0.0, 0.0, 0.06])}, 0.02),
        (CameraJointLoss(), {"transl_cam_m": 0.1, "joints_root_m": -0.1}, 0.0),
        # 20 mm are 0.2 units: 0.2 - 0.05; 5 mm are 0.05: 0.05^2 / 0.2
        (JointLoss(root_joint=9, **SMOOTH), {"joints_root_m": 0.02}, 0.15),
        (JointLoss(root_joint=9, **SMOOTH), {"joints_root_m": 0.005}, 0.0125),
        (
            JointLoss2D(beta=0.1),
            {"joints_crop_ndc": torch.tensor([0.05, 0.2])},
            (0.0125 + 0.15) / 2,
        ),
    ],
)
def test_values_by_hand(term, shifts, wanted):
    batch = random_batch(2)
    batch = batch._replace(joints_cam_m=batch.joints_cam_m / 10, verts_cam_m=batch.verts_cam_m / 10)
    assert term(off_by(batch, **shifts), batch).tolist() == pytest.approx([wanted] * 2, abs=1e-6)


def test_a_rotation_off_by_an_angle():
    batch = random_batch(2)
    state = truth_as_state(batch)
    turn = axis_angle_to_matrix(torch.tensor([0.0, 0.0, math.pi / 3]))
    out = HandOutputs((state, state._replace(rotmats=state.rotmats @ turn)))
    assert RotationLoss()(out, batch).item() == pytest.approx(4 * (1 - 0.5), rel=1e-5)


def test_edges_of_a_square_of_two_triangles():
    square = SimpleNamespace(faces=np.array([[0, 1, 2], [2, 1, 3]], np.int32))
    assert unique_edges(square.faces).tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
    batch, term = random_batch(1), EdgeLoss(square)
    verts = torch.tensor([[[0.0, 0, 0], [3, 0, 0], [0, 4, 0], [3, 4, 0]]])
    batch = batch._replace(verts_cam_m=verts + 7.0)
    state = truth_as_state(batch)
    # twice as wide: 3 -> 6 twice, 4 stays twice, 5 -> sqrt(52) once; moved and rotated for nothing
    wide = (verts * torch.tensor([2.0, 1.0, 1.0]) + 1.0).flip(-1)
    out = HandOutputs((state, state._replace(verts_root_m=wide)))
    assert term(out, batch).item() == pytest.approx((3 + 3 + math.sqrt(52) - 5) / 5, rel=1e-5)
    assert not term.state_dict()


def test_edges_of_the_hand_are_counted_once(hand):
    assert len(unique_edges(hand.faces)) == 2315  # data/README.md
    assert not list(EdgeLoss(hand).parameters())


def test_joints_count_alike_and_confidence_only_shrinks():
    batch = random_batch(1)
    state = truth_as_state(batch)
    joints = state.joints_crop_ndc.clone()
    joints[0, :3] += 0.3
    joints[0, 20] += 9.0
    out = HandOutputs((state, state._replace(joints_crop_ndc=joints)))
    valid = (torch.arange(21) < 6)[None]
    conf = torch.ones(1, 21)
    conf[0, 1], conf[0, 2] = 0.5, 0.0
    seen = batch._replace(kp2d_valid=valid)
    assert JointLoss2D()(out, seen).item() == pytest.approx(3 * 0.3 / 6, rel=1e-5)
    seen = seen._replace(kp2d_conf=conf)
    assert JointLoss2D()(out, seen).item() == pytest.approx(1.5 * 0.3 / 6, rel=1e-5)
    smooth = JointLoss2D(beta=0.1)(out, seen).item()
    assert smooth == pytest.approx(1.5 * 0.25 / 6, rel=1e-5)


def test_the_prior_pulls_only_hands_without_parameters():
    batch = random_batch(2)
    free = batch._replace(has_mano=torch.tensor([False, False]))
    mean = truth_as_state(batch)
    same = mean._replace(betas=torch.zeros(2, 10))
    assert PriorLoss()(HandOutputs((mean, same)), free).item() == pytest.approx(0.0, abs=1e-7)
    assert PriorLoss()(HandOutputs((mean, truth_as_state(random_batch(2, 5)))), batch).item() == 0.0
    # one of 15 fingers rotated by 90 degrees: 4 (1 - cos) / 15; betas of 2: 0.1 * 4
    rotated = same.rotmats.clone()
    rotated[:, 3] = axis_angle_to_matrix(torch.tensor([0.0, 0.0, math.pi / 2])) @ rotated[:, 3]
    off = same._replace(rotmats=rotated, betas=torch.full((2, 10), 2.0))
    value = PriorLoss(betas_weight=0.1)(HandOutputs((mean, off)), free).item()
    assert value == pytest.approx(4 / 15 + 0.4, rel=1e-5)
    # the wrist is free: only 2D or 3D labels place the hand
    wrist = same.rotmats.clone()
    wrist[:, 0] = torch.eye(3)
    out = HandOutputs((mean, same._replace(rotmats=wrist)))
    assert PriorLoss()(out, free).item() == pytest.approx(0.0, abs=1e-7)


# ---------------------------------------------------------------- before the camera


def test_camera_joints_require_a_root_translation():
    batch = random_batch(2)
    state = truth_as_state(batch)
    silent = state._replace(transl_cam_m=None, is_metric=None)
    with pytest.raises(ValueError, match=r"head\.camera=pinhole"):
        CameraJointLoss()(HandOutputs((silent, silent)), batch)
    bare = KeypointState(state.joints_root_m, state.joints_crop_ndc)
    with pytest.raises(ValueError, match=r"head\.camera=pinhole"):
        CameraJointLoss()(KeypointOutputs((bare, bare)), batch)


def test_absolute_joints_wait_for_intrinsics():
    batch, term = random_batch(2), CameraJointLoss()
    off = torch.tensor([False, False])
    state = truth_as_state(batch)
    without = batch._replace(has_K=off)
    nothing = term(HandOutputs((state, state._replace(is_metric=off))), without)
    assert nothing.item() == 0.0
    away = state._replace(transl_cam_m=state.transl_cam_m + 0.3)
    assert term(HandOutputs((state, away)), batch).item() == pytest.approx(0.3, rel=1e-4)
    assert term(HandOutputs((state, away._replace(is_metric=off))), batch).item() == 0.0
    first = away._replace(is_metric=torch.tensor([True, False]))
    assert term(HandOutputs((state, first)), batch).item() == pytest.approx(0.15, rel=1e-4)


# ---------------------------------------------------------------- refinement steps


def test_steps_are_weighted_to_a_mean_of_one():
    values = torch.tensor([3.0, 6.0, 12.0])
    assert over_steps(values).item() == 7.0
    assert over_steps(values, "last").item() == 12.0
    assert over_steps(values, [2.0, 2.0, 2.0]).item() == pytest.approx(7.0)
    assert over_steps(values, [0.5, 0.75, 1.0]).item() == pytest.approx(18 / 2.25)
    assert over_steps(values, [5.0, 7.5, 10.0]).item() == pytest.approx(18 / 2.25)
    with pytest.raises(ValueError, match=r"2 weights \[1.0, 2.0\] for 3 .*step_weights"):
        over_steps(values, [1.0, 2.0])


@pytest.mark.parametrize("weights", ["first", [], [0.0, 0.0], [1.0, -1.0], [math.nan, 1.0]])
def test_weights_of_no_use_are_refused_at_once(weights):
    with pytest.raises(ValueError, match=r"step_weights"):
        CompositeLoss({"betas": ShapeLoss()}, weights)


def test_the_sum_weighs_the_steps_of_every_term_alike():
    batch = random_batch(2)
    out = random_outputs(batch, num_steps=3)
    equal, by_name = CompositeLoss(TERMS)(out, batch, INFO)
    last, last_by_name = CompositeLoss(TERMS, "last")(out, batch, INFO)
    rising, _ = CompositeLoss(TERMS, [1, 2, 3])(out, batch, INFO)
    per_step = [0.0, 0.0, 0.0]
    for name, term in TERMS.items():
        value = term(out, batch)
        assert value.shape == (() if name in ("heatmaps", "silhouette") else (3,))
        for t, v in enumerate(value.expand(3)):
            per_step[t] += float(v)
        assert by_name[f"loss/{name}"] == pytest.approx(float(value.mean()), rel=1e-5)
        final = value if value.ndim == 0 else value[-1]
        assert last_by_name[f"loss/{name}"] == pytest.approx(float(final), rel=1e-5)
    assert equal.item() == pytest.approx(sum(per_step) / 3, rel=1e-5)
    assert last.item() == pytest.approx(per_step[2], rel=1e-5)
    wanted = (per_step[0] + 2 * per_step[1] + 3 * per_step[2]) / 6
    assert rising.item() == pytest.approx(wanted, rel=1e-5)


def test_only_the_last_step_learns_under_last():
    batch = random_batch(2)
    out = random_outputs(batch)
    betas = [s.betas.clone().requires_grad_() for s in out.steps]
    steps = tuple(s._replace(betas=x) for s, x in zip(out.steps, betas, strict=True))
    total, _ = CompositeLoss({"betas": ShapeLoss()}, "last")(HandOutputs(steps), batch, INFO)
    total.backward()
    assert betas[0].grad is None
    assert betas[1].grad.abs().max() == 0.0  # in the graph all the same
    assert betas[2].grad.abs().max() > 0.0
    one = rows(out, slice(0, 1))
    assert ShapeLoss()(one, rows(batch, slice(0, 1))).shape == (2,)
