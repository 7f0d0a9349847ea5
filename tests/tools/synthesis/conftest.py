"""Tiny trees of every format, rendered once."""

import pytest

from synthesis.runner import synthesize

# Plain backdrops recording no time to paint; nothing hides the hand.
PLAIN = {"image_px": 64, "background": "studio", "objects": 0.0, "occluders": 0.0}
FILMED = PLAIN | {"image_px": 128, "focal": [0.94, 0.98], "crop_scale": 2.7}
NUM, NUM_EVAL = 5, 3


@pytest.fixture(scope="session")
def freihand_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("freihand") / "root"
    return synthesize(root, "freihand", NUM, NUM_EVAL, PLAIN, num_workers=0)


@pytest.fixture(scope="session", params=["ho3d_v2", "ho3d_v3"])
def ho3d_root(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param) / request.param
    return synthesize(root, request.param, 22, 4, FILMED, num_workers=0)
