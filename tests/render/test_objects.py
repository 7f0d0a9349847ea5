import numpy as np
import pytest

from handmim.geometry.rotation_numpy import random_rotation
from handmim.render.surfaces import enters, superquadric
from tests.render.plain_shading import depth_inside_m


@pytest.mark.parametrize("depth_m", [0.001, 0.003, 0.01])
def test_entering_is_being_deep_inside(depth_m):
    rng, results = np.random.default_rng(0), []
    for _ in range(200):
        solid, rotation, centre = superquadric(rng), random_rotation(rng), rng.normal(0, 0.02, 3)
        points = rng.normal(0, 0.05, (12, 3))
        inside_m = depth_inside_m((points - centre) @ rotation, solid.radii, solid.exponents)
        got = enters(points, centre, rotation, solid.radii, solid.exponents, depth_m)
        assert got == (inside_m >= depth_m)
        results.append(got)
    assert 0.1 < np.mean(results) < 0.9
