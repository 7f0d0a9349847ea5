"""Which settings decide a result: the one declaration for resumed runs, tables and means."""

import inspect
import logging
import pkgutil
from enum import Flag, auto
from functools import cache
from pathlib import Path
from typing import Any

from handmim.utils.config import differences, flatten
from handmim.utils.renames import new_key

log = logging.getLogger(__name__)


class By(Flag):
    """Who compares a setting."""

    NOBODY = 0
    RESUME = auto()  # a run that goes on from a checkpoint
    TABLE = auto()  # a table that looks for a finished run of the same settings
    MEAN = auto()  # a mean over the metrics of several checkpoints
    RUN = RESUME | TABLE
    # Files may have moved, and other images may be validated: a run compares digests of content.
    CONTENT = TABLE | MEAN
    ALL = RESUME | TABLE | MEAN


# By key, with everything below it; the longest one that fits counts.
KEYS: dict[str, By] = {
    # names, folders, processes
    "name": By.NOBODY, "debug": By.NOBODY, "resume": By.NOBODY, "overwrite": By.NOBODY,
    "centering": By.NOBODY, "centerings": By.NOBODY,  # task.centering is what they give
    "paths": By.NOBODY, "hydra": By.NOBODY, "machine": By.NOBODY, "machine.precision": By.RUN,
    # measured beside training
    "collapse": By.NOBODY, "eval_every": By.NOBODY, "probe": By.TABLE,
    # what is trained, on what, from where
    "seed": By.RUN, "train": By.RUN, "init": By.RUN, "num_labels": By.RUN,
    "label_fraction": By.RUN,
    "init_from": By.RESUME,  # a table knows it by its content
    "init_neck": By.NOBODY,  # both know the neck that it reads by its content
    "label_ids": By.TABLE,  # a file: a run compares the digest of its ids
    "views": By.RUN, "hand": By.RUN, "optim": By.RUN,
    "task": By.RUN, "task.backbone": By.ALL, "task.head": By.ALL, "task.head.hand": By.RUN,
    "augment": By.RUN, "augment.img_px": By.ALL, "augment.scale": By.ALL,
    "data": By.RUN, "data.val": By.CONTENT, "data.test": By.CONTENT,
    "data.crop_scale": By.TABLE,  # a run compares that of data.train
    "data.benchmark": By.CONTENT, "data.placement": By.CONTENT,
    # how it is trained
    "trainer.max_steps": By.RUN, "trainer.batch_size": By.RUN, "trainer.accumulate": By.RUN,
    "trainer.num_workers": By.NOBODY, "trainer.log_every": By.NOBODY,
    "trainer.save_every": By.NOBODY, "trainer.keep_every": By.NOBODY,
    "trainer.keep_last": By.NOBODY, "trainer.keep_best": By.NOBODY,
    "trainer.image_every": By.NOBODY, "trainer.check_finite_every": By.NOBODY,
    "trainer.nonfinite": By.NOBODY, "trainer.max_unreadable": By.NOBODY,
    "trainer.stop_after": By.NOBODY, "trainer.stop_patience": By.NOBODY,
    "trainer.extend": By.NOBODY,
}  # fmt: skip
# By a name anywhere in a key of a section ("" is every section): at most these compare it.
NAMES: dict[str, dict[str, By]] = {
    "": {
        "cache_dir": By.NOBODY, "num_workers": By.NOBODY,
        "hand_path": By.TABLE, "hand.path": By.TABLE,
    },
    "data": {
        "root": By.CONTENT, "annotations": By.CONTENT, "num_val": By.CONTENT,
        "val": By.CONTENT, "test": By.CONTENT, "benchmark": By.CONTENT, "placement": By.CONTENT,
        "max_megapixels": By.MEAN, "exclude": By.MEAN, "include_all": By.MEAN,
    },
    "task": {  # of networks, in training alone
        "drop_path_rate": By.RUN, "dropout": By.RUN, "detach": By.RUN, "heatmaps": By.RUN,
        "silhouette": By.RUN,
    },
}  # fmt: skip
LENGTH = ("max_steps", "trainer.max_steps")  # what trainer.extend leaves free


def declared(key: str) -> By | None:
    """Who compares a key of a composed config; None for one that is not declared."""
    parts = key.split(".")
    fitting = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    who = next((KEYS[start] for start in fitting if start in KEYS), None)
    if who is None:
        return None
    for section in ("", parts[0]):
        for name, most in NAMES.get(section, {}).items():
            if f".{name}." in f".{key}.":
                who &= most
    return who


def is_compared(key: str, by: By) -> bool:
    """Whether `by` compares a key, or some below it; one that is not declared always counts."""
    who = declared(key)
    known = [other for name, other in KEYS.items() if name.startswith(f"{key}.")]
    known += [] if who is None else [who]
    return not known or any(by in other for other in known)


def deciding(config: Any, by: By, key: str = "") -> Any:
    """The part of resolved plain containers, at `key` of the whole config, that `by` compares."""
    if isinstance(config, list):
        return [deciding(value, by, f"{key}.{i}".lstrip(".")) for i, value in enumerate(config)]
    if not isinstance(config, dict):
        return config
    keys = {name: f"{key}.{name}".lstrip(".") for name in config}
    compared = [name for name in config if is_compared(keys[name], by)]
    return {name: deciding(config[name], by, keys[name]) for name in compared}


Facts = dict[str, Any]


def check_same_run(
    saved: Facts, identity: Facts, config: Facts, path: Path, *, extend: bool = False
) -> None:
    """Refuse to resume when what decides the result has changed, the length apart for `extend`. A
    key that one config lacks is compared with the default of the argument that it gives. Raises:
    ValueError for other data, or listing every other difference."""
    there, here = dict(saved["identity"]), dict(identity)
    _check_same_data(there, here, path)
    known = flatten(config)
    for side, node in ((there, saved["config"]), (here, config)):
        for key, value in flatten(node).items():
            name = key if key in known else new_key(key) or key
            if is_compared(name, By.RESUME):
                side[name] = value
    defaults = flatten(_defaults(config))
    for key in (there.keys() ^ here.keys()) & defaults.keys():
        there.setdefault(key, defaults[key])
        here.setdefault(key, defaults[key])
    for key in [key for key in there if f"trainer.{key}" in there]:  # by its key alone
        there.pop(key), here.pop(key, None)
    free = LENGTH if extend else ()
    found = [line for line in differences(there, here) if line.split(":")[0] not in free]
    if not found:
        return
    key = next((key for key in ("init", "init_from") if key in config), "init_from")
    longer = ", go on under the schedules of the new length (trainer.extend=true)"
    raise ValueError(
        f"{path} cannot be resumed exactly ({'; '.join(found)}): restore these settings"
        f"{longer if any(line.startswith(LENGTH) for line in found) else ''}, or start another "
        f"run from its weights (name=..., {key}={path})"
    )


def _defaults(config: Any) -> dict[str, Any]:
    """Default arguments of each `_target_` of a config, at their keys."""
    if not isinstance(config, dict):
        return {}
    below = {name: found for name, node in config.items() if (found := _defaults(node))}
    return _arguments(str(config.get("_target_"))) | below


@cache
def _arguments(target: str) -> dict[str, Any]:
    try:
        parameters = inspect.signature(pkgutil.resolve_name(target)).parameters.values()
    except (ImportError, AttributeError, ValueError, TypeError):
        return {}
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in defaults.items()}


# Digests of data by what they are of; a checkpoint may lack them.
DATA = {
    "data_sha256": "training data (data.root, data.annotations)",
    "val_sha256": "validation data of best.pt (data.root, data.val, or trainer.keep_best=null)",
}


def _check_same_data(there: Facts, here: Facts, path: Path) -> None:
    """Compare digests of data and take them out of both."""
    for key, name in DATA.items():
        saved, own = there.pop(key, None), here.pop(key, None)
        if own is not None and saved is None:
            log.warning("%s does not say which %s it knew: they are not compared", path, name)
        elif own is not None and saved != own:
            raise ValueError(
                f"{path} was trained with other {name}: {saved[:12]} there, {own[:12]} here; "
                "restore them, or start another run (name=...)"
            )
