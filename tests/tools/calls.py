"""The entry points as a user calls them, on tiny rendered sets: one process each, real files."""

import subprocess
import sys
from pathlib import Path

from handmim.utils.json_files import read_rows

REPO = Path(__file__).parents[2]
METRICS = {
    "pa_mpjpe_mm", "pa_mpvpe_mm", "mpjpe_mm", "mpvpe_mm", "pa_f5", "pa_f15", "f5", "f15",
    "pa_auc_joints", "pa_auc_verts", "auc_joints", "auc_verts", "num_samples", "num_meshes",
    "err2d_percent", "num_2d", "pck10",
}  # fmt: skip
TINY = ["machine.accelerator=cpu", "machine.num_threads=1", "trainer.num_workers=0"]
PRETRAIN = [
    "experiment=quickstart_pretrain",
    "trainer.max_steps=4",
    "trainer.batch_size=4",
    "trainer.save_every=2",
]
FINETUNE = [
    "experiment=quickstart_finetune",
    "trainer.max_steps=4",
    "trainer.batch_size=4",
    "num_labels=8",
]


def small_data(folder: Path) -> list[str]:
    return [
        "data.num_train=16", "data.num_val=8", "data.num_workers=0", "data.scene.image_px=48",
        f"paths.data_dir={folder / 'data'}", f"paths.run_root={folder / 'runs'}", "hydra.run.dir=.",
    ]  # fmt: skip


def call(
    folder: Path, script: str, *arguments: str, fails: bool = False, code: int | None = None
) -> str:
    """What a tool says; it fails where `fails`, or ends with `code`."""
    command = [sys.executable, str(REPO / "tools" / script), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    text = done.stdout + done.stderr
    as_wanted = (done.returncode != 0) is fails if code is None else done.returncode == code
    assert as_wanted, (done.returncode, text[-3000:])
    return text


def scalars(run: Path) -> list[dict]:
    return read_rows(run / "scalars.jsonl")
