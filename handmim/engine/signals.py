"""Signals that stop a run."""

import logging
import signal
from types import FrameType
from typing import Any, ClassVar

from handmim.utils.processes import of_signal

log = logging.getLogger(__name__)


class Stopped(SystemExit):
    """A signal ended the run where no step was under way; the exit code is 128 + its number."""

    def __init__(self, name: str) -> None:
        self.number = of_signal(name)
        super().__init__(self.number)


class StopSignals:
    """Catches the signals that stop a run.

    Before `defer`, a signal raises `Stopped` at once: there is nothing to save yet. After it, a
    signal is remembered, so that the training loop can save between two steps. A second SIGINT
    raises KeyboardInterrupt at once. A signal that was not answered raises `Stopped` at the end.

    Entered within another one, it gives that one. Signals are caught in the main thread alone, and
    SIGHUP is left to nohup.
    """

    NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    _active: ClassVar["StopSignals | None"] = None

    def __init__(self) -> None:
        self.received: str | None = None
        self._is_deferred = self._is_answered = False
        self._num_interrupts = 0
        self._before: dict[int, Any] = {}

    @classmethod
    def numbers(cls) -> set[int]:
        """Those that the platform has."""
        return {getattr(signal, name) for name in cls.NAMES if hasattr(signal, name)}

    def defer(self) -> None:
        """From now on the caller reads `received`."""
        self._is_deferred = True

    def answer(self) -> None:
        """The caller ends the run for what was received."""
        self._is_answered = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self._num_interrupts += name == "SIGINT"
        if self._num_interrupts > 1:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = name
            if not self._is_deferred:
                raise Stopped(name)

    def __enter__(self) -> "StopSignals":
        if StopSignals._active is not None:
            return StopSignals._active
        for number in self.numbers():
            before = signal.getsignal(number)
            if number == getattr(signal, "SIGHUP", None) and before == signal.SIG_IGN:
                continue
            try:
                signal.signal(number, self._handle)
            except ValueError:  # not the main thread: nothing to catch here
                return self
            self._before[number] = before
        StopSignals._active = self
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if StopSignals._active is not self:
            return
        StopSignals._active = None
        for number, before in self._before.items():
            signal.signal(number, before)
        if kind is Stopped:
            log.warning("%s: stopped where no step was under way, no step is lost", self.received)
        elif kind is None and self.received is not None and not self._is_answered:
            raise Stopped(self.received)
