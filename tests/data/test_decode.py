import struct
from contextlib import suppress

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from handmim.data.crops import CropFolder, square
from handmim.images import decode
from handmim.images.decode import (
    UnreadableImage,
    decode_image,
    jpeg_head,
    reduction,
)

SIDES = [(64, 48), (61, 95), (8, 8), (1, 1), (33, 257)]


def decode_rgb(raw: bytes, side: int | None = None):
    with suppress(UnreadableImage):
        return decode_image(raw, "x", side)
    return None


def noise_image(height=61, width=95, channels=3):
    rng = np.random.default_rng(0)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return cv2.GaussianBlur(rng.integers(0, 256, shape, dtype=np.uint8), (0, 0), 2)


def jpeg(image, **settings) -> bytes:
    flags = [x for name, value in settings.items() for x in (getattr(cv2, name), value)]
    return cv2.imencode(".jpg", image, flags)[1].tobytes()


def with_exif(raw: bytes, orientation: int, order: str = "<") -> bytes:
    mark = b"II" if order == "<" else b"MM"
    tiff = mark + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", 2)
    tiff += struct.pack(f"{order}HHIHH", 0x0101, 3, 1, 9, 0)
    tiff += struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"
    content = b"Exif\0\0" + tiff
    return raw[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + raw[2:]


def by_opencv(raw: bytes, flag=cv2.IMREAD_COLOR):
    image = cv2.imdecode(np.frombuffer(raw, np.uint8), flag)
    return None if image is None else image[..., ::-1]


@pytest.fixture(params=["turbo", "opencv"])
def codec(request, monkeypatch):
    found = simplejpeg if request.param == "turbo" else None
    monkeypatch.setattr(decode, "simplejpeg", found)
    return request.param


@pytest.mark.parametrize("shape", SIDES)
@pytest.mark.parametrize(
    "settings", [{}, {"IMWRITE_JPEG_PROGRESSIVE": 1}, {"IMWRITE_JPEG_SAMPLING_FACTOR": 0x111111}]
)
def test_pixels_are_those_of_opencv_whoever_decodes(codec, shape, settings):
    raw = jpeg(noise_image(*shape), **settings)
    assert jpeg_head(raw) == (*shape, 1)
    np.testing.assert_array_equal(decode_rgb(raw), by_opencv(raw))


@pytest.mark.parametrize("by", [2, 4, 8])
def test_small_crops_are_decoded_at_a_smaller_scale(codec, by):
    raw = jpeg(cv2.GaussianBlur(noise_image(328, 400), (0, 0), 4))
    found = decode_rgb(raw, 400 // by)
    assert found.shape == (328 // by, 400 // by, 3)
    np.testing.assert_array_equal(found, by_opencv(raw, decode.REDUCED[by]))
    whole = cv2.resize(by_opencv(raw), found.shape[1::-1], interpolation=cv2.INTER_AREA)
    apart = np.abs(found.astype(int) - whole)
    assert apart.mean() < 1.5


def test_a_scale_is_never_below_the_wanted_side():
    for length in range(1, 300):
        for side in (1, 31, 32, 96, 224):
            by = reduction(length, 2 * length, side, "cover")
            assert by == 1 or -(-length // by) >= side
            assert by == 8 or -(-length // (2 * by)) < side
            assert reduction(length, 2 * length, side, "contain") >= by
    assert reduction(480, 640, 256, "contain") == 2
    assert reduction(480, 640, 256, "cover") == 1
    assert reduction(4000, 3000, None, "cover") == 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(9))
def test_exif_rotation_is_applied(codec, order, orientation):
    raw = with_exif(jpeg(noise_image(200, 120)), orientation, order)
    assert jpeg_head(raw) == (200, 120, orientation or 1)
    found = decode_rgb(raw)
    np.testing.assert_array_equal(found, by_opencv(raw))
    assert found.shape == ((120, 200, 3) if orientation > 4 else (200, 120, 3))
    small = decode_rgb(raw, 90)
    assert small.shape == ((60, 100, 3) if orientation > 4 else (100, 60, 3))


def test_grey_and_cmyk_become_rgb(codec):
    grey = jpeg(noise_image(channels=1))
    assert (decode_rgb(grey) == by_opencv(grey)).all()
    import io

    stream = io.BytesIO()
    Image.fromarray(noise_image(channels=4), "CMYK").save(stream, "JPEG")
    cmyk = stream.getvalue()
    assert jpeg_head(cmyk) == (61, 95, 1)
    np.testing.assert_array_equal(decode_rgb(cmyk), by_opencv(cmyk))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9, 0.99])
def test_files_cut_short_end_as_with_opencv(codec, share):
    whole = jpeg(noise_image(200, 200))
    raw = whole[: int(len(whole) * share)]
    expected = None if not raw else by_opencv(raw)
    found = decode_rgb(raw)
    assert (found is None) == (expected is None)
    if found is not None:  # what is missing may be anything
        rows = int(200 * share * 0.7) // 16 * 16
        np.testing.assert_array_equal(found[:rows], expected[:rows])
        assert found.shape == expected.shape


def test_noise_is_no_picture(codec):
    rng = np.random.default_rng(0)
    for start in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe1\xff", b"\x89PNG", b"GIF89a"):
        for length in (0, 1, 40, 4000):
            raw = start + rng.integers(0, 256, length, dtype=np.uint8).tobytes()
            assert decode_rgb(raw, 32) is None
    for raw in (b"\xff\xd8\xff\xff\xff", b"\xff\xd8\xff\xe0\x00\x00" * 3):
        assert jpeg_head(raw) is None


def test_other_formats_come_whole(codec):
    image = noise_image(200, 120)
    for suffix in (".png", ".webp"):
        raw = cv2.imencode(suffix, image, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
        np.testing.assert_array_equal(decode_rgb(raw, 16), image[..., ::-1])
        assert jpeg_head(raw) is None


def test_folders_use_it(tmp_path):
    raw = jpeg(noise_image(330, 402))
    (tmp_path / "a.jpg").write_bytes(raw)
    crop = CropFolder(tmp_path, image_px=64)[0].image
    np.testing.assert_array_equal(crop, square(by_opencv(raw, decode.REDUCED[4]), 64, "contain"))
