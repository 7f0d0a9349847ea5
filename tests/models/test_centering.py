import math
import multiprocessing
import socket

import numpy as np
import pytest
import torch

from handmim.models.teacher import Centering, Sinkhorn, sinkhorn_knopp


def loop_sinkhorn(logits: np.ndarray, temp: float, num_iters: int) -> np.ndarray:
    """As written down: every prototype gets 1 / P of the mass, every row 1 / M, in turn."""
    m, p = logits.shape
    q = np.exp(logits.astype(np.float64) / temp)
    q /= q.sum()
    for _ in range(num_iters):
        for j in range(p):
            q[:, j] = q[:, j] / q[:, j].sum() / p
        for i in range(m):
            q[i] = q[i] / q[i].sum() / m
    return q * m


def test_centre_follows_the_mean_and_only_in_move():
    centering = Centering(2, momentum=0.9)
    logits = torch.tensor([[1.0, 3.0], [3.0, 5.0]])  # mean (2, 4)
    centering(logits, temp=1.0)
    assert centering.centre.tolist() == [0.0, 0.0]
    centering.follow(logits.mean(dim=0), 2)
    assert centering.centre.tolist() == [0.0, 0.0]
    centering.move()
    torch.testing.assert_close(centering.centre, torch.tensor([0.2, 0.4]))
    centering.follow(logits.mean(dim=0), 7)  # one process: the number of tokens says nothing
    centering.move()
    torch.testing.assert_close(centering.centre, torch.tensor([0.38, 0.76]))
    centering.move()  # no tokens since
    torch.testing.assert_close(centering.centre, torch.tensor([0.38, 0.76]))


def test_parts_of_a_step_count_by_their_tokens():
    whole, parts = Centering(4), Centering(4)
    whole.follow(LOGITS.mean(dim=0), 9)
    for part in (LOGITS[:2], LOGITS[2:2], LOGITS[2:]):
        parts.follow(part.mean(dim=0), len(part))
    whole.move()
    parts.move()
    torch.testing.assert_close(parts.centre, whole.centre)


def test_centre_stays_where_there_was_nothing_to_see():
    centering = Centering(2, momentum=0.0)
    centering.follow(torch.tensor([1.0, 2.0]), 3)
    centering.move()
    centering.follow(torch.zeros(0, 2).mean(dim=0), 0)  # the mean of nothing is nan
    centering.move()
    assert centering.centre.tolist() == [1.0, 2.0]


def test_centred_probabilities_match_hand_values():
    centering = Centering(2)
    centering.centre.copy_(torch.tensor([1.0, 0.0]))
    # logits - centre = (0, 0) -> (1/2, 1/2) at any temperature
    torch.testing.assert_close(
        centering(torch.tensor([[1.0, 0.0]]), temp=0.04), torch.tensor([[0.5, 0.5]])
    )
    # (1, 0) - centre = (0, 0); (1 + 0.04 ln 3, 0) is three times as likely at temperature 0.04
    torch.testing.assert_close(
        centering(torch.tensor([[1 + 0.04 * math.log(3.0), 0.0]]), temp=0.04),
        torch.tensor([[0.75, 0.25]]),
        rtol=1e-4,
        atol=0,
    )


@pytest.mark.parametrize("num_iters", [1, 3, 10])
@pytest.mark.parametrize("temp", [0.04, 0.5])
def test_sinkhorn_equals_a_literal_loop(num_iters, temp):
    logits = np.random.default_rng(0).uniform(-1, 1, (23, 7))
    want = loop_sinkhorn(logits, temp, num_iters)
    got = sinkhorn_knopp(torch.from_numpy(logits), temp, num_iters)
    np.testing.assert_allclose(got, want, rtol=1e-10)
    got = sinkhorn_knopp(torch.from_numpy(logits).float(), temp, num_iters)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-7)


def test_sinkhorn_is_exact_where_exponentials_underflow():
    # Rows and prototypes at e^-100 and e^-200 of the largest entry, in single precision.
    logits = np.array([[2.0, 0.3, -2.0], [-2.0, -2.5, -6.0], [0.1, 0.0, -2.4]])
    got = sinkhorn_knopp(torch.from_numpy(logits).float(), 0.04)
    np.testing.assert_allclose(got, loop_sinkhorn(logits, 0.04, 3), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(got.sum(1), 1.0, rtol=1e-5)


def test_sinkhorn_shares_prototypes_equally():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 8, generator=g)
    q = sinkhorn_knopp(logits, temp=0.5, num_iters=50)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(q.sum(dim=0), torch.full((8,), 8.0), rtol=1e-3, atol=1e-3)


def test_sinkhorn_survives_large_logits_and_empty_batches():
    assert sinkhorn_knopp(torch.tensor([[900.0, 0.0], [0.0, 900.0]]), 0.05).isfinite().all()
    assert Sinkhorn(4)(torch.zeros(0, 4), temp=0.1).shape == (0, 4)
    Sinkhorn(4).follow(torch.zeros(0, 4).mean(dim=0), 0)


def test_sinkhorn_breaks_a_one_prototype_collapse():
    # All rows prefer prototype 0; their weaker preferences must decide.
    logits = torch.tensor([[5.0, 1.0], [5.0, 0.0]])
    q = sinkhorn_knopp(logits, temp=1.0, num_iters=20)
    assert q[0, 1] > 0.5 > q[1, 1]
    assert q.sum(dim=0)[0].item() == pytest.approx(1.0, abs=1e-3)


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"^over must be"):
        Centering(2, over="visible")
    with pytest.raises(ValueError, match=r"^momentum must be"):
        Centering(2, momentum=1.5)
    with pytest.raises(ValueError, match=r"^num_iters must be"):
        Sinkhorn(2, num_iters=0)


LOGITS = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
SHARES = (slice(0, 9), slice(9, 9)), (slice(0, 2), slice(2, 9)), (slice(9, 9), slice(9, 9))


def on_rank(rank: int, port: int, results) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = []
    for share in SHARES:
        own, centering = LOGITS[share[rank]], Centering(4)
        centering.follow(own.mean(dim=0), len(own))
        centering.move()
        found.append((centering.centre.tolist(), Sinkhorn(4)(own, 0.1).tolist()))
    alone = Sinkhorn(4).eval()(LOGITS[:3], 0.1).tolist() if rank == 0 else None
    results.put((rank, found, alone))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one_batch():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=on_rank, args=(r, port, results)) for r in range(2)]
    for worker in workers:
        worker.start()
    ranks = sorted(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
    together = sinkhorn_knopp(LOGITS, 0.1)
    for i, share in enumerate(SHARES):
        want = torch.zeros(4) if i == 2 else 0.1 * LOGITS.mean(dim=0)  # i = 2: nobody saw any
        for rank, found, _ in ranks:
            centre, q = found[i]
            torch.testing.assert_close(torch.tensor(centre), want)
            torch.testing.assert_close(torch.tensor(q).reshape(-1, 4), together[share[rank]])
    torch.testing.assert_close(torch.tensor(ranks[0][2]), sinkhorn_knopp(LOGITS[:3], 0.1))
