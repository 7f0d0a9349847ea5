import time

import pytest
import torch

from handmim.utils.timer import Stages


def test_stages_follow_one_another_and_the_first_batch_warms_up():
    stages = Stages(torch.device("cpu"))
    for batch in range(3):
        stages.begin()
        time.sleep(0.05 if batch == 0 else 0.01)
        stages.done("read", 5)
        time.sleep(0.02)
        stages.done("look", 5)
    seconds = stages.seconds_per_item
    assert list(seconds) == ["read", "look"]
    assert 0.01 / 5 <= seconds["read"] < 0.05 / 5
    assert seconds["look"] >= 0.02 / 5
    read, look, both = str(stages).splitlines()
    assert read.startswith("read ")
    assert float(both.split()[1]) == pytest.approx(1e3 * sum(seconds.values()), abs=2e-3)
    assert float(look.split()[3].rstrip("%")) > 40
