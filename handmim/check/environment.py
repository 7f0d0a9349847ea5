"""Python, libraries, graphics card, disk, hand model: whether this machine can run the project."""

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

from handmim.hand.io import HandArrays, load_hand_arrays, resolve_hand_path
from handmim.utils.findings import Finding, Notes
from handmim.utils.unpickle import UnsafePickleError

OLDEST_PYTHON = (3, 10)
LEAST_FREE_GB = 5.0
OPTIONAL = {"smplx": "hand=smplx", "manopth": "hand=manopth", "trimesh": "mesh files"}
REINSTALL = "pip install -e . in the repository's folder"
MATCHING = "install a matching pair: pip install --upgrade torch torchvision (https://pytorch.org)"
OPENCV = "pip install --force-reinstall opencv-python-headless"
DRIVER = Path("/proc/driver/nvidia")
SPAN_M = (0.12, 0.26)  # wrist to middle fingertip at rest
MOST_JOINTS = 8  # that a vertex should follow; more is slow skinning or noise
AUTO = "hand.left_shapedirs=auto"
TAKE = "take MANO_RIGHT.pkl as downloaded from https://mano.is.tue.mpg.de"


def numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.10.0rc1+cu128" -> (2, 10, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(n) for n in match[0].split(".")) if match else ()


def check_environment(data_dir: str | Path) -> list[Finding]:
    """Findings that do not depend on files of the user, but on the disk of a folder."""
    notes = Notes("env", REINSTALL)
    for check in (_libraries, _torchvision, _software, _device):
        with notes.guard(check.__name__.removeprefix("_")):
            check(notes)
    with notes.guard("disk", "name a folder that can be read: paths.data_dir=DIR"):
        _machine(notes, Path(data_dir))
    return notes.findings


def _libraries(notes: Notes) -> None:
    try:
        needed = [n for n in requires("handmim") or [] if "extra ==" not in n]
    except PackageNotFoundError:
        notes.warning("libraries", "handmim itself is not installed")
        return
    wrong, fine = list[str](), list[str]()
    for name, least in re.findall(r"^([\w.-]+)\s*>=\s*([\d.]+)", "\n".join(needed), re.MULTILINE):
        try:
            have = cv2.__version__ if name.startswith("opencv") else version(name)
            (fine if numbers(have) >= numbers(least) else wrong).append(f"{name} {have}")
        except PackageNotFoundError:
            wrong.append(f"{name} is missing")
    notes.judge(not wrong, "libraries", ", ".join(wrong or fine))


def _torchvision(notes: Notes) -> None:
    with notes.guard("torchvision", MATCHING):
        lines = "\n".join(requires("torchvision") or [])
        exact = re.search(r"^torch\s*\(?==\s*([\d.]+)", lines, re.MULTILINE)
        importlib.import_module("torchvision")  # fails when it was built for another torch
        text = f"torchvision {version('torchvision')} with torch {torch.__version__}"
        text += f", built for torch {exact[1]}" if exact else ""
        fits = exact is None or numbers(exact[1]) == numbers(torch.__version__)
        notes.judge(fits, "torchvision", text, MATCHING)


def _software(notes: Notes) -> None:
    oldest = ".".join(map(str, OLDEST_PYTHON))
    text, fix = f"Python {sys.version.split()[0]}", f"Python {oldest} or newer is needed"
    notes.judge(sys.version_info[:2] >= OLDEST_PYTHON, "python", text, fix)
    with notes.guard("timm"):
        notes.ok("timm", f"timm {importlib.import_module('timm').__version__} imports")
    with notes.guard("numba", "pip install --upgrade numba (it must know this numpy)"):
        numba = importlib.import_module("numba")
        compiled = numba.njit(lambda x: 3 * x)
        notes.judge(compiled(14) == 42, "numba", f"numba {numba.__version__} compiles")
    with notes.guard("jpeg", OPENCV):
        ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 64, axis=0)
        image = np.stack([ramp, ramp.T, 255 - ramp], axis=2)
        read = cv2.imdecode(cv2.imencode(".jpg", image)[1], cv2.IMREAD_COLOR)
        good = read is not None and float(np.abs(np.float64(read) - image).mean()) < 5
        notes.judge(good, "jpeg", f"OpenCV {cv2.__version__} reads JPEG", OPENCV)
    absent = [f"{n} ({use})" for n, use in OPTIONAL.items() if importlib.util.find_spec(n) is None]
    notes.ok("optional", f"optional libraries that are absent: {', '.join(absent) or 'none'}")


def _device(notes: Notes) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    build = torch.version.cuda or torch.version.hip
    if usable:
        for i in range(torch.cuda.device_count()):
            with notes.guard("device", f"{MATCHING}; this card may need another build"):
                _graphics_card(notes, i)
    elif build and (warned or DRIVER.exists()):
        why = str(warned[0].message)[:200] if warned else "torch sees no card"
        notes.warning("device", f"{why} (torch for CUDA {build})", "update the NVIDIA driver")
    elif (DRIVER / "version").exists():
        text = f"there is an NVIDIA driver but torch {torch.__version__} is built for CPUs"
        notes.warning("device", text, "install a CUDA build: https://pytorch.org/get-started")
    else:
        apple = (
            "Apple graphics, unused" if torch.backends.mps.is_available() else "no graphics card"
        )
        notes.ok("device", f"{apple}: training runs on the CPU, use experiment=cpu_*")


def _graphics_card(notes: Notes, index: int) -> None:
    card = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        ones = torch.ones(64, 64, dtype=torch.bfloat16 if bf16 else None, device="cuda")
        product = ones @ ones
        free, _ = torch.cuda.mem_get_info()
    memory = f"{free / 2**30:.0f} of {card.total_memory / 2**30:.0f} GB free"
    text = f"cuda:{index} {card.name}, {memory}, bf16 {'yes' if bf16 else 'no'}"
    fix = "it computes wrongly: check the card"
    notes.judge(float(product[0, 0]) == 64, "device", text, fix)
    if not bf16:
        fix = "machine.precision=32-true or 16-mixed instead of bf16-mixed"
        notes.warning("bf16", f"cuda:{index} has no bf16", fix)


def _machine(notes: Notes, data_dir: Path) -> None:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    set_to = {k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    text = f"{allowed} cores, torch uses {threads} threads, {set_to}"
    fix = f"more threads than cores slow everything down: machine.num_threads={allowed}"
    notes.judge(threads <= (allowed or threads), "cores", text, fix, bad="warning")
    folder = next(path for path in (data_dir.absolute() / "_").parents if path.exists())
    free_gb = shutil.disk_usage(folder).free / 1e9
    text = f"{free_gb:.0f} GB free below {data_dir}"
    fix = "caches of rendered images and label lists need room: paths.data_dir=DIR elsewhere"
    notes.judge(free_gb >= LEAST_FREE_GB, "disk", text, fix, bad="warning")


def check_hand(path: str | Path, left_shapedirs: str) -> tuple[list[Finding], HandArrays | None]:
    """Findings, and the hand where it can be used; arguments are hand.path and .left_shapedirs."""
    notes = Notes("hand", TAKE)
    arrays = None
    with notes.guard("file", f"{TAKE}, or hand=standin"):
        try:
            arrays = load_hand_arrays(path, left_shapedirs=left_shapedirs)
            sizes = f"{len(arrays.v_template)} vertices, {len(arrays.faces)} faces"
            digests = f"file sha256 {arrays.file_sha256[:16]}, identity {arrays.sha256[:16]}"
            notes.ok("file", f"{arrays.name}: {sizes}, {digests}")
        except UnsafePickleError as error:
            notes.error("pickle", str(error), f"delete it and {TAKE}")
    if arrays is None:
        return notes.findings, None
    with notes.guard("side"):
        file_name = resolve_hand_path(path).name
        named = [side for side in ("right", "left") if side in file_name.lower()]
        text, fix = f"{file_name} holds a {arrays.side} hand", f"it was renamed or mixed up: {TAKE}"
        notes.judge(named in ([], [arrays.side]), "side", text, fix)
    if arrays.side == "left":
        wrong = "x of the left hand's shape directions has the wrong sign"
        with notes.guard("shapedirs", AUTO):
            if not load_hand_arrays(path, left_shapedirs="auto").repairs:
                text = f"shape directions are sound, hand.left_shapedirs={left_shapedirs}"
                is_sound = left_shapedirs in ("auto", "as_is")
                notes.judge(is_sound, "shapedirs", text, AUTO, bad="warning")
            elif arrays.repairs:
                text = f"{wrong}, as MANO_LEFT ships; mended while reading: "
                fix = "nothing, if betas come from mended files too; else hand.left_shapedirs=as_is"
                notes.warning("shapedirs", text + ", ".join(arrays.repairs), fix)
            else:
                notes.error("shapedirs", f"{wrong} and is left so", AUTO)
    with notes.guard("unit"):
        tip, wrist = arrays.v_template[arrays.tip_ids[2]], arrays.J_regressor[0] @ arrays.v_template
        span_m = float(np.linalg.norm(tip - wrist))
        text = f"wrist to middle fingertip {span_m * 1e3:.0f} mm, taking the file's unit as metres"
        good = SPAN_M[0] <= span_m <= SPAN_M[1]
        notes.judge(good, "unit", text, f"a hand has about 190 mm: {TAKE}")
    with notes.guard("weights"):
        most, regressor = int((arrays.weights > 1e-3).sum(axis=1).max()), arrays.J_regressor
        entries = f"{regressor.min():.3f} to {regressor.max():.3f}"
        text = f"a vertex follows at most {most} joints; regressor entries {entries}"
        good = most <= MOST_JOINTS and bool((regressor > -0.5).all())
        notes.judge(good, "weights", text, bad="warning")
    with notes.guard("standin", "make it again: python tools/build_standin.py"):
        if arrays.sha256 == load_hand_arrays("standin").sha256:
            notes.ok("standin", "the stand-in: its results do not compare with published ones")
    return notes.findings, arrays
