import math

import pytest
import torch
import torch.nn.functional as F

from handmim.objectives.keypoint_align import KeypointAlign
from handmim.objectives.point_sets import nt_xent
from tests.objectives.keypoint_cases import batch_of, random_maps, seen_points

ALIKE = torch.tensor([1.0, 0.0]).expand(4, 2, 2)  # embeddings that tell nothing apart


def contrast(points, target, batch, **options) -> torch.Tensor:
    return KeypointAlign(nce_temp=0.1, **options).contrast(points, target, batch)


@pytest.mark.parametrize("embed", ["shape", "canonical"])
@pytest.mark.parametrize("d", [2, 3])
def test_contrast_prefers_matching_samples(embed, d):
    batch = batch_of(random_maps(16, 2, scale=(0.8, 1.0)))
    points = seen_points(batch, d=d)
    right = contrast(points, points, batch, embed=embed)
    wrong = contrast(points, points.roll(1, 0), batch, embed=embed)
    assert right < 0.2 < math.log(16) < wrong


def test_contrast_is_log_batch_when_all_samples_look_alike():
    # One template for everybody: the mean-free shapes vanish, nothing can be contrasted.
    batch = batch_of(torch.eye(2, 3).expand(4, 2, 2, 3))
    points = torch.rand(1, 1, 6, 2).expand(4, 2, 6, 2)
    loss = contrast(points, points, batch)
    assert loss.item() == pytest.approx(math.log(4), rel=1e-3)


def test_canonical_shapes_are_not_contrasted_by_orientation():
    base = torch.rand(6, 2, generator=torch.Generator().manual_seed(2)) - 0.5
    turns = random_maps(16, 1, scale=(1.0, 1.0))[..., :2]
    points = (base @ turns.mT).expand(-1, 2, -1, -1)
    batch = batch_of(torch.eye(2, 3).expand(16, 2, 2, 3))
    by_shape = contrast(points, points, batch)
    noise = 1e-3 * torch.randn(16, 2, 6, 2)
    by_canonical = contrast(points + noise, points, batch, embed="canonical")
    assert by_shape < 1.0
    assert by_canonical > 2.0


def test_samples_of_one_group_are_no_negatives():
    # Alike embeddings: ln(number of candidates). Groups {0, 1}, {2}, {3}: 3, 3, 4, 4 candidates.
    group = torch.tensor([7, 7, 2, 3])
    loss = nt_xent(ALIKE, ALIKE, temp=0.5, group=group)
    assert loss.item() == pytest.approx((2 * math.log(3) + 2 * math.log(4)) / 4, rel=1e-5)
    assert nt_xent(ALIKE, ALIKE, temp=0.5).item() == pytest.approx(math.log(4), rel=1e-5)
    # All of one group: the own sample is the only candidate, which costs nothing.
    mine = ALIKE.clone().requires_grad_()
    alone = nt_xent(mine, mine, temp=0.5, group=torch.zeros(4, dtype=torch.int64))
    alone.backward()
    assert alone.item() == pytest.approx(0.0, abs=1e-6)
    assert mine.grad.isfinite().all()


def test_both_views_of_other_samples_can_be_negatives():
    # PeCLR's softmax: 2B views less the own one; with groups {0, 1}, {2}, {3}: 5, 5, 7, 7.
    loss = nt_xent(ALIKE, ALIKE, temp=0.5, both_views=True)
    assert loss.item() == pytest.approx(math.log(7), rel=1e-5)
    grouped = nt_xent(ALIKE, ALIKE, temp=0.5, both_views=True, group=torch.tensor([7, 7, 2, 3]))
    assert grouped.item() == pytest.approx((math.log(5) + math.log(7)) / 2, rel=1e-5)


@pytest.mark.parametrize("both_views", [False, True])
def test_contrast_matches_hand_value(both_views):
    # Orthogonal samples, views equal, temperature 1/2: positive e^2, each negative e^0.
    z = torch.eye(3).unsqueeze(1).expand(-1, 2, -1)
    loss = nt_xent(z, z, temp=0.5, both_views=both_views)
    negatives = 4 if both_views else 2
    assert loss.item() == pytest.approx(math.log1p(negatives * math.exp(-2)), rel=1e-5)


@pytest.mark.parametrize("both_views", [False, True])
def test_one_sample_has_nothing_to_be_contrasted_with(both_views):
    z = F.normalize(torch.randn(1, 2, 4), dim=-1).requires_grad_()
    loss = nt_xent(z, z, temp=0.5, both_views=both_views)
    loss.backward()
    assert loss.item() == 0.0
    batch = batch_of(random_maps(1, 2))
    points = seen_points(batch)
    assert contrast(points, points, batch).item() == 0.0


@pytest.mark.parametrize("embed", ["shape", "canonical"])
def test_aligned_shapes_of_two_views_are_one_unit_vector(embed):
    maps = random_maps(8, 2, general=embed == "shape")
    warp = 0.08 * torch.randn(8, 2, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    batch = batch_of(maps, warp)
    shapes = KeypointAlign(embed=embed).aligned_shapes(seen_points(batch), batch)
    assert shapes.shape == (8, 2, 12)
    torch.testing.assert_close(shapes.norm(dim=-1), torch.ones(8, 2))
    torch.testing.assert_close(shapes[:, 0], shapes[:, 1], atol=1e-4, rtol=0)
    assert (shapes[0] - shapes[1]).norm() > 0.1


def over_ranks(rank: int, port: int, results) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    whole = F.normalize(torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    group = torch.tensor([0, 1, 2, 1, 4, 5])
    mine = slice(3 * rank, 3 * rank + 3)
    z = whole[mine].clone().requires_grad_()
    loss = nt_xent(z, z, temp=0.2, group=group[mine], sync=True)
    loss.backward()
    results.put((rank, loss.item(), float(z.grad.abs().sum())))
    dist.destroy_process_group()


@pytest.mark.slow
def test_negatives_come_from_all_processes():
    import multiprocessing
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=over_ranks, args=(r, port, results)) for r in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    whole = F.normalize(torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    group = torch.tensor([0, 1, 2, 1, 4, 5])
    together = nt_xent(whole, whole, temp=0.2, group=group).item()
    assert sum(loss for _, loss, _ in found) / 2 == pytest.approx(together, rel=1e-5)
    assert all(gradient > 0 for _, _, gradient in found)
