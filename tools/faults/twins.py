"""Two starts of one name at the same time: one trains, the other ends with a message."""

from collections.abc import Callable

from faults.results import Result
from faults.workplace import TRAINED, Workplace
from handmim.utils import processes


def twins(work: Workplace, num: int, report: Callable[[Result], None]) -> None:
    """Start `num` pairs, alternating pretraining and fine-tuning."""
    for i in range(num):
        kind, name = TRAINED[i % len(TRAINED)], f"twins-{i:04d}"
        children = [work.start(work.command(kind, name, steps=6)) for _ in range(2)]
        codes = [child.wait(work.limit_s) for child in children]
        problem = ""
        if sorted(str(code) for code in codes) != [str(processes.DONE), str(processes.BAD_INPUT)]:
            problem = f"exit codes {codes}"
        else:
            loser = children[codes.index(processes.BAD_INPUT)]
            if "Traceback" in loser.text or name not in loser.text:
                problem = f"the second start printed {loser.text[-300:]!r}"
        outcome = "one trained" if not problem else "both, or none, or without a sentence"
        seconds = max(child.seconds for child in children)
        report(Result(f"{kind}, twice", outcome, not problem, seconds, f"{name}: {problem}"))
        if not problem:
            work.forget(name)
