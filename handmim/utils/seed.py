"""Randomness as a function of (seed, purpose, step, ...), so that resuming has no state to
restore."""

import hashlib
import random

import numpy as np
import torch


def step_seed(seed: int, *stream: int | str) -> int:
    """A 63-bit seed for one purpose: step_seed(0, "prepare", step, rank). Seed 0 is a seed like any
    other."""
    digest = hashlib.blake2b(repr((seed, *stream)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def step_generator(seed: int, *stream: int | str) -> torch.Generator:
    """A CPU generator seeded by `step_seed`."""
    return torch.Generator().manual_seed(step_seed(seed, *stream))


def seed_everything(seed: int) -> None:
    """Seed the global generators that libraries draw initial weights and dropout from."""
    random.seed(step_seed(seed, "python"))
    np.random.seed(step_seed(seed, "numpy") % 2**32)  # noqa: NPY002  libraries use the legacy one
    torch.manual_seed(step_seed(seed, "torch"))
