"""Images that only validation reads are read before training begins."""

import json

import cv2
import numpy as np
import pytest

from handmim.data.keypoints import KeypointPhotos
from handmim.pipelines.train import finetune
from tests.tools.test_best_checkpoint import composed


def test_a_validation_image_cut_short_ends_the_start_by_name(tmp_path):
    rng = np.random.default_rng(0)
    images, notes = [], []
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 255, (64, 64, 3), np.uint8))
        images.append({"id": i, "file_name": f"{i}.png"})
        points = np.column_stack([rng.uniform(4, 60, (21, 2)), np.full(21, 2)])
        notes.append({"image_id": i, "keypoints": points.ravel().tolist(), "handedness": "right"})
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"images": images, "annotations": notes}))
    for name in KeypointPhotos(tmp_path, labels, split="val").file_names:
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:6000])
    overrides = "experiment=cpu_finetune", "data=keypoints", "loss=[joints3d,joints2d,prior]"
    overrides += f"data.root={tmp_path}", "trainer.batch_size=2"
    overrides += f"data.annotations={labels}", f"paths.run_root={tmp_path / 'runs'}", "name=cut"
    with pytest.raises(ValueError, match=rf"1 of 1 labelled images .*{name}.*annotations"):
        finetune(composed("finetune", list(overrides)))
    assert not (tmp_path / "runs" / "cut" / "last.pt").exists()
