import numpy as np
import pytest
import torch

from handmim.contracts import StepInfo
from handmim.data.augment import HandAugment
from handmim.data.synthetic import SyntheticHands
from handmim.tasks.probing import ProbeHook
from handmim.utils.run import Run
from tests.tasks.relabelled import Relabelled
from tests.tasks.test_pretrain_task import make_task

SCENE = {"image_px": 40, "view": "cone", "background": "studio", "objects": 0.0, "occluders": 0.0}


@pytest.fixture(scope="module")
def hands(tmp_path_factory, hand_path):
    folder = tmp_path_factory.mktemp("c")
    return [
        SyntheticHands(hand_path, s, 12, folder, SCENE, num_workers=0) for s in ("train", "val")
    ]


@pytest.fixture
def probe(tmp_path):
    run = Run.start("probe", tmp_path, 0, {}, accelerator="cpu")

    def call(train, test):
        hook = ProbeHook(train, test, HandAugment(img_px=32))
        task = make_task().eval()
        with torch.no_grad():
            return hook(task, StepInfo(0, 1), run)

    return call


def test_figures_in_2d_and_3d(probe, hands):
    figures = probe(*hands)
    assert {
        "probe/err2d_percent",
        "probe/mpjpe_mm",
        "probe/pa_mpjpe_mm",
        "features/cls_rank",
    } <= set(figures)
    assert 0 < figures["probe/err2d_percent"] < 50


def test_photos_without_3d_are_probed_in_2d(probe, hands):
    flat = [Relabelled(h, joints_valid=np.zeros(21, bool)) for h in hands]
    figures = probe(*flat)
    assert "probe/err2d_percent" in figures
    assert "probe/mpjpe_mm" not in figures


def test_too_few_whole_samples_are_refused_with_their_number(probe, hands):
    torn = Relabelled(hands[0], kp2d_valid=np.arange(21) != 4)
    with pytest.raises(ValueError, match="only 0 of 12 samples have all 21 joints in 2D"):
        probe(torn, hands[1])
