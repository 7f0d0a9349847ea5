"""What holds of every regression loss."""

import math

import pytest
import torch

from tests.losses.hand_cases import (
    LOOK_AT_2D,
    REACHED,
    TERMS,
    mixed_batch,
    only_2d,
    parts,
    random_batch,
    random_outputs,
    rebuilt,
    rows,
    truth_as_outputs,
    value_and_gradient,
    with_garbage,
)

EVERY = pytest.mark.parametrize("name", TERMS)


def free_of_parameters(name, batch):
    """The batch, without MANO parameters for the one term that wants none."""
    return batch._replace(has_mano=torch.zeros_like(batch.has_mano)) if name == "prior" else batch


@EVERY
def test_ground_truth_costs_nothing_and_the_mean_hand_is_not_scored(name):
    batch = random_batch(3)
    assert TERMS[name](truth_as_outputs(batch), batch).abs().max() < 1e-6


@EVERY
def test_gradient_reaches_what_it_should_of_every_refinement_and_nothing_else(name):
    batch = free_of_parameters(name, random_batch(2))
    value, gradient = value_and_gradient(TERMS[name], random_outputs(batch), batch)
    assert value > 1e-3
    reached = {part for part, g in gradient.items() if g.abs().max() > 0}
    wanted = {f if f in gradient else f"{t}.{f}" for t in (1, 2) for f in REACHED[name]}
    assert reached == wanted


@EVERY
def test_gradient_is_that_of_finite_differences(name):
    batch = free_of_parameters(name, mixed_batch())
    out = random_outputs(batch)
    _, gradient = value_and_gradient(TERMS[name], out, batch)
    g = torch.Generator().manual_seed(0)
    # towards where it grows, and a little to all sides
    way = {n: x.sign() + 0.3 * torch.randn(x.shape, generator=g) for n, x in gradient.items()}
    way = {n: torch.zeros_like(x) if n.startswith("0.") else x for n, x in way.items()}
    told = sum(float((gradient[n] * way[n]).sum()) for n in way)

    def at(eps: float) -> float:
        moved = {n: x + eps * way[n] for n, x in parts(out).items()}
        return float(TERMS[name](rebuilt(out, moved), batch).double().mean())

    eps = 1e-3
    assert told > 1e-3
    assert (at(eps) - at(-eps)) / (2 * eps) == pytest.approx(told, rel=0.01)


@EVERY
def test_a_mixed_batch_is_the_mean_of_its_samples_alone(name):
    batch = mixed_batch()
    out = random_outputs(batch)
    value, gradient = value_and_gradient(TERMS[name], out, batch)
    alone = [
        value_and_gradient(TERMS[name], rows(out, s), rows(batch, s))
        for s in (slice(i, i + 1) for i in range(6))
    ]
    assert value == pytest.approx(float(sum(v for v, _ in alone)) / 6, rel=1e-5)
    assert len({round(float(v), 5) for v, _ in alone}) > 2, "samples differ"
    for part, g in gradient.items():
        torch.testing.assert_close(g, torch.cat([a[part] for _, a in alone]) / 6)


@EVERY
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30, 7.0])
def test_unlabelled_values_change_nothing(name, garbage):
    batch = mixed_batch()
    out = random_outputs(batch)
    value, gradient = value_and_gradient(TERMS[name], out, batch)
    spoilt, changed = value_and_gradient(TERMS[name], out, with_garbage(batch, garbage))
    assert math.isfinite(float(value))
    assert spoilt == value
    for part, g in gradient.items():
        assert torch.isfinite(g).all()
        assert torch.equal(changed[part], g)


@EVERY
def test_a_sample_with_2d_labels_teaches_by_2d_terms_alone(name):
    batch = only_2d(random_batch(1))
    value, gradient = value_and_gradient(TERMS[name], random_outputs(batch), batch)
    total = sum(float(g.abs().sum()) for g in gradient.values())
    if name in LOOK_AT_2D | {"prior"}:  # what labels leave free is what the prior is for
        assert value > 1e-3
        assert total > 1e-3
    else:
        assert float(value) == total == 0.0


@EVERY
def test_a_sample_without_labels_teaches_nothing(name):
    batch = rows(mixed_batch(), slice(5, 6))
    value, gradient = value_and_gradient(TERMS[name], random_outputs(batch), batch)
    if name != "prior":
        assert float(value) == sum(float(g.abs().sum()) for g in gradient.values()) == 0.0


@pytest.mark.parametrize("name", ["joints3d", "direct3d", "verts"])
def test_without_the_root_nothing_relative_to_it_is_known(name):
    batch = random_batch(2)
    valid = batch.joints_valid.clone()
    valid[:, 9] = False
    batch = batch._replace(joints_valid=valid)
    value, _ = value_and_gradient(TERMS[name], random_outputs(batch), batch)
    assert value == 0.0


@pytest.mark.parametrize("name", sorted(LOOK_AT_2D))
def test_a_less_confident_sample_counts_less(name):
    batch = random_batch(2)
    out = random_outputs(batch)
    value, gradient = value_and_gradient(TERMS[name], out, batch)
    doubted = batch._replace(kp2d_conf=torch.tensor([[0.5], [1.0]]).expand(2, 21))
    less, halved = value_and_gradient(TERMS[name], out, doubted)
    first, second = (
        value_and_gradient(TERMS[name], rows(out, s), rows(batch, s))[0]
        for s in (slice(0, 1), slice(1, 2))
    )
    assert less == pytest.approx(float(0.5 * first + second) / 2, rel=1e-5)
    assert less < value
    for part, g in gradient.items():
        torch.testing.assert_close(
            halved[part], g * torch.tensor([0.5, 1.0]).view(2, *[1] * (g.ndim - 1))
        )
