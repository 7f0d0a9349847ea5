"""Which labels a fine-tuning run began with is what it goes on with, wherever the list lies."""

import shutil

import pytest

from handmim.data.datasets import ids_text, lines_sha256, read_ids
from handmim.engine.checkpoint import load_checkpoint
from handmim.pipelines.train import finetune
from tests.tools.calls import FINETUNE, TINY, small_data
from tests.tools.test_best_checkpoint import composed


@pytest.fixture(scope="module")
def config(workdir):
    def of(*overrides: str):
        own = [w for w in (*FINETUNE, *small_data(workdir)) if not w.startswith(("hydra", "num_l"))]
        return composed("finetune", [*own, *TINY, "num_labels=null", *overrides])

    return of


def list_of(path, first: int):
    """A file of eight of the sixteen labels."""
    ids = [f"train/{i}" for i in range(first, first + 8)]
    path.write_text(ids_text(ids, "set", 16, "by hand"))
    return path


@pytest.fixture(scope="module")
def begun(tmp_path_factory, config):
    """A run on a listed half of the labels, stopped after two steps, and its list."""
    ids = list_of(tmp_path_factory.mktemp("lists") / "ids.txt", first=0)
    return finetune(config("name=listed", f"label_ids={ids}", "trainer.stop_after=2")).run_dir, ids


@pytest.fixture
def stopped(begun, request):
    """A copy of that run."""
    run, ids = begun
    name = request.node.name
    shutil.copytree(run, run.parent / name)
    return run.parent / name, ids


def test_a_checkpoint_knows_its_labels_as_their_list_does(stopped):
    run, _ = stopped
    saved = load_checkpoint(run / "last.pt")
    assert saved["meta"]["labels_sha256"] == lines_sha256(read_ids(run / "labels.txt"))


def test_other_labels_of_the_same_name_and_number_are_refused_and_not_listed(stopped, config):
    run, ids = stopped
    before = (run / "labels.txt").read_text()
    kept = ids.read_text()
    list_of(ids, first=4)
    try:
        with pytest.raises(ValueError, match=r"labels_sha256: \w+ there, \w+ here"):
            finetune(config(f"name={run.name}", f"label_ids={ids}", "resume=auto"))
    finally:
        ids.write_text(kept)
    assert (run / "labels.txt").read_text() == before


def test_a_refused_resume_on_other_numbers_of_labels_leaves_the_list(stopped, config):
    run, _ = stopped
    before = (run / "labels.txt").read_text()
    for overrides in (["num_labels=4"], []):
        with pytest.raises(ValueError, match="cannot be resumed exactly"):
            finetune(config(f"name={run.name}", *overrides, "resume=auto"))
        assert (run / "labels.txt").read_text() == before


def test_a_list_may_move(stopped, config, tmp_path):
    run, ids = stopped
    moved = shutil.copy(ids, tmp_path / "elsewhere.txt")
    made = finetune(config(f"name={run.name}", f"label_ids={moved}", "resume=auto"))
    assert made.result.step == 4


def test_a_run_that_goes_on_in_another_folder_lists_its_labels_there(stopped, config):
    run, ids = stopped
    overrides = [f"name={run.name}_there", f"label_ids={ids}", f"resume={run / 'last.pt'}"]
    made = finetune(config(*overrides))
    assert read_ids(made.run_dir / "labels.txt") == read_ids(run / "labels.txt")
