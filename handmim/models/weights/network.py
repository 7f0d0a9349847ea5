"""The network that weights come from, as far as its file states or its tensors imply it."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import timm
import torch
from torch import Tensor

from handmim.models.vit import IMAGENET_MEAN, IMAGENET_STD
from handmim.models.weights.files import NAMESPACES, WeightFile
from handmim.models.weights.names import PATCHES
from handmim.utils.json_files import parse_json

# Heads by width of what names or positions identify.
MOCO = {384: 12, 768: 12}
MAE = {768: 12, 1024: 16, 1280: 16}
VITPOSE = {384: 12, 768: 12, 1024: 16, 1280: 16}
DINO = {192: 3, 384: 6, 768: 12, 1024: 16, 1536: 24}
DINO_ARCH = re.compile(r"(vit|deit)_(tiny|small|base|large)")
MAE_ARCH = re.compile(r"(mae_)?vit_(base|large|huge)_patch\d+")
HF_KINDS = ("vit", "deit", "dinov2", "vitmae", "vitmsn", "ijepa")  # that this ViT computes
STATED_PARTS = (  # settings, the values that state a part which a plain ViT lacks, and the part
    (r"(use_|with_)?(rope|rotary)\w*", "", "rotary positions"),
    (r"pos\w*(embed|type)\w*", "rope|rotary|relative", "positions of another kind"),
    (r"(num_|n_)?(reg|register|storage)(_tokens?|s)", "", "register tokens"),
    (r"(use_)?swiglu\w*", "", "a gated MLP"),
    (r"(ffn|mlp)(_layer|_type)?", "glu", "a gated MLP"),
    (r"(use_)?rel(ative)?_pos\w*", "", "relative positions"),
    (r"(use_)?qk_norm\w*", "", "norms of queries and keys"),
    (r"window_size", "", "attention in windows"),
    (r"(use_|res_)?post_norm", "", "norms after the branches"),
    (r"norm_first", "false", "norms after the branches"),
)
UNSET = ("", "0", "0.0", "false", "none", "null")
# Names of settings in lower case.
HEADS = ("num_heads", "num_attention_heads", "n_heads", "nheads", "n_head", "nhead", "num_head",
         "heads", "attention_heads", "encoder_num_heads", "vit_num_heads")  # fmt: skip
WIDTH = ("hidden_size", "embed_dim", "embed_dims", "hidden_dim", "d_model", "dim", "width")
AMBIGUOUS = ("activation", "act")  # may be of anything but beside a number of heads
ACTIVATIONS = {"gelu": "gelu", "quickgelu": "quick_gelu", "relu": "relu", "silu": "silu",
               "swish": "silu"}  # fmt: skip
ACTIVATIONS |= dict.fromkeys(("gelunew", "gelupytorchtanh", "gelufast", "gelutanh"), "gelu_tanh")
# Settings below these names are of other parts than the ViT.
OTHER_PARTS = re.compile(
    r"decod|head|neck|predict|project|(^|_)text|language|audio|optim|sched|loss|data"
)
MAX_LEVELS, MAX_HOLDERS = 6, 1000
Holder = tuple[int, str, Mapping[str, Any]]  # level, beginning of the names, nested settings
CONFIG = "config.json beside it"


@dataclass(frozen=True)
class Stated:
    """Properties of a source network that shapes do not show; None where nothing states them."""

    by: str = ""  # source of the statements, for messages
    timm_name: str | None = None  # architecture under which timm builds it
    timm_args: dict[str, Any] = field(default_factory=dict)
    num_heads: int | None = None
    activation: str | None = None  # of the MLP, under timm's name
    norm_eps: float | None = None
    mean: tuple[float, ...] | None = None  # pixel constants of its training
    std: tuple[float, ...] | None = None
    pixel_norm: str | None = None  # of weights of this project
    likely_heads: tuple[int, str] | None = None  # where nothing states them, and the reason
    unknown: tuple[str, ...] = ()  # statements not known here, or of parts that this ViT lacks


def stated_network(file: WeightFile, weights: Mapping[str, Tensor]) -> Stated:
    """Statements of a file about its network, else what names and positions imply; `weights` are
    the tensors of its ViT under timm's names."""
    if (card := file.card) is not None:
        return Stated("timm", card.architecture, mean=tuple(card.mean), std=tuple(card.std))
    if found := _ours(file):
        return found
    kind = _timm_config(file.config) or _command_line(file, weights) or _implied(file, weights)
    settings, by = _settings(file, len(weights[PATCHES]))
    if kind.timm_name is not None:
        given = {"num_heads": settings.get("num_heads"), "act_layer": settings.get("activation")}
        stated = {key: value for key, value in given.items() if value is not None}
        settings["timm_args"] = stated | kind.timm_args
    names = " and ".join(filter(None, [kind.by, *by])) or "nothing"
    parts = [] if kind.timm_name else _stated_parts(file)
    unknown = tuple(filter(None, [_unknown_kind(file.config), *parts]))
    return replace(kind, **settings, by=names, unknown=unknown)


def public_heads(width: int) -> int | None:
    """Heads of timm's plain ViTs of a width; None for other widths."""
    if width in (1280, 1408, 1664):
        return 16
    return width // 64 if width <= 1024 and width % 64 == 0 else None


def _ours(file: WeightFile) -> Stated | None:
    """Exports and checkpoints of this project."""
    backbone = _below(file.state, "config", "task", "backbone")
    if isinstance(backbone, Mapping):
        name, norm, args = (backbone.get(key) for key in ("arch", "pixel_norm", "size"))
    elif "pixel_norm" in file.meta:
        name, norm = file.meta.get("timm_name"), file.meta["pixel_norm"]
        args = _parsed(file.meta.get("timm_args", "{}"))
    else:
        return None
    return Stated(
        "its own metadata",
        name if isinstance(name, str) and timm.is_model(name) else None,
        _mapping(args),
        num_heads=_count(file.meta.get("num_heads")) or _count(_below(args, "num_heads")),
        pixel_norm=None if norm is None else str(norm),
    )


def _timm_config(config: Mapping[str, Any]) -> Stated | None:
    """The config.json that timm writes to model hubs."""
    name, args = config.get("architecture"), config.get("model_args")
    if not isinstance(name, str) or not timm.is_model(name):
        return None
    card = config.get("pretrained_cfg")
    mean, std = (_pixel_constants(_below(card, key)) for key in ("mean", "std"))
    return Stated(f"{CONFIG} ({name})", name, _mapping(args), mean=mean, std=std)


def _unknown_kind(config: Mapping[str, Any]) -> str | None:
    """The network that a config.json names, where it is not known here."""
    name, kind, classes = (config.get(k) for k in ("architecture", "model_type", "architectures"))
    if isinstance(name, str) and not timm.is_model(name):
        return f"{CONFIG} names architecture {name[:80]}, which timm does not have"
    if not isinstance(kind, str):
        if not isinstance(classes, list) or not classes or isinstance(name, str):
            return None
        kind = re.sub(r"(Model|Backbone|For[A-Z]\w+)$", "", str(classes[0]))
    is_known = kind.lower().replace("_", "") in HF_KINDS
    return None if is_known else f"{CONFIG} names {kind[:80]}, which is not known here"


def _command_line(file: WeightFile, weights: Mapping[str, Tensor]) -> Stated | None:
    """The arguments that a training script saved beside the weights."""
    width, is_dino = len(weights[PATCHES]), {"student", "teacher"} <= file.state.keys()
    for _, _, holder in _holders(file.state, ""):
        for name in (holder.get(key) for key in ("arch", "model", "model_name")):
            if not isinstance(name, str):
                continue
            by = f"its arguments ({name})"
            if timm.is_model(name):
                kwargs = _below(file.state, "args", "model_kwargs")
                return Stated(by, name.split(".")[0], _mapping(kwargs))
            for arch, heads in ((MAE_ARCH, MAE), (DINO_ARCH, DINO if is_dino else {})):
                if arch.fullmatch(name) and width in heads:
                    return Stated(by, num_heads=heads[width], activation="gelu", norm_eps=1e-6)
    return None


def _implied(file: WeightFile, weights: Mapping[str, Tensor]) -> Stated:
    """The network that names and positions identify."""
    width, position = len(weights[PATCHES]), weights.get("pos_embed")
    axis = None if position is None else _fixed_axis(position)
    has_arch = str(file.state.get("arch")).startswith("vit_")

    def has(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in file.tensors)

    has_37 = position is not None and position.shape[1] == 37**2 + 1
    is_dinov2 = has_37 and "blocks.0.ls1.gamma" in weights and has(r"mask_token$")
    for by, is_it, heads in (
        ("its names (MoCo-v3)", has(r"(momentum|base)_encoder\."), MOCO),
        ("its fixed positions and arch (MoCo-v3)", axis == 0 and has_arch, MOCO),
        ("its fixed positions (MAE)", axis == 1 and width in MAE, MAE),
        ("its names (ViTPose)", has(r"last_norm\.weight$"), VITPOSE),
        ("its names (DINOv2)", is_dinov2, DINO),
    ):
        if is_it:
            return Stated(
                by,
                num_heads=heads.get(width),
                activation="gelu",
                norm_eps=1e-6,
                mean=IMAGENET_MEAN,
                std=IMAGENET_STD,
            )
    if axis == 0 and width in MOCO:  # others fix their positions so too
        return Stated(likely_heads=(MOCO[width], "MoCo-v3, which has such positions, has"))
    return Stated()


def _fixed_axis(position: Tensor) -> int | None:
    """Axis of the grid that the first half of fixed sine-cosine positions encodes: 0 for rows
    (MoCo-v3), 1 for columns (MAE), None for learned positions."""
    patches = position[0] if position.ndim == 3 else position.new_zeros(0, 0)
    grid, width = math.isqrt(len(patches)), patches.shape[-1]
    patches = patches[len(patches) - grid**2 :].float()
    if grid < 2 or width % 4:
        return None
    rows = torch.arange(grid, dtype=torch.float32).repeat_interleave(grid)
    angle = rows[:, None] * 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    encoded = torch.cat([angle.sin(), angle.cos()], dim=1)
    halves = patches.split(width // 2, dim=1)
    return next((i for i, h in enumerate(halves) if torch.allclose(h, encoded, atol=1e-3)), None)


def _holders(content: Any, where: str) -> list[Holder]:
    return list(islice(_walk(content, where, 0), MAX_HOLDERS))


def _walk(node: Any, where: str, level: int) -> Iterator[Holder]:
    node = _parsed(vars(node) if isinstance(node, NAMESPACES) else node)
    if not isinstance(node, Mapping) or level == MAX_LEVELS:
        return
    yield level, where, node
    for key, value in node.items():
        if not OTHER_PARTS.search(str(key).lower()):
            yield from _walk(value, f"{where}{key}.", level + 1)


def _settings(file: WeightFile, width: int) -> tuple[dict[str, Any], list[str]]:
    """Settings of a ViT of this width by field of `Stated`, and their sources."""
    found, by = dict[str, Any](), list[str]()
    contents = ((file.state, ""), (file.meta, "metadata."), (file.config, f"{CONFIG}: "))
    groups = [_holders(content, where) for content, where in contents]
    for setting, (names, read) in SPELLINGS.items():
        values = dict[Any, str]()
        for holders in groups:
            values |= _outermost(holders, names, read, width)
        if len(values) > 1 and setting in ("num_heads", "activation"):
            listed = ", ".join(f"{where}={value}" for value, where in values.items())
            raise ValueError(
                f"{file.source} states its {setting} twice: {listed}; correct the config.json, or "
                "save the weights alone"
            )
        if values:
            found[setting], where = list(values.items())[-1]
            by.append(where)
    return found, by


def _outermost(
    holders: list[Holder], names: tuple[str, ...], read: Callable[[Any], Any], width: int
) -> dict[Any, str]:
    """Values of a setting at the outermost level that states it, each with its source."""
    levels = dict[int, dict[Any, str]]()
    for level, where, holder in holders:
        keys = {str(key).lower(): key for key in holder}
        widths = {_count(holder[keys[k]]) for k in WIDTH if k in keys} - {None}
        is_network = any(_count(holder[keys[k]]) for k in HEADS if k in keys)
        for name in names if not widths or width in widths else ():  # else of another network
            value = read(holder[keys[name]]) if name in keys else None
            if value is not None and (is_network or name not in AMBIGUOUS):
                levels.setdefault(level, {}).setdefault(value, f"{where}{keys[name]}")
    return levels[min(levels)] if levels else {}


def _stated_parts(file: WeightFile) -> list[str]:
    """Parts that settings state and a plain ViT lacks, each with the setting."""
    found = dict[str, str]()
    for _, where, holder in _holders(file.state, "") + _holders(file.config, f"{CONFIG}: "):
        for key, value in holder.items():
            if not isinstance(value, (bool, int, float, str)):
                continue
            text = str(value).lower()
            for setting, values, part in STATED_PARTS:
                states = re.search(values, text) if values else text not in UNSET
                if states and re.fullmatch(setting, str(key).lower()):
                    found.setdefault(part, f"{where}{key}={text[:40]} states {part}")
    return list(found.values())


def _below(node: Any, *keys: str) -> Any:
    """Value below nested keys; None where one is missing."""
    for key in keys:
        node = vars(node) if isinstance(node, NAMESPACES) else node
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _parsed(value: Any) -> Any:
    """JSON text as its content; anything else as it is."""
    if not isinstance(value, str) or not value.startswith("{"):
        return value
    try:
        return parse_json(value.encode(), "settings")
    except ValueError:
        return {}


def _count(value: Any) -> int | None:
    """A whole number, or text that spells one."""
    return int(value) if isinstance(value, (int, str)) and str(value).isdecimal() else None


def _activation(value: Any) -> str | None:
    name = value.split(".")[-1].lower().replace("_", "") if isinstance(value, str) else ""
    return ACTIVATIONS.get(name)


def _pixel_constants(values: Any) -> tuple[float, ...] | None:
    """Three shares of the brightest pixel; of 255 where they are larger than 1."""
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        return None
    if not all(isinstance(v, (int, float)) and 0 <= v <= 255 for v in values):
        return None
    brightest = 255.0 if max(values) > 1 else 1.0
    return tuple(round(v / brightest, 9) for v in values)


ACTIVATION = ("act_layer", "hidden_act", "mlp_act", "activation_function", *AMBIGUOUS)
EPSILON = ("layer_norm_eps", "norm_eps", "layernorm_eps", "ln_eps")
SPELLINGS: dict[str, tuple[tuple[str, ...], Callable[[Any], Any]]] = {
    "num_heads": (HEADS, _count),
    "activation": (ACTIVATION, _activation),
    "norm_eps": (EPSILON, lambda v: v if isinstance(v, float) else None),
    "mean": (("image_mean", "pixel_mean", "mean"), _pixel_constants),
    "std": (("image_std", "pixel_std", "std"), _pixel_constants),
}
