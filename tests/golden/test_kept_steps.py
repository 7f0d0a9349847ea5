"""Numbers of training steps stay what they are, whatever moves."""

import json

import pytest

from tests.engine.rank_cases import cases
from tests.golden.steps import FILE, alone, steps_of

KEPT = json.loads(FILE.read_text())


def test_every_case_has_kept_numbers():
    assert set(KEPT) == set(cases())


@pytest.mark.parametrize("name", KEPT)
def test_steps_give_the_kept_numbers(name, tmp_path):
    found = steps_of(alone(tmp_path), name)
    assert found["losses"] == pytest.approx(KEPT[name]["losses"], rel=1e-4, abs=1e-6)
    # Adam turns rounding of zero gradients (biases of keys) into steps of either sign.
    assert found["digest"] == pytest.approx(KEPT[name]["digest"], rel=1e-3, abs=1e-2)
