"""Watching for losses and gradients that are not finite without waiting for the device."""

import torch
from torch import Tensor


class FiniteWatch:
    """Remembers on the device which step went wrong first.

    Args:
        device: where losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), torch.inf, device=device)

    def see(self, step: int, *values: Tensor | None) -> None:
        """Values [] of a step."""
        known = [v.detach().float() for v in values if v is not None]
        if known:
            is_bad = ~torch.stack(known).isfinite().all()
            self._first = torch.where(is_bad, self._first.clamp(max=step), self._first)

    @property
    def first_bad(self) -> int | None:
        """The first step with a value that is not finite; None where there is none. Waits."""
        first = float(self._first)
        return None if first == float("inf") else int(first)
