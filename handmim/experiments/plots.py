"""Plots of a table: seeds as dots by variant, and curves against the number of labels."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from handmim.utils.files import atomic_path

FORMATS = ("png", "pdf")
PER_LINE = 4  # panels
DOT, BAR = "#1f6fb4", "#d1622b"

Panels = Mapping[str, Mapping[str, Sequence[float]]]  # metric -> variant -> values of its seeds


class Spot(NamedTuple):
    """Values of a variant's seeds with one number of labels."""

    num_labels: float
    values: tuple[float, ...]


Curves = Mapping[str, Mapping[str, Sequence[Spot]]]  # metric -> variant -> by number of labels


def save_plot(figure: Figure, stem: Path) -> None:
    """Write <stem>.png and <stem>.pdf, each whole or not at all."""
    for kind in FORMATS:
        with atomic_path(stem.with_suffix(f".{kind}")) as partial:
            metadata = {"CreationDate": None} if kind == "pdf" else None
            figure.savefig(partial, format=kind, dpi=150, metadata=metadata)


def _panels(title: str, num: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with its title and `num` axes in lines of PER_LINE, sizes in inches."""
    lines, columns = max(1, math.ceil(num / PER_LINE)), min(max(num, 1), PER_LINE)
    figure = Figure(figsize=(width * columns + 2, height * lines + 0.8), layout="constrained")
    figure.suptitle(title)
    axes = [figure.add_subplot(lines, columns, i + 1) for i in range(num)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e1e1e1", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def dot_plot(title: str, panels: Panels) -> Figure:
    """A panel per metric, a line per variant, a dot per seed, mean ± spread as a bar."""
    variants = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    figure, axes = _panels(title, len(panels), 2.6, 0.25 * len(variants) + 0.6)
    for j, (axis, (label, panel)) in enumerate(zip(axes, panels.items(), strict=True)):
        axis.set_title(label, fontsize="medium")
        axis.set_yticks(range(len(variants)), variants if j % PER_LINE == 0 else [])
        axis.set_ylim(len(variants) - 0.5, -0.5)
        axis.locator_params(axis="x", nbins=4)
        axis.ticklabel_format(axis="x", useOffset=False)
        axis.tick_params(axis="x", labelsize="small")
        for y, name in enumerate(variants):
            values = panel.get(name, ())
            if len(values) > 1:
                mean, spread = statistics.fmean(values), statistics.stdev(values)
                axis.errorbar(mean, y, xerr=spread, fmt="|", color=BAR, markersize=11)
            axis.plot(values, [y] * len(values), "o", color=DOT, markersize=4)
    return figure


def curve_plot(title: str, curves: Curves) -> Figure:
    """Metrics by number of labels: lines join means, dots are seeds, bands are mean ± spread."""
    variants = list(dict.fromkeys(name for panel in curves.values() for name in panel))
    figure, axes = _panels(title, len(curves), 3.4, 2.9)
    for axis, (label, panel) in zip(axes, curves.items(), strict=True):
        axis.set(title=label, xlabel="labels (log scale)", xscale="log")
        nums = sorted({spot.num_labels for spots in panel.values() for spot in spots})
        axis.xaxis.set(major_locator=FixedLocator(nums), minor_locator=NullLocator())
        axis.xaxis.set_major_formatter(ScalarFormatter())
        for i, name in enumerate(variants):
            _draw_curve(axis, name, panel.get(name, ()), f"C{i}")
    if axes:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=PER_LINE, frameon=False)
        figure.text(0.01, 0.99, "dots: seeds; bands: mean ± sample sd", va="top", fontsize="small")
    return figure


def _draw_curve(axis: Axes, label: str, spots: Sequence[Spot], colour: str) -> None:
    nums = [spot.num_labels for spot in spots]
    means = [statistics.fmean(spot.values) for spot in spots]
    axis.plot(nums, means, color=colour, label=label)
    spreads = [statistics.stdev(s.values) if len(s.values) > 1 else math.nan for s in spots]
    low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
    high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
    axis.fill_between(nums, low, high, color=colour, alpha=0.16, linewidth=0)
    dots = [(spot.num_labels, value) for spot in spots for value in spot.values]
    axis.plot([num for num, _ in dots], [v for _, v in dots], "o", color=colour, markersize=4)


def line_plot(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Figure:
    """Scalars of training against the step; panels without a line of two points are left out."""
    drawn = {
        title: {label: points for label, points in lines.items() if len(points) > 1}
        for title, lines in panels.items()
    }
    drawn = {title: lines for title, lines in drawn.items() if lines}
    figure, axes = _panels("", len(drawn), 3.2, 2.2)
    for axis, (title, lines) in zip(axes, drawn.items(), strict=True):
        axis.set_title(title, fontsize="small")
        axis.set_xlabel("step", fontsize="small")
        for label, points in lines.items():
            axis.plot(*zip(*points, strict=True), label=label)
        if len(lines) > 1:
            axis.legend(fontsize="small", frameon=False)
    return figure
