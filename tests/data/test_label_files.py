import json
import pickle

import numpy as np
import pytest

from handmim.data import label_files
from handmim.data.label_files import cached_number_lists, read_number_lists
from handmim.utils.checked_files import save_array


@pytest.mark.parametrize("piece", [7, 64, 1 << 20])
def test_numbers_survive_whatever_the_pieces(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(label_files, "PIECE_BYTES", piece)
    values = (
        np.random.default_rng(0).normal(0, 1, (5, 3, 2))
        * 10.0 ** np.arange(-4, 2)[:, None, None][:5]
    )
    path = tmp_path / "x.json"
    path.write_text(json.dumps(values.tolist(), indent=1))
    np.testing.assert_array_equal(read_number_lists(path, (3, 2)), values)
    path.write_text("[1, 2.5e-3, -7]")
    assert read_number_lists(path, ()).tolist() == [1, 0.0025, -7]
    path.write_text("[]")
    assert read_number_lists(path, (3,)).shape == (0, 3)


def test_other_content_is_refused_by_name(tmp_path):
    path = tmp_path / "training_xyz.json"
    for text in ('[[1, "two", 3]]', '{"a": 1}', "[1, null, 3]", "[1, 2, 3, "):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"training_xyz\.json"):
            read_number_lists(path, (3,))
    path.write_text("[[1, 2, 3], [4, 5]]")
    with pytest.raises(ValueError, match=r"entry 1 of the list: got 2 values, 3 numbers are req"):
        read_number_lists(path, (3,))
    with pytest.raises(FileNotFoundError, match="absent"):
        read_number_lists(tmp_path / "absent.json", (3,))


def test_the_cache_follows_the_file(tmp_path):
    path, cache = tmp_path / "v.json", tmp_path / "cache"
    path.write_text("[[1, 2], [3, 4]]")
    first = cached_number_lists(path, (2,), cache)
    assert first[:].tolist() == [[1, 2], [3, 4]]
    assert len(pickle.dumps(first)) < 500, "other processes get the path"
    again = pickle.loads(pickle.dumps(first))  # noqa: S301  our own bytes
    assert again[1].tolist() == [3, 4]
    assert len(list(cache.iterdir())) == 1
    cached_number_lists(path, (2,), cache)
    assert len(list(cache.iterdir())) == 1, "read back, not converted again"
    path.write_text("[[1, 2], [3, 4], [5, 6]]")
    assert len(cached_number_lists(path, (2,), cache)) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:50],
        lambda raw: raw[:-20],
        lambda raw: raw[:-1],
        lambda raw: b"\x00" * len(raw),
        lambda raw: raw[:130] + bytes([raw[130] ^ 1]) + raw[131:],
        lambda raw: raw[:-14],  # as written before there was a CRC-32
    ],
)
def test_a_damaged_cache_is_converted_anew(tmp_path, damage, caplog):
    path, cache = tmp_path / "v.json", tmp_path / "cache"
    path.write_text("[[1, 2], [3, 4]]")
    cached = cached_number_lists(path, (2,), cache).path
    whole = cached.read_bytes()
    cached.write_bytes(damage(whole))
    assert cached_number_lists(path, (2,), cache)[:].tolist() == [[1, 2], [3, 4]]
    assert cached.read_bytes() == whole
    assert "converted anew from" in caplog.text
    assert [p.name for p in cached.parent.iterdir()] == [cached.name]


def test_a_cache_of_another_shape_is_converted_anew(tmp_path):
    path, cache = tmp_path / "v.json", tmp_path / "cache"
    path.write_text("[[1, 2], [3, 4]]")
    cached = cached_number_lists(path, (2,), cache).path
    save_array(cached, np.zeros((4, 1), np.float32))
    assert cached_number_lists(path, (2,), cache)[:].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("shape", "damage", "message"),
    [
        ((3, 3), lambda v: [*v[:7], v[7][:2], *v[8:]], "entry 7 of the list: got 2 x 3 values"),
        ((61,), lambda v: [*v[:7], v[7][:60], *v[8:]], "entry 7 of the list: got 60 values, 61"),
        ((), lambda v: [*v[:7], None, *v[8:]], "entry 7 of the list: got None, plain numbers"),
        ((3, 3), lambda v: [*v[:7], [["x"] * 3] * 3], "entry 7 of the list: number 0 is 'x'"),
    ],
)
def test_the_damaged_entry_of_a_list_is_named(tmp_path, shape, damage, message):
    path = tmp_path / "training_K.json"
    path.write_text(json.dumps(damage(np.ones((9, *shape)).tolist())))
    with pytest.raises(ValueError, match=rf"training_K\.json {message}"):
        read_number_lists(path, shape)


def test_lists_that_end_early_or_late_are_refused(tmp_path):
    path = tmp_path / "training_K.json"
    text = json.dumps(np.ones((9, 3)).tolist())
    for changed, message in (
        (text[:-1], "is cut off or no JSON after entry 8"),
        (text + "1", "goes on after its list"),
    ):
        path.write_text(changed)
        with pytest.raises(ValueError, match=message):
            read_number_lists(path, (3,))


def test_entries_may_be_nested_deeper_than_their_shape(tmp_path):
    """As FreiHAND's MANO vectors are."""
    path = tmp_path / "training_mano.json"
    path.write_text(json.dumps(np.ones((4, 1, 61)).tolist(), indent=1))
    assert read_number_lists(path, (61,)).shape == (4, 61)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 500_000 + b"]" * 500_000, "lists nested too deeply"),
        (b"[1," * 1000 + b"[" * 500_000 + b"1" + b"]" * 501_000, "lists nested too deeply|got 1"),
        (b"[" + b" " * 30_000_000 + b"]", r"\d\d MB of white space"),
        (b"[[1," + b" " * 17_000_000 + b"2]]", r"\d\d\.\d MB of text"),
        (b"[[" + b"7" * 30_000_000 + b"]]", r"\d\d\.\d MB of text"),
        (b"[[" + b"-," * 100_000 + b"1]]", "cut off or no JSON"),
    ],
)
def test_long_nonsense_is_no_list_of_numbers(tmp_path, text, message):
    path = tmp_path / "training_verts.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=rf"training_verts\.json .*({message})"):
        read_number_lists(path, (1,))
