"""Two processes on gloo: every method, head and loss trains, and gives what one process gives."""

import json
import math

import pytest
import torch

from handmim.utils.run import Run
from tests.engine.launched import outcome, start
from tests.engine.rank_cases import NOT_SAME, QUICK, cases
from tests.engine.rank_worker import MANY, many_steps, same_batch

SAME = [name for name in cases() if name not in NOT_SAME]
QUICK_SAME = (
    "method=handmim", "head=pymaf_exact", "local crops of SwAV, a queue", "local crops of LeJEPA",
)  # fmt: skip
OF_ALL = ("objective=sigreg", "SIGReg of patches")  # the statistic of all processes' embeddings


def of_two(folder, *jobs: str) -> tuple[dict, dict]:
    """What jobs left on both processes."""
    started = start(["-m", "tests.engine.rank_worker", str(folder), *jobs])
    for code, text in outcome(started):
        assert code == 0, text[-3000:]
    first, second = (json.loads((folder / f"rank{r}.json").read_text()) for r in (0, 1))
    return first, second


def alone(folder) -> Run:
    torch.set_num_threads(1)
    return Run.start("alone", folder / "alone", 0, {}, accelerator="cpu")


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> tuple[dict, dict]:
    jobs = [f"own:{name}" for name in QUICK] + [f"same:{name}" for name in QUICK_SAME]
    more = ["many:method=peclr", "own:idle part", "logged:"]
    return of_two(tmp_path_factory.mktemp("two"), *jobs, *more)


def check_trained(name: str, first: dict, second: dict) -> None:
    assert "error" not in first, (name, first)
    assert all(math.isfinite(loss) for loss in (*first["losses"], *second["losses"])), name
    if any(first["losses"]):  # the prior costs labelled hands nothing
        # Each had a batch of its own.
        assert (first["losses"] == second["losses"]) == (name in OF_ALL), name
    assert first["digest"] == second["digest"], name


def check_same(first: dict, second: dict, whole: dict) -> None:
    assert "error" not in first, first
    means = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert means == pytest.approx(whole["losses"], rel=1e-4)


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_train_one_network(quick, name):
    check_trained(name, *(found[f"own:{name}"] for found in quick))


@pytest.mark.parametrize("name", QUICK_SAME)
def test_two_processes_give_the_losses_of_one(quick, name, tmp_path):
    whole = same_batch(alone(tmp_path), cases()[name])
    check_same(*(found[f"same:{name}"] for found in quick), whole)


def test_peclr_stays_with_one_process_over_many_steps(quick, tmp_path):
    whole = many_steps(alone(tmp_path), cases()["method=peclr"])
    assert len(whole["losses"]) == MANY
    check_same(*(found["many:method=peclr"] for found in quick), whole)


def test_a_part_without_a_loss_is_named(quick):
    for found in quick:
        text = found["own:idle part"]["error"]
        assert "objectives.keypoint_align.delta.0.weight" in text
        assert "machine.devices=1" in text


def test_logged_scalars_are_means_over_processes(quick):
    for found in quick:  # values 1 | 3, 5; a name of one process does not stop the other
        assert found["logged:"] == {"loss": 3.0, "only/0": 1.0, "only/1": 4.0}


@pytest.mark.slow
def test_every_method_head_and_loss_trains_on_two_processes(tmp_path):
    first, second = of_two(tmp_path, *(f"own:{name}" for name in cases()))
    for name in cases():
        check_trained(name, first[f"own:{name}"], second[f"own:{name}"])


@pytest.mark.slow
def test_every_method_head_and_loss_gives_the_losses_of_one_process(tmp_path):
    first, second = of_two(tmp_path, *(f"same:{name}" for name in SAME))
    run = alone(tmp_path)
    for name in SAME:
        whole = same_batch(run, cases()[name])
        check_same(first[f"same:{name}"], second[f"same:{name}"], whole)
