"""Every value of a composed config, before anything starts."""

from collections.abc import Iterator
from pathlib import PurePath

from omegaconf import DictConfig, OmegaConf

from handmim.utils.typed import check_values

# Type hints of what the entry points themselves read; `*` and a function that takes a mapping.
READ = {
    "trainer": "*handmim.engine.loop.Trainer",
    "machine": "*handmim.utils.run.Run.start",
    "debug": "bool", "seed": "int", "name": "str", "resume": "str", "overwrite": "bool",
    "paths.data_dir": "str", "paths.run_root": "str",
    "train": "bool", "init": "str | None",
    "init_from": "str | None", "num_labels": "int | None", "label_fraction": "float | None",
    "label_ids": "str | None", "eval_every": "int | None",
    "checkpoint": "str | list[str] | None", "predictions": "str | None", "predictor": "str",
    "batch_size": "int", "num_workers": "int | None", "num_pictures": "int",
    "inits": "str | list[str]", "fractions": "list[float]", "seeds": "int | list[int]",
    "rows": "str | list[str] | None", "pretrain": "list[str]", "finetune": "list[str]",
    "jobs": "int", "dry_run": "bool", "out": "str | None", "cell": "str | None",
    "device": "str", "rounds": "int", "num_threads": "int", "json": "str | None",
    "num_checked": "int", "report": "str | None", "freihand": "str | None",
    "ho3d_v2": "str | None", "ho3d_v3": "str | None", "crops": "str | None",
}  # fmt: skip
COUNTS = (
    "machine.num_threads", "machine.num_nodes", "batch_size", "eval_every", "jobs", "rounds",
    "num_threads", "num_checked", "num_labels",
)  # fmt: skip
COUNTS_FROM_0 = ("num_workers", "num_pictures", "trainer.num_workers")
FROM_0 = ("num_workers", "max_unreadable")  # keys of the trainer that may be 0


def check_settings(cfg: DictConfig) -> None:
    """Check types and counts of a composed config; 1e3 becomes 1000 where that is meant, in place.

    Raises: ValueError naming each key, its value and what is required.
    """
    # The hand of an evaluation, and the precision of a table, come from elsewhere where they are
    # null.
    open_keys = ["hand.path"] * ("checkpoint" in cfg) + ["machine.precision"] * ("budget" in cfg)
    check_values(cfg, READ, open_keys)
    problems = [*_counts(cfg), *_name(cfg)]
    if problems:
        raise ValueError("; ".join(problems))


def _counts(cfg: DictConfig) -> Iterator[str]:
    of_trainer = [f"trainer.{key}" for key in cfg.get("trainer", {}) if key not in FROM_0]
    for keys, least in (((*COUNTS, *of_trainer), 1), (COUNTS_FROM_0, 0)):
        for key in keys:
            value = OmegaConf.select(cfg, key)
            if type(value) is int and value < least:
                yield f"{key}={value}: a whole number >= {least} is required"


def _name(cfg: DictConfig) -> Iterator[str]:
    """A run's name is a folder below paths.run_root."""
    name = cfg.get("name")
    if not isinstance(name, str):
        return
    parts = PurePath(name).parts
    is_below = bool(parts) and not PurePath(name).is_absolute() and ".." not in parts
    if not is_below or not name.isprintable() or any(len(p.encode()) > 255 for p in parts):
        yield f"name={name!r}: the name of a folder below paths.run_root is required"
