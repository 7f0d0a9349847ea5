"""Fresh starts of every entry point with loader workers: none may hang or fail."""

from collections.abc import Callable

from faults.children import end_marked, left_over
from faults.results import Result
from faults.workplace import Workplace

KINDS = ("pretraining", "fine-tuning", "evaluation", "packing", "rendering")


def prepare_base(work: Workplace) -> None:
    """Fine-tune the run "base" that evaluations read, unless it is there."""
    if not (work.run_dir("base") / "last.pt").is_file():
        work.make(work.command("fine-tuning", "base"), "base")


def starts(work: Workplace, num: int, report: Callable[[Result], None]) -> None:
    """Start every kind of work `num` times, one after another."""
    prepare_base(work)
    for i in range(num):
        for kind in KINDS:
            child = work.start(work.command(kind, "fresh"))
            code = child.wait(work.limit_s)
            seconds = child.seconds
            outcome = "hung" if code is None else "done" if code == 0 else f"exit code {code}"
            remaining = left_over(child.mark, patience_s=60.0)
            end_marked(child.mark)
            if code == 0 and remaining:
                outcome = "left processes"
            detail = f"start {i}, {child.log}: {child.text[-300:]}"
            report(Result(kind, outcome, outcome == "done", seconds, detail))
            work.forget("fresh")
