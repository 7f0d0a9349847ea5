import cv2
import numpy as np
import pytest
from PIL import Image

from handmim.data.crops import CropFolder
from handmim.data.packed import PackedCrops
from handmim.data.packing import pack_crops
from handmim.images.files import (
    DEPTH,
    FEW_COLOURS,
    FLAT,
    GREYSCALE,
    IMAGE,
    LABELS,
    MASK,
    NORMALS,
    groups_of,
    kind_of,
)


def photo(seed=0, side=64):
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)


def mask(seed=0, side=64):
    image = np.zeros((side, side, 3), np.uint8)
    cv2.circle(image, (side // 2, side // 2 - seed % 5), side // 4 + seed % 7, (255,) * 3, -1)
    return image


def depth(seed=0, side=64):
    y, x = np.mgrid[:side, :side]
    units = (6000 + 40 * x + 25 * y + 100 * seed).astype(np.uint16)
    image = np.zeros((side, side, 3), np.uint8)
    image[..., 0], image[..., 1] = units & 255, units >> 8  # red, green
    return image


def segments(seed=0, side=64):
    image = np.zeros((side, side, 3), np.uint8)
    image[: side // 2], image[:, : side // 3] = (200, 30, 30), (20, 180, 90)
    return image


def ids(seed=0, side=64):
    """[side, side] numbers 0 .. 3 of regions."""
    image = np.zeros((side, side), np.uint8)
    image[side // 2 :], image[:, : side // 3], image[5 + seed % 7 : 20, 20:40] = 1, 2, 3
    return image


def distances(seed=0, side=64, void=0):
    """[side, side] millimetres, `void` where there is no measurement."""
    y, x = np.mgrid[:side, :side]
    image = (400 + 9 * x + 5 * y + seed).astype(np.uint16)
    image[:6] = void
    return image


def normals(seed=0, side=64):
    y, x = np.mgrid[:side, :side] / side - 0.5 + seed / 100
    vectors = np.dstack([x, y, np.full_like(x, 0.3)])
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return np.rint(vectors * 127.5 + 127.5).astype(np.uint8)


def infrared(seed=0, side=64):
    """[side, side] photo of a 12-bit sensor."""
    noise = np.random.default_rng(seed).normal(0, 40, (side, side))
    return np.clip(photo(seed, side)[..., 0] * 14 + noise, 0, 4095).astype(np.uint16)


def by_palette(image, colours):
    palette = Image.frombytes("P", image.shape[::-1], image.tobytes())
    palette.putpalette(colours)
    return palette


def put(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, Image.Image):
        image.save(path)
    else:
        assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


def by_jpeg(image):
    return cv2.imdecode(cv2.imencode(".jpg", image)[1], cv2.IMREAD_COLOR)


def test_each_kind_is_recognised():
    grey = cv2.cvtColor(cv2.cvtColor(photo(), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    assert kind_of(photo(), is_lossy=True) == kind_of(photo(), is_lossy=False) == IMAGE
    assert (
        kind_of(mask(), is_lossy=False) == kind_of(by_jpeg(mask(side=224)), is_lossy=True) == MASK
    )
    assert kind_of(depth(), is_lossy=False) == DEPTH
    assert kind_of(segments(), is_lossy=False) == FEW_COLOURS
    assert kind_of(grey, is_lossy=True) == kind_of(grey, is_lossy=False) == IMAGE
    assert kind_of(by_jpeg(depth()[..., 1:2].repeat(3, 2)), is_lossy=True) == GREYSCALE
    assert kind_of(np.full((9, 9, 3), 7, np.uint8), is_lossy=False) == FLAT


@pytest.mark.parametrize(
    ("pattern", "make"),
    [
        ("training/mask/{}.jpg", mask),
        ("train/ABF10/depth/{}.png", depth),
        ("deep/{}.png", depth),
        ("x/masks/{}.png", segments),
        ("x/semantic-labels/{}.png", segments),
        ("training/rgb/{}_mask.jpg", mask),
        ("training/rgb/{}-seg.jpg", segments),
        ("gt/{}.png", mask),
    ],
)
def test_maps_beside_photos_are_left_out_and_named(tmp_path, pattern, make, caplog):
    for i in range(10):
        put(tmp_path / "training" / "rgb" / f"{i}.jpg", photo(i))
        put(tmp_path / pattern.format(i), make(i))
    data = CropFolder(tmp_path, image_px=16)
    assert data.names == [f"training/rgb/{i}.jpg" for i in range(10)]
    assert "10 of 20 files" in caplog.text
    assert "data.train.include_all=true" in caplog.text
    assert len(CropFolder(tmp_path, image_px=16, include_all=True)) == 20
    pack_crops(tmp_path, tmp_path / "x.hm", image_px=16)
    assert PackedCrops(tmp_path / "x.hm").names == data.names


def draw_fingers(i):
    image = np.zeros((100, 100, 3), np.uint8)
    for x in range(15 + i, 90, 16):
        cv2.line(image, (x, 5 + i), (50, 95), (255,) * 3, 6)
    return image


@pytest.mark.parametrize("name", ["{}_m.jpg", "m_{}.jpg"])
def test_lossy_masks_in_the_folder_of_their_photos_are_left_out(tmp_path, name):
    for i in range(6):
        put(tmp_path / f"{i}.jpg", photo(i))
        put(tmp_path / name.format(i), draw_fingers(i))
    assert CropFolder(tmp_path, image_px=16).names == [f"{i}.jpg" for i in range(6)]


def test_lossy_masks_and_photos_of_two_affixes_are_told_apart():
    grey = cv2.cvtColor(cv2.cvtColor(photo(), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    dark, bright = grey // 5, np.clip(grey.astype(int) + 90, 0, 255).astype(np.uint8)
    lines = np.full((100, 100, 3), 255, np.uint8)
    for x in range(4, 96, 8):
        cv2.line(lines, (x, 0), (99 - x, 99), (0,) * 3, 1)
    assert kind_of(by_jpeg(draw_fingers(0)), is_lossy=True) == MASK
    for image in (grey, dark, bright, lines):
        assert kind_of(by_jpeg(image), is_lossy=True) != MASK
    names = [f"{i}_{kind}.jpg" for i in range(6) for kind in ("a", "b")]
    assert [len(group) for group in groups_of(names).values()] == [6, 6]


@pytest.mark.parametrize("folder", ["masks", "depth camera", "labels", "grey_normal"])
def test_photos_stay_whatever_their_folder_is_called(tmp_path, folder):
    for i in range(10):
        image = photo(i)
        image = image[..., :1].repeat(3, 2) if folder == "grey_normal" else image
        put(tmp_path / folder / f"{i}.jpg", image)
        put(tmp_path / "rgb" / f"{i}.jpg", photo(i))
    assert len(CropFolder(tmp_path, image_px=16)) == 20


VOC = np.random.default_rng(0).integers(0, 256, 768, np.uint8).tolist()  # 256 colours


@pytest.mark.parametrize(
    ("name", "make", "kind"),
    [
        ("x/{}.png", lambda i: ids(i) // 3, LABELS),
        ("x/{}.png", lambda i: ids(i) // 3 * 38, LABELS),
        ("x/{}.png", ids, LABELS),
        ("x/{}.png", lambda i: ids(i)[..., None].repeat(3, 2), LABELS),
        ("x/{}.png", lambda i: ids(i).astype(np.uint16) * 1000, LABELS),
        ("x/{}.png", lambda i: by_palette(ids(i), VOC), LABELS),
        ("x/{}.png", distances, DEPTH),
        ("x/{}.png", lambda i: distances(i, void=65535), DEPTH),
        ("x/{}.tif", lambda i: np.float32(distances(i)) / 1000, DEPTH),
        ("x/{}.tif", lambda i: np.float32(distances(i)[6:]) / 500, DEPTH),
        ("x/{}.png", normals, NORMALS),
        ("depthmap/{}.png", lambda i: distances(i)[6:], GREYSCALE),
        ("disp/{}.png", lambda i: distances(i)[6:], GREYSCALE),
        ("HandDepth/{}.tif", lambda i: np.float32(distances(i)[6:]), GREYSCALE),
    ],
)
def test_numbers_of_labels_and_distances_are_no_photos(tmp_path, name, make, kind, caplog):
    for i in range(5):
        put(tmp_path / "rgb" / f"{i}.jpg", photo(i))
        put(tmp_path / name.format(i), make(i))
    assert CropFolder(tmp_path, image_px=16).names == [f"rgb/{i}.jpg" for i in range(5)]
    assert f"5 x {kind} (data.train.include_all=true" in caplog.text


@pytest.mark.parametrize(
    "make",
    [
        infrared,
        lambda i: np.pad(infrared(i), 4),
        lambda i: infrared(i) // 16 + np.uint16(29_000),  # thermal
        lambda i: np.float32(infrared(i)) / 4095,
        lambda i: Image.fromarray(photo(i)[..., 0]).convert("1"),  # dithered
        lambda i: Image.fromarray(photo(i)).quantize(16),
        lambda i: photo(i)[..., 0] // 20,  # dark
        lambda i: by_palette(ids(i), [250, 240, 220, 200, 30, 30, 40, 80, 200, 9, 9, 9]),  # cartoon
    ],
)
def test_photos_of_other_cameras_and_drawings_stay(tmp_path, make):
    for i in range(5):
        ending = "tif" if getattr(make(i), "dtype", None) == np.float32 else "png"
        put(tmp_path / "rgb" / f"{i}.jpg", photo(i))
        put(tmp_path / "other" / f"{i}.{ending}", make(i))
    assert len(CropFolder(tmp_path, image_px=16)) == 10


@pytest.mark.parametrize(
    ("make", "kinds"), [(mask, "masks"), (ids, "maps of labels"), (normals, "maps of normals")]
)
def test_a_folder_of_maps_alone_is_read_with_a_warning(tmp_path, caplog, make, kinds):
    for i in range(6):
        put(tmp_path / f"{i}.png", make(i))
    assert len(CropFolder(tmp_path, image_px=16)) == 6
    assert "all 6 images below" in caplog.text
    assert f"look like {kinds}, no photos" in caplog.text


def test_frames_of_a_synthetic_kind_are_photos(tmp_path):
    """Flat colours and few colours without a word for a map in their names."""
    for i in range(8):
        put(tmp_path / "a" / f"{i}.png", np.full((20, 20, 3), (10 * i, 50, 90), np.uint8))
        put(tmp_path / "b" / f"{i}.png", segments(i))
        put(tmp_path / "c" / f"{i}.png", photo(i))
    assert len(CropFolder(tmp_path, image_px=16)) == 24
