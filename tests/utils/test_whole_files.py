import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from handmim.utils.files import (
    FolderBusyError,
    atomic_path,
    lock_folder,
    locked,
    output_problem,
    remove_leftovers,
    write_atomic,
)
from handmim.utils.run import Run

HOLD = """
import sys
from pathlib import Path
from handmim.utils.files import lock_folder
lock = lock_folder(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path / "run"."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_a_second_process_is_told_who_writes_the_folder(holder, tmp_path):
    with pytest.raises(FolderBusyError, match=rf"process {holder.pid} on .* since "):
        lock_folder(tmp_path / "run")
    with pytest.raises(FileExistsError, match=rf"process {holder.pid} .*name="):
        Run.start("toy", tmp_path / "run", 0, {}, accelerator="cpu", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".lock"]


def test_a_dead_owner_holds_nothing(holder, tmp_path):
    holder.kill()
    holder.wait()
    lock = lock_folder(tmp_path / "run")
    assert f"process {os.getpid()} " in (tmp_path / "run" / ".lock").read_text()
    del lock


def test_a_lock_is_waited_for(holder, tmp_path, caplog):
    holder.stdin.close()
    with locked(tmp_path / "run"):
        assert holder.wait(timeout=10) == 0
        assert f"process {os.getpid()} " in (tmp_path / "run" / ".lock").read_text()


def test_a_lock_ends_with_its_last_holder(tmp_path):
    first = lock_folder(tmp_path)
    assert lock_folder(tmp_path) is first, "parts of one process share it"
    del first
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=60)
    assert done.stdout == b"held\n", done.stderr


def test_locks_do_without_fcntl(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert (tmp_path / ".lock").exists() is False
    lock = lock_folder(tmp_path)
    assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()
    del lock


def test_what_dead_processes_left_over_is_removed_and_nothing_else(tmp_path):
    dead, alive = dead_pid(), os.getppid()
    kept = [f".pred.json.{alive}", ".hidden", "last.pt", f"last.pt.{dead}", f".{dead}", ".a.12x"]
    gone = [f".last.pt.{dead}", f".pred.json.{dead}"]
    for name in kept + gone:
        (tmp_path / name).write_text("x")
    (tmp_path / f".folder.{dead}").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, f".folder.{dead}"])


def test_the_next_start_removes_what_a_killed_run_left_over(tmp_path):
    (tmp_path / f".last.pt.{dead_pid()}").write_text("x")
    Run.start("toy", tmp_path, 0, {}, accelerator="cpu")
    assert not list(tmp_path.glob(".last*"))


def _write_part(path: Path, content: bytes, error: Exception) -> None:
    with atomic_path(path) as partial:
        partial.write_bytes(content)
        raise error


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    with pytest.raises(KeyError):
        _write_part(path, b"half", KeyError())
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_is_named_with_path_and_bytes(number, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(1000))
    message = r"a\.bin was not written .*needs 1000 bytes or more, \d+ bytes are free.*is whole"
    with pytest.raises(OSError, match=message) as caught:
        _write_part(path, bytes(100), OSError(number, os.strerror(number)))
    assert caught.value.errno == number
    assert path.read_bytes() == bytes(1000)


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no regular file") as caught:
        write_atomic(tmp_path / "pipe", "text")
    assert caught.value.filename == str(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_nothing_is_locked_by_processes_that_a_holder_starts(tmp_path):
    """A killed run's rendering and loading processes may live on for a moment."""
    lock = lock_folder(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        fds = Path(f"/proc/{child.pid}/fd")
        links = [os.readlink(fd) for fd in fds.iterdir()] if fds.is_dir() else []
        assert str(tmp_path / ".lock") not in links
        child.stdin.close()
    del lock


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_outputs_that_cannot_be_written_are_known_before(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    assert output_problem(tmp_path / "pipe") == "no regular file, a file is required"
    assert output_problem(tmp_path) == "a folder, a file is required"
    assert output_problem(tmp_path / "file" / "a" / "b") == f"{tmp_path / 'file'} is no folder"
    assert output_problem(tmp_path / "new" / "b") is None
