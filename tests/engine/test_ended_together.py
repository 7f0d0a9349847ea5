"""Two processes, one of which meets what ends the run: both end alike, and the run is saved."""

import json

import pytest

from tests.engine.launched import outcome, start


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ends")
    for code, text in outcome(start(["-m", "tests.engine.ended_worker", str(folder)])):
        assert code == 0, text[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_a_batch_that_one_process_cannot_load_ends_all_saved(ends):
    for end in ends:
        lost = end["lost mount"]
        assert (lost["error"], lost["saved"]) == ("LoadingError", 4)
        assert "jpg: cut short" in lost["text"]


def test_a_first_batch_that_one_process_cannot_load_is_the_error_of_all(ends):
    assert [end["lost from the start"]["error"] for end in ends] == ["UnreadableSample"] * 2


def test_a_validation_that_fails_on_one_process_ends_all_saved(ends):
    found = [end["failed validation"] for end in ends]
    assert [(end["error"], end["saved"]) for end in found] == [("KeyError", 4)] * 2


def test_a_signal_to_one_process_ends_all_after_that_step_with_its_code(ends):
    found = [end["signal to one"] for end in ends]
    assert [(end["code"], end["step"], end["saved"]) for end in found] == [(138, 4, 4)] * 2


def test_the_best_is_that_of_the_main_process_on_all(ends):
    best = ["val/pa_mpjpe_mm", 4.0, 4]
    assert [end["best of the main process"]["best"] for end in ends] == [best] * 2
    found = [end["patience"] for end in ends]
    assert [(end["best"], end["step"]) for end in found] == [(best, 8)] * 2


def test_a_last_save_that_the_main_process_cannot_make_is_the_error_of_all(ends):
    found = [end["full disk"] for end in ends]
    assert [end["error"] for end in found] == ["OSError"] * 2
    assert all("last.pt was not written" in end["text"] for end in found)
