"""Files and folders that are whole or absent."""

import os
from pathlib import Path


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that readers see the old or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def replaced_folder(folder: Path) -> Path:
    """Where an overwritten run waits until the new one has its first result."""
    return folder.with_name(f".{folder.name}.replaced")
