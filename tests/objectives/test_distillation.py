import math
from pathlib import Path

import pytest
import torch
import yaml

from handmim.objectives.distillation import (
    ClassDistill,
    Koleo,
    Pair,
    PatchDistill,
    cross_view_ce,
    koleo,
)
from tests.objectives.keypoint_cases import batch_of, context

CONFIGS = Path(__file__).parents[2] / "configs" / "objective"
CONTEXT = context(batch_of(torch.eye(2, 3).expand(1, 2, 2, 3)))


def test_other_views_are_the_target():
    # P = 2, temperature 1/2. View 0 is sure of class 0, view 1 knows nothing; targets swap views.
    student = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    # view 0 against target (0, 1): ln(1 + e^2); view 1 against (1, 0): ln 2
    loss = ClassDistill(student_temp=0.5).loss(CONTEXT, Pair(student, teacher))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(2)) + math.log(2)) / 2, rel=1e-6)


@pytest.mark.parametrize(("num_views", "num_local"), [(2, 0), (2, 3), (3, 1), (1, 2)])
def test_all_pairs_of_different_views_count_alike(num_views, num_local):
    g = torch.Generator().manual_seed(0)
    student = torch.randn(4, num_views + num_local, 6, generator=g)
    teacher = torch.randn(4, num_views, 6, generator=g).softmax(-1)
    costs = [
        torch.nn.functional.cross_entropy(student[:, v] / 0.1, teacher[:, q]).item()
        for q in range(num_views)
        for v in range(num_views + num_local)
        if v != q
    ]
    assert len(costs) == num_views * (num_views + num_local - 1)
    loss = cross_view_ce(Pair(student, teacher), 0.1)
    assert loss.item() == pytest.approx(sum(costs) / len(costs), rel=1e-5)


def test_a_views_own_target_has_no_gradient():
    g = torch.Generator().manual_seed(0)
    student = torch.randn(2, 2, 5, generator=g, requires_grad=True)
    teacher = torch.randn(2, 2, 5, generator=g).softmax(-1).requires_grad_()
    loss = cross_view_ce(Pair(student, teacher), 0.1)
    (grad,) = torch.autograd.grad(loss, student)
    # d CE / d logits = (softmax - target) / temp, over 2 pairs and 2 samples
    want = ((student / 0.1).softmax(-1) - teacher.flip(1)) / 0.1 / 4
    torch.testing.assert_close(grad, want)


def test_one_view_alone_has_nothing_to_predict():
    with pytest.raises(ValueError, match=r"views\.num_views"):
        cross_view_ce(Pair(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4)), 0.1)


@pytest.mark.parametrize("objective", [PatchDistill, ClassDistill])
def test_student_temperatures_are_checked(objective):
    with pytest.raises(ValueError, match="student_temp"):
        objective(student_temp=0.0)


def test_class_losses_keep_full_precision_under_autocast():
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(4, 2, 64, generator=g), torch.randn(4, 2, 64, generator=g)
    ctx = context(batch_of(torch.eye(2, 3).expand(4, 2, 2, 3)), cls=student)
    targets = Pair(student, (teacher / 0.05).softmax(dim=-1))
    for objective, prediction in ((ClassDistill(), targets), (Koleo(), None)):
        whole = objective.loss(ctx, prediction)
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective.loss(ctx, prediction)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)


def test_koleo_matches_hand_values():
    # Directions at 0, 60 and 180 degrees: nearest are 0-60 (1 apart) and 180-60 (sqrt 3 apart).
    angles = torch.tensor([0.0, 60.0, 180.0]).deg2rad()
    tokens = torch.stack([angles.cos(), angles.sin()], dim=-1) * torch.tensor([[1.0], [5.0], [0.1]])
    assert koleo(tokens).item() == pytest.approx(-math.log(3**0.5) / 3, abs=1e-6)
    # views are taken one by one: the same token in both costs nothing
    batch = batch_of(torch.eye(2, 3).expand(3, 2, 2, 3))
    ctx = context(batch, cls=torch.stack([tokens, tokens], dim=1))
    assert Koleo().loss(ctx, None).item() == pytest.approx(-2 * math.log(3**0.5) / 3, abs=1e-6)


def test_koleo_drives_tokens_apart():
    angles = torch.tensor([0.0, 0.1, 1.0], requires_grad=True)
    koleo(torch.stack([angles.cos(), angles.sin()], dim=-1)).backward()
    assert angles.grad[0] > 0 > angles.grad[1]  # descent moves them against it
    assert angles.grad[2] < 0


def test_koleo_of_equal_tokens_or_one_token_is_finite():
    for n in (1, 3):
        tokens = torch.ones(n, 4, requires_grad=True)
        loss = koleo(tokens)
        loss.backward()
        assert loss.isfinite()
        assert tokens.grad.isfinite().all()
    assert koleo(torch.ones(1, 4)).item() == 0.0


def test_both_distillations_bring_the_same_shared_head():
    heads = [
        yaml.safe_load((CONFIGS / f"{name}_distill.yaml").read_text())["heads"]
        for name in ("patch", "class")
    ]
    assert heads[0] == heads[1]
