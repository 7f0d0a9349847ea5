"""Alarms by name: which figure each watches, when it rings and what helps."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

UNIFORM_ADVICE = (
    "lower task.teacher_temp or optim.lr.start, or try the other centering (centering=sinkhorn|ema)"
)
PEAKED_ADVICE = (
    "try centering=sinkhorn, a higher task.teacher_temp, or longer task.freeze_prototypes_steps"
)
POINTS = "task.losses.keypoint_align.term"


class Rule(NamedTuple):
    """One alarm: which figure, on which side of its threshold it rings, and what helps."""

    figure: str
    above: bool
    advice: str


RULES: dict[str, Rule] = {
    "targets_uniform": Rule("targets/entropy_of_each", True, UNIFORM_ADVICE),
    "targets_one_prototype": Rule("targets/entropy_of_mean", False, PEAKED_ADVICE),
    "class_targets_uniform": Rule("class_targets/entropy_of_each", True, UNIFORM_ADVICE),
    "class_targets_one_prototype": Rule("class_targets/entropy_of_mean", False, PEAKED_ADVICE),
    "keypoint_targets_uniform": Rule("keypoint_targets/entropy_of_each", True, UNIFORM_ADVICE),
    "keypoint_targets_one_prototype": Rule(
        "keypoint_targets/entropy_of_mean", False, PEAKED_ADVICE
    ),
    "features_constant": Rule(
        "features/std_share",
        False,
        "lower optim.lr.start, or add class_recon or view_affine to loss=[...]",
    ),
    "features_rank_low": Rule(
        "features/rank", False, "add koleo or class_recon to loss=[...], or lower optim.lr.start"
    ),
    "keypoints_bunched": Rule(
        "keypoints/spread_ndc", False, f"raise {POINTS}.spread_weight or .repulsion_weight"
    ),
    "keypoints_constant_template": Rule(
        "keypoints/view_std_ndc",
        False,
        "set task.keypoint_target=student, or add view_affine to loss=[...]",
    ),
    "keypoints_fixed_in_source": Rule(
        "keypoints/source_std_ndc",
        False,
        "raise views.shared_rotation_deg, views.shared_scale or views.shared_shift_ndc",
    ),
    "keypoints_rigid": Rule(
        "keypoints/articulation",
        False,
        f"raise {POINTS}.variance_weight or views.warp_ndc, or add class_recon to loss=[...]",
    ),
    "keypoints_unmatched": Rule(
        "keypoints/retrieval",
        False,
        f"raise {POINTS}.disc_weight (keypoint_disc=nce|proto), or add point_hog to loss=[...]",
    ),
}
TERM_RULES: dict[str, Rule] = {
    "term_dead": Rule("ratio", False, "raise task.losses.{name}.weight, or leave it out"),
    "term_drowns": Rule("ratio", True, "lower task.losses.{name}.weight"),
}


class Alarm(NamedTuple):
    """One alarm's state at one check."""

    name: str
    figure: str
    value: float
    threshold: float
    above: bool
    advice: str

    @property
    def rings(self) -> bool:
        """Whether the value is on the wrong side; a value that is not finite is."""
        healthy = self.value <= self.threshold if self.above else self.value >= self.threshold
        return not healthy


def alarms_of(figures: Mapping[str, float], thresholds: Mapping[str, float]) -> Iterator[Alarm]:
    """The alarms whose figure exists.

    Args:
        figures: of `health.measure`.
        thresholds: by name of `RULES` and `TERM_RULES`; others are off.
    """
    for name, threshold in thresholds.items():
        if name in RULES:
            rule = RULES[name]
            if rule.figure in figures:
                yield Alarm(name, rule.figure, figures[rule.figure], threshold, *rule[1:])
            continue
        rule = TERM_RULES[name]
        for figure, value in figures.items():
            if figure.startswith("gradient/") and figure.endswith(f"/{rule.figure}"):
                term = figure.split("/")[1]
                advice = rule.advice.format(name=term)
                yield Alarm(f"{name}/{term}", figure, value, threshold, rule.above, advice)
