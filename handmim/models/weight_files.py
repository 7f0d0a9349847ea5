"""Files of transformer weights, ours or foreign, to plain tensors; nothing in a file is executed.

Whoever wrote the file, the ViT in it is found by the one name they all share, that of the patch
embedding; what stands before that name is the prefix to strip.
"""

import argparse
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open
from timm.models import get_pretrained_cfg
from torch import Tensor

TIMM = "timm:"
ANCHOR = "patch_embed.proj.weight"
CACHED_NAMES = ("model.safetensors", "pytorch_model.bin")
# Tokens that take part in attention beside the class token: a ViT without them computes otherwise.
EXTRA_TOKENS = ("register_tokens", "reg_token", "dist_token")


@dataclass(frozen=True)
class ViTFile:
    """A ViT as it stands in a file, under timm's names.

    Args:
        source: what was asked for, for messages.
        prefix: what its names begin with in the file.
        weights: tensors by name, fp32.
        mask_token: [1, 1, D] where the file has one for the encoder.
        unused: number of other tensors by the first part of their names.
        pixel_norm: how its pixels were normalised, where the file says so.
        num_heads: where the file says so.
        mean, std: pixel constants of its training, where known.
        meta: metadata of an export of ours.
    """

    source: str
    prefix: str
    weights: dict[str, Tensor]
    mask_token: Tensor | None = None
    unused: dict[str, int] = field(default_factory=dict)
    pixel_norm: str | None = None
    num_heads: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    meta: dict[str, str] = field(default_factory=dict)


def read_vit(source: str) -> ViTFile:
    """The ViT of a file, or of timm's cached weights.

    Args:
        source: "timm:NAME", or a .safetensors, .pth, .pt, .bin file.
    Raises: FileNotFoundError; ValueError for a file that holds no plain ViT, or more than tensors.
    """
    if not source.startswith(TIMM):
        return _found(source, *_tensors(Path(source)))
    path, card = cached_timm(source.removeprefix(TIMM))
    tensors, _ = _tensors(path)
    return _found(source, tensors, {}, tuple(card.mean), tuple(card.std))


def cached_timm(name: str) -> tuple[Path, Any]:
    """Where timm's weights of a name lie on this machine, and timm's card of them.

    Raises: ValueError for a name without weights; FileNotFoundError when they are not here.
    """
    try:
        card = get_pretrained_cfg(name, allow_unregistered=False)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"timm has no pretrained weights {name!r} (init=timm:NAME)") from error
    if card is None or not card.hf_hub_id:
        raise ValueError(f"timm's weights of {name!r} are on no hub (init=FILE)")
    for file in (card.hf_hub_filename,) if card.hf_hub_filename else CACHED_NAMES:
        found = huggingface_hub.try_to_load_from_cache(card.hf_hub_id, file)
        if isinstance(found, str):
            return Path(found), card
    raise FileNotFoundError(
        f"the weights of timm:{name} are not in the local cache, and nothing is downloaded here: "
        f"where there is a network run `hf download {card.hf_hub_id} model.safetensors`, then give "
        "init=timm:NAME on that machine or init=FILE anywhere"
    )


def _tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Dotted names to tensors, and what the file says of the ViT itself."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path} (init=, init_from=)")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                return {k: file.get_tensor(k) for k in names}, dict(file.metadata() or {})
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    try:
        # DINO's and MAE's checkpoints keep their command line beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
        tensors = dict(_flat(state, ""))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise ValueError(
            f"{path} holds more than tensors and plain values{what}, and loading that could run "
            "code: refused. Save its state dict alone, where you trust it"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged or holds no weights: {error}") from error
    said = {
        "pixel_norm": _value(state, "config", "task", "backbone", "pixel_norm"),
        "num_heads": _value(state, "config", "task", "backbone", "size", "num_heads"),
    }
    return tensors, {key: str(value) for key, value in said.items() if value is not None}


def _value(node: Any, *keys: str) -> Any:
    """What lies below nested keys; None where one is missing."""
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _flat(state: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dicts by dotted name."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))


def _found(
    source: str,
    tensors: Mapping[str, Tensor],
    meta: dict[str, str],
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> ViTFile:
    """The ViT among named tensors: of several the teacher's, or an average's, comes first."""
    prefixes = [k.removesuffix(ANCHOR) for k in tensors if k == ANCHOR or k.endswith(f".{ANCHOR}")]
    if not prefixes:
        raise ValueError(
            f"{source} holds no plain ViT: no tensor is named ...{ANCHOR}; its names begin "
            f"{sorted(tensors)[:3]} (init=)"
        )
    prefix = min(prefixes, key=_rank)
    weights, unused = {}, dict[str, int]()
    mask_names = [f"{prefix}masked_embed", f"{prefix}mask_token"]
    mask_names.append(f"{prefix.removesuffix('net.')}mask_token")  # of this project's ViT
    mask_token: Tensor | None = None
    # A decoder keeps its mask token among the encoder's names (MAE).
    has_decoder = any(k.startswith(f"{prefix}decoder_") for k in tensors)
    for key, value in tensors.items():
        name = re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", key.removeprefix(prefix))
        if key in mask_names and not has_decoder:
            mask_token = value.float().reshape(1, 1, -1)
        elif key.startswith(prefix) and _is_vit(name):
            weights[name] = value.float()
        else:
            group = _group(key, prefix)
            unused[group] = unused.get(group, 0) + 1
    extra = [name for name in EXTRA_TOKENS if name in weights]
    if extra:
        raise ValueError(
            f"{source} was trained with {extra}, which a plain ViT does not have: take its variant "
            "without them (init=)"
        )
    heads = meta.get("num_heads") or json.loads(meta.get("timm_args", "{}")).get("num_heads")
    return ViTFile(
        source=source,
        prefix=prefix,
        weights=weights,
        mask_token=mask_token,
        unused=unused,
        pixel_norm=meta.get("pixel_norm"),
        num_heads=None if heads is None else int(heads),
        mean=mean,
        std=std,
        meta=meta,
    )


def _rank(prefix: str) -> tuple[bool, bool, int]:
    is_mean = any(word in prefix for word in ("teacher", "ema", "averaged"))
    return "student" in prefix, not is_mean, len(prefix)


def _is_vit(name: str) -> bool:
    """Whether a name is one of a plain ViT's, or one of a token that a plain ViT lacks."""
    begins = ("blocks.", "patch_embed.", "norm.", "norm_pre.")
    return name.startswith(begins) or name in ("cls_token", "pos_embed", *EXTRA_TOKENS)


def _group(name: str, prefix: str) -> str:
    """First part of a name, below what it shares with the ViT's prefix."""
    shared = prefix
    while shared and not name.startswith(shared):
        shared = shared.rstrip(".").rpartition(".")[0]
        shared = f"{shared}." if shared else ""
    return name[len(shared) :].split(".")[0]
