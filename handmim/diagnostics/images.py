"""Images of features, of pretraining batches and of predictions: meshes by the painter's algorithm,
joints, points, contact sheets."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handmim.geometry.camera import project, px_from_ndc
from handmim.hand.skeleton import BONES
from handmim.objectives.pixel_recon import PixelTargets, patchify, unpatchify
from handmim.objectives.point_sets import points_of_next_view
from handmim.types import HandBatch, PretrainBatch, Tokens

Image = NDArray[np.uint8]
Array = NDArray[np.floating]
SIDE_PX = 144  # images are enlarged to about this
NUM_SHOWN = 6  # samples of a pretraining batch
PREDICTED_RGB, TRUE_RGB = (150, 190, 235), (170, 215, 150)  # of meshes
FINGER_RGB = ((230, 90, 60), (240, 180, 40), (80, 180, 80), (60, 140, 230), (170, 90, 210))
SUBPIXEL_BITS = 4
GAP = 4  # between the images of a sheet, pixels


def _array(values: Tensor) -> Array:
    return values.float().cpu().numpy()


def _fixed_point(points_px: Array) -> NDArray[np.int32]:
    # OpenCV puts the first pixel's centre at 0, we at 0.5.
    return np.round((points_px - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)


def draw_mesh(
    image: Image,
    verts_px: Array,
    verts_depth_m: Array,
    faces: NDArray[np.integer],
    colour: tuple[int, int, int],
    alpha: float = 0.7,
) -> Image:
    """Blend a shaded mesh over an image: projected vertices [V, 2] and their depth [V], of any
    camera; faces [F, 3] counter-clockwise from outside."""
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
    fixed = _fixed_point(verts_px)
    layer = image.copy()
    for t in order:
        tint = [int(c * shade[t]) for c in colour]
        cv2.fillConvexPoly(layer, fixed[faces[t]], tint, cv2.LINE_AA, SUBPIXEL_BITS)
    return cv2.addWeighted(layer, alpha, image, 1 - alpha, 0)


def draw_joints(image: Image, kp2d_px: Array, valid: NDArray[np.bool_] | None = None) -> Image:
    """Bones in one colour per finger and joints as dots, of all or the `valid` [21] joints."""
    canvas, fixed = image.copy(), _fixed_point(kp2d_px)
    shown = np.ones(len(kp2d_px), bool) if valid is None else valid
    thick = max(1, canvas.shape[0] // 110)
    for i, (a, b) in enumerate(BONES):
        if shown[a] and shown[b]:
            ends = fixed[a].tolist(), fixed[b].tolist()
            cv2.line(canvas, *ends, FINGER_RGB[i // 4], thick, cv2.LINE_AA, SUBPIXEL_BITS)
    for point in fixed[shown]:
        _dot(canvas, point, thick + 1, (250, 250, 250))
    return canvas


def _dot(canvas: Image, point: NDArray[np.int32], radius: int, colour: Sequence[int]) -> None:
    radius <<= SUBPIXEL_BITS
    cv2.circle(canvas, point.tolist(), radius, colour, -1, cv2.LINE_AA, SUBPIXEL_BITS)


def contact_sheet(
    images: Sequence[Image], columns: int, headings: Sequence[str] | None = None
) -> Image:
    """Images of one size, row by row on a white sheet; headings stand above the columns."""
    blank = np.full_like(images[0], 255)
    edges = (GAP, 0), (GAP, 0), (0, 0)
    tiles = [*images, *[blank] * (-len(images) % columns)]
    tiles = [np.pad(tile, edges, constant_values=255) for tile in tiles]
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    edges = (20 if headings else 0, GAP), (0, GAP), (0, 0)
    sheet: Image = np.pad(np.vstack(rows), edges, constant_values=255)
    for i, text in enumerate(headings or ()):
        origin, font = (GAP + i * tiles[0].shape[1], 14), cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(sheet, text, origin, font, 0.38, (40, 40, 40), 1, cv2.LINE_AA)
    return sheet


def _image(image: Tensor) -> Image:
    """[3, H, W] in [0, 1] to [H, W, 3] uint8."""
    pixels = (image.float().clamp(0, 1) * 255).round().byte()
    return pixels.permute(1, 2, 0).contiguous().cpu().numpy()


def _enlarged(image: Tensor) -> Image:
    """[3, H, W] in [0, 1] as an image of about `SIDE_PX`."""
    zoom = max(1, SIDE_PX // image.shape[-2])
    return cv2.resize(_image(image), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)


def _beside(
    images: Tensor, small: Iterable[Sequence[Image]], interpolation: int = cv2.INTER_NEAREST
) -> list[Image]:
    """Images [B, 3, H, W], each before its small ones, all enlarged to one size."""
    tiles: list[Any] = []
    for image, others in zip(images, small, strict=True):
        shown = _enlarged(image)
        size = shown.shape[1], shown.shape[0]
        tiles += [shown, *(cv2.resize(o, size, interpolation=interpolation) for o in others)]
    return tiles


def draw_neighbours(query: Tensor, base: Tensor, order: Tensor) -> Image:
    """One row per query: images [m, 3, H, W] in [0, 1], each before those of `base` [n, 3, H, W] at
    its `order` [m, k], nearest first."""
    tiles = _beside(query, [[_image(base[i]) for i in row] for row in order], cv2.INTER_CUBIC)
    names = ["query", *(f"neighbour {i + 1}" for i in range(order.shape[1]))]
    return contact_sheet(tiles, len(names), names)


def draw_patch_colours(images: Tensor, tokens: Tokens) -> Image:
    """Images [B, 3, H, W] in [0, 1] beside all their patch tokens as colours, three in a row: first
    three principal components, each from its 2 to its 98 per cent quantile, heavier tail bright."""
    patches = tokens.patches.float().cpu().double()
    x = patches.flatten(0, 1)
    x = x - x.mean(dim=0)
    parts = x @ torch.linalg.eigh(x.T @ x).eigenvectors[:, -3:].flip(1)
    parts = parts * torch.where(parts.pow(3).sum(dim=0) < 0, -1.0, 1.0)
    low, high = parts.quantile(0.02, dim=0), parts.quantile(0.98, dim=0)
    # Equal tokens give one colour; their rounding is not amplified.
    tiny = 1e-6 * patches.abs().mean().clamp(min=1e-12)
    colours = ((parts - low) / (high - low).clamp(min=tiny)).clamp(0, 1) * 255
    grids = colours.round().byte().view(len(patches), 1, *tokens.grid_hw, 3).numpy()
    return contact_sheet(_beside(images, list(grids)), 6, ["image", "patch tokens"] * 3)


def numbered_points(image: Tensor, points_ndc: Tensor) -> Image:
    """[3, H, W] in [0, 1] with points [K, 2 or 3], each in its colour and with its number."""
    canvas = _enlarged(image)
    points_px = _array(px_from_ndc(points_ndc[:, :2].float(), canvas.shape[0]))
    num, radius, font = len(points_px), max(2, canvas.shape[0] // 45), cv2.FONT_HERSHEY_SIMPLEX
    hsv = [(i * 180 // num, 215, 205 if i % 2 else 255) for i in range(num)]  # evenly spaced hues
    colours = cv2.cvtColor(np.array([hsv], np.uint8), cv2.COLOR_HSV2RGB)[0]
    for point, colour in zip(_fixed_point(points_px), colours, strict=True):
        _dot(canvas, point, radius + 1, (20, 20, 20))
        _dot(canvas, point, radius, colour.tolist())
    for number, (x, y) in enumerate(points_px):
        origin = round(float(x)) + 4, round(float(y)) - 3
        for grey, thickness in ((20, 2), (255, 1)):
            cv2.putText(canvas, str(number), origin, font, 0.32, [grey] * 3, thickness, cv2.LINE_AA)
    return canvas


def draw_images_with_points(images: Tensor, points_ndc: Tensor) -> Image:
    """Images [B, 3, H, W] with their numbered pseudo-keypoints [B, K, 2 or 3]."""
    pairs = zip(images, points_ndc, strict=True)
    return contact_sheet([numbered_points(*pair) for pair in pairs], min(6, len(images)))


def _with_patches(views: Tensor, is_masked: Tensor, filling: Tensor, patch_px: int) -> Tensor:
    """Views [M, 3, H, W] whose masked patches, of is_masked [M, N], are others."""
    grid = views.shape[-2] // patch_px, views.shape[-1] // patch_px
    patches = patchify(views, patch_px)
    patches[is_masked] = filling.to(patches.dtype)
    return unpatchify(patches.clamp(0, 1), patch_px, grid)


def draw_pretraining(
    batch: PretrainBatch,
    patch_px: int,
    *,
    pixels: PixelTargets | None = None,
    min_var: float | None = None,
    points: Tensor | None = None,
    low_res: Mapping[str, Tensor] | None = None,
) -> dict[str, Image]:
    """Sheets `views` and, where the parts exist, `local_views`, `keypoints` and those of `low_res`.

    Args:
        pixels: reconstructed patches of the same batch.
        min_var: floor of the variance by which their targets were normalised; None for raw pixels.
        points: [B, G, K, d] pseudo-keypoints in each view's ndc.
        low_res: low-resolution reconstructions [B, G, t, t] by name of the sheet.
    """
    num = min(NUM_SHOWN, len(batch.views))
    flat, flat_mask = batch.views.flatten(0, 1), batch.is_masked.flatten(0, 1)
    grey = _with_patches(flat, flat_mask, torch.tensor(0.5), patch_px)
    columns = {"view": batch.views, "input of the student": grey.view_as(batch.views)}
    # Where visible patches are predicted too, which ones is not recorded.
    if pixels is not None and 0 < len(pixels.pred) == int(flat_mask.sum()):
        filling = pixels.pred
        if min_var is not None:  # with mean and contrast of the targets
            var, mean = torch.var_mean(pixels.target, dim=-1, keepdim=True, correction=0)
            filling = filling * var.clamp(min=min_var).sqrt() + mean
        filled = _with_patches(flat, flat_mask, filling, patch_px)
        columns["reconstruction"] = filled.view_as(batch.views)
    tiles = [_enlarged(c[i, v]) for i in range(num) for v in (0, 1) for c in columns.values()]
    sheets = {"views": contact_sheet(tiles, 2 * len(columns), [*columns] * 2)}
    first = batch.views[:num, 0]
    if batch.local_views is not None:
        crops = [[_image(crop) for crop in sample] for sample in batch.local_views[:num]]
        names = ["view a", *["local crop"] * len(crops[0])]
        tiles = _beside(first, crops, cv2.INTER_CUBIC)
        sheets["local_views"] = contact_sheet(tiles, len(names), names)
    if points is not None:
        carried = points_of_next_view(points.float(), batch)
        last = points.shape[1] - 1  # rolling brings a's points to the last view
        drawn = (0, points[:, 0]), (last, points[:, last]), (last, carried[:, last])
        tiles = [numbered_points(batch.views[i, v], p[i]) for i in range(num) for v, p in drawn]
        names = ["a: own points", "b: own points", "b: points of a"]
        sheets["keypoints"] = contact_sheet(tiles, 6, names * 2)
    for name, images in (low_res or {}).items():
        small = []
        for image in images[:num, 0]:
            low, high = image.aminmax()
            span = ((image - low) / (high - low).clamp(min=1e-6)).expand(3, -1, -1)
            small.append([_image(span)])
        sheets[name] = contact_sheet(_beside(first, small), 6, ["view", "reconstruction"] * 3)
    return sheets


def draw_predictions(
    batch: HandBatch, state: Any, faces: NDArray[np.integer] | None, num: int = 8
) -> Image:
    """Rows of input, predicted mesh, true mesh (where vertices and camera are known), predicted and
    true joints; without `faces` [F, 3] input and joints alone. `state` is a HandState or joints of
    the first samples of the batch."""
    tiles = []
    for i in range(min(num, len(state.joints_crop_ndc))):
        image = _enlarged(batch.image[i])
        side = image.shape[0]
        tiles.append(image)
        if faces is not None:
            verts_px = _array(px_from_ndc(state.verts_crop_ndc[i].float(), side))
            depth_m = _array(state.verts_root_m[i, :, 2])
            tiles.append(draw_mesh(image, verts_px, depth_m, faces, PREDICTED_RGB))
            true = image
            if batch.has_verts[i] and batch.has_K[i]:
                verts, zoom = batch.verts_cam_m[i], side // batch.image.shape[-1]
                verts_px = _array(project(verts, batch.K_crop_px[i])) * zoom
                true = draw_mesh(image, verts_px, _array(verts[:, 2]), faces, TRUE_RGB)
            tiles.append(true)
        joints_px = _array(px_from_ndc(state.joints_crop_ndc[i].float(), side))
        true_px = _array(px_from_ndc(batch.kp2d_crop_ndc[i], side))
        valid = batch.kp2d_valid[i].cpu().numpy()
        tiles += [draw_joints(image, joints_px), draw_joints(image, true_px, valid)]
    meshes = [] if faces is None else ["predicted mesh", "true mesh"]
    names = ["input", *meshes, "predicted joints", "true joints"]
    return contact_sheet(tiles, 2 * len(names), names * 2)
