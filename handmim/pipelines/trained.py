"""A fine-tuned checkpoint back into the model it was saved from."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from handmim.data.augment import HandAugment
from handmim.tasks.evaluate import check_hands
from handmim.tasks.regression import RegressionTask
from handmim.utils.build import build


def hand_of(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Config of the hand model: the checkpoint's own, but for what is given and not None."""
    return {**saved["config"]["hand"], **{k: v for k, v in given.items() if v is not None}}


def build_trained(
    saved: Mapping[str, Any], hand: Mapping[str, Any], path: str
) -> tuple[RegressionTask, HandAugment]:
    """The model, its weights loaded, and the rule that its crops are cut by.

    Args:
        saved: checkpoint of `load_trained`.
        hand: config of the hand model, as `hand_of` gives it.
        path: of the checkpoint, for messages.
    Raises: ValueError for another hand than it was trained with.
    """
    config = OmegaConf.create(saved["config"])
    if "hand" in config.task.head:  # bare joints have none
        config.task.head.hand = hand
    task: RegressionTask = build(config.task)
    check_hands(task.hand_sha256, saved["meta"].get("hand_sha256"), path)
    task.load_state_dict(saved["task"])
    return task, build(config.augment)
