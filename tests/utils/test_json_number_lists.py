"""Numbers of JSON text against `float`, written rows against `%.7f`."""

import json
import random

import numpy as np
import pytest

from handmim.utils.json_files import parse_numbers, rows_text


def written(kind: str, num: int = 4000) -> list[str]:
    rng = np.random.default_rng(0)
    small = rng.normal(0, 0.1, num).tolist()
    return {
        "repr": lambda: [repr(v) for v in small],
        "wide": lambda: [repr(v) for v in (small * 10.0 ** rng.uniform(-40, 25, num)).tolist()],
        "any bits": lambda: [
            repr(v) for v in rng.integers(0, 2**63, num).view(np.float64).tolist() if v < 1e308
        ],
        "fixed": lambda: [f"{v:.7f}" for v in small],
        "long": lambda: [f"{v:.25f}" for v in small[:200]],
        "scientific": lambda: [f"{v:.18e}" for v in small],
        "whole": lambda: [str(random.Random(i).getrandbits(1 + i % 66)) for i in range(num)],
        "halfway": lambda: [str((2**53 + 2 * i + 1) * 2 ** (i % 4)) for i in range(100)],
        "odd": lambda: [
            "0", "-0.0", "0e5", "1E+5", "2.5e-3", "0.000", "000.5", "1.", ".5", "1e22",
            "1e23", "9007199254740993", "9007199254740993e3", "18446744073709551615",
            "18446744073709551616", "36893488147419103232",
            "0.00000000000000000000000000000000000000123456789012345678",
            "1e-400", "4.9e-324", "1e400", "123456789012345678e-30", "1e99999999999",
        ],
    }[kind]()  # fmt: skip


KINDS = ["repr", "wide", "any bits", "fixed", "long", "scientific", "whole", "halfway", "odd"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_has_the_bits_that_float_gives(kind):
    words = written(kind)
    words += [f"-{w}" for w in words if w[0] != "-"]
    for between in (",", " ,\n ", "],[", "\t,"):
        numbers = parse_numbers(("[[" + between.join(words) + "]]").encode())
        expected = np.array([float(w) for w in words])
        np.testing.assert_array_equal(numbers.view(np.int64), expected.view(np.int64))


def test_words_for_numbers_and_nothing():
    np.testing.assert_array_equal(parse_numbers(b"[NaN, -Infinity, 1]"), [np.nan, -np.inf, 1])
    assert len(parse_numbers(b"")) == len(parse_numbers(b" [[ ] \n")) == 0


@pytest.mark.parametrize(
    "text",
    ["1 2", "1,,2", ",1", "1,x", "--1", "1e", "1e+", "1.2.3", "e5", "-", "1-2", ".", "null", "1_0"],
)
def test_what_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_numbers(f"[0.5, {text}, 0.25]".encode())
    with pytest.raises(ValueError, match=r"."):
        parse_numbers(b"[0.5, 0.25,]")


def test_rows_are_written_with_seven_decimals():
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (3000, 3)) * 10 ** rng.uniform(-9, 1, (3000, 3))
    rows[0], rows[1] = [0.0, -0.0, -4e-8], [1.0, -99.99999996, 12345.5]
    text = rows_text(rows)
    plain = [[float(f"{v:.7f}") for v in row] for row in rows.tolist()]
    assert json.loads(text) == plain
    assert b" " not in text
    assert b"-0.0," not in text
    assert rows_text(rows.astype(np.float32)) == rows_text(rows.astype(np.float32).astype(float))
    assert rows_text(rows[:, ::2]) == rows_text(rows[:, ::2].copy())


@pytest.mark.parametrize("size", [1e7, 8.9e8, 9e8, 1e12, 1e300])
def test_large_numbers_keep_their_digits(size):
    rows = np.array([[size, -size, 0.5]])
    back = parse_numbers(rows_text(rows))
    np.testing.assert_allclose(back, rows[0], rtol=1e-15)
