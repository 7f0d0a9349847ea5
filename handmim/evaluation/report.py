"""Results of one evaluation: metrics.json, the official scores.txt, drawings, a table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from handmim.utils.files import write_atomic
from handmim.utils.run import Run
from handmim.utils.tables import METRICS, print_metrics

TTA = "tta"  # block of a report, and folder: metrics and files of the mean over several views
TIME = "ms_per_image"


def official_lines(report: dict[str, Any]) -> str:
    """As the official scripts write scores.txt: one `name: value` per line, six decimals."""
    return "".join(f"{name}: {value:.6f}\n" for name, value in report["official"].items())


def blocks(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Metrics of the plain crops, by "", and of test-time augmentation, by its name."""
    return {"": report} | ({TTA: report[TTA]} if TTA in report else {})


def columns_of(rows: Iterable[Mapping[str, Any]]) -> Sequence[tuple[str, str]]:
    """Columns of a table of evaluations; times are shown where they were taken."""
    timed = any(TIME in metrics for metrics in rows)
    return (*METRICS, (TIME, "ms/image")) if timed else METRICS


def write_report(
    run: Run, what: str, report: dict[str, Any], sheet: NDArray[np.uint8] | None = None
) -> None:
    """Write and print the metrics; the main process does.

    Args:
        run: whose folder takes metrics.json, scores.txt and predictions.png.
        what: was scored, for the table.
        report: flat metrics, perhaps with the official ones under "official" and those of test-time
            augmentation under "tta".
        sheet: [H, W, 3] RGB drawings.
    """
    if not run.is_main:
        return
    run.write_json("metrics.json", report)
    run.discard_replaced()
    if sheet is not None:
        cv2.imwrite(str(run.dir / "predictions.png"), sheet[:, :, ::-1])
    rows = {}
    for name, metrics in blocks(report).items():
        label = f"{TTA}, {metrics['num_views']} views" if name else what
        rows[label] = metrics
        if "official" in metrics:
            write_atomic(run.dir / name / "scores.txt", official_lines(metrics))
            title = f"{label}\n" if len(blocks(report)) > 1 else ""
            Console().print(title + official_lines(metrics), end="", highlight=False)
    print_metrics(rows, columns_of(rows.values()))
    run.log.info("metrics: %s", run.dir / "metrics.json")
