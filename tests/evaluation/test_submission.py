import io
import json
import zipfile

import numpy as np
import pytest
import torch

from handmim.data import label_files
from handmim.evaluation import submission
from handmim.evaluation.submission import read_submission, write_submission


def test_round_trip_of_both_files(tmp_path, hands):
    joints, verts = hands
    path = write_submission(tmp_path / "made", joints, torch.from_numpy(verts))
    assert path == tmp_path / "made" / "pred.zip"
    assert sorted(p.name for p in path.parent.iterdir()) == ["pred.json", "pred.zip"]
    for file in (path, path.with_suffix(".json")):
        back = read_submission(file)
        assert back[0].shape == joints.shape
        assert back[1].shape == verts.shape
        assert all(a.dtype == np.float64 for a in back)
        for a, b in zip(back, (joints, verts), strict=True):
            assert np.abs(a - b).max() < 1e-7
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["pred.json"]
        text = archive.read("pred.json")
    assert text == path.with_suffix(".json").read_bytes()
    official = json.loads(text)
    assert [len(part) for part in official] == [len(joints)] * 2
    np.testing.assert_array_equal(np.array(official[1]), back[1])


def test_the_same_predictions_make_the_same_bytes_and_other_names_the_same_member(tmp_path, hands):
    one = write_submission(tmp_path / "a", *hands)
    two = write_submission(tmp_path / "b", *hands, name="run7")
    assert two.name == "run7.zip"
    assert one.read_bytes() == two.read_bytes()
    assert sorted(p.name for p in two.parent.iterdir()) == ["run7.json", "run7.zip"]


def test_nothing_is_half_written(tmp_path, hands, monkeypatch):
    write_submission(tmp_path, *hands)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def breaks(*arrays):
        yield b"[["
        raise OSError("disk full")

    monkeypatch.setattr(submission, "_submission_text", breaks)
    with pytest.raises(OSError, match="disk full"):
        write_submission(tmp_path, *hands)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_bad_arrays_are_not_written(tmp_path, hands):
    joints, verts = hands
    bad = verts.copy()
    bad[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"verts is not finite in samples \[3\]"):
        write_submission(tmp_path, joints, bad)
    with pytest.raises(ValueError, match="40 samples of joints and 39 of vertices"):
        write_submission(tmp_path, joints, verts[1:])
    with pytest.raises(ValueError, match=r"joints is \(40, 20, 3\)"):
        write_submission(tmp_path, joints[:, :20], verts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("piece", [7, 1000, 1 << 22])
@pytest.mark.parametrize("layout", [{}, {"indent": 1}, {"separators": (",", ":")}])
def test_any_layout_and_all_digits_are_read_whatever_the_pieces(
    tmp_path, hands, monkeypatch, piece, layout
):
    monkeypatch.setattr(label_files, "PIECE_BYTES", piece)
    joints, verts = (a[:2].astype(np.float64) for a in hands)
    joints[0, 0], verts[1, 777] = [1e-12, -3, 2.5e8], [np.nan, 0, np.inf]
    path = tmp_path / "pred.json"
    path.write_text(json.dumps([joints.tolist(), verts.tolist()], **layout) + "\n")
    back = read_submission(path)
    np.testing.assert_array_equal(back[0], joints)
    np.testing.assert_array_equal(back[1], verts)


def faulty_files():
    """What people send, and what the reader must say of it."""
    j, v = [[0.25] * 3] * 21, [[0.5] * 3] * 778
    ragged, words, short = [list(p) for p in j], [list(p) for p in j], [list(p) for p in v]
    ragged[4] = [0.1, 0.2]
    words[5] = [0.1, "0.2", 0.3]
    short[777] = [None, 0, 0]
    return {
        "dict": ({"xyz": [j], "verts": [v]}, "starts with '{'"),
        "one_list": ([[j, j]], "holds one list"),
        "joints_without_outer_list": ([j, j], "entry 0 of the joints: got 3 values"),
        "three_lists": ([[j], [v], [v]], "holds more than two lists"),
        "no_samples": ([[], []], "holds no samples"),
        "no_vertices_at_all": ([[j], []], "joints of 1 samples and vertices of 0"),
        "empty_vertices": (
            [[j, j], [v, []]],
            "entry 1 of the vertices: got 0 values.*zeros",
        ),
        "empty_vertices_first": (
            [[j, j], [[], []]],
            "entry 0 of the vertices: got 0 v.*zeros",
        ),
        "twenty_joints": (
            [[j, j[:20]], [v, v]],
            "entry 1 of the joints: got 20 x 3 values, 21",
        ),
        "other_mesh": ([[j], [v * 2]], "entry 0 of the vertices: got 1556 x 3 values, 778 x 3"),
        "swapped": ([[v], [j]], "got 778 x 3 values, 21 x 3[^$]*swapped"),
        "ragged": ([[ragged], [v]], "entry 0 of the joints: got unequal lists"),
        "words": ([[words], [v]], "entry 0 of the joints: number 16 is '0.2'"),
        "null": ([[j], [short]], "entry 0 of the vertices: null is no number"),
        "flat": ([[[0.1] * 63], [v]], "entry 0 of the joints: got 63 values"),
        "null_entry": ([[j, None], [v, v]], "entry 1 of the joints: got None"),
        "counts_differ": ([[j, j], [v]], "joints of 2 samples and vertices of 1"),
        "more_vertices": ([[j], [v, v, v]], "joints of 1 samples and vertices of 3"),
        "number": (3.5, "starts with '3'"),
    }


@pytest.mark.parametrize("name", faulty_files())
def test_faulty_files_are_refused_by_name(tmp_path, name):
    content, message = faulty_files()[name]
    path = tmp_path / "pred.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"pred\.json .*{message}"):
        read_submission(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[: len(t) // 2], "entry 0 of the vertices: cut off or no JSON"),
        (lambda t: t[:-1], "goes on|cut off"),
        (lambda t: t[:-2], "cut off"),
        (lambda t: t + " []", "goes on after two lists"),
        (lambda t: "", "starts with ''"),
        (lambda t: t.replace("0.5", "0..5", 1), "entry 0 of the vertices: cut off or no JSON"),
        (lambda t: t.replace("0.5,", "0.5", 1), "entry 0 of the vertices: "),
        (lambda t: t.replace("0.5", "5e", 1), "entry 0 of the vertices: "),
        (lambda t: t.replace("0.5]]", "0.5e]]", 1), "entry 0 of the vertices: "),
        (lambda t: t.replace("[0.5", "[0.5, [0.5]", 1), "entry 0 of the vertices: "),
        (lambda t: t.replace("]], [[", "]] [[", 1), "holds one list|cut off or no JSON"),
    ],
)
def test_damaged_text_is_refused(tmp_path, change, message):
    path = tmp_path / "pred.json"
    path.write_text(change(json.dumps([[[[0.25] * 3] * 21], [[[0.5] * 3] * 778]])))
    with pytest.raises(ValueError, match=message):
        read_submission(path)


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def test_zips_are_flat_with_one_prediction(tmp_path):
    text = json.dumps([[[[0.25] * 3] * 21], [[[0.5] * 3] * 778]])
    fine = {"pred.json": text, "__MACOSX/._pred.json": "x", "readme.txt": "x"}
    assert read_submission(zipped(tmp_path / "a.zip", fine))[1][0, 0, 0] == 0.5
    assert len(read_submission(zipped(tmp_path / "b.zip", {"mine.json": text}))[0]) == 1
    for members in ({"folder/pred.json": text}, {"a.json": text, "b.json": text}, {"a.txt": text}):
        with pytest.raises(ValueError, match=r"c\.zip holds .* pred\.json alone is required"):
            read_submission(zipped(tmp_path / "c.zip", members))
    (tmp_path / "d.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"d\.zip is no zip archive"):
        read_submission(tmp_path / "d.zip")
    with pytest.raises(FileNotFoundError, match="absent"):
        read_submission(tmp_path / "absent.json")


def test_a_damaged_zip_is_an_error_by_name(tmp_path, hands):
    whole = write_submission(tmp_path, *hands).read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 200] = bytes(200)
    path = tmp_path / "damaged.zip"
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged\.zip"):
        read_submission(path)


def test_reading_goes_on_in_small_steps():
    # 350 entries through a file that never gives more than it is asked for
    text = json.dumps([[[[0.25] * 3] * 21] * 350, [[[0.5] * 3] * 778] * 350]).encode()

    class Counting(io.BytesIO):
        largest = 0

        def read(self, size=-1):
            self.largest = max(self.largest, size if size >= 0 else len(text))
            return super().read(size)

    file = Counting(text)
    joints, verts = submission.read_hands(file, "x", len(text))
    assert len(joints) == len(verts) == 350
    assert file.largest == label_files.PIECE_BYTES < len(text)


def packed_text(path, *parts):
    """A zip of a pred.json of (bytes, how often) parts."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("pred.json", "w", force_zip64=True) as member,
    ):
        for text, count in parts:
            for _ in range(count):
                member.write(text)
    return path


@pytest.mark.parametrize("begin", [b"", b"[", b"[[[[0,0,0]"])
def test_white_space_without_end_is_refused_early(tmp_path, begin):
    path = packed_text(tmp_path / "pred.zip", (begin, 1), (b" " * 2**20, 256))
    assert path.stat().st_size < 2_000_000
    with pytest.raises(ValueError, match=r"pred\.zip .*\d+(\.\d)? MB of (white space|text)"):
        read_submission(path)


def test_a_wide_gap_is_passed_over_once(tmp_path, monkeypatch):
    """Every piece is searched once: the time grows with the text, not with its square."""
    text = json.dumps([[[[0.25] * 3] * 21], [[[0.5] * 3] * 778]])
    monkeypatch.setattr(label_files, "PIECE_BYTES", 64)
    path = tmp_path / "pred.json"
    path.write_text(" " * 1_000_000 + text + " " * 1_000_000)
    assert read_submission(path)[1][0, 777, 0] == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[[" + b"[" * 50_000, "entry 0 of the joints: lists nested too deeply"),
        (b"[[" + b"[" * 50_000 + b"]" * 50_000, "entry 0 of the joints: lists nested too deeply"),
        (b"[" * 30_000_000, r"entry 0 of the joints: \d+\.\d MB of text"),
        (b"[[[" + b"-," * 500_000 + b"1]]", "entry 0 of the joints: cut off or no JSON"),
        (b"[[[" + b"9" * 1_000_000 + b"]]", "entry 0 of the joints: cut off or no JSON"),
        (b"[[[" + b"[]," * 4_000_000 + b"[]]]", r"entry 0 of the joints: 12\.0 MB of text"),
    ],
)
def test_long_nonsense_is_named_at_once(tmp_path, text, message):
    path = tmp_path / "pred.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=rf"pred\.json {message}"):
        read_submission(path)


def test_numbers_beyond_float64_are_infinite(tmp_path):
    text = json.dumps([[[[0.25] * 3] * 21], [[[0.5] * 3] * 778]]).replace("0.25", "1e400", 1)
    (tmp_path / "pred.json").write_text(text)
    assert read_submission(tmp_path / "pred.json")[0][0, 0].tolist() == [np.inf, 0.25, 0.25]


@pytest.mark.parametrize("name", ["pred.json", "pred.zip"])
def test_more_text_than_the_samples_need_is_refused_before_it_is_read(tmp_path, hands, name):
    path = write_submission(tmp_path, *hands).with_name(name)
    assert len(read_submission(path, num_samples=len(hands[0]))[0]) == len(hands[0])
    with pytest.raises(ValueError, match=rf"{name} holds .* MB of text .*predictions_mb_per_samp"):
        read_submission(path, num_samples=len(hands[0]), mb_per_sample=0.01)
    packed_text(tmp_path / "bomb.zip", (b"[[[" + b"0," * 2**20, 4))
    with pytest.raises(ValueError, match=r"bomb\.zip holds 8\.4 MB of text for 2 samples, at most"):
        read_submission(tmp_path / "bomb.zip", num_samples=2)


def test_joints_without_vertices_reserve_no_memory(tmp_path):
    entry = json.dumps([[0] * 3] * 21, separators=(",", ":"))
    path = tmp_path / "pred.json"
    path.write_text("[[" + ",".join([entry] * 20_000) + "],[]]")
    with pytest.raises(ValueError, match="joints of 20000 samples and vertices of fewer"):
        read_submission(path)


def test_encrypted_zips_are_refused_by_name(tmp_path):
    path = zipped(tmp_path / "pred.zip", {"pred.json": "[]"})
    raw = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(mark) + flags] |= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"pred\.zip cannot be unpacked: .*encrypted"):
        read_submission(path)


def test_zips_of_thousands_of_files_name_a_few(tmp_path):
    path = zipped(tmp_path / "pred.zip", {f"{i:05d}.json": "" for i in range(5_000)})
    with pytest.raises(ValueError, match="holds") as caught:
        read_submission(path)
    assert len(str(caught.value)) < 300
