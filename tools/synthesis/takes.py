"""Takes of a hand with an object, seen by one or several cameras at once, as HO-3D was filmed."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmim.data.label_files import take_of
from handmim.geometry.rotation_numpy import random_rotation, rotvec_to_matrix
from handmim.hand.poses import sample_betas
from handmim.render.objects import (
    HeldObject,
    Solid,
    centre_off_palm,
    random_colours,
    size_at,
    superquadric,
)
from handmim.render.scene import SceneOverrides, random_orientation
from synthesis.studio import Studio

Array = NDArray[np.floating]

ABOUT_HALF_HAND_M = 0.1
WRIST_TURN_DEG = 25.0  # how far the hand turns about each axis within a take
CONTACT_M = 0.004
TAKE, FRAME, CAMERA, DRESS, PLACE, SHOT = range(2, 8)  # purposes of randomness


class Sequence(NamedTuple):
    """One camera's view of a take."""

    name: str
    take: str
    camera: int


def sequences(names: tuple[str, ...]) -> tuple[Sequence, ...]:
    """ABF10 .. ABF14 are one take of five cameras; MC1 is a take of its own."""
    takes = [take_of(name) for name in names]
    return tuple(
        Sequence(name, take, int(name[-1]) if take != name else 0)
        for name, take in zip(names, takes, strict=True)
    )


class World(NamedTuple):
    """A frame of a take in axes that all cameras share: origin near the middle of the hand,
    metres."""

    rotmats: Array  # [16, 3, 3]
    betas: Array  # [10]
    transl_m: Array  # [3]
    verts_m: Array  # [V, 3]
    solid: Solid
    colours: Array  # [n, 3] of the solid
    object_turn: Array  # [3, 3] world from object
    object_at_m: Array  # [3]


class Shot(NamedTuple):
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


def world(studio: Studio, split: str, take: int, num_takes: int, frame: int) -> World:
    """Hand and object of a take's frame: one person and one thing per take, a new pose per
    frame."""
    renderer = studio.renderer(split)
    rng = studio.rng(split, TAKE, take)
    betas, solid = sample_betas(1, 10, rng)[0], superquadric(rng)
    grip, gap_m = random_rotation(rng), rng.uniform(0.032, 0.05)
    colours = random_colours(solid, rng)

    rng = studio.rng(split, FRAME, take, frame)
    fingers = renderer.fingers(frame * num_takes + take)
    angles = np.radians(rng.uniform(-WRIST_TURN_DEG, WRIST_TURN_DEG, 3))
    turn = rotvec_to_matrix(angles)
    rotmats = np.concatenate([turn[None], fingers])
    verts, joints = renderer.surface.pose(rotmats, betas)
    wander = rng.uniform(-1, 1, 3) * studio.settings.offset * ABOUT_HALF_HAND_M
    transl = wander - (verts.max(axis=0) + verts.min(axis=0)) / 2
    verts, joints = verts + transl, joints + transl
    object_turn = turn @ rotvec_to_matrix(rng.normal(0, 0.1, 3)) @ grip
    # 0.4 m of steps: far enough from any hand.
    place = centre_off_palm(solid, object_turn, verts, joints, turn, gap_m, steps=64)
    if place is None:
        raise ValueError(f"{studio.arrays.name}: its palm does not face -y at rest (hand.path)")
    return World(rotmats, betas, transl, verts, solid, colours, object_turn, place)


def shoot(studio: Studio, split: str, take: int, camera: int, frame: int, w: World) -> Shot:
    """Film a frame by one camera, which stands still throughout its sequence, as do wall and
    lights."""
    s, renderer = studio.settings, studio.renderer(split)
    rng = studio.rng(split, CAMERA, take, camera)
    turn = random_orientation(s, rng)
    focal = rng.uniform(s.focal[0], s.focal[1]) * s.image_px
    fill = rng.uniform(s.fill[0], s.fill[1])
    at = np.array([0, 0, focal * ABOUT_HALF_HAND_M / (s.image_px / 2 * fill)])
    wall_m = float(at[2] + rng.uniform(0.6, 1.5))

    wrist = renderer.surface.joints[0] + renderer.surface.joint_shapedirs[0] @ w.betas
    transl = turn @ (wrist + w.transl_m) + at - wrist  # the hand turns about its wrist
    rotmats = np.concatenate([(turn @ w.rotmats[0])[None], w.rotmats[1:]])
    points = w.solid.points @ (turn @ w.object_turn).T + turn @ w.object_at_m + at
    given = SceneOverrides(
        focal_px=focal,
        transl_m=transl,
        held=HeldObject(points, w.solid.faces, w.colours),
        skin_rng=studio.rng(split, DRESS, take),
        room_rng=studio.rng(split, PLACE, take, camera),
    )
    rng = studio.rng(split, SHOT, take, camera, frame)
    scene = renderer.shade(rotmats, w.betas, rng, given)
    image, _ = renderer.finish(scene, scene.backdrop, rng)
    inv_depth = scene.inv_depth[:: s.supersample, :: s.supersample]
    hand = (rotmats, w.betas, transl, wrist, scene.verts_cam_m, scene.joints_cam_m)
    return Shot(image, inv_depth, wall_m, scene.K_px, *hand, (turn, at))


def contact(w: World) -> dict[str, Array | NDArray[np.bool_]]:
    """How close each vertex is to the object, along its ray to the object's centre.

    Returns: dist_m [V], intersects [V], touches [V] and surface_m [V, 3], the point of the object's
        surface, in world axes.
    """
    local = (w.verts_m - w.object_at_m) @ w.object_turn
    size = size_at(local, w.solid.radii, w.solid.exponents)
    surface = local / size[:, None]
    dist = np.linalg.norm(surface - local, axis=1)
    return {
        "dist_m": dist,
        "intersects": size < 1,
        "touches": dist < CONTACT_M,
        "surface_m": surface @ w.object_turn.T + w.object_at_m,
    }
