"""Which checkpoints are meant, and whether their figures may be averaged."""

import logging
from collections.abc import Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from handmim.engine.identity import By, deciding
from handmim.engine.saved_config import OF_RUNS, require
from handmim.evaluation.load_model import read_model_checkpoint
from handmim.reports.averages import CheckpointFacts
from handmim.utils.config import differences, flatten

log = logging.getLogger(__name__)


def expanded(given: Sequence[str]) -> list[str]:
    """Files that paths and patterns (`runs/seed*/last.pt`) name: each once, those of a pattern
    sorted.

    Raises: FileNotFoundError for a pattern that no file matches; ValueError for no paths at all.
    """
    found: dict[Path, str] = {}
    for path in given:
        is_pattern = has_magic(path) and not Path(path).is_file()
        matching = sorted(glob(path, recursive=True)) if is_pattern else [path]
        if not matching:
            raise FileNotFoundError(f"no file matches {path!r} (checkpoint=)")
        for match in matching:
            found.setdefault(Path(match).absolute(), match)
    if not found:
        raise ValueError("checkpoint=[] names no file: checkpoint=FILE.pt or [a.pt,b.pt]")
    return list(found.values())


def check_comparable(paths: Sequence[str], data: DictConfig | None) -> list[CheckpointFacts]:
    """Read what each checkpoint is, and refuse those whose mean says nothing.

    Compared are the hand model by its content, backbone and head, the evaluation crop, and the data
    that is scored. What they were trained with is not: that is what the lines may differ in.

    Args:
        paths: of the checkpoints.
        data: that all are scored on; None scores each on its own.
    Raises: ValueError naming two checkpoints and what they differ in.
    """
    facts: list[CheckpointFacts] = []
    first: dict[str, Any] = {}
    for path in paths:
        saved = read_model_checkpoint(path)
        require(saved, OF_RUNS, path)
        config = saved["config"]
        facts.append(CheckpointFacts(path, config["name"], config["seed"], saved["step"]))
        own = what_is_scored(saved, data)
        first = first or own
        if differing := differences(first, own):
            same_data = ", or on the same data (data=...)"
            is_data_alone = all(words.startswith("data.") for words in differing)
            raise ValueError(
                f"{path} is not averaged with {paths[0]} ({'; '.join(differing)}): score them one "
                f"at a time (checkpoint=){same_data * is_data_alone}"
            )
    seeds = [fact.seed for fact in facts]
    if len(set(seeds)) < len(seeds):
        log.warning("seeds %s: the spread is not that of independent runs", seeds)
    return facts


def what_is_scored(saved: Mapping[str, Any], data: DictConfig | None) -> dict[str, Any]:
    """Leaves that metrics of two checkpoints must share to be averaged, by dotted name."""
    config = saved["config"]
    chosen: Any = config["data"] if data is None else OmegaConf.to_container(data)
    evaluated = {**chosen, "test": chosen.get("test") or chosen.get("val"), "val": None}
    compared = deciding({**config, "data": evaluated}, By.MEAN)
    return flatten({"hand": saved["meta"].get("hand_sha256"), **compared})
