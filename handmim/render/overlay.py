"""Drawing on images: meshes by the painter's algorithm, joints, points, contact sheets."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.hand.skeleton import BONES

Image = NDArray[np.uint8]
Array = NDArray[np.floating]

FINGER_RGB = ((230, 90, 60), (240, 180, 40), (80, 180, 80), (60, 140, 230), (170, 90, 210))
SUBPIXEL_BITS = 4
GAP = 4  # between the images of a sheet, pixels


def distinct_colours(num: int) -> NDArray[np.uint8]:
    """[num, 3] RGB colours of evenly spaced hues."""
    hue = (np.arange(num) * 180 / max(num, 1)).astype(np.uint8)
    value = np.where(np.arange(num) % 2 == 0, 255, 205).astype(np.uint8)
    hsv = np.stack([hue, np.full(num, 215, np.uint8), value], axis=1)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]


def enlarge(image: Image, zoom: int) -> Image:
    """A copy of a [H, W, 3] image, `zoom` times as large."""
    return cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)


def to_image(image: Array) -> Image:
    """[3, H, W] in [0, 1] to [H, W, 3] uint8."""
    pixels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _fixed_point(points_px: Array, zoom: int) -> NDArray[np.int32]:
    # OpenCV puts the first pixel's centre at 0, we at 0.5.
    return np.round((points_px * zoom - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)


def draw_mesh(
    image: Image,
    verts_px: Array,
    verts_depth_m: Array,
    faces: NDArray[np.integer],
    *,
    colour: tuple[int, int, int] = (150, 190, 235),
    alpha: float = 0.7,
    zoom: int = 1,
) -> Image:
    """Blend a shaded mesh over an enlarged image: projected vertices [V, 2] and their depth [V], of
    any camera; faces [F, 3] counter-clockwise from outside."""
    canvas = enlarge(image, zoom)
    # Pixels to metres by the mesh's own size, so that normals are right for any camera.
    span_px = max(float(np.ptp(verts_px, axis=0).max()), 1e-6)
    points = np.column_stack([verts_px / span_px * 0.2, verts_depth_m])
    corners = points[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    front = np.flatnonzero(normals[:, 2] < 0)
    order = front[np.argsort(-corners[front, :, 2].mean(axis=1))]
    light = np.array([-0.35, -0.5, -0.8])
    shade = np.clip(0.35 + 0.65 * np.clip(normals @ (light / np.linalg.norm(light)), 0, 1), 0, 1)
    fixed = _fixed_point(verts_px, zoom)
    layer = canvas.copy()
    for t in order:
        tint = [int(c * shade[t]) for c in colour]
        cv2.fillConvexPoly(layer, fixed[faces[t]], tint, cv2.LINE_AA, SUBPIXEL_BITS)
    return cv2.addWeighted(layer, alpha, canvas, 1 - alpha, 0)


def draw_joints(
    image: Image, kp2d_px: Array, valid: NDArray[np.bool_] | None = None, *, zoom: int = 1
) -> Image:
    """Bones in one colour per finger and joints as dots, of all or the `valid` [21] joints."""
    canvas = enlarge(image, zoom)
    shown = np.ones(len(kp2d_px), bool) if valid is None else valid
    fixed = _fixed_point(kp2d_px, zoom)
    thick = max(1, canvas.shape[0] // 110)
    for i, (a, b) in enumerate(BONES):
        if shown[a] and shown[b]:
            ends = fixed[a].tolist(), fixed[b].tolist()
            cv2.line(canvas, *ends, FINGER_RGB[i // 4], thick, cv2.LINE_AA, SUBPIXEL_BITS)
    for point, on in zip(fixed, shown, strict=True):
        if on:
            _dot(canvas, point, thick + 1, (250, 250, 250))
    return canvas


def _dot(canvas: Image, point: NDArray[np.int32], radius: int, colour: Sequence[int]) -> None:
    radius <<= SUBPIXEL_BITS
    cv2.circle(canvas, point.tolist(), radius, colour, -1, cv2.LINE_AA, SUBPIXEL_BITS)


def draw_points(
    image: Image, points_px: Array, colours: NDArray[np.uint8], *, zoom: int = 1
) -> Image:
    """Coloured dots with a dark rim: points_px [K, 2], colours [K, 3] RGB."""
    canvas = enlarge(image, zoom)
    radius = max(2, canvas.shape[0] // 45)
    for point, colour in zip(_fixed_point(points_px, zoom), colours, strict=True):
        _dot(canvas, point, radius + 1, (20, 20, 20))
        _dot(canvas, point, radius, colour.tolist())
    return canvas


def contact_sheet(
    images: Sequence[Image], columns: int, headings: Sequence[str] | None = None
) -> Image:
    """Images of one size, row by row on a white sheet; headings stand above the columns."""
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    top = 20 if headings else 0
    shape = (top + rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3)
    sheet = np.full(shape, 255, np.uint8)
    for i, image in enumerate(images):
        y = top + GAP + (i // columns) * (height + GAP)
        x = GAP + (i % columns) * (width + GAP)
        sheet[y : y + height, x : x + width] = image
    for i, text in enumerate(headings or ()):
        origin, font = (GAP + i * (width + GAP), 14), cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(sheet, text, origin, font, 0.38, (40, 40, 40), 1, cv2.LINE_AA)
    return sheet
