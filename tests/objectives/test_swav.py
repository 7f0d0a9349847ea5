from functools import partial

import numpy as np
import pytest
import torch

from handmim.objectives.base import Setup
from handmim.objectives.distillation import ProjectionHead
from handmim.objectives.swav import FeatureQueue, SwAV
from handmim.types import StepInfo
from tests.objectives.keypoint_cases import batch_of, context

SIZES = {"num_prototypes": 6, "hidden_dim": 16, "bottleneck_dim": 4, "num_layers": 2}
DIM = 8


def built(**settings) -> SwAV:
    torch.manual_seed(0)
    head = partial(ProjectionHead, train_gain=False, batch_norm=True, **SIZES)
    objective = SwAV(**{"queue_size": 0, "queue_start": 0.0} | settings)
    objective.build(Setup(DIM, heads={"projection": head}))
    return objective


def context_of(cls: torch.Tensor):
    return context(batch_of(torch.eye(2, 3).expand(*cls.shape[:2], 2, 3)), cls=cls)


def tokens(num: int = 12, views: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, views, DIM, generator=torch.Generator().manual_seed(seed))


def written_out(z: np.ndarray, prototypes: np.ndarray, temp=0.1, epsilon=0.05, num_iters=3):
    """The paper's algorithm for two views z [B, 2, E] and prototypes [P, E]: codes, loss."""
    prototypes = prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)
    num, total = len(z), 0.0
    scores = np.einsum("bve,pe->bvp", z, prototypes)
    codes = np.zeros_like(scores)
    for v in range(2):
        q = np.exp(scores[:, v] / epsilon).T  # [P, B]
        q /= q.sum()
        for _ in range(num_iters):
            q /= q.sum(axis=1, keepdims=True) * len(q)  # every prototype has 1 / P
            q /= q.sum(axis=0, keepdims=True) * num  # every sample has 1 / B
        codes[:, v] = (q * num).T
    for v in range(2):
        log_p = scores[:, v] / temp
        log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        total -= (codes[:, 1 - v] * log_p).sum(axis=1).mean()
    return codes, total / 2


def test_codes_and_loss_equal_the_paper_written_out():
    objective = built().double()
    ctx = context_of(tokens().double())
    logits, codes = found = objective.predict(ctx)
    z = objective.projection.embed(ctx.cls).detach().numpy()
    want_codes, want_loss = written_out(z, objective.projection.prototypes.detach().numpy())
    np.testing.assert_allclose(codes.numpy(), want_codes, rtol=1e-9)
    assert objective.loss(ctx, found).item() == pytest.approx(want_loss, rel=1e-9)
    assert logits.requires_grad
    assert not codes.requires_grad


def test_codes_are_shared_out_equally():
    objective = built(num_iters=200)
    codes = objective.predict(context_of(tokens())).teacher
    torch.testing.assert_close(codes.sum(dim=-1), torch.ones(12, 2))
    torch.testing.assert_close(codes.sum(dim=0), torch.full((2, 6), 2.0), rtol=1e-2, atol=0)


def test_local_crops_predict_and_are_not_predicted():
    ctx = context_of(tokens())
    ctx.tokens = ctx.tokens._replace(local_cls=torch.randn(12 * 3, DIM))
    logits, codes = built().predict(ctx)
    assert logits.shape == (12, 5, 6)
    assert codes.shape == (12, 2, 6)


def test_a_queue_balances_codes_once_it_is_full():
    alone, queued = built(), built(queue_size=20)
    ctx = context_of(tokens())
    queued.eval()
    first = queued.predict(ctx).teacher
    torch.testing.assert_close(first, alone.eval().predict(ctx).teacher)
    queued.queue.add(queued.projection.embed(tokens(20, 1, seed=1)[:, 0]))
    queued.queue.move()
    codes = queued.predict(ctx).teacher
    assert (codes - first).abs().max() > 0.01
    torch.testing.assert_close(codes.sum(dim=-1), torch.ones(12, 2))
    z = queued.projection.embed(ctx.cls).detach()
    earlier = queued.queue.features
    both = torch.cat([earlier[:, None].expand(-1, 2, -1), z]).double().numpy()
    want, _ = written_out(both, queued.projection.prototypes.detach().double().numpy())
    np.testing.assert_allclose(codes.numpy(), want[20:], rtol=1e-3, atol=1e-6)


def test_a_queue_waits_for_its_share_of_the_steps():
    objective, alone = built(queue_size=8, queue_start=0.25).eval(), built().eval()
    objective.queue.add(objective.projection.embed(tokens(8, 1, seed=1)[:, 0]))
    objective.queue.move()
    ctx = context_of(tokens())
    for step, is_used in ((2, False), (3, True)):
        ctx.info = StepInfo(step, 10)
        same = torch.equal(objective.predict(ctx).teacher, alone.predict(ctx).teacher)
        assert same is not is_used


def test_the_newest_features_stay():
    queue = FeatureQueue(5, 1)
    for start in (1.0, 4.0):
        queue.add(torch.arange(start, start + 3)[:, None])
        queue.move()
    assert queue.features.flatten().tolist() == [4.0, 5.0, 6.0, 1.0, 2.0]
    queue.add(torch.arange(10.0)[:, None])
    queue.forget_step()
    queue.move()
    assert queue.features.flatten().tolist() == [4.0, 5.0, 6.0, 1.0, 2.0]
    queue.add(torch.arange(10.0)[:, None])
    queue.move()
    assert queue.features.flatten().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_loaded_queue_goes_on_as_it_was(steps):
    """Before it is full, when it gets full, and after."""
    objective, resumed = built(queue_size=48), built(queue_size=48)
    assert len(objective.queue(sync=False)) == 0
    for step in range(steps):
        objective.predict(context_of(tokens(seed=step)))
        objective.after_step()
    resumed.predict(context_of(tokens(seed=9)))  # is forgotten
    resumed.load_state_dict(objective.state_dict())
    assert resumed.queue.num_stored == min(24 * steps, 48)
    for step in range(steps, steps + 2):
        pair = [o.predict(context_of(tokens(seed=step))).teacher for o in (objective, resumed)]
        assert torch.equal(*pair)
        objective.after_step()
        resumed.after_step()


def test_evaluation_leaves_the_queue_alone():
    objective = built(queue_size=8).eval()
    objective.predict(context_of(tokens()))
    objective.after_step()
    assert objective.queue.num_stored == 0


def test_collapsed_features_come_apart():
    """All features start at one point but for a trace."""
    torch.manual_seed(0)
    objective = SwAV(queue_size=0)
    head = partial(ProjectionHead, train_gain=False, **SIZES | {"num_prototypes": 16})
    objective.build(Setup(DIM, heads={"projection": head}))
    samples = tokens(32, 1, seed=1)
    cls = samples + 0.2 * tokens(32, 2, seed=2)
    torch.nn.init.constant_(objective.projection.mlp[-1].bias, 0.2)

    def cosine() -> float:
        z = objective.projection.embed(cls[:, 0]).detach()
        return float((z @ z.T).mean())

    assert cosine() > 0.99
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.02)
    for _ in range(60):
        ctx = context_of(cls)
        optimizer.zero_grad()
        objective.loss(ctx, objective.predict(ctx)).backward()
        optimizer.step()
    assert cosine() < 0.3


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("temp", 0.0, "temp must be > 0"),
        ("epsilon", 0.0, "epsilon must be > 0"),
        ("num_iters", 0, "num_iters must be >= 1, got 0"),
        ("queue_start", 1.0, r"queue_start must be in \[0, 1\), got 1"),
        ("queue_size", -1, "queue_size must be >= 0, got -1"),
    ],
)
def test_settings_out_of_range_are_named(setting, value, message):
    with pytest.raises(ValueError, match=message):
        SwAV(**{setting: value})
