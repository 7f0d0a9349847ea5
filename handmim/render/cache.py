"""Rendered splits on disk: written by several processes, each running this module on a job file,
and read as memory maps."""

import contextlib
import errno
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmim.hand.io import load_hand_arrays, resolve_hand_path
from handmim.render.scene import POSE_BLOCK, RENDERER_VERSION, SceneRenderer, SceneSettings
from handmim.utils.checked_files import open_array, with_crc, without_crc
from handmim.utils.console import Progress
from handmim.utils.files import DAMAGE, locked, reserve
from handmim.utils.json_files import read_json
from handmim.utils.processes import THREADS, end_with_parent, start_child

log = logging.getLogger(__name__)

FIELDS: dict[str, tuple[tuple[int, ...], str]] = {
    "K_px": ((3, 3), "float32"),
    "verts_cam_m": ((778, 3), "float32"),
    "joints_cam_m": ((21, 3), "float32"),
    "rotmats": ((16, 3, 3), "float32"),
    "betas": ((10,), "float32"),
    "transl_m": ((3,), "float32"),
}
CRC = "crc32"  # checksums: array of the samples', entry of meta.json
META, JOB = "meta.json", "job.json"
TAKEN, DONE = ".taken-", ".done-"
MIN_FREE = 100_000  # bytes: a disk with less is full
POLL_S = 0.1


def open_split(folder: Path, image_px: int, num: int) -> dict[str, NDArray[Any]]:
    """Memory maps [at least num, ...] of a rendered split by field, compared with meta.json, which
    has a checksum but for caches of an older version.

    Raises: ValueError naming the array or file that is missing or not what was written.
    """
    arrays, maps = _arrays_of(image_px), dict[str, NDArray[Any]]()
    try:
        meta = read_json(folder / META, max_mb=10)
        if CRC in meta:
            without_crc(meta, str(folder / META))
        elif (folder / f"{CRC}.npy").exists():
            raise ValueError(f"{folder / META} is damaged: its checksum is missing")
        else:
            del arrays[CRC]
        for name, array in arrays.items():
            path = folder / f"{name}.npy"
            maps[name] = found = open_array(path, *array)
            is_whole = path.stat().st_size == found.offset + found.nbytes
            if not (is_whole and num <= len(found) == meta["num"]):
                text = f"has fewer than {num} entries, or its header or size has changed"
                raise ValueError(f"{path} {text}")
    except (*DAMAGE, FileNotFoundError) as error:
        raise ValueError(f"{error}; delete {folder} and it is rendered anew") from error
    return maps


def _arrays_of(image_px: int) -> dict[str, tuple[tuple[int, ...], str]]:
    return {"image": ((image_px, image_px, 3), "uint8"), **FIELDS, CRC: ((), "uint32")}


def _sample_crc(fields: Mapping[str, NDArray[Any]]) -> int:
    crc = 0
    for name in ("image", *FIELDS):
        crc = zlib.crc32(fields[name], crc)  # type: ignore[arg-type]
    return crc


def read_sample(
    maps: Mapping[str, NDArray[Any]], index: int, folder: Path
) -> dict[str, NDArray[Any]]:
    """Copies of one sample's arrays by field. Raises: ValueError for another than was rendered."""
    fields = {name: np.array(values[index]) for name, values in maps.items()}
    written = fields.pop(CRC, None)
    if written is not None and int(written) != _sample_crc(fields):
        text = f"sample {index} is not what was rendered; delete {folder} and it is rendered anew"
        raise ValueError(f"{folder} is damaged: {text}")
    return fields


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_workers(
    module: str, job: Mapping[str, Any], folder: Path, num_workers: int, report: Callable[[], None]
) -> None:
    """Run `python -m MODULE FOLDER/job.json WORKER` for WORKER 0 .. num_workers - 1, until all are
    done or one has failed. None outlives the call, nor this process: MODULE calls
    `end_with_parent`.

    Raises: RuntimeError with the message of a worker that failed; OSError for a full disk.
    """
    (folder / JOB).write_text(json.dumps(job))
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    env = os.environ | dict.fromkeys(THREADS, "1") | {"PYTHONPATH": path}
    with contextlib.ExitStack() as stack:
        workers = []
        for i in range(num_workers):
            # Not in the folder, whose disk may fill up.
            errors = stack.enter_context(tempfile.TemporaryFile())
            command = [sys.executable, "-m", module, str(folder / JOB), str(i)]
            worker = stack.enter_context(start_child(command, env=env, stderr=errors))
            stack.callback(worker.kill)  # before it is waited for
            workers.append((worker, errors))
        while any(worker.poll() is None for worker, _ in workers):
            time.sleep(POLL_S)
            if any(worker.poll() for worker, _ in workers):
                break  # one has failed: do not wait for the others
            report()
        for worker, errors in workers:
            if worker.poll():
                free = shutil.disk_usage(folder).free
                if free < MIN_FREE:
                    text = f"{folder} cannot take the renders: {free} bytes are free on its disk"
                    raise OSError(errno.ENOSPC, text)
                errors.seek(0)
                message = errors.read().decode(errors="replace").strip()[-2000:]
                raise RuntimeError(f"a rendering process failed (exit {worker.poll()}): {message}")


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
        try:
            (folder / f"{TAKEN}{start}").touch(exist_ok=False)
        except FileExistsError:
            continue
        for i in range(start, min(start + POSE_BLOCK, job["num"])):
            hand = renderer.render(i)
            for name in ("image", *FIELDS):
                plain[name][i] = getattr(hand, name)
            plain[CRC][i] = _sample_crc({name: array[i] for name, array in plain.items()})
        (folder / f"{DONE}{start}").touch()
    for array in maps.values():
        array.flush()


def render_split(
    target: Path, settings: SceneSettings, job: Mapping[str, Any], num_workers: int | None
) -> None:
    """Render a split into `target`, which appears whole or not at all, by `num_workers` processes;
    None takes every core, 0 renders in this one. The job has hand_path, seed, split and num.

    Raises: OSError for a folder that cannot be made or a full disk; RuntimeError of a worker.
    """
    job = {**job, "hand_path": str(resolve_hand_path(job["hand_path"]).resolve())}
    job["scene"], num, split = settings.plain(), job["num"], job["split"]
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
            stack.callback(shutil.rmtree, partial, ignore_errors=True)
            partial.chmod(target.parent.stat().st_mode)
        except OSError as error:
            raise PermissionError(f"cannot write the cache {target}: {error}") from error
        began = time.perf_counter()
        log.info("rendering %d %s images of %d px into %s", num, split, settings.image_px, target)
        _render(partial, settings, job, cores() if num_workers is None else num_workers)
        partial.rename(target)
        seconds = time.perf_counter() - began
        log.info("rendered %d images in %.0f s (%.0f images/s)", num, seconds, num / seconds)


def _render(
    folder: Path, settings: SceneSettings, job: Mapping[str, Any], num_workers: int
) -> None:
    arrays, files = load_hand_arrays(job["hand_path"]), _arrays_of(settings.image_px)
    num = job["num"]
    # Memory maps of a full disk end a process without a message.
    need = num * sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in files.values())
    free = shutil.disk_usage(folder).free
    if need > free:
        sizes = f"{need / 1e6:.0f} MB in {folder.parent}, {free / 1e6:.0f} MB are free"
        raise OSError(f"{num} images need {sizes} (cache_dir, num_train)")
    for name, (shape, dtype) in files.items():
        path = folder / f"{name}.npy"
        np.lib.format.open_memmap(path, "w+", np.dtype(dtype), (num, *shape)).flush()
        reserve(path)
    if num_workers:
        # One image here compiles the kernels before several processes would at the same time,
        # and refuses bad settings; rooms take long to paint and cannot fail.
        rooms = settings.background == "room"
        trial = replace(settings, background="studio") if rooms else settings
        SceneRenderer(arrays, trial, job["seed"], job["split"]).render(0)
        processes = min(num_workers, -(-num // POSE_BLOCK))

        def finished() -> int:
            return min(POSE_BLOCK * len(list(folder.glob(f"{DONE}*"))), num)

        with Progress(num, log=log) as progress:
            run_workers(__name__, job, folder, processes, lambda: progress.update(finished))
    else:
        render_blocks(job, folder)
    meta = {"hand": arrays.name, "hand_sha256": arrays.sha256, "renderer": RENDERER_VERSION}
    meta |= {key: job[key] for key in ("split", "num", "seed", "scene")}
    (folder / META).write_text(json.dumps(with_crc(meta), indent=2) + "\n")
    for leftover in [folder / JOB, *folder.glob(".*")]:
        leftover.unlink(missing_ok=True)


if __name__ == "__main__":
    end_with_parent()
    job_path = Path(sys.argv[1])
    render_blocks(json.loads(job_path.read_text()), job_path.parent)
