"""Image files other than JPEG as 8-bit RGB: format, size before any pixel is decoded, pixels.

OpenCV decodes where it keeps all channels and bits, Pillow elsewhere; the first image counts.
"""

import io
import math
import struct
from collections.abc import Callable
from contextlib import suppress

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from handmim.utils.files import DAMAGE, matching

Rgb = NDArray[np.uint8]  # [H, W, 3]

GREY = 128  # shown where an image is transparent
NARROW = 16  # a range below 1 / NARROW of its maximum is stretched: thermal and range cameras
DEPTHS = (8, 10, 12, 14, 16, 32, 64)  # bits of an integer's range
MAX_SIDE = 1 << 20  # pixels
OVERSHOOT = 17 / 16  # a lossy format exceeds the range of what it stores
OUTLIERS = 1e-4  # share of pixels, 4 of 1000 at least, that may be dead or hot
HOT = 4  # a hot pixel exceeds all others by this factor
SPARE = 8  # a palette of so many times the used entries was not made for one image
PATTERNS = (  # offset, first bytes, format
    (0, b"\xff\xd8", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF8", "GIF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000"),
    (0, b"BM", "BMP"),
    *((0, mark, "TIFF") for mark in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((0, b"P%d" % number, "PPM") for number in range(1, 7)),
)
LOSSLESS = ("PNG", "TIFF", "BMP", "PPM", "GIF")
BY_PILLOW = ("GIF", "AVIF")  # OpenCV reads them in some builds only
ORIENTATION, WIDTH, HEIGHT = 0x0112, 0x0100, 0x0101  # tags
ORIENTED: dict[int, Callable[[Rgb], Rgb]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image[::-1].swapaxes(0, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image.swapaxes(0, 1)[::-1],
}
DAMAGES = (*DAMAGE, OSError, cv2.error, Image.DecompressionBombError)
DAMAGED = "it is damaged, or no image that OpenCV or Pillow reads"


def printable(name: str) -> str:
    """A file name for any stream and log: undecodable bytes and control characters are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def format_of(raw: bytes) -> str | None:
    """Format of a file by its first 32 bytes; None when it is no image that is read here."""
    return matching(raw, PATTERNS)


def tiff_tag(tiff: bytes, number: int) -> int:
    """A number in the first directory of a TIFF file, or of EXIF data, which have the same form; 0
    where it is not found."""
    with suppress(KeyError, struct.error):  # beyond the end
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num,) = struct.unpack_from(f"{order}H", tiff, first)
        for position in range(first + 2, first + 2 + 12 * num, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, position)
            if tag == number:
                form = f"{order}{'I' if kind == 4 else 'H'}"
                return int(struct.unpack_from(form, tiff, position + 8)[0])
    return 0


def check_size(height: int, width: int, max_megapixels: float) -> None:
    """Raises: ValueError for more pixels than are decoded, or a side that OpenCV refuses."""
    if max(height, width) > MAX_SIDE or height * width > max_megapixels * 1e6:
        raise ValueError(
            f"it has {width} x {height} pixels, more than {max_megapixels:g} megapixels "
            f"(max_megapixels) or than {MAX_SIDE} in a row"
        )


def _opened(raw: bytes, name: str) -> ImageFile:
    """Pillow's image before its pixels are decoded; `Image.open` would warn of its size."""
    Image.init()
    return Image.OPEN[name][0](io.BytesIO(raw), "")


def stored_numbers(raw: bytes) -> NDArray[np.generic] | None:
    """[H, W] of a lossless file that stores one number per pixel: grey values, distances, or
    indices of a palette that was not made for the image (`SPARE`). None for other files."""
    name = format_of(raw) or ""
    if name not in LOSSLESS:
        return None
    try:
        header = _opened(raw, name)
        if header.getbands()[0] not in ("1", "L", "P", "I", "F"):
            return None
        values = np.asarray(header if len(header.getbands()) == 1 else header.getchannel(0))
    except DAMAGES:
        return None
    palette = header.palette.palette if header.palette and header.mode.startswith("P") else None
    return None if palette and len(palette) < 3 * SPARE * len(np.unique(values)) else values


def decoded(raw: bytes, name: str, max_megapixels: float) -> Rgb:
    """Pixels [H, W, 3] uint8 of a file of such a format, EXIF rotation applied, transparent
    areas grey; ValueError with the reason why it cannot be read."""
    header: ImageFile | None = None
    with suppress(*DAMAGES):
        header = _opened(raw, name)
    # Pillow knows no colour TIFF of floats.
    width, height = header.size if header else (tiff_tag(raw, WIDTH), tiff_tag(raw, HEIGHT))
    if not (width and height):
        raise ValueError(DAMAGED)
    check_size(height, width, max_megapixels)
    try:
        pixels = _pixels(raw, name, header)
    except DAMAGES as error:
        raise ValueError(DAMAGED) from error
    image = flattened(pixels)
    orientation, at = 1, raw.rfind(b"eXIf")  # a PNG's may stand behind its pixels
    with suppress(*DAMAGES):
        if header is not None and "exif" in header.info:
            orientation = int(header.getexif().get(ORIENTATION, 1))
        elif at > 0:  # `getexif` of a PNG without it would decode the pixels
            orientation = tiff_tag(raw[at + 4 :], ORIENTATION)
    rotate = None if name == "TIFF" else ORIENTED.get(orientation)
    return image if rotate is None else np.ascontiguousarray(rotate(image))


def _pixels(raw: bytes, name: str, header: ImageFile | None) -> NDArray[np.generic]:
    """[H, W], [H, W, 3] or [H, W, 4], channels as RGB and alpha, of any number type."""
    has_alpha = header is not None and header.has_transparency_data
    pixels = None
    if name not in BY_PILLOW:
        pixels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is not None and has_alpha and pixels.dtype == np.uint8:
        # OpenCV drops the alpha of some greyscale files and multiplies colours by a TIFF's.
        pixels = None if name == "TIFF" or pixels.shape[2:] != (4,) else pixels
    if pixels is not None:
        to_rgb = {(3,): cv2.COLOR_BGR2RGB, (4,): cv2.COLOR_BGRA2RGBA}.get(pixels.shape[2:])
        if to_rgb is None or pixels.dtype in (np.uint8, np.uint16, np.float32):
            return pixels if to_rgb is None else cv2.cvtColor(pixels, to_rgb)
        return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    if header is None:
        raise ValueError(DAMAGED)
    if header.mode.startswith(("I", "F")):
        return np.asarray(header)
    return np.asarray(header.convert("RGBA" if has_alpha else "RGB"))


def flattened(pixels: NDArray[np.generic]) -> Rgb:
    """Pixels [H, W] or [H, W, 1 to 4] of any number type as [H, W, 3] uint8, transparent areas in
    mid-grey; an alpha of zeros alone is ignored."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    channels = pixels.shape[-1]
    if channels not in (1, 2, 3, 4):
        raise ValueError(f"it has {channels} channels, 1 to 4 are required")
    colours = 1 if channels < 3 else 3
    image = eight_bit(pixels[..., :colours])
    image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if colours == 1 else image
    if channels == colours:
        return image
    alpha = eight_bit(pixels[..., colours:], full_range=True)
    if not alpha.any() or (alpha.all() and alpha.min() == 255):
        return np.ascontiguousarray(image)
    weight = alpha.astype(np.uint16)
    return ((image * weight + GREY * (255 - weight) + 127) // 255).astype(np.uint8)


def eight_bit(values: NDArray[np.generic], *, full_range: bool = False) -> NDArray[np.uint8]:
    """Values of any number type as 0 .. 255, scaled by the range that the image uses.

    Integers from 0 on are scaled by the smallest range of `DEPTHS` bits that holds the maximum,
    floats by 1 or, above `NARROW`, by 255; all others, and values that lie close together
    (`NARROW`), are stretched. Dead and hot pixels (`HOT`, `OUTLIERS`) do not count, values that are
    not finite count as the minimum. `full_range`, for alpha, scales by the range of the type.
    """
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values, np.uint8)
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    numbers, whole = values.astype(np.float64), values.dtype.kind in "iu"
    finite = numbers[np.isfinite(numbers)]
    low = dark = bright = high = 0.0
    if finite.size:
        num = max(4, math.ceil(OUTLIERS * finite.size)) if finite.size >= 1000 else 0
        ordered = np.partition(finite, (num, finite.size - 1 - num))
        largest = np.sort(ordered[finite.size - 1 - num :])
        hot = np.flatnonzero((largest[1:] > HOT * largest[:-1]) & (largest[:-1] > 0))
        low, dark, bright = float(finite.min()), float(ordered[num]), float(largest[0])
        high = float(largest[hot[0] if len(hot) else -1])
    numbers = np.nan_to_num(numbers, nan=low, posinf=low, neginf=low)
    if whole:
        top = float(2 ** next(bits for bits in DEPTHS if high < 2**bits * OVERSHOOT) - 1)
        if full_range:
            top = float(np.iinfo(values.dtype.str).max)
    else:
        top = 1.0 if high <= OVERSHOOT else 255.0 if high > NARROW or full_range else 0.0
    narrow = 0 < bright - dark < bright / NARROW and (bright > 255 or not whole)
    if low < 0 or narrow:
        low, high = dark, bright
    if not full_range and (low < 0 or high > top * OVERSHOOT or narrow):
        numbers, top = numbers - low, high - low
    return np.rint(np.clip(numbers * (255 / (top or 1.0)), 0, 255)).astype(np.uint8)
