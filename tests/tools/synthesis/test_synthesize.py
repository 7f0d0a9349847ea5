"""Running, resuming, refusing and replacing, whatever the format."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from handmim.hand.io import load_hand_arrays
from handmim.render.cache import run_workers
from handmim.render.scene import SceneSettings
from synthesis import runner
from synthesis.mano import mirrored, write_fake_mano
from synthesis.metadata import DatasetSpec, own_files
from synthesis.runner import synthesize
from synthesis.scenes import SceneSource, with_rig

TOOLS = Path(__file__).parents[3] / "tools"
PLAIN = {"image_px": 32, "background": "studio", "objects": 0.3, "occluders": 0.0}
CALM = {"view": "cone", "focal": [0.94, 0.98], "crop_scale": 2.9}
SIZES = {"freihand": (9, 3), "ho3d_v2": (7, 3), "ho3d_v3": (7, 3), "folder": (10, 0)}
FORMATS = list(SIZES)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(runner, "BLOCK", 4)


def make(root, format="freihand", num_workers=0, **changes):
    num, num_eval = SIZES[format]
    scene = PLAIN | (CALM if format.startswith("ho3d") else {})
    options = {"num": num, "num_eval": num_eval, "scene": scene} | changes
    return synthesize(root, format, num_workers=num_workers, **options)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted tree of each format."""
    return {name: make(tmp_path_factory.mktemp(name) / name, name) for name in FORMATS}


@pytest.mark.parametrize("format", FORMATS)
def test_facts_name_hand_and_settings_and_every_file(whole, format, hand_arrays):
    root = whole[format]
    metadata = json.loads((root / "handmim.json").read_text())
    assert metadata["hand"] == "standin_right"
    assert metadata["hand_sha256"] == hand_arrays.sha256
    assert metadata["format"] == format
    assert (metadata["num"], metadata["num_eval"], metadata["seed"]) == (*SIZES[format], 0)
    assert metadata["renderer"] == 6
    assert metadata["scene"]["image_px"] == 32
    spec = DatasetSpec(format, *SIZES[format], 0, SceneSettings(image_px=32), False)
    assert {"handmim.json", *own_files(spec)} == set(tree(root))


def test_folders_hold_square_crops(whole):
    images = [n for n in tree(whole["folder"]) if n.endswith(".jpg")]
    assert len(images) == 10
    assert len({Path(n).parent for n in images}) == 4
    for name in images:
        image = cv2.imread(str(whole["folder"] / name))
        assert image.shape == (32, 32, 3)
        assert image.std() > 5


@pytest.mark.parametrize("format", FORMATS)
def test_a_killed_half_is_gone_on_with_to_the_same_bytes(whole, format, tmp_path, monkeypatch):
    writes = 0
    layout = type(
        DatasetSpec(format, *SIZES[format], 0, SceneSettings(image_px=32), False).layout()
    )
    original = layout.write

    def dying(self, source, root, part, index):
        nonlocal writes
        writes += 1
        if writes == 7:
            raise KeyboardInterrupt
        return original(self, source, root, part, index)

    with monkeypatch.context() as m:
        m.setattr(layout, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "half", format)
    half = tmp_path / "half"
    assert not (half / "handmim.json").exists(), "unfinished sets do not look whole"
    parts = list((half / ".parts").glob("*.npz"))
    assert len(parts) == 1
    times = {p: p.stat().st_mtime_ns for p in half.rglob("*.[jp][pn]g")}
    make(half, format)
    assert tree(half) == tree(whole[format])
    same = [path for path, then in times.items() if path.stat().st_mtime_ns == then]
    assert len(same) >= 4, "finished blocks are not made again"
    assert not (half / ".parts").exists()


@pytest.mark.parametrize("format", ["freihand", "ho3d_v3"])
def test_worker_processes_write_the_same_bytes(whole, format, tmp_path):
    assert tree(make(tmp_path / "two", format, num_workers=2)) == tree(whole[format])


def test_samples_do_not_depend_on_how_many_there_are(whole, tmp_path):
    fewer = make(tmp_path / "few", num=5, num_eval=2)
    for name in ("training", "evaluation"):
        for key in ("K", "mano", "xyz", "verts", "scale"):
            many, few = (
                json.loads((root / f"{name}_{key}.json").read_text())
                for root in (whole["freihand"], fewer)
            )
            assert few == many[: len(few)]
    for i in range(5):
        for version in range(4):
            few, many = (
                f"training/rgb/{i + 5 * version:08d}.jpg",
                f"training/rgb/{i + 9 * version:08d}.jpg",
            )
            assert (fewer / few).read_bytes() == (whole["freihand"] / many).read_bytes()
    other = make(tmp_path / "seed", num=5, num_eval=2, seed=1)
    assert (other / "training_mano.json").read_bytes() != (
        fewer / "training_mano.json"
    ).read_bytes()


def test_a_whole_set_is_left_alone(whole, monkeypatch, caplog):
    def forbidden(*args):
        raise AssertionError("rendered again")

    monkeypatch.setattr(runner, "write_block", forbidden)
    with caplog.at_level("INFO", logger="synthesis.runner"):
        make(whole["freihand"])
    assert "whole already" in caplog.text
    with pytest.raises(FileExistsError, match=r"differs in seed.*overwrite=true"):
        make(whole["freihand"], seed=1)


def test_an_unfinished_set_of_other_settings_is_refused_and_replaced(tmp_path, whole, monkeypatch):
    root = tmp_path / "root"
    with monkeypatch.context() as m:
        m.setattr(runner, "_finish", lambda *args: sys.exit(1))
        with pytest.raises(SystemExit):
            make(root, seed=1)
    with pytest.raises(FileExistsError, match="unfinished set that differs in seed"):
        make(root)
    make(root, overwrite=True)
    assert tree(root) == tree(whole["freihand"])


def test_overwriting_replaces_our_files_and_nobody_elses(tmp_path, whole):
    root = make(tmp_path / "root", "ho3d_v3")
    own = root / "train" / "ABF10" / "notes.txt"
    own.write_text("mine")
    make(root, "freihand", overwrite=True)
    assert own.read_text() == "mine"
    own.unlink()
    assert tree(root) == tree(whole["freihand"])
    assert not (root / "train" / "MC1").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_of_someone_else_are_never_touched(tmp_path, overwrite):
    root = tmp_path / "licensed"
    (root / "training" / "rgb").mkdir(parents=True)
    (root / "training" / "rgb" / "00000000.jpg").write_bytes(b"theirs")
    with pytest.raises(FileExistsError, match=r"did not write.*root="):
        make(root, overwrite=overwrite)
    assert tree(root) == {"training/rgb/00000000.jpg": b"theirs"}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"format": "coco"}, "format must be one of"),
        ({"num": 0}, "num must be 1 to "),
        ({"num_eval": 0}, "num_eval must be 1 to "),
        ({"seed": -1}, "seed must be >= 0"),
        ({"num_workers": -1}, "num_workers must be >= 0"),
        ({"format": "folder", "num_eval": 2}, "no evaluation part"),
        ({"format": "ho3d_v2", "num": 200_000}, "ho3d_v2"),
        (
            {"format": "ho3d_v2", "scene": {"image_px": 36}},
            r"scene\.image_px to be a multiple of 8",
        ),
    ],
)
def test_bad_settings_are_named_and_make_nothing(tmp_path, changes, word):
    options = {"format": "freihand", "num": 2, "num_eval": 1, "scene": PLAIN} | changes
    with pytest.raises(ValueError, match=word):
        synthesize(tmp_path / "root", **options)
    assert not (tmp_path / "root").exists()


def test_a_failing_worker_is_reported_and_progress_is_kept(tmp_path, whole, monkeypatch):
    def broken(module, job, *args):
        blocks = [[*job["blocks"][0]], ["nonsense", 0, 1]]
        run_workers(module, job | {"blocks": blocks}, *args)

    with monkeypatch.context() as m:
        m.setattr(runner, "run_workers", broken)
        with pytest.raises(RuntimeError, match="nonsense"):
            make(tmp_path / "root", num_workers=1)
    assert len(list((tmp_path / "root" / ".parts").glob("*.npz"))) == 1
    make(tmp_path / "root")
    assert tree(tmp_path / "root") == tree(whole["freihand"])


def test_workers_start_without_torch():
    code = "import sys, synthesis.runner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=TOOLS).returncode == 0


def test_the_tool_writes_a_set_and_says_when_it_is_whole(tmp_path):
    tool = TOOLS / "synthesize.py"
    overrides = ["format=ho3d_v3", f"root={tmp_path / 'set'}", "num=2", "num_eval=1"]
    overrides += ["scene=studio", "scene.image_px=32", "num_workers=0"]
    for text in ("images in", "is whole already"):
        command = [sys.executable, str(tool), *overrides]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert text in done.stderr
        assert done.stdout.strip() == str(tmp_path / "set")
    metadata = json.loads((tmp_path / "set" / "handmim.json").read_text())
    assert metadata["scene"]["focal"] == [0.94, 0.98], "the format's own camera, in any scene"
    assert {p.name for p in tmp_path.iterdir()} == {"set"}, "no other traces"


def test_a_hand_without_joint_axes_borrows_the_standins(tmp_path, hand_arrays):
    """A pickle in the manner of MANO's: the stand-in's own arrays come back, so do its images."""
    write_fake_mano(hand_arrays, tmp_path / "MANO_RIGHT.pkl")
    bare = load_hand_arrays(tmp_path / "MANO_RIGHT.pkl")
    assert "axes" not in bare.extras
    lent, own = with_rig(bare), with_rig(hand_arrays)
    assert own is hand_arrays
    np.testing.assert_allclose(lent.extras["J"], own.extras["J"], atol=1e-7)
    assert np.linalg.norm(lent.extras["tips"] - own.extras["tips"], axis=1).max() < 0.002
    scene = SceneSettings(**PLAIN | {"objects": 0.0, "view": "cone"})
    drawn = [SceneSource(a, scene, 0).renderer("test").render(0) for a in (lent, own)]
    assert np.abs(drawn[0].image.astype(int) - drawn[1].image).mean() < 2
    np.testing.assert_allclose(drawn[0].betas, drawn[1].betas)
    root = make(tmp_path / "root", num=2, num_eval=1, hand_path=tmp_path / "MANO_RIGHT.pkl")
    metadata = json.loads((root / "handmim.json").read_text())
    assert (metadata["hand"], metadata["hand_sha256"]) == ("MANO_RIGHT", bare.sha256)


def test_hands_that_cannot_be_drawn_are_refused(hand_arrays):
    with pytest.raises(ValueError, match="left hand"):
        with_rig(mirrored(hand_arrays))
    some = {"axes": hand_arrays.extras["axes"]}
    with pytest.raises(ValueError, match="neither by its own joint axes nor"):
        with_rig(dataclasses.replace(hand_arrays, extras=some))


def test_the_hand_is_written_as_a_mano_pickle_when_asked(tmp_path, hand_arrays):
    root = make(tmp_path / "root", num=2, num_eval=1, fake_mano=True)
    again = load_hand_arrays(root / "mano" / "MANO_RIGHT.pkl")
    assert again.sha256 == hand_arrays.sha256
    with pytest.raises(FileExistsError, match="differs in forge_mano"):
        make(root, num=2, num_eval=1)
