"""A self-contained HTML page: inline curves and pictures, no script, nothing fetched."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

LARGE = 100_000  # bytes
COLOURS = ("#8a8f98", "#1f6fb4", "#d1622b", "#3c8f5a", "#7a52a8", "#b03060")

STYLE = """ body { font: 15px/1.5 system-ui, sans-serif; color: #1d2126; max-width: 1040px; margin:
2em auto;
padding: 0 1em } h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em } table {
border-collapse: collapse } th, td { padding: .3em .9em; text-align: right; border-bottom: 1px solid
#dde1e6 } th:first-child, td:first-child { text-align: left } tr.best td { font-weight: 600 } figure
{ margin: 1em 0 } figure img { max-width: 100%; image-rendering: auto; border: 1px solid #dde1e6 }
figcaption { color: #59626d; font-size: .92em } .curves { display: flex; flex-wrap: wrap; gap: 1em }
code { background: #f2f4f7; padding: .1em .3em } .note { background: #fff8e6; padding: .7em 1em;
border-left: 3px solid #d9a400 }
"""


def series(rows: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    """(step, value) of every row that has a finite `key`."""
    return [(r["step"], r[key]) for r in rows if key in r and math.isfinite(r[key])]


def curve(
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    width: int = 320,
    height: int = 190,
) -> str:
    """An SVG line chart with the extreme values on both axes; empty when there is nothing to
    draw."""
    drawn = {name: list(points) for name, points in lines.items() if len(points) > 1}
    if not drawn:
        return ""
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    y1 = y1 if y1 > y0 else y0 + 1.0
    left, top, right, bottom = 52, 24, 8, 34

    def place(x: float, y: float) -> str:
        u = left + (x - x0) / max(x1 - x0, 1e-9) * (width - left - right)
        v = height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom)
        return f"{u:.1f},{v:.1f}"

    parts = [
        f'<svg width="{width}" height="{height}" font-size="11" font-family="system-ui">',
        f'<text x="{left}" y="14" font-size="12" font-weight="600">{html.escape(title)}</text>',
        f'<line x1="{left}" y1="{height - bottom}" x2="{width - right}" y2="{height - bottom}" '
        'stroke="#c3c9d1"/>',
        f'<line x1="{left}" y1="{top}" x2="{left}" y2="{height - bottom}" stroke="#c3c9d1"/>',
        f'<text x="{left - 4}" y="{top + 8}" text-anchor="end">{y1:.4g}</text>',
        f'<text x="{left - 4}" y="{height - bottom}" text-anchor="end">{y0:.4g}</text>',
        f'<text x="{left}" y="{height - bottom + 13}">{x0:g}</text>',
        f'<text x="{width - right}" y="{height - bottom + 13}" text-anchor="end">step '
        f"{x1:g}</text>",
    ]
    for i, (name, points) in enumerate(drawn.items()):
        colour = COLOURS[(i if len(drawn) > 1 else 1) % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in points)
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{path}"/>'
        )
        if len(drawn) > 1:
            x = left + 4 + i * (width - left) // len(drawn)
            parts.append(
                f'<text x="{x}" y="{height - 6}" fill="{colour}">{html.escape(name)}</text>'
            )
    return "".join(parts) + "</svg>"


def curves(charts: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> str:
    """Several charts beside each other."""
    return f'<div class="curves">{"".join(curve(t, lines) for t, lines in charts.items())}</div>'


def figure(path: Path, caption: str) -> str:
    """A PNG file as an inline picture; a missing one is said so instead of being dropped."""
    text = html.escape(caption)
    if not path.is_file():
        missing = f"(no picture {html.escape(path.name)}) {text}"
        return f"<figure><figcaption>{missing}</figcaption></figure>"
    kind, data = "png", path.read_bytes()
    if len(data) > LARGE:  # sheets of photographs: a tenth of the size as JPEG
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        kind, data = (
            "jpeg",
            cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes(),
        )
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], best: int | None = None) -> str:
    """An HTML table; row number `best` is set in bold."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in headings)
    body = "".join(
        f"<tr{' class=best' if i == best else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def page(title: str, body: Sequence[str]) -> str:
    """A whole HTML document."""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style><body><h1>{html.escape(title)}</h1>{''.join(body)}</body></html>"
    )
