from collections import Counter

import pytest

from handmim.data.datasets import MixedHands, label_subset


class Numbers:
    def __init__(self, num: int, sha: str | None = None) -> None:
        self.num = num
        if sha:
            self.hand_sha256 = sha

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, i: int) -> int:
        return i


def test_shares_hold_and_nothing_is_left_out():
    mixed = MixedHands({"a": Numbers(100), "b": Numbers(10)}, {"a": 3, "b": 1})
    places = [mixed.locate(i) for i in range(len(mixed))]
    count = Counter(name for name, _ in places)
    assert count["a"] / count["b"] == pytest.approx(3, rel=0.05)
    assert {i for n, i in places if n == "a"} == set(range(100))
    repeats = Counter(i for n, i in places if n == "b")
    assert set(repeats) == set(range(10))
    assert max(repeats.values()) - min(repeats.values()) <= 1
    assert mixed[len(mixed) - 1] == places[-1][1]


def test_without_weights_it_is_a_concatenation():
    mixed = MixedHands({"a": Numbers(3), "b": Numbers(2)})
    assert [mixed.locate(i) for i in range(len(mixed))] == [
        ("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1),
    ]  # fmt: skip
    with pytest.raises(IndexError):
        mixed.locate(5)


def test_wrong_weights_and_mixed_hands_are_refused():
    sets = {"a": Numbers(3), "b": Numbers(2)}
    for weights in ({"a": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 1, "b": 1, "c": 1}):
        with pytest.raises(ValueError, match=r"weights must be positive for each of \['a', 'b'\]"):
            MixedHands(sets, weights)
    with pytest.raises(ValueError, match="different hand models"):
        MixedHands({"a": Numbers(3, "x"), "b": Numbers(2, "y")})
    assert MixedHands({"a": Numbers(3, "x"), "b": Numbers(2)}).hand_sha256 == "x"


def test_labels_are_counted_once_however_often_they_are_drawn():
    mixed = MixedHands({"a": Numbers(100), "b": Numbers(10)}, {"a": 1, "b": 1})
    some = label_subset(mixed, 44, seed=0)
    drawn = [mixed.locate(i) for i in some.indices]
    assert len(set(drawn)) == 44
    assert len(drawn) > 44, "all draws of a chosen label stay"
    fewer = label_subset(mixed, 20, seed=0)
    assert {mixed.locate(i) for i in fewer.indices} <= set(drawn)
    assert label_subset(mixed, 110, seed=0) is mixed
    with pytest.raises(ValueError, match=r"1\.\.110, got 111"):
        label_subset(mixed, 111, seed=0)
