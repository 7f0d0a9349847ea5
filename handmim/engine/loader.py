"""Batches of a run's steps, on the device before they are needed. A batch is a function of (seed,
step, rank): neither the number of workers nor the step that a run resumes from changes it."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_utilities.core.apply_func import apply_to_collection
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from handmim.engine.step import Ledger
from handmim.engine.workers import Loaded, Loading, beat
from handmim.types import Collate, Prepare, StepInfo
from handmim.utils.files import UnreadableSample
from handmim.utils.seed import step_generator, step_seed

log = logging.getLogger(__name__)

TRIES = 8  # samples in place of one that cannot be read


@lru_cache(maxsize=2)
def _shuffled(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng(step_seed(seed, "epoch", epoch)).permutation(num_samples)


@dataclass
class StepBatches:
    """Whole batches by step, made in the processes that load. Endless reshuffled epochs are cut
    into full batches, of which every rank takes its slice."""

    dataset: Dataset[Any]  # map-style samples
    collate: Collate
    on_host: Prepare | None  # further work on a batch
    batch_size: int  # over all processes
    total_steps: int
    seed: int
    rank: int = 0
    world_size: int = 1
    # Take another sample, chosen by (seed, step, rank, position), for an `UnreadableSample`.
    replaces: bool = False

    def __post_init__(self) -> None:
        self.num_samples = len(self.dataset)  # type: ignore[arg-type]
        if not self.num_samples:
            raise ValueError("the dataset is empty (data)")
        if self.batch_size > self.num_samples:
            repeated = f"the set of {self.num_samples} samples, which repeat (trainer.batch_size)"
            log.warning("a batch of %d is larger than %s", self.batch_size, repeated)

    def indices(self, step: int) -> list[int]:
        """Of this rank's samples of a step."""
        share = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * share
        positions = (divmod(n, self.num_samples) for n in range(first, first + share))
        return [int(_shuffled(self.num_samples, self.seed, epoch)[n]) for epoch, n in positions]

    def __call__(self, step: int) -> Loaded:
        """The batch of a step, other samples in place of those that cannot be read."""
        indices, samples = self.indices(step), []
        replaced: list[tuple[str, str]] = []
        for position, index in enumerate(indices):
            others, chosen = self._others(step, position, indices), index
            while True:
                try:
                    samples.append(self.dataset[chosen])
                    break
                except UnreadableSample as error:
                    replaced.append((error.path, error.reason))
                    chosen = next(others, -1)
                    if chosen < 0:
                        raise
        batch = self.collate(samples)
        if self.on_host is not None:
            generator = step_generator(self.seed, "prepare", step, self.rank)
            batch = self.on_host(batch, generator, StepInfo(step, self.total_steps))
        return Loaded(batch, replaced)

    def _others(self, step: int, position: int, indices: list[int]) -> Iterator[int]:
        """Samples that are not in the batch, where there are some."""
        if self.replaces:
            used = set(indices)
            rng = np.random.default_rng(step_seed(self.seed, "replace", step, self.rank, position))
            others = [i for i in rng.permutation(self.num_samples).tolist() if i not in used]
            yield from (others or list(used))[:TRIES]


class PrefetchingLoader(ExitStack):
    """Batches of a run's steps on its device; a context that ends its workers. `host_part(device)`
    of `prepare` gives a picklable `Prepare` for collated batches on the host. Up to a share
    `max_unreadable` of the samples, one at least but for 0, is replaced."""

    def __init__(
        self,
        fabric: Fabric,
        dataset: Dataset[Any],
        collate: Collate,
        prepare: Prepare,
        *,
        batch_size: int,  # samples of a step over all processes
        total_steps: int,
        seed: int = 0,
        num_workers: int = 0,
        max_unreadable: float = 0.0,
    ) -> None:
        super().__init__()
        self.fabric, self.device, self.ledger = fabric, fabric.device, Ledger()
        self.num_workers, self.max_unreadable = num_workers, max_unreadable
        host_part = getattr(prepare, "host_part", None)
        self.batches = StepBatches(
            dataset, collate, host_part and host_part(self.device), batch_size, total_steps, seed,
            fabric.global_rank, fabric.world_size, replaces=max_unreadable > 0,
        )  # fmt: skip
        self.waited_s = 0.0  # for batches
        self._next = -1

    def __iter__(self) -> Iterator[Any]:
        with self:
            for step in range(self.batches.total_steps):
                yield self.batch_of(step)

    def batch_of(self, step: int) -> Any:
        """The batch of a step, quickly after the last one. Raises: as `Loading`; ValueError."""
        if step != self._next:
            self.close()
            beat("loader workers to start")
            steps, is_cuda = range(step, self.batches.total_steps), self.device.type == "cuda"
            loading = Loading(self.batches, steps, self.num_workers, pin_memory=is_cuda)
            loaded = self._loaded(self.enter_context(loading), steps)
            on_host = (self.fabric.to_device(batch) for batch in loaded)
            self._on_device = self._ahead(loaded) if is_cuda else on_host
        self._next = step + 1
        return next(self._on_device)

    def _loaded(self, loading: Loading, steps: range) -> Iterator[Any]:
        for step in steps:
            beat(f"the batch of step {step}")
            began = time.perf_counter()
            loaded = next(loading)
            self.waited_s += time.perf_counter() - began
            beat(f"step {step}")
            if loaded.replaced:
                self._count(step, loaded.replaced)
            yield loaded.batch

    def _count(self, step: int, replaced: Sequence[tuple[str, str]]) -> None:
        """Count samples that others stand in for; raises ValueError for too many."""
        known, size = self.ledger.unreadable, self.batches.num_samples
        self.ledger.replaced += len(replaced)
        for name, reason in replaced:
            if name not in known:
                log.warning("step %d takes another sample: %s: %s", step, name, reason)
                known[name] = reason
        if len(known) > max(1.0, self.max_unreadable * size):
            name, reason = replaced[-1]
            raise ValueError(
                f"{len(known)} of {size} samples cannot be read, the last one {name} ({reason}); "
                f"a share of {self.max_unreadable:g} may be so (max_unreadable)"
            )

    def _ahead(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The next batch is copied, on a stream of its own, while the device works on this one."""
        copying = torch.cuda.Stream(self.device)
        moved: Any = None
        for batch in chain(batches, [None]):
            before = moved
            with torch.cuda.stream(copying):
                moved = self.fabric.to_device(batch), copying.record_event()
            if before is not None:
                stream = torch.cuda.current_stream(self.device)
                stream.wait_event(before[1])
                # Its memory must not go to the next copy before this stream is done with it.
                apply_to_collection(before[0], Tensor, Tensor.record_stream, stream)
                yield before[0]
