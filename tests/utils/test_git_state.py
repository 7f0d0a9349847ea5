import subprocess

import pytest

from handmim.utils.paths import git_state


@pytest.fixture
def checkout(tmp_path):
    """A repository with one commit and a package in it."""

    def git(*arguments):
        who = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        subprocess.run(
            ["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True
        )

    git("init")
    (tmp_path / "handmim").mkdir()
    (tmp_path / "handmim" / "code.py").write_text("a = 1\n")
    (tmp_path / ".gitignore").write_text("handmim/cache\n")
    git("add", ".")
    git("commit", "-m", "one")
    return tmp_path


def is_dirty(checkout):
    return git_state(checkout / "handmim")["git_dirty"]


def test_a_commit_without_changes_is_clean(checkout):
    state = git_state(checkout / "handmim")
    assert len(state["git_sha"]) == 40
    assert state["git_dirty"] is False
    (checkout / "handmim" / "code.py").write_text("a = 2\n")
    assert is_dirty(checkout)


@pytest.mark.parametrize("file", ["handmim/new.py", "configs/table/mine.yaml", "tools/a b.py"])
def test_untracked_code_and_configs_are_local_changes(checkout, file):
    (checkout / file).parent.mkdir(parents=True, exist_ok=True)
    (checkout / file).write_text("new\n")
    assert is_dirty(checkout)


@pytest.mark.parametrize("file", ["runs/a/log.txt", "notes.md", "handmim/cache"])
def test_other_untracked_files_and_ignored_ones_are_not(checkout, file):
    (checkout / file).parent.mkdir(parents=True, exist_ok=True)
    (checkout / file).write_text("new\n")
    assert is_dirty(checkout) is False


def test_outside_git_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {"git_sha": None, "git_dirty": None}
