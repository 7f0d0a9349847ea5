"""Notes, sampling, the report, and the command as a user calls it."""

import json
import runpy
import sys
import tracemalloc

import pytest
from rich.console import Console

from handmim.check.benchmarks import read_rows
from handmim.check.run import check_all, check_crops, check_keypoints, findings_table, totals
from handmim.data import label_files
from handmim.data.label_files import file_names
from handmim.utils.findings import Finding, Notes, spread

SETTINGS = {
    **dict.fromkeys(("freihand", "ho3d_v2", "ho3d_v3", "crops")),
    "hand": {"path": "standin", "left_shapedirs": "auto"},
    "keypoints": {"root": None, "annotations": None},
    "paths": {"data_dir": "data"},
    "num_checked": 4,
    "full": False,
}


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


def test_faults_of_the_checks_themselves_are_not_hidden():
    with pytest.raises(AssertionError), Notes().guard("a", "mend a"):
        raise AssertionError


def test_samples_are_spread_evenly_with_both_ends():
    assert spread(5, 64).tolist() == [0, 1, 2, 3, 4]
    assert spread(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert spread(32560, 64)[[0, -1]].tolist() == [0, 32559]
    assert len(spread(32560, 64)) == 64
    assert spread(0, 64).tolist() == []
    assert spread(7, 1).tolist() == [0]


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
    for phrase in ("title [x]", "first [m]; third", "second", "fix: mend it", "fix: mend that"):
        assert phrase in text


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="num_checked"):
        list(check_all(SETTINGS | {"num_checked": 0}))
    with pytest.raises(ValueError, match=r"keypoints\.annotations"):
        list(check_all(SETTINGS | {"keypoints": {"root": "x", "annotations": None}}))


def test_a_missing_folder_of_crops_is_named_with_its_own_key(tmp_path):
    (finding,) = check_crops(tmp_path / "nope", 4)
    assert finding.text == f"no folder {tmp_path / 'nope'}"
    assert finding.fix.endswith("crops=DIR")
    assert "data.root" not in finding.text
    (finding,) = check_keypoints(tmp_path, tmp_path / "nope.json", 4)
    assert finding.text == f"{tmp_path / 'nope.json'} does not exist"
    assert finding.fix.endswith("keypoints.annotations=FILE.json")


def test_lists_are_read_one_entry_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(label_files, "PIECE_BYTES", 1 << 16)
    entry = json.dumps([[0.5, 0.25, 1.0]] * 778)
    path = tmp_path / "training_verts.json"
    path.write_text(f"[{','.join([entry] * 300)}]")  # 5.6 MB as an array
    tracemalloc.start()
    count, rows = read_rows(path, (778, 3), [0, 299])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (count, rows.shape) == (300, (2, 778, 3))
    assert peak < 1e6


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["doctor.py", *arguments])
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
    for phrase in ("ho3d-v3-residual", "keypoints-unit", "crops-images", "0 errors"):
        assert phrase in text

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
