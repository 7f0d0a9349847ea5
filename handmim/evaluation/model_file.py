"""A fine-tuned model as one small safetensors file: the weights that predict, and their config."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handmim.engine.checkpoint import FORMAT
from handmim.models.weights.files import read_weights
from handmim.utils.tensor_files import save_weights

KEY = "handmim_model"  # of the metadata
SECTIONS = ("task", "hand", "augment")  # of the config that rebuild a model
NO_MODEL = "holds no fine-tuned model: one of tools/export.py, best.pt or last.pt is required"


def model_content(saved: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a checkpoint has to hold to predict by these weights; they are final, so no average is
    kept of them."""
    config = {name: saved["config"][name] for name in SECTIONS}
    config["task"] = {**config["task"], "average": None}
    facts = {k: v for k, v in saved["meta"].items() if k == "hand_sha256"}
    content = {"format": FORMAT, "step": saved["step"], "meta": facts, "config": config}
    return {**content, "task": dict(weights)}


def write_model(content: Mapping[str, Any], path: Path) -> None:
    """Write `model_content`; matrices in half precision."""
    tensors = {
        name: (value.half() if value.ndim > 1 and value.is_floating_point() else value).contiguous()
        for name, value in content["task"].items()
    }
    facts = {key: value for key, value in content.items() if key != "task"}
    save_weights(tensors, path, {KEY: json.dumps(facts)})


def read_model(path: Path) -> dict[str, Any]:
    """The content of a file of `write_model`, in full precision. Raises: ValueError for another."""
    file = read_weights(str(path))
    try:
        facts = json.loads(file.meta[KEY])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} {NO_MODEL}") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ValueError(f"{path} {NO_MODEL}")
    tensors = {k: v.float() if v.dtype == torch.float16 else v for k, v in file.tensors.items()}
    return {**facts, "task": tensors}
