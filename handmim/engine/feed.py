"""Feeding a training: batches are collated, prepared as far as the host can, and on their way to
the device before they are wanted.

What a batch holds is a function of (seed, step, rank): the loading processes are told the step they
make a batch of, so that results depend neither on their number nor on where a run was resumed.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import cv2
import torch
from lightning.fabric import Fabric
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from handmim.contracts import StepInfo
from handmim.engine.sampler import StepSampler
from handmim.utils.seed import step_generator

Batch = TypeVar("Batch")
Prepare = Callable[[Any, torch.Generator, StepInfo], Any]


class HostPrepare(Protocol):
    """A `Prepare` with a part that is done before the batch goes to the device: it gives what is to
    be called on collated batches, with the same generator, in the processes that load."""

    def host_part(self, device: torch.device) -> Prepare:
        """What to do on the host for training on this device; picklable."""
        ...


class StepBatches(Dataset[Any]):
    """Whole batches by (step, places of their samples).

    Args:
        dataset: map-style samples.
        collate: samples -> batch.
        on_host: further work on a batch; None is none.
        seed, rank: of its generator.
        total_steps: of the run.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], Any],
        on_host: Prepare | None,
        *,
        seed: int,
        rank: int,
        total_steps: int,
    ) -> None:
        self.dataset, self.collate, self.on_host = dataset, collate, on_host
        self.seed, self.rank, self.total_steps = seed, rank, total_steps

    def __getitem__(self, request: tuple[int, list[int]]) -> Any:
        step, places = request
        batch = self.collate([self.dataset[place] for place in places])
        if self.on_host is None:
            return batch
        generator = step_generator(self.seed, "prepare", step, self.rank)
        return self.on_host(batch, generator, StepInfo(step, self.total_steps))


class _Requests(Sampler[tuple[int, list[int]]]):
    def __init__(self, steps: StepSampler) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        return enumerate(self.steps, self.steps.start_step)


def _quiet_worker(worker_id: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _as_it_is(batch: Batch) -> Batch:
    return batch


class Feed:
    """Batches of a run's steps in order, on its device; made by `prepare` as far as its
    `host_part`, where it has one (`HostPrepare`), goes.

    Args:
        fabric: device and rank.
        dataset: map-style samples.
        collate: samples -> batch.
        prepare: of the training loop.
        steps: which samples make up which step.
        seed: of the run, for `host_part`.
        total_steps: of the run.
        num_workers: processes that load; 0 loads in this one.
    """

    def __init__(
        self,
        fabric: Fabric,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], Any],
        prepare: Prepare,
        steps: StepSampler,
        *,
        seed: int,
        total_steps: int,
        num_workers: int = 0,
    ) -> None:
        self.fabric, self.device = fabric, fabric.device
        host_part = getattr(prepare, "host_part", None)
        batches = StepBatches(
            dataset,
            collate,
            None if host_part is None else host_part(self.device),
            seed=seed,
            rank=fabric.global_rank,
            total_steps=total_steps,
        )
        self.loader = DataLoader(
            batches,
            batch_size=None,  # a request is a whole batch
            sampler=_Requests(steps),
            collate_fn=_as_it_is,
            num_workers=num_workers,
            worker_init_fn=_quiet_worker,
            pin_memory=self.device.type == "cuda",
        )
        self.waited_s = 0.0  # for the loader so far

    def __iter__(self) -> Iterator[Any]:
        if self.device.type == "cuda":
            return self._ahead()
        return (self.fabric.to_device(batch) for batch in self._loaded())

    def _loaded(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited_s += time.perf_counter() - began
            yield batch

    def _ahead(self) -> Iterator[Any]:
        """The next batch is copied, on a stream of its own, while the device works on this one."""
        copying = torch.cuda.Stream(self.device)
        moved: Any = None
        for batch in self._loaded():
            before = moved
            with torch.cuda.stream(copying):
                moved = self.fabric.to_device(batch), copying.record_event()
            if before is not None:
                yield self._arrived(*before)
        if moved is not None:
            yield self._arrived(*moved)

    def _arrived(self, batch: Batch, event: torch.cuda.Event) -> Batch:
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(event)
        # Its memory must not be given to the next copy before this stream is done with it.
        apply_to_collection(batch, Tensor, lambda tensor: tensor.record_stream(stream))
        return batch
