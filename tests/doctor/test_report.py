"""Notes, sampling, the report, and the command as a user calls it."""

import json
import runpy
import sys

import numpy as np
import pytest
from rich.console import Console

from handmim.data.label_files import file_names
from handmim.doctor import sampling
from handmim.doctor.examination import examine
from handmim.doctor.report import findings_table, totals
from handmim.doctor.sampling import JsonEntries
from handmim.utils.findings import Finding, Notes, spread

STANDIN = {"path": "standin", "left_shapedirs": "auto"}


def test_a_check_that_breaks_down_is_a_finding_and_the_next_go_on():
    notes = Notes()
    with notes.guard("a", "mend a"):
        notes.ok("a", "so far")
        json.loads("{")
    with notes.guard("b", "mend b"):
        notes.ok("b", "fine")
    assert [(f.level, f.name) for f in notes.findings] == [("ok", "a"), ("error", "a"), ("ok", "b")]
    assert notes.findings[1].text.startswith("JSONDecodeError: ")
    assert notes.findings[1].fix == "mend a"
    assert notes.failed("a", "b")
    assert not notes.failed("b")


def test_faults_of_the_doctor_itself_are_not_hidden():
    with pytest.raises(AssertionError), Notes().guard("a", "mend a"):
        raise AssertionError


def test_samples_are_spread_evenly_with_both_ends():
    assert spread(5, 64).tolist() == [0, 1, 2, 3, 4]
    assert spread(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert spread(32560, 64)[[0, -1]].tolist() == [0, 32559]
    assert len(spread(32560, 64)) == 64
    assert spread(0, 64).tolist() == []
    assert spread(7, 1).tolist() == [0]


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "text", ["[[[1, 2], [3, 4.5]],\n [[5,6],[7,-8e-1]]]", "[[1,2,3,4.5],[5,6,7,-0.8]]"]
)
def test_entries_are_read_whatever_the_nesting_and_the_pieces(tmp_path, monkeypatch, piece, text):
    monkeypatch.setattr(sampling, "PIECE_BYTES", piece)
    (tmp_path / "x.json").write_text(text)
    entries = JsonEntries(tmp_path / "x.json")
    assert len(entries) == 2
    wanted = [[[5, 6], [7, -0.8]], [[1, 2], [3, 4.5]]]
    np.testing.assert_array_equal(entries.read(np.array([1, 0]), (2, 2)), wanted)
    with pytest.raises(ValueError, match=r"entry 1 of x.json holds 4 numbers, wanted 3"):
        entries.read(np.array([1]), (3,))


def test_plain_numbers_are_entries_too(tmp_path):
    (tmp_path / "x.json").write_text("[0.5, 1, 2.5]")
    entries = JsonEntries(tmp_path / "x.json")
    assert len(entries) == 3
    assert entries.read(np.array([2, 0]), ()).tolist() == [2.5, 0.5]
    (tmp_path / "x.json").write_text("[]")
    assert len(JsonEntries(tmp_path / "x.json")) == 0


@pytest.mark.parametrize("text", ["", '{"a": [1]}', "[[1, 2], [3", "[[1, 2], [3, 4]", "[1, 2"])
def test_lists_that_are_cut_off_or_something_else_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json"):
        JsonEntries(tmp_path / "x.json")


def test_file_names_leave_out_folders(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b.jpg").touch()
    assert file_names(tmp_path) == ["b.jpg"]
    assert file_names(tmp_path / "none") == []


def test_the_table_joins_what_is_well_and_keeps_every_fault_and_brackets():
    findings = [
        Finding("ok", "x-unit", "first [m]"),
        Finding("error", "x-unit", "second", "mend it"),
        Finding("ok", "x-unit", "third"),
        Finding("error", "x-unit", "fourth", "mend that"),
    ]
    assert totals(findings) == {"ok": 2, "warning": 0, "error": 2}
    console = Console(width=100)
    with console.capture() as capture:
        console.print(findings_table("title [x]", findings))
    text = capture.get()
    for words in ("title [x]", "first [m]; third", "second", "fix: mend it", "fix: mend that"):
        assert words in text


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="num_checked"):
        list(examine(STANDIN, "data", 0))
    with pytest.raises(ValueError, match=r"keypoints\.annotations"):
        list(examine(STANDIN, "data", 4, keypoints={"root": "x", "annotations": None}))


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["doctor.py", *words])
    code = 0
    try:
        runpy.run_path("tools/doctor.py", run_name="__main__")
    except SystemExit as left:
        code = left.code
    return code, capsys.readouterr().out


def test_the_command_reports_and_leaves_with_1_on_errors(
    tmp_path, monkeypatch, capsys, request, sound_ho3d_v3, sound_keypoints
):
    monkeypatch.chdir(request.config.rootpath)
    good = [f"ho3d_v3={sound_ho3d_v3}", f"keypoints.root={sound_keypoints}/images"]
    good += [f"keypoints.annotations={sound_keypoints}/labels.json"]
    good += [f"crops={sound_keypoints}/images", f"hand.path={sound_ho3d_v3}/mano/MANO_RIGHT.pkl"]
    before = set(tmp_path.iterdir())
    code, text = call(monkeypatch, capsys, *good, f"paths.data_dir={tmp_path}")
    assert code == 0, text
    assert set(tmp_path.iterdir()) == before
    for words in ("ho3d-v3-residual", "keypoints-unit", "crops-pictures", "0 errors"):
        assert words in text

    report = tmp_path / "report.json"
    code, text = call(monkeypatch, capsys, "freihand=nowhere", f"report={report}")
    assert code == 1
    assert "freihand-layout" in text
    content = json.loads(report.read_text())
    assert content["totals"]["error"] == 1
    assert [*content["sections"]] == ["environment", "hand model standin", "FreiHAND nowhere"]
    (finding,) = content["sections"]["FreiHAND nowhere"]
    assert set(finding) == {"level", "name", "text", "fix"}
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_entries_that_no_label_has_are_refused_by_number(tmp_path):
    path = tmp_path / "x.json"
    for text, message in (
        ("[" * 500_000 + "]" * 500_000, "entry 0 of .* nests too deeply"),
        ("[[1], [" + " " * 17_000_000 + "1]]", "entry 1 of .* has 17 MB"),
        ('[[1], [{"a": 1}]]', "entry 1 of x.json holds other than numbers"),
        ("[[1], [1, [2]]]", "entry 1 of x.json holds other than numbers"),
    ):
        path.write_text(text)
        entries = JsonEntries(path)
        with pytest.raises(ValueError, match=message):
            entries.read(np.arange(len(entries)), (1,))
