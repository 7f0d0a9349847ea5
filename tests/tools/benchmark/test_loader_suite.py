from pathlib import Path

import torch

from benchmark.core import Bench
from benchmark.data import measure_loader

HAND = Path(__file__).parents[3] / "data" / "standin_right.npz"


def test_a_row_per_number_of_processes():
    cases = list(
        measure_loader(
            Bench(torch.device("cpu")), hand=HAND, num=4, view_px=32, batch_size=2, num_steps=2,
            num_workers=[0, 1], augment_on=["cpu", "device"], consumed_per_s=400.0,
        )
    )  # fmt: skip
    assert [[row.variant.split(" ")[0] for row in rows] for rows in cases] == [["0", "1"]] * 2
    assert all(0 < row.per_s <= 400.0 for rows in cases for row in rows)
    assert all("waiting" in row.variant for rows in cases for row in rows)
