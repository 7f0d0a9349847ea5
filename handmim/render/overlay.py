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


def distinct_colours(num: int) -> NDArray[np.uint8]:
    """[num, 3] RGB colours of evenly spaced hues."""
    hue = (np.arange(num) * 180 / max(num, 1)).astype(np.uint8)
    value = np.where(np.arange(num) % 2 == 0, 255, 205).astype(np.uint8)
    hsv = np.stack([hue, np.full(num, 215, np.uint8), value], axis=1)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]


def enlarge(image: Image, zoom: int) -> Image:
    """A copy of a [H, W, 3] image, `zoom` times as large."""
    if zoom == 1:
        return image.copy()
    return cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)


def to_image(image: Array) -> Image:
    """[3, H, W] in [0, 1] to [H, W, 3] uint8."""
    return np.ascontiguousarray(
        (np.clip(image, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    )


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
    """Blend a shaded mesh over a image, far faces first, back faces left out.

    Args:
        image: [H, W, 3] RGB.
        verts_px: [V, 2] projected vertices; any camera.
        verts_depth_m: [V] depth in metres, larger is farther; only differences count.
        faces: [F, 3] counter-clockwise from outside.
        colour: RGB of the mesh.
        alpha: opacity.
        zoom: enlarge the image first.
    Returns: [H * zoom, W * zoom, 3].
    """
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
    """Bones in one colour per finger, joints as dots: [21, 2] canonical order; `valid` [21] joints
    are drawn, None draws all."""
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
    images: Sequence[Image], columns: int, headings: Sequence[str] | None = None, gap: int = 4
) -> Image:
    """Images of one size, row by row on a white sheet; headings stand above the columns."""
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    top = 20 if headings else 0
    shape = (top + rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    sheet = np.full(shape, 255, np.uint8)
    for i, image in enumerate(images):
        y = top + gap + (i // columns) * (height + gap)
        x = gap + (i % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = image
    for i, text in enumerate(headings or ()):
        origin = (gap + i * (width + gap), 14)
        cv2.putText(
            sheet, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (40, 40, 40), 1, cv2.LINE_AA
        )
    return sheet
