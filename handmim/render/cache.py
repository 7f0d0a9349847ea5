"""Rendered splits on disk: written by several processes, each running this module on a job file,
and read as memory maps."""

import contextlib
import json
import logging
import math
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.hand.io import load_hand_arrays, resolve_hand_path
from handmim.render.scene import POSE_BLOCK, RENDERER_VERSION, SceneRenderer, SceneSettings
from handmim.render.workers import JOB, cores, run_workers
from handmim.utils.arrays import open_array
from handmim.utils.checksums import with_crc, without_crc
from handmim.utils.files import locked, reserve
from handmim.utils.json_files import read_json
from handmim.utils.processes import end_with_parent
from handmim.utils.progress import Progress

log = logging.getLogger(__name__)

FIELDS: dict[str, tuple[tuple[int, ...], str]] = {
    "K_px": ((3, 3), "float32"),
    "verts_cam_m": ((778, 3), "float32"),
    "joints_cam_m": ((21, 3), "float32"),
    "rotmats": ((16, 3, 3), "float32"),
    "betas": ((10,), "float32"),
    "transl_m": ((3,), "float32"),
}
CRC = "crc32"  # array and entry of meta.json: checksums of samples, and of headers
META = "meta.json"
TAKEN, DONE = ".taken-", ".done-"


def open_split(folder: Path, image_px: int, num: int) -> dict[str, NDArray[Any]]:
    """Memory maps of a rendered split by field, each [at least num, ...].

    Headers and meta.json are compared with their checksums here, samples by `read_sample`; a cache
    of an older version has none.

    Raises: ValueError naming the array that is missing, empty, cut off or of another shape, or the
        file that is not what was written.
    """
    arrays = _arrays_of(image_px)
    try:
        headers = _written_headers(folder)
        if headers is None:
            del arrays[CRC]
        maps = {n: open_array(folder / f"{n}.npy", *arrays[n]) for n in arrays}
        short = {name: len(array) for name, array in maps.items() if len(array) < num}
        if short:
            raise ValueError(f"{folder} has fewer than {num} entries: {short}")
        for name, crc in (headers or {}).items():
            if _header_crc(folder / f"{name}.npy") != crc:
                raise ValueError(f"{folder / name}.npy is damaged: its header or size has changed")
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{error}; delete {folder} and it is rendered anew") from error
    return dict(maps)


def _arrays_of(image_px: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape of one entry and type of every array of a split."""
    return {"image": ((image_px, image_px, 3), "uint8"), **FIELDS, CRC: ((), "uint32")}


def _written_headers(folder: Path) -> dict[str, int] | None:
    """Checksums of the arrays' headers in meta.json; None of an older version."""
    meta = read_json(folder / META, max_mb=10)
    if not isinstance(meta, dict) or CRC not in meta:
        if (folder / f"{CRC}.npy").exists():
            raise ValueError(f"{folder / META} is damaged: its checksum is missing")
        return None
    headers: dict[str, int] = without_crc(meta, str(folder / META))["headers"]
    return headers


def _header_crc(path: Path) -> int:
    """CRC-32 of the header and of the size of a .npy file of version 1."""
    with path.open("rb") as file:
        start = file.read(10)  # magic, version, length of what follows
        header = start + file.read(int.from_bytes(start[8:], "little"))
    return zlib.crc32(header + str(path.stat().st_size).encode())


def _sample_crc(fields: Mapping[str, NDArray[Any]]) -> int:
    crc = 0
    for name in ("image", *FIELDS):
        crc = zlib.crc32(fields[name], crc)  # type: ignore[arg-type]
    return crc


def read_sample(
    maps: Mapping[str, NDArray[Any]], index: int, folder: Path
) -> dict[str, NDArray[Any]]:
    """Copies of one sample's arrays by field, from the maps of `open_split`.

    Raises: ValueError naming the folder, for a sample that is not what was rendered.
    """
    fields = {name: np.array(values[index]) for name, values in maps.items()}
    written = fields.pop(CRC, None)
    if written is not None and int(written) != _sample_crc(fields):
        raise ValueError(
            f"{folder} is damaged: sample {index} is not what was rendered; delete {folder} and it "
            "is rendered anew"
        )
    return fields


def _take(folder: Path, start: int) -> bool:
    """Whether this process renders a block; no other one will then."""
    try:
        (folder / f"{TAKEN}{start}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def render_blocks(job: Mapping[str, Any], folder: Path) -> None:
    """Render blocks of images that no other process has taken into the arrays of `folder`, until
    none is left; `job` has hand_path, scene, seed, split and num."""
    cv2.setNumThreads(1)
    scene = SceneSettings(**job["scene"])
    renderer = SceneRenderer(load_hand_arrays(job["hand_path"]), scene, job["seed"], job["split"])
    names = _arrays_of(scene.image_px)
    maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in names}
    plain = {name: np.asarray(array) for name, array in maps.items()}  # quicker to write to
    for start in range(0, job["num"], POSE_BLOCK):
        if not _take(folder, start):
            continue
        for i in range(start, min(start + POSE_BLOCK, job["num"])):
            hand = renderer.render(i)
            for name in ("image", *FIELDS):
                plain[name][i] = getattr(hand, name)
            plain[CRC][i] = _sample_crc({name: array[i] for name, array in plain.items()})
        (folder / f"{DONE}{start}").touch()
    for array in maps.values():
        array.flush()


def _run_workers(job: Mapping[str, Any], folder: Path, num_workers: int) -> None:
    def finished() -> int:
        return min(POSE_BLOCK * len(list(folder.glob(f"{DONE}*"))), job["num"])

    with Progress(job["num"], log=log) as progress:
        run_workers(__name__, job, folder, num_workers, lambda: progress.update(finished))


def check_space(folder: Path, arrays: Iterable[tuple[tuple[int, ...], str]], num: int) -> None:
    """Refuse arrays that the disk cannot hold: memory maps of a full disk end a process without a
    message.

    Args:
        folder: of the arrays.
        arrays: shape and type of one sample in each.
        num: samples.
    Raises: OSError with the bytes that are needed and free.
    """
    need = num * sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OSError(
            f"{num} images need {need / 1e6:.0f} MB in {folder.parent}, {free / 1e6:.0f} MB are "
            "free (cache_dir, num_train)"
        )


def render_split(
    target: Path,
    hand_path: Path,
    settings: SceneSettings,
    seed: int,
    split: str,
    num: int,
    num_workers: int | None,
) -> None:
    """Render images 0 .. num - 1 of a split into `target`, which appears whole or not at all.

    Args:
        target: folder of the finished arrays.
        hand_path: hand model file.
        settings: the scene.
        seed, split, num: which images.
        num_workers: processes; None takes every core, 0 renders in this one.
    Raises: PermissionError when the folder cannot be made; OSError for a full disk; RuntimeError
        when a worker fails.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(target.parent, f".{target.name}.lock"))
            if (target / META).is_file():
                return  # of the process that was waited for
            for leftover in target.parent.glob(f".{target.name}.*"):
                if leftover.is_dir():
                    log.info("removed %s, left over by a process that ended", leftover)
                    shutil.rmtree(leftover, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            partial.chmod(target.parent.stat().st_mode)
        except OSError as error:
            raise PermissionError(f"cannot write the cache {target}: {error}") from error
        try:
            job = {"hand_path": str(resolve_hand_path(hand_path).resolve()), "seed": seed}
            job |= {"scene": settings.plain(), "split": split, "num": num}
            _render(partial, target, settings, job, num_workers)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _render(
    partial: Path,
    target: Path,
    settings: SceneSettings,
    job: Mapping[str, Any],
    num_workers: int | None,
) -> None:
    began, (seed, split, num) = time.perf_counter(), (job["seed"], job["split"], job["num"])
    log.info("rendering %d %s images of %d px into %s", num, split, settings.image_px, target)
    arrays, files = load_hand_arrays(job["hand_path"]), _arrays_of(settings.image_px)
    num_workers = min(cores() if num_workers is None else num_workers, -(-num // POSE_BLOCK))
    check_space(partial, files.values(), num)
    for name, (shape, dtype) in files.items():
        path = partial / f"{name}.npy"
        np.lib.format.open_memmap(path, "w+", np.dtype(dtype), (num, *shape)).flush()
        reserve(path)
    if num_workers:
        # One image here compiles the kernels before several processes would at the same time,
        # and refuses bad settings; rooms take long to paint and cannot fail.
        rooms = settings.background == "room"
        trial = replace(settings, background="studio") if rooms else settings
        SceneRenderer(arrays, trial, seed, split).render(0)
        _run_workers(job, partial, num_workers)
    else:
        render_blocks(job, partial)
    meta = {"hand": arrays.name, "hand_sha256": arrays.sha256, "split": split, "num": num}
    meta |= {"seed": seed, "renderer": RENDERER_VERSION, "scene": settings.plain()}
    meta["headers"] = {name: _header_crc(partial / f"{name}.npy") for name in files}
    (partial / META).write_text(json.dumps(with_crc(meta), indent=2) + "\n")
    for leftover in [partial / JOB, *partial.glob(".*")]:
        leftover.unlink(missing_ok=True)
    partial.rename(target)
    seconds = time.perf_counter() - began
    log.info("rendered %d images in %.0f s (%.0f images/s)", num, seconds, num / seconds)


if __name__ == "__main__":
    end_with_parent()
    job_path = Path(sys.argv[1])
    render_blocks(json.loads(job_path.read_text()), job_path.parent)
