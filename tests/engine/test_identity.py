"""Which settings decide a result."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from handmim.engine.identity import KEYS, NAMES, By, check_same_run, deciding, declared, is_compared
from handmim.utils.config import flatten

CONFIGS = Path(__file__).parents[2] / "configs"
WITH_FILES = ["data.root=x", "data.annotations=x"]
COMPOSED = {
    "pretrain": [[], ["data=keypoints", "probe=keypoints", *WITH_FILES]],
    "finetune": [[], ["data=freihand"], ["data=keypoints", *WITH_FILES], ["head=decoder"]],
}


@pytest.fixture(scope="module")
def keys() -> set[str]:
    """Keys of leaves of composed configs."""
    found: set[str] = set()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for entry, choices in COMPOSED.items():
            for overrides in choices:
                found |= set(flatten(OmegaConf.to_container(compose(entry, overrides))))
    return found


def test_every_key_is_declared(keys):
    missing = sorted(key for key in keys if declared(key) is None)
    assert not missing, f"declare in engine/identity.py who compares {missing}"


def test_every_declaration_is_of_a_key(keys):
    parts = {".".join(k.split(".")[: end + 1]) for k in keys for end in range(k.count(".") + 1)}
    assert set(KEYS) - parts <= {"hydra"}
    names = [name for section in NAMES.values() for name in section]
    assert not [name for name in names if not any(f".{name}." in f".{key}." for key in keys)]


def test_who_compares_what():
    config = {
        "name": "a",
        "machine": {"precision": "32-true", "devices": 1},
        "task": {"backbone": {"dropout": 0.1, "depth": 2}, "losses": {"a": 1}},
        "data": {"root": "here", "train": {"cache_dir": "c", "exclude": []}, "val": {"num": 4}},
        "trainer": {"max_steps": 9, "save_every": 2},
    }
    shared = {"machine": {"precision": "32-true"}, "task": config["task"]}
    shared["trainer"] = {"max_steps": 9}
    assert deciding(config, By.RESUME) == shared | {"data": {"train": {}}}
    data = {"root": "here", "train": {}, "val": {"num": 4}}
    assert deciding(config, By.TABLE) == shared | {"data": data}
    assert deciding(config, By.MEAN) == {
        "task": {"backbone": {"depth": 2}},
        "data": {"val": {"num": 4}},
    }
    assert declared("machine.precision") == By.RUN


def test_a_key_of_a_new_or_an_older_version_counts_as_the_default_of_its_argument(tmp_path):
    """Both sides may lack it: a checkpoint from before it, and a config from after it."""
    schedule = {"_target_": "handmim.engine.optim.Schedule", "start": 1.0}
    here = {"optim": {"lr": schedule}}
    there = {"optim": {"lr": schedule | {"warmup_start": 0.0}}}
    for one, other in ((here, there), (there, here)):
        check_same_run({"identity": {}, "config": one}, {}, other, tmp_path)
    other = {"optim": {"lr": schedule | {"warmup_start": 0.5}}}
    with pytest.raises(ValueError, match=r"optim\.lr\.warmup_start: 0\.0 there, 0\.5 here"):
        check_same_run({"identity": {}, "config": here}, {}, other, tmp_path)


def test_a_list_that_one_side_lacks_counts_as_the_default_of_its_argument(tmp_path):
    masks = {"_target_": "handmim.data.views.MaskSampler"}
    given = {"views": masks | {"ratio": [0.1, 0.5]}}
    short, other = {"views": masks}, {"views": masks | {"ratio": [0.2, 0.5]}}
    for there, here in ((short, given), (given, short)):
        check_same_run({"identity": {}, "config": there}, {}, here, tmp_path)
    with pytest.raises(ValueError, match=r"views\.ratio\.0: 0\.1 there, 0\.2 here"):
        check_same_run({"identity": {}, "config": short}, {}, other, tmp_path)


def test_keys_of_older_checkpoints_are_compared_by_their_names_of_today(tmp_path):
    there, here = ({"views": {name: 0.3}} for name in ("hidden_scale", "shared_scale"))
    check_same_run({"identity": {}, "config": there}, {}, here, tmp_path)


def test_what_is_validated_is_free_in_every_part_of_a_mixture():
    for key in (
        "data.photos.val.in_memory",
        "data.ho3d.test.crop_scale",
        "data.freihand.benchmark",
    ):
        assert not is_compared(key, By.RESUME)
        assert is_compared(key, By.TABLE)
    assert is_compared("data.photos.train.crop_scale", By.RESUME)


def test_another_centering_is_refused(tmp_path):
    target = "handmim.models.teacher."
    saved = {"task": {"centering": {"_target_": f"{target}Centering", "over": "masked"}}}
    for node in (
        {"_target_": f"{target}Sinkhorn"},
        {"_target_": f"{target}Centering", "over": "all"},
    ):
        config = {"task": {"centering": node}, "centering": "ema"}
        with pytest.raises(ValueError, match=r"task\.centering\.\w+"):
            check_same_run({"identity": {}, "config": saved}, {}, config, tmp_path)
    check_same_run({"identity": {}, "config": saved}, {}, saved, tmp_path)
