"""Tiny sound trees of everything that is checked, rendered once."""

import json

import numpy as np
import pytest

from handmim.hand.conventions import regressed_joints
from handmim.hand.skeleton import FINGERTIP_VERTS
from synthesis.runner import synthesize

# Plain backdrops take no time to paint; nothing hides the hand.
PLAIN = {"image_px": 64, "background": "studio", "objects": 0.0, "occluders": 0.0}
FILMED = PLAIN | {"image_px": 128, "focal": [0.94, 0.98], "crop_scale": 2.7}
NUM, NUM_EVAL = 6, 3


def _tree(tmp_path_factory, format, scene):
    root = tmp_path_factory.mktemp("sound") / format
    return synthesize(root, format, NUM, NUM_EVAL, scene, num_workers=0, fake_mano=True)


@pytest.fixture(scope="session")
def sound_freihand(tmp_path_factory):
    return _tree(tmp_path_factory, "freihand", PLAIN)


@pytest.fixture(scope="session")
def sound_ho3d_v2(tmp_path_factory):
    return _tree(tmp_path_factory, "ho3d_v2", FILMED)


@pytest.fixture(scope="session")
def sound_ho3d_v3(tmp_path_factory):
    return _tree(tmp_path_factory, "ho3d_v3", FILMED)


@pytest.fixture(scope="session")
def sound_keypoints(tmp_path_factory, sound_freihand, hand_arrays):
    """FreiHAND's images as somebody's own: images/ and labels.json."""
    root = tmp_path_factory.mktemp("sound") / "keypoints"
    (root / "images").mkdir(parents=True)
    files = (sound_freihand / f"training_{name}.json" for name in ("K", "verts"))
    K, verts = (json.loads(file.read_text()) for file in files)
    images, labels = [], []
    for i in range(NUM):
        name = f"{i:08d}.jpg"
        (root / "images" / name).write_bytes((sound_freihand / "training/rgb" / name).read_bytes())
        joints = regressed_joints(
            np.array(verts[i]), hand_arrays.J_regressor, FINGERTIP_VERTS["freihand"]
        )
        px = joints @ np.array(K[i]).T
        flat = np.column_stack([px[:, :2] / px[:, 2:], np.full(21, 2)])
        images.append({"id": i, "file_name": name, "width": 64, "height": 64, "subject": i // 2})
        labels.append(
            {
                "image_id": i,
                "keypoints": flat.ravel().tolist(),
                "keypoints_3d": (joints - joints.mean(axis=0)).tolist(),
            }
        )
    content = {"info": {"handedness": "right"}, "images": images, "annotations": labels}
    (root / "labels.json").write_text(json.dumps(content))
    return root
