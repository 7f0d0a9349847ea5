import pytest
import torch

from handmim.engine.checkpoint import (
    check_config,
    load_checkpoint,
    save_checkpoint,
)
from handmim.engine.identity import check_same_run
from handmim.utils.files import replaced_folder
from handmim.utils.run import Run
from tests.engine.toy import fit


def test_resume_refuses_other_settings(tmp_path):
    fit(tmp_path, stop_after=3)
    with pytest.raises(ValueError, match="batch_size: 4 there, 8 here"):
        fit(tmp_path, resume="auto", batch_size=8)


@pytest.mark.parametrize(
    ("key", "free"),
    [
        ("optim.lr.start", False),
        ("task.losses.a.weight", False),
        ("data.train.split", False),
        ("data.image_px", False),
        ("hand.left_shapedirs", False),
        ("machine.precision", False),
        ("seed", False),
        ("trainer.max_steps", False),
        ("machine.devices", True),
        ("trainer.save_every", True),
        ("trainer.keep_best", True),
        ("trainer.stop_patience", True),
        ("task.average.decay", False),
        ("task.trained_blocks", False),
        ("name", True),
        ("label_ids", True),
        ("num_labels", False),
        ("paths.run_root", True),
        ("probe.every", True),
        ("data.num_workers", True),
        ("data.val.num", True),
        # moved files: counts and hashes are compared instead
        ("data.train.root", True),
        ("data.train.hand_path", True),
        ("hand.path", True),
        ("task.head.hand.path", True),
        ("data.test.split", True),
    ],
)
def test_every_setting_that_decides_the_result_is_compared(key, free, tmp_path):
    def nested(value):
        for part in reversed(key.split(".")):
            value = {part: value}
        return value

    saved = {"identity": {}, "config": nested(1)}
    if free:
        check_same_run(saved, {}, nested(2), tmp_path)
        return
    with pytest.raises(ValueError, match=f"{key}: 1 there, 2 here"):
        check_same_run(saved, {}, nested(2), tmp_path)
    with pytest.raises(ValueError, match=f"{key}: 1 there, None here"):
        check_same_run(saved, {}, {}, tmp_path)


def test_content_named_by_a_hash_must_be_the_same(tmp_path):
    fit(tmp_path, stop_after=3, meta={"hand": "a", "hand_sha256": "1" * 64})
    fit(tmp_path, resume="auto", stop_after=1, meta={"hand": "b", "hand_sha256": "1" * 64})
    with pytest.raises(ValueError, match=r"hand_sha256: 1+ there, 2+ here"):
        fit(tmp_path, resume="auto", meta={"hand": "a", "hand_sha256": "2" * 64})


@pytest.mark.parametrize("key", ["data_sha256", "val_sha256"])
def test_a_run_does_not_go_on_over_other_data(tmp_path, key):
    fit(tmp_path, stop_after=3)  # a checkpoint that names no data
    fit(tmp_path, resume="auto", stop_after=1, meta={key: "1" * 64})
    assert "does not say which" in (tmp_path / "log.txt").read_text()
    fit(tmp_path, resume="auto", stop_after=1, meta={key: "1" * 64})
    with pytest.raises(ValueError, match=r"other .* data .*1{12} there, 2{12} here"):
        fit(tmp_path, resume="auto", meta={key: "2" * 64})


def test_only_our_own_parts_are_built_from_a_checkpoint():
    for good in (
        "handmim.tasks.mesh.HandRegressionTask",
        "handmim.hand.model.HandModel.from_file",
        "handmim.hand.adapters.SmplxHand.from_file",
        "handmim.engine.optim.Schedule",
        "torch.optim.AdamW",
    ):
        check_config({"task": {"part": {"_target_": good}}})
    for bad in (
        "os.system",
        "handmim.utils.run.subprocess.getoutput",
        "handmim.utils.run.shutil.rmtree",
        "handmim.data.crops.os.system",
        "handmim.data.crops.Path",
        "handmim.data.loader.np.load",
        "handmim.images.decode.read_rgb",
        "handmim.engine.checkpoint.save_checkpoint",
        "handmim.data.packing.pack_crops",
        "handmim.models.nothing.Here",
        "torch.optim.torch.load",
    ):
        with pytest.raises(ValueError, match="refused"):
            check_config({"task": {"losses": [{"_target_": bad}]}})
    with pytest.raises(ValueError, match="refused"):
        check_config({"task": "${oc.create:'{_target_: os.system}'}"})


def test_folder_that_holds_a_run_is_protected(tmp_path):
    fit(tmp_path)
    with pytest.raises(FileExistsError, match=r"resume=auto.*name=.*overwrite=true"):
        fit(tmp_path)
    other = tmp_path.parent / "other"
    fit(other)
    with pytest.raises(FileExistsError):  # a checkpoint from elsewhere does not open this folder
        fit(tmp_path, resume=str(other / "last.pt"))
    Run.start("toy", tmp_path, 0, {}, accelerator="cpu", overwrite=True)
    assert not (tmp_path / "last.pt").exists()
    aside = replaced_folder(tmp_path)
    assert (aside / "last.pt").exists(), "kept until the new run has a result"
    fit(tmp_path, stop_after=2)
    assert not aside.exists()


def test_checkpoint_is_whole_or_absent(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(AttributeError):
        save_checkpoint(path, {"step": 2, "bad": lambda: None})  # cannot be pickled: fails half-way
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)
    torch.save({"model": 1}, path)
    with pytest.raises(ValueError, match="not a handmim checkpoint"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
