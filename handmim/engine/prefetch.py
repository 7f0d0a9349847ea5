"""Batches of a run's steps: collated, prepared as far as the host can, and on their way to the
device before they are needed.

A batch is a function of (seed, step, rank): neither the number of loader workers nor the step that
a run resumes from changes it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import Dataset

from handmim.engine.step import Prepare
from handmim.engine.workers import Loaded, Loading, attempt, beat
from handmim.types import StepInfo
from handmim.utils.files import UnreadableSample
from handmim.utils.seed import step_generator, step_seed

log = logging.getLogger(__name__)

TRIES = 8  # samples in place of one that cannot be read

Collate = Callable[[list[Any]], Any]
Replaced = list[tuple[str, str]]  # name and reason of samples that others stand in for
Batch = TypeVar("Batch")


class HostPrepare(Protocol):
    """A `Prepare` that does part of its work on collated batches before they go to the device, in
    the processes that load."""

    def host_part(self, device: torch.device) -> Prepare:
        """What to do on the host for training on this device; picklable."""
        ...


@dataclass
class Ledger:
    """What a run left out. Kept in every checkpoint: a resumed run leaves out the same."""

    skipped: list[int] = field(default_factory=list)  # steps without an update
    replaced: int = 0  # draws of samples that could not be read
    unreadable: dict[str, str] = field(default_factory=dict)  # reason by name of the sample

    def scalars(self) -> dict[str, float]:
        """Counts worth logging: those that are not 0."""
        counts = {"data/replaced": self.replaced, "data/skipped_steps": len(self.skipped)}
        return {name: float(count) for name, count in counts.items() if count}

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.skipped = list(state["skipped"])
        self.replaced, self.unreadable = state["replaced"], dict(state["unreadable"])


class SampleOrder:
    """Which samples make up a step: endless reshuffled epochs cut into full batches.

    Batches run across epoch borders, so none is short. Every rank takes its slice of the batch.

    Args:
        num_samples: size of the dataset; where a batch is larger, samples repeat within it.
        batch_size: global batch.
        seed: of the permutations.
        rank, world_size: slice of the global batch.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        if num_samples < 1:
            raise ValueError("the dataset is empty (data)")
        if batch_size % world_size:
            raise ValueError(
                f"batch_size must be a multiple of the {world_size} processes, got {batch_size}"
            )
        if batch_size > num_samples:
            log.warning(
                "a batch of %d is larger than the set of %d samples: samples repeat within every "
                "batch; use at most %d (trainer.batch_size)",
                batch_size, num_samples, num_samples,
            )  # fmt: skip
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.share = rank, batch_size // world_size
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def of_step(self, step: int) -> list[int]:
        """Indices of this rank's samples."""
        first = step * self.batch_size + self.rank * self.share
        return [self._sample(position) for position in range(first, first + self.share)]

    def _sample(self, position: int) -> int:
        epoch, offset = divmod(position, self.num_samples)
        if epoch != self._epoch:
            rng = np.random.default_rng(step_seed(self.seed, "epoch", epoch))
            self._epoch, self._order = epoch, rng.permutation(self.num_samples)
        return int(self._order[offset])


@dataclass
class StepBatches(Dataset[Loaded]):
    """Whole batches by (step, indices of their samples), made in the processes that load."""

    dataset: Dataset[Any]  # map-style samples
    collate: Collate
    on_host: Prepare | None  # further work on a batch
    seed: int  # of its generator, with the rank
    rank: int
    total_steps: int
    # Take another sample, chosen by (seed, step, rank, position), for an `UnreadableSample`.
    replaces: bool

    def __getitem__(self, request: tuple[int, list[int]]) -> Loaded:
        return attempt(lambda: self._make(*request))

    def _make(self, step: int, indices: list[int]) -> Loaded:
        replaced: Replaced = []
        samples = []
        for position, index in enumerate(indices):
            try:
                samples.append(self.dataset[index])
            except UnreadableSample as error:
                if not self.replaces:
                    raise
                replaced.append((error.path, error.reason))
                samples.append(self._other(step, position, set(indices), replaced))
        batch = self.collate(samples)
        if self.on_host is not None:
            generator = step_generator(self.seed, "prepare", step, self.rank)
            batch = self.on_host(batch, generator, StepInfo(step, self.total_steps))
        return Loaded(batch, replaced)

    def _other(self, step: int, position: int, used: set[int], replaced: Replaced) -> Any:
        """A sample that is not in the batch, where there is one."""
        size = len(self.dataset)  # type: ignore[arg-type]
        rng = np.random.default_rng(step_seed(self.seed, "replace", step, self.rank, position))
        others = [index for index in rng.permutation(size).tolist() if index not in used]
        for index in (others or list(used))[:TRIES]:
            try:
                return self.dataset[index]
            except UnreadableSample as error:
                last = error
                replaced.append((error.path, error.reason))
        raise last


class PrefetchingLoader:
    """Batches of a run's steps on its device; a context that ends its workers.

    Args:
        fabric: device and rank.
        dataset: map-style samples.
        collate: samples -> batch.
        prepare: of the training step; its `host_part`, where it has one (`HostPrepare`), is done
            here.
        batch_size: samples of a step over all processes.
        total_steps: of the run.
        seed: of the run.
        num_workers: processes that load; 0 loads in this one.
        max_unreadable: share of the samples that others may stand in for, one at least; 0 takes no
            other sample.

        ledger: where they are counted.

    Attributes:
        waited_s: seconds spent waiting for batches.
    """

    def __init__(
        self,
        fabric: Fabric,
        dataset: Dataset[Any],
        collate: Collate,
        prepare: Prepare,
        *,
        batch_size: int,
        total_steps: int,
        seed: int = 0,
        num_workers: int = 0,
        max_unreadable: float = 0.0,
        ledger: Ledger | None = None,
    ) -> None:
        self.fabric, self.device = fabric, fabric.device
        self.ledger = ledger or Ledger()
        self.total_steps, self.num_workers = total_steps, num_workers
        self.max_unreadable = max_unreadable
        size, rank = len(dataset), fabric.global_rank  # type: ignore[arg-type]
        self.order = SampleOrder(size, batch_size, seed, rank=rank, world_size=fabric.world_size)
        host_part = getattr(prepare, "host_part", None)
        on_host = None if host_part is None else host_part(self.device)
        self.batches = StepBatches(
            dataset, collate, on_host,
            seed=seed, rank=rank, total_steps=total_steps, replaces=max_unreadable > 0,
        )  # fmt: skip
        self.waited_s = 0.0
        self._loading: Loading | None = None
        self._next = 0

    def __iter__(self) -> Iterator[Any]:
        with self:
            for step in range(self.total_steps):
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
        """The batch of a step, quickly where it follows the last one.

        Raises: WorkerDiedError; ValueError when too many samples cannot be read; what dataset and
            collate raise.
        """
        if self._loading is None or step != self._next:
            self.close()
            beat("loader workers to start")
            requests = ((n, self.order.of_step(n)) for n in range(step, self.total_steps))
            is_cuda = self.device.type == "cuda"
            self._loading = Loading(self.batches, requests, self.num_workers, pin_memory=is_cuda)
            loaded = self._loaded(self._loading, step)
            self._on_device = self._ahead(loaded) if is_cuda else self._moved(loaded)
        self._next = step + 1
        return next(self._on_device)

    def _moved(self, batches: Iterator[Any]) -> Iterator[Any]:
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
            if loaded.replaced:
                self._count(step, loaded.replaced)
            yield batch
            step += 1

    def _count(self, step: int, replaced: Sequence[tuple[str, str]]) -> None:
        """Count samples that others stand in for.

        Raises: ValueError for too many.
        """
        known, size = self.ledger.unreadable, len(self.batches.dataset)  # type: ignore[arg-type]
        self.ledger.replaced += len(replaced)
        for name, reason in replaced:
            if name not in known:
                log.warning("step %d takes another sample: %s: %s", step, name, reason)
                known[name] = reason
        if len(known) > max(1.0, self.max_unreadable * size):
            raise ValueError(
                f"{len(known)} of {size} samples cannot be read, the last one {replaced[-1][0]} "
                f"({replaced[-1][1]}), and a share of {self.max_unreadable:g} may be "
                "(max_unreadable)"
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
