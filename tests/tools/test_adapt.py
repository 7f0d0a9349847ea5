import subprocess
import sys

import cv2
import numpy as np

import handmim
from tests.tools.calls import TINY, small_data


def test_photos_and_renders_give_an_estimator(workdir):
    rng = np.random.default_rng(0)
    (workdir / "adapted").mkdir()
    for number in range(6):
        image = rng.integers(0, 255, (60, 50, 3), dtype=np.uint8)
        cv2.imwrite(str(workdir / "adapted" / f"{number}.png"), image)
    common = [o for o in small_data(workdir) if not o.startswith("paths.run_root")]
    steps = ["trainer.max_steps=3", "trainer.batch_size=4", *TINY]
    command = [sys.executable, "-m", "handmim", "adapt", "adapted", "--name", "mine"]
    pretext = ["pretext=run", "unlabeled.terms.pretext.run=runs/mine/pretrain"]
    command += ["--pretrain", *steps, "--finetune", *pretext, *steps, *common]
    for _ in range(2):  # what is finished is not made again
        done = subprocess.run(command, cwd=workdir, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "handmim.load('runs/mine/hand/last.pt')" in done.stdout.replace(str(workdir) + "/", "")
    predict = handmim.load(workdir / "runs" / "mine" / "hand" / "last.pt")
    assert predict.module.task.averaged.net["token_norm"].adapted
    hands = predict(np.stack([np.full((64, 64, 3), 90, np.uint8)]))
    assert hands.verts_root_m.shape == (1, 778, 3)
