"""Every value of a composed config, before anything starts."""

from collections.abc import Callable, Iterator
from pathlib import PurePath

from omegaconf import DictConfig, OmegaConf

from handmim.utils.config import flatten
from handmim.utils.typed import check_values

# Type hints of what the entry points themselves read; `*` and a function that takes a mapping.
READ = {
    "trainer": "*handmim.engine.trainer.Trainer",
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
    "budget.fractions": "list[float]", "jobs": "int", "dry_run": "bool",
    "out": "str | None", "cell": "str | None",
    "device": "str", "rounds": "int", "num_threads": "int", "json": "str | None",
    "num_checked": "int", "report": "str | None", "freihand": "str | None",
    "ho3d_v2": "str | None", "ho3d_v3": "str | None", "crops": "str | None",
}  # fmt: skip
# Last parts of keys that hold a number, in any group, or of the schedule that takes its place.
RANGES: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    (("num_nodes", "batch_size", "eval_every", "every", "rounds", "num_checked", "num_labels",
      "num_train", "num_val", "lr_reference_batch"), "a whole number >= 1", lambda v: v >= 1),
    (("num_pictures", "num_hidden", "freeze_prototypes_steps"),
     "a whole number >= 0", lambda v: v >= 0),
    (("num_threads", "jobs"), "a whole number >= 1, 1024 at most,", lambda v: 1 <= v <= 1024),
    (("num_workers",), "a whole number >= 0, 1024 at most,", lambda v: 0 <= v <= 1024),
    (("image_px", "img_px", "patch_px", "local_px"),
     "a whole number >= 1, 8192 at most,", lambda v: 1 <= v <= 8192),
    (("lr", "weight_decay"), "a number >= 0", lambda v: v >= 0),
    (("clip_norm", "layer_decay", "teacher_temp", "class_teacher_temp", "max_megapixels"),
     "a number > 0", lambda v: v > 0),
    (("momentum", "max_unreadable", "drop_path_rate"), "a number from 0 to 1",
     lambda v: 0 <= v <= 1),
)  # fmt: skip
RULES = {name: (words, holds) for names, words, holds in RANGES for name in names}
OF_SCHEDULES = ("start", "end", "warmup_start")


def check_settings(cfg: DictConfig) -> None:
    """Check types and counts of a composed config; 1e3 becomes 1000 where that is meant, in place.

    Raises: ValueError naming each key, its value and what is required.
    """
    # The hand of an evaluation, and the precision of a table, come from elsewhere where they are
    # null.
    open_keys = ["hand.path"] * ("checkpoint" in cfg) + ["machine.precision"] * ("budget" in cfg)
    check_values(cfg, READ, open_keys)
    problems = [*_ranges(cfg), *_name(cfg)]
    if problems:
        raise ValueError("; ".join(problems))


def _ranges(cfg: DictConfig) -> Iterator[str]:
    """Numbers out of range; every count of the trainer is 1 at least."""
    for key, value in flatten(OmegaConf.to_container(cfg)).items():
        above, _, name = key.rpartition(".")
        name = above.rpartition(".")[2] if name in OF_SCHEDULES else name
        rule = RULES.get(name, RULES["batch_size"] if above == "trainer" else None)
        if rule is not None and type(value) in (int, float) and not rule[1](value):
            yield f"{key}={value}: {rule[0]} is required"


def _name(cfg: DictConfig) -> Iterator[str]:
    """A run's name is a folder below paths.run_root."""
    name = cfg.get("name")
    if not isinstance(name, str):
        return
    parts = PurePath(name).parts
    is_below = bool(parts) and not PurePath(name).is_absolute() and ".." not in parts
    is_below = is_below and not name.startswith("~")
    if not is_below or not name.isprintable() or any(len(p.encode()) > 255 for p in parts):
        yield f"name={name!r}: the name of a folder below paths.run_root is required"
