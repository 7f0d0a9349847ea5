"""Figures of one evaluation: metrics.json, the official scores.txt, pictures, a table."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from handmim.reports.table import print_metrics
from handmim.utils.files import write_atomic
from handmim.utils.run import Run


def official_lines(report: dict[str, Any]) -> str:
    """As the official scripts write scores.txt: one `name: value` per line, six decimals."""
    return "".join(f"{name}: {value:.6f}\n" for name, value in report["official"].items())


def write_report(
    run: Run, what: str, report: dict[str, Any], sheet: NDArray[np.uint8] | None = None
) -> None:
    """Write and print the figures; the main process does.

    Args:
        run: whose folder takes metrics.json, scores.txt and predictions.png.
        what: was scored, for the table.
        report: flat figures, perhaps with the official ones under "official".
        sheet: [H, W, 3] RGB pictures.
    """
    if not run.is_main:
        return
    run.write_json("metrics.json", report)
    run.discard_replaced()
    if sheet is not None:
        cv2.imwrite(str(run.dir / "predictions.png"), sheet[:, :, ::-1])
    if "official" in report:
        write_atomic(run.dir / "scores.txt", official_lines(report))
        Console().print(official_lines(report), end="", highlight=False)
    print_metrics({what: report})
    run.log.info("figures: %s", run.dir / "metrics.json")
