"""The whole chain on rendered hands: render, pretrain, fine-tune twice, score, report."""

import argparse
import base64
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from handmim.utils.console import METRICS, metric_text, print_metrics
from handmim.utils.entry import given_path
from handmim.utils.files import write_atomic
from handmim.utils.json_files import read_rows
from handmim.utils.processes import start_child

COLUMNS = (*METRICS[:6], ("seconds", "seconds"))
LABELS = {"mean_hand": "mean hand", "scratch": "from scratch", "handmim": "HandMIM-pretrained"}
SECONDS = (
    "Seconds count start-up, validations and, where images were not rendered before, rendering; "
    "HandMIM's row holds its pretraining with probes, too."
)
LIMIT = (
    "Both models saw the same labels for the same number of fine-tuning steps. This is a head "
    "start at equal fine-tuning steps, not at equal total compute: the seconds of pretraining "
    "spent on longer supervised training may help as much or more. Images are rendered from a "
    "stand-in hand: no metric here compares with FreiHAND or HO-3D results."
)
LOSSES = {  # titles of the losses of method=handmim; others keep their names
    "patch_distill": "masked patches: cross-entropy with the teacher",
    "keypoint_align": "pseudo-keypoints: alignment of two views",
    "keypoint_agree": "class token predicts the points",
    "pixel_recon": "masked pixels reconstructed",
    "view_affine": "class tokens predict the map between views",
    "class_hog": "class token predicts HOG",
    "point_hog": "points predict HOG of the other view",
    "patch_hog": "patches predict HOG",
}
DIAGNOSTICS = {
    "probe: 2D error, % of the crop": "probe/err2d_percent",
    "probe: MPJPE, mm": "probe/mpjpe_mm",
    "points: spread, half crops": "keypoints/spread_ndc",
    "points: gap between views, half crops": "keypoints/disagreement_ndc",
    "entropy of the mean target, share": "targets/entropy_of_mean",
}
FINETUNING = {
    "validation MPJPE, mm": "val/mpjpe_mm",
    "validation PA-MPJPE, mm": "val/pa_mpjpe_mm",
    "training loss": "loss",
}


def main() -> None:
    """Run the documented commands one after another, print the result, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="quickstart", help="folder below runs/")
    parser.add_argument("overrides", nargs="*", help="for example data.num_train=4000")
    args = parser.parse_args()
    name, common = args.name, [f"seed={args.seed}", *args.overrides]
    given = dict(o.split("=", 1) for o in args.overrides if "=" in o)
    folder = given_path(given.get("paths.run_root", "runs")) / name
    machine = [o for o in args.overrides if o.startswith(("machine.", "paths.run_root="))]
    print("render, pretrain, fine-tune twice, score: 5 to 12 minutes on two CPU cores by default")
    began = time.perf_counter()
    recipe = ["finetune", "experiment=quickstart_finetune", *common]
    init = f"init_from={folder / 'pretrain' / 'backbone.safetensors'}"
    pretrained = ["pretrain", "experiment=quickstart_pretrain", f"name={name}/pretrain", *common]
    pretrain_s = _stage(1, pretrained)
    scratch_s = _stage(2, [*recipe, f"name={name}/scratch"])
    tuned_s = _stage(3, [*recipe, f"name={name}/handmim", init])
    rows: list[dict[str, Any]] = []
    for row, model, predictor, seconds in (
        ("mean_hand", "scratch", "mean_hand", 0.0),
        ("scratch", "scratch", "model", scratch_s),
        ("handmim", "handmim", "model", pretrain_s + tuned_s),
    ):
        own = [f"checkpoint={folder / model / 'last.pt'}", f"predictor={predictor}"]
        own += [f"name={name}/eval_{row}", "machine.num_threads=1", *machine]
        _stage(4 + len(rows), ["evaluate", *own])
        metrics = json.loads((folder / f"eval_{row}" / "metrics.json").read_text())
        rows.append({"name": row, "seconds": seconds, **metrics, "seed": args.seed})
    total = time.perf_counter() - began
    rows = [{**row, "total_seconds": total} for row in rows]
    write_atomic(folder / "summary.json", json.dumps(rows, indent=2) + "\n")
    report = write_report(folder, rows)
    title = f"Quickstart, seed {args.seed}, {total:.0f} s in all"
    print_metrics({LABELS[r["name"]]: r for r in rows}, COLUMNS, title)
    print(f"{SECONDS}\n\n{LIMIT}\n\nreport: {report}")


def _stage(number: int, arguments: Sequence[str]) -> float:
    """Run one of the commands as a user would; returns its seconds."""
    arguments = [*arguments, "overwrite=true"]
    print(f"\n[{number} of 6] $ handmim {' '.join(arguments)}", flush=True)
    began = time.perf_counter()
    program = [sys.executable, "-m", "handmim", *arguments]
    with start_child(program) as process:
        if code := process.wait():
            raise subprocess.CalledProcessError(code, program)
    return time.perf_counter() - began


def write_report(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write report.html with its images; `rows` have name, COLUMNS, seed and total_seconds."""
    from jinja2 import Environment  # here and below: only a page needs them

    from handmim.experiments.plots import line_plot, save_plot

    pretraining = read_rows(folder / "pretrain" / "scalars.jsonl")
    tuned = {LABELS[n]: read_rows(folder / n / "scalars.jsonl") for n in ("scratch", "handmim")}
    keys = sorted({key for row in pretraining for key in row if key.startswith("loss/")})
    shown = {LOSSES.get(key[5:], key[5:]): key for key in keys} | DIAGNOSTICS
    plots = {"finetuning": (tuned, FINETUNING), "pretraining": ({"": pretraining}, shown)}
    for stem, (runs, panels) in plots.items():
        save_plot(line_plot(runs, panels), folder / stem)
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters["data_url"] = data_url
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text())
    text = template.render(
        folder=folder,
        latest=lambda name: latest(folder / "pretrain", name),
        headings=["", *(heading for _, heading in COLUMNS)],
        rows=[[LABELS[r["name"]], *(metric_text(key, r[key]) for key, _ in COLUMNS)] for r in rows],
        best=min(range(len(rows)), key=lambda i: rows[i]["mpjpe_mm"]),
        seed=rows[0]["seed"],
        total_seconds=rows[0]["total_seconds"],
        seconds=SECONDS,
        limit=LIMIT,
    )
    write_atomic(folder / "report.html", text)
    return folder / "report.html"


def latest(folder: Path, name: str) -> Path:
    """The last image of that name which a run drew."""
    found = sorted((folder / "images").glob(f"step_{'[0-9]' * 7}_{name}.png"))
    return found[-1] if found else folder / "images" / f"{name}.png"


def data_url(path: Path) -> str:
    """A PNG file as a URL that holds it; from 0.1 MB on as JPEG, a tenth of the size."""
    kind, data = "png", path.read_bytes()
    if len(data) > 100_000:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 88]
        kind, data = "jpeg", cv2.imencode(".jpg", image, quality)[1].tobytes()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
