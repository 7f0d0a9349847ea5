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
GT_RGB = (170, 215, 150)
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


def _image(image: Tensor) -> Image:
    """[3, H, W] in [0, 1] to [H, W, 3] uint8."""
    pixels = (image.float().clamp(0, 1) * 255).round().byte()
    return pixels.permute(1, 2, 0).contiguous().cpu().numpy()


def _zoom(side_px: int) -> int:
    return max(1, SIDE_PX // side_px)


def _enlarged(image: Tensor) -> Image:
    """[3, H, W] in [0, 1] as an image of about `SIDE_PX`."""
    return enlarge(_image(image), _zoom(image.shape[-2]))


def _beside(
    images: Tensor, small: Iterable[Sequence[Image]], interpolation: int = cv2.INTER_NEAREST
) -> list[Image]:
    """Images [B, 3, H, W], each before its small ones, all enlarged to one size."""
    tiles = []
    for image, others in zip(images, small, strict=True):
        shown = _enlarged(image)
        size = shown.shape[1], shown.shape[0]
        tiles += [shown, *(cv2.resize(o, size, interpolation=interpolation) for o in others)]
    return [tile.astype(np.uint8, copy=False) for tile in tiles]


def draw_neighbours(query: Tensor, base: Tensor, order: Tensor) -> Image:
    """One row per query: images [m, 3, H, W] in [0, 1], each before those of `base` [n, 3, H, W] at
    its `order` [m, k], nearest first."""
    tiles = []
    for image, indices in zip(query, order.tolist(), strict=True):
        tiles += [_enlarged(image), *(_enlarged(base[i]) for i in indices)]
    k = order.shape[1]
    return contact_sheet(tiles, 1 + k, ["query", *(f"neighbour {i + 1}" for i in range(k))])


def _patch_colours(patches: Tensor) -> Tensor:
    """[B, N, 3] in [0, 1]: first three principal components of all tokens [B, N, D], each from its
    2 to its 98 per cent quantile, the heavier tail bright."""
    x = patches.double().flatten(0, 1)
    x = x - x.mean(dim=0)
    parts = x @ torch.linalg.eigh(x.T @ x).eigenvectors[:, -3:].flip(1)
    parts = parts * torch.where(parts.pow(3).sum(dim=0) < 0, -1.0, 1.0)
    low, high = parts.quantile(0.02, dim=0), parts.quantile(0.98, dim=0)
    # Equal tokens give one colour; their rounding is not amplified.
    tiny = 1e-6 * patches.double().abs().mean().clamp(min=1e-12)
    colours = ((parts - low) / (high - low).clamp(min=tiny)).clamp(0, 1)
    return colours.view(*patches.shape[:2], 3)


def draw_patch_colours(images: Tensor, tokens: Tokens) -> Image:
    """Images [B, 3, H, W] in [0, 1] beside all their patch tokens as colours, three in a row."""
    colours = _patch_colours(tokens.patches.float().cpu()).unflatten(1, tokens.grid_hw)
    grids = (colours.numpy() * 255).round().astype(np.uint8)
    return contact_sheet(_beside(images, grids[:, None]), 6, ["image", "patch tokens"] * 3)


def _numbered_points(image: Tensor, points_ndc: Tensor) -> Image:
    """[3, H, W] in [0, 1] with points [K, 2 or 3], each in its colour and with its number."""
    small = _image(image)
    side = small.shape[0]
    points_px = px_from_ndc(points_ndc[:, :2].float().cpu(), side).numpy()
    canvas = draw_points(small, points_px, distinct_colours(len(points_ndc)), zoom=_zoom(side))
    font = cv2.FONT_HERSHEY_SIMPLEX
    for number, (x, y) in enumerate(points_px * _zoom(side)):
        origin = round(float(x)) + 4, round(float(y)) - 3
        for colour, thickness in (((20, 20, 20), 2), ((255, 255, 255), 1)):
            cv2.putText(canvas, str(number), origin, font, 0.32, colour, thickness, cv2.LINE_AA)
    return canvas


def draw_images_with_points(images: Tensor, points_ndc: Tensor) -> Image:
    """Images [B, 3, H, W] with their numbered pseudo-keypoints [B, K, 2 or 3]."""
    pairs = zip(images, points_ndc, strict=True)
    return contact_sheet([_numbered_points(*pair) for pair in pairs], min(6, len(images)))


def _with_patches(views: Tensor, is_masked: Tensor, filling: Tensor, patch_px: int) -> Tensor:
    """Views [M, 3, H, W] whose masked patches, of is_masked [M, N], are others."""
    grid = views.shape[-2] // patch_px, views.shape[-1] // patch_px
    patches = patchify(views, patch_px)
    patches[is_masked] = filling.to(patches.dtype)
    return unpatchify(patches.clamp(0, 1), patch_px, grid)


def _predicted_patches(pixels: PixelTargets, min_var: float | None) -> Tensor:
    """With mean and contrast of their targets, which were normalised down to `min_var`; None for
    raw pixels."""
    if min_var is None:
        return pixels.pred
    var, mean = torch.var_mean(pixels.target, dim=-1, keepdim=True, correction=0)
    return pixels.pred * var.clamp(min=min_var).sqrt() + mean


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
        filled = _with_patches(flat, flat_mask, _predicted_patches(pixels, min_var), patch_px)
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
        sheets["keypoints"] = _draw_keypoints(batch, points.float(), num)
    for name, images in (low_res or {}).items():
        tiles = _beside(first, [[_grey(image)] for image in images[:num, 0]])
        sheets[name] = contact_sheet(tiles, 6, ["view", "reconstruction"] * 3)
    return sheets


def _draw_keypoints(batch: PretrainBatch, points: Tensor, num: int) -> Image:
    """View a with its points, view b with its own, and view b with those of a by the known map."""
    carried = points_of_next_view(points, batch)
    last = points.shape[1] - 1  # rolling brings a's points to the last view
    drawn = (0, points[:, 0]), (last, points[:, last]), (last, carried[:, last])
    tiles = [_numbered_points(batch.views[i, v], p[i]) for i in range(num) for v, p in drawn]
    return contact_sheet(tiles, 6, ["a: own points", "b: own points", "b: points of a"] * 2)


def _grey(image: Tensor) -> Image:
    """[t, t] as an image of its whole span."""
    grey = image.float().cpu().numpy()
    span = max(float(np.ptp(grey)), 1e-6)
    return np.repeat(((grey - grey.min()) / span * 255).astype(np.uint8)[..., None], 3, axis=2)


def draw_predictions(
    batch: HandBatch, state: Any, faces: NDArray[np.integer] | None, num: int = 8
) -> Image:
    """Rows of input, predicted mesh, true mesh (where vertices and camera are known), predicted and
    true joints; without `faces` [F, 3] input and joints alone. `state` is a HandState or joints of
    the first samples of the batch."""
    side = batch.image.shape[-1]
    zoom = _zoom(side)
    joints_px = px_from_ndc(state.joints_crop_ndc.float(), side).cpu().numpy()
    true_joints_px = px_from_ndc(batch.kp2d_crop_ndc, side).cpu().numpy()
    tiles = []
    for i in range(min(num, len(joints_px))):
        image = _image(batch.image[i])
        tiles.append(enlarge(image, zoom))
        if faces is not None:
            tiles += _meshes(image, batch, state, i, faces)
        tiles.append(draw_joints(image, joints_px[i], zoom=zoom))
        valid = batch.kp2d_valid[i].cpu().numpy()
        tiles.append(draw_joints(image, true_joints_px[i], valid, zoom=zoom))
    meshes = [] if faces is None else ["predicted mesh", "true mesh"]
    names = ["input", *meshes, "predicted joints", "true joints"]
    return contact_sheet(tiles, 2 * len(names), names * 2)


def _meshes(
    image: Image, batch: HandBatch, state: Any, i: int, faces: NDArray[np.integer]
) -> list[Image]:
    """Predicted and true mesh of sample i over its image."""
    side = batch.image.shape[-1]
    zoom = _zoom(side)
    verts_px = px_from_ndc(state.verts_crop_ndc[i].float(), side).cpu().numpy()
    depth_m = state.verts_root_m[i, :, 2].float().cpu().numpy()
    predicted = draw_mesh(image, verts_px, depth_m, faces, zoom=zoom)
    if not (bool(batch.has_verts[i]) and bool(batch.has_K[i])):
        return [predicted, enlarge(image, zoom)]
    verts = batch.verts_cam_m[i]
    true_px, true_depth = project(verts, batch.K_crop_px[i]).cpu().numpy(), verts[:, 2]
    true = draw_mesh(image, true_px, true_depth.cpu().numpy(), faces, colour=GT_RGB, zoom=zoom)
    return [predicted, true]
