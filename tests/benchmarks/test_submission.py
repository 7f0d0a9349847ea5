import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from handmim.benchmarks import submission
from handmim.benchmarks.freihand import FREIHAND
from handmim.benchmarks.ho3d import HO3D_V2, HO3D_V3
from handmim.benchmarks.submission import (
    KNOWN_ORDERS,
    check_submission,
    read_submission,
    write_submission,
)
from handmim.hand.poses import PoseSampler, rodrigues, sample_betas

NUM = 40
BENCHMARKS = [replace(b, num_samples=NUM) for b in (FREIHAND, HO3D_V2)]
IDS = ["freihand", "ho3d"]


def posed(hand, num, seed=0):
    """Joints and vertices of random hands, canonical order, OpenCV camera, metres."""
    rng = np.random.default_rng(seed)
    rotmats = np.tile(np.eye(3), (num, 16, 1, 1))
    rotmats[:, 1:] = PoseSampler.from_arrays(hand.arrays).sample(num, rng)
    rotmats[:, 0] = rodrigues(rng.normal(0, 2, (num, 3)))
    betas = sample_betas(num, hand.num_betas, rng)
    place = np.stack(
        [rng.normal(-0.1, 0.1, num), rng.normal(0, 0.1, num), rng.uniform(0.45, 1.2, num)]
    )
    with torch.no_grad():
        mesh = hand(*(torch.from_numpy(a).float() for a in (rotmats, betas, place.T)))
    return mesh.joints_m.numpy(), mesh.verts_m.numpy()


@pytest.fixture(scope="module")
def hands(hand):
    return posed(hand, NUM)


def names(joints, verts, benchmark):
    return [f.name for f in check_submission(joints, verts, benchmark)]


def only(joints, verts, benchmark, name):
    findings = check_submission(joints, verts, benchmark)
    assert [f.name for f in findings] == [name], findings
    return findings[0]


# --- writing and reading ---


def test_round_trip_of_both_files(tmp_path, hands):
    joints, verts = hands
    path = write_submission(tmp_path / "made", joints, torch.from_numpy(verts))
    assert path == tmp_path / "made" / "pred.zip"
    assert sorted(p.name for p in path.parent.iterdir()) == ["pred.json", "pred.zip"]
    for file in (path, path.with_suffix(".json")):
        back = read_submission(file)
        assert back[0].shape == (NUM, 21, 3)
        assert back[1].shape == (NUM, 778, 3)
        assert all(a.dtype == np.float64 for a in back)
        for a, b in zip(back, (joints, verts), strict=True):
            assert np.abs(a - b).max() < 1e-7
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["pred.json"]
        text = archive.read("pred.json")
    assert text == path.with_suffix(".json").read_bytes()
    official = json.loads(text)
    assert [len(part) for part in official] == [NUM, NUM]
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
    monkeypatch.setattr(submission, "PIECE_BYTES", piece)
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
        "joints_without_outer_list": ([j, j], "3 plain values as entry 0 of the joints"),
        "three_lists": ([[j], [v], [v]], "holds more than two lists"),
        "no_samples": ([[], []], "nothing as entry 0 of the joints"),
        "no_vertices_at_all": ([[j], []], "nothing as entry 0 of the vertices"),
        "empty_vertices": ([[j, j], [v, []]], "an empty list .* as entry 1 of the vertices"),
        "empty_vertices_first": ([[j, j], [[], []]], "an empty list .*as entry 0 of the vertices"),
        "twenty_joints": ([[j, j[:20]], [v, v]], "20 points as entry 1 of the joints, wanted 21"),
        "other_mesh": ([[j], [v * 2]], "1556 points as entry 0 of the vertices, wanted 778"),
        "swapped": ([[v], [j]], "778 points .are the two lists swapped.* of the joints, wanted 21"),
        "ragged": ([[ragged], [v]], "21 points, not all of three numbers, as entry 0 of the joi"),
        "words": ([[words], [v]], "21 points, not all of three numbers"),
        "null": ([[j], [short]], "778 points, not all of three numbers"),
        "flat": ([[[0.1] * 63], [v]], "63 plain values as entry 0 of the joints"),
        "null_entry": ([[j, None], [v, v]], "no list but 'None' as entry 1 of the joints"),
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
        (lambda t: t[: len(t) // 2], "cut off or no JSON as entry 0 of the vertices"),
        (lambda t: t[:-1], "goes on|cut off"),
        (lambda t: t[:-2], "cut off"),
        (lambda t: t + " []", "goes on after two lists"),
        (lambda t: "", "starts with ''"),
        (lambda t: t.replace("0.5", "0..5", 1), "no JSON as entry 0 of the vertices"),
        (lambda t: t.replace("0.5,", "0.5", 1), "as entry 0 of the vertices"),
        (lambda t: t.replace("0.5", "5e", 1), "as entry 0 of the vertices"),
        (lambda t: t.replace("[0.5", "[0.5, [0.5]", 1), "as entry 0 of the vertices"),
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
        with pytest.raises(ValueError, match=r"c\.zip holds .* wanted pred\.json alone"):
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
    joints, verts = submission._PredictionFile(file, "x").read()
    assert len(joints) == len(verts) == 350
    assert file.largest == submission.PIECE_BYTES < len(text)


# --- checking ---


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
@pytest.mark.parametrize("noise_m", [0.0, 0.005, 0.01])
def test_plausible_hands_give_no_findings(hands, benchmark, noise_m):
    rng = np.random.default_rng(0)
    joints, verts = (a + rng.normal(0, noise_m, a.shape) for a in hands)
    assert check_submission(*benchmark.canonical_to_benchmark(joints, verts), benchmark) == []


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
def test_single_hands_in_any_pose_give_no_findings(hand, benchmark):
    joints, verts = benchmark.canonical_to_benchmark(*posed(hand, 150, seed=1))
    one = replace(benchmark, num_samples=1)
    for i in range(len(joints)):
        assert check_submission(joints[i : i + 1], verts[i : i + 1], one) == []


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
def test_every_wrong_joint_order_is_named(hand, benchmark):
    joints, verts = posed(hand, 60, seed=2)
    turned = benchmark.canonical_to_benchmark(joints, verts)[1]
    axes = [1, 1, 1] if benchmark.axes == "opencv" else [1, -1, -1]
    wanted = replace(benchmark, num_samples=60)
    for name, order in KNOWN_ORDERS.items():
        theirs = (joints * axes)[:, np.argsort(order)]
        if name == benchmark.skeleton:
            assert names(theirs, turned, wanted) == []
            continue
        finding = only(theirs, turned, wanted, "joint-order")
        assert finding.level == "error"
        assert f"'{name}'" in finding.text
        # one hand is enough
        for i in range(0, 60, 7):
            one = check_submission(
                theirs[i : i + 1], turned[i : i + 1], replace(benchmark, num_samples=1)
            )
            assert [f.name for f in one] == ["joint-order"]
            assert f"'{name}'" in one[0].text


def test_known_orders_are_permutations_and_mean_what_they_say():
    for order in KNOWN_ORDERS.values():
        assert sorted(order) == list(range(21))
    # canonical place of the index tip is 8, of the wrist 0
    places = {name: (order[0], order[8], order[4]) for name, order in KNOWN_ORDERS.items()}
    assert places == {
        "freihand": (0, 8, 4),
        "ho3d": (0, 17, 16),
        "mobrecon_mano": (0, 16, 20),
        "ait": (0, 17, 16),
        "interhand": (20, 4, 0),
    }


def test_an_order_of_its_own_is_a_warning(hands):
    joints, verts = hands
    shuffled = joints[:, np.random.default_rng(0).permutation(21)]
    assert only(shuffled, verts, BENCHMARKS[0], "bone-lengths").level == "warning"


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
def test_the_other_benchmarks_axes_are_an_error(hands, benchmark):
    joints, verts = (a * [1, -1, -1] for a in benchmark.canonical_to_benchmark(*hands))
    finding = only(joints, verts, benchmark, "behind-camera")
    assert finding.level == "error"
    assert f"all joints in {NUM} and all vertices in {NUM} of {NUM}" in finding.text
    assert "multiply y and z by -1" in finding.text


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
def test_one_hand_behind_the_camera(hands, benchmark):
    joints, verts = benchmark.canonical_to_benchmark(*hands)
    joints, verts = joints.copy(), verts.copy()
    joints[3] *= [1, -1, -1]
    verts[3] *= [1, -1, -1]
    finding = only(joints, verts, benchmark, "behind-camera")
    # HO-3D's own writer refuses it; to FreiHAND's evaluation it is a bad hand
    assert finding.level == ("warning" if benchmark.axes == "opencv" else "error")
    assert f"all joints in 1 and all vertices in 1 of {NUM}" in finding.text
    # hands that only reach behind the camera are let through, as the official writer does
    reaching = joints.copy()
    reaching[3] = benchmark.canonical_to_benchmark(*hands)[0][3]
    reaching[3, 7, 2] *= -1
    verts[3] = benchmark.canonical_to_benchmark(*hands)[1][3]
    assert names(reaching, verts, benchmark) == []


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
@pytest.mark.parametrize(("factor", "word"), [(1000, "millimetres"), (100, "centimetres")])
def test_units_are_told_by_the_size_of_the_hands(hands, benchmark, factor, word):
    joints, verts = benchmark.canonical_to_benchmark(*hands)
    found = check_submission(joints * factor, verts * factor, benchmark)
    assert [(f.level, f.name) for f in found] == [("error", "unit")] * 2
    assert all(f"they look like {word}, divide by {factor}" in f.text for f in found)
    assert "joints" in found[0].text
    assert "vertices" in found[1].text
    assert "joints" in only(joints * factor, verts, benchmark, "unit").text
    assert "vertices" in only(joints, verts * factor, benchmark, "unit").text


def test_normalised_hands_are_no_known_unit(hands):
    joints, verts = hands
    bone = np.linalg.norm(joints[:, 9] - joints[:, 10], axis=1)[:, None, None]
    found = check_submission(joints / bone, verts / bone, BENCHMARKS[0])
    assert [f.name for f in found] == ["unit", "unit"]
    assert "normalised" in found[0].text


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
@pytest.mark.parametrize("root", ["wrist", "middle_1"])
def test_root_relative_hands_are_a_warning(hands, benchmark, root):
    joints, verts = benchmark.canonical_to_benchmark(*hands)
    at = joints[:, [benchmark.joint_names.index(root)]]
    finding = only(joints - at, verts - at, benchmark, "root-relative")
    assert finding.level == "warning"
    # one sample with a root elsewhere, and it is not relative (but near the camera)
    moved = at.copy()
    moved[0, 0, 0] += 0.01
    assert names(joints - moved, verts - moved, benchmark) == ["depth"]


@pytest.mark.parametrize("factor", [0.05, 20.0])
def test_implausible_depth_is_a_warning(hands, factor):
    joints, verts = hands
    away = joints[:, :1] * [0, 0, factor - 1]
    assert only(joints + away, verts + away, BENCHMARKS[0], "depth").level == "warning"


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
def test_vertices_of_another_frame_order_or_hand(hands, benchmark):
    joints, verts = benchmark.canonical_to_benchmark(*hands)
    relative = verts - joints[:, :1]
    finding = only(joints, relative, benchmark, "joints-off-verts")
    assert finding.level == "error"
    assert "joints-off-verts" in names(joints, np.roll(verts, 1, axis=0), benchmark)
    flipped = names(joints, verts * [1, -1, -1], benchmark)
    assert flipped == ["behind-camera", "joints-off-verts"]
    shuffled = verts[:, np.random.default_rng(0).permutation(778)]
    assert only(joints, shuffled, benchmark, "verts-order").level == "warning"


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=IDS)
def test_joints_only(hands, benchmark):
    joints, verts = benchmark.canonical_to_benchmark(*hands)
    finding = only(joints, 0 * verts, benchmark, "zero-verts")
    assert finding.level == "warning"
    assert f"{NUM} of {NUM}" in finding.text
    some = verts.copy()
    some[:3] = 0
    assert f"3 of {NUM}" in only(joints, some, benchmark, "zero-verts").text


def test_constant_and_collapsed_predictions(hands):
    joints, verts = (np.repeat(a[:1], NUM, axis=0) for a in hands)
    assert only(joints, verts, BENCHMARKS[0], "constant").level == "warning"
    assert names(0 * joints, 0 * verts, BENCHMARKS[0]) == ["collapsed", "zero-verts", "constant"]
    one = replace(FREIHAND, num_samples=1)
    assert names(joints[:1], verts[:1], one) == []


def test_count_of_the_benchmark(hands):
    finding = only(*hands, FREIHAND, "count")
    assert finding.level == "error"
    assert "40 samples, freihand has 3960" in finding.text
    assert "20137" in only(*HO3D_V3.canonical_to_benchmark(*hands), HO3D_V3, "count").text


def test_values_that_are_not_finite_are_named_and_the_rest_is_still_looked_at(hands):
    joints, verts = (a.copy() for a in hands)
    joints[4, 2, 0], verts[9, 700, 2], verts[4, 1, 1] = np.nan, np.inf, np.nan
    finding = only(joints, verts, BENCHMARKS[0], "not-finite")
    assert finding.level == "error"
    assert "2 samples hold NaN or infinity, the first [4, 9]" in finding.text
    assert names(joints * 1000, verts, BENCHMARKS[0]) == ["not-finite", "unit"]
    assert names(joints * np.nan, verts, BENCHMARKS[0]) == ["not-finite"]


def test_shapes_are_an_error_finding(hands):
    joints, verts = hands
    for pair in (
        (joints[:, :20], verts), (joints, verts[:, :777]), (joints[1:], verts),
        (joints[:0], verts[:0]), (verts, joints), (joints[0], verts[0]), (joints > 0, verts),
    ):  # fmt: skip
        assert only(*pair, BENCHMARKS[0], "shape").level == "error"


def test_tensors_are_checked_too_and_inputs_stay_as_they_are(hands):
    joints, verts = (a.copy() for a in hands)
    assert names(torch.from_numpy(joints), torch.from_numpy(verts), BENCHMARKS[0]) == []
    names(1000 * joints, verts, BENCHMARKS[1])
    np.testing.assert_array_equal(joints, hands[0])
    np.testing.assert_array_equal(verts, hands[1])
