"""Which checkpoint of a run is its best, by one of its validation figures, and for how long a
better one is waited for."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

AUTO = "auto"
AUTO_FIGURES = ("val/pa_mpvpe_mm", "val/pa_mpjpe_mm", "val/err2d_percent")
VALIDATION = "val/"
RISING = re.compile(r"auc|pck\d*|f\d+")  # a word of such a figure's name
COUNT = "num"  # first word of what is no figure but counts samples


class BestFigure(NamedTuple):
    """The best value of a figure so far, and the number of finished steps that gave it."""

    metric: str
    value: float
    step: int


def is_higher_better(metric: str) -> bool:
    """Whether a figure is good when it is large: areas under PCK curves, PCK and F-scores are;
    errors, whatever their unit, and losses are not."""
    return any(RISING.fullmatch(word) for word in metric.rsplit("/", 1)[-1].split("_"))


@dataclass(frozen=True)
class BestRule:
    """What makes a checkpoint the best, and when to stop.

    Args:
        keep_best: a validation figure such as "val/pa_mpvpe_mm"; "auto" takes the first there is of
            `AUTO_FIGURES`; None keeps no best checkpoint.
        stop_patience: validations in a row without an improvement after which a run stops; None
            never stops it.
    Raises: ValueError for a name that is no validation figure's, and for a patience below 1 or
        without a figure to wait for.
    """

    keep_best: str | None = None
    stop_patience: int | None = None

    def __post_init__(self) -> None:
        named = self.keep_best in (None, AUTO) or str(self.keep_best).startswith(VALIDATION)
        if not named:
            raise ValueError(
                f"keep_best must be auto, null or a validation figure such as {AUTO_FIGURES[0]}, "
                f"got {self.keep_best!r} (trainer.keep_best)"
            )
        if self.stop_patience is None:
            return
        if self.stop_patience < 1:
            raise ValueError(
                f"stop_patience must be >= 1 or null, got {self.stop_patience} "
                "(trainer.stop_patience)"
            )
        if self.keep_best is None:
            raise ValueError(
                f"stop_patience={self.stop_patience} waits for a better figure, and "
                "keep_best=null names none (trainer.keep_best=auto)"
            )

    def check(self, known: Sequence[str]) -> None:
        """Refuse a figure that no validation gives.

        Args:
            known: names of the figures that there may be.
        Raises: ValueError listing them.
        """
        if self.keep_best not in (None, AUTO, *known):
            raise ValueError(
                f"keep_best={self.keep_best}: no validation has this figure, choose one of "
                f"{', '.join(known)}, auto or null (trainer.keep_best)"
            )

    def choose(self, scalars: Mapping[str, float]) -> str | None:
        """The figure that counts of one validation.

        Args:
            scalars: of a step, of whatever hook.
        Returns: its name; None where nothing is kept or `scalars` hold no validation.
        Raises: ValueError listing the figures there are, when what is wanted is not among them.
        """
        there = [n for n in scalars if n.startswith(VALIDATION) and not _is_count(n)]
        if self.keep_best is None or not there:
            return None
        wanted = AUTO_FIGURES if self.keep_best == AUTO else (self.keep_best,)
        found = next((name for name in wanted if name in there), None)
        if found is None:
            raise ValueError(
                f"the validation has no {' or '.join(wanted)}, it has {', '.join(sorted(there))} "
                "(trainer.keep_best, null for none)"
            )
        return found


def _is_count(name: str) -> bool:
    return name.removeprefix(VALIDATION).split("_")[0] == COUNT


def counts_of(scalars: Mapping[str, float]) -> dict[str, int]:
    """How many samples a validation's figures are over: its `val/num_...`."""
    return {n: int(v) for n, v in scalars.items() if n.startswith(VALIDATION) and _is_count(n)}


def _in_words(metric: str, counts: Mapping[str, int]) -> str:
    """A figure and what it is over: "val/f5 of num_samples 8"."""
    over = ", ".join(f"{n.removeprefix(VALIDATION)} {num}" for n, num in sorted(counts.items()))
    return f"{metric} of {over}" if over else metric


class Best:
    """What a run remembers of its best validation.

    Args:
        rule: what counts.

    Attributes:
        figure: the best so far; None before there is one.
        counts: samples of the validation that gave it; None where a checkpoint does not know.
        reason: why the run should stop after the validation just seen; None to go on.
    """

    def __init__(self, rule: BestRule) -> None:
        self.rule = rule
        self.figure: BestFigure | None = None
        self.counts: dict[str, int] | None = None
        self.reason: str | None = None
        self._waited = 0  # validations without an improvement

    def see(self, step: int, scalars: Mapping[str, float]) -> bool:
        """Look at what hooks gave after `step` steps.

        Another figure than before, or one over another number of samples, cannot be compared with
        the best so far: it begins anew.

        Returns: whether this is the best validation so far; the first one is, and one that is not
            finite or only as good never.
        Raises: ValueError as `BestRule.choose`.
        """
        self.reason, metric = None, self.rule.choose(scalars)
        if metric is None:
            return False
        counts = counts_of(scalars)
        if self.figure is not None:
            before = self.figure.metric, counts if self.counts is None else self.counts
            if before != (metric, counts):
                now = _in_words(metric, counts)
                log.warning("%s is what counts from now on, not %s", now, _in_words(*before))
                self.figure, self._waited = None, 0
        value = float(scalars[metric])
        if self._improves(metric, value):
            self.figure, self.counts, self._waited = BestFigure(metric, value, step), counts, 0
            return True
        self._waited += 1
        patience = self.rule.stop_patience
        if patience is not None and self._waited >= patience:
            self.reason = (
                f"{metric} did not improve in {self._waited} validations (a larger "
                "trainer.stop_patience goes on)"
            )
        return False

    def _improves(self, metric: str, value: float) -> bool:
        if self.figure is None or not math.isfinite(value):
            return math.isfinite(value)
        before = self.figure.value
        return value > before if is_higher_better(metric) else value < before

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        figure = None if self.figure is None else self.figure._asdict()
        return {"figure": figure, "counts": self.counts, "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        figure = state["figure"]
        self.figure = None if figure is None else BestFigure(**figure)
        self.counts = state.get("counts")
        self._waited = state["waited"]

    def forget(self) -> None:
        """Nothing is the best any more; what was waited counts."""
        self.figure = None
