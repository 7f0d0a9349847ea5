"""Plots of a table: seeds as dots by variant, and curves against the number of labels."""

import itertools
import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from handmim.utils.files import atomic_path

PER_LINE = 4  # panels
DOT, BAR = "#1f6fb4", "#d1622b"

Panel = TypeVar("Panel")
Spot = tuple[float, tuple[float, ...]]  # number of labels, values of the seeds


def mean_sd(values: Collection[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN where too few values have one."""
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan


def _plot(
    title: str,
    panels: Mapping[str, Panel],
    size_in: tuple[float, float],
    draw: Callable[[Axes, Panel], object],
) -> Figure:
    """A figure with its title and a panel of a size for each label, in lines of PER_LINE."""
    num = max(len(panels), 1)
    lines, columns = math.ceil(num / PER_LINE), min(num, PER_LINE)
    whole = size_in[0] * columns + 2, size_in[1] * lines + 0.8
    figure = Figure(figsize=whole, layout="constrained")
    figure.suptitle(title)
    for index, (label, panel) in enumerate(panels.items(), start=1):
        axis = figure.add_subplot(lines, columns, index)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e1e1e1", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_title(label, fontsize="medium")
        draw(axis, panel)
    return figure


def dot_plot(title: str, panels: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """A panel per metric, a line per variant, a dot per seed, mean ± spread as a bar."""
    variants = list(dict.fromkeys(name for panel in panels.values() for name in panel))

    def draw(axis: Axes, panel: Mapping[str, Sequence[float]]) -> None:
        axis.set_yticks(range(len(variants)), variants)
        axis.label_outer()
        axis.set_ylim(len(variants) - 0.5, -0.5)
        axis.locator_params(axis="x", nbins=4)
        axis.ticklabel_format(axis="x", useOffset=False)
        axis.tick_params(axis="x", labelsize="small", labelbottom=True)
        for y, name in enumerate(variants):
            values = panel.get(name, ())
            mean, sd = mean_sd(values)
            if len(values) > 1:
                axis.errorbar(mean, y, xerr=sd, fmt="|", color=BAR, markersize=11)
            axis.plot(values, [y] * len(values), "o", color=DOT, markersize=4)

    return _plot(title, panels, (2.6, 0.25 * len(variants) + 0.6), draw)


def curve_plot(title: str, curves: Mapping[str, Mapping[str, Sequence[Spot]]]) -> Figure:
    """Metrics by number of labels: lines join means, dots are seeds, bands are mean ± spread."""

    def draw(axis: Axes, panel: Mapping[str, Sequence[Spot]]) -> None:
        axis.set(xlabel="labels (log scale)", xscale="log")
        nums = sorted({num for spots in panel.values() for num, _ in spots})
        axis.xaxis.set(major_locator=FixedLocator(nums), minor_locator=NullLocator())
        axis.xaxis.set_major_formatter(ScalarFormatter())
        for i, (name, spots) in enumerate(panel.items()):
            color, nums = f"C{i}", [num for num, _ in spots]
            ranges = [(m, m - s, m + s) for m, s in (mean_sd(values) for _, values in spots)]
            means, low, high = zip(*ranges, strict=True) if ranges else ((), (), ())
            axis.plot(nums, means, color=color, label=name)
            axis.fill_between(nums, low, high, color=color, alpha=0.16, linewidth=0)
            dots = [(num, value) for num, values in spots for value in values]
            axis.plot([n for n, _ in dots], [v for _, v in dots], "o", color=color, markersize=4)

    figure = _plot(title, curves, (3.4, 2.9), draw)
    if figure.axes:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=PER_LINE, frameon=False)
        figure.text(0.01, 0.99, "dots: seeds; bands: mean ± sample sd", va="top", fontsize="small")
    return figure


def line_plot(
    runs: Mapping[str, Sequence[Mapping[str, float]]], panels: Mapping[str, str]
) -> Figure:
    """Rows of scalars by run against the step, a panel with a title for each key; lines of less
    than two finite points, and panels without a line, are left out."""
    drawn: dict[str, dict[str, list[tuple[float, float]]]] = {title: {} for title in panels}
    for (title, key), (label, rows) in itertools.product(panels.items(), runs.items()):
        points = [(r["step"], r[key]) for r in rows if math.isfinite(r.get(key, math.nan))]
        if len(points) > 1:
            drawn[title][label] = points

    def draw(axis: Axes, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        axis.set_xlabel("step", fontsize="small")
        for label, points in lines.items():
            axis.plot(*zip(*points, strict=True), label=label)
        if len(lines) > 1:
            axis.legend(fontsize="small", frameon=False)

    return _plot("", {title: lines for title, lines in drawn.items() if lines}, (3.2, 2.2), draw)


def save_plot(figure: Figure, stem: Path) -> None:
    """Write <stem>.png and <stem>.pdf, each whole or not at all."""
    for kind, metadata in (("png", None), ("pdf", {"CreationDate": None})):
        with atomic_path(stem.with_suffix(f".{kind}")) as partial:
            figure.savefig(partial, format=kind, dpi=150, metadata=metadata)
