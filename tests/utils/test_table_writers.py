import math

import pytest

from handmim.utils.tables import markdown_table, metric_text


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("pa_mpjpe_mm", 10.005, "10.01"),
        ("ms_per_image", 3.0, "3.00"),
        ("seconds", 61.26, "61.3"),
        ("pa_f5", 0.51249, "0.512"),
        ("pa_f5", None, "-"),
        ("pa_f5", math.nan, "-"),
    ],
)
def test_units_decide_the_decimals_of_a_metric(key, value, text):
    assert metric_text(key, value) == text


def test_a_markdown_table_aligns_numbers_right_and_keeps_pipes_out_of_cells():
    text = markdown_table(["", "run", "mm"], [["a|b", "c", "1.0"]], num_left=2)
    assert text == "|  | run | mm |\n| --- | --- | ---: |\n| a/b | c | 1.0 |"
