import pytest
import torch

from handmim.engine.loader import PrefetchingLoader, StepBatches
from handmim.engine.trainer import Trainer
from handmim.types import StepInfo
from handmim.utils.run import Run
from tests.engine.toy import DATA, ToyBatch, ToyTask, collate, optimizer_config, prepare


class HostNoise:
    """Draws its noise on the host, notes where it was, doubles it on the device."""

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


def loader(run, prepare, total_steps=10, num_workers=0) -> PrefetchingLoader:
    sizes = {"batch_size": 4, "total_steps": total_steps, "num_workers": num_workers}
    return PrefetchingLoader(run.fabric, DATA, collate, prepare, seed=run.seed, **sizes)


@pytest.fixture
def run(tmp_path):
    return Run.start("toy", tmp_path / "run", 3, {}, accelerator="cpu")


def assert_same(a: list[ToyBatch], b: list[ToyBatch]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.noise, other.noise)


def test_batches_depend_on_the_step_not_on_who_makes_them(run):
    here = list(loader(run, HostNoise()))
    assert len(here) == 10
    assert not torch.equal(here[0].noise, here[1].noise - 1)
    assert [batch.noise.mean().item() for batch in here] == pytest.approx(range(10), abs=1.5)
    assert_same(here, list(loader(run, HostNoise(), num_workers=2)))
    with loader(run, HostNoise()) as late:
        assert_same(here[6:], [late.batch_of(step) for step in range(6, 10)])
    plain = list(loader(run, prepare))
    assert all(
        torch.equal(a.x, b.x) and not b.noise.any() for a, b in zip(here, plain, strict=True)
    )


def in_order(steps, batch_size=4, num=11, **rank) -> list[int]:
    order = StepBatches(range(num), list, None, batch_size, 99, 0, **rank)
    return [index for step in steps for index in order.indices(step)]


def test_epochs_are_permutations():
    whole = in_order(range(11))
    assert len(whole) == 44
    for epoch in range(4):
        assert sorted(whole[11 * epoch : 11 * epoch + 11]) == list(range(11))
    assert whole[:11] != whole[11:22]
    assert in_order(range(5, 11)) == whole[20:]


def test_ranks_take_their_slices_of_a_batch():
    shares = [in_order([step], rank=n, world_size=2) for step in range(3) for n in (0, 1)]
    assert [index for share in shares for index in share] == in_order(range(3))


def test_a_batch_larger_than_the_set_is_named(caplog):
    in_order([], num=5, batch_size=5)
    assert not caplog.text
    assert len(in_order([0], num=4, batch_size=5)) == 5
    assert "a batch of 5 is larger than the set of 4 samples" in caplog.text
    assert "trainer.batch_size" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_prepares_on_the_host_and_resumes_exactly(tmp_path, num_workers):
    def fit(name, **kwargs):
        resume = kwargs.pop("resume", "never")
        run = Run.start("toy", tmp_path / name, 0, {}, accelerator="cpu", resume=resume)
        task, noise = ToyTask(), HostNoise()
        settings = {"max_steps": 10, "batch_size": 4, "num_workers": num_workers} | kwargs
        Trainer(**settings).fit(run, task, DATA, collate, noise, optimizer_config(), resume=resume)
        return task, noise

    whole, seen = fit("whole")
    assert len(seen.given) == 10
    assert seen.given[4].noise.mean().item() == pytest.approx(4, abs=1.5)
    fit("parts", stop_after=4)
    rest, late = fit("parts", resume="auto")
    assert torch.equal(whole.linear.weight, rest.linear.weight)
    assert_same(seen.given[4:], late.given)


def test_waiting_for_batches_is_counted(run):
    made = loader(run, prepare, total_steps=2)
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
        on_device = list(loader(there, Plain(), num_workers=num_workers))
        assert all(batch.x.is_cuda for batch in on_device)
        assert_same(
            list(loader(here, Plain())), [ToyBatch(*(x.cpu() for x in b)) for b in on_device]
        )
