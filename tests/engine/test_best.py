import json
import logging
import math
import shutil

import pytest
import torch

from handmim.engine.checkpoint import load_checkpoint
from handmim.engine.saver import BestTracker
from handmim.engine.trainer import Trainer
from tests.engine.toy import fit, rows

MM = "val/pa_mpvpe_mm"


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        ("val/pa_mpvpe_mm", False),
        ("val/mpjpe_mm", False),
        ("val/err2d_percent", False),
        ("val/loss", False),
        ("val/face_mm", False),
        ("val/auc_folder/mpjpe_mm", False),
        ("val/pa_auc_joints", True),
        ("val/auc_verts", True),
        ("val/pck10", True),
        ("val/pck", True),
        ("val/f5", True),
        ("val/pa_f15", True),
    ],
)
def test_which_metrics_are_good_when_large(metric, higher):
    best = BestTracker(metric)
    assert best.update(1, {metric: 1.0})
    assert best.update(2, {metric: 2.0}) is higher


def test_auto_takes_the_mesh_before_joints_before_the_picture():
    rule = BestTracker("auto")
    metrics = {"val/err2d_percent": 1.0, "val/pa_mpjpe_mm": 2.0, "val/num_2d": 8.0, "loss": 0.0}
    assert rule.choose(metrics | {MM: 3.0}) == MM
    assert rule.choose(metrics) == "val/pa_mpjpe_mm"
    assert rule.choose({"val/err2d_percent": 1.0}) == "val/err2d_percent"
    assert rule.choose({"probe/x": 1.0}) is None  # another hook's
    assert rule.choose({}) is None
    assert BestTracker().choose(metrics) is None
    with pytest.raises(ValueError, match=r"no val/pa_mpvpe_mm or .*it has val/f5 \(trainer.keep"):
        rule.choose({"val/f5": 0.3, "val/num_samples": 8.0})


@pytest.mark.parametrize("name", ["val/pa_mpvpe", "val/num_2d"])
def test_an_unknown_metric_is_refused_with_those_there_are(name):
    metrics = {MM: 3.0, "val/f5": 0.1, "val/num_2d": 8.0}
    message = rf"no {name}, it has val/f5, {MM} \(trainer\.keep_best"
    with pytest.raises(ValueError, match=message):
        BestTracker(name).choose(metrics)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_best": "pa_mpvpe_mm"}, r"keep_best .*validation metric such as .*'pa_mpvpe_mm'"),
        ({"keep_best": "auto", "stop_patience": 0}, r"stop_patience must be >= 1, got 0"),
        ({"stop_patience": 3}, r"keep_best=null names none"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused_before_training(settings, message):
    with pytest.raises(ValueError, match=message):
        Trainer(max_steps=1, batch_size=1, **settings)


def test_only_a_finite_and_better_value_is_the_best():
    best = BestTracker("val/f5")
    seen = [best.update(i, {"val/f5": v}) for i, v in enumerate((math.nan, 0.5, 0.5, 0.4, 0.6))]
    assert seen == [False, True, False, False, True]
    assert best.best == ("val/f5", 0.6, 4)
    assert not best.update(5, {"val/f5": math.nan})
    assert not best.update(6, {"val/f5": math.inf})
    falling = BestTracker(MM)
    assert [falling.update(i, {MM: v}) for i, v in enumerate((3.0, 4.0, 2.0))] == [
        True,
        False,
        True,
    ]


def test_another_metric_than_before_begins_anew():
    best = BestTracker("auto", stop_patience=2)
    best.update(1, {MM: 3.0, "val/err2d_percent": 50.0})
    best.update(2, {MM: 4.0})
    assert best.update(3, {"val/err2d_percent": 60.0})
    assert best.best == ("val/err2d_percent", 60.0, 3)
    assert not best.update(4, {"val/err2d_percent": 61.0})
    assert best.reason is None


def test_another_number_of_samples_than_before_begins_anew(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("handmim"), "propagate", True)  # a run's log is its own
    best = BestTracker("auto", stop_patience=2)
    best.update(1, {MM: 3.0, "val/num_samples": 8.0, "val/num_2d": 9})
    best.update(2, {MM: 4.0, "val/num_samples": 8.0, "val/num_2d": 9})
    again = BestTracker("auto", stop_patience=2)
    again.load_state_dict(best.state_dict())
    assert not caplog.records
    assert again.update(3, {MM: 5.0, "val/num_samples": 4.0, "val/num_2d": 9})
    assert again.best == (MM, 5.0, 3)
    (text,) = {record.getMessage() for record in caplog.records}
    assert f"{MM} of num_2d 9, num_samples 4 is what counts from now on" in text
    assert f"not {MM} of num_2d 9, num_samples 8" in text
    assert not again.update(4, {MM: 6.0, "val/num_samples": 4.0, "val/num_2d": 9})
    assert again.reason is None


def test_a_checkpoint_that_knows_no_number_of_samples_goes_on():
    best = BestTracker("auto")
    kept = {"metric": MM, "value": 3.0, "step": 2}
    best.load_state_dict({"figure": kept, "waited": 1})
    assert not best.update(4, {MM: 4.0, "val/num_samples": 8.0})
    assert best.best == (MM, 3.0, 2)


class Scripted:
    """A validation every two steps that reads its metrics from a list."""

    every, at_start = 2, False

    def __init__(self, *values: float, metric: str = MM, num: float = 1.0) -> None:
        self.values, self.metric, self.num = values, metric, num

    def __call__(self, task, info, run):
        return {self.metric: self.values[info.step // 2 - 1], "val/num_samples": self.num}


VALUES = (5.0, 3.0, 4.0, 3.5, 2.0)  # after 2, 4, 6, 8, 10 steps


def test_best_pt_holds_the_best_step_and_last_pt_the_last(tmp_path):
    _, result = fit(tmp_path, hooks=[Scripted(*VALUES[:4], 3.2)], keep_best="auto")
    best, last = (load_checkpoint(tmp_path / name) for name in ("best.pt", "last.pt"))
    assert (best["step"], last["step"]) == (4, 10)
    kept = {"metric": MM, "value": 3.0, "step": 4}
    counts = {"val/num_samples": 1}
    assert last["best"] == {"figure": kept, "counts": counts, "waited": 3}
    assert best["best"] == {"figure": kept, "counts": counts, "waited": 0}
    assert json.loads((tmp_path / "run.json").read_text())["best"] == kept
    assert result.best == (MM, 3.0, 4)
    assert (result.interrupted, result.reason) == (False, None)
    assert f"best {MM}: 3 after step 4" in (tmp_path / "log.txt").read_text()
    stopped, _ = fit(tmp_path.parent / "four", stop_after=4)
    assert torch.equal(best["task"]["linear.weight"], stopped.linear.weight)


def test_without_a_metric_to_keep_nothing_is_kept(tmp_path):
    _, result = fit(tmp_path, hooks=[Scripted(*VALUES)])
    assert result.best is None
    assert not (tmp_path / "best.pt").exists()
    assert "best" not in json.loads((tmp_path / "run.json").read_text())


def same_content(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_content(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same_content(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("stop", [1, 4, 5, 7])
@pytest.mark.parametrize("values", [VALUES, (2.0, 3.0, 4.0, 3.5, 5.0)])
def test_stopped_and_resumed_keeps_the_same_best(tmp_path, stop, values):
    how = {"hooks": [Scripted(*values)], "keep_best": "auto"}
    _, whole = fit(tmp_path / "whole", **how)
    fit(tmp_path / "parts", stop_after=stop, **how)
    _, parts = fit(tmp_path / "parts", resume="auto", **how)
    assert parts.best == whole.best
    for name in ("best.pt", "last.pt"):
        one, other = (load_checkpoint(tmp_path / f / name) for f in ("whole", "parts"))
        assert same_content(one, other), name
    if stop % 2 == 0:
        assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_checkpoint_that_remembers_the_best_is_written_with_it(tmp_path):
    class Killed(Scripted):
        def __call__(self, task, info, run):
            if info.step == 6:
                raise KeyboardInterrupt
            return super().__call__(task, info, run)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, hooks=[Killed(*VALUES)], keep_best="auto")
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4  # save_every is null
    _, result = fit(tmp_path, hooks=[Scripted(*VALUES[:4], 9.0)], keep_best="auto", resume="auto")
    assert result.best == (MM, 3.0, 4)


def test_a_best_that_is_not_in_the_folder_is_not_remembered(tmp_path):
    fit(tmp_path / "a", hooks=[Scripted(*VALUES)], keep_best="auto", stop_after=5)
    elsewhere = tmp_path / "b"
    source = str(tmp_path / "a" / "last.pt")
    _, result = fit(elsewhere, hooks=[Scripted(0, 0, 7.0, 8, 9)], keep_best="auto", resume=source)
    assert result.best == (MM, 7.0, 6)
    assert load_checkpoint(elsewhere / "best.pt")["step"] == 6


def test_a_resumed_run_with_another_validation_set_has_a_best_of_its_own(tmp_path):
    fit(tmp_path, hooks=[Scripted(*VALUES)], keep_best="auto", stop_after=5)
    hook = Scripted(0.0, 0.0, 9.0, 8.0, 8.5, num=2.0)
    _, result = fit(tmp_path, hooks=[hook], keep_best="auto", resume="auto")
    assert result.best == (MM, 8.0, 8)
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 8


def test_going_on_from_an_older_checkpoint_forgets_a_best_that_came_later(tmp_path):
    hook = Scripted(3.0, 2.0, 1.0, 4.0, 5.0)
    fit(tmp_path, hooks=[hook], keep_best="auto", keep_every=4)
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 6
    other = Scripted(0.0, 0.0, 7.0, 6.0, 8.0)
    older = str(tmp_path / "step_0000004.pt")  # remembers 2.0 after step 4, which is overwritten
    _, result = fit(tmp_path, hooks=[other], keep_best="auto", resume=older)
    assert result.best == (MM, 6.0, 8)
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 8


@pytest.mark.parametrize("left", ["ahead", "of another value", "torn"])
def test_a_best_pt_that_is_not_the_remembered_one_is_forgotten(tmp_path, left):
    how = {"keep_best": "auto"}
    fit(tmp_path / "a", hooks=[Scripted(3.0, 4.0, 5.0, 5.0, 5.0)], stop_after=4, **how)
    if left == "torn":
        torn = tmp_path / "a" / "best.pt"
        torn.write_bytes(torn.read_bytes()[:-200])
    else:  # killed between best.pt and last.pt; or another run's of the same step
        ahead = left == "ahead"
        values = (3.0, 4.0, 1.0) if ahead else (1.0, 2.0, 2.0)
        fit(tmp_path / "b", hooks=[Scripted(*values)], stop_after=6, **how)
        shutil.copy(tmp_path / "b" / "best.pt", tmp_path / "a" / "best.pt")
    _, result = fit(tmp_path / "a", hooks=[Scripted(0, 0, 7.0, 6.0, 8.0)], resume="auto", **how)
    assert result.best == (MM, 6.0, 8)
    assert load_checkpoint(tmp_path / "a" / "best.pt")["step"] == 8


def test_an_unknown_metric_ends_training_at_the_first_validation(tmp_path):
    hook = Scripted(*VALUES)
    with pytest.raises(ValueError, match=rf"no val/f5, it has {MM}"):
        fit(tmp_path, hooks=[hook], keep_best="val/f5")
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 2
    assert rows(tmp_path)[-1][MM] == 5.0
    assert "step 2, go on with resume=auto" in (tmp_path / "log.txt").read_text()
    _, result = fit(tmp_path, hooks=[hook], keep_best=MM, resume="auto")
    assert (result.step, result.best) == (10, (MM, 2.0, 10))


def test_patience_stops_the_run_which_can_go_on_with_more(tmp_path):
    hook = Scripted(3.0, 4.0, 5.0, 2.0, 1.0)
    _, result = fit(tmp_path / "a", hooks=[hook], keep_best="auto", stop_patience=2)
    assert (result.step, result.interrupted) == (6, True)
    assert result.reason is not None
    assert result.reason.startswith(f"{MM} did not improve in 2 validations")
    assert "trainer.stop_patience" in result.reason
    facts = json.loads((tmp_path / "a" / "run.json").read_text())
    assert facts["stopped"] == {"step": 6, "reason": result.reason}
    assert facts["best"] == {"metric": MM, "value": 3.0, "step": 2}
    assert load_checkpoint(tmp_path / "a" / "last.pt")["step"] == 6
    more = {"keep_best": "auto", "stop_patience": 3}
    _, result = fit(tmp_path / "a", hooks=[hook], resume="auto", **more)
    assert (result.step, result.reason, result.best) == (10, None, (MM, 1.0, 10))
    assert "stopped" not in json.loads((tmp_path / "a" / "run.json").read_text())
    fit(tmp_path / "b", hooks=[hook], **more)
    for name in ("best.pt", "last.pt"):
        one, other = (load_checkpoint(tmp_path / f / name) for f in ("a", "b"))
        assert same_content(one, other), name


def test_waiting_goes_on_where_it_was_and_steps_between_validations_do_not_count(tmp_path):
    hook = Scripted(3.0, 4.0, 5.0, 6.0, 7.0)
    how = {"hooks": [hook], "keep_best": "auto", "stop_patience": 3}
    fit(tmp_path, stop_after=5, **how)
    _, result = fit(tmp_path, resume="auto", **how)
    assert result.step == 8
    _, again = fit(tmp_path, resume="auto", stop_after=1, **how)
    assert (again.step, again.reason) == (9, None)


def test_a_run_that_is_over_was_not_stopped(tmp_path):
    _, result = fit(tmp_path, hooks=[Scripted(1, 2, 3, 4, 5)], keep_best="auto", stop_patience=4)
    assert (result.step, result.interrupted, result.reason) == (10, False, None)
