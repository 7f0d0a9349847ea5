"""Python, libraries, graphics card, disk: whether this machine can run the project."""

import importlib
import importlib.util
import os
import re
import shutil
import sys
import warnings
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import cv2
import numpy as np
import torch

from handmim.utils.findings import Finding, Notes, shown

OLDEST_PYTHON = (3, 10)
LEAST_FREE_GB = 5.0
OPTIONAL = {"smplx": "hand=smplx", "manopth": "hand=manopth", "trimesh": "mesh files"}
REINSTALL = "pip install -e . in the repository's folder"
PAIR = "install a matching pair: pip install --upgrade torch torchvision (https://pytorch.org)"


def numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.10.0rc1+cu128" -> (2, 10, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(n) for n in match[0].split(".")) if match else ()


def examine_environment(data_dir: str | Path) -> list[Finding]:
    """All that does not depend on files of the user.

    Args:
        data_dir: folder whose disk must have room.
    """
    notes = Notes()
    checks = {
        "env-python": _python,
        "env-libraries": _libraries,
        "env-torchvision": _torchvision,
        "env-timm": _timm,
        "env-numba": _numba,
        "env-jpeg": _jpeg,
        "env-device": _device,
        "env-cores": _cores,
        "env-optional": _optional,
    }
    for name, check in checks.items():
        with notes.guard(name, REINSTALL):
            check(notes)
    with notes.guard("env-disk", "name a folder that can be read: paths.data_dir=DIR"):
        _disk(notes, Path(data_dir))
    return notes.findings


def _python(notes: Notes) -> None:
    notes.judge(
        sys.version_info[:2] >= OLDEST_PYTHON,
        "env-python",
        f"Python {sys.version.split()[0]}",
        f"Python {'.'.join(map(str, OLDEST_PYTHON))} or newer is needed",
    )


def _libraries(notes: Notes) -> None:
    try:
        needed = [n for n in requires("handmim") or [] if "extra ==" not in n]
    except PackageNotFoundError:
        notes.warning("env-libraries", "handmim itself is not installed", REINSTALL)
        return
    wrong: list[str] = []
    fine: list[str] = []
    for line in needed:
        match = re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", line)
        if match is None:
            continue
        name, least = match[1], match[2]
        try:
            have = cv2.__version__ if name.startswith("opencv") else version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        (fine if numbers(have) >= numbers(least) else wrong).append(f"{name} {have}")
    notes.judge(not wrong, "env-libraries", ", ".join(wrong or fine), REINSTALL)


def _torchvision(notes: Notes) -> None:
    with notes.guard("env-torchvision", PAIR):
        have = version("torchvision")
        wanted = [n for n in requires("torchvision") or [] if re.match(r"torch\s*\(?==", n)]
        exact = re.search(r"==\s*([\d.]+)", wanted[0]) if wanted else None
        fits = exact is None or numbers(exact[1]) == numbers(torch.__version__)
        importlib.import_module("torchvision")  # fails when it was built for another torch
        notes.judge(
            fits,
            "env-torchvision",
            f"torchvision {have} with torch {torch.__version__}"
            + ("" if fits or exact is None else f": it was built for torch {exact[1]}"),
            PAIR,
        )


def _timm(notes: Notes) -> None:
    timm = importlib.import_module("timm")
    notes.ok("env-timm", f"timm {timm.__version__} imports")


def _numba(notes: Notes) -> None:
    with notes.guard("env-numba", "pip install --upgrade numba (it must know this numpy)"):
        numba = importlib.import_module("numba")

        def thrice(x: int) -> int:
            return 3 * x

        notes.judge(
            numba.njit(thrice)(14) == 42,
            "env-numba",
            f"numba {numba.__version__} compiles",
            REINSTALL,
        )


def _jpeg(notes: Notes) -> None:
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 64, axis=0)
    picture = np.stack([ramp, ramp.T, 255 - ramp], axis=2)
    with notes.guard("env-jpeg", "pip install --force-reinstall opencv-python-headless"):
        read = cv2.imdecode(cv2.imencode(".jpg", picture)[1], cv2.IMREAD_COLOR)
        good = read is not None and float(np.abs(np.float64(read) - picture).mean()) < 5
        fix = "pip install --force-reinstall opencv-python-headless"
        notes.judge(good, "env-jpeg", f"OpenCV {cv2.__version__} reads JPEG", fix)


def _device(notes: Notes) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    build = torch.version.cuda or torch.version.hip
    if usable:
        for i in range(torch.cuda.device_count()):
            _graphics_card(notes, i)
    elif build and (said or Path("/proc/driver/nvidia").exists()):
        why = str(said[0].message)[:200] if said else "torch sees no card"
        notes.warning("env-device", f"{why} (torch for CUDA {build})", "update the NVIDIA driver")
    elif Path("/proc/driver/nvidia/version").exists():
        text = f"there is an NVIDIA driver but torch {torch.__version__} is built for CPUs"
        notes.warning("env-device", text, "install a CUDA build: https://pytorch.org/get-started")
    elif torch.backends.mps.is_available():
        notes.ok("env-device", "Apple graphics: training runs on the CPU, use experiment=cpu_*")
    else:
        notes.ok("env-device", "CPU only: use experiment=cpu_*")


def _graphics_card(notes: Notes, index: int) -> None:
    with notes.guard("env-device", f"{PAIR}; this card may need a newer or older build"):
        facts = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            ones = torch.ones(64, 64, dtype=torch.bfloat16 if bf16 else None, device="cuda")
            product = ones @ ones
            free, _ = torch.cuda.mem_get_info()
        text = f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.0f} GB, "
        text += f"{free / 2**30:.0f} GB free, bf16 {'yes' if bf16 else 'no'}"
        good = float(product[0, 0]) == 64
        notes.judge(good, "env-device", text, "it computes wrongly: check the card")
        if not bf16:
            fix = "machine.precision=32-true or 16-mixed instead of bf16-mixed"
            notes.warning("env-bf16", f"cuda:{index} has no bf16", fix)


def _cores(notes: Notes) -> None:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    set_ = {k: os.environ[k] for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if k in os.environ}
    text = f"{allowed} cores, torch uses {threads} threads"
    text += f" ({', '.join(f'{k}={v}' for k, v in set_.items())})" if set_ else ""
    notes.judge(
        threads <= (allowed or threads),
        "env-cores",
        text,
        f"more threads than cores slow everything down: machine.num_threads={allowed}",
        bad="warning",
    )


def _optional(notes: Notes) -> None:
    have = {name: importlib.util.find_spec(name) is not None for name in OPTIONAL}
    there = [f"{n} ({OPTIONAL[n]})" for n, found in have.items() if found]
    gone = [f"{n} ({OPTIONAL[n]})" for n, found in have.items() if not found]
    notes.ok("env-optional", f"present: {shown(there) or 'none'}; absent: {shown(gone) or 'none'}")


def _disk(notes: Notes, data_dir: Path) -> None:
    place = data_dir.absolute()
    while not place.exists():
        place = place.parent
    free_gb = shutil.disk_usage(place).free / 1e9
    notes.judge(
        free_gb >= LEAST_FREE_GB,
        "env-disk",
        f"{free_gb:.0f} GB free below {data_dir}",
        "caches of rendered pictures and label lists need room: paths.data_dir=DIR elsewhere",
        bad="warning",
    )
