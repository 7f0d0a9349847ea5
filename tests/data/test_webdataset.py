import io
import json
import tarfile
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from handmim.data.crops import CropFolder
from handmim.data.keypoints import KeypointPhotos
from handmim.data.loader import collate_crops, collate_hands
from handmim.data.packed import ShardCrops
from handmim.data.packing import pack_crops
from handmim.images.decode import UnreadableImage
from handmim.utils.files import UnreadableSample

POINTS = [[8.0 + k, 12.0 + 2 * k, 2] for k in range(21)]


def image_file(seed: int, side: int = 32, ending: str = ".png") -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return cv2.imencode(ending, image)[1].tobytes()


def write_tar(path, files: dict[str, bytes]):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for i in range(7):
        path = root / "ab"[i % 2] / f"{i}.v1.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_file(i, 40))
    return root


def ids_and_images(data):
    return [(data[i].sample_id, data[i].image) for i in range(len(data))]


def test_shards_hold_the_crops_of_the_folder(photos, tmp_path):
    target = tmp_path / "shards"
    assert pack_crops(photos, target, image_px=32, coding="raw", shard_size=3) == []
    assert sorted(p.name for p in target.iterdir()) == [f"crops-00000{i}.tar" for i in range(3)]
    folder, shards = CropFolder(photos, image_px=32), ShardCrops(target, image_px=32)
    assert len(shards) == 7
    assert shards.names[0] == "crops-000000/a/0_v1"
    for a, (_, image) in zip(ids_and_images(folder), ids_and_images(shards), strict=True):
        np.testing.assert_array_equal(a[1], image)
    assert [shards.metadata_of(i)["source"] for i in range(7)] == folder.names
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_equal_crops_give_equal_bytes_and_nothing_is_overwritten(photos, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for target in (one, two):
        pack_crops(photos, target, image_px=32, shard_size=4)
    assert (one / "crops-000001.tar").read_bytes() == (two / "crops-000001.tar").read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite"):
        pack_crops(photos, one, image_px=32, shard_size=4)
    pack_crops(photos, one, image_px=32, shard_size=9, overwrite=True)
    assert [p.name for p in one.iterdir()] == ["crops-000000.tar"]


def test_the_library_reads_our_shards_and_we_read_its(photos, tmp_path):
    wds = pytest.importorskip("webdataset")
    target = tmp_path / "shards"
    pack_crops(photos, target, image_px=32, coding="raw", shard_size=100)
    ours = ShardCrops(target, image_px=32)
    with (target / "crops-000000.tar").open("rb") as file:
        files = wds.tariterators.tar_file_expander([{"url": "ours", "stream": file}])
        theirs = list(wds.tariterators.group_by_keys(files))
    assert [f"crops-000000/{sample['__key__']}" for sample in theirs] == ours.names
    for i, sample in enumerate(theirs):
        image = cv2.imdecode(np.frombuffer(sample["png"], np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(image[..., ::-1], ours[i].image)
        assert json.loads(sample["json"]) == ours.metadata_of(i)
    with wds.TarWriter(str(tmp_path / "wds.tar")) as sink:
        for i in range(3):
            sink.write({"__key__": f"hand{i}", "png": ours[i].image, "json": {"group": "film"}})
    data = ShardCrops(tmp_path / "wds.tar", image_px=32)
    assert data.names == [f"wds/hand{i}" for i in range(3)]
    assert data[2].group == "film"
    np.testing.assert_array_equal(data[2].image, ours[2].image)


def test_keypoints_and_metadata_come_back_as_labels(photos, tmp_path):
    images = [{"id": i, "file_name": f"{'ab'[i % 2]}/{i}.v1.png"} for i in range(4)]
    notes = [
        {
            "image_id": i,
            "keypoints": np.ravel(POINTS).tolist(),
            "handedness": ("left", "right")[i % 2],
        }
        for i in range(4)
    ]
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"images": images, "annotations": notes}))
    target = tmp_path / "hands"
    pack_crops(photos, target, image_px=48, coding="raw", shard_size=2, annotations=labels)
    expected = KeypointPhotos(photos, labels, split="all", image_px=48)
    data = ShardCrops(target, image_px=48)
    batch = collate_hands([data[i] for i in range(4)])
    right = collate_hands([expected[i] for i in range(4)])
    for name, value in batch._asdict().items():
        torch.testing.assert_close(value, getattr(right, name), rtol=0, atol=1e-6)
    assert collate_crops([data[0]]).image.equal(batch.image[:1])
    padded = collate_hands([ShardCrops(target, image_px=48, crop_scale=1.2)[i] for i in range(4)])
    torch.testing.assert_close(padded.kp2d_crop_ndc, batch.kp2d_crop_ndc / 1.2)
    with pytest.raises(ValueError, match="shards only"):
        pack_crops(photos, tmp_path / "x.hm", annotations=labels)


def test_workers_read_the_same_crops_in_any_order(photos, tmp_path):
    pack_crops(photos, tmp_path / "shards", image_px=32, shard_size=2)
    data = ShardCrops(tmp_path / "shards", image_px=32)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0)).tolist()
    loader = DataLoader(data, 2, sampler=order, collate_fn=collate_crops, num_workers=2)
    loaded = torch.cat([batch.image for batch in loader])
    assert loaded.equal(collate_crops([data[i] for i in order]).image)
    resumed = DataLoader(data, 2, sampler=order[4:], collate_fn=collate_crops)
    assert torch.cat([batch.image for batch in islice(resumed, 2)]).equal(loaded[4:])


def test_other_sizes_are_resized_and_folders_group(tmp_path):
    files = {"film/1.jpg": image_file(0, 50, ".jpg"), "film/2.jpeg": image_file(1, 32, ".jpg")}
    write_tar(tmp_path / "s.tar", {**files, "film/notes.txt": b"no"})
    data = ShardCrops(tmp_path, image_px=32, group_by="folder")
    assert [data[i].image.shape for i in range(2)] == [(32, 32, 3)] * 2
    assert data[0].group == "s/film"


def damaged(raw: bytes, kind: str) -> bytes:
    if kind == "no end":
        cut = raw.rstrip(b"\0")
        return cut + bytes(-len(cut) % 512)
    if kind == "header":
        changed = bytearray(raw)
        changed[raw.index(b"2.png")] ^= 1
        return bytes(changed)
    return raw[: raw.index(b"2.png") + 700] if kind == "cut" else raw[:100]


@pytest.mark.parametrize("kind", ["no end", "header", "cut", "too short"])
def test_a_damaged_shard_is_refused_by_name(tmp_path, kind):
    path = write_tar(tmp_path / "s-7.tar", {f"{i}.png": image_file(i) for i in range(4)})
    path.write_bytes(damaged(path.read_bytes(), kind))
    with pytest.raises(ValueError, match=r"s-7\.tar is .*(damaged|cut short)"):
        ShardCrops(tmp_path, image_px=32)


def test_what_is_no_folder_of_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \*\.tar file"):
        ShardCrops(tmp_path)
    with pytest.raises(ValueError, match="no regular file"):
        ShardCrops(tmp_path / "none.tar")
    write_tar(tmp_path / "s.tar", {"note.json": b"{}"})
    with pytest.raises(ValueError, match="no image file"):
        ShardCrops(tmp_path)
    write_tar(tmp_path / "s.tar", {"1.png": image_file(0), "1.jpg": image_file(0, 32, ".jpg")})
    with pytest.raises(ValueError, match="two images of key '1'"):
        ShardCrops(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"crc32": 5}, "not what was written"),
        ({"keypoints": [[1, 2, 2]] * 20}, "keypoints"),
        ({"keypoints": POINTS, "K": [1, 2]}, "K must be 3 x 3"),
        ({"keypoints": POINTS, "handedness": "both"}, "handedness='both'"),
        ([1], "holds no object"),
    ],
)
def test_a_damaged_sample_is_unreadable_by_name(tmp_path, metadata, reason):
    files = {"1.png": image_file(0), "1.json": json.dumps(metadata).encode()}
    data = ShardCrops(write_tar(tmp_path / "s.tar", files), image_px=32)
    with pytest.raises(UnreadableSample, match=rf"s\.tar: 1\.png.*{reason}"):
        data[0]


def test_an_image_that_cannot_be_decoded_is_unreadable_by_name(tmp_path):
    data = ShardCrops(write_tar(tmp_path / "s.tar", {"1.png": b"no"}), image_px=32)
    with pytest.raises(UnreadableImage, match=r"s\.tar: 1\.png cannot be read"):
        data[0]
    with pytest.raises(IndexError, match="index 1 of 1"):
        data[1]


def test_the_fingerprint_follows_the_content_not_the_folder(photos, tmp_path):
    pack_crops(photos, tmp_path / "shards", image_px=32, shard_size=4)
    first = ShardCrops(tmp_path / "shards", image_px=32).fingerprint()
    (tmp_path / "shards").rename(tmp_path / "moved")
    assert ShardCrops(tmp_path / "moved", image_px=32).fingerprint() == first
    (tmp_path / "moved" / "crops-000001.tar").unlink()
    assert ShardCrops(tmp_path / "moved", image_px=32).fingerprint() != first
