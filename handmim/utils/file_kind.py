"""Kinds of files by their first bytes: names what was saved in place of tensors."""

import codecs
import zipfile
from pathlib import Path

HEAD_BYTES = 1024
SAFETENSORS_HEADER_BYTES = 100_000_000  # the format's own bound
ARCHIVE = ": unpack it and give the file inside"
MAGIC = {
    b"\x1f\x8b": f"is a gzip archive{ARCHIVE}",
    b"BZh": f"is a bzip2 archive{ARCHIVE}",
    b"\xfd7zXZ": f"is an xz archive{ARCHIVE}",
    b"7z\xbc\xaf\x27\x1c": f"is a 7-Zip archive{ARCHIVE}",
    b"Rar!": f"is a RAR archive{ARCHIVE}",
    b"\x28\xb5\x2f\xfd": f"is a Zstandard archive{ARCHIVE}",
    b"\x89HDF": "is an HDF5 file (Keras), PyTorch weights are required",
    b"\x93NUMPY": "is a NumPy array, PyTorch weights are required",
    b"GGUF": "is a GGUF file, PyTorch weights are required",
    b"%PDF": "is a PDF document",
    b"\x89PNG": "is a PNG image",
    b"\xff\xd8\xff": "is a JPEG image",
    b"GIF8": "is a GIF image",
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself: run `git lfs pull`",
}
HTML = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<meta")


def foreign_kind(path: Path) -> str | None:
    """Say what a file is that holds neither a PyTorch pickle nor safetensors.

    Args:
        path: an existing file.
    Returns: words that follow the file's name ("is an HTML page ..."); None for a file that may
        hold tensors, and for bytes of no known kind.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        return "is empty (0 bytes): its download or copy did not start"
    if not head.strip(b"\0"):
        return "begins with zeros alone: its download or copy is not complete"
    if is_safetensors(path):
        return None
    if head.startswith(b"PK"):
        return _zip_kind(path)
    for magic, words in MAGIC.items():
        if head.startswith(magic):
            return words
    if head[257:262] == b"ustar":
        return f"is a tar archive{ARCHIVE}"
    is_broken = path.suffix == ".safetensors" and not head.startswith(b"\x80")
    return _text_kind(head) or (
        "is damaged: it has no header of safetensors" if is_broken else None
    )


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON header, then the header."""
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    return len(head) == 9 and head[8:] == b"{" and length <= SAFETENSORS_HEADER_BYTES


def _zip_kind(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "is cut off or damaged: a zip archive without its end, as half a download leaves it"
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        return "is a TorchScript program, a state dict is required"
    if not any(name.endswith("data.pkl") for name in names):
        return f"is a zip archive of other files ({', '.join(names[:2])}){ARCHIVE}"
    if sum(entry.file_size for entry in entries) > 2 * path.stat().st_size + 1_000_000:
        return "is a compressed archive, which PyTorch does not write: refused for its size"
    return None


def _text_kind(head: bytes) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = start.lower()
    if lower.startswith(HTML) or (lower.startswith((b"<?xml", b"<!--")) and b"<html" in lower):
        return "is an HTML page, probably the login or error page of its download"
    if lower.startswith(b"<?xml"):
        return "is an XML document, probably the error answer of its download"
    if start[:1] in (b"{", b"["):
        return "is JSON text, not a file of tensors"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head, len(head) < HEAD_BYTES)
    except UnicodeDecodeError:
        return None
    if all(c.isprintable() or c.isspace() for c in text):
        return f"is a text file that begins {text[:40].strip()!r}"
    return None
