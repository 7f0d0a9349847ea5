"""The quickstart's page: result, curves, predictions, pseudo-keypoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handmim.reports.html import curves, figure, page, series, table
from handmim.utils.files import write_atomic
from handmim.utils.rows import read_rows

COLUMNS = (
    ("mpjpe_mm", "MPJPE mm"),
    ("pa_mpjpe_mm", "PA-MPJPE mm"),
    ("pa_mpvpe_mm", "PA-MPVPE mm"),
    ("pa_f5", "PA-F@5"),
    ("pa_f15", "PA-F@15"),
    ("seconds", "seconds"),
)
LABELS = {
    "mean_hand": "mean hand",
    "scratch": "from scratch",
    "handmim": "HandMIM-pretrained",
}
SECONDS = (
    "Seconds count start-up, validations and, where pictures were not rendered before, rendering; "
    "HandMIM's row holds its pretraining with probes, too."
)
LOSSES = {  # what a curve is of, for losses of method=handmim; others keep their names
    "patch_distill": "hidden patches like the teacher",
    "keypoint_align": "pseudo-keypoints of two views meet",
    "keypoint_agree": "class token names the points",
    "pixel_recon": "hidden pixels redrawn",
    "view_affine": "class tokens tell the map of views",
    "class_hog": "class token tells contours",
    "point_hog": "points tell the other view's contours",
    "patch_hog": "patches tell contours",
}
LIMIT = (
    "Both models saw the same labels for the same number of fine-tuning steps. What this "
    "shows is a head start at equal fine-tuning steps, not at equal total compute: the seconds "
    "of pretraining spent on longer supervised training may help as much or more. "
    "Pictures are rendered from a stand-in hand: no figure here compares with FreiHAND or "
    "HO-3D results."
)


def _loss_title(key: str) -> str:
    name = key.removeprefix("loss/")
    return LOSSES.get(name, name)


def latest(folder: Path, name: str) -> Path:
    """The last picture of that name which a run drew."""
    drawn = (folder / "images").glob(f"step_*_{name}.png")
    found = sorted(p for p in drawn if p.stem.split("_", 2)[2] == name)
    return found[-1] if found else folder / "images" / f"{name}.png"


def write_report(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write report.html, with everything inside it.

    Args:
        folder: of the quickstart; its stages are pretrain, scratch, handmim, eval_<row>.
        rows: one mapping per predictor with `name`, the keys of COLUMNS, `seed` and
            `total_seconds`.
    Returns: the page's path.
    """
    cells = []
    for row in rows:
        texts = [LABELS[row["name"]]]
        for key, _ in COLUMNS:
            digits = 2 if key.endswith("_mm") else 0 if key == "seconds" else 3
            texts.append(f"{row[key]:.{digits}f}")
        cells.append(texts)
    best = min(range(len(rows)), key=lambda i: rows[i]["mpjpe_mm"])
    pre = read_rows(folder / "pretrain" / "scalars.jsonl")
    tuned = {
        LABELS[name]: read_rows(folder / name / "scalars.jsonl") for name in ("scratch", "handmim")
    }

    def both(key: str) -> dict[str, list[tuple[float, float]]]:
        return {label: series(scalars, key) for label, scalars in tuned.items()}

    losses = sorted({key for row in pre for key in row if key.startswith("loss/")})
    body = [
        table(["", *(heading for _, heading in COLUMNS)], cells, best),
        f"<p>Seed {rows[0]['seed']}, {rows[0]['total_seconds']:.0f} s in all. MPJPE is relative "
        "to the middle knuckle; PA figures are after similarity alignment, joints and vertices "
        f"separately. {SECONDS}</p>",
        f'<p class="note">{LIMIT}</p>',
        "<h2>Fine-tuning</h2>",
        curves(
            {
                "validation MPJPE, mm": both("val/mpjpe_mm"),
                "validation PA-MPJPE, mm": both("val/pa_mpjpe_mm"),
                "training loss": both("loss"),
            }
        ),
        "<h2>Predictions</h2>",
        figure(
            folder / "eval_handmim" / "predictions.png", "HandMIM-pretrained, held-out pictures"
        ),
        figure(folder / "eval_scratch" / "predictions.png", "From scratch, the same pictures"),
        "<h2>Pretraining</h2>",
        "<p>Losses and the probe's errors should fall, and two views should disagree less about "
        "the points. The spread of the points and the entropy of the teacher's mean target (1: it "
        "uses all prototypes alike, 0: one) should stay away from 0.</p>",
        curves(
            {
                **{_loss_title(key): {key: series(pre, key)} for key in losses},
                "probe: 2D error, % of the crop": {"probe": series(pre, "probe/err2d_percent")},
                "probe: MPJPE, mm": {"probe": series(pre, "probe/mpjpe_mm")},
                "points: spread, half crops": {"spread": series(pre, "keypoints/spread_ndc")},
                "points: gap between views, half crops": {
                    "gap": series(pre, "keypoints/disagreement_ndc")
                },
                "entropy of the mean target, share": {
                    "entropy": series(pre, "targets/entropy_of_mean")
                },
            }
        ),
        figure(
            latest(folder / "pretrain", "keypoints"),
            "Pseudo-keypoints: each row shows two samples; points of view a, points of view b, "
            "and points of a"
            " carried to b by the known map. Equal colours should meet.",
        ),
        figure(latest(folder / "pretrain", "views"), "Views, what the student saw, reconstruction"),
        figure(
            latest(folder / "pretrain", "probe_neighbours"),
            "Held-out pictures and their nearest neighbours by frozen class token",
        ),
        figure(
            latest(folder / "pretrain", "patch_tokens"),
            "First three principal components of the patch tokens as colours",
        ),
    ]
    path = folder / "report.html"
    write_atomic(path, page("handmim quickstart", body))
    return path
