"""Words of a command line or a table that stand for other settings: configs/presets.yaml."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import yaml
from hydra.core.override_parser.types import Quote, QuotedString

from handmim.utils.paths import CONFIGS

UNQUOTED = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_][\w./-]*", re.IGNORECASE)


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Settings by the word, `GROUP=NAME`, that stands for them."""
    content: dict[str, dict[str, Any]] = yaml.safe_load((CONFIGS / "presets.yaml").read_text())
    return content


def options_of(group: str) -> list[str]:
    """Names that `GROUP=NAME` takes: files of configs/GROUP and presets."""
    files = [path.stem for path in (CONFIGS / group).glob("*.yaml")]
    words = (word.partition("=") for word in presets())
    return sorted({*files, *(name for key, _, name in words if key == group and name != "null")})


def is_group(key: str) -> bool:
    """Whether a key has options in files, and not in presets alone."""
    return (CONFIGS / key).is_dir()


def may_be_null(key: str) -> bool:
    """Whether a key with presets may be null."""
    return any(settings.get(key, "") is None for settings in presets().values())


def written_out(words: Sequence[str]) -> list[str]:
    """Words with the settings of presets in front; settings that are given too are left out, and of
    several choices of a group the last one counts."""
    last = {word.partition("=")[0]: word for word in words}
    chosen = {group: presets()[word] for group, word in last.items() if word in presets()}
    given = [w for w in words if w.partition("=")[0] not in chosen and w not in presets()]
    keys = {word.partition("=")[0].lstrip("+~") for word in given}
    settings = {k: v for preset in chosen.values() for k, v in preset.items() if k not in keys}
    return [*(f"{key}={value_text(value)}" for key, value in settings.items()), *given]


def value_text(value: Any) -> str:
    """A plain value in Hydra's grammar; strings are quoted where they have to be."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{k}:{value_text(v)}' for k, v in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(value_text, value))}]"
    if not isinstance(value, str) or UNQUOTED.fullmatch(value):
        return str(value)
    return str(QuotedString(value, Quote.single).with_quotes())
