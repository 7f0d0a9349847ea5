"""Random hand images with their ground truth: pose, shape, camera, light, skin, sleeve, object,
occluder, image effects."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.geometry.rotation_numpy import random_rotation, rotvec_to_matrix
from handmim.hand.conventions import CROP_SCALE
from handmim.hand.io import HandArrays
from handmim.hand.poses import PoseSampler, sample_betas
from handmim.render.background import KINDS, BackdropBank, expose, random_lights
from handmim.render.shading import compiled, rasterise, shade, shadow_map, vertex_normals
from handmim.render.surfaces import HandSurface, Held, held_object, muted, skin_and_nails
from handmim.utils.arguments import at_least, one_of, shares

Array = NDArray[np.floating]
RNG = np.random.Generator

RENDERER_VERSION = 6  # part of every cache's name: raise it when images change
SPLITS = ("train", "val", "test")
POSE_BLOCK = 256
CENTRING_STEPS = 4

# Camera from model axes (fingers up): the back of the hand, or the palm, towards the camera.
CAM_FROM_MODEL = {
    "dorsal": np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]),
    "palmar": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
}
# Noise seed, frequency (1/m) and amount, gloss, its sharpness, creases: lowest and highest.
SKIN_NOISE = np.array([[0, 120, 0.02, 0.03, 8, 0.2], [50, 300, 0.07, 0.2, 40, 1.3]])


@dataclass(frozen=True)
class SceneSettings:
    """Settings of random images; ranges are (low, high), objects to sleeves and blurs shares."""

    image_px: int = 224
    supersample: int = 1  # images are rendered this much larger, then averaged
    view: str = "any"  # or a "cone" about `sides`
    sides: Sequence[str] = ("dorsal", "palmar")
    cone_deg: Sequence[float] = (40.0, 30.0, 30.0)  # about the optical, vertical, horizontal axis
    background: str = "room"  # "studio", or "photos" with `photos_dir`
    objects: float = 0.45
    occluders: float = 0.25
    sleeves: float = 0.5
    focal: Sequence[float] = (1.6, 3.2)  # in image sides
    crop_scale: float = CROP_SCALE  # side of the image relative to the joints' box in it
    blur: float = 0.25
    motion_blur: float = 0.15
    noise: float = 0.03  # highest standard deviation
    hand_luma: Sequence[float] = (0.25, 0.75)  # exposure brings the hand's mean into it
    photos_dir: str | None = None

    def __post_init__(self) -> None:
        one_of("view", self.view, ("any", "cone"))
        if not set(self.sides) <= set(CAM_FROM_MODEL) or not self.sides:
            raise ValueError(f"sides must be dorsal and/or palmar, got {self.sides}")
        at_least(16, image_px=self.image_px)
        at_least(1, supersample=self.supersample)
        one_of("background", self.background, KINDS)
        if self.background == "photos" and self.photos_dir is None:
            raise ValueError("background=photos requires photos_dir, got None")
        probabilities = ("objects", "occluders", "sleeves", "blur", "motion_blur")
        shares(**{name: getattr(self, name) for name in probabilities})
        at_least(1, crop_scale=self.crop_scale)
        for name in ("focal", "hand_luma"):
            low, *_, high = getattr(self, name)
            if not 0 <= low <= high or not high:
                raise ValueError(f"need 0 <= low <= high, got {name}={list(getattr(self, name))}")

    def plain(self) -> dict[str, Any]:
        """JSON-ready values, for hashing and for meta files."""
        return {k: list(v) if isinstance(v, (tuple, list)) else v for k, v in asdict(self).items()}


class RenderedHand(NamedTuple):
    """One image and its ground truth."""

    image: NDArray[np.uint8]  # [S, S, 3] RGB
    mask: NDArray[np.bool_]  # [S, S] visible hand
    K_px: Array  # [3, 3]
    verts_cam_m: Array  # [V, 3]
    joints_cam_m: Array  # [21, 3]
    rotmats: Array  # [16, 3, 3] R_cam_from_mano, then absolute finger rotations
    betas: Array  # [10]
    transl_m: Array  # [3], HandModel(rotmats, betas, transl_m) gives verts_cam_m


class ShadedScene(NamedTuple):
    """A lit hand without backdrop and image effects; several images can be made of it."""

    shaded: Array  # [H, W, 3] linear, 0 outside `covered`; H = W = image_px * supersample
    covered: NDArray[np.bool_]  # [H, W] hand, arm or object
    hand: NDArray[np.bool_]  # [H, W] hand without the arm
    inv_depth: Array  # [H, W] 1 / m, 0 outside `covered`
    backdrop: Array  # [S, S, 3]
    K_px: Array  # [3, 3] of the image
    verts_cam_m: Array  # [V, 3]
    joints_cam_m: Array  # [21, 3]
    transl_m: Array  # [3]


@compiled
def _add_noise(image, grain, noise, pixels):
    noise, white, half = np.float32(noise), np.float32(255), np.float32(0.5)
    for n in range(len(image)):
        x = (image[n] + noise * grain[n]) * white + half
        pixels[n] = np.uint8(min(max(x, half), white + half))


class ImageEffects:
    """Occluder cut from a backdrop, blur, gamma and noise of an image."""

    def __init__(self, settings: SceneSettings, backdrops: BackdropBank) -> None:
        self.settings, self.backdrops = settings, backdrops
        # Sensor noise is read from a fixed strip at a random position: drawing it anew costs as
        # much as the raster.
        strip = max(1 << 20, 4 * 3 * settings.image_px**2)
        self.grain = np.random.default_rng(2).standard_normal(strip, dtype=np.float32)

    def __call__(self, rng: RNG, image: Array, mask: Array) -> NDArray[np.uint8]:
        """RGB bytes of an image [S, S, 3] float32 in [0, 1], which may be overwritten; an occluder
        is taken off the hand's share `mask` [S, S] in place."""
        s = self.settings
        if s.supersample == 1:  # in place of antialiasing
            image = cv2.GaussianBlur(image, (3, 3), 0.45)
        if rng.random() < s.occluders:
            self._occlude(rng, image, mask)
        draw = rng.random()
        if draw < s.blur:
            sigma_px = float(rng.uniform(0.4, 1.6) * s.image_px / 224)
            image = cv2.GaussianBlur(image, (0, 0), sigma_px)
        elif draw < s.blur + s.motion_blur:
            n = int(rng.integers(3, 3 + max(2, s.image_px // 28)))
            kernel, centre, angle = np.zeros((n, n), np.float32), (n - 1) / 2, rng.uniform(0, np.pi)
            direction = centre * np.array([np.cos(angle), np.sin(angle)])
            ends = [[round(x) for x in centre + sign * direction] for sign in (-1, 1)]
            cv2.line(kernel, ends[0], ends[1], 1.0)
            image = cv2.filter2D(image, -1, kernel / kernel.sum())
        image = cv2.pow(np.clip(image, 0, 1, out=image), float(rng.uniform(0.85, 1.15)))
        start = int(rng.integers(len(self.grain) - image.size))
        grain = self.grain[start : start + image.size]
        pixels = np.empty(image.shape, np.uint8)
        _add_noise(image.ravel(), grain, rng.uniform(0, s.noise), pixels.reshape(-1))
        return pixels

    def _occlude(self, rng: RNG, image: Array, mask: Array) -> None:
        size = self.settings.image_px
        spots = rng.integers(size // 6, 5 * size // 6, 2) + rng.normal(0, size / 9, (6, 2))
        hull = cv2.convexHull(spots.astype(np.int32))
        share = np.zeros((size, size), np.float32)
        cv2.fillConvexPoly(share, hull, 1.0, cv2.LINE_AA)
        cover = self.backdrops.crop(rng, size)
        left, top, width, height = cv2.boundingRect(hull)
        # Smooth edges reach a little further.
        part = slice(max(top - 2, 0), top + height + 2), slice(max(left - 2, 0), left + width + 2)
        mask[part] *= 1 - share[part]
        alpha = share[part][..., None]
        image[part] += (cover[part] - image[part]) * alpha


def random_orientation(settings: SceneSettings, rng: RNG) -> Array:
    """[3, 3] R_cam_from_mano within the views of the settings."""
    if settings.view == "any":
        return random_rotation(rng)
    base = CAM_FROM_MODEL[settings.sides[int(rng.integers(len(settings.sides)))]]
    angles = np.radians(rng.uniform(-1, 1, 3) * settings.cone_deg)
    about_x, about_y, about_z = rotvec_to_matrix(np.diag(angles))
    return about_z @ about_y @ about_x @ base


def framing(joints_m: Array, focal_px: float, box_px: float) -> Array:
    """The translation [3] that centres the box of joints [J, 3] in the image, its longer side
    `box_px`: the crop rule (`CROP_SCALE`) for a camera that is still free."""
    xy, z = joints_m[:, :2], joints_m[:, 2:]
    slope = box_px / 2 / focal_px  # of the box's rim against the optical axis
    high, low = (xy - slope * z).max(axis=0), (-xy - slope * z).max(axis=0)
    depth = ((high + low).max() / 2) / slope  # the nearest at which the box holds both sides
    transl, z = (low - high) / 2, z[:, 0] + depth
    for _ in range(CENTRING_STEPS):  # the shorter side; the joints at its ends may change
        seen = (xy + transl) / z[:, None]
        last, first = seen.argmax(axis=0), seen.argmin(axis=0)
        ends = xy[last, [0, 1]] * z[first] + xy[first, [0, 1]] * z[last]
        transl = -ends / (z[first] + z[last])
    return np.append(transl, depth)


class SceneRenderer:
    """Renders image number i of a split ("train", "val" or "test", disjoint draws) of a set with
    this seed: the same one in any process and order."""

    def __init__(
        self, arrays: HandArrays, settings: SceneSettings, seed: int = 0, split: str = "train"
    ) -> None:
        one_of("split", split, SPLITS)
        self.surface, self.settings = HandSurface(arrays), settings
        self.stream = (seed, SPLITS.index(split))
        self.poses = PoseSampler.from_arrays(arrays)
        kind, rng = settings.background, self._rng(2**31)
        self.backdrops = BackdropBank(kind, rng, photos_dir=settings.photos_dir)
        self.table = np.random.default_rng(1).uniform(-1, 1, 4096).astype(np.float32)
        self.effects = ImageEffects(settings, self.backdrops)
        side = settings.image_px * settings.supersample
        self._inv_depth = np.zeros((side, side))
        self._face_id = np.zeros((side, side), np.int32)
        # Poses are accepted or refused in batches: cheaper, and still a function of the index.
        self._pose_block = lru_cache(maxsize=4)(
            lambda block: self.poses.sample(POSE_BLOCK, self._rng(2**31 + 1, block))
        )

    def _rng(self, *numbers: int) -> RNG:
        return np.random.default_rng(np.random.SeedSequence([*self.stream, *numbers]))

    def fingers(self, index: int) -> Array:
        """[15, 3, 3] absolute finger rotations of articulation `index`."""
        return self._pose_block(index // POSE_BLOCK)[index % POSE_BLOCK]

    def render(self, index: int) -> RenderedHand:
        """Image `index`."""
        rng = self._rng(index)
        orientation = random_orientation(self.settings, rng)
        rotmats = np.concatenate([orientation[None], self.fingers(index)])
        betas = sample_betas(1, 10, rng)[0]
        scene = self.shade(rotmats, betas, rng)
        image, mask = self.finish(scene, scene.backdrop, rng)
        labels = (scene.K_px, scene.verts_cam_m, scene.joints_cam_m, rotmats, betas)
        return RenderedHand(image, mask, *labels, scene.transl_m)

    def shade(
        self,
        rotmats: Array,
        betas: Array,
        rng: RNG,
        *,
        camera: tuple[float, Array] | None = None,
        held: Held | None = None,
        skin_rng: RNG | None = None,
        room_rng: RNG | None = None,
    ) -> ShadedScene:
        """A hand, [16, 3, 3] and [10], under random light, with arm and perhaps an object. Focal
        length in pixels and translation [3] of `camera`, and the object, are random where they are
        not given; so are, each by its generator, skin and sleeve, and backdrop and light."""
        s, surface = self.settings, self.surface
        skin_rng, room_rng = skin_rng or rng, room_rng or rng
        verts, joints = surface.pose(rotmats, betas)
        size = s.image_px
        if camera is None:
            focal = rng.uniform(s.focal[0], s.focal[1]) * size
            camera = focal, framing(joints, focal, size / s.crop_scale)
        focal, transl = camera
        verts, joints = verts + transl, joints + transl
        K = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]])

        tone, nails = skin_and_nails(skin_rng)
        bare = skin_rng.random() >= s.sleeves
        all_verts = np.vstack([verts, surface.arm(verts, rotmats[0][:, 0])])
        colours = surface.colours(tone)
        sleeve = muted(skin_rng.random(3) * 0.9, 0.35)
        arm = np.tile(colours[surface.ring], (4, 1)) if bare else np.tile(sleeve, (64, 1))
        albedo = np.vstack([colours, arm])
        faces, rest = surface.faces, surface.rest
        bone = np.maximum(surface.bone, 0) if bare else surface.bone
        if held is None and rng.random() < s.objects:
            held = held_object(verts, joints, rotmats[0], rng)
        if held is not None:
            points, held_faces, held_colours = held
            faces = np.vstack([faces, held_faces + len(all_verts)])
            bone = np.r_[bone, np.full(len(held_faces), -1, np.int32)]
            all_verts = np.vstack([all_verts, points])
            rest = np.vstack([rest, points - points[0]])
            albedo = np.vstack([albedo, held_colours])
        normals: Array = np.zeros_like(all_verts)
        vertex_normals(all_verts, faces, normals)
        if bare:  # no seam where the forearm continues the skin
            arm_ring = len(verts) + np.arange(16)
            normals[surface.ring] = normals[arm_ring] = normals[surface.ring] + normals[arm_ring]
        lengths = np.sqrt(np.einsum("vk,vk->v", normals, normals)) + 1e-12
        corners = np.empty((len(all_verts), 9))
        corners[:, :3], corners[:, 3:6], corners[:, 6:] = normals / lengths[:, None], rest, albedo

        inv_z = 1 / all_verts[:, 2]
        focal_px, centre_px = focal * s.supersample, size / 2 * s.supersample
        x_px, y_px = (focal_px * all_verts[:, k] * inv_z + centre_px for k in (0, 1))
        inv_depth, face_id = self._inv_depth, self._face_id
        rasterise(x_px, y_px, inv_z, faces, 0, inv_depth, face_id)
        backdrop = self.backdrops.crop(room_rng, size)
        image = np.zeros((*face_id.shape, 3), np.float32)
        lights = random_lights(room_rng)
        shadow, to_shadow = shadow_map(lights[0][0], all_verts, faces)
        covered = face_id >= 0
        noise = SKIN_NOISE[0] + (SKIN_NOISE[1] - SKIN_NOISE[0]) * room_rng.random(6)
        shade(
            np.flatnonzero(covered), face_id, inv_depth, x_px, y_px, inv_z, faces.view(np.uint32),
            corners, centre_px, focal_px, bone, surface.frame, surface.lines, nails,
            *lights, shadow, to_shadow, self.table, noise, image.reshape(-1, 3),
        )  # fmt: skip
        hand = covered & (face_id < len(surface.arrays.faces))
        layers = (image, covered, hand, inv_depth.astype(np.float32))
        return ShadedScene(*layers, backdrop, K, verts, joints, transl)

    def finish(
        self, scene: ShadedScene, backdrop: Array, rng: RNG
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Image [S, S, 3] RGB and visible hand [S, S] of a shaded scene before a backdrop
        [S, S, 3] float32 in [0, 1]."""
        s = self.settings
        size, big = s.image_px, s.image_px * s.supersample
        behind = cv2.resize(backdrop, (big, big)) if s.supersample > 1 else backdrop
        image: Array = expose(scene.shaded, scene.covered, scene.hand, behind, *s.hand_luma)
        mask: Array = scene.hand.astype(np.float32)
        if s.supersample > 1:
            shrink = partial(cv2.resize, dsize=(size, size), interpolation=cv2.INTER_AREA)
            image, mask = shrink(image), shrink(mask)
        return self.effects(rng, image, mask), mask > 0.5
