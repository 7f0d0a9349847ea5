"""Weights averaged over checkpoints: between the end of a head's training and that of all (WiSE-FT,
Wortsman et al. 2022, arXiv 2109.01903), or over runs (model soups, arXiv 2203.05482)."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from handmim.engine.checkpoint import OF_RUNS, require, save_checkpoint
from handmim.engine.identity import By, deciding
from handmim.evaluation.model_file import KEY
from handmim.evaluation.predictor import hand_config, load_model, read_model_checkpoint
from handmim.evaluation.report import expanded
from handmim.models.weights.files import read_weights
from handmim.utils.arguments import shares
from handmim.utils.config import differences, flatten
from handmim.utils.files import output_problem
from handmim.utils.tensor_files import is_safetensors, save_weights

log = logging.getLogger(__name__)

OF_RESUME = ("optimizer", "precision", "best", "ledger")  # entries that no average has


def main(cfg: DictConfig) -> None:
    """Average what `cfg.checkpoints` names, fine-tunings or exported backbones, into `cfg.out`.
    Raises: ValueError for files that cannot be averaged; FileNotFoundError; FileExistsError."""
    given = cfg.checkpoints
    paths = expanded([given] if isinstance(given, str) else list(given), "checkpoints")
    weights = share_of_each(paths, cfg.shares)
    out = Path(cfg.out)
    if out.exists() and not cfg.overwrite:
        raise FileExistsError(f"{out} exists: take another name (out=), or overwrite=true")
    if problem := output_problem(out, is_folder=False):
        raise ValueError(f"out={out}: {problem}")
    out.parent.mkdir(parents=True, exist_ok=True)
    is_backbone = [Path(path).is_file() and is_safetensors(Path(path)) for path in paths]
    if len(set(is_backbone)) > 1:
        raise ValueError("checkpoints and exported backbones have no average (checkpoints)")
    if is_backbone[0]:
        average_backbones(paths, weights, out)
    else:
        average_checkpoints(paths, weights, out, hand_path=cfg.hand_path)
    for path, share in zip(paths, weights, strict=True):
        print(f"{share:.3g} of {path}")
    print(f"averaged weights: {out}")


def share_of_each(paths: Sequence[str], given: Sequence[float] | None) -> list[float]:
    """Shares that sum to 1, equal ones by default. Raises: ValueError."""
    if len(paths) < 2:
        raise ValueError(f"an average needs two files, got {list(paths)} (checkpoints=[a.pt,b.pt])")
    found = [1.0 / len(paths)] * len(paths) if given is None else [float(s) for s in given]
    for share in found:
        shares(shares=share)
    if len(found) != len(paths) or not math.isclose(sum(found), 1.0, abs_tol=1e-6):
        text = f"{len(paths)} numbers that sum to 1, one for each of {list(paths)}"
        raise ValueError(f"shares must be {text}, got {found}")
    return found


def mean_of(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Weighted means of tensors of one name, summed in float64. What is the same in all stays bit
    for bit, and integers, such as counters, are the last's."""
    mean: dict[str, Tensor] = {}
    for name, last in states[-1].items():
        each = [state[name] for state in states]
        mean[name] = last
        if last.is_floating_point() and not all(torch.equal(value, last) for value in each):
            parts = [share * value.double() for share, value in zip(weights, each, strict=True)]
            mean[name] = torch.stack(parts).sum(dim=0).to(last.dtype)
    return mean


def check_alike(
    paths: Sequence[str], facts: Sequence[Mapping[str, Any]], states: Sequence[Mapping[str, Tensor]]
) -> None:
    """Raises: ValueError naming two files with other facts, or tensors of other names or shapes."""
    shapes = [{f"tensor {k}": tuple(v.shape) for k, v in state.items()} for state in states]
    every = [{**fact, **shape} for fact, shape in zip(facts, shapes, strict=True)]
    for path, own in zip(paths, every, strict=True):
        if found := differences(every[0], own):
            more = f"; {len(found) - 3} further ones" * (len(found) > 3)
            text = f"{path} has no average with {paths[0]}: {'; '.join(found[:3])}{more}"
            raise ValueError(f"{text} (checkpoints)")


def average_checkpoints(
    paths: Sequence[str], weights: Sequence[float], out: Path, *, hand_path: str | None = None
) -> None:
    """Write the average of fine-tunings of one network, crop rule, hand model and mean of labels;
    config, facts and step are the last's. `out` can be scored and loaded, and not be resumed.
    Raises: ValueError, FileNotFoundError."""
    saved = [read_model_checkpoint(path) for path in paths]
    facts: list[dict[str, Any]] = []
    sources: list[dict[str, Any]] = []
    for path, share, each in zip(paths, weights, saved, strict=True):
        require(each, OF_RUNS, path)
        config = each["config"]
        compared = deciding({key: config[key] for key in ("task", "augment")}, By.MEAN)
        facts.append(flatten({"hand": each["meta"].get("hand_sha256"), **compared}))
        about = {"run": config["name"], "seed": config["seed"], "step": each["step"]}
        sources.append({"path": path, "share": share, **about})
    states = [each["task"] for each in saved]
    check_alike(paths, facts, states)
    last = saved[-1]
    task, _ = load_model(last, hand_config(last, {"path": hand_path}), paths[-1])
    # What the head starts from: refinements are relative to it.
    starts = {f"head.{name}" for name, _ in task.head.named_buffers(recurse=False)}
    for path, state in zip(paths, states, strict=True):
        if wrong := [n for n in starts & state.keys() if not torch.equal(state[n], states[0][n])]:
            text = f"{path} and {paths[0]} start from other means of the labels ({min(wrong)})"
            raise ValueError(f"{text}: average runs with the same labels (checkpoints)")
    kept = {key: value for key, value in last.items() if key not in OF_RESUME}
    meta = {**last["meta"], "averaged": sources}
    save_checkpoint(out, {**kept, "task": mean_of(states, weights), "meta": meta})


def average_backbones(paths: Sequence[str], weights: Sequence[float], out: Path) -> None:
    """Write the average of exported backbones of one network. Raises: ValueError."""
    files = [read_weights(path) for path in paths]
    if exported := [path for path, file in zip(paths, files, strict=True) if KEY in file.meta]:
        raise ValueError(f"{exported[0]} is an exported model: average checkpoints (checkpoints)")
    stated = ("timm_name", "timm_args", "pixel_norm", "num_heads")
    facts = [{key: file.meta.get(key) for key in stated} for file in files]
    check_alike(paths, facts, [file.tensors for file in files])
    sources = [
        {"path": path, "share": share, **{k: file.meta.get(k) for k in ("step", "seed")}}
        for path, share, file in zip(paths, weights, files, strict=True)
    ]
    mean = mean_of([file.tensors for file in files], weights)
    save_weights(mean, out, {**files[-1].meta, "averaged": json.dumps(sources)})
