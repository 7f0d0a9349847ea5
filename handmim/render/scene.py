"""Random hand photographs with their truth: pose, shape, camera, light, skin, sleeve, object,
occluder, lens."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.hand.arrays import HandArrays
from handmim.hand.poses import PoseSampler, rodrigues, sample_betas
from handmim.render.background import BackdropBank
from handmim.render.rasterizer import rasterise, unit, vertex_normals
from handmim.render.shading import SKIN_TONES, shade
from handmim.render.surface import HandSurface

Array = NDArray[np.floating]
RNG = np.random.Generator

RENDERER_VERSION = 3  # part of every cache's name: raise it when pictures change
SPLITS = ("train", "val", "test")
POSE_BLOCK = 256

# Camera from model axes (fingers up): the back of the hand, or the palm, towards the camera.
R_CAM_FROM_DORSAL = np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]])
R_CAM_FROM_PALMAR = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])


@dataclass(frozen=True)
class SceneSettings:
    """What random photographs look like. Ranges are (low, high).

    Args:
        image_px: side of the pictures.
        supersample: render this much larger, then average.
        view: "any" orientation, or a "cone" about the sides listed.
        sides: "dorsal" and/or "palmar", for cones.
        cone_deg: half angles about the optical axis, the vertical and the horizontal.
        background: "room", "studio" or "photos" (with photos_dir).
        objects, occluders, sleeves: probabilities.
        focal: focal length in picture sides.
        fill: how much of the picture the hand's box fills.
        offset: shift of the hand, share of its half extent.
        blur, motion_blur: probabilities.
        noise: highest sensor noise (standard deviation).
        hand_luma: allowed mean luma of the hand; exposure is corrected to it.
        photos_dir: folder of background photos.
    """

    image_px: int = 224
    supersample: int = 1
    view: str = "any"
    sides: Sequence[str] = ("dorsal", "palmar")
    cone_deg: Sequence[float] = (40.0, 30.0, 30.0)
    background: str = "room"
    objects: float = 0.45
    occluders: float = 0.25
    sleeves: float = 0.5
    focal: Sequence[float] = (1.6, 3.2)
    fill: Sequence[float] = (0.6, 0.88)
    offset: float = 0.08
    blur: float = 0.25
    motion_blur: float = 0.15
    noise: float = 0.03
    hand_luma: Sequence[float] = (0.25, 0.75)
    photos_dir: str | None = None

    def __post_init__(self) -> None:
        if self.view not in ("any", "cone"):
            raise ValueError(f"view must be any or cone, got {self.view!r} (scene.view)")
        if not set(self.sides) <= {"dorsal", "palmar"} or not self.sides:
            raise ValueError(f"sides must be dorsal and/or palmar, got {self.sides} (scene.sides)")
        if self.image_px < 16:
            raise ValueError(f"image_px must be >= 16, got {self.image_px} (scene.image_px)")

    def plain(self) -> dict[str, Any]:
        """Settings as JSON-ready values, for hashing and for meta files."""
        return {k: list(v) if isinstance(v, (tuple, list)) else v for k, v in asdict(self).items()}


class RenderedHand(NamedTuple):
    """One photograph and its truth."""

    image: NDArray[np.uint8]  # [S, S, 3] RGB
    mask: NDArray[np.bool_]  # [S, S] visible hand
    K_px: Array  # [3, 3]
    verts_cam_m: Array  # [V, 3]
    joints_cam_m: Array  # [21, 3]
    rotmats: Array  # [16, 3, 3] R_cam_from_mano, then absolute finger rotations
    betas: Array  # [10]
    transl_m: Array  # [3], HandModel(rotmats, betas, transl_m) gives verts_cam_m


def muted(colour: Array, saturation: float) -> Array:
    """A colour with part of its saturation: [3] to [3]."""
    grey = colour.mean()
    return grey + (colour - grey) * saturation


def random_rotation(rng: RNG) -> Array:
    """[3, 3] uniform over all rotations."""
    w, x, y, z = unit(rng.normal(size=4))
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def superquadric(rng: RNG) -> tuple[Array, NDArray[np.int32], Array, Array]:
    """A random box, cylinder, ball or something between: points [n, 3] m, faces, radii [3],
    exponents [2]."""
    exponents, radii = rng.choice([0.15, 0.5, 1.0], 2), rng.uniform(0.016, 0.048, 3)
    around, up = 18, 12
    u, v = np.meshgrid(
        np.arange(around) * 2 * np.pi / around, np.linspace(-np.pi / 2, np.pi / 2, up)
    )

    def power(w: Array, e: float) -> Array:
        return np.sign(w) * np.abs(w) ** e

    e1, e2 = exponents
    ring = power(np.cos(v), e1)
    points = np.stack(
        [ring * power(np.cos(u), e2), ring * power(np.sin(u), e2), power(np.sin(v), e1)], axis=-1
    ).reshape(-1, 3)
    a = np.arange(around * (up - 1))
    b = a - a % around + (a + 1) % around
    faces = np.vstack([np.stack([a, b, b + around], 1), np.stack([a, b + around, a + around], 1)])
    return points * radii, faces.astype(np.int32), radii, exponents


def depth_inside_m(points: Array, radii: Array, exponents: Array) -> float:
    """How deep the deepest of `points` (object frame) lies inside a superquadric, along its ray to
    the centre."""
    e1, e2 = exponents
    x, y, z = (np.abs(points) / radii).T + 1e-9
    value = ((x ** (2 / e2) + y ** (2 / e2)) ** (e2 / e1) + z ** (2 / e1)) ** (e1 / 2)
    depth = np.linalg.norm(points, axis=1) * (1 / value - 1)
    return float(np.max(depth))


def tame_exposure(image: Array, mask: NDArray[np.bool_], luma: Sequence[float]) -> Array:
    """Bring the hand's mean luma into range and roll highlights off below white, so that nothing
    blows out."""
    gain = 1.0
    if mask.any():
        mean = float(image[mask].mean())
        gain = min(max(mean, luma[0]), luma[1]) / max(mean, 1e-6)
    image = (image * np.float32(gain)).astype(np.float32)
    knee = 0.8
    bright = image > knee
    over = (image[bright] - knee) / (1 - knee)
    image[bright] = knee + (1 - knee) * 0.96 * (1 - np.exp(-over))
    return image


class SceneRenderer:
    """Draws photograph number i of a split; the same one whoever draws it and in whatever order.

    Args:
        arrays: the hand.
        settings: what pictures look like.
        seed: of the whole set.
        split: "train", "val" or "test": disjoint draws of poses, shapes and everything else.
    """

    SHADOW_PX = 128

    def __init__(
        self, arrays: HandArrays, settings: SceneSettings, seed: int = 0, split: str = "train"
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r} (data.*.split)")
        self.surface, self.settings = HandSurface(arrays), settings
        self.stream = (seed, SPLITS.index(split))
        self.poses = PoseSampler.from_arrays(arrays)
        self.backdrops = BackdropBank(
            settings.background,
            np.random.default_rng(np.random.SeedSequence([*self.stream, 2**31])),
            photos_dir=settings.photos_dir,
        )
        self.table = np.random.default_rng(1).uniform(-1, 1, 4096)
        # Sensor noise is read from a fixed strip at a random place: drawing it anew costs as much
        # as the raster.
        strip = max(1 << 20, 4 * 3 * settings.image_px**2)
        self.grain = np.random.default_rng(2).standard_normal(strip, dtype=np.float32)
        side = settings.image_px * settings.supersample
        self._buffers = self._make_buffers(side)
        self._shadow = self._make_buffers(self.SHADOW_PX)
        self._pose_block = lru_cache(maxsize=4)(self._draw_pose_block)

    @staticmethod
    def _make_buffers(side: int) -> tuple[Array, NDArray[np.int32], Array]:
        return np.zeros((side, side)), np.zeros((side, side), np.int32), np.zeros((side, side, 2))

    def _draw_pose_block(self, block: int) -> Array:
        # Poses are accepted or refused in batches: much cheaper than one by one, and still a
        # function of the index.
        rng = np.random.default_rng(np.random.SeedSequence([*self.stream, 2**31 + 1, block]))
        return self.poses.sample(POSE_BLOCK, rng)

    def render(self, index: int) -> RenderedHand:
        """Photograph `index`."""
        rng = np.random.default_rng(np.random.SeedSequence([*self.stream, index]))
        fingers = self._pose_block(index // POSE_BLOCK)[index % POSE_BLOCK]
        rotmats = np.concatenate([self._orientation(rng)[None], fingers])
        return self.draw(rotmats, sample_betas(1, 10, rng)[0], rng)

    def _orientation(self, rng: RNG) -> Array:
        s = self.settings
        if s.view == "any":
            return random_rotation(rng)
        side = s.sides[int(rng.integers(len(s.sides)))]
        base = R_CAM_FROM_DORSAL if side == "dorsal" else R_CAM_FROM_PALMAR
        about = np.radians(rng.uniform(-1, 1, 3) * s.cone_deg)
        turn = rodrigues(np.diag(about)[[2, 1, 0]])  # about z, y, x
        return turn[0] @ turn[1] @ turn[2] @ base

    def draw(self, rotmats: Array, betas: Array, rng: RNG) -> RenderedHand:
        """A photograph of the given hand; everything else is random.

        Args:
            rotmats: [16, 3, 3].
            betas: [10].
            rng: source of everything else.
        """
        s, surface = self.settings, self.surface
        size, big = s.image_px, s.image_px * s.supersample
        verts, joints = surface.pose(rotmats, betas)
        focal = rng.uniform(s.focal[0], s.focal[1]) * size
        centre = (verts.max(axis=0) + verts.min(axis=0)) / 2
        extent = np.abs(verts - centre)[:, :2].max()
        depth = focal * extent / (size / 2 * rng.uniform(s.fill[0], s.fill[1]))
        transl = np.r_[rng.uniform(-s.offset, s.offset, 2) * extent, depth] - centre
        verts, joints = verts + transl, joints + transl
        K = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]])

        tone = self._tone(rng)
        bare = rng.random() >= s.sleeves
        all_verts = np.vstack([verts, surface.arm(verts, rotmats[0][:, 0])])
        colours = surface.colours(tone)
        sleeve = muted(rng.random(3) * 0.9, 0.35)
        arm = np.tile(colours[surface.ring], (4, 1)) if bare else np.tile(sleeve, (64, 1))
        albedo = np.vstack([colours, arm])
        faces, rest = surface.faces, surface.rest
        bone = np.maximum(surface.bone, 0) if bare else surface.bone
        if rng.random() < s.objects:
            held = self._held_object(verts, joints, rotmats[0], rng)
            if held is not None:
                points, more, colour = held
                faces = np.vstack([faces, more + len(all_verts)])
                bone = np.r_[bone, np.full(len(more), -1, np.int32)]
                all_verts, rest = (
                    np.vstack([all_verts, points]),
                    np.vstack([rest, points - points[0]]),
                )
                albedo = np.vstack([albedo, colour])
        normals: Array = np.zeros_like(all_verts)
        vertex_normals(all_verts, faces, normals)
        if bare:  # no seam where the forearm continues the skin
            arm_ring = len(verts) + np.arange(16)
            normals[surface.ring] = normals[arm_ring] = normals[surface.ring] + normals[arm_ring]

        inv_z = 1 / all_verts[:, 2]
        x_px = (focal * all_verts[:, 0] * inv_z + size / 2) * s.supersample
        y_px = (focal * all_verts[:, 1] * inv_z + size / 2) * s.supersample
        inv_depth, face_id, bary = self._buffers
        rasterise(x_px, y_px, inv_z, faces, inv_depth, face_id, bary)
        backdrop = self.backdrops.crop(rng, size)
        image = cv2.resize(backdrop, (big, big)) if s.supersample > 1 else backdrop
        image = np.array(image, np.float32)
        self._shade(rng, image, faces, all_verts, unit(normals), albedo, rest, bone, tone)
        hand = (face_id >= 0) & (face_id < len(surface.arrays.faces))
        image = tame_exposure(image, hand, s.hand_luma)
        mask = hand.astype(np.float32)
        if s.supersample > 1:
            image, mask = (
                cv2.resize(a, (size, size), interpolation=cv2.INTER_AREA) for a in (image, mask)
            )
        image, mask = self._lens(rng, image, mask)
        picture = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
        return RenderedHand(picture, mask > 0.5, K, verts, joints, rotmats, betas, transl)

    @staticmethod
    def _tone(rng: RNG) -> Array:
        i, w = rng.integers(len(SKIN_TONES) - 1), rng.random()
        tone = SKIN_TONES[i] * w + SKIN_TONES[i + 1] * (1 - w)
        return np.clip(tone * rng.uniform(0.92, 1.1) * (1 + rng.normal(0, 0.025, 3)), 0.03, 1)

    @staticmethod
    def _held_object(
        verts: Array, joints: Array, R: Array, rng: RNG
    ) -> tuple[Array, NDArray[np.int32], Array] | None:
        """An object off the palm, pushed out until fingers enter it by less than 3 mm; None if it
        never fits."""
        points, faces, radii, exponents = superquadric(rng)
        turn, palm = random_rotation(rng), -R[:, 1]
        place = joints[[0, 5, 9, 17]].mean(axis=0) * 0.5 + joints[9] * 0.5
        place = place + palm * rng.uniform(0.032, 0.06)
        for _ in range(16):
            if depth_inside_m((verts - place) @ turn, radii, exponents) < 0.003:
                break
            place = place + palm * 0.006
        else:
            return None
        colour = np.repeat(muted(rng.random(3), 0.6)[None], len(points), axis=0)
        if rng.random() < 0.3:
            stripes = np.sign(np.sin(rng.uniform(30, 120) * points @ rng.normal(0, 1, 3)))
            colour = np.clip(colour * (1 + 0.25 * stripes)[:, None], 0, 1)
        return points @ turn.T + place, faces, colour

    def _shade(
        self, rng: RNG, image: Array, faces: NDArray[np.int32], verts: Array, normals: Array,
        albedo: Array, rest: Array, bone: NDArray[np.int32], tone: Array,
    ) -> None:  # fmt: skip
        """Random lights and skin; paints `image` in place."""
        lights: Array = rng.normal(0, 1, (2, 3))
        lights[:, 2] = -np.abs(lights[:, 2]) - 0.3
        lights = unit(lights)
        tints = 1 + rng.normal(0, 0.08, (2, 3))
        light_rgb = np.array([[rng.uniform(0.35, 1.0)], [rng.uniform(0.1, 0.4)]]) * tints
        sky = rng.uniform(0.25, 0.6) * (1 + rng.normal(0, 0.07, 3))
        ground = sky * rng.uniform(0.35, 0.9)
        up = unit(np.array([0, -1, 0.0]) + rng.normal(0, 0.4, 3))
        side = unit(np.cross(lights[0], [0, 1, 0.1]))
        rows = np.stack([side, np.cross(lights[0], side), -lights[0]])
        q = verts @ rows.T
        offset = -q.min(axis=0) + [0, 0, 1]
        scale = (self.SHADOW_PX - 1) / max(np.ptp(q[:, 0]), np.ptp(q[:, 1]))
        shadow, shadow_face, shadow_bary = self._shadow
        x_px, y_px = (q[:, 0] + offset[0]) * scale, (q[:, 1] + offset[1]) * scale
        rasterise(x_px, y_px, 1 / (q[:, 2] + offset[2]), faces, shadow, shadow_face, shadow_bary)
        nail = np.clip(
            tone * 0.55 + np.array([0.40, 0.30, 0.28]) * (0.45 + 0.55 * tone.mean()), 0, 1
        )
        look = np.array(
            [
                rng.uniform(0, 50), rng.uniform(120, 300), rng.uniform(0.02, 0.07),
                rng.uniform(0.03, 0.2), rng.uniform(8, 40), rng.uniform(0.2, 1.3),
            ]
        )  # fmt: skip
        _, face_id, bary = self._buffers
        shade(
            face_id, bary, faces, verts, normals, albedo, rest, bone, self.surface.frame, nail,
            image, lights, light_rgb, up, sky, ground, self.table, look, self.surface.lines,
            shadow, rows, offset, scale,
        )  # fmt: skip

    def _lens(self, rng: RNG, image: Array, mask: Array) -> tuple[Array, Array]:
        """Soft edges, a foreground occluder, defocus or motion blur, gamma, sensor noise."""
        s, size = self.settings, self.settings.image_px
        if s.supersample == 1:
            image = cv2.GaussianBlur(image, (3, 3), 0.45)
        if rng.random() < s.occluders:
            spots = rng.integers(size // 6, 5 * size // 6, 2) + rng.normal(0, size / 9, (6, 2))
            cut = np.zeros((size, size), np.float32)
            cv2.fillConvexPoly(cut, cv2.convexHull(spots.astype(np.int32)), 1.0, cv2.LINE_AA)
            cover = self.backdrops.crop(rng, size)
            image = image * (1 - cut[..., None]) + cover * cut[..., None]
            mask = mask * (1 - cut)
        lens = rng.random()
        if lens < s.blur:
            image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.6) * size / 224))
        elif lens < s.blur + s.motion_blur:
            image = cv2.filter2D(image, -1, self._motion_kernel(rng, size))
        image = cv2.pow(np.clip(image, 0, 1), float(rng.uniform(0.85, 1.15)))
        start = int(rng.integers(len(self.grain) - image.size))
        grain = self.grain[start : start + image.size].reshape(image.shape)
        return image + np.float32(rng.uniform(0, s.noise)) * grain, mask

    @staticmethod
    def _motion_kernel(rng: RNG, size: int) -> NDArray[np.float32]:
        n = int(rng.integers(3, 3 + max(2, size // 28)))
        kernel, centre, angle = np.zeros((n, n), np.float32), (n - 1) / 2, rng.uniform(0, np.pi)
        way = centre * np.array([np.cos(angle), np.sin(angle)])
        ends = [[round(x) for x in centre + sign * way] for sign in (-1, 1)]
        cv2.line(kernel, ends[0], ends[1], 1.0)
        return kernel / kernel.sum()
