import codecs
import json

import pytest

from handmim.utils.json_files import read_json, read_object


@pytest.mark.parametrize(
    "encoded",
    [
        lambda text: text.encode(),
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("utf-16"),
    ],
    ids=["utf-8", "byte order mark", "utf-16"],
)
def test_any_encoding_is_read(tmp_path, encoded):
    content = {"images": [{"file_name": "Hände/1.jpg"}]}
    path = tmp_path / "labels.json"
    path.write_bytes(encoded(json.dumps(content, ensure_ascii=False)))
    assert read_json(path) == content


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b'{"a": [1, 2', "is cut off"),
        (b'{"a": 1,, "b": 2}', "line 1, column 9"),
        (b"\xff\x00\xfe\xfa\x81", "is no JSON"),
        (b"[" * 100_000, "is no JSON that can be read: .*recursion"),
    ],
    ids=["empty", "blank", "cut off", "no JSON", "no text", "nested"],
)
def test_anything_else_is_refused_with_the_file(tmp_path, raw, reason):
    path = tmp_path / "labels.json"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=reason) as refused:
        read_json(path)
    assert str(path) in str(refused.value)


def test_a_file_beyond_the_bound_is_not_read(tmp_path):
    path = tmp_path / "labels.json"
    path.write_bytes(b"[" + b" " * 2000 + b"]")
    assert read_json(path) == []
    with pytest.raises(ValueError, match=r"the bound is 0\.001 MB"):
        read_json(path, max_mb=0.001)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path, reason in ((tmp_path / "none.json", "does not exist"), (tmp_path, "no regular file")):
        with pytest.raises(FileNotFoundError, match=reason):
            read_json(path)


def test_numbers_of_endless_digits_are_refused_by_name(tmp_path):
    (tmp_path / "x.json").write_text("[" + "9" * 100_000 + "]")
    with pytest.raises(ValueError, match=r"x\.json is no JSON that can be read: .*4300 digits"):
        read_json(tmp_path / "x.json")


def test_objects_are_required_with_their_keys(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text('{"a": 1}')
    assert read_object(path, needs=["a"]) == {"a": 1}
    with pytest.raises(ValueError, match=r"facts\.json lacks b, c"):
        read_object(path, needs=["a", "b", "c"])
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"facts\.json holds a list, an object is required"):
        read_object(path)
