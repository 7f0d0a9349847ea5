"""Files and folders that are whole or absent, and folders that one process writes at a time."""

import codecs
import contextlib
import errno
import logging
import lzma
import os
import pickle
import platform
import re
import shutil
import struct
import time
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from tokenize import TokenError
from typing import IO

from handmim.utils.findings import warn_once

log = logging.getLogger(__name__)

LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
# What readers of pickles, arrays, archives and images raise for damaged content.
DAMAGE = (
    ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, EOFError,
    ImportError, RuntimeError, SyntaxError, TokenError, struct.error, zlib.error, lzma.LZMAError,
    zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip
PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)")
POLL_S = 0.2
KIND_BYTES = 1024  # by which the kind of a file is found
ARCHIVE = ": unpack it and give the file inside"
KINDS = (  # offset, bytes there, text that follows the file's name
    (0, b"\x1f\x8b", f"is a gzip archive{ARCHIVE}"),
    (0, b"BZh", f"is a bzip2 archive{ARCHIVE}"),
    (0, b"\xfd7zXZ", f"is an xz archive{ARCHIVE}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"is a 7-Zip archive{ARCHIVE}"),
    (0, b"Rar!", f"is a RAR archive{ARCHIVE}"),
    (0, b"\x28\xb5\x2f\xfd", f"is a Zstandard archive{ARCHIVE}"),
    (0, b"PK\x03\x04", f"is a zip archive{ARCHIVE}"),
    (257, b"ustar", f"is a tar archive{ARCHIVE}"),
    (0, b"\x89HDF", "is an HDF5 file (Keras)"),
    (0, b"\x93NUMPY", "is a NumPy array"),
    (0, b"GGUF", "is a GGUF file"),
    (0, b"%PDF", "is a PDF document"),
    (0, b"\x89PNG", "is a PNG image"),
    (0, b"\xff\xd8\xff", "is a JPEG image"),
    (0, b"GIF8", "is a GIF image"),
    (4, b"ftyp", "is a HEIC image or a video: convert it to JPEG or PNG"),
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the file: run `git lfs pull`"),
)
HTML = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<meta")
# Locks that this process holds, by folder: a part of the same process may ask again.
_held: "weakref.WeakValueDictionary[Path, FolderLock]" = weakref.WeakValueDictionary()


class FolderBusyError(FileExistsError):
    """Another process writes the folder."""


class FullDiskError(OSError):
    """A disk has no room for a file of `needed` bytes."""

    def __init__(self, cause: OSError, needed: int) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.needed = needed


class UnreadableSample(ValueError):  # noqa: N818  named for what it stands for, as its kinds
    """A sample that cannot be read or used, by its file and the reason; training may take
    another."""

    def __init__(self, path: str | Path, reason: str = "") -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.reason else self.path


@contextlib.contextmanager
def atomic_path(
    path: str | Path, *, sync: bool = True, beside: Path | None = None
) -> Iterator[Path]:
    """A path to write to, which replaces `path` once it is whole; after an error the previous file
    is there unchanged.

    `sync` waits until the disk has the content; `beside` is another folder of the same disk for the
    partial file. Raises: OSError for a full disk, with the bytes that are needed and free, and for
    a `path` that is no regular file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no regular file: another path is required", str(path))
    partial = (beside or path.parent) / f".{path.name}.{os.getpid()}"
    try:
        yield partial
        if sync:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno in FULL:
            raise _full(path, partial, error) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def output_problem(path: Path, *, is_folder: bool = False) -> str | None:
    """Why a file or folder cannot be written, in words; None where it can. Nothing is made."""
    if not is_folder and path.exists() and not path.is_file():
        return f"{'a folder' if path.is_dir() else 'no regular file'}, a file is required"
    near = (path if is_folder else path.parent).absolute()
    while not os.path.lexists(near) and near != near.parent:
        near = near.parent
    if not near.is_dir():
        return f"{near} is no folder"
    return None if os.access(near, os.W_OK | os.X_OK) else f"{near} is not writable"


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that readers see the old or the new one, never a part."""
    with atomic_path(path) as partial:
        partial.write_text(text)


def reserve(path: Path) -> None:
    """Claim the disk for a file that is filled through a memory map, where a full disk would kill
    the process; OSError as of `atomic_path`."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        if error.errno in FULL:
            raise _full(path, path, error) from error


def _full(path: Path, partial: Path, error: OSError) -> OSError:
    sizes = [p.stat().st_size for p in (path, partial) if p.is_file()]
    need = max([*sizes, getattr(error, "needed", 0)])
    free = shutil.disk_usage(path.parent).free
    if partial != path and partial.is_file():  # it is removed
        free += getattr(partial.stat(), "st_blocks", 0) * 512
    kept = "the previous file is whole" if path.is_file() else "no previous file was there"
    missing = f"it needs {need} bytes or more, {free} bytes are free on its disk"
    if free > need and hasattr(os, "statvfs"):
        disk = os.statvfs(path.parent)
        if disk.f_files and not disk.f_favail:  # some file systems do not count
            missing = "its disk takes no more files"
    return OSError(error.errno, f"{path} was not written ({error.strerror}): {missing}; {kept}")


def remove_leftovers(folder: Path, *, name: str | None = None, is_locked: bool = False) -> None:
    """Delete partial files in a folder, of all files or of one, whose processes have ended; where
    it is locked, also those of a process of the same number."""
    for path in folder.iterdir() if folder.is_dir() else ():
        found = PARTIAL.fullmatch(path.name)
        if found and name in (None, found["name"]) and path.is_file() and not path.is_symlink():
            pid = int(found["pid"])
            if pid != os.getpid() and (is_locked or not _is_alive(pid)):
                log.info("removed %s, left over by process %d", path, pid)
                path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    if os.name == "posix":  # signal 0 would interrupt the process elsewhere
        with contextlib.suppress(PermissionError):
            try:
                os.kill(pid, 0)
            except (ProcessLookupError, OverflowError):
                return False
    return True


class FolderLock:
    """One process at a time in a folder, see `lock_folder`; ends with the object or its process."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = (folder / name).open("a+")
        if not _try_lock(self.file):
            self.file.seek(0)
            owner = self.file.read().strip() or "another process"
            self.file.close()
            raise FolderBusyError(f"{folder} is being written by {owner}")
        self.file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        owner = f"process {os.getpid()} on {platform.node()} since {since}"
        with contextlib.suppress(OSError):  # a full disk is named by what is written next
            os.write(self.file.fileno(), owner.encode())

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


def lock_folder(folder: Path, name: str = LOCK) -> FolderLock:
    """Lock a folder, made where it is missing, for this process as long as the object lives; parts
    of a process share it. What dead processes left over is removed.

    Raises: FolderBusyError naming the owner.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = folder.resolve() / name
    lock = _held.get(key)
    if lock is None:
        _held[key] = lock = FolderLock(folder, name)
        if name == LOCK:
            remove_leftovers(folder, is_locked=True)
    return lock


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK) -> Iterator[None]:
    """As `lock_folder`, but wait for the owner."""
    lock = None
    while lock is None:
        try:
            lock = lock_folder(folder, name)
        except FolderBusyError as error:
            warn_once(f"{error}: waiting")
            time.sleep(POLL_S)
    try:
        yield
    finally:
        del lock  # a traceback would keep it


def _try_lock(file: IO[str]) -> bool:
    """Lock an open file without waiting; a platform or file system without locks counts as free."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("%s cannot be locked: %s", file.name, error)
    except ImportError:
        with contextlib.suppress(ImportError):
            import msvcrt

            file.seek(1 << 30)  # behind the content, which others may read
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            except OSError:
                return False
            finally:
                file.seek(0)
    return True


def replaced_folder(folder: Path) -> Path:
    """Where an overwritten run waits until the new one has its first result."""
    return folder.with_name(f".{folder.name}.replaced")


def put_aside(folder: Path) -> None:
    """Move the content of a folder to `replaced_folder`, but for its lock, which is held."""
    aside = replaced_folder(folder)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for path in list(folder.iterdir()):
        if path.name != LOCK:
            path.rename(aside / path.name)


def matching(head: bytes, table: Iterable[tuple[int, bytes, str]]) -> str | None:
    """The text of the first row (offset, bytes there, text) that fits the begin of a file."""
    return next((text for at, mark, text in table if head[at : at + len(mark)] == mark), None)


def foreign_kind(head: bytes) -> str | None:
    """What begins with these bytes, as text that follows the file's name ("is an HTML page ...");
    None for no known kind."""
    head = head[:KIND_BYTES]
    if not head:
        return "is empty (0 bytes): its download or copy did not start"
    if not head.strip(b"\0"):
        return "begins with zeros alone: its download or copy is not complete"
    if kind := matching(head, KINDS):
        return kind
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = start.lower()
    if lower.startswith(HTML) or (lower.startswith((b"<?xml", b"<!--")) and b"<html" in lower):
        return "is an HTML page, probably the login or error page of its download"
    if lower.startswith(b"<?xml"):
        return "is an XML document, probably the error answer of its download"
    if start[:1] in (b"{", b"["):
        return "is JSON text"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head, len(head) < KIND_BYTES)
    except UnicodeDecodeError:
        return None
    if all(c.isprintable() or c.isspace() for c in text):
        return f"is a text file that begins {text[:40].strip()!r}"
    return None
