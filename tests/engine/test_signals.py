import os
import signal

import pytest

from handmim.engine.checkpoint import load_checkpoint
from handmim.engine.workers import Stopped, StopSignals
from tests.engine.toy import ToyTask, fit

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


@pytest.fixture(autouse=True)
def _hangups_are_not_ignored():
    """As they are where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class Sending:
    """A hook that sends this process a signal after a step."""

    at_start, every = True, 1

    def __init__(self, name: str, step: int, num: int = 1) -> None:
        self.name, self.step, self.num = name, step, num

    def __call__(self, task, info, run):
        for _ in range(self.num if info.step == self.step else 0):
            os.kill(os.getpid(), getattr(signal, self.name))
        return {}


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_ends_the_run_saved_with_its_exit_code(name, tmp_path):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    _, result = fit(tmp_path, hooks=[Sending(name, 4)])
    assert (result.step, result.interrupted, result.stopped_by) == (4, True, name)
    assert result.exit_code == 128 + number
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_before_the_first_step_ends_the_start(name, tmp_path):
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path, hooks=[Sending(name, 0)])
    assert ended.value.code == 128 + getattr(signal, name)
    assert not (tmp_path / "last.pt").exists()
    assert fit(tmp_path, resume="auto")[1].exit_code == 0


def test_a_second_interrupt_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, hooks=[Sending("SIGINT", 4, num=2)], save_every=2)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 2


def test_a_second_signal_of_another_kind_does_not_hinder_the_save(tmp_path):
    class Both(ToyTask):
        def after_step(self, info):
            if info.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGUSR1)
            return super().after_step(info)

    _, result = fit(tmp_path, make=Both)
    assert (result.step, result.stopped_by) == (4, "SIGTERM")


def test_a_signal_after_the_last_step_ends_the_process_when_all_is_written(tmp_path):
    results = []

    def whole() -> None:
        with StopSignals():
            results.append(fit(tmp_path, hooks=[Sending("SIGTERM", 10)])[1])

    with pytest.raises(Stopped) as ended:
        whole()
    assert results[0].exit_code == 0, "nothing is missing, the export follows"
    assert ended.value.code == 128 + signal.SIGTERM


def test_what_nohup_ignores_is_left_alone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_that_a_platform_lacks_are_not_asked_for(monkeypatch, tmp_path):
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "pthread_sigmask"):
        monkeypatch.delattr(signal, name)
    _, result = fit(tmp_path, hooks=[Sending("SIGTERM", 4)])
    assert (result.step, result.exit_code) == (4, 128 + signal.SIGTERM)
