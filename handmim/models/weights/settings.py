"""Settings of a ViT that stand beside its weights, in the spellings of public projects."""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from handmim.models.weights.files import NAMESPACES, WeightFile
from handmim.utils.json_files import parse_json

# In lower case.
HEADS = ("num_heads", "num_attention_heads", "n_heads", "nheads", "n_head", "nhead", "num_head",
         "heads", "attention_heads", "encoder_num_heads", "vit_num_heads")  # fmt: skip
WIDTH = ("hidden_size", "embed_dim", "embed_dims", "hidden_dim", "d_model", "dim", "width")
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
ACTIVATIONS = {"gelu": "gelu", "quickgelu": "quick_gelu", "relu": "relu", "silu": "silu",
               "swish": "silu"}  # fmt: skip
ACTIVATIONS |= dict.fromkeys(("gelunew", "gelupytorchtanh", "gelufast", "gelutanh"), "gelu_tanh")
# Settings below these names are of other parts than the ViT.
OTHER_PARTS = re.compile(
    r"decod|head|neck|predict|project|(^|_)text|language|audio|optim|sched|loss|data"
)
MAX_LEVELS, MAX_HOLDERS = 6, 1000
CONFIG = "config.json beside it: "


class Holder(NamedTuple):
    """Nested settings."""

    level: int
    where: str  # beginning of the names of its settings
    content: Mapping[str, Any]


def holders_of(node: Any, where: str = "", level: int = 0) -> Iterator[Holder]:
    """Nested settings of a ViT, outermost first."""
    node = vars(node) if isinstance(node, NAMESPACES) else parsed(node)
    if not isinstance(node, Mapping) or level == MAX_LEVELS:
        return
    yield Holder(level, where, node)
    for key, value in node.items():
        if not OTHER_PARTS.search(str(key).lower()):
            yield from holders_of(value, f"{where}{key}.", level + 1)


def stated_settings(file: WeightFile, width: int) -> tuple[dict[str, Any], list[str]]:
    """Settings that a file or the config.json beside it states in a common spelling.

    Args:
        file: whole content.
        width: of its ViT; settings of another width are of another network.
    Returns: values by field of `Stated`, and their sources.
    Raises: ValueError for two values of one setting.
    """
    found, by = dict[str, Any](), list[str]()
    groups = [
        list(islice(holders_of(content, where), MAX_HOLDERS))
        for content, where in ((file.state, ""), (file.meta, "metadata."), (file.config, CONFIG))
    ]
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
        widths = {whole_number(holder[keys[k]]) for k in WIDTH if k in keys} - {None}
        is_network = any(whole_number(holder[keys[k]]) for k in HEADS if k in keys)
        for key in (keys[n] for n in names if n in keys and not (widths and width not in widths)):
            value = read(holder[key])
            # These names alone may be of anything.
            if value is not None and (is_network or str(key).lower() not in ("activation", "act")):
                levels.setdefault(level, {}).setdefault(value, f"{where}{key}")
    return levels[min(levels)] if levels else {}


def stated_parts(file: WeightFile) -> list[str]:
    """Parts that a file or the config.json beside it states and a plain ViT lacks, each with the
    setting."""
    found = dict[str, str]()
    for content, name in ((file.state, ""), (file.config, CONFIG)):
        for _, where, holder in islice(holders_of(content, name), MAX_HOLDERS):
            for key, value in holder.items():
                if not isinstance(value, (bool, int, float, str)):
                    continue
                text = str(value).lower()
                is_set = text not in ("", "0", "0.0", "false", "none", "null")
                for setting, values, part in STATED_PARTS:
                    states = re.search(values, text) if values else is_set
                    if states and re.fullmatch(setting, str(key).lower()):
                        found.setdefault(part, f"{where}{key}={text[:40]} states {part}")
    return list(found.values())


def value_below(node: Any, *keys: str) -> Any:
    """Value below nested keys; None where one is missing."""
    for key in keys:
        node = vars(node) if isinstance(node, NAMESPACES) else node
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def parsed(value: Any) -> Any:
    """JSON text as its content; anything else as it is."""
    if not isinstance(value, str) or not value.startswith("{"):
        return value
    try:
        return parse_json(value.encode(), "settings")
    except ValueError:
        return {}


def whole_number(value: Any) -> int | None:
    """A count, or text that spells one."""
    return int(value) if isinstance(value, (int, str)) and str(value).isdecimal() else None


def _float(value: Any) -> float | None:
    return value if isinstance(value, float) else None


def _activation(value: Any) -> str | None:
    """Under timm's name."""
    name = value.split(".")[-1].lower().replace("_", "") if isinstance(value, str) else ""
    return ACTIVATIONS.get(name)


def pixel_constants(values: Any) -> tuple[float, ...] | None:
    """Three shares of the brightest pixel; of 255 where they are larger than 1."""
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        return None
    if not all(isinstance(v, (int, float)) and 0 <= v <= 255 for v in values):
        return None
    brightest = 255.0 if max(values) > 1 else 1.0
    return tuple(round(v / brightest, 9) for v in values)


SPELLINGS: dict[str, tuple[tuple[str, ...], Callable[[Any], Any]]] = {
    "num_heads": (HEADS, whole_number),
    "activation": (
        ("act_layer", "hidden_act", "mlp_act", "activation_function", "activation", "act"),
        _activation,
    ),
    "norm_eps": (("layer_norm_eps", "norm_eps", "layernorm_eps", "ln_eps"), _float),
    "mean": (("image_mean", "pixel_mean", "mean"), pixel_constants),
    "std": (("image_std", "pixel_std", "std"), pixel_constants),
}
