import os

# Loader workers, numba and BLAS share two cores with the tests: one thread each.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import cv2
import pytest
import torch

torch.set_num_threads(1)
cv2.setNumThreads(1)

REPO = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def hand_path() -> Path:
    return REPO / "data" / "standin_right.npz"


@pytest.fixture(scope="session")
def hand_arrays(hand_path):
    from handmim.hand.io import load_hand_arrays

    return load_hand_arrays(hand_path)


@pytest.fixture(scope="session")
def hand(hand_path):
    from handmim.hand.model import HandModel

    return HandModel.from_file(hand_path)


def _tree(tmp_path_factory, layout: str, side: int) -> Path:
    from synthesis.runner import synthesize

    root = tmp_path_factory.mktemp(layout)
    scene = {"image_px": side, "occluders": 0.0}
    return synthesize(root, layout, 24, 8, scene, num_workers=0, fake_mano=True)


@pytest.fixture(scope="session")
def freihand_tree(tmp_path_factory) -> Path:
    """24 hands before four backgrounds and 8 evaluation images, 64 px, in FreiHAND's layout."""
    return _tree(tmp_path_factory, "freihand", 64)


@pytest.fixture(scope="session")
def ho3d_v2_tree(tmp_path_factory) -> Path:
    """24 training and 8 evaluation frames, 128 x 96 px, in the layout of HO-3D version 2."""
    return _tree(tmp_path_factory, "ho3d_v2", 128)


@pytest.fixture(scope="session")
def ho3d_v3_tree(tmp_path_factory) -> Path:
    """The same in the layout of version 3."""
    return _tree(tmp_path_factory, "ho3d_v3", 128)
