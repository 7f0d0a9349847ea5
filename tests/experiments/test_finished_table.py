"""A table that was finished before results had a format number is still shown.

tests/golden/finished_table was written by `python tools/ablate.py table=objectives budget=smoke` on
16 renders, before handmim/experiments existed.
"""

import csv
import shutil

import pytest

from handmim.experiments.runner import dry_run_lines, read_plan, run_table
from tests.experiments.conftest import REPO, composed

KEPT = REPO / "tests" / "golden" / "finished_table"
NAME = "objectives-renders-smoke"


@pytest.fixture
def plan(tmp_path, hydra_configs):
    shutil.copytree(KEPT, tmp_path / "ablations")
    given = {"table": "objectives", "name": NAME, "budget": "smoke", "seeds": 1}
    given |= {"variants": ["random", "class_recon"], "paths.run_root": str(tmp_path)}
    return read_plan(composed(hydra_configs, "experiments", given))


def test_a_finished_table_of_the_first_format_is_shown_as_it_was(plan):
    def no_run(runs, finished):
        raise AssertionError(runs)

    assert run_table(plan, no_run) == []
    kept, shown = (
        list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
        for folder in (KEPT / NAME, plan.folder)
    )
    assert [row["variant"] for row in shown] == [row["row"] for row in kept]
    keys = kept[0].keys() - {"row", "label"}
    assert [{k: row[k] for k in keys} for row in shown] == [
        {k: row[k] for k in keys} for row in kept
    ]
    assert "by an older version" in (plan.folder / "table.md").read_text()


def test_results_of_the_first_format_are_made_again_on_request(plan):
    assert "0 of 2 runs to make" in dry_run_lines(plan.chosen())[-1]
    assert "2 of 2 runs to make" in dry_run_lines(plan.chosen(), overwrite=True)[-1]
