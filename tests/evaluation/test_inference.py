"""What is recorded as a CUDA graph touches nothing but the device: the whole of it runs on a GPU
that is only pretended, where every operation shows the devices of its tensors."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from handmim.evaluation.inference import InferenceModule
from handmim.utils.timer import Graphed

CONFIGS = Path(__file__).parents[2] / "configs"
HEADS = ["pymaf", "pymaf_exact", "iterative", "decoder", "plain", "direct"]


class OnDeviceOnly(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        assert {t.device.type for t in tensors} <= {"cuda"}, f"{func} reads memory of the host"
        return out


def pretended(t: torch.Tensor) -> torch.Tensor:
    return torch.empty(t.shape, dtype=t.dtype, device="cuda")


def network(head: str, joint_convention: str) -> InferenceModule:
    overrides = ["data=synthetic", "backbone=vit_nano_p8", f"head={head}"]
    overrides += ["task.head.camera=pinhole"] if head != "direct" else []
    overrides += ["task=keypoints", "loss=[direct_keypoints]"] if head == "direct" else []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("finetune", [*overrides, f"paths.data_dir={CONFIGS.parent / 'data'}"])
    return InferenceModule(
        instantiate(cfg.task), instantiate(cfg.augment), joint_convention=joint_convention
    )


@pytest.fixture
def nothing_from_the_host(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("numbers of the host are brought to the device")

    def begin():
        monkeypatch.setattr(torch, "tensor", refused)
        monkeypatch.setattr(torch.Tensor, "new_tensor", refused)

    return begin


@pytest.mark.parametrize("joint_convention", ["model", "freihand"])
@pytest.mark.parametrize("head", HEADS)
def test_every_model_could_be_recorded(head, joint_convention, nothing_from_the_host):
    net = network(head, joint_convention)
    with FakeTensorMode():
        for module in net.modules():
            for name, value in list(module._parameters.items()):
                if value is not None:
                    module._parameters[name] = torch.nn.Parameter(pretended(value), False)
            for name, value in list(module._buffers.items()):
                if value is not None:
                    module._buffers[name] = pretended(value)
        net.device = torch.device("cuda")
        crops = torch.empty(2, 96, 96, 3, dtype=torch.uint8, device="cuda").permute(0, 3, 1, 2)
        flags = torch.empty(2, dtype=torch.bool, device="cuda")
        K = torch.empty(2, 3, 3, device="cuda")
        nothing_from_the_host()
        with torch.inference_mode(), OnDeviceOnly():
            state = net(crops, K, flags)
    assert state.joints_root_m.device.type == "cuda"


def test_the_pretended_device_does_show_what_reads_the_host():
    with FakeTensorMode():
        x = torch.empty(3, 4, device="cuda")
        with OnDeviceOnly(), pytest.raises(AssertionError, match="reads memory of the host"):
            x[:, [0, 2]]
        with OnDeviceOnly(), pytest.raises(AssertionError, match="reads memory of the host"):
            x + torch.zeros(4).to("cuda")


def test_a_graph_needs_a_gpu():
    with pytest.raises(ValueError, match="needs tensors on a CUDA device, got cpu"):
        Graphed(torch.relu, [torch.zeros(2)])


@pytest.mark.gpu
def test_a_graph_gives_what_the_work_gives():
    def work(a, b):
        return a @ b, a.sum()

    g = torch.Generator("cuda").manual_seed(0)
    shapes = (5, 4), (4, 3)
    graphed = Graphed(work, [torch.rand(s, device="cuda", generator=g) for s in shapes])
    for _ in range(3):
        inputs = [torch.rand(s, device="cuda", generator=g) for s in shapes]
        for ours, plain in zip(graphed(*inputs), work(*inputs), strict=True):
            torch.testing.assert_close(ours, plain)
