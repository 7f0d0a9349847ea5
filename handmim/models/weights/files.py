"""Files of transformer weights, ours or foreign, as plain tensors; nothing in a file is
executed."""

import argparse
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import huggingface_hub
from safetensors import SafetensorError, safe_open
from timm.models import get_pretrained_cfg
from torch import Tensor

from handmim.utils.json_files import read_json
from handmim.utils.tensor_files import check_weights, is_safetensors, no_tensors, read_torch

TIMM = "timm:"
CACHED_NAMES = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")
ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", INDEX)
NAMESPACES = (argparse.Namespace, SimpleNamespace)
# Plain values beside the weights, and inert substitutes under the names that files give them.
SETTINGS: list[Any] = [
    *NAMESPACES,
    (OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (OrderedDict, "lightning.fabric.utilities.data.AttributeDict"),
    (OrderedDict, "lightning_fabric.utilities.data.AttributeDict"),
    (PurePosixPath, "pathlib.PosixPath"),
]
WEIGHTS = "a file of weights"
MAX_DEPTH, MAX_NODES = 32, 1_000_000  # of nested dicts

Content = tuple[dict[str, Tensor], Mapping[str, Any], Mapping[str, str]]


@dataclass(frozen=True)
class WeightFile:
    """Content of a file of weights."""

    source: str  # as requested, for messages
    tensors: Mapping[str, Tensor]  # by dotted name
    state: Mapping[str, Any] = field(default_factory=dict)  # plain values, nested as in the file
    meta: Mapping[str, str] = field(default_factory=dict)  # text metadata of safetensors
    config: Mapping[str, Any] = field(default_factory=dict)  # JSON beside the file, as on hubs
    card: Any = None  # timm's description of its weights


def read_weights(source: str) -> WeightFile:
    """Tensors of a file, of an index of shards or of timm's cached weights ("timm:NAME"), and the
    values beside them.

    Raises: FileNotFoundError; ValueError for a damaged file, and one with more than tensors.
    """
    path, card = Path(source), None
    if source.startswith(TIMM):
        path, card = _cached_timm(source.removeprefix(TIMM))
    elif path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.name.endswith(ENDINGS))
        found = f", give one of its files: {', '.join(inside[:4])}" if inside else ""
        raise FileNotFoundError(f"{path} is a folder{found}")
    elif not path.exists():
        raise FileNotFoundError(f"no weights at {path}")
    index, shard = path, SHARD.fullmatch(path.name)
    if shard:
        index = path.with_name(f"{shard[1]}{shard[2]}{INDEX}")
        if not index.is_file():
            raise FileNotFoundError(f"{path} is a shard, and their index {index} is missing")
    is_one = not index.name.endswith(INDEX)
    content = _one_file(path) if is_one else (_sharded(index), {}, {})
    return WeightFile(source, *content, _hub_config(path.parent), card)


def _cached_timm(name: str) -> tuple[Path, Any]:
    try:
        card = get_pretrained_cfg(name, allow_unregistered=False)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"timm:{name}: timm has no pretrained weights {name!r}") from error
    if card is None or not card.hf_hub_id:
        raise ValueError(f"timm:{name}: timm's weights of {name!r} are on no hub")
    for file in (card.hf_hub_filename,) if card.hf_hub_filename else CACHED_NAMES:
        found = huggingface_hub.try_to_load_from_cache(card.hf_hub_id, file)
        if isinstance(found, str):
            return Path(found), card
    raise FileNotFoundError(
        f"the weights of timm:{name} are not in the local cache, and nothing is downloaded here: "
        f"where there is a network run `hf download {card.hf_hub_id} model.safetensors`, then give "
        "init=timm:NAME on that machine or init=FILE anywhere"
    )


def _hub_config(folder: Path) -> dict[str, Any]:
    """JSON that a model hub keeps beside the weights; pixel constants in [0, 1]."""
    found: dict[str, Any] = {}
    for path in (folder / "preprocessor_config.json", folder / "config.json"):
        content = read_json(path, max_mb=10) if path.is_file() else {}
        found |= content if isinstance(content, dict) else {}
    factor = found.get("rescale_factor")
    scale = 255 * factor if isinstance(factor, float) and factor > 0 else 1.0
    if found.get("do_normalize") is False:
        found |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    for key in ("image_mean", "image_std"):  # of pixels in [0, scale]
        values = found.get(key)
        if isinstance(values, list) and all(isinstance(v, (int, float)) for v in values):
            found[key] = [v / scale for v in values]
    return found


def _one_file(path: Path) -> Content:
    if path.is_file() and is_safetensors(path):
        check_weights(path)
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                return {k: file.get_tensor(k) for k in names}, {}, dict(file.metadata() or {})
        except (SafetensorError, OSError, ValueError) as error:
            kind = no_tensors(path) or f"is cut off or damaged: {error}"
            raise ValueError(f"{path} {kind}; {WEIGHTS} is required") from error
    state = read_torch(path, WEIGHTS, allow=SETTINGS)
    try:
        tensors = dict(_flat(state, "", MAX_DEPTH, iter(range(MAX_NODES))))
    except ValueError as error:
        raise ValueError(f"{path} is damaged or not {WEIGHTS}: {error}") from error
    return tensors, state if isinstance(state, Mapping) else {}, {}


def _flat(state: Any, name: str, depth: int, nodes: Iterator[int]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dicts by dotted name; each dict and entry uses up one of `nodes`."""
    if next(nodes, None) is None or not depth:
        raise ValueError(f"dicts nest more than {MAX_DEPTH} deep or refer to each other")
    if isinstance(state, Tensor):
        size = state.numel() * state.element_size()
        if not state.is_sparse and size > state.untyped_storage().nbytes():
            raise ValueError(f"tensor {name} {tuple(state.shape)} is larger than what is stored")
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key), depth - 1, nodes)


def _sharded(index: Path) -> dict[str, Tensor]:
    content = read_json(index, max_mb=100)
    shard_of = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shard_of, dict) or not shard_of:
        raise ValueError(f"{index} holds no weight_map of tensors to shards")
    tensors: dict[str, Tensor] = {}
    for name in sorted({str(name) for name in shard_of.values()}):
        shard = index.with_name(Path(name).name)
        if shard.name != name:
            raise ValueError(f"{index} names {name!r}, a shard must lie beside its index")
        if not shard.is_file():
            raise FileNotFoundError(f"{index} names several shards, {name} is missing")
        tensors |= _one_file(shard)[0]
    if missing := sorted(shard_of.keys() - tensors.keys()):
        raise ValueError(f"{index} names tensors that its shards lack: {missing[:3]}")
    return tensors
