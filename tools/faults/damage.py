"""Damaged copies of every kind of file the project writes, read as a user would."""

import contextlib
import hashlib
import logging
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faults.results import Result
from faults.workplace import BACKBONE, LAST, Workplace
from handmim.data.datasets import read_ids
from handmim.data.label_files import cached_number_lists
from handmim.data.packed import PackedCrops
from handmim.data.synthetic import SyntheticHands
from handmim.engine.checkpoint import load_checkpoint
from handmim.evaluation.submission import read_submission, write_submission
from handmim.experiments.runs import STAGE, StageStore, read_record
from handmim.models.weights.files import read_weights
from handmim.utils.json_files import read_rows

SCENE = {"image_px": 32, "background": "studio", "objects": 0.0, "occluders": 0.0}
MAX_BLOCK = 4096  # bytes that are zeroed


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        path: a whole file.
        read: reads a file of this kind, the copy at the given path, and returns its content.
        folder: what is copied around the file; None is the file alone.
    """

    path: Path
    read: Callable[[Path], Any]
    folder: Path | None = None


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """A copy with one changed bit, or with a block of zeros, or cut off."""
    offset = rng.randrange(len(whole))
    kind = rng.random()
    if kind < 0.6:
        return whole[:offset] + bytes([whole[offset] ^ 1 << rng.randrange(8)]) + whole[offset + 1 :]
    if kind < 0.8:
        return whole[:offset]
    size = min(rng.randint(1, MAX_BLOCK), len(whole) - offset)
    return whole[:offset] + bytes(size) + whole[offset + size :]


def damage(work: Workplace, num: int, seed: int, report: Callable[[Result], None]) -> None:
    """Damage every kind of file `num` times and read it."""
    rng = random.Random(seed)
    for kind, target in targets(work).items():
        scratch = work.folder / "damaged"
        with _read_copy(target, scratch) as copy:
            expected = content_sha256(target.read(copy))
            raw = copy.read_bytes()
        for i in range(num):
            with _read_copy(target, scratch) as copy:
                changed = damaged(raw, rng)
                copy.write_bytes(changed)
                began = time.monotonic()
                outcome, is_fine, detail = outcome_of(target, copy, expected)
                if changed == raw:
                    outcome, is_fine = "unchanged", outcome == "equal content"
            seconds = time.monotonic() - began
            report(Result(kind, outcome, is_fine, seconds, f"damage {i}: {detail}"))


def targets(work: Workplace) -> dict[str, Target]:
    """Every kind of file, made by the project's own writers and entry points."""
    for kind, name in (("pretraining", "written"), ("fine-tuning", "tuned")):
        if not (work.run_dir(name) / LAST).is_file():
            work.make([*work.command(kind, name), "trainer.keep_every=1"], name)
    if not (work.folder / "packed.crops").is_file():
        work.make(work.command("packing", "packed"), "packed")
    trained, tuned = work.run_dir("written"), work.run_dir("tuned")
    found = {
        LAST: Target(trained / LAST, load_checkpoint),
        "best.pt": Target(tuned / "best.pt", load_checkpoint),
        "step_*.pt": Target(min(trained.glob("step_*.pt")), load_checkpoint),
        BACKBONE: Target(trained / BACKBONE, lambda path: read_weights(str(path)).tensors),
        "scalars.jsonl": Target(trained / "scalars.jsonl", read_rows),
        "labels.txt": Target(tuned / "labels.txt", read_ids),
        "packed crops": Target(work.folder / "packed.crops", _crops),
    }
    made = work.folder / "made"
    stage = StageStore(made / "stages").get("probe", {"seed": 0}, lambda folder: {"error_mm": 3.25})
    found[STAGE] = Target(made / "stages" / stage["folder"] / STAGE, read_record)
    rng = np.random.default_rng(0)
    points = [rng.normal(0, 0.1, (2, n, 3)) for n in (21, 778)]
    submission = write_submission(made / "submission", *points)
    found["pred.zip"] = Target(submission, read_submission)
    return found | _label_cache(made) | _render_cache(made)


def _label_cache(folder: Path) -> dict[str, Target]:
    source = folder / "labels.json"
    source.write_text(str(np.arange(600.0).reshape(100, 2, 3).tolist()))
    cache = folder / "cache"

    def read(path: Path) -> Any:
        return cached_number_lists(source, (2, 3), path.parents[1])[:]

    array = cached_number_lists(source, (2, 3), cache).path
    return {"labels/*.npy": Target(array, read, cache)}


def _render_cache(folder: Path) -> dict[str, Target]:
    cache = folder / "rendered"

    def hands(where: Path) -> SyntheticHands:
        return SyntheticHands("standin", "train", 3, where, SCENE, num_workers=0)

    def read(path: Path) -> Any:
        data = hands(path.parents[2])
        return [vars(data[i]) for i in range(len(data))]

    files = sorted(path for path in hands(cache).folder.iterdir() if path.is_file())
    return {f"rendered {path.name}": Target(path, read, cache) for path in files}


def _crops(path: Path) -> list[Any]:
    data = PackedCrops(path)
    return [data[i].image for i in range(len(data))]


@contextlib.contextmanager
def _read_copy(target: Target, scratch: Path) -> Iterator[Path]:
    """The path of the file in a fresh copy, which goes afterwards."""
    base = target.folder or target.path
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    if target.folder is None:
        copy = Path(shutil.copyfile(base, scratch / base.name))
    else:
        copy = Path(shutil.copytree(base, scratch / base.name)) / target.path.relative_to(base)
    try:
        yield copy
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def outcome_of(target: Target, copy: Path, expected: str) -> tuple[str, bool, str]:
    """What happened, whether that is right, and what was logged."""
    with _warnings() as messages:
        try:
            same = content_sha256(target.read(copy)) == expected
        except (ValueError, OSError) as error:
            text = str(error)
            is_named = copy.name in text or str(copy.parent) in text
            return ("refused" if is_named else "refused without a name"), is_named, text
        except Exception as error:  # noqa: BLE001  what a user would see as a traceback
            return f"{type(error).__name__}", False, str(error)[:200]
    if same:
        return "equal content", True, ""
    if any(copy.name in text for text in messages):
        return "dropped by name", True, messages[0]
    return "another content in silence", False, ""


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Messages at level WARNING of the package, which are not shown meanwhile."""
    messages: list[str] = []
    logger = logging.getLogger("handmim")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def content_sha256(content: Any) -> str:
    """Digest of containers of tensors, arrays and plain values; equal contents have one."""
    digest = hashlib.sha256()
    _update(digest, content)
    return digest.hexdigest()


def _update(digest: Any, content: Any) -> None:
    if torch.is_tensor(content):
        digest.update(f"{tuple(content.shape)}{content.dtype}".encode())
        content = content.detach().contiguous().view(-1).view(torch.uint8).numpy()
    if isinstance(content, np.ndarray):
        digest.update(f"{content.shape}{content.dtype}".encode() + content.tobytes())
    elif isinstance(content, dict):
        for key in sorted(content, key=repr):
            digest.update(repr(key).encode())
            _update(digest, content[key])
    elif isinstance(content, (list, tuple)):
        digest.update(f"{len(content)}".encode())
        for item in content:
            _update(digest, item)
    else:
        digest.update(repr(content).encode())
