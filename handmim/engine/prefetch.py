"""Feeding a training: batches are collated, prepared as far as the host can, and on their way to
the device before they are wanted.

What a batch holds is a function of (seed, step, rank): the loading processes are told the step they
make a batch of, so that results depend neither on their number nor on where a run was resumed.
"""

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from handmim.engine.ledger import Ledger
from handmim.engine.sampler import StepSampler
from handmim.engine.watchdog import beat
from handmim.engine.workers import Loaded, Loading, attempt
from handmim.types import StepInfo
from handmim.utils.files import UnreadableSample
from handmim.utils.seed import step_generator, step_seed

log = logging.getLogger(__name__)

TRIES = 8  # samples in place of one that cannot be read

Batch = TypeVar("Batch")
Prepare = Callable[[Any, torch.Generator, StepInfo], Any]


class HostPrepare(Protocol):
    """A `Prepare` with a part that is done before the batch goes to the device: it gives what is to
    be called on collated batches, with the same generator, in the processes that load."""

    def host_part(self, device: torch.device) -> Prepare:
        """What to do on the host for training on this device; picklable."""
        ...


class StepBatches(Dataset[Loaded]):
    """Whole batches by (step, places of their samples).

    Args:
        dataset: map-style samples.
        collate: samples -> batch.
        on_host: further work on a batch; None is none.
        seed, rank: of its generator.
        total_steps: of the run.
        replaces: take another sample, chosen by (seed, step, rank, place in the batch), where one
            is an `UnreadableSample`.
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
        replaces: bool = False,
    ) -> None:
        self.dataset, self.collate, self.on_host = dataset, collate, on_host
        self.seed, self.rank, self.total_steps = seed, rank, total_steps
        self.replaces = replaces

    def __getitem__(self, request: tuple[int, list[int]]) -> Loaded:
        return attempt(lambda: self._make(*request))

    def _make(self, step: int, places: list[int]) -> Loaded:
        replaced: list[tuple[str, str]] = []
        samples = []
        for number, place in enumerate(places):
            try:
                samples.append(self.dataset[place])
            except UnreadableSample as error:
                if not self.replaces:
                    raise
                replaced.append((error.path, error.reason))
                samples.append(self._other(step, number, set(places), replaced))
        batch = self.collate(samples)
        if self.on_host is not None:
            generator = step_generator(self.seed, "prepare", step, self.rank)
            batch = self.on_host(batch, generator, StepInfo(step, self.total_steps))
        return Loaded(batch, replaced)

    def _other(
        self, step: int, number: int, places: set[int], replaced: list[tuple[str, str]]
    ) -> Any:
        """A sample that is not in the batch, where there is one."""
        size = len(self.dataset)  # type: ignore[arg-type]
        rng = np.random.default_rng(step_seed(self.seed, "replace", step, self.rank, number))
        others = [place for place in rng.permutation(size).tolist() if place not in places]
        for place in (others or list(places))[:TRIES]:
            try:
                return self.dataset[place]
            except UnreadableSample as error:
                last = error
                replaced.append((error.path, error.reason))
        raise last


class _Requests(Sampler[tuple[int, list[int]]]):
    def __init__(self, steps: StepSampler) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        return enumerate(self.steps, self.steps.start_step)


class PrefetchingLoader:
    """Batches of a run's steps on its device; made by `prepare` as far as its `host_part`, where it
    has one (`HostPrepare`), goes.

    Args:
        fabric: device and rank.
        dataset: map-style samples.
        collate: samples -> batch.
        prepare: of the training loop.
        steps: which samples make up which step.
        seed: of the run, for `host_part`.
        total_steps: of the run.
        num_workers: processes that load; 0 loads in this one.
        max_unreadable: share of the samples that others may stand in for, one at least; 0 takes no
            other sample.
        ledger: where they are noted.
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
        max_unreadable: float = 0.0,
        ledger: Ledger | None = None,
    ) -> None:
        self.fabric, self.device = fabric, fabric.device
        self.steps, self.num_workers, self.max_unreadable = steps, num_workers, max_unreadable
        self.ledger = ledger or Ledger()
        host_part = getattr(prepare, "host_part", None)
        self.batches = StepBatches(
            dataset,
            collate,
            None if host_part is None else host_part(self.device),
            seed=seed,
            rank=fabric.global_rank,
            total_steps=total_steps,
            replaces=max_unreadable > 0,
        )
        self.waited_s = 0.0  # for the loader so far
        self._loading: Loading | None = None
        self._next = steps.start_step

    def __iter__(self) -> Iterator[Any]:
        with self:
            for step in range(self.steps.start_step, self.steps.end_step):
                yield self.batch_of(step)

    def __enter__(self) -> "PrefetchingLoader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        if self._loading is not None:
            self._loading.close()
        self._loading = None

    def batch_of(self, step: int) -> Any:
        """The batch of a step, quickly where it is the one after the last that was asked for.

        Raises: WorkerDiedError; ValueError when too many samples cannot be read; what dataset and
            collate raise.
        """
        if self._loading is None or step != self._next:
            self.close()
            steps = copy.copy(self.steps)
            steps.start_step = step
            beat("loader workers to start")
            self._loading = Loading(
                self.batches,
                _Requests(steps),
                self.num_workers,
                pin_memory=self.device.type == "cuda",
            )
            self._on_device = self._moved(self._loaded(self._loading, step))
        self._next = step + 1
        return next(self._on_device)

    def _moved(self, batches: Iterator[Any]) -> Iterator[Any]:
        if self.device.type == "cuda":
            return self._ahead(batches)
        return (self.fabric.to_device(batch) for batch in batches)

    def _loaded(self, loading: Loading, step: int) -> Iterator[Any]:
        while True:
            beat("the batch of step", step)
            began = time.perf_counter()
            try:
                loaded = next(loading)
            except StopIteration:
                return
            finally:
                self.waited_s += time.perf_counter() - began
            beat("step", step)
            batch = loaded.unwrapped()
            self._note(step, loaded.replaced)
            yield batch
            step += 1

    def _note(self, step: int, replaced: Sequence[tuple[str, str]]) -> None:
        """Count what other samples stand in for.

        Raises: ValueError where it is too much.
        """
        known, size = self.ledger.unreadable, len(self.batches.dataset)  # type: ignore[arg-type]
        for name, reason in replaced:
            self.ledger.replaced += 1
            if name not in known:
                log.warning("step %d takes another sample: %s: %s", step, name, reason)
                known[name] = reason
        if replaced and len(known) > max(1.0, self.max_unreadable * size):
            raise ValueError(
                f"{len(known)} of {size} samples cannot be read, the last one {replaced[-1][0]} "
                f"({replaced[-1][1]}), and a share of {self.max_unreadable:g} may be "
                "(trainer.max_unreadable)"
            )

    def _ahead(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The next batch is copied, on a stream of its own, while the device works on this one."""
        copying = torch.cuda.Stream(self.device)
        moved: Any = None
        for batch in batches:
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
