"""A table as Markdown: what it asks, its figures, how to read them, where they come from."""

from collections.abc import Sequence

from handmim.ablation.lines import Entry, Line, best_rows, changes, used_columns
from handmim.ablation.plan import Cell
from handmim.ablation.table import Column, Table


def shown(line: Line, column: Column) -> str:
    """Mean and spread in one place, with their number where seeds lack the figure; a dash where
    there is nothing."""
    entry = line.entries[column.key]
    if entry.mean is None:
        return "-"
    text = f"{entry.mean:.{column.decimals}f}"
    if entry.spread is not None:
        text += f" ± {entry.spread:.{column.decimals}f}"
    return f"{text} ({len(entry.values)})" if line.is_short(column) else text


def markdown(table: Table, lines: Sequence[Line], facts: str) -> str:
    """The table with what it asks, how to read it, and where it comes from."""
    columns = used_columns(table, lines)
    best = {c.key: best_rows(lines, c) for c in columns}
    rows = [["", "seeds", *(c.label for c in columns)]]
    rows.append(["---", *("---:" for _ in rows[0][1:])])
    for line in lines:
        cells = [shown(line, c) for c in columns]
        cells = [
            f"**{text}**" if line.name in best[c.key] else text
            for text, c in zip(cells, columns, strict=True)
        ]
        rows.append([line.label, _seeds_text(line), *cells])
    higher = ", ".join(c.label for c in columns if c.better == "higher")
    reading = "Lower is better" + f", except for {higher}" * bool(higher)
    if any(line.is_short(c) for line in lines for c in columns):
        reading += ". A number in brackets counts the seeds that have the figure, where not all do"
    return (
        f"# {table.title}\n\n{table.question}\n\n{_rows_text(rows)}\n\n"
        "Mean ± sample standard deviation over seeds (a seed is its own pretraining, choice of "
        "labels and fine-tuning); bold is the best mean of the rows with the most values, which a "
        f"spread of the same size may contradict. {reading}.\n\n"
        f"{_against_baseline(table, lines, columns)}{facts}\n"
    )


def _against_baseline(table: Table, lines: Sequence[Line], columns: Sequence[Column]) -> str:
    """How far every row is from the one it is measured by; nothing before there is any such."""
    base = next((line for line in lines if line.name == table.baseline), None)
    shown_columns = [c for c in columns if c.better is not None]
    others = [line for line in lines if line is not base]
    if base is None or not any(changes(o, base, c).values for o in others for c in shown_columns):
        return ""
    rows = [["", *(c.label for c in shown_columns)], ["---", *("---:" for _ in shown_columns)]]
    for line in others:
        rows.append([line.label, *(_change_text(changes(line, base, c)) for c in shown_columns)])
    return (
        f"## Against {base.label}\n\n{_rows_text(rows)}\n\n"
        f"Per cent of the figure of {base.label}, mean ± sample standard deviation of the changes "
        "of single seeds, over the seeds that both rows have. Of a figure where lower is better, a "
        "minus is a gain.\n\n"
    )


def _change_text(entry: Entry) -> str:
    if entry.mean is None:
        return "-"
    return f"{entry.mean:+.1f} %" + (f" ± {entry.spread:.1f}" if entry.spread is not None else "")


def _rows_text(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _seeds_text(line: Line) -> str:
    done = line.num_finished
    text = str(done) if done == len(line.states) else f"{done} of {len(line.states)}"
    bad = [f"{n} {s}" for s in ("failed", "stale") if (n := list(line.states.values()).count(s))]
    return f"{text} ({', '.join(bad)})" if bad else text


def facts_of(cells: Sequence[Cell]) -> str:
    """Where the figures come from, in a few sentences.

    Args:
        cells: that are finished.
    """
    contents = [content for cell in cells if (content := cell.read()) is not None]
    if not contents:
        return "No cell is finished yet."
    stages = [stage for content in contents for stage in content["stages"].values()]
    commits = [c for stage in stages for c in stage.get("commits") or [stage]]
    shas = sorted({(c["git_sha"] or "no git")[:10] + "+" * bool(c["git_dirty"]) for c in commits})
    threads = sorted({str(s["threads"]) for s in stages})
    machines = sorted({f"{c['machine']}, torch {c['torch']}" for c in contents})
    text = (
        f"{len(contents)} cells; code {', '.join(shas)} (+ = with local changes); "
        f"{'; '.join(machines)}; {' or '.join(threads)} thread(s) per cell."
    )
    outdated: dict[str, list[str]] = {}
    for cell in cells:
        if cell.is_outdated:
            outdated.setdefault(cell.row.label, []).append(str(cell.seed))
    if not outdated:
        return text
    rows = "; ".join(
        f"{label} (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})"
        for label, seeds in outdated.items()
    )
    return (
        f"{text} Made under other defaults in configs/ than today's (overwrite=true makes them "
        f"again): {rows}."
    )
