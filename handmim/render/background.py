"""Backdrops of rendered hands (procedural rooms out of focus, studio gradients, or photos), random
lights, and the exposure of a scene."""

import logging
import math
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.geometry.rotation_numpy import unit
from handmim.images.decode import UnreadableImage, not_too_long, read_image
from handmim.images.files import find_images
from handmim.images.formats import printable
from handmim.render.shading import compiled
from handmim.render.surfaces import muted

log = logging.getLogger(__name__)

Array = NDArray[np.floating]
RNG = np.random.Generator
Image = NDArray[np.float32]  # [S, S, 3] RGB in [0, 1]

KINDS = ("studio", "room", "photos")
MAX_PHOTOS = 500
KNEE = 0.8  # highlights above it are rolled off below white

# Muted colours of walls, wood, cloth, plants and sky; saturation is drawn down further per image.
MATERIALS = np.array([
    [214, 205, 190], [186, 178, 168], [150, 128, 104], [112, 84, 60], [166, 140, 112],
    [96, 104, 112], [128, 140, 150], [70, 76, 84], [198, 200, 198], [120, 116, 96],
    [88, 100, 78], [172, 184, 196], [226, 222, 214], [140, 96, 84], [60, 56, 54],
]) / 255.0  # fmt: skip


def studio(rng: RNG, size: int) -> Image:
    """A smooth near-grey gradient."""
    base = rng.uniform(0.2, 0.85)
    cells = base + rng.normal(0, 0.08, (3, 3, 1)) + rng.normal(0, 0.02, (3, 3, 3))
    smooth = cv2.resize(cells.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth, 0, 1)


def _grain(rng: RNG, size: int, stretch: float) -> Image:
    total = np.zeros((size, size), np.float32)
    for octave in range(2, 7):
        cells = 2**octave
        shape = (cells, max(2, int(cells / stretch)))
        layer = rng.standard_normal(shape).astype(np.float32)
        total += cv2.resize(layer, (size, size), interpolation=cv2.INTER_CUBIC) / octave**1.5
    return (total / (total.std() + 1e-6))[..., None]


def room(rng: RNG, size: int) -> Image:
    """A room out of focus: wall, perhaps a table, a few soft shapes, light falling off."""
    saturation = rng.uniform(0.15, 0.8)

    def material() -> NDArray[np.float32]:
        colour = MATERIALS[rng.integers(len(MATERIALS))] * rng.uniform(0.6, 1.15)
        colour = muted(colour, saturation) + rng.normal(0, 0.012, 3)
        return np.clip(colour, 0.02, 1).astype(np.float32)

    image = np.empty((size, size, 3), np.float32)
    image[:] = material()
    image *= 1 + 0.03 * rng.random() * _grain(rng, size, 1.0)
    x = np.arange(size, dtype=np.float32) / size
    y = x[:, None]
    if rng.random() < 0.6:  # a table or floor below a slanted edge, with grain along it
        edge = rng.uniform(0.35, 0.95) + rng.uniform(-0.3, 0.3) * (x - 0.5)
        below = (np.clip((y - edge) * size / rng.uniform(2, 12), 0, 1))[..., None]
        wood = material() * (1 + rng.uniform(0.02, 0.1) * _grain(rng, size, rng.choice([1.0, 8.0])))
        image += (wood - image) * below
    for _ in range(rng.integers(0, 6)):  # furniture, books, a window: soft boxes and discs
        colour, centre = [float(c) for c in material()], rng.integers(0, size, 2)
        if rng.random() < 0.65:
            sides, degrees = rng.uniform(0.08, 0.6, 2) * size, float(rng.normal(0, 8))
            box = cv2.boxPoints((centre.astype(float), sides, degrees))
            cv2.fillConvexPoly(image, box.astype(np.int32), colour, cv2.LINE_AA)
        else:
            radius = int(rng.uniform(0.03, 0.2) * size)
            cv2.circle(image, [int(c) for c in centre], radius, colour, -1, cv2.LINE_AA)
    image = cv2.GaussianBlur(image, (0, 0), float(rng.choice([1.5, 4.0, 9.0]) * size / 320))
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.45)
    falloff = 1 + strength * (math.cos(angle) * x + math.sin(angle) * y - 0.5)
    image *= (falloff * rng.uniform(0.7, 1.1))[..., None]
    image += 0.004 * _grain(rng, size, 1.0)
    return np.clip(image, 0, 1, out=image)


def random_lights(rng: RNG) -> tuple[Array, Array, Array, Array, Array]:
    """A strong lamp and a weak one on the camera's side, and light from all around, as `shade`
    takes them: unit directions towards the lamps [2, 3], their RGB [2, 3], the unit direction up
    [3], RGB from above [3] and from below [3]."""
    lamps: Array = rng.normal(0, 1, (2, 3))
    lamps[:, 2] = -np.abs(lamps[:, 2]) - 0.3
    tints = 1 + rng.normal(0, 0.08, (2, 3))
    rgb = np.array([[rng.uniform(0.35, 1.0)], [rng.uniform(0.1, 0.4)]]) * tints
    sky = rng.uniform(0.25, 0.6) * (1 + rng.normal(0, 0.07, 3))
    ground = sky * rng.uniform(0.35, 0.9)
    up = unit(np.array([0, -1, 0.0]) + rng.normal(0, 0.4, 3))
    return unit(lamps), rgb, up, sky, ground


def load_photos(folder: Path, size: int) -> list[Image]:
    """The first `MAX_PHOTOS` images of a folder, by name, cut to squares. Raises: ValueError."""
    try:
        tree = find_images(folder)
    except ValueError as error:
        raise ValueError(f"photos_dir: {error}") from error
    if tree.is_remarkable:
        log.warning(tree.account())
    out, unreadable = list[Image](), list[str]()
    for name in sorted(tree.names, key=lambda name: Path(name).parts)[:MAX_PHOTOS]:
        try:
            image = not_too_long(read_image(folder / name))
        except UnreadableImage as error:
            unreadable.append(f"{printable(name)} ({error.reason})")
            continue
        scale = size / min(image.shape[:2])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
        cut = image[top : top + size, left : left + size].astype(np.float32)
        out.append(cut / np.float32(255))
    if unreadable:
        log.warning("skipped %d unreadable photos: %s", len(unreadable), ", ".join(unreadable[:5]))
    if not out:
        where = printable(str(folder))
        raise ValueError(f"none of the {len(tree.names)} images of photos_dir {where} can be read")
    return out


class BackdropBank:
    """Images of `size` px from which random crops are taken: `num` painted rooms, or the photos of
    a folder; studios are painted anew."""

    def __init__(
        self, kind: str, rng: RNG, *, size: int = 320, num: int = 64, photos_dir: str | None = None
    ) -> None:
        self.kind = kind
        self.images: list[Image] = []
        if kind == "photos" and photos_dir is not None:
            self.images = load_photos(Path(photos_dir), size)
        elif kind == "room":
            self.images = [room(rng, size) for _ in range(num)]

    def crop(self, rng: RNG, size: int) -> Image:
        """A random square crop at `size` px, mirrored half of the time, with its own exposure."""
        if self.kind == "studio":
            return studio(rng, size)
        image = self.images[rng.integers(len(self.images))]
        side = image.shape[0]
        k = int(rng.integers(side // 2, side + 1))
        y, x = rng.integers(0, side - k + 1, 2)
        cut = cv2.resize(image[y : y + k, x : x + k], (size, size), interpolation=cv2.INTER_AREA)
        rows = (cv2.flip(cut, 1) if rng.random() < 0.5 else cut).reshape(size, 3 * size)
        cast = rng.uniform(-0.03, 0.03, 3).astype(np.float32)
        rows *= np.float32(rng.uniform(0.7, 1.15))
        rows += np.tile(cast, size)
        return np.clip(rows, 0, 1, out=rows).reshape(size, size, 3)


@compiled
def expose(shaded, covered, hand, backdrop, darkest, brightest):
    """A shaded scene [H, W, 3] before its backdrop, exposed so that the mean of `hand` [H, W] lies
    between `darkest` and `brightest`: [H, W, 3] below 1, highlights rolled off."""
    image = np.empty_like(shaded)
    front, back, flat = shaded.reshape(-1, 3), backdrop.reshape(-1, 3), image.reshape(-1, 3)
    is_covered, is_hand = covered.ravel(), hand.ravel()
    total, num = 0.0, 0
    for n in range(len(is_hand)):
        if is_hand[n]:
            total += front[n, 0] + front[n, 1] + front[n, 2]
            num += 3
    mean = total / max(num, 1)
    gain = np.float32(min(max(mean, darkest), brightest) / max(mean, 1e-6) if num else 1.0)
    for n in range(len(is_covered)):
        for k in range(3):
            x = gain * (front[n, k] if is_covered[n] else back[n, k])
            if x > KNEE:
                x = KNEE + (1 - KNEE) * 0.96 * (1 - math.exp((KNEE - x) / (1 - KNEE)))
            flat[n, k] = x
    return image
