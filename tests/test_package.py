"""What pip installs: declared dependencies, the command, the wheel's content."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11

REPO = Path(__file__).parent.parent
# Names of packages where they differ from those of their modules.
PACKAGES = {
    "PIL": "pillow", "cv2": "opencv-python-headless", "hydra": "hydra-core", "yaml": "pyyaml",
    "skimage": "scikit-image", "simdjson": "pysimdjson",
}  # fmt: skip
NO_PACKAGES = {"manopth"}  # a checkout of its users, in no registry
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=\[;]", line)[0].strip() for line in requirements}


def imported(folder: Path) -> set[str]:
    """Packages that the files of a folder import, standard library left out."""
    roots = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                roots.add((node.module or "").split(".")[0])
            elif isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
    roots -= {*sys.stdlib_module_names, "handmim", "msvcrt", *NO_PACKAGES}
    return {PACKAGES.get(root, root.replace("_", "-")) for root in roots}


def test_all_that_the_package_imports_is_declared():
    optional = {
        name for extra in PROJECT["optional-dependencies"].values() for name in names(extra)
    }
    assert imported(REPO / "handmim") <= names(PROJECT["dependencies"]) | optional


def test_all_that_is_declared_is_imported():
    through_torch = {"tensorboard"}
    assert names(PROJECT["dependencies"]) - imported(REPO / "handmim") <= through_torch


def test_the_package_is_imported_without_its_parts():
    code = "import handmim, sys; assert handmim.__version__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_public_names_are_there():
    import handmim

    assert len(handmim.HandModel.from_file("standin").faces) == 1538
    assert set(handmim.__all__) <= {*dir(handmim), "HandModel"}
    with pytest.raises(AttributeError, match="no attribute 'Hand'"):
        _ = handmim.Hand


def test_an_exported_backbone_is_loaded_as_it_was(tmp_path):
    import torch

    import handmim
    from handmim.models.vit import ViT

    size = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    backbone = ViT("vit_tiny_patch16_224", img_px=16, patch_px=8, pixel_norm="per_image", size=size)
    backbone.export(tmp_path / "backbone.safetensors")
    loaded = handmim.load_backbone(tmp_path / "backbone.safetensors")
    assert loaded.pixel_norm == "per_image"
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded.eval()(image).cls, backbone.eval()(image).cls)


def test_a_file_of_another_origin_is_no_backbone_to_load(tmp_path):
    from safetensors.torch import save_file
    from torch import zeros

    import handmim

    save_file({"cls_token": zeros(1, 1, 8)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is no exported backbone"):
        handmim.load_backbone(tmp_path / "other.safetensors")


@pytest.mark.slow
def test_the_wheel_holds_configs_and_the_hand_and_runs(tmp_path):
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPO, capture_output=True, text=True
    )
    for name in listed.stdout.split():
        if (REPO / name).is_file():
            (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "src" / name).write_bytes((REPO / name).read_bytes())
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    made = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path / "src", capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    with zipfile.ZipFile(tmp_path / "src" / made.stdout.split()[-1]) as wheel:
        content = set(wheel.namelist())
        wheel.extractall(tmp_path / "site")
    yamls = {str(p.relative_to(REPO)) for p in (REPO / "configs").rglob("*.yaml")}
    assert {f"handmim/{name}" for name in yamls} <= content
    assets = {"standin_right.npz", "handmim_small.safetensors", "handmim_small.md"}
    assert {f"handmim/assets/{name}" for name in assets} <= content
    assert "handmim/experiments/quickstart.html" in content
    tops = {name.split("/")[0] for name in content}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"handmim"}
    # Beside no checkout: the installed configs and hand are what is found.
    arguments = ["pretrain", "experiment=quickstart_pretrain", "trainer.max_step=3"]
    called = subprocess.run(
        [sys.executable, "-m", "handmim", *arguments], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert called.returncode == 2
    assert called.stderr.startswith("handmim pretrain: no such setting: trainer.max_step, did you")
