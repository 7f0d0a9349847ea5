from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from handmim.pipelines.head_cost import head_cost

CONFIGS = Path(__file__).parents[2] / "configs"


def cost(*words: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("finetune", overrides=["backbone=vit_nano_p8", *words])
    return head_cost(cfg, batch_size=2, turns=2, device=torch.device("cpu"))


def test_parameters_and_operations_by_hand():
    """Class and mean patch token of 96 numbers each: LayerNorm 2 x 192, then 192 x 109 + 109."""
    found = cost("head=plain_small", "task.head.num_hidden=0")
    assert found.parameters == 2 * 192 + 192 * 109 + 109
    smaller = cost("head=plain_small", "task.head.num_hidden=0", "task.head.features=cls")
    # a multiply-add counts two; posing the hand is in both
    assert found.flops - smaller.flops == 2 * 96 * 109
    assert found.backbone_flops == smaller.backbone_flops > 1e6
    assert len(found.ratios) == 2
    assert min(found.ratios) > 0


def test_a_heavier_head_reads_heavier():
    light, heavy = cost("head=plain_small"), cost("head=pymaf_small", "task.head.taps=[1]")
    assert heavy.flops > 2 * light.flops
    assert heavy.parameters != light.parameters
