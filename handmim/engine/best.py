"""Which checkpoint of a run is its best, by a validation metric, and when to stop waiting for a
better one."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

AUTO = "auto"
AUTO_METRICS = ("val/pa_mpvpe_mm", "val/pa_mpjpe_mm", "val/err2d_percent")
VALIDATION = "val/"
RISING = re.compile(r"auc|pck\d*|f\d+")  # a word of the name of a metric that is good when large
COUNT = "num"  # first word of the name of a number of samples


class BestMetric(NamedTuple):
    """The best value of a metric so far, and the number of finished steps that gave it."""

    metric: str
    value: float
    step: int


def is_higher_better(metric: str) -> bool:
    """True of areas under PCK curves, PCK and F-scores; False of errors and losses."""
    return any(RISING.fullmatch(word) for word in metric.rsplit("/", 1)[-1].split("_"))


@dataclass(frozen=True)
class BestRule:
    """What makes a checkpoint the best, and when to stop.

    Args:
        keep_best: a validation metric such as "val/pa_mpvpe_mm"; "auto" takes the first there is of
            `AUTO_METRICS`; None keeps no best checkpoint.
        stop_patience: validations in a row without an improvement after which a run stops; None
            never stops it.
    Raises: ValueError for a name of no validation metric, and for a patience below 1 or without a
        metric.
    """

    keep_best: str | None = None
    stop_patience: int | None = None

    def __post_init__(self) -> None:
        is_known = self.keep_best in (None, AUTO) or str(self.keep_best).startswith(VALIDATION)
        if not is_known:
            raise ValueError(
                f"keep_best must be auto, null or a validation metric such as {AUTO_METRICS[0]}, "
                f"got {self.keep_best!r}"
            )
        if self.stop_patience is None:
            return
        if self.stop_patience < 1:
            raise ValueError(f"stop_patience must be >= 1 or null, got {self.stop_patience}")
        if self.keep_best is None:
            raise ValueError(
                f"stop_patience={self.stop_patience} waits for a better metric, and "
                "keep_best=null names none (trainer.keep_best=auto)"
            )

    def check(self, known: Sequence[str]) -> None:
        """Refuse a metric that no validation gives.

        Raises: ValueError listing the known ones.
        """
        if self.keep_best not in (None, AUTO, *known):
            raise ValueError(
                f"keep_best={self.keep_best}: no validation has this metric, choose one of "
                f"{', '.join(known)}, auto or null"
            )

    def choose(self, scalars: Mapping[str, float]) -> str | None:
        """The metric of a validation that counts; None where nothing is kept or `scalars` hold no
        validation.

        Raises: ValueError listing the metrics there are, when the required one is not among them.
        """
        names = [n for n in scalars if n.startswith(VALIDATION) and not _is_count(n)]
        if self.keep_best is None or not names:
            return None
        candidates = AUTO_METRICS if self.keep_best == AUTO else (self.keep_best,)
        chosen = next((name for name in candidates if name in names), None)
        if chosen is None:
            raise ValueError(
                f"the validation has no {' or '.join(candidates)}, it has "
                f"{', '.join(sorted(names))} (trainer.keep_best, null for none)"
            )
        return chosen


def _is_count(name: str) -> bool:
    return name.removeprefix(VALIDATION).split("_")[0] == COUNT


def counts_of(scalars: Mapping[str, float]) -> dict[str, int]:
    """How many samples a validation is over: its `val/num_...`."""
    return {n: int(v) for n, v in scalars.items() if n.startswith(VALIDATION) and _is_count(n)}


def _described(metric: str, counts: Mapping[str, int]) -> str:
    """ "val/f5 of num_samples 8"."""
    over = ", ".join(f"{n.removeprefix(VALIDATION)} {num}" for n, num in sorted(counts.items()))
    return f"{metric} of {over}" if over else metric


class BestTracker:
    """The best validation of a run.

    Args:
        rule: what counts.

    Attributes:
        best: the best so far; None before there is one.
        counts: samples of the validation that gave it; None where a checkpoint does not know.
        reason: why the run should stop after the latest validation; None to go on.
    """

    def __init__(self, rule: BestRule) -> None:
        self.rule = rule
        self.best: BestMetric | None = None
        self.counts: dict[str, int] | None = None
        self.reason: str | None = None
        self._waited = 0  # validations without an improvement

    def update(self, step: int, scalars: Mapping[str, float]) -> bool:
        """Compare the scalars of all hooks after `step` steps.

        Another metric than before, or one over another number of samples, cannot be compared with
        the best so far: it begins anew.

        Returns: whether this is the best validation so far; the first one is, and one that is not
            finite or only as good never.
        Raises: ValueError as `BestRule.choose`.
        """
        self.reason, metric = None, self.rule.choose(scalars)
        if metric is None:
            return False
        counts = counts_of(scalars)
        if self.best is not None:
            before = self.best.metric, counts if self.counts is None else self.counts
            if before != (metric, counts):
                now = _described(metric, counts)
                log.warning("%s is what counts from now on, not %s", now, _described(*before))
                self.best, self._waited = None, 0
        value = float(scalars[metric])
        if self._improves(metric, value):
            self.best, self.counts, self._waited = BestMetric(metric, value, step), counts, 0
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
        if self.best is None or not math.isfinite(value):
            return math.isfinite(value)
        before = self.best.value
        return value > before if is_higher_better(metric) else value < before

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        best = None if self.best is None else self.best._asdict()
        return {"figure": best, "counts": self.counts, "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        best = state["figure"]
        self.best = None if best is None else BestMetric(**best)
        self.counts = state.get("counts")
        self._waited = state["waited"]

    def forget(self) -> None:
        """Nothing is the best any more; validations without an improvement still count."""
        self.best = None
