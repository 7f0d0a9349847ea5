import shutil
import warnings
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch

from handmim.check import environment
from handmim.check.environment import check_environment, numbers


def problems(findings):
    return {(f.level, f.name) for f in findings if f.level != "ok"}


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return check_environment(tmp_path_factory.mktemp("data") / "not" / "there")


def test_the_environment_of_the_tests_is_sound_and_every_check_reports(findings):
    assert not [f for f in findings if f.level == "error"], findings
    assert {f.name.removeprefix("env-") for f in findings} >= {
        "python", "libraries", "torchvision", "timm", "numba", "jpeg", "device", "cores",
        "optional", "disk",
    }  # fmt: skip
    text = {f.name: f.text for f in findings}
    assert torch.__version__ in text["env-torchvision"]
    assert "numpy" in text["env-libraries"]


def test_numbers_of_versions():
    assert numbers("2.10.0rc1+cu128") == (2, 10, 0)
    assert numbers("5.0.0.93") == (5, 0, 0, 93)
    assert numbers("2.10") > numbers("2.9.1")
    assert numbers("dev") == ()


def one(check):
    notes = environment.Notes("env", "mend")
    check(notes)
    return notes.findings


def test_a_torchvision_built_for_another_torch(monkeypatch):
    monkeypatch.setattr(environment, "requires", lambda name: ["numpy", "torch==1.2.3"])
    (finding,) = one(environment._torchvision)
    assert (finding.level, finding.name) == ("error", "env-torchvision")
    assert "torch 1.2.3" in finding.text


def test_a_torchvision_that_does_not_import(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(environment.importlib, "import_module", broken)
    (finding,) = one(environment._torchvision)
    assert (finding.level, finding.name) == ("error", "env-torchvision")
    assert "nms" in finding.text
    assert "torchvision" in finding.fix


def test_old_and_missing_libraries_are_named(monkeypatch):
    lines = ["timm>=1.0.15", "roma>=1.5", "rich>=13", 'scipy>=99; extra == "dev"']
    monkeypatch.setattr(environment, "requires", lambda name: lines)

    def version(name):
        if name == "roma":
            raise PackageNotFoundError(name)
        return {"timm": "1.0.9", "rich": "13.0"}[name]

    monkeypatch.setattr(environment, "version", version)
    (finding,) = one(environment._libraries)
    assert (finding.level, finding.name) == ("error", "env-libraries")
    assert finding.text == "timm 1.0.9, roma is missing"


def test_a_full_disk_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2e9))
    found = problems(one(lambda notes: environment._machine(notes, tmp_path / "data")))
    assert found == {("warning", "env-disk")}


def test_a_driver_that_torch_cannot_use_is_a_warning(monkeypatch):
    def unusable():
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unusable)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    (finding,) = one(environment._device)
    assert (finding.level, finding.name) == ("warning", "env-device")
    assert "too old" in finding.text


@pytest.mark.gpu
def test_a_graphics_card_is_described():
    found = one(environment._device)
    assert "bf16" in found[0].text
    assert found[0].level == "ok"
