import numpy as np
import pytest
import torch

from handmim.hand.conventions import CROP_SCALE
from handmim.hand.poses import PoseSampler, sample_betas
from handmim.render.scene import (
    RenderedHand,
    SceneRenderer,
    SceneSettings,
    framing,
    random_orientation,
)
from handmim.render.surfaces import held_object, superquadric
from tests.golden import renders
from tests.render.plain_shading import depth_inside_m

STUDIO = {"view": "cone", "background": "studio", "objects": 0.0, "occluders": 0.0}


@pytest.fixture(scope="module")
def renderer(hand_arrays):
    return SceneRenderer(hand_arrays, SceneSettings(image_px=96), seed=3)


@pytest.fixture(scope="module")
def plain(hand_arrays):
    """No objects, occluders, blur or noise, and the wrist inside the image: everything of the hand
    that faces the camera shows."""
    quiet = {"blur": 0.0, "motion_blur": 0.0, "noise": 0.0, "sleeves": 0.0}
    settings = SceneSettings(image_px=128, crop_scale=2.0, **STUDIO, **quiet)
    return SceneRenderer(hand_arrays, settings, seed=1)


def same(a: RenderedHand, b: RenderedHand) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_image_depends_on_seed_split_and_index_only(hand_arrays, renderer):
    expected = [renderer.render(i) for i in (0, 5, 300)]
    again = SceneRenderer(hand_arrays, SceneSettings(image_px=96), seed=3)
    got = [again.render(i) for i in (300, 5, 0)][::-1]
    assert all(same(a, b) for a, b in zip(expected, got, strict=True))
    other_split = SceneRenderer(hand_arrays, SceneSettings(image_px=96), 3, "val").render(0)
    other_seed = SceneRenderer(hand_arrays, SceneSettings(image_px=96), 4).render(0)
    for other in (other_split, other_seed, renderer.render(1)):
        assert np.abs(other.joints_cam_m - expected[0].joints_cam_m).max() > 1e-3


def test_truth_is_what_the_hand_model_says(renderer, hand):
    for i in range(4):
        r = renderer.render(i)
        to = [
            torch.from_numpy(np.asarray(x, np.float32))[None]
            for x in (r.rotmats, r.betas, r.transl_m)
        ]
        mesh = hand(*to)
        assert np.abs(mesh.verts_m[0].numpy() - r.verts_cam_m).max() < 1e-5
        assert np.abs(mesh.joints_m[0].numpy() - r.joints_cam_m).max() < 1e-5


def test_vertices_project_into_the_mask_and_fill_it(plain, hand_arrays):
    inside = []
    for i in range(8):
        r = plain.render(i)
        px = r.verts_cam_m @ r.K_px.T
        px = px[:, :2] / px[:, 2:]
        assert (px > 0).all()
        assert (px < 128).all()
        cell = np.floor(px).astype(int)
        inside.append(r.mask[cell[:, 1], cell[:, 0]].mean())
        ys, xs = np.nonzero(r.mask)
        box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        true = np.array([*px.min(axis=0), *px.max(axis=0)])
        gap = np.abs(box - true)
        assert np.sort(gap)[:3].max() < 1.0, "mask and mesh share their box"
        assert gap.max() < 6.0  # the forearm may cover the far side of the wrist's rim
    assert min(inside) > 0.85  # outermost vertices fall on pixels that they cover by less than half


@pytest.mark.parametrize("scale", [CROP_SCALE, 2.0])
@pytest.mark.parametrize("scene", [{}, STUDIO, STUDIO | {"sides": ["palmar"]}])
def test_the_joints_box_is_framed_by_the_crop_rule(hand_arrays, scene, scale):
    settings = SceneSettings(image_px=64, **scene, crop_scale=scale)
    drawn = SceneRenderer(hand_arrays, settings, seed=2)
    rng = np.random.default_rng(0)
    for index in range(200):
        rotation = random_orientation(settings, rng)
        rotmats = np.concatenate([rotation[None], drawn.fingers(index)])
        _, joints = drawn.surface.pose(rotmats, sample_betas(1, 10, rng)[0])
        focal = rng.uniform(*settings.focal) * 64
        points = joints + framing(joints, focal, 64 / scale)
        assert points[:, 2].min() > 0
        px = focal * points[:, :2] / points[:, 2:]
        low, high = px.min(axis=0), px.max(axis=0)
        np.testing.assert_allclose(low + high, 0, atol=1e-6)
        assert (high - low).max() == pytest.approx(64 / scale, abs=1e-6)


def test_joints_of_a_flat_hand_lie_on_the_hand(plain):
    rotation = random_orientation(plain.settings, np.random.default_rng(0))
    rest = np.concatenate([rotation[None], np.tile(np.eye(3), (15, 1, 1))])
    rng = np.random.default_rng(0)
    scene = plain.shade(rest, np.zeros(10), rng)
    _, mask = plain.finish(scene, scene.backdrop, rng)
    px = scene.joints_cam_m @ scene.K_px.T
    cell = np.floor(px[:, :2] / px[:, 2:]).astype(int)
    inner = [j for j in range(1, 21) if j % 4]  # fingertips are vertices of the outline
    assert mask[cell[inner, 1], cell[inner, 0]].all()


def test_exposure_is_never_blown_out(hand_arrays):
    for settings in (SceneSettings(image_px=64), SceneSettings(image_px=64, **STUDIO)):
        renderer = SceneRenderer(hand_arrays, settings, seed=0)
        for i in range(60):
            r = renderer.render(i)
            if not r.mask.any():
                continue
            hand = r.image[r.mask]
            assert (hand >= 254).all(axis=1).mean() <= 0.01
            assert 15 < hand.mean() < 225


def test_objects_do_not_enter_the_hand(hand_arrays, renderer):
    rng = np.random.default_rng(0)
    poses = PoseSampler.from_arrays(hand_arrays).sample(30, rng)
    held = 0
    for pose in poses:
        R = np.concatenate([np.eye(3)[None], pose])
        verts, joints = renderer.surface.pose(R, sample_betas(1, 10, rng)[0])
        state = rng.bit_generator.state
        found = held_object(verts, joints, R[0], rng)
        if found is None:
            continue
        held += 1
        twin = np.random.default_rng(0)
        twin.bit_generator.state = state
        points, _, radii, exponents = superquadric(twin)
        # Undo the placement: the object's points are a rigid copy of the superquadric's.
        centre, base = found[0].mean(axis=0), points - points.mean(axis=0)
        U, _, Vt = np.linalg.svd(base.T @ (found[0] - centre))
        rotation = U @ np.diag([1, 1, np.linalg.det(U @ Vt)]) @ Vt
        local = (verts - centre) @ rotation.T + points.mean(axis=0)
        assert depth_inside_m(local, radii, exponents) < 0.003 + 1e-6
    assert held >= 10


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"view": "top"}, "view must be"),
        ({"sides": ["left"]}, "sides must be"),
        ({"image_px": 4}, "image_px must be"),
        ({"crop_scale": 0.9}, "crop_scale must be >= 1, got 0.9"),
    ],
)
def test_bad_settings_are_named(change, word):
    with pytest.raises(ValueError, match=word):
        SceneSettings(**change)


def test_bad_split_and_background_are_named(hand_arrays):
    with pytest.raises(ValueError, match="split must be one of"):
        SceneRenderer(hand_arrays, SceneSettings(image_px=32), split="training")
    with pytest.raises(ValueError, match="background must be one of"):
        SceneRenderer(hand_arrays, SceneSettings(image_px=32, background="beach"))


def test_images_are_those_that_caches_hold(hand_arrays):
    drawn = renders.draw(hand_arrays)
    with np.load(renders.FILE) as kept:
        assert set(kept.files) == set(drawn)
        for name, got in drawn.items():
            expected = kept[name]
            if name.endswith(".image"):
                off = np.abs(got.astype(int) - expected)
                # A hair of rounding may decide what a pixel on an edge shows.
                assert (off > 2).mean() < 5e-4, name
                assert off.mean() < 0.1, name
            elif name.endswith(".mask"):
                assert (got != expected).mean() < 5e-4, name
            else:
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11, err_msg=name)
