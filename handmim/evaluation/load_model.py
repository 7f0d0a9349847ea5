"""A fine-tuned checkpoint back into the model it was saved from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from handmim.data.augment import HandAugment
from handmim.engine.checkpoint import check_fits, check_saved, load_checkpoint
from handmim.tasks.regression import RegressionTask
from handmim.utils.config import build, set_everywhere

# What constructors raise for values of a wrong kind or size.
UNBUILDABLE = (ValueError, RuntimeError, TypeError, AttributeError, LookupError, ArithmeticError)


def read_model_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of fine-tuning whose config builds nothing but our own parts.

    Raises: FileNotFoundError; ValueError for another file, a checkpoint of pretraining, and one
        whose entries are missing or of another kind.
    """
    saved = load_checkpoint(path, map_location="cpu")
    check_saved(saved, path)
    return saved


def hand_config(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Config of the hand model: the checkpoint's own, but for what is given and not None."""
    return {**saved["config"]["hand"], **{k: v for k, v in given.items() if v is not None}}


def build_part(config: Any, path: str, key: str) -> Any:
    """Build a part of a checkpoint's config; its path and the part's key are for messages.

    Raises: FileNotFoundError for a file that the part reads; ValueError for a part that cannot be
        built.
    """
    try:
        return build(config)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error} ({key} of its config)") from error
    except (OmegaConfBaseException, *UNBUILDABLE) as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: {key} of its config cannot be built: {text[0]}") from error


def load_model(
    saved: Mapping[str, Any], hand: Mapping[str, Any], path: str
) -> tuple[RegressionTask, HandAugment]:
    """The model, its weights loaded, and the rule that its crops are cut by.

    Args:
        saved: checkpoint of `read_model_checkpoint`.
        hand: config of the hand model, as `hand_config` gives it.
        path: of the checkpoint, for messages.
    Raises: FileNotFoundError for the hand model; ValueError for another hand than it was trained
        with, and for a config that does not fit the weights.
    """
    config = OmegaConf.create(saved["config"])
    set_everywhere(config.task, "hand", hand)  # bare joints have none
    if Path(hand["path"]).exists() and not Path(hand["path"]).is_file():
        raise ValueError(f"{path}: {hand['path']} is no regular file")
    augment = build_part(config.augment, path, "augment")
    if not isinstance(augment, HandAugment):
        raise ValueError(f"{path}: augment of its config builds a {type(augment).__name__}")
    _check_networks(config.task, saved["task"], path)
    task = build_part(config.task, path, "task")
    if not isinstance(task, RegressionTask):
        raise ValueError(f"{path}: task of its config builds a {type(task).__name__}")
    check_same_hand(task.hand_sha256, saved["meta"].get("hand_sha256"), path)
    check_fits(saved["task"], task.state_dict(), path)
    task.load_state_dict(saved["task"])
    return task, augment


def _check_networks(config: DictConfig, tensors: Mapping[str, Any], path: str) -> None:
    """Compare backbone and head with the checkpoint's tensors, before either takes memory."""
    head: Any = OmegaConf.to_container(config.head)
    hand = {"hand": build_part(head.pop("hand"), path, "hand")} if "hand" in head else {}
    with torch.device("meta"):
        parts = {"backbone": build_part(config.backbone, path, "task.backbone")}
        make = build_part({**head, "_partial_": True}, path, "task.head")
        try:
            parts["head"] = make(dim=parts["backbone"].embed_dim, **hand)
        except UNBUILDABLE as error:
            raise ValueError(f"{path}: task.head of its config cannot be built: {error}") from error
    here = {f"{name}.{k}": v for name, part in parts.items() for k, v in part.state_dict().items()}
    check_fits({k: v for k, v in tensors.items() if k.startswith(tuple(parts))}, here, path)


def check_same_hand(model: str | None, data: str | None, where: str) -> None:
    """Refuse to mix hand models, whose vertices and betas mean different things.

    Args:
        model: sha256 of the hand of the model; None when it regresses bare joints.
        data: of the hand that labels or weights were made with; None when they know none.
        where: these are, for the message.
    Raises: ValueError naming the two.
    """
    if model is not None and data is not None and data != model:
        raise ValueError(
            f"{where} was made with hand model {data[:12]}, the model's hand is {model[:12]}: "
            "their vertices and betas do not correspond (hand.path, data)"
        )
