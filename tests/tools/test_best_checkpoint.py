"""From a config to the best checkpoint, and from it to the figures it was kept for."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from handmim.pipelines.evaluate import evaluate
from handmim.pipelines.train import finetune, validations
from tests.tools.calls import FINETUNE, REPO, TINY, scalars, small_data

PARTS = ["task.average={decay: 0.9}", "task.trained_blocks=1", "task.backbone.drop_path_rate=0.1"]


def composed(entry: str, overrides: list[str]):
    with initialize_config_dir(str(REPO / "configs"), version_base="1.3"):
        return compose(entry, overrides=overrides)


def config(workdir: Path, *overrides: str):
    own = [w for w in small_data(workdir) if not w.startswith("hydra")]
    return composed("finetune", [*FINETUNE, *TINY, *own, "eval_every=1", *PARTS, *overrides])


@pytest.fixture(scope="module")
def made(workdir):
    # a rate at which the error is larger in the end than before
    return finetune(config(workdir, "name=best", "optim.lr.start=0.02"))


def test_best_and_last_figures_are_both_returned(made):
    logged = {r["step"]: r for r in scalars(made.run_dir) if "val/pa_mpvpe_mm" in r}
    assert sorted(logged) == [1, 2, 3, 4]
    best = min(logged.values(), key=lambda row: row["val/pa_mpvpe_mm"])
    assert made.result.best == ("val/pa_mpvpe_mm", best["val/pa_mpvpe_mm"], best["step"])
    assert best["step"] < 4
    assert made.best_metrics["mpjpe_mm"] == best["val/mpjpe_mm"]
    assert made.metrics["mpjpe_mm"] == logged[4]["val/mpjpe_mm"]
    assert made.best_metrics.keys() == made.metrics.keys()
    assert "loss" not in made.best_metrics
    facts = json.loads((made.run_dir / "run.json").read_text())
    assert facts["best"] == made.result.best._asdict()
    text = (made.run_dir / "log.txt").read_text()
    assert f"checkpoint={made.run_dir / 'best.pt'}" in text


@pytest.mark.parametrize("which", ["best", "last"])
def test_scoring_a_checkpoint_gives_what_it_was_kept_for(workdir, made, which):
    overrides = [f"checkpoint={made.run_dir / f'{which}.pt'}", *TINY[:2], f"name=scored_{which}"]
    overrides.append(f"paths.run_root={workdir / 'runs'}")
    figures = evaluate(composed("eval", overrides))
    kept = made.best_metrics if which == "best" else made.metrics
    assert figures["pa_mpvpe_mm"] == pytest.approx(kept["pa_mpvpe_mm"], rel=1e-4)


def test_patience_ends_a_run_that_goes_on_with_more(workdir):
    overrides = ["name=patient", "optim.lr.start=0.02"]
    stopped = finetune(config(workdir, *overrides, "trainer.stop_patience=1"))
    assert stopped.result.reason is not None
    assert stopped.result.step < 4
    assert "score it" in (stopped.run_dir / "log.txt").read_text()
    whole = finetune(config(workdir, *overrides, "trainer.stop_patience=9", "resume=auto"))
    assert (whole.result.step, whole.result.reason) == (4, None)


def test_where_nothing_is_kept_the_last_is_scored(workdir):
    made = finetune(config(workdir, "name=unkept", "trainer.keep_best=null"))
    assert made.best_metrics == {}
    assert not (made.run_dir / "best.pt").exists()
    assert f"checkpoint={made.run_dir / 'last.pt'}" in (made.run_dir / "log.txt").read_text()


def test_figures_of_a_step(tmp_path):
    rows = [{"step": 2, "val/a": 1.0}, {"step": 4, "loss": 0.5, "val/a": 2.0, "val/b": 3.0}]
    (tmp_path / "scalars.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert validations(tmp_path) == {2: {"a": 1.0}, 4: {"a": 2.0, "b": 3.0}}
