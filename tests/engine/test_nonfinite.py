import json
import os
import signal
from functools import partial
from multiprocessing import active_children

import pytest
import torch
from torch import nn

from handmim.engine.checkpoint import load_checkpoint
from handmim.engine.step import NotFiniteError
from handmim.engine.trainer import LoadingError, Trainer
from handmim.models.teacher import Centering
from handmim.types import StepResult
from handmim.utils.run import Run
from tests.engine.faulty import Faulty
from tests.engine.toy import DATA, TASKS, ToyTask, collate, optimizer_config, prepare, rows
from tests.engine.toy import fit as fit_toy


class Averaging(ToyTask):
    """Follows its input in the forward pass, as running averages do, and notes it for a centre;
    some steps are not finite."""

    def __init__(self, poison: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.average = nn.BatchNorm1d(3)
        self.centre = Centering(3)
        self.poison = poison

    def forward(self, batch, info):
        x = self.average(batch.x)
        self.centre.follow(x.detach().mean(dim=0), len(x))
        result = super().forward(batch._replace(x=x), info)
        bad = float("nan") if info.step in self.poison else 1.0
        return StepResult(result.loss * bad, result.scalars)

    def after_step(self, info):
        self.centre.move()
        return super().after_step(info)


def poisoned(*steps):
    return partial(Averaging, poison=steps)


def same(a: nn.Module, b: nn.Module) -> bool:
    there = b.state_dict()
    return all(torch.equal(value, there[name]) for name, value in a.state_dict().items())


def fit(folder, data, resume="never", **kwargs):
    run = Run.start("toy", folder, 0, {"x": 1}, accelerator="cpu", resume=resume)
    task = ToyTask()
    settings = {"max_steps": 10, "batch_size": 4, "log_every": 2} | kwargs
    Trainer(**settings).fit(run, task, data, collate, prepare, optimizer_config(), resume=resume)
    return task


def test_a_refused_step_leaves_no_trace_and_the_run_is_saved_before_it(tmp_path):
    with pytest.raises(NotFiniteError, match=r"resume=auto trainer\.nonfinite=skip"):
        fit_toy(tmp_path / "bad", make=poisoned(5))
    fit_toy(tmp_path / "good", make=Averaging, stop_after=5)
    bad, good = (load_checkpoint(tmp_path / name / "last.pt") for name in ("bad", "good"))
    assert bad["step"] == good["step"] == 5
    assert all(torch.equal(bad["task"][name], good["task"][name]) for name in good["task"])
    assert same(TASKS[-2], TASKS[-1])
    text = json.loads((tmp_path / "bad" / "run.json").read_text())["stopped"]
    assert text["step"] == 5
    assert "not finite at step 5" in text["reason"]


def test_a_stopped_run_goes_on_past_the_step_it_refused(tmp_path):
    whole, _ = fit_toy(tmp_path / "whole", make=poisoned(5), nonfinite="skip")
    with pytest.raises(NotFiniteError):
        fit_toy(tmp_path / "parts", make=poisoned(5))
    rest, result = fit_toy(tmp_path / "parts", make=poisoned(5), nonfinite="skip", resume="auto")
    assert (result.step, result.interrupted) == (10, False)
    assert same(whole, rest)


@pytest.mark.parametrize("stop", [4, 6, 8])
def test_skipped_steps_are_counted_named_and_the_same_after_resuming(tmp_path, stop):
    whole, result = fit_toy(tmp_path / "whole", make=poisoned(3, 5), nonfinite="skip")
    assert result.scalars["data/skipped_steps"] == 2
    assert len(whole.seen) == 10
    kept = load_checkpoint(tmp_path / "whole" / "last.pt")
    assert kept["ledger"]["skipped"] == [3, 5]
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["left_out"]["skipped"] == [
        3,
        5,
    ]
    assert "step 5 is skipped: the loss" in (tmp_path / "whole" / "log.txt").read_text()
    fit_toy(tmp_path / "parts", make=poisoned(3, 5), nonfinite="skip", stop_after=stop)
    parts, _ = fit_toy(tmp_path / "parts", make=poisoned(3, 5), nonfinite="skip", resume="auto")
    assert same(whole, parts)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


def test_a_skipped_step_changes_nothing_but_the_count(tmp_path):
    poisoned_task, _ = fit_toy(tmp_path, make=poisoned(9), nonfinite="skip")
    clean, _ = fit_toy(tmp_path / "clean", make=Averaging, stop_after=9)
    assert same(poisoned_task, clean)


def test_a_run_that_only_skips_is_stopped_and_saved(tmp_path):
    with pytest.raises(NotFiniteError, match="half of the 20 steps before it were skipped"):
        fit_toy(tmp_path, make=poisoned(*range(2, 20)), nonfinite="skip", max_steps=20)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 12


def test_rewinding_goes_on_from_the_last_checkpoint_without_the_step(tmp_path):
    """No step is checked before its update, as on a GPU: the weights are lost when the
    poison of step 5 is found after step 7."""
    how = {"check_finite_every": 100, "log_every": 8, "save_every": 2}
    lazy, result = fit_toy(tmp_path / "lazy", make=poisoned(5), nonfinite="rewind", **how)
    assert result.step == 10
    at_once, _ = fit_toy(tmp_path / "at_once", make=poisoned(5), nonfinite="skip")
    assert same(lazy, at_once)
    assert load_checkpoint(tmp_path / "lazy" / "last.pt")["ledger"]["skipped"] == [5]
    text = (tmp_path / "lazy" / "log.txt").read_text()
    assert "back to step 4, step 5 is skipped" in text
    steps = [row["step"] for row in rows(tmp_path / "lazy")]
    assert steps == sorted(set(steps))


def test_rewinding_has_a_checkpoint_from_the_first_step_on_and_an_end(tmp_path):
    one, _ = fit_toy(tmp_path / "one", make=poisoned(1), nonfinite="rewind")
    skipped, _ = fit_toy(tmp_path / "skip", make=poisoned(1), nonfinite="skip")
    assert same(one, skipped)
    with pytest.raises(NotFiniteError):
        fit_toy(tmp_path / "all", make=poisoned(*range(20)), nonfinite="rewind", max_steps=20)


def test_rewinding_returns_to_what_was_resumed_not_to_a_later_end(tmp_path):
    how = {"check_finite_every": 100, "log_every": 8}
    fit_toy(tmp_path, make=Averaging, keep_every=2, **how)
    step_file = str(tmp_path / "step_0000004.pt")
    late, result = fit_toy(tmp_path, make=poisoned(5), nonfinite="rewind", resume=step_file, **how)
    assert result.step == 10
    assert "back to step 4, step 5 is skipped" in (tmp_path / "log.txt").read_text()
    at_once, _ = fit_toy(tmp_path / "at_once", make=poisoned(5), nonfinite="skip")
    assert same(late, at_once)


def test_what_is_found_by_a_save_on_request_is_rewound(tmp_path):
    how = {"check_finite_every": 100, "log_every": 100, "save_every": 4}
    _, result = fit_toy(tmp_path, make=poisoned(5), nonfinite="rewind", stop_after=7, **how)
    assert (result.step, result.stopped_by) == (7, "stop_after")
    kept = load_checkpoint(tmp_path / "last.pt")
    assert (kept["step"], kept["ledger"]["skipped"]) == (7, [5])


def test_a_validation_that_fails_ends_the_run_saved(tmp_path):
    class Broken:
        every, at_start = 5, False

        def __call__(self, task, info, run):
            raise KeyError("no label")

    with pytest.raises(KeyError):
        fit_toy(tmp_path, hooks=[Broken()])
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 5


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"nonfinite": "ignore"}, "nonfinite must be one of"),
        ({"max_unreadable": 2}, "max_unreadable"),
    ],
)
def test_policies_are_checked_at_the_start(settings, key):
    with pytest.raises(ValueError, match=key):
        Trainer(max_steps=1, batch_size=1, **settings)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_other_samples_stand_in_for_unreadable_ones(tmp_path, num_workers, caplog):
    data = Faulty("unreadable", (3,))
    how = {"num_workers": num_workers, "save_every": 2}
    whole = fit(tmp_path / "whole", data, **how)
    assert [len(batch) for batch in whole.seen] == [4] * 10
    assert 0.3 not in {round(x, 3) for batch in whole.seen for x in batch}
    logged = rows(tmp_path / "whole")
    times = logged[-1]["data/replaced"]
    assert times == 4 or times == 3  # 40 draws of 11 samples
    noted = json.loads((tmp_path / "whole" / "run.json").read_text())["left_out"]
    assert noted["unreadable"] == {"3.jpg": "cut short"}
    text = (tmp_path / "whole" / "log.txt").read_text()
    assert text.count("takes another sample: 3.jpg: cut short") == 1
    fit(tmp_path / "parts", data, stop_after=5, **how)
    parts = fit(tmp_path / "parts", data, resume="auto", **how)
    assert same(whole, parts)
    assert rows(tmp_path / "parts")[-1]["data/replaced"] == times


def test_too_many_unreadable_samples_end_the_run_saved(tmp_path):
    flag = tmp_path / "flag"

    class Later(Faulty):
        """The mount is lost when the fifth batch is due."""

        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            if self.reads == 17:
                flag.touch()
            return super().__getitem__(index)

    data = Later("unreadable", tuple(range(11)), flag)
    with pytest.raises(LoadingError, match=r"step 4 cannot be loaded: .*\.jpg.*resume=auto"):
        fit(tmp_path / "run", data)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 4
    flag.unlink()
    whole = fit(tmp_path / "whole", Faulty("unreadable", ()))
    assert same(whole, fit(tmp_path / "run", Faulty("unreadable", ()), resume="auto"))


def test_a_share_of_unreadable_samples_may_be_allowed(tmp_path):
    data = Faulty("unreadable", (3, 4))
    with pytest.raises(ValueError, match=r"2 of 11 samples cannot be read.*max_unreadable"):
        fit(tmp_path / "few", data, max_unreadable=0.1)
    fit(tmp_path / "many", data, max_unreadable=0.2)
    with pytest.raises(ValueError, match="jpg: cut short"):
        fit(tmp_path / "none", data, max_unreadable=0.0)


def test_a_worker_that_dies_ends_the_run_saved(tmp_path):
    class Hook:
        every, at_start = 5, False

        def __call__(self, task, info, run):
            for worker in active_children():
                os.kill(worker.pid, signal.SIGKILL)
            return {}

    run = Run.start("toy", tmp_path, 0, {"x": 1}, accelerator="cpu")
    fit = partial(Trainer(max_steps=30, batch_size=4, num_workers=1).fit, run, ToyTask(), DATA)
    with pytest.raises(LoadingError, match=r"loader worker \d+ was ended by SIGKILL.*resume=auto"):
        fit(collate, prepare, optimizer_config(), hooks=[Hook()])
    assert load_checkpoint(tmp_path / "last.pt")["step"] >= 5


def test_a_fault_inside_a_step_saves_nothing(tmp_path):
    class Broken(ToyTask):
        def forward(self, batch, info):
            if info.step == 5:
                raise RuntimeError("out of memory")
            return super().forward(batch, info)

    with pytest.raises(RuntimeError, match="out of memory"):
        fit_toy(tmp_path, make=Broken, save_every=2)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4


class Exploding(ToyTask):
    """The update of some steps takes the weights beyond every number; their losses are finite."""

    def __init__(self, bad: tuple[int, ...]) -> None:
        super().__init__()
        self.bad = bad

    def after_step(self, info):
        if info.step in self.bad:
            with torch.no_grad():
                self.linear.weight.fill_(float("inf"))
        return super().after_step(info)


def whole(folder) -> list[bool]:
    states = [load_checkpoint(path)["task"] for path in folder.glob("*[a-z].pt")]
    return [bool(value.isfinite().all()) for state in states for value in state.values()]


@pytest.mark.parametrize("policy", ["stop", "skip", "rewind"])
@pytest.mark.parametrize("every", [1, 100])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, policy, every):
    how = {"nonfinite": policy, "save_every": 1, "max_steps": 12, "check_finite_every": every}
    with pytest.raises(NotFiniteError, match="weights are lost since"):
        fit_toy(tmp_path, make=partial(Exploding, tuple(range(12))), **how)
    assert all(whole(tmp_path))
    assert policy == "stop" or not list(tmp_path.glob("nonfinite*"))


@pytest.mark.parametrize("save_every", [1, 4, None])
def test_a_step_that_breaks_the_weights_is_rewound(tmp_path, save_every):
    how = {"save_every": save_every, "log_every": 1}
    make = partial(Exploding, (5,))
    task, result = fit_toy(tmp_path, make=make, nonfinite="rewind", **how)
    assert result.step == 10
    assert bool(task.linear.weight.isfinite().all())
    assert load_checkpoint(tmp_path / "last.pt")["ledger"]["skipped"] == [5]


def test_a_last_step_that_breaks_the_weights_is_no_finished_run(tmp_path):
    with pytest.raises(NotFiniteError, match="not finite at step 9"):
        fit_toy(tmp_path, make=partial(Exploding, (9,)), save_every=4)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 8


def test_a_short_run_that_only_skips_is_stopped_too(tmp_path):
    with pytest.raises(NotFiniteError, match="steps before it were skipped"):
        fit_toy(tmp_path, make=poisoned(*range(1, 6)), nonfinite="skip", max_steps=6)


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_a_run_half_of_whose_steps_are_skipped_has_an_end(tmp_path, policy):
    how = {"nonfinite": policy, "save_every": 1, "max_steps": 60}
    with pytest.raises(NotFiniteError):
        fit_toy(tmp_path, make=poisoned(*range(1, 60, 2)), **how)
    assert len(load_checkpoint(tmp_path / "last.pt")["ledger"]["skipped"]) == 10
    assert len(list(tmp_path.glob("nonfinite_step_*.pt"))) == 3
