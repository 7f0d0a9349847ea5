"""Figures of one evaluation: metrics.json, the official scores.txt, pictures, a table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from handmim.utils.files import write_atomic
from handmim.utils.run import Run
from handmim.utils.tables import METRICS, print_metrics

TTA = "tta"  # block of a report, and folder: figures and files of the mean over several looks
TIME = "ms_per_picture"


def official_lines(report: dict[str, Any]) -> str:
    """As the official scripts write scores.txt: one `name: value` per line, six decimals."""
    return "".join(f"{name}: {value:.6f}\n" for name, value in report["official"].items())


def blocks(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a report says of the plain answer, by "", and of test-time augmentation, by its name."""
    return {"": report} | ({TTA: report[TTA]} if TTA in report else {})


def columns_of(rows: Iterable[Mapping[str, Any]]) -> Sequence[tuple[str, str]]:
    """Columns of a table of evaluations; times are shown where they were taken."""
    timed = any(TIME in figures for figures in rows)
    return (*METRICS, (TIME, "ms/picture")) if timed else METRICS


def write_report(
    run: Run, what: str, report: dict[str, Any], sheet: NDArray[np.uint8] | None = None
) -> None:
    """Write and print the figures; the main process does.

    Args:
        run: whose folder takes metrics.json, scores.txt and predictions.png.
        what: was scored, for the table.
        report: flat figures, perhaps with the official ones under "official" and those of test-time
            augmentation under "tta".
        sheet: [H, W, 3] RGB pictures.
    """
    if not run.is_main:
        return
    run.write_json("metrics.json", report)
    run.discard_replaced()
    if sheet is not None:
        cv2.imwrite(str(run.dir / "predictions.png"), sheet[:, :, ::-1])
    rows = {}
    for name, figures in blocks(report).items():
        label = f"{TTA}, {figures['num_looks']} looks" if name else what
        rows[label] = figures
        if "official" in figures:
            write_atomic(run.dir / name / "scores.txt", official_lines(figures))
            title = f"{label}\n" if len(blocks(report)) > 1 else ""
            Console().print(title + official_lines(figures), end="", highlight=False)
    print_metrics(rows, columns_of(rows.values()))
    run.log.info("figures: %s", run.dir / "metrics.json")
