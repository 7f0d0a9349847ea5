import logging
import os
import tarfile
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from handmim.data.crops import CropFolder
from handmim.data.loader import collate_crops
from handmim.data.packed import PackedCrops
from handmim.data.packing import pack_crops
from handmim.images.files import find_images
from handmim.images.formats import printable


def photo_bytes(seed=0, ending=".png"):
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8), (0, 0), 2)
    return cv2.imencode(ending, image)[1].tobytes()


def put(path, seed=0, ending=".png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(photo_bytes(seed, ending))


def test_every_ending_is_read_in_any_case_and_others_are_counted(tmp_path, caplog):
    for ending in (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"):
        put(tmp_path / f"a{ending}", ending=ending)
    put(tmp_path / "B.TIF", ending=".tif")
    put(tmp_path / "c.jfif", ending=".jpg")
    put(tmp_path / "without")
    for i in range(3):
        (tmp_path / f"{i}.heic").write_bytes(b"x")
    (tmp_path / "labels.json").write_text("{}")
    data = CropFolder(tmp_path, image_px=16)
    assert len(data) == 11
    assert "5 of 16 files below" in caplog.text
    assert "3 x .heic (not readable here)" in caplog.text
    assert "1 x PNG image without an ending" in caplog.text
    assert "1 x .json;" in caplog.text


def test_notes_beside_the_images_are_no_warning(tmp_path, caplog):
    put(tmp_path / "a.png")
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "LICENSE").write_text("x")
    with caplog.at_level("INFO"):
        CropFolder(tmp_path, image_px=16)
    assert "2 of 3 files" in caplog.text
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_what_is_no_regular_file_is_named_and_never_opened(tmp_path, caplog):
    put(tmp_path / "a.png")
    put(tmp_path / "folder.jpg" / "b.png")
    os.mkfifo(tmp_path / "fifo.jpg")
    os.symlink(tmp_path / "fifo.jpg", tmp_path / "link.jpg")
    os.symlink("/dev/zero", tmp_path / "device.jpg")
    os.symlink("nowhere", tmp_path / "broken.jpg")
    os.symlink("itself.jpg", tmp_path / "itself.jpg")
    assert CropFolder(tmp_path, image_px=16).names == ["a.png", "folder.jpg/b.png"]
    assert "3 x no regular file: device.jpg, fifo.jpg, link.jpg" in caplog.text
    assert "2 x broken link: broken.jpg, itself.jpg" in caplog.text
    pack_crops(tmp_path, tmp_path / "crops.hm", image_px=16)
    assert len(PackedCrops(tmp_path / "crops.hm")) == 2


def test_folders_of_the_system_are_left_out_and_named(tmp_path, caplog):
    put(tmp_path / "a.png")
    for name in ("@eaDir/a.png", "$RECYCLE.BIN", "x/lost+found", "__MACOSX"):
        put(tmp_path / name / "thumb.png")
    assert CropFolder(tmp_path, image_px=16).names == ["a.png"]
    assert "4 x folder of the system: $RECYCLE.BIN, @eaDir, __MACOSX, ..." in caplog.text


def test_images_under_other_endings_are_to_be_renamed(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "b.jpg_large", ending=".jpg")
    (tmp_path / "c.mp4").write_bytes(b"x")
    account = find_images(tmp_path).account()
    assert "1 x .jpg_large (an image? rename it)" in account
    assert "1 x .mp4 (not readable here)" in account


def test_a_file_is_no_folder_of_images(tmp_path):
    (tmp_path / "list.txt").write_text("a.png")
    with pytest.raises(ValueError, match=r"list\.txt is a file, a folder"):
        CropFolder(tmp_path / "list.txt")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_files_and_folders_without_permission_are_named():
    """Read as another user: a closed file, a folder that is listed only, a closed folder."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("a.png", "b.png", "listed/c.png", "closed/d.png"):
            put(root / name)
        for name, mode in (("b.png", 0), ("listed", 0o444), ("closed", 0), ("", 0o755)):
            (root / name).chmod(mode)
        os.seteuid(65534)
        try:
            data, tree = CropFolder(root, image_px=16), find_images(root)
        finally:
            os.seteuid(0)
    assert data.names == ["a.png"]
    assert data.unreadable == ["b.png", "listed/c.png"]
    assert tree.left_out == {"folder that cannot be opened": ["closed"]}


def test_folders_that_link_to_each_other_are_visited_once(tmp_path):
    names = [f"d{i}" for i in range(9)]  # 9! ways through them
    for name in names:
        put(tmp_path / name / "x.png")
    for name in names:
        for other in names:
            os.symlink(tmp_path / other, tmp_path / name / f"to_{other}")
    assert find_images(tmp_path).names == [f"{name}/x.png" for name in names]


def test_names_that_are_no_utf8_survive_logs_groups_and_packing(tmp_path, caplog):
    root = os.fsencode(tmp_path) + b"/tree\xff"
    os.mkdir(root)
    for name in (b"a\xfe.png", b"new\nline.png"):
        with open(root + b"/" + name, "wb") as file:
            file.write(photo_bytes())
    with open(root + b"/bad\xfd.png", "wb") as file:
        file.write(b"no")
    data = CropFolder(os.fsdecode(root), image_px=16, group_by="folder")
    assert len(data) == 2
    assert len(set(collate_crops([data[0], data[1]]).group.tolist())) == 1
    assert "bad\\udcfd.png" in caplog.text
    caplog.text.encode()
    pack_crops(tmp_path, tmp_path / "crops.hm", image_px=16)
    packed = PackedCrops(tmp_path / "crops.hm", group_by="folder")
    assert sorted(packed.names) == sorted(os.path.join("tree\udcff", name) for name in data.names)
    collate_crops([packed[0], packed[1]])


def test_printable_names_keep_what_can_be_read():
    assert printable("größe 手.png") == "größe 手.png"
    assert printable("a\x1b[31m\udcff") == "a\\x1b[31m\\udcff"


def test_the_images_of_a_training_run_are_left_out(tmp_path, caplog):
    put(tmp_path / "a.png")
    put(tmp_path / "runs" / "x" / "images" / "step.png")
    put(tmp_path / "runs" / "x" / "pictures" / "step.png")
    put(tmp_path / "runs" / "x" / "predictions.png")
    put(tmp_path / "project" / "b.png")
    (tmp_path / "project" / "config.yaml").write_text("")
    for name in ("config.yaml", "run.json"):
        (tmp_path / "runs" / "x" / name).write_text("{}")
    assert CropFolder(tmp_path, image_px=16).names == ["a.png", "project/b.png"]
    assert "3 x output of a run: runs/x/" in caplog.text
    assert len(CropFolder(tmp_path, image_px=16, include_all=True)) == 5


def test_patterns_leave_images_out(tmp_path):
    for name in ("a/1.png", "b/1.png", "b/c/2.png"):
        put(tmp_path / name)
    assert CropFolder(tmp_path, image_px=16, exclude=["b/*"]).names == ["a/1.png"]
    with pytest.raises(ValueError, match=r"no image file.*3 x excluded"):
        CropFolder(tmp_path, image_px=16, exclude=["*"])


def freihand_like(root):
    for i in range(3):
        put(root / "training" / "rgb" / f"{i}.jpg", i, ".jpg")
        put(root / "evaluation" / "rgb" / f"{i}.jpg", i, ".jpg")
    (root / "training_K.json").write_text("[]")
    (root / "evaluation_K.json").write_text("[]")


@pytest.mark.parametrize("part", ["", "evaluation", "evaluation/rgb"])
def test_evaluation_images_of_a_benchmark_are_named(tmp_path, part, caplog):
    freihand_like(tmp_path / "FreiHAND_pub_v2")
    CropFolder(tmp_path / "FreiHAND_pub_v2" / part, image_px=16)
    assert "3 of its evaluation images would be seen in pretraining" in caplog.text
    assert "data=freihand" in caplog.text


def test_a_benchmark_without_its_evaluation_images_is_fine(tmp_path, caplog):
    freihand_like(tmp_path)
    data = CropFolder(tmp_path, image_px=16, exclude=["evaluation/*"])
    assert len(data) == 3
    assert "would be seen" not in caplog.text
    caplog.clear()
    CropFolder(tmp_path / "training", image_px=16)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_links_and_later_copies_in_tar_files(tmp_path):
    put(tmp_path / "a.png", 1)
    put(tmp_path / "b.png", 2)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
        tar.add(tmp_path / "b.png", "a.png")
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/dev/zero"
        tar.addfile(link)
        device = tarfile.TarInfo("d.png")
        device.type = tarfile.CHRTYPE
        tar.addfile(device)
    pack_crops(tmp_path / "x.tar", tmp_path / "x.hm", image_px=16, coding="raw")
    packed, plain = PackedCrops(tmp_path / "x.hm"), CropFolder(tmp_path, image_px=16)
    assert packed.names == ["x/a.png"]
    np.testing.assert_array_equal(packed[0].image, plain[1].image)
