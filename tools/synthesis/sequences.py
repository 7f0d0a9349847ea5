"""Recordings of a hand with an object by one or several cameras at once, as HO-3D's are."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmim.data.label_files import take_of
from handmim.geometry.rotation_numpy import random_rotation, rotvec_to_matrix
from handmim.hand.poses import sample_betas
from handmim.render.scene import random_orientation
from handmim.render.surfaces import Solid, centre_off_palm, random_colours, superquadric
from synthesis.scenes import SceneSource

Array = NDArray[np.floating]

ABOUT_HALF_HAND_M = 0.1
NEARER = (0.8, 1.2)  # of cameras, relative to `crop_scale`
WANDER_M = 0.03  # how far the hand moves along each axis within a recording
WRIST_ROTATION_DEG = 25.0  # how far the hand turns about each axis within a recording
CONTACT_M = 0.004
RECORDING, FRAME, CAMERA, SKIN, ROOM, EFFECTS = range(2, 8)  # purposes of randomness


def size_at(points: Array, radii: Array, exponents: Array) -> Array:
    """How large the superquadric must grow for its surface to hold each of `points` (object frame):
    [n, 3] to [n], below 1 inside."""
    e1, e2 = exponents
    x, y, z = (np.abs(points) / radii).T + 1e-9
    return ((x ** (2 / e2) + y ** (2 / e2)) ** (e2 / e1) + z ** (2 / e1)) ** (e1 / 2)


class Sequence(NamedTuple):
    """One camera's view of a recording."""

    name: str
    recording: str
    camera: int


def sequences(names: tuple[str, ...]) -> tuple[Sequence, ...]:
    """ABF10 .. ABF14 are one recording of five cameras; MC1 is a recording of its own."""
    recordings = [take_of(name) for name in names]
    return tuple(
        Sequence(name, recording, int(name[-1]) if recording != name else 0)
        for name, recording in zip(names, recordings, strict=True)
    )


class World(NamedTuple):
    """A frame of a recording in axes that all cameras share: origin near the middle of the hand,
    metres."""

    rotmats: Array  # [16, 3, 3]
    betas: Array  # [10]
    transl_m: Array  # [3]
    verts_m: Array  # [V, 3]
    solid: Solid
    colours: Array  # [n, 3] of the solid
    object_rotation: Array  # [3, 3] world from object
    object_centre_m: Array  # [3]


class Frame(NamedTuple):
    """A frame as a camera sees it; OpenCV camera, metres."""

    image: NDArray[np.uint8]  # [S, S, 3]
    inv_depth: Array  # [S, S] 1 / m of the nearest surface, 0 where the wall is seen
    wall_m: float  # its distance
    K_px: Array  # [3, 3]
    rotmats: Array  # [16, 3, 3]
    betas: Array  # [10]
    transl_m: Array  # [3]
    rest_wrist_m: Array  # [3] of the hand at rest
    verts_cam_m: Array  # [V, 3]
    joints_cam_m: Array  # [21, 3] chain joints and the model's own fingertips, canonical order
    cam_from_world: tuple[Array, Array]  # [3, 3] and [3]


def world(
    source: SceneSource, split: str, recording: int, num_recordings: int, frame: int
) -> World:
    """Hand and object of a frame: one person and object per recording, a new pose per frame."""
    renderer = source.renderer(split)
    rng = source.rng(split, RECORDING, recording)
    betas, solid = sample_betas(1, 10, rng)[0], superquadric(rng)
    grip, gap_m = random_rotation(rng), rng.uniform(0.032, 0.05)
    colours = random_colours(solid, rng)

    rng = source.rng(split, FRAME, recording, frame)
    fingers = renderer.fingers(frame * num_recordings + recording)
    angles = np.radians(rng.uniform(-WRIST_ROTATION_DEG, WRIST_ROTATION_DEG, 3))
    rotation = rotvec_to_matrix(angles)
    rotmats = np.concatenate([rotation[None], fingers])
    verts, joints = renderer.surface.pose(rotmats, betas)
    wander = rng.uniform(-1, 1, 3) * WANDER_M
    transl = wander - (verts.max(axis=0) + verts.min(axis=0)) / 2
    verts, joints = verts + transl, joints + transl
    object_rotation = rotation @ rotvec_to_matrix(rng.normal(0, 0.1, 3)) @ grip
    # 0.4 m of steps: far enough from any hand.
    centre = centre_off_palm(solid, object_rotation, verts, joints, rotation, gap_m, steps=64)
    if centre is None:
        raise ValueError(f"{source.arrays.name}: its palm does not face -y at rest")
    return World(rotmats, betas, transl, verts, solid, colours, object_rotation, centre)


def render_frame(
    source: SceneSource, split: str, recording: int, camera: int, frame: int, w: World
) -> Frame:
    """A frame by one camera; camera, wall and lights stay the same throughout its sequence."""
    s, renderer = source.settings, source.renderer(split)
    rng = source.rng(split, CAMERA, recording, camera)
    rotation = random_orientation(s, rng)
    focal = rng.uniform(s.focal[0], s.focal[1]) * s.image_px
    share = rng.uniform(*NEARER) / s.crop_scale  # of the image by a hand
    at = np.array([0, 0, focal * ABOUT_HALF_HAND_M / (s.image_px / 2 * share)])
    wall_m = float(at[2] + rng.uniform(0.6, 1.5))

    wrist = renderer.surface.joints[0] + renderer.surface.joint_shapedirs[0] @ w.betas
    transl = rotation @ (wrist + w.transl_m) + at - wrist  # the hand rotates about its wrist
    rotmats = np.concatenate([(rotation @ w.rotmats[0])[None], w.rotmats[1:]])
    points = w.solid.points @ (rotation @ w.object_rotation).T + rotation @ w.object_centre_m + at
    rng = source.rng(split, EFFECTS, recording, camera, frame)
    scene = renderer.shade(
        rotmats,
        w.betas,
        rng,
        camera=(focal, transl),
        held=(points, w.solid.faces, w.colours),
        skin_rng=source.rng(split, SKIN, recording),
        room_rng=source.rng(split, ROOM, recording, camera),
    )
    image, _ = renderer.finish(scene, scene.backdrop, rng)
    inv_depth = scene.inv_depth[:: s.supersample, :: s.supersample]
    hand = (rotmats, w.betas, transl, wrist, scene.verts_cam_m, scene.joints_cam_m)
    return Frame(image, inv_depth, wall_m, scene.K_px, *hand, (rotation, at))


def contact(w: World) -> dict[str, Array | NDArray[np.bool_]]:
    """How close each vertex is to the object, along its ray to the object's centre.

    Returns: dist_m [V], intersects [V], touches [V] and surface_m [V, 3], the point of the object's
        surface, in world axes.
    """
    local = (w.verts_m - w.object_centre_m) @ w.object_rotation
    size = size_at(local, w.solid.radii, w.solid.exponents)
    surface = local / size[:, None]
    dist = np.linalg.norm(surface - local, axis=1)
    return {
        "dist_m": dist,
        "intersects": size < 1,
        "touches": dist < CONTACT_M,
        "surface_m": surface @ w.object_rotation.T + w.object_centre_m,
    }
