import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from handmim.data import packing
from handmim.data.crops import CropFolder
from handmim.data.loader import collate_crops
from handmim.data.packed import HEAD, MAGIC, PackedCrops, read_index
from handmim.data.packing import pack_crops
from handmim.images.decode import UnreadableImage
from handmim.utils.processes import BAD_INPUT

TOOL = Path(__file__).parents[2] / "tools" / "pack_crops.py"


@pytest.fixture
def tree(tmp_path):
    """Images of several sizes and kinds in two folders, one of them broken."""
    root = tmp_path / "photos"
    rng = np.random.default_rng(0)
    shapes = {"a/1.png": (40, 60), "a/2.jpg": (32, 32), "b/1.jpg": (130, 90), "top.webp": (20, 20)}
    for name, (height, width) in shapes.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert cv2.imwrite(str(path), cv2.GaussianBlur(image, (0, 0), 4))
    (root / "a" / "broken.jpg").write_bytes(b"\xff\xd8 no")
    return root


def samples(data):
    return [data[i] for i in range(len(data))]


@pytest.mark.parametrize("group_by", ["none", "folder"])
@pytest.mark.parametrize("fit", ["contain", "cover"])
def test_raw_crops_are_those_of_the_folder(tree, tmp_path, fit, group_by, caplog):
    progress_calls = []
    file = tmp_path / "deep" / "crops.hm"
    unreadable = pack_crops(
        tree, file, image_px=32, fit=fit, coding="raw", progress=lambda *x: progress_calls.append(x)
    )
    assert unreadable == ["a/broken.jpg"]
    assert "skipped 1 unreadable of 5 images: a/broken.jpg" in caplog.text
    assert progress_calls == [(i, 5) for i in range(1, 6)]
    folder = CropFolder(tree, image_px=32, fit=fit, group_by=group_by)
    packed = PackedCrops(file, group_by=group_by)
    for a, b in zip(samples(folder), samples(packed), strict=True):
        assert (a.sample_id, a.group) == (b.sample_id, b.group)
        np.testing.assert_array_equal(a.image, b.image)
    one, other = collate_crops(samples(folder)), collate_crops(samples(packed))
    assert one.image.equal(other.image)
    assert [p.name for p in file.parent.iterdir()] == ["crops.hm"]


def test_jpegs_lose_little_and_crops_that_fit_nothing(tree, tmp_path):
    file = tmp_path / "crops.hm"
    pack_crops(tree, file, image_px=32)
    folder, packed = CropFolder(tree, image_px=32), PackedCrops(file)
    assert packed.names == folder.names
    for a, b in zip(samples(folder), samples(packed), strict=True):
        assert np.abs(a.image.astype(int) - b.image).mean() < 3
    assert (tree / "a" / "2.jpg").read_bytes() in file.read_bytes()
    worse = tmp_path / "worse.hm"
    pack_crops(tree, worse, image_px=32, quality=20)
    assert worse.stat().st_size < file.stat().st_size


def test_tar_files_in_order(tree, tmp_path, caplog):
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard, names in (("s1", ["b/1.jpg", "a/1.png"]), ("s0", ["top.webp", "a/broken.jpg"])):
        with tarfile.open(shards / f"{shard}.tar", "w") as tar:
            for name in names:
                tar.add(tree / name, name)
            note = tarfile.TarInfo("note.json")
            note.size = 2
            tar.addfile(note, io.BytesIO(b"{}"))
    file = tmp_path / "crops.hm"
    assert pack_crops(shards, file, image_px=32, coding="raw") == ["s0/a/broken.jpg"]
    packed = PackedCrops(file, group_by="folder")
    assert packed.names == ["s0/top.webp", "s1/b/1.jpg", "s1/a/1.png"]
    assert packed[2].group == "s1/a"
    folder = CropFolder(tree, image_px=32)
    np.testing.assert_array_equal(packed[2].image, folder[folder.names.index("a/1.png")].image)
    pack_crops(shards / "s1.tar", file, image_px=32, coding="raw", overwrite=True)
    assert PackedCrops(file).names == ["s1/b/1.jpg", "s1/a/1.png"]
    assert "cut short" not in caplog.text
    whole = (shards / "s1.tar").read_bytes()
    cut = whole.rstrip(b"\0")  # without the zeros that end it
    (shards / "s1.tar").write_bytes(cut + bytes(-len(cut) % 512))
    pack_crops(shards / "s1.tar", file, image_px=32, coding="raw", overwrite=True)
    assert "s1.tar ends without the mark of its end: is it cut short?" in caplog.text
    with tarfile.open(shards / "s1.tar", "w:gz") as tar:
        tar.add(tree / "top.webp", "top.webp")
    with pytest.raises(ValueError, match=r"s1\.tar is .*no uncompressed tar"):
        pack_crops(shards, file, overwrite=True)


def test_every_process_opens_its_own(tree, tmp_path):
    file = tmp_path / "crops.hm"
    pack_crops(tree, file, image_px=32)
    data = PackedCrops(file)
    first = data[0].image
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301  loaders do this
    np.testing.assert_array_equal(copy[0].image, first)
    loader = DataLoader(data, batch_size=2, collate_fn=collate_crops, num_workers=2)
    loaded = [batch.image for batch in loader]
    assert loaded[0].equal(collate_crops([data[0], data[1]]).image)
    with pytest.raises(IndexError, match="index 4 of 4"):
        data[4]


def test_nothing_is_overwritten_or_left_half_written(tree, tmp_path, monkeypatch):
    file = tmp_path / "crops.hm"
    pack_crops(tree, file, image_px=32)
    before = file.read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite"):
        pack_crops(tree, file)
    monkeypatch.setattr(packing, "square", lambda *x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pack_crops(tree, file, overwrite=True)
    assert file.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["crops.hm", "photos"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fit": "stretch"}, "fit must be one of"),
        ({"coding": "png"}, "coding must be one of"),
        ({"quality": 0}, "quality must be in 1..100"),
        ({"image_px": 0}, "image_px must be >= 1"),
    ],
)
def test_bad_settings_are_named(tree, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        pack_crops(tree, tmp_path / "x.hm", **settings)


def test_nothing_to_pack_is_refused(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    with pytest.raises(ValueError, match="no image file"):
        pack_crops(root, tmp_path / "x.hm")
    (root / "a.png").write_bytes(b"no")
    with pytest.raises(ValueError, match="none of the images"):
        pack_crops(root, tmp_path / "x.hm")
    assert not (tmp_path / "x.hm").exists()


def test_foreign_and_damaged_files_are_refused(tree, tmp_path):
    file, other = tmp_path / "crops.hm", tmp_path / "other.hm"
    pack_crops(tree, file, image_px=32)
    whole = file.read_bytes()

    def refused(content: bytes, message: str) -> None:
        other.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            PackedCrops(other)

    with pytest.raises(ValueError, match=r"is no file of packed crops"):
        PackedCrops(tmp_path / "none.hm")
    refused(b"", "is no file of packed crops")
    refused(b"PK\x03\x04" + whole[4:], "is no file of packed crops")
    refused(whole[: HEAD.size - 1], "is no file of packed crops")
    refused(whole[:8] + b"\x07" + whole[9:], "of version 7: write it again")
    for length in (HEAD.size, len(whole) // 2, len(whole) - 1):
        refused(whole[:length], "is damaged")
    refused(whole + b"x", "is damaged")
    refused(whole[:-3] + b"9" + whole[-2:], "is damaged")
    changed = bytearray(whole)
    changed[read_index(file)["ends"][0] - 20] ^= 1
    other.write_bytes(changed)
    data = PackedCrops(other)
    data[1]
    with pytest.raises(UnreadableImage, match=r"a/1\.png.*not what was written"):
        data[0]
    with pytest.raises(ValueError, match="group_by must be one of"):
        PackedCrops(file, group_by="video")


def test_the_head_is_as_documented():
    assert HEAD.size == 64
    assert HEAD.pack(MAGIC, 1, 0, 5, 2, b"")[:8] == b"HMcrops\n"


def test_the_tool_packs_and_refuses(tree, tmp_path):
    file = tmp_path / "crops.hm"
    command = [sys.executable, TOOL, str(tree), str(file), "--image-px", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"4 images of 32 px, 0.0 MiB, 1 left out: data=packed data.root={file}" in done.stdout
    assert "a/broken.jpg" in done.stderr
    assert len(PackedCrops(file)) == 4
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == BAD_INPUT
    assert "--overwrite" in again.stderr
