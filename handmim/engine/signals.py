"""Signals that ask a run to stop."""

import signal
from types import FrameType
from typing import Any


class StopSignals:
    """Remember SIGINT, SIGTERM and SIGUSR1 so that the loop can stop between two steps."""

    NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    def __enter__(self) -> "StopSignals":
        for name in self.NAMES:
            number = getattr(signal, name)
            try:
                self._before[number] = signal.signal(number, self._remember)
            except ValueError:  # not the main thread: nothing to catch here
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
