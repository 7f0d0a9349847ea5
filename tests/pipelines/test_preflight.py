import re

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig

from handmim.engine.checkpoint import save_checkpoint
from handmim.pipelines.preflight import path_problems
from handmim.pipelines.train import finetune, pretrain, try_parts
from handmim.utils.config import add_key, sentence
from handmim.utils.entry import compose
from tests.conftest import REPO

CPU = ["machine.accelerator=cpu"]
QUICK = ["experiment=quickstart_pretrain", *CPU]


@pytest.fixture(autouse=True)
def configs():
    with initialize_config_dir(str(REPO / "configs"), version_base="1.3"):
        yield


def said(error: ValueError, cfg: DictConfig) -> str:
    """The message with which an entry point ends."""
    add_key(error, cfg)
    return sentence(error)


def problems(entry: str, *overrides: str) -> list[str]:
    return path_problems(compose(entry, list(overrides)))


def test_every_path_that_is_not_there_is_named_once(tmp_path):
    overrides = ["data=keypoints", f"data.root={tmp_path}", f"data.annotations={tmp_path}"]
    overrides += ["init_from=nope.pt", "hand.path=nope.pkl", "label_ids=nope.txt", "resume=nope"]
    assert sorted(problems("finetune", *overrides)) == [
        f"data.annotations={tmp_path}: a folder, a file is required",
        "hand.path=nope.pkl: does not exist",
        "init_from=nope.pt: does not exist",
        "label_ids=nope.txt: does not exist, a file is required",
        "resume=nope: does not exist, never, auto or a checkpoint file is required",
    ]


def test_what_is_written_needs_a_folder(tmp_path):
    (tmp_path / "file").touch()
    overrides = ["data=synthetic", f"paths.run_root={tmp_path}/file/runs"]
    overrides.append(f"data.cache_dir={tmp_path}/file")
    assert problems("pretrain", *overrides) == [
        f"data.cache_dir={tmp_path}/file: {tmp_path}/file is no folder",
        f"paths.run_root={tmp_path}/file/runs: {tmp_path}/file is no folder",
    ]


def test_packed_crops_are_a_file_and_a_tree_is_a_folder(tmp_path):
    (tmp_path / "file").touch()
    packed = problems("pretrain", "data=packed", f"data.root={tmp_path}")
    folder = problems("pretrain", f"data.root={tmp_path / 'file'}")
    assert packed == [f"data.root={tmp_path}: a folder, a file is required"]
    assert folder == [f"data.root={tmp_path / 'file'}: no folder, a folder is required"]


def test_a_link_to_nothing_is_called_so(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (found,) = problems("pretrain", f"data.root={tmp_path / 'gone'}")
    assert found == f"data.root={tmp_path / 'gone'}: a link to nothing"


def test_what_is_not_looked_at_need_not_be_there():
    assert problems("pretrain", "data.root=nope", "train=false", "init=timm:x") == []
    assert problems("pretrain", "data=synthetic", "data.scene.photos_dir=nope") == []
    assert (
        problems("eval", "checkpoint=a.pt", "data=synthetic", "data.train.cache_dir=/dev/null/x")
        == []
    )


@pytest.mark.parametrize(
    ("run", "entry", "word", "message"),
    [
        (pretrain, "pretrain", "trainer.accumulate=3", r"trainer\.accumulate"),
        (pretrain, "pretrain", "optim.lr.shape=wavy", "wavy"),
        (pretrain, "pretrain", "init=nope.pt", r"init=nope\.pt: does not exist"),
        (finetune, "finetune", "label_fraction=1.5", r"label_fraction must be in \(0, 1\]"),
        (finetune, "finetune", "label_fraction=0.5", "give one of num_labels"),
    ],
)
def test_cheap_refusals_come_before_anything_is_rendered(tmp_path, run, entry, word, message):
    where = [f"paths.run_root={tmp_path}/runs", f"paths.data_dir={tmp_path}/data"]
    overrides = [f"experiment=quickstart_{entry}", "machine.accelerator=cpu", *where, word]
    labels = ["num_labels=null"] if word == "label_fraction=1.5" else []
    cfg = compose(entry, [*overrides, *labels])
    with pytest.raises(ValueError, match=r"\S") as refused:
        run(cfg)
    assert re.search(message, said(refused.value, cfg))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.nonfinite=ignore", r"trainer\.nonfinite"),
        ("trainer.max_unreadable=2", r"trainer\.max_unreadable"),
        ("init={folder}/cut.pt", r"cut\.pt is cut off or damaged"),
        ("resume=yes", "resume=yes: does not exist, never, auto or a checkpoint file is required"),
    ],
)
def test_what_is_refused_at_once_leaves_no_run_folder(tmp_path, word, message):
    save_checkpoint(tmp_path / "cut.pt", {"task": {}})
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-40])
    where = [f"paths.run_root={tmp_path}/runs", f"paths.data_dir={tmp_path}/data"]
    overrides = ["experiment=quickstart_pretrain", "machine.accelerator=cpu", *where]
    overrides.append(word.format(folder=tmp_path))
    cfg = hydra_compose("pretrain", overrides)
    with pytest.raises(ValueError, match=r"\S") as refused:
        pretrain(compose("pretrain", overrides))
    assert re.search(message, said(refused.value, cfg))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("entry", "overrides", "message"),
    [
        ("pretrain", ["probe=synthetic", "probe.features=[cls,foo]"], r"features .* \['foo'\]"),
        ("pretrain", ["collapse.num=1"], "collapse detection compares images"),
        ("pretrain", ["data.scene.focal=[0.9,0.1]"], r"focal=\[0\.9, 0\.1\]"),
        ("pretrain", ["optim.make.betas=0.9"], r"the optimizer cannot be made: .*optim\.make"),
        ("finetune", ["num_labels=500", "data.num_train=300"], "num_labels=500: more than the 300"),
        ("finetune", ["trainer.keep_best=mm"], "validation metric such as"),
        (
            "finetune",
            ["trainer.keep_best=val/no"],
            r"no val/no, .* val/mpjpe_mm.*trainer\.keep_best",
        ),
        ("pretrain", ["probe=synthetic", "probe.neighbours=[0]"], r"neighbours .* got \[0\]"),
        ("pretrain", [*QUICK, "task.mask_mode=foo"], r"got 'foo'"),
        ("pretrain", [*QUICK, "task.backbone.size.num_heads=5"], "num_heads"),
        ("finetune", ["experiment=quickstart_finetune", *CPU, "task.average=2"], r"task\.average"),
    ],
)
def test_what_a_part_refuses_is_said_before_anything_is_rendered(
    tmp_path, monkeypatch, entry, overrides, message
):
    monkeypatch.chdir(tmp_path)
    cfg = compose(entry, ["data=synthetic", *overrides])
    with pytest.raises(ValueError, match=r"\S") as refused:
        (pretrain if entry == "pretrain" else finetune)(cfg)
    assert re.search(message, said(refused.value, cfg))
    assert list(tmp_path.iterdir()) == []


def test_a_refused_scene_names_its_key():
    cfg = compose("pretrain", ["data=synthetic", "data.scene.focal=[0.9,0.1]"])
    with pytest.raises(ValueError, match="focal") as refused:
        try_parts(cfg)
    assert "data.scene.focal" in sentence(refused.value)


def test_initial_weights_do_not_replace_trained_ones(tmp_path):
    folder = tmp_path / "runs" / "trained"
    folder.mkdir(parents=True)
    save_checkpoint(folder / "last.pt", {"task": {}, "step": 3})
    overrides = ["experiment=quickstart_pretrain", "machine.accelerator=cpu", "name=trained"]
    overrides += ["train=false", "resume=auto", f"paths.run_root={tmp_path}/runs"]
    with pytest.raises(FileExistsError, match=r"train=false .*\(name=\.\.\.\)"):
        pretrain(compose("pretrain", overrides))
    assert [path.name for path in folder.iterdir() if path.suffix == ".safetensors"] == []


def test_images_without_labels_are_refused_for_fine_tuning_before_the_start(tmp_path):
    cfg = compose("finetune", ["data=folder", f"data.root={tmp_path}", *CPU])
    cfg.paths.run_root = str(tmp_path / "runs")
    with pytest.raises(ValueError, match="fine-tuning requires labelled images"):
        finetune(cfg)
    assert not (tmp_path / "runs").exists()
