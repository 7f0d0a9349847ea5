import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from handmim.data import synthetic
from handmim.data.datasets import label_ids, label_subset
from handmim.data.loader import batches, collate_hands
from handmim.data.synthetic import SyntheticHands, cache_name
from handmim.render import cache
from handmim.render.scene import SceneRenderer, SceneSettings

SCENE = {"image_px": 32, "view": "cone", "background": "studio", "objects": 0.0, "occluders": 0.0}


@pytest.fixture
def make(tmp_path, hand_path):
    def build(split="train", num=6, scene=SCENE, **kwargs):
        settings = {"cache_dir": tmp_path, "num_workers": 0} | kwargs
        return SyntheticHands(hand_path, split, num, scene=scene, **settings)

    return build


def test_samples_are_the_renderers_pictures_with_their_truth(make, hand_arrays):
    data, renderer = make(), SceneRenderer(hand_arrays, SceneSettings(**SCENE), 0, "train")
    assert len(data) == 6
    for i in (0, 5):
        sample, truth = data[i], renderer.render(i)
        assert np.array_equal(sample.image, truth.image)
        np.testing.assert_allclose(sample.verts_cam_m, truth.verts_cam_m, atol=1e-6)
        px = truth.joints_cam_m @ truth.K_px.T
        np.testing.assert_allclose(sample.kp2d_crop_px, px[:, :2] / px[:, 2:], atol=1e-3)
        assert sample.has_mano
        assert sample.has_verts
        assert sample.has_K
    with pytest.raises(IndexError):
        data[6]


def test_cache_is_reused_and_serves_smaller_sets(make, monkeypatch):
    first = make(num=6)

    def forbidden(*args):
        raise AssertionError("rendered again")

    monkeypatch.setattr(synthetic, "render_split", forbidden)
    assert make(num=6).folder == first.folder
    small = make(num=3)
    assert small.folder == first.folder
    assert len(small) == 3
    with pytest.raises(AssertionError, match="rendered again"):
        make(num=7)
    with pytest.raises(AssertionError, match="rendered again"):
        make(seed=1)
    with pytest.raises(AssertionError, match="rendered again"):
        make(scene={**SCENE, "noise": 0.0})


def test_name_depends_on_everything_that_changes_pictures(monkeypatch, tmp_path):
    settings = SceneSettings(**SCENE)
    names = {
        cache_name("a", settings, 0),
        cache_name("b", settings, 0),
        cache_name("a", settings, 1),
        cache_name("a", SceneSettings(**{**SCENE, "blur": 0.0}), 0),
    }
    photos = SceneSettings(image_px=32, background="photos", photos_dir=str(tmp_path))
    names.add(cache_name("a", photos, 0))
    (tmp_path / "x.png").write_bytes(b"1")
    names.add(cache_name("a", photos, 0))
    monkeypatch.setattr(synthetic, "RENDERER_VERSION", -1)
    names.add(cache_name("a", settings, 0))
    assert len(names) == 7
    assert all(name.startswith("synthetic-32px-") for name in names)


def test_a_failing_render_leaves_nothing_behind(make, monkeypatch, tmp_path):
    def fail(*args):
        raise RuntimeError("power cut")

    with monkeypatch.context() as m:
        m.setattr(SceneRenderer, "render", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            make()
    assert not list(tmp_path.rglob("*.npy"))
    assert len(make()) == 6


def test_meta_names_the_hand(make, hand_arrays):
    data = make()
    meta = json.loads((data.folder / "meta.json").read_text())
    assert meta["hand_sha256"] == data.hand_sha256 == hand_arrays.sha256
    assert meta["num"] == 6


def test_worker_processes_draw_the_same_pictures(make, tmp_path):
    alone = np.load(make(num=300).folder / "image.npy")
    shutil.rmtree(tmp_path)
    several = np.load(make(num=300, num_workers=2).folder / "image.npy")
    assert np.array_equal(alone, several)


def test_blocks_that_another_process_has_taken_are_left_to_it(make, monkeypatch):
    def busy(module, job, folder, num_workers, while_waiting):
        (folder / f"{cache.TAKEN}2").touch()
        cache.render_blocks(job, folder)

    monkeypatch.setattr(cache, "POSE_BLOCK", 2)
    data = make()
    whole = np.load(data.folder / "image.npy")
    shutil.rmtree(data.folder)
    monkeypatch.setattr(cache, "run_workers", busy)
    partly = np.load(make(num_workers=2).folder / "image.npy")
    drawn = partly.any(axis=(1, 2, 3))
    assert drawn.tolist() == [True, True, False, False, True, True]
    assert np.array_equal(partly[drawn], whole[drawn])


def test_no_more_processes_than_blocks_and_by_default_every_core(make, monkeypatch):
    asked = []
    monkeypatch.setattr(cache, "run_workers", lambda *args: asked.append(args[3]))
    monkeypatch.setattr(cache, "POSE_BLOCK", 2)
    monkeypatch.setattr(cache, "cores", lambda: 3)
    make(num=9, num_workers=None)
    make(num=10, num_workers=8)
    assert asked == [3, 5]


def test_a_failing_worker_process_is_reported_with_its_words(make, tmp_path, monkeypatch):
    def broken(module, job, *args):
        run_workers(module, {**job, "split": "nowhere"}, *args)

    run_workers = cache.run_workers
    monkeypatch.setattr(cache, "run_workers", broken)
    with pytest.raises(RuntimeError, match="split must be one of"):
        make(num_workers=2)
    assert not list(tmp_path.rglob("*.npy"))


def test_workers_start_without_torch():
    code = "import sys, handmim.render.cache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num": 0}, "num must be >= 1"),
        ({"num_workers": -1}, "num_workers must be >= 0"),
        ({"split": "all"}, "split must be"),
    ],
)
def test_bad_settings_are_named(make, change, word):
    with pytest.raises(ValueError, match=word):
        make(**change)


def test_batches_and_nested_label_subsets(make):
    data = make()
    assert [len(b.betas) for b in batches(data, 4)] == [4, 2]
    whole = collate_hands([data[i] for i in range(6)])
    assert (whole.kp2d_crop_ndc.abs() < 1.2).all()
    assert label_ids(data) == [data[i].sample_id for i in range(6)]
    assert "part train" in data.source or "part val" in data.source
    two, four = label_subset(data, 2, seed=3), label_subset(data, 4, seed=3)
    assert two.indices == four.indices[:2]
    assert label_subset(data, 4, seed=4).indices != four.indices
    assert label_subset(data, None, 0) is data
    with pytest.raises(ValueError, match="num_labels"):
        label_subset(data, 7, 0)


@pytest.mark.parametrize("name", ["image", "verts_cam_m"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "is cut off or no .npy file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is cut off or no .npy file"),
        (lambda path: path.write_bytes(bytes(5000)), "is cut off or no .npy file"),
        (lambda path: np.save(path, np.zeros((6, 2))), "holds shape"),
        (lambda path: np.save(path, np.load(path)[:2]), "has fewer than 6 entries"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_a_damaged_cache_is_refused_with_the_folder_to_delete(make, name, damage, message):
    folder = make().folder
    damage(folder / f"{name}.npy")
    with pytest.raises(ValueError, match=rf"{name}.*{message}|{message}.*{name}") as caught:
        make()
    assert f"delete {folder} and it is rendered anew" in str(caught.value)
    shutil.rmtree(folder)
    assert make().folder == folder


def test_folders_beside_a_cache_that_are_none_are_passed_over(make):
    folder = make().folder
    for name in ("train-9.bak", "train-", "train-12 copy"):
        shutil.copytree(folder, folder.with_name(name))
    assert make().folder == folder


def test_a_changed_byte_of_a_rendered_sample_is_named(make):
    data = make()
    names = (
        "image",
        "K_px",
        "verts_cam_m",
        "joints_cam_m",
        "rotmats",
        "betas",
        "transl_m",
        "crc32",
    )
    for name in names:
        path = data.folder / f"{name}.npy"
        whole = path.read_bytes()
        path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        again = make()
        assert again[4].sample_id == "train/4"
        with pytest.raises(ValueError, match=rf"{data.folder} is damaged: sample 5 .*delete "):
            again[5]
        path.write_bytes(whole)


def test_every_changed_byte_of_a_cache_besides_its_samples_is_refused_at_the_start(make):
    folder = make().folder
    for path, length in ((folder / "meta.json", None), (folder / "image.npy", 128)):
        whole = path.read_bytes()
        for place in range(0, len(whole[:length]), 23):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(ValueError, match="rendered anew"):
                make()
        path.write_bytes(whole)


def test_a_cache_of_an_older_version_is_read_without_checksums(make):
    folder = make().folder
    image = make()[3].image.copy()
    (folder / "crc32.npy").unlink()
    meta = json.loads((folder / "meta.json").read_text())
    del meta["crc32"]
    (folder / "meta.json").write_text(json.dumps(meta))
    assert np.array_equal(make()[3].image, image)


def test_what_a_killed_rendering_left_over_is_removed_by_the_next(make, tmp_path):
    folder = make().folder
    leftover = folder.with_name(".train-9.abcdefgh")
    shutil.copytree(folder, leftover)
    make(num=9)
    assert not leftover.exists()
