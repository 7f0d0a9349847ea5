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
MATCHING = "install a matching pair: pip install --upgrade torch torchvision (https://pytorch.org)"
OPENCV = "pip install --force-reinstall opencv-python-headless"
DRIVER = Path("/proc/driver/nvidia")


def numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.10.0rc1+cu128" -> (2, 10, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(n) for n in match[0].split(".")) if match else ()


def check_environment(data_dir: str | Path) -> list[Finding]:
    """Findings that do not depend on files of the user.

    Args:
        data_dir: folder whose disk must have room.
    """
    notes = Notes()
    for name, check, fix in (
        ("env-python", _python, REINSTALL),
        ("env-libraries", _libraries, REINSTALL),
        ("env-torchvision", _torchvision, MATCHING),
        ("env-timm", _timm, REINSTALL),
        ("env-numba", _numba, "pip install --upgrade numba (it must know this numpy)"),
        ("env-jpeg", _jpeg, OPENCV),
        ("env-device", _device, REINSTALL),
        ("env-cores", _cores, REINSTALL),
        ("env-optional", _optional, REINSTALL),
    ):
        with notes.guard(name, fix):
            check(notes)
    with notes.guard("env-disk", "name a folder that can be read: paths.data_dir=DIR"):
        _disk(notes, Path(data_dir))
    return notes.findings


def _python(notes: Notes) -> None:
    oldest = ".".join(map(str, OLDEST_PYTHON))
    text, fix = f"Python {sys.version.split()[0]}", f"Python {oldest} or newer is needed"
    notes.judge(sys.version_info[:2] >= OLDEST_PYTHON, "env-python", text, fix)


def _libraries(notes: Notes) -> None:
    try:
        needed = [n for n in requires("handmim") or [] if "extra ==" not in n]
    except PackageNotFoundError:
        notes.warning("env-libraries", "handmim itself is not installed", REINSTALL)
        return
    wrong: list[str] = []
    fine: list[str] = []
    for match in (re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", line) for line in needed):
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
    with notes.guard("env-torchvision", MATCHING):
        required = [n for n in requires("torchvision") or [] if re.match(r"torch\s*\(?==", n)]
        exact = re.search(r"==\s*([\d.]+)", required[0]) if required else None
        importlib.import_module("torchvision")  # fails when it was built for another torch
        text = f"torchvision {version('torchvision')} with torch {torch.__version__}"
        fits = exact is None or numbers(exact[1]) == numbers(torch.__version__)
        if exact is not None and not fits:
            text += f": it was built for torch {exact[1]}"
        notes.judge(fits, "env-torchvision", text, MATCHING)


def _timm(notes: Notes) -> None:
    timm = importlib.import_module("timm")
    notes.ok("env-timm", f"timm {timm.__version__} imports")


def _numba(notes: Notes) -> None:
    numba = importlib.import_module("numba")

    def triple(x: int) -> int:
        return 3 * x

    text = f"numba {numba.__version__} compiles"
    notes.judge(numba.njit(triple)(14) == 42, "env-numba", text, REINSTALL)


def _jpeg(notes: Notes) -> None:
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 64, axis=0)
    image = np.stack([ramp, ramp.T, 255 - ramp], axis=2)
    read = cv2.imdecode(cv2.imencode(".jpg", image)[1], cv2.IMREAD_COLOR)
    good = read is not None and float(np.abs(np.float64(read) - image).mean()) < 5
    notes.judge(good, "env-jpeg", f"OpenCV {cv2.__version__} reads JPEG", OPENCV)


def _device(notes: Notes) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    build = torch.version.cuda or torch.version.hip
    if usable:
        for i in range(torch.cuda.device_count()):
            with notes.guard("env-device", f"{MATCHING}; this card may need another build"):
                _graphics_card(notes, i)
    elif build and (warned or DRIVER.exists()):
        why = str(warned[0].message)[:200] if warned else "torch sees no card"
        notes.warning("env-device", f"{why} (torch for CUDA {build})", "update the NVIDIA driver")
    elif (DRIVER / "version").exists():
        text = f"there is an NVIDIA driver but torch {torch.__version__} is built for CPUs"
        notes.warning("env-device", text, "install a CUDA build: https://pytorch.org/get-started")
    elif torch.backends.mps.is_available():
        notes.ok("env-device", "Apple graphics: training runs on the CPU, use experiment=cpu_*")
    else:
        notes.ok("env-device", "CPU only: use experiment=cpu_*")


def _graphics_card(notes: Notes, index: int) -> None:
    card = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        ones = torch.ones(64, 64, dtype=torch.bfloat16 if bf16 else None, device="cuda")
        product = ones @ ones
        free, _ = torch.cuda.mem_get_info()
    text = f"cuda:{index} {card.name}, {card.total_memory / 2**30:.0f} GB, "
    text += f"{free / 2**30:.0f} GB free, bf16 {'yes' if bf16 else 'no'}"
    good = float(product[0, 0]) == 64
    notes.judge(good, "env-device", text, "it computes wrongly: check the card")
    if not bf16:
        fix = "machine.precision=32-true or 16-mixed instead of bf16-mixed"
        notes.warning("env-bf16", f"cuda:{index} has no bf16", fix)


def _cores(notes: Notes) -> None:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    names = [k for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if k in os.environ]
    text = f"{allowed} cores, torch uses {threads} threads"
    text += f" ({', '.join(f'{k}={os.environ[k]}' for k in names)})" if names else ""
    fix = f"more threads than cores slow everything down: machine.num_threads={allowed}"
    notes.judge(threads <= (allowed or threads), "env-cores", text, fix, bad="warning")


def _optional(notes: Notes) -> None:
    found: dict[bool, list[str]] = {True: [], False: []}
    for name, use in OPTIONAL.items():
        found[importlib.util.find_spec(name) is not None].append(f"{name} ({use})")
    text = f"present: {shown(found[True]) or 'none'}; absent: {shown(found[False]) or 'none'}"
    notes.ok("env-optional", text)


def _disk(notes: Notes, data_dir: Path) -> None:
    folder = data_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free_gb = shutil.disk_usage(folder).free / 1e9
    text = f"{free_gb:.0f} GB free below {data_dir}"
    fix = "caches of rendered images and label lists need room: paths.data_dir=DIR elsewhere"
    notes.judge(free_gb >= LEAST_FREE_GB, "env-disk", text, fix, bad="warning")
