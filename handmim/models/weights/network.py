"""The network that weights come from, as far as its file states or its tensors imply it."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor

from handmim.models.vit import IMAGENET_MEAN, IMAGENET_STD
from handmim.models.weights.files import NAMESPACES, WeightFile
from handmim.models.weights.names import PATCHES
from handmim.utils.json_files import parse_json

# Heads by width of what names or positions identify.
MOCO, MAE = {384: 12, 768: 12}, {768: 12, 1024: 16, 1280: 16}
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
PLAIN: dict[str, Any] = {"activation": "gelu", "norm_eps": 1e-6}  # of most projects
MAX_LEVELS, MAX_SETTINGS = 6, 100_000
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
    width, unknown = len(weights[PATCHES]), _unknown_kind(file.config)
    kind = _timm_config(file.config) or _command_line(file, width) or _implied(file, weights)
    settings, by = _settings(file, width)
    if kind.timm_name is not None:
        given = (("num_heads", "num_heads"), ("act_layer", "activation"))
        stated = {arg: settings[name] for arg, name in given if name in settings}
        settings["timm_args"] = stated | kind.timm_args
    else:  # parts that settings state and a plain ViT lacks
        parts = dict[str, str]()
        for s in _settings_of(file.state, "") + _settings_of(file.config, f"{CONFIG}: "):
            text = str(s.value).lower() if isinstance(s.value, (bool, int, float, str)) else ""
            for setting, values, part in STATED_PARTS:
                states = re.search(values, text) if values else text not in UNSET
                if states and re.fullmatch(setting, s.name):
                    parts.setdefault(part, f"{s.where}={text[:40]} states {part}")
        unknown += parts.values()
    names = " and ".join(filter(None, [kind.by, *by])) or "nothing"
    return replace(kind, **settings, by=names, unknown=tuple(unknown))


def public_heads(width: int) -> int | None:
    """Heads of timm's plain ViTs of a width; None for other widths."""
    if width in (1280, 1408, 1664):
        return 16
    return width // 64 if width <= 1024 and width % 64 == 0 else None


def _ours(file: WeightFile) -> Stated | None:
    """Exports and checkpoints of this project."""
    stated = _below(file.state, "config", "task", "backbone")
    names = ("arch", "pixel_norm", "size")
    if not isinstance(stated, Mapping):
        stated, names = file.meta, ("timm_name", "pixel_norm", "timm_args")
        if "pixel_norm" not in stated:
            return None
    name, norm, args = (_parsed(stated.get(key)) for key in names)
    name = name if isinstance(name, str) and timm.is_model(name) else None
    heads = _count(file.meta.get("num_heads")) or _count(_below(args, "num_heads"))
    norm = None if norm is None else str(norm)
    return Stated("its own metadata", name, _all_below(args), num_heads=heads, pixel_norm=norm)


def _timm_config(config: Mapping[str, Any]) -> Stated | None:
    """The config.json that timm writes to model hubs."""
    name = config.get("architecture")
    if not isinstance(name, str) or not timm.is_model(name):
        return None
    card = config.get("pretrained_cfg")
    mean, std = (_pixel_constants(_below(card, key)) for key in ("mean", "std"))
    args = _all_below(config, "model_args")
    return Stated(f"{CONFIG} ({name})", name, args, mean=mean, std=std)


def _unknown_kind(config: Mapping[str, Any]) -> list[str]:
    """The network that a config.json names, where it is not known here."""
    name, kind, classes = (config.get(k) for k in ("architecture", "model_type", "architectures"))
    if isinstance(name, str) and not timm.is_model(name):
        return [f"{CONFIG} names architecture {name[:80]}, which timm does not have"]
    if not isinstance(kind, str) and isinstance(classes, list) and not isinstance(name, str):
        kind = re.sub(r"(Model|Backbone|For[A-Z]\w+)$", "", str(classes[0])) if classes else None
    if not isinstance(kind, str) or kind.lower().replace("_", "") in HF_KINDS:
        return []
    return [f"{CONFIG} names {kind[:80]}, which is not known here"]


def _command_line(file: WeightFile, width: int) -> Stated | None:
    """The arguments that a training script saved beside the weights."""
    is_dino = {"student", "teacher"} <= file.state.keys()
    for setting in _settings_of(file.state, ""):
        name = setting.value
        if setting.name not in ("arch", "model", "model_name") or not isinstance(name, str):
            continue
        by = f"its arguments ({name})"
        if timm.is_model(name):
            return Stated(by, name.split(".")[0], _all_below(file.state, "args", "model_kwargs"))
        for arch, heads in ((MAE_ARCH, MAE), (DINO_ARCH, DINO if is_dino else {})):
            if arch.fullmatch(name) and width in heads:
                return Stated(by, **PLAIN, num_heads=heads[width])
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
        ("its names (ViTPose)", has(r"last_norm\.weight$"), MOCO | MAE),
        ("its names (DINOv2)", is_dinov2, DINO),
    ):
        if is_it:
            known = PLAIN | {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
            return Stated(by, **known, num_heads=heads.get(width))
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


class Setting(NamedTuple):
    """A setting among nested ones."""

    level: int  # of nesting
    where: str  # its name with all above it
    name: str  # in lower case
    value: Any
    widths: set[int]  # of the network that it is of, as far as stated beside it
    is_network: bool  # beside a number of heads


def _nested(node: Any, where: str, level: int = 0) -> Iterator[Setting]:
    node = _parsed(vars(node) if isinstance(node, NAMESPACES) else node)
    if not isinstance(node, Mapping) or level == MAX_LEVELS:
        return
    values = {str(key).lower(): value for key, value in node.items()}
    widths = {n for key in WIDTH if (n := _count(values.get(key)))}
    is_network = any(_count(values.get(key)) for key in HEADS)
    for key, value in node.items():
        yield Setting(level, f"{where}{key}", str(key).lower(), value, widths, is_network)
        if not OTHER_PARTS.search(str(key).lower()):
            yield from _nested(value, f"{where}{key}.", level + 1)


def _settings_of(content: Any, where: str) -> list[Setting]:
    return list(islice(_nested(content, where), MAX_SETTINGS))


def _settings(file: WeightFile, width: int) -> tuple[dict[str, Any], list[str]]:
    """Settings of a ViT of this width by field of `Stated`, each from the outermost level that
    states it, and their sources."""
    found, by = dict[str, Any](), list[str]()
    contents = ((file.state, ""), (file.meta, "metadata."), (file.config, f"{CONFIG}: "))
    groups = [_settings_of(content, where) for content, where in contents]
    for field_name, (names, read) in SPELLINGS.items():
        values = dict[Any, str]()
        for group in groups:
            known = [s for s in group if s.name in names and width in (s.widths or {width})]
            usable = [s for s in known if s.is_network or s.name not in AMBIGUOUS]
            usable = [s for s in usable if read(s.value) is not None]
            top = min((s.level for s in usable), default=0)
            values |= {read(s.value): s.where for s in usable if s.level == top}
        if len(values) > 1 and field_name in ("num_heads", "activation"):
            listed = ", ".join(f"{where}={value}" for value, where in values.items())
            text = f"{listed}; correct the config.json, or save the weights alone"
            raise ValueError(f"{file.source} states its {field_name} twice: {text}")
        if values:
            found[field_name], where = list(values.items())[-1]
            by.append(where)
    return found, by


def _below(node: Any, *keys: str) -> Any:
    """Value below nested keys; None where one is missing."""
    for key in keys:
        node = vars(node) if isinstance(node, NAMESPACES) else node
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _all_below(node: Any, *keys: str) -> dict[str, Any]:
    found = _below(node, *keys)
    return dict(found) if isinstance(found, Mapping) else {}


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


def _pixel_constants(values: Any) -> tuple[float, ...] | None:
    """Three shares of the brightest pixel; of 255 where they are larger than 1."""
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        return None
    if not all(isinstance(v, (int, float)) and 0 <= v <= 255 for v in values):
        return None
    brightest = 255.0 if max(values) > 1 else 1.0
    return tuple(round(v / brightest, 9) for v in values)


SPELLINGS: dict[str, tuple[tuple[str, ...], Callable[[Any], Any]]] = {
    "num_heads": (HEADS, _count),
    "activation": (
        ("act_layer", "hidden_act", "mlp_act", "activation_function", *AMBIGUOUS),
        lambda v: ACTIVATIONS.get(str(v).split(".")[-1].lower().replace("_", "")),
    ),
    "norm_eps": (
        ("layer_norm_eps", "norm_eps", "layernorm_eps", "ln_eps"),
        lambda v: v if isinstance(v, float) else None,
    ),
    "mean": (("image_mean", "pixel_mean", "mean"), _pixel_constants),
    "std": (("image_std", "pixel_std", "std"), _pixel_constants),
}
