import numpy as np
import pytest

from handmim.geometry.rotation_numpy import unit
from handmim.hand.poses import PoseSampler
from handmim.render.shading import SHADOW_PX, corner_weights, rasterise, shadow_map, vertex_normals
from handmim.render.surfaces import HandSurface, superquadric


def rasterise_reference(x_px, y_px, inv_z, faces, size_hw):
    """The same image by whole-image numpy operations, one face at a time."""
    height, width = size_hw
    inv_depth, bary = np.zeros(size_hw), np.zeros((*size_hw, 2))
    face_id = np.full(size_hw, -1, np.int32)
    px, py = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    for t, (a, b, c) in enumerate(faces):
        if min(inv_z[a], inv_z[b], inv_z[c]) <= 0:
            continue
        ex1, ey1 = x_px[b] - x_px[a], y_px[b] - y_px[a]
        ex2, ey2 = x_px[c] - x_px[a], y_px[c] - y_px[a]
        area = ex1 * ey2 - ex2 * ey1
        if abs(area) < 1e-9:
            continue
        dx, dy = px - x_px[a], py - y_px[a]
        w1, w2 = (dx * ey2 - ex2 * dy) / area, (ex1 * dy - dx * ey1) / area
        w0 = 1 - w1 - w2
        q = w0 * inv_z[a] + w1 * inv_z[b] + w2 * inv_z[c]
        nearer = (w0 >= 0) & (w1 >= 0) & (w2 >= 0) & (q > inv_depth)
        inv_depth[nearer], face_id[nearer] = q[nearer], t
        bary[nearer, 0] = (w1 * inv_z[b])[nearer] / q[nearer]
        bary[nearer, 1] = (w2 * inv_z[c])[nearer] / q[nearer]
    return inv_depth, face_id, bary


def random_soup(seed: int, side: int = 40, faces: int = 60):
    rng = np.random.default_rng(seed)
    xy = rng.uniform(-5, side + 5, (2, 3 * faces))
    inv_z = 1 / rng.uniform(0.3, 2.0, 3 * faces)
    return xy[0], xy[1], inv_z, np.arange(3 * faces, dtype=np.int32).reshape(-1, 3), (side, side)


def compiled(x, y, inv_z, faces, size_hw, facing=0):
    depth, face_id = np.ones(size_hw), np.ones(size_hw, np.int32)  # of the last image
    rasterise(x, y, inv_z, faces, facing, depth, face_id)
    bary = np.zeros((*size_hw, 2))
    for i, j in zip(*np.nonzero(face_id >= 0), strict=True):
        corners = faces[face_id[i, j]]
        bary[i, j] = corner_weights(j + 0.5, i + 0.5, depth[i, j], *corners, x, y, inv_z)
    return depth, face_id, bary


@pytest.mark.parametrize("seed", range(4))
def test_compiled_kernel_agrees_with_plain_numpy(seed):
    args = random_soup(seed)
    depth, face_id, bary = compiled(*args)
    ref_depth, ref_id, ref_bary = rasterise_reference(*args)
    same = face_id == ref_id
    assert same.mean() > 0.998  # edges may fall either way in the last bit
    np.testing.assert_allclose(depth[same], ref_depth[same], atol=1e-9)
    seen = same & (face_id >= 0)
    np.testing.assert_allclose(bary[seen], ref_bary[seen], atol=1e-7)


def test_faces_of_one_side_only():
    x, y, inv_z, faces, size = random_soup(5)
    ab, ac = faces[:, 1], faces[:, 2]
    a = faces[:, 0]
    area = (x[ab] - x[a]) * (y[ac] - y[a]) - (x[ac] - x[a]) * (y[ab] - y[a])
    for facing in (1, -1):
        kept = np.flatnonzero(area * facing > 0)
        assert 10 < len(kept) < 50
        depth, face_id, _ = compiled(x, y, inv_z, faces, size, facing)
        ref_depth, ref_id, _ = rasterise_reference(x, y, inv_z, faces[kept], size)
        same = np.where(ref_id >= 0, kept[ref_id], -1) == face_id
        assert same.mean() > 0.998
        np.testing.assert_allclose(depth[same], ref_depth[same], atol=1e-9)


def test_of_closed_surfaces_one_side_is_enough(hand_arrays):
    surface, rng = HandSurface(hand_arrays), np.random.default_rng(0)
    every_face = np.zeros((SHADOW_PX + 2, SHADOW_PX + 2))
    face_id = np.zeros(every_face.shape, np.int32)
    for fingers in PoseSampler.from_arrays(hand_arrays).sample(8, rng):
        verts, _ = surface.pose(np.concatenate([np.eye(3)[None], fingers]), np.zeros(10))
        hand = np.vstack([verts, surface.arm(verts, np.array([1.0, 0, 0]))])
        thing = superquadric(rng)
        points = np.vstack([hand, thing.points - np.array([0, 0.08, 0])])
        faces = np.vstack([surface.faces, thing.faces + len(hand)])
        lamp = unit(rng.normal(size=3))
        one_side, to_map = shadow_map(lamp, points, faces)
        x_px, y_px, depth = to_map @ np.vstack([points.T, np.ones(len(points))])
        assert np.ptp(depth) == pytest.approx(np.ptp(points @ lamp))
        rasterise(x_px, y_px, 1 / depth, faces, 0, every_face, face_id)
        assert (every_face > 0).mean() > 0.1
        assert (np.abs(one_side - every_face) > 1e-9).mean() < 1e-4


def test_nearest_face_wins_and_depth_is_perspective_correct():
    # One large triangle slanting away, and a small one in front of its middle.
    x = np.array([0, 32, 0, 8, 16, 8.0])
    y = np.array([0, 0, 32, 8, 8, 16.0])
    z = np.array([1, 3, 1, 0.5, 0.5, 0.5])
    faces = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    depth, face_id, bary = compiled(x, y, 1 / z, faces, (32, 32))
    assert face_id[10, 10] == 1
    assert depth[10, 10] == pytest.approx(2.0)
    assert face_id[1, 20] == 0
    # 1/z is linear on the screen: at x = 20.5 of 32 between 1/1 and 1/3.
    share = 20.5 / 32
    assert depth[1, 20] == pytest.approx(1 + share * (1 / 3 - 1))
    point_z = z[0] + bary[1, 20, 0] * (z[1] - z[0])
    assert point_z == pytest.approx(1 / depth[1, 20])
    assert face_id[31, 31] == -1
    assert depth[31, 31] == 0


def test_faces_behind_the_camera_are_not_drawn():
    x, y, inv_z, faces, size = random_soup(0, faces=1)
    inv_z[0] = -1.0
    assert (compiled(x, y, inv_z, faces, size)[1] == -1).all()


def test_vertex_normals_are_area_weighted_sums_over_faces(hand_arrays):
    verts, faces = hand_arrays.v_template, hand_arrays.faces
    normals = np.zeros_like(verts)
    vertex_normals(verts, faces, normals)
    reference = np.zeros_like(verts)
    for face in faces:
        a, b, c = verts[face]
        reference[face] += np.cross(b - a, c - a)
    np.testing.assert_allclose(unit(normals), unit(reference), atol=1e-9)
