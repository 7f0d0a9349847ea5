"""Which samples make up step n: a pure function of (seed, n)."""

import logging
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from handmim.utils.seed import step_seed

log = logging.getLogger(__name__)


class StepSampler(Sampler[list[int]]):
    """Endless reshuffled epochs cut into full batches, from any step on.

    Samples are taken from the concatenation of one permutation per epoch, so batches run across
    epoch borders and none is short. Every rank takes its own slice of the global batch.

    Args:
        num_samples: size of the dataset. Where it is smaller than a batch, samples repeat within
            every batch, which is logged.
        batch_size: global batch.
        seed: of the permutations.
        start_step, end_step: steps to yield.
        rank, world_size: slice of the global batch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        *,
        start_step: int,
        end_step: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_samples < 1:
            raise ValueError("the dataset is empty (data)")
        if batch_size % world_size:
            raise ValueError(
                f"batch_size {batch_size} must be a multiple of the {world_size} processes"
                " (trainer.batch_size)"
            )
        if batch_size > num_samples:
            log.warning(
                "a batch of %d is larger than the set of %d samples: samples repeat within every "
                "batch; use at most %d (trainer.batch_size)",
                batch_size,
                num_samples,
                num_samples,
            )
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.start_step, self.end_step = start_step, end_step
        self.rank, self.world_size = rank, world_size
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.end_step - self.start_step

    def _sample(self, position: int) -> int:
        epoch, offset = divmod(position, self.num_samples)
        if epoch != self._epoch:
            rng = np.random.default_rng(step_seed(self.seed, "epoch", epoch))
            self._epoch, self._order = epoch, rng.permutation(self.num_samples)
        return int(self._order[offset])

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.world_size
        for step in range(self.start_step, self.end_step):
            first = step * self.batch_size + self.rank * share
            yield [self._sample(first + i) for i in range(share)]
