import io
import os
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from handmim.data.crops import CropFolder, square
from handmim.images.decode import UnreadableImage, decode_image, read_image


def photo(height=40, width=60):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2).astype(float)
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).round().astype(np.uint8)


def saved(image, name, **settings) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, name, **settings)
    return stream.getvalue()


def stored(values, ending) -> bytes:
    return cv2.imencode(ending, values)[1].tobytes()


def apart(found, wanted):
    assert found.dtype == np.uint8
    assert found.shape == wanted.shape
    return np.abs(found.astype(int) - wanted).max()


@pytest.mark.parametrize("ending", [".png", ".tif", ".ppm"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_images_are_scaled_by_the_range_they_use(bits, ending):
    values = np.rint(photo() / 255 * (2**bits - 1)).astype(np.uint16)
    assert apart(decode_image(stored(values, ending), "x"), photo()[..., ::-1]) <= 1


def test_a_dark_photo_of_16_bits_stays_dark():
    values = photo().astype(np.uint16) * 100  # up to 25,500 of 65,535
    found = decode_image(stored(values, ".png"), "x")
    assert apart(found, np.rint(values / 257)[..., ::-1]) <= 1


def test_values_close_together_far_from_zero_are_stretched():
    thermal = 29_000 + photo()[..., 0].astype(np.uint16)
    found = decode_image(stored(thermal, ".png"), "x")
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize("offset", [0, 29_000])
def test_dead_and_hot_pixels_do_not_set_the_range(offset):
    values = photo()[..., 0].astype(np.uint16) + offset
    clean = decode_image(stored(values, ".png"), "x")
    values[30, 40] = 65_535
    values[3, 4] = 0 if offset else 65_535
    found = decode_image(stored(values, ".png"), "x").astype(int)
    assert np.ptp(clean) > 200
    assert np.sort(np.abs(found - clean).ravel())[-7] <= 3  # the rest is as before


def test_highlights_of_a_16_bit_photo_set_its_range():
    values = photo().astype(np.uint16) * 60
    values[:2, :2] = 65_535  # 4 of 2400 pixels
    found = decode_image(stored(values, ".png"), "x")
    assert apart(found, np.rint(values / 257)[..., ::-1]) <= 1


def test_floats_above_1_are_scaled_by_what_they_reach():
    found = decode_image(stored((photo() / 255 * 3).astype(np.float32), ".tif"), "x")
    assert apart(found, photo()[..., ::-1]) <= 1


@pytest.mark.parametrize("scale", [1, 1 / 255])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_are_read(kind, scale):
    values = (photo() * scale).astype(kind)
    values[0, 0] = np.nan
    wanted = photo()[..., ::-1].copy()
    wanted[0, 0] = 0
    assert apart(decode_image(stored(values, ".tif"), "x"), wanted) <= 1


@pytest.mark.parametrize(
    ("name", "settings", "is_grey"),
    [
        ("PNG", {}, False),
        ("PNG", {}, True),
        ("TIFF", {}, False),
        ("TIFF", {}, True),
        ("JPEG2000", {}, False),
        ("JPEG2000", {}, True),
        ("WEBP", {"lossless": True, "exact": True}, False),
    ],
)
def test_transparent_areas_are_grey_whatever_colour_they_hide(name, settings, is_grey):
    alpha = np.zeros((40, 60, 1), np.uint8)
    alpha[:20], alpha[20:30] = 255, 100
    colours = photo()[..., :1] if is_grey else photo()
    found = decode_image(saved(np.concatenate([colours, alpha], 2), name, **settings), "x")
    wanted = np.rint(
        (colours * (alpha / 255) + 128 * (1 - alpha / 255)).repeat(3 // colours.shape[2], 2)
    )
    assert apart(found, wanted) <= 1


def test_a_palette_with_a_transparent_entry_is_grey_there():
    palette = Image.fromarray(photo()).quantize(16)
    stream = io.BytesIO()
    palette.save(stream, "PNG", transparency=3)
    hidden = (np.asarray(palette) == 3)[..., None]
    wanted = np.where(hidden, 128, np.asarray(palette.convert("RGB")))
    assert apart(decode_image(stream.getvalue(), "x"), wanted) == 0


def test_alpha_that_hides_everything_is_ignored():
    image = np.dstack([photo(), np.zeros((40, 60), np.uint8)])
    assert apart(decode_image(saved(image, "PNG"), "x"), photo()) == 0


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_in_every_format(name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(photo())
    settings = {"lossless": True} if name == "WEBP" else {}
    raw = saved(photo(), name, exif=exif, **settings)
    image.getexif()[0x0112] = orientation
    assert apart(decode_image(raw, "x"), np.asarray(ImageOps.exif_transpose(image))) == 0


@pytest.mark.parametrize(
    ("name", "settings", "most"),
    [
        ("BMP", {}, 0),
        ("PPM", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 12),
        ("JPEG2000", {}, 0),
    ],
)
def test_further_formats_are_read(name, settings, most):
    assert apart(decode_image(saved(photo(), name, **settings), "x"), photo()) <= most


@pytest.mark.parametrize(
    ("name", "settings"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})]
)
def test_the_first_of_several_images_is_read(name, settings):
    first, second = Image.fromarray(photo()), Image.fromarray(photo()[::-1].copy())
    stream = io.BytesIO()
    first.save(stream, name, save_all=True, append_images=[second], **settings)
    found = decode_image(stream.getvalue(), "x")
    assert np.abs(found.astype(int) - photo()).mean() < (12 if name == "GIF" else 0.5)


def png_of_zeros(height, width) -> bytes:
    def chunk(kind, content):
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(3 * min(width, 10**6) + 1))
    ends = chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + ends


def huge(name) -> bytes:
    """A small file that says it has 32,000 x 32,000 pixels."""
    if name == "PNG":
        return png_of_zeros(32_000, 32_000)
    raw = bytearray(saved(np.zeros((16, 16, 3), np.uint8), name))
    if name == "JPEG":
        at = raw.find(b"\xff\xc0") + 5
        raw[at : at + 4] = struct.pack(">HH", 32_000, 32_000)
    elif name == "GIF":
        raw[6:10] = struct.pack("<HH", 32_000, 32_000)
    elif name == "BMP":
        raw[18:26] = struct.pack("<ii", 32_000, 32_000)
    elif name == "PPM":
        raw[:] = b"P6 32000 32000 255\n" + bytes(1000)
    return bytes(raw)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "GIF", "BMP", "PPM"])
def test_huge_images_are_refused_before_their_pixels_are_decoded(name):
    tracemalloc.start()
    with pytest.raises(UnreadableImage, match=r"32000 x 32000 pixels.*200 mega.*max_mega"):
        decode_image(huge(name), "x")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_the_bound_is_of_the_config(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(photo(100, 100), "PNG"))
    (tmp_path / "b.png").write_bytes(saved(photo(10, 10), "PNG"))
    data = CropFolder(tmp_path, image_px=16, max_megapixels=0.005)
    assert data.names == ["b.png"]
    assert len(CropFolder(tmp_path, image_px=16)) == 2


def test_a_long_strip_is_cut_before_it_is_enlarged():
    strip = np.zeros((1, 300_000, 3), np.uint8)
    strip[:, 140_000:160_000] = 200
    assert (square(strip, 64, "cover") == 200).all()  # whole it would be 3.7 GB


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>", "it is an HTML page"),
        (b"\xef\xbb\xbf<!DOCTYPE html>", "it is an HTML page"),
        (b'{"error": "not found"}', "it is JSON text"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(20), "zip"),
        (b"\xff\xd8\xff", "damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "damaged"),
    ],
)
def test_what_is_no_image_says_what_it_is(content, reason, tmp_path):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_image(tmp_path / "x.jpg")
    assert caught.value.path == str(tmp_path / "x.jpg")


def test_files_that_are_no_regular_files_are_never_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    os.symlink("/dev/zero", tmp_path / "device.jpg")
    for name in ("fifo.jpg", "device.jpg", ""):
        with pytest.raises(UnreadableImage, match="no regular file"):
            read_image(tmp_path / name)
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(UnreadableImage, match="null"):
        read_image("a\0.jpg")


def test_a_file_too_large_for_any_image_is_not_read(tmp_path):
    with (tmp_path / "x.jpg").open("wb") as file:
        file.write(b"\xff\xd8")
        file.truncate(1 << 40)
    with pytest.raises(UnreadableImage, match=r"1024\.0 GiB"):
        read_image(tmp_path / "x.jpg")
