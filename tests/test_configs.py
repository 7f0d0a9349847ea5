"""Every yaml composes, and each part takes exactly the values that its yaml gives."""

import copy
import inspect
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from handmim.engine.identity import check_same_run
from handmim.experiments.quickstart import LOSSES
from handmim.experiments.table import decisive, digest
from handmim.types import Task
from handmim.utils.config import drop_unbuilt, resolved
from handmim.utils.entry import compose as checked
from handmim.utils.paths import options_of

REPO = Path(__file__).parent.parent
CONFIGS = REPO / "configs"
ENTRY = {
    "pretrain": [],
    "finetune": [],
    "eval": ["checkpoint=last.pt"],
    "synthesize": ["root=out"],
    "average": ["checkpoints=[a.pt,b.pt]", "out=c.pt"],
    "doctor": [],
    "benchmark": [],
}
# What only the user knows.
QUICK = ("experiment=quickstart", "experiment=cpu_")  # bring their own data
NEEDED = {
    "data=folder": ["data.root=crops"],
    "data=packed": ["data.root=x"],
    "data=webdataset": ["data.root=x"],
    "data=freihand": ["data.root=x"],
    "data=ho3d_v2": ["data.root=x"],
    "data=ho3d_v3": ["data.root=x"],
    "data=freihand_ho3d": ["data.freihand.root=x", "data.ho3d.root=x"],
    "data=keypoints": ["data.root=x", "data.annotations=y"],
    "data=sim_to_real": ["data.root=x", "data.annotations=y"],
    "unlabeled=folder": ["unlabeled.data.root=x"],
    "unlabeled=sim_to_real": ["data=sim_to_real", "data.root=x", "data.annotations=y"],
    "pretext=run": ["unlabeled.terms.pretext.run=x"],
    "hand=mano": ["hand.path=x"],
    "hand=smplx": ["hand.path=x"],
    "hand=manopth": ["hand.path=x"],
    "experiment=cpu_pretrain": ["data.root=crops"],
    "experiment=cpu_adapt_pretrain": ["data.root=crops"],
    "experiment=cpu_adapt_finetune": ["unlabeled.data.root=crops"],
    "experiment=small_model_pretrain": ["data.root=x"],
    "experiment=small_model_finetune": ["data.root=x"],
    "data=small_model": ["data.root=x"],
    **{f"experiment={data}": ["data.root=x"] for data in ("freihand", "ho3d")},
    "size=vits": ["hand.path=x", "init_from=x"],
    "probe=keypoints": ["probe.root=x", "probe.annotations=y"],
}
# Which entry point uses a group, and with which other overrides.
GROUPS = {
    "backbone": ("pretrain", []),
    "data": ("pretrain", []),
    "probe": ("pretrain", ["data=synthetic"]),
    "keypoint_head": ("pretrain", []),
    "method": ("pretrain", []),
    "dataset": None,
    "table": None,  # tests/experiments
    "task": None,
    "loss": None,
    "objective": None,
    "head": ("finetune", []),
    "hand": ("finetune", []),
    "runtime": ("finetune", []),
    "unlabeled": ("finetune", []),
    "pretext": ("finetune", ["unlabeled=folder"]),
    "consensus": ("finetune", ["unlabeled=folder"]),
    "scene": None,
    "experiment": None,
    "size": ("finetune", ["experiment=freihand"]),
    "hydra": None,
}
MORE_HAND_LOSSES = (
    "prior", "direct_keypoints", "joints3d_abs", "edges", "heatmaps", "silhouette",
)  # fmt: skip


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        chosen = [*ENTRY[name], *overrides]
        if name == "pretrain" and not any(o.startswith(("data=", *QUICK)) for o in chosen):
            chosen.append("data=folder")
        needed = [o for choice in chosen for o in NEEDED.get(choice, [])]
        return checked(name, [*chosen, *needed])


def targets(node, path=""):
    """Every mapping with a _target_, with its path."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        for key in node:
            if not OmegaConf.is_missing(node, key):
                yield from targets(node[key], f"{path}.{key}" if path else str(key))
    elif isinstance(node, ListConfig):
        for i, child in enumerate(node):
            yield from targets(child, f"{path}[{i}]")


def check_targets(cfg: DictConfig) -> int:
    """Each target exists and takes exactly the arguments that the yaml gives it."""
    count = 0
    for path, node in targets(cfg):
        name = node["_target_"]
        target = get_object(name)
        given = {k for k in node if not str(k).startswith("_")}
        taken = inspect.signature(target).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            assert given <= set(taken), f"{path}: {name} does not take {sorted(given - set(taken))}"
        count += 1
    return count


def experiments(entry: str) -> list[str]:
    """Those of an entry point by name; rows on real data and their twins are fine-tunings."""
    real = ("freihand", "ho3d", "cpu_direct_keypoints")
    return [
        e
        for e in options_of("experiment")
        if e.endswith(f"_{entry}") or (entry == "finetune" and e.startswith(real))
    ]


CASES = [(entry, ()) for entry in ("pretrain", "finetune", "doctor")]
CASES += [("eval", ("data=synthetic",)), ("pretrain", ("centering=sinkhorn",))]
CASES += [("synthesize", (f"format={name}",)) for name in ("folder", "freihand", "ho3d_v3")]
CASES += [
    (use[0], (f"{group}={option}", *use[1]))
    for group, use in GROUPS.items()
    if use is not None
    for option in options_of(group)
]
CASES += [
    (entry, (f"experiment={e}",)) for entry in ("pretrain", "finetune") for e in experiments(entry)
]
CASES += [
    (e, ("data=synthetic", f"scene@data.scene={s}"))
    for e in ("pretrain", "finetune")
    for s in options_of("scene")
]
CASES += [("pretrain", (f"objective=[{name}]",)) for name in options_of("objective")]
CASES += [("finetune", (f"loss=[{name}]",)) for name in MORE_HAND_LOSSES]


@pytest.mark.parametrize(
    ("entry", "overrides"),
    CASES,
    ids=lambda v: v if isinstance(v, str) else "-".join(v) or "default",
)
def test_configs_compose_and_fit_what_they_configure(entry, overrides):
    cfg = composed(entry, *overrides)
    OmegaConf.to_container(cfg, resolve=True)
    assert check_targets(cfg) > 0


def test_every_group_and_option_is_covered():
    assert {p.name for p in CONFIGS.iterdir() if p.is_dir()} == set(GROUPS)
    named = {e for entry in ("pretrain", "finetune") for e in experiments(entry)}
    bases = {"cpu_base"}  # covered by their heirs
    assert named | bases == set(options_of("experiment"))
    finetune = composed("finetune")
    others = {*finetune.task.losses, *MORE_HAND_LOSSES}
    assert set(options_of("loss")) == others


@pytest.mark.parametrize("entry", list(ENTRY))
def test_unknown_options_list_what_there_is(entry):
    others = {
        "synthesize": ("format", "ho3d_v2"),
        "doctor": ("hand", "standin"),
        "benchmark": ("hand", "standin"),
    }
    group, known = others.get(entry, ("data", "synthetic"))
    if entry != "average":  # it has no groups
        with pytest.raises(Exception, match="no_such") as caught:
            composed(entry, f"{group}=no_such")
        assert known in str(caught.value)
    with pytest.raises(ConfigCompositionException):
        composed(entry, "no_such_key=1")


@pytest.mark.parametrize("overrides", [(), ("experiment=quickstart_pretrain",)])
def test_pretraining_tasks_are_built_with_the_objectives_of_their_config(overrides):
    cfg = composed("pretrain", "backbone=vit_nano_p8", *overrides)
    drop_unbuilt(cfg.task)
    task = instantiate(cfg.task)
    assert isinstance(task, Task)
    assert list(task.objectives) == list(cfg.task.objectives)
    assert set(task.student) == {"backbone", *cfg.task.heads}
    instantiate(cfg.views)
    instantiate(cfg.optim)


DIRECT = {"task": "keypoints", "head": "direct", "loss": "[direct_keypoints]"}


@pytest.mark.parametrize("head", options_of("head"))
def test_regression_tasks_are_built(head):
    chosen = DIRECT if head == "direct" else {"head": head}
    overrides = [f"{group}={option}" for group, option in chosen.items()]
    cfg = composed(
        "finetune", "backbone=vit_nano_p8", *overrides, f"paths.data_dir={REPO / 'data'}"
    )
    task = instantiate(cfg.task)
    assert isinstance(task, Task)
    assert (task.hand is None) is (head == "direct")
    instantiate(cfg.augment)
    instantiate(cfg.optim)


def test_settings_of_objectives_that_are_not_chosen_are_dropped():
    cfg = composed(
        "pretrain", "experiment=quickstart_pretrain", "objective=[patch_distill,pixel_recon]"
    )
    drop_unbuilt(cfg.task)
    task = instantiate(cfg.task)
    assert set(task.objectives) == {"patch_distill", "pixel_recon"}
    assert cfg.task.objectives.patch_distill.weight == 0.05


def test_an_ablation_is_one_override():
    cfg = composed("pretrain", "backbone=vit_nano_p8", "objective=[pixel_recon]")
    drop_unbuilt(cfg.task)
    assert set(cfg.task.objectives) == {"pixel_recon"}
    assert not cfg.task.heads
    assert set(instantiate(cfg.task).student) == {"backbone"}


def test_rendered_sets_have_their_datasets_picture_size_in_any_scene():
    sides = {"freihand": 224, "folder": 224, "ho3d_v2": 640, "ho3d_v3": 640}
    for name, side in sides.items():
        cfg = composed("synthesize", f"format={name}")
        assert cfg.scene.image_px == side
        assert cfg.dataset.format == name
    assert composed("synthesize", "format=ho3d_v2", "scene=studio").scene.image_px == 640


@pytest.mark.parametrize(
    "size", [(), ("experiment=cpu_base",), ("experiment=quickstart_pretrain",)]
)
def test_laptop_sizes_leave_methods_what_they_are(size):
    for method in ("mae", "simmim"):
        assert composed("pretrain", f"method={method}", *size).views.colour.apply_prob == 0.0


@pytest.mark.parametrize("entry", sorted(p.stem for p in CONFIGS.glob("*.yaml")))
def test_help_names_the_groups_and_experiments_of_its_tool(entry):
    written = OmegaConf.load(CONFIGS / f"{entry}.yaml")
    groups = {
        k.split("@")[0]
        for node in written.defaults
        if node != "_self_"
        for k in node
        if "hydra" not in k
    }
    header = written.hydra.help.header
    named = header.split("Groups of this tool: ")[1]
    assert groups == set(re.split(r"[.(]", named)[0].split())
    in_help = set(re.findall(r"(?:quickstart|cpu|small_model)_\w+", header))
    in_help |= set(re.findall(r"freihand|ho3d", named))
    assert in_help - set(written.get("budgets", {})) <= set(options_of("experiment"))
    if entry == "finetune":
        assert in_help == set(experiments(entry))


def test_the_report_has_a_word_for_each_loss_of_the_default():
    assert set(LOSSES) == set(composed("pretrain", "method=handmim").task.objectives)


def test_probe_and_data_hold_back_the_same_subjects():
    overrides = ["data=keypoints", "data.root=x", "data.annotations=y", "probe=keypoints"]
    cfg = composed("pretrain", *overrides)
    for key in ("val_fraction", "split_by"):
        assert cfg.probe[key] == cfg.data[key]
        assert {cfg.probe.hook[part][key] for part in ("train_set", "test_set")} == {cfg.data[key]}


def test_rows_on_real_data_ask_for_a_backbone_and_take_none():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("finetune", overrides=["experiment=freihand", "size=vits"])
        with pytest.raises(ValueError, match=r"hand\.path.*must be given") as refused:
            resolved(cfg)
        assert all(key in str(refused.value) for key in ("init_from", "data.root", "hand.path"))
        overrides = [
            "experiment=freihand",
            "size=vits",
            "data.root=x",
            "hand.path=x",
            "init_from=null",
        ]
        assert resolved(compose("finetune", overrides=overrides))["init_from"] is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("debug", True),
        ("data.max_megapixels", 50),
        ("data.train.exclude", ["a/*"]),
        ("trainer.nonfinite", "skip"),
        ("trainer.max_unreadable", 0.5),
        ("trainer.keep_last", 2),
        ("machine.stall_timeout_s", 60),
    ],
)
def test_settings_that_decide_no_result_are_free(key, value):
    """A run goes on, and a table's finished runs count, with another value and with a config of
    before the key."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("pretrain", ["experiment=cpu_pretrain", "data.root=DIR"])
    here, digest_here = resolved(cfg), digest(decisive(cfg))
    identity = {"max_steps": 1}
    older = copy.deepcopy(here)
    *parents, name = key.split(".")
    node = older
    for parent in parents:
        node = node[parent]
    del node[name]
    check_same_run({"identity": identity, "config": older}, identity, here, CONFIGS)
    OmegaConf.update(cfg, key, value)
    check_same_run({"identity": identity, "config": resolved(cfg)}, identity, here, CONFIGS)
    assert digest(decisive(cfg)) == digest_here
