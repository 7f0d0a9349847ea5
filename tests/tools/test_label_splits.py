"""The published subsets of FreiHAND's labels are what training draws of the whole set."""

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from handmim.data import freihand
from handmim.data.datasets import label_ids, lines_sha256, read_ids, subset_of_ids
from handmim.data.freihand import FreiHand
from handmim.pipelines.train import choose_labels
from label_splits import NUM_UNIQUE, PERCENTS, SEEDS, file_name, write_splits

REPO = Path(__file__).parents[2]
SPLITS = REPO / "data" / "splits"
EVERY = [(percent, seed) for percent in PERCENTS for seed in SEEDS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """FreiHAND's training part at its true size, labels left out."""
    root = tmp_path_factory.mktemp("freihand")
    (root / "training" / "rgb").mkdir(parents=True)
    for image_id in (0, 1, 2, 3, NUM_UNIQUE * 3, NUM_UNIQUE * 3 + 1, NUM_UNIQUE * 3 + 2):
        (root / "training" / "rgb" / f"{image_id:08d}.jpg").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(freihand.FreiHand, "_read_labels", lambda *_: {"K": range(NUM_UNIQUE)})
        patch.setattr(freihand.FreiHand, "_check_labels", lambda *_: None)
        return FreiHand(root, "standin", versions=("gs", "auto"))


def test_files_are_what_a_run_draws_and_writes(whole, tmp_path):
    for percent, seed in EVERY:
        chosen = choose_labels(whole, fraction=percent / 100, seed=seed)
        path = SPLITS / file_name(percent, seed)
        assert read_ids(path) == label_ids(chosen.samples)
        if (percent, seed) in ((1, 0), (25, 2)):
            assert subset_of_ids(whole, read_ids(path)).indices == chosen.samples.indices
            chosen.write(tmp_path)
            assert (tmp_path / "labels.txt").read_text() == path.read_text()


@pytest.mark.parametrize("percent", PERCENTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_files_follow_the_rule_of_their_readme(percent, seed):
    order = np.random.default_rng([0, 32560]).permutation(32560)
    train = np.sort(order[651:])
    draw = np.random.default_rng([seed, 31909]).permutation(31909)
    ids = np.sort(train[draw[: round(percent / 100 * 31909)]])
    assert read_ids(SPLITS / file_name(percent, seed)) == [str(i) for i in ids]


def test_smaller_shares_are_part_of_larger_ones_and_seeds_differ():
    for seed in SEEDS:
        parts = [set(read_ids(SPLITS / file_name(percent, seed))) for percent in PERCENTS]
        assert [len(part) for part in parts] == [319, 1595, 3191, 7977]
        assert all(small < large for small, large in pairwise(parts))
    one, two = (set(read_ids(SPLITS / file_name(25, seed))) for seed in (0, 1))
    # by chance a quarter of a quarter
    assert len(one & two) == pytest.approx(7977 / 4, rel=0.05)


def test_the_readme_has_every_file_with_its_digest_and_writing_again_changes_nothing(tmp_path):
    text = (SPLITS / "README.md").read_text()
    listed = re.findall(r"\| `(.*\.txt)` \| (\d+) \| `([0-9a-f]{64})` \|", text)
    assert [name for name, *_ in listed] == [file_name(*which) for which in EVERY]
    for name, num, digest in listed:
        ids = read_ids(SPLITS / name)
        assert (len(ids), lines_sha256(ids)) == (int(num), digest)
    shutil.copy(SPLITS / "README.md", tmp_path)
    written = write_splits(tmp_path)
    assert {p.name for p in written} == {p.name for p in SPLITS.iterdir()}
    for path in written:
        assert path.read_bytes() == (SPLITS / path.name).read_bytes()
    (tmp_path / "README.md").write_text("something else")
    with pytest.raises(ValueError, match="has no table of splits"):
        write_splits(tmp_path)


def test_git_takes_the_files(tmp_path):
    """In a repository of its own, so that it can be asked of an unpacked archive too."""
    shutil.copy(REPO / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)

    def is_ignored(name: str) -> bool:
        command = ["git", "check-ignore", "-q", name]
        return subprocess.run(command, cwd=tmp_path, check=False).returncode == 0

    assert not is_ignored(f"data/splits/{file_name(1, 0)}")
    assert is_ignored("data/freihand/training_xyz.json")
