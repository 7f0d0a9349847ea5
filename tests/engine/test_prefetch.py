import pytest
import torch

from handmim.engine.prefetch import PrefetchingLoader
from handmim.engine.sampler import StepSampler
from handmim.engine.trainer import Trainer
from handmim.types import StepInfo
from handmim.utils.run import Run
from tests.engine.toy import DATA, ToyBatch, ToyTask, collate, prepare, recipe


class HostNoise:
    """Draws its noise on the host, tells where it was, doubles it on the device."""

    def __init__(self) -> None:
        self.given: list[ToyBatch] = []

    def host_part(self, device):
        assert device.type == "cpu"
        return draw

    def __call__(self, batch, generator, info):
        self.given.append(batch)
        return batch._replace(noise=2 * batch.noise)


def draw(batch: ToyBatch, generator: torch.Generator, info: StepInfo) -> ToyBatch:
    assert info.total_steps == 10
    return ToyBatch(batch.x, torch.randn(batch.x.shape, generator=generator) + info.step)


def feed(run, prepare, *, num_workers=0, start=0, world_size=1, rank=0) -> list[ToyBatch]:
    steps = StepSampler(
        len(DATA), 4, run.seed, start_step=start, end_step=10, rank=rank, world_size=world_size
    )
    return list(
        PrefetchingLoader(
            run.fabric,
            DATA,
            collate,
            prepare,
            steps,
            seed=run.seed,
            total_steps=10,
            num_workers=num_workers,
        )
    )


@pytest.fixture
def run(tmp_path):
    return Run.start("toy", tmp_path / "run", 3, {}, accelerator="cpu")


def assert_same(a: list[ToyBatch], b: list[ToyBatch]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.noise, other.noise)


def test_batches_depend_on_the_step_not_on_who_makes_them(run):
    here = feed(run, HostNoise())
    assert len(here) == 10
    assert not torch.equal(here[0].noise, here[1].noise - 1)
    assert [batch.noise.mean().item() for batch in here] == pytest.approx(range(10), abs=1.5)
    assert_same(here, feed(run, HostNoise(), num_workers=2))
    assert_same(here[6:], feed(run, HostNoise(), start=6))
    plain = feed(run, prepare)
    assert all(
        torch.equal(a.x, b.x) and not b.noise.any() for a, b in zip(here, plain, strict=True)
    )


def test_ranks_take_their_slices(run):
    whole = feed(run, prepare)
    halves = [feed(run, prepare, world_size=2, rank=rank) for rank in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(batch.x, torch.cat([first.x, second.x]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_prepares_on_the_host_and_resumes_exactly(tmp_path, num_workers):
    def fit(name, **kwargs):
        resume = kwargs.pop("resume", "never")
        run = Run.start("toy", tmp_path / name, 0, {}, accelerator="cpu", resume=resume)
        task, noise = ToyTask(), HostNoise()
        settings = {"max_steps": 10, "batch_size": 4, "num_workers": num_workers} | kwargs
        Trainer(**settings).fit(run, task, DATA, collate, noise, recipe(), resume=resume)
        return task, noise

    whole, seen = fit("whole")
    assert len(seen.given) == 10
    assert seen.given[4].noise.mean().item() == pytest.approx(4, abs=1.5)
    fit("parts", stop_after=4)
    rest, late = fit("parts", resume="auto")
    assert torch.equal(whole.linear.weight, rest.linear.weight)
    assert_same(seen.given[4:], late.given)


def test_waiting_for_batches_is_counted(run):
    steps = StepSampler(11, 4, 0, start_step=0, end_step=2)
    made = PrefetchingLoader(run.fabric, DATA, collate, prepare, steps, seed=0, total_steps=2)
    assert made.waited_s == 0
    assert len(list(made)) == 2
    assert made.waited_s > 0


@pytest.mark.gpu
def test_a_device_gets_the_same_batches_ahead_of_time(tmp_path):
    class Plain:
        def host_part(self, device):
            return draw

    there = Run.start("toy", tmp_path / "cuda", 3, {}, accelerator="cuda")
    here = Run.start("toy", tmp_path / "cpu", 3, {}, accelerator="cpu")
    for num_workers in (0, 2):
        on_device = feed(there, Plain(), num_workers=num_workers)
        assert all(batch.x.is_cuda for batch in on_device)
        assert_same(feed(here, Plain()), [ToyBatch(*(x.cpu() for x in b)) for b in on_device])
