import json
import re
import resource
import shutil
from functools import partial

import pytest
import torch

from handmim.engine.checkpoint import checkpoints_of, load_checkpoint, save_checkpoint
from handmim.engine.log import RunLog
from handmim.engine.trainer import Trainer
from handmim.utils.json_files import read_rows, row_line
from handmim.utils.processes import STOPPED
from handmim.utils.run import Run
from tests.engine.toy import DATA, ToyTask, collate, fit, optimizer_config, prepare


def flip(path, index: int = 300) -> None:
    content = bytearray(path.read_bytes())
    content[index] ^= 4
    path.write_bytes(content)


def same(a, b) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_every_changed_byte_of_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    whole = path.read_bytes()
    assert torch.load(path, weights_only=True)["step"] == 1, "plain torch reads it"
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        with pytest.raises(ValueError, match=r"last\.pt is damaged"):
            load_checkpoint(path)


def test_every_cut_and_every_added_byte_of_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1, "task": {"w": torch.arange(30.0)}})
    whole = path.read_bytes()
    for content in [whole[:length] for length in range(0, len(whole), 7)] + [whole + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"last\.pt"):
            load_checkpoint(path)


def test_a_checkpoint_without_a_checksum_loads(tmp_path):
    """As older versions wrote them."""
    torch.save({"format": 2, "step": 5}, tmp_path / "old.pt")
    assert load_checkpoint(tmp_path / "old.pt")["step"] == 5


@pytest.mark.parametrize("fault", ["flipped", "missing", "empty"])
@pytest.mark.parametrize("how", [{"keep_every": 2}, {"keep_last": 2}])
def test_resume_takes_the_newest_whole_checkpoint_and_equals_an_uninterrupted_run(
    fault, how, tmp_path
):
    whole, _ = fit(tmp_path / "whole")
    fit(tmp_path / "parts", stop_after=6, save_every=2, **how)
    last = tmp_path / "parts" / "last.pt"
    if "keep_every" in how:
        flip(tmp_path / "parts" / "step_0000006.pt")
    {"flipped": lambda: flip(last), "missing": last.unlink, "empty": lambda: last.write_bytes(b"")}[
        fault
    ]()
    task, result = fit(tmp_path / "parts", resume="auto", save_every=2, **how)
    assert len(task.seen) == 6, "from step 4 on"
    assert same(task, whole)
    assert result.exit_code == 0
    log = (tmp_path / "parts" / "log.txt").read_text()
    newest = "step_0000004.pt" if "keep_every" in how else "last-1.pt"
    assert f"{newest} is the newest whole checkpoint" in log
    assert ("there is no last.pt" in log) is (fault == "missing" and "keep_last" in how)
    assert ("last.pt is damaged" in log) is (fault == "flipped")


def test_a_finished_run_gets_its_last_checkpoint_back(tmp_path):
    whole, _ = fit(tmp_path, save_every=5, keep_every=5)
    flip(tmp_path / "last.pt")
    task, result = fit(tmp_path, resume="auto", save_every=5, keep_every=5)
    assert result.step == load_checkpoint(tmp_path / "last.pt")["step"] == 10
    assert not task.seen
    assert same(task, whole)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(tmp_path):
    fit(tmp_path, stop_after=4, save_every=2, keep_last=2)
    contents = {}
    for path in checkpoints_of(tmp_path, "auto"):
        flip(path)
        contents[path] = path.read_bytes()
    assert len(contents) == 2
    with pytest.raises(ValueError, match=r"no checkpoint of .* is whole: .*last\.pt.*last-1\.pt"):
        fit(tmp_path, resume="auto", save_every=2, keep_last=2)
    assert all(path.read_bytes() == content for path, content in contents.items())


@pytest.mark.parametrize("name", ["step_0000004.pt", "best.pt", "last-1.pt", "x.safetensors"])
def test_no_start_overwrites_what_trained(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FileExistsError, match="already holds a run"):
        fit(tmp_path)


def test_a_run_whose_checkpoints_are_gone_is_not_begun_over_its_weights(tmp_path):
    (tmp_path / "backbone.safetensors").write_bytes(b"x")
    with pytest.raises(FileExistsError, match=r"checkpoints are gone.*resume=never overwrite=true"):
        fit(tmp_path, resume="auto")
    assert (tmp_path / "backbone.safetensors").read_bytes() == b"x"


@pytest.mark.parametrize("keep_last", [1, 2, 4])
def test_the_last_n_checkpoints_stay(keep_last, tmp_path):
    fit(tmp_path, save_every=2, keep_last=keep_last)
    kept = {p.name: load_checkpoint(p)["step"] for p in tmp_path.glob("*.pt")}
    names = ["last.pt", "last-1.pt", "last-2.pt", "last-3.pt"][:keep_last]
    assert kept == dict(zip(names, (10, 8, 6, 4), strict=False))


def test_fewer_checkpoints_stay_when_fewer_are_kept(tmp_path):
    fit(tmp_path, save_every=2, stop_after=8, keep_last=4)
    fit(tmp_path, resume="auto", save_every=2, keep_last=2)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["last-1.pt", "last.pt"]


class Large(ToyTask):
    """400 kB, more than every other file of its run."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("much", torch.zeros(100_000))


class FullDisk:
    """A disk that takes no file above 200 kB from one step to another."""

    every, at_start = 1, False

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __call__(self, task, info, run):
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        full = self.start <= info.step < self.stop
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000 if full else hard, hard))
        return {}


@pytest.fixture
def _any_size():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("_any_size")
def test_a_full_disk_does_not_end_a_run_whose_next_save_succeeds(tmp_path):
    whole, _ = fit(tmp_path / "whole", make=Large)
    how = {"make": Large, "save_every": 2, "hooks": [FullDisk(4, 8)]}
    task, result = fit(tmp_path / "full", **how)
    assert result.exit_code == 0
    assert same(task, whole)
    log = (tmp_path / "full" / "log.txt").read_text()
    assert log.count("training goes on, the next save may succeed") == 2
    assert load_checkpoint(tmp_path / "full" / "last.pt")["step"] == 10


@pytest.mark.usefixtures("_any_size")
def test_a_disk_that_stays_full_is_named_with_what_is_needed_and_the_old_file_stays(tmp_path):
    with pytest.raises(OSError, match=r"last\.pt was not written .*\d+ bytes are free") as caught:
        fit(tmp_path, make=Large, save_every=2, keep_last=2, hooks=[FullDisk(4, 99)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 2
    need = int(re.search(r"needs (\d+) bytes", str(caught.value))[1])
    assert need == pytest.approx((tmp_path / "last.pt").stat().st_size, rel=0.01)
    assert not list(tmp_path.glob(".last*"))


CONFIG = {
    "init_from": None,
    "optim": {"lr": {"_target_": "handmim.engine.optim.Schedule", "start": 1.0, "end": 0.0}},
}


def longer(folder, max_steps: int, config=CONFIG, **how):
    resume = how.pop("resume", "never")
    config = config | {"trainer": {"max_steps": max_steps}}
    run = Run.start("toy", folder, 0, config, accelerator="cpu", resume=resume)
    trainer = Trainer(batch_size=4, max_steps=max_steps, **how)
    return trainer.fit(run, ToyTask(), DATA, collate, prepare, optimizer_config(), resume=resume)


def test_a_longer_schedule_is_an_option_and_its_difference_is_stated(tmp_path):
    longer(tmp_path, 5)
    text = r"exactly \(trainer\.max_steps: 5 there, 9 here\).*trainer\.extend=true.*init_from="
    with pytest.raises(ValueError, match=text):
        longer(tmp_path, 9, resume="auto")
    result = longer(tmp_path, 9, resume="auto", extend=True)
    assert (result.step, result.exit_code) == (9, 0)
    extended = json.loads((tmp_path / "run.json").read_text())["extended"]
    # A cosine from 1 to 0: at step 5 it is over in 5 steps, and at cos(5/8 pi) of 9 steps.
    assert extended["schedules"] == {"optim.lr": pytest.approx([0.0, 0.30866], abs=1e-4)}
    assert (extended["step"], extended["from"], extended["to"]) == (5, 5, 9)
    assert "optim.lr 0 to 0.3087" in (tmp_path / "log.txt").read_text()


def test_a_run_is_not_extended_to_fewer_steps_than_it_has(tmp_path):
    longer(tmp_path, 5)
    with pytest.raises(ValueError, match=r"has 5 steps already, got 4 \(max_steps\)"):
        longer(tmp_path, 4, resume="auto", extend=True)


def test_the_advice_names_the_key_of_the_tool(tmp_path):
    config = {"init": None}
    longer(tmp_path, 5, config=config)
    with pytest.raises(ValueError, match=r"init=.*last\.pt\)"):
        longer(tmp_path, 5, config=config | {"x": 2}, resume="auto")


def test_exit_codes_tell_finished_runs_from_stopped_ones(tmp_path):
    _, stopped = fit(tmp_path, stop_after=3)
    assert stopped.exit_code == STOPPED
    _, finished = fit(tmp_path, resume="auto")
    assert finished.exit_code == 0


def test_rows_that_a_full_disk_does_not_take_are_written_later_and_none_is_cut(tmp_path):
    path = tmp_path / "scalars.jsonl"
    path.write_text("".join(row_line({"step": s, "a": 0.5}) for s in range(2000)))
    log = RunLog(tmp_path, first_step=2000)  # TensorBoard's file is far smaller than this one
    size = path.stat().st_size
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))
    try:
        log.scalars(2001, {"a": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.stat().st_size == size
    log.scalars(2002, {"a": 3.0})
    log.close()
    rows = read_rows(path)[2000:]
    assert rows == [{"step": 2001, "a": 2.0}, {"step": 2002, "a": 3.0}]


def test_a_refused_resume_leaves_the_records_of_the_run(tmp_path):
    fit(tmp_path, stop_after=3)
    before = {n: (tmp_path / n).read_bytes() for n in ("config.yaml", "run.json")}
    with pytest.raises(ValueError, match="seed: 0 there, 1 here"):
        fit(tmp_path, resume="auto", seed=1)
    assert before == {n: (tmp_path / n).read_bytes() for n in ("config.yaml", "run.json")}


class Once:
    """Does something after the fourth step."""

    every, at_start = 4, False

    def __init__(self, act) -> None:
        self.act = act

    def __call__(self, task, info, run):
        if info.step == 4:
            self.act(run.dir)
        return {}


@pytest.mark.parametrize(
    "act", [shutil.rmtree, lambda folder: (folder / "run.json").write_text("")]
)
def test_a_run_whose_folder_is_harmed_is_saved_nevertheless(tmp_path, act):
    how = {"nonfinite": "skip", "make": partial(ToyTask, poison_step=2)}
    _, result = fit(tmp_path / "run", hooks=[Once(act)], **how)
    assert result.exit_code == 0
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 10
    assert json.loads((tmp_path / "run" / "run.json").read_text())["left_out"]["skipped"] == [2]


def test_images_that_cannot_be_drawn_end_the_run_saved(tmp_path):
    class Odd(ToyTask):
        def images(self, batch):
            raise RuntimeError("no font")

    with pytest.raises(RuntimeError, match="no font"):
        fit(tmp_path, make=Odd, image_every=4)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4


def test_a_folder_in_the_place_of_a_checkpoint_is_refused_at_the_start(tmp_path):
    (tmp_path / "last.pt").mkdir()
    with pytest.raises(ValueError, match=r"last\.pt is a folder"):
        fit(tmp_path)


@pytest.mark.usefixtures("_any_size")
def test_a_checkpoint_that_was_fallen_back_to_survives_saves_that_fail(tmp_path):
    how = {"make": Large, "save_every": 2, "keep_last": 2}
    fit(tmp_path, stop_after=6, **how)
    flip(tmp_path / "last.pt")
    with pytest.raises(OSError, match=r"last\.pt was not written"):
        fit(tmp_path, resume="auto", hooks=[FullDisk(5, 99)], **how)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert load_checkpoint(tmp_path / "last-1.pt")["step"] == 4
