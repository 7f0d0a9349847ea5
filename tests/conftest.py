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
    from handmim.hand.arrays import load_hand_arrays

    return load_hand_arrays(hand_path)


@pytest.fixture(scope="session")
def hand(hand_path):
    from handmim.hand.model import HandModel

    return HandModel.from_file(hand_path)
