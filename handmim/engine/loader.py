"""Batches of a run's steps, made by loader workers, on the device before they are needed.

A batch is a function of (seed, step, rank): neither the number of workers nor the step that a run
resumes from changes it.
"""

import atexit
import logging
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import active_children
from multiprocessing.connection import wait
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from handmim.engine.step import Ledger, Prepare
from handmim.engine.workers import (
    METHOD,
    Collate,
    Loaded,
    StepBatches,
    begin_worker,
    end_of,
    signals_held_back,
    start_server,
)
from handmim.utils.processes import StalledError
from handmim.utils.seed import step_seed

log = logging.getLogger(__name__)

LEAVE_S, END_S = 1.0, 5.0
PARTS, TIMED_OUT = 20, "DataLoader timed out"  # time in which all is stopped counts as one part
Batch = TypeVar("Batch")


class WorkerDiedError(RuntimeError):
    """A loader worker ended by itself."""


class _StackError(Exception):
    """The cause of an error of another process: its stack, as text."""


class Beat:
    """What this process waits for, see `stop.Watchdog`."""

    last = ("the start",)


def beat(awaited: str) -> None:
    """Name what this process waits for from now on."""
    Beat.last = (awaited,)


class Loading:
    """Items of a dataset, one per request, in order; a context that ends its workers."""

    running: ClassVar["weakref.WeakSet[Loading]"] = weakref.WeakSet()
    limit_s: ClassVar[float] = 0.0  # for an item, of those that begin from now on; 0 is for ever

    def __init__(
        self,
        dataset: Dataset[Loaded],
        requests: Iterable[Any],
        num_workers: int,
        *,
        pin_memory: bool = False,
        generator: torch.Generator | None = None,  # of the workers' base seed; else the global one
    ) -> None:
        self._limit_s = Loading.limit_s
        in_processes: dict[str, Any] = {
            "timeout": self._limit_s / PARTS,
            "worker_init_fn": begin_worker,
            "multiprocessing_context": METHOD,
        }
        loader = DataLoader(
            dataset,
            batch_size=None,  # a request is a whole batch
            sampler=requests,
            collate_fn=_unchanged,
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=generator,
            **(in_processes if num_workers else {}),
        )
        if num_workers:
            start_server()
        others = set(active_children())
        with signals_held_back():
            self._batches = [iter(loader)]
        self._is_waiting = self._is_stalled = False
        self._workers = set(active_children()) - others
        Loading.running.add(self)
        # Registered after torch's own, which wait for workers, and so called before them.
        atexit.register(self.kill)

    def __next__(self) -> Loaded:
        """The next item; raises the error of whoever made it, WorkerDiedError naming the process
        and how it ended, StalledError naming those that give nothing within `limit_s`."""
        self._is_waiting = True
        for _ in range(PARTS):
            try:
                loaded: Loaded = next(self._batches[0])
            except (RuntimeError, OSError, EOFError) as error:  # the dataset's own are in `loaded`
                if str(error).startswith(TIMED_OUT):
                    continue
                if self._is_stalled:
                    break
                wait([worker.sentinel for worker in self._workers], timeout=LEAVE_S)
                dead = [worker for worker in self._workers if worker.exitcode]
                if not dead:
                    raise
                raise WorkerDiedError(end_of(dead[0])) from error
            self._is_waiting = False
            if loaded.error is None:
                return loaded
            stack = _StackError(f"\n{loaded.stack}") if loaded.stack else None
            raise loaded.error from stack
        workers = ", ".join(str(worker.pid) for worker in self._workers)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        raise StalledError(
            f"rank {rank} stands still: it waited {self._limit_s:.0f} s for loader workers "
            f"({workers}), one of which is stuck or stopped (machine.stall_timeout_s)"
        )

    def __enter__(self) -> "Loading":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def kill(self) -> None:
        """End the workers at once, whatever they are doing."""
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()

    def end_wait(self) -> None:
        """Raise StalledError where an item is waited for: torch does not time out on a worker that
        is stopped while it hands one over."""
        if self._is_waiting:
            self._is_stalled = True
            self.kill()

    def close(self) -> None:
        """End the workers, those that do not leave within a second by force."""
        if sys.is_finalizing():  # no thread starts any more; `kill` was called
            return
        atexit.unregister(self.kill)
        Loading.running.discard(self)
        # Torch asks its workers to leave when its iterator is dropped, and may wait for ever for
        # one that is stopped or was killed while it sent something.
        leaving = threading.Thread(target=self._batches.clear, daemon=True)
        leaving.start()
        leaving.join(LEAVE_S)
        if leaving.is_alive():
            self.kill()
            leaving.join(END_S)


def _unchanged(loaded: Any) -> Any:
    return loaded


class SampleOrder:
    """Which samples make up a step: endless reshuffled epochs cut into full batches, of which every
    rank takes its slice. Batches run across epoch borders, so none is short."""

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


class PrefetchingLoader:
    """Batches of a run's steps on its device; a context that ends its workers.

    `prepare` of the step may have a method `host_part(device)`: a picklable `Prepare` for collated
    batches, before they go to the device. Up to a share `max_unreadable` of the samples, one at
    least but for 0, is replaced by others and counted in `ledger`.
    """

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
            dataset, collate, on_host, seed, rank, total_steps, max_unreadable > 0
        )
        self.waited_s = 0.0  # for batches
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
        """The batch of a step, quickly where it follows the last one. Raises: as `Loading`;
        ValueError when too many samples cannot be read."""
        if self._loading is None or step != self._next:
            self.close()
            beat("loader workers to start")
            requests = ((n, self.order.of_step(n)) for n in range(step, self.total_steps))
            is_cuda = self.device.type == "cuda"
            self._loading = Loading(self.batches, requests, self.num_workers, pin_memory=is_cuda)
            loaded = self._loaded(self._loading, step)
            on_host = (self.fabric.to_device(batch) for batch in loaded)
            self._on_device = self._ahead(loaded) if is_cuda else on_host
        self._next = step + 1
        return next(self._on_device)

    def _loaded(self, loading: Loading, step: int) -> Iterator[Any]:
        while True:
            beat(f"the batch of step {step}")
            began = time.perf_counter()
            try:
                loaded = next(loading)
            except StopIteration:
                return
            finally:
                self.waited_s += time.perf_counter() - began
            beat(f"step {step}")
            if loaded.replaced:
                self._count(step, loaded.replaced)
            yield loaded.batch
            step += 1

    def _count(self, step: int, replaced: Sequence[tuple[str, str]]) -> None:
        """Count samples that others stand in for; raises ValueError for too many."""
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
