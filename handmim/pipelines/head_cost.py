"""What a regression head costs beside the backbone it sits on: parameters, operations, time."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from handmim.contracts import Lens, Tokens
from handmim.tasks.finetune import HandRegressionTask
from handmim.utils.config import drop_unbuilt
from handmim.utils.stopwatch import work_clock


class HeadCost(NamedTuple):
    """Of one head."""

    parameters: int
    flops: int  # of one picture forward; a multiply-add counts two
    backbone_flops: int
    ratios: list[float]  # of its forward and backward time to that of the backbone, by turn


def head_cost(cfg: DictConfig, batch_size: int, turns: int, device: torch.device) -> HeadCost:
    """Count and measure one head; backbone and head take turns, so that a noisy machine disturbs
    both alike.

    Random pictures. On a CPU process time counts, else wall time.

    Args:
        cfg: composed from configs/finetune.yaml, with a head that regresses a hand model.
        batch_size: pictures at a time.
        turns: measured, after one to warm up.
        device: that everything runs on.
    """
    drop_unbuilt(cfg.task.losses)
    task: HandRegressionTask = instantiate(cfg.task).to(device)
    side = cfg.task.backbone.img_px
    pictures = torch.rand(batch_size, 3, side, side, device=device)
    focal = torch.diag(torch.tensor([2.0 * side, 2.0 * side, 1.0], device=device))
    known = torch.ones(batch_size, dtype=torch.bool, device=device)
    lens = Lens(focal.expand(batch_size, 3, 3), known, side)
    clock = work_clock(device)
    ratios = []
    for _ in range(turns + 1):
        began = clock()
        tokens = task.tokens(pictures, task.head.tapped_blocks)
        _squares([tokens.cls, tokens.patches]).backward()
        between = clock()
        given = _leaves(tokens)
        out = task.head(given, lens)
        _squares([s.verts_root_m for s in out.steps] + [s.cam for s in out.steps]).backward()
        ratios.append((clock() - between) / (between - began))
    one = Lens(lens.K_crop_px[:1], known[:1], side)
    with torch.no_grad():
        tokens = task.tokens(pictures[:1], task.head.tapped_blocks)
        body = _flops(lambda: task.tokens(pictures[:1], task.head.tapped_blocks))
        head = _flops(lambda: task.head(tokens, one))
    parameters = sum(p.numel() for p in task.head.parameters())
    return HeadCost(parameters, head, body, ratios[1:])


def _squares(parts: list[Tensor]) -> Tensor:
    """A loss that every number takes part in."""
    return torch.stack([part.float().square().sum() for part in parts]).sum()


def _leaves(tokens: Tokens) -> Tokens:
    """Tokens whose gradient ends in them, as it would go on into the backbone."""
    cls, patches = (t.detach().requires_grad_() for t in (tokens.cls, tokens.patches))
    taps = tuple(t.detach().requires_grad_() for t in tokens.taps)
    return Tokens(cls, patches, tokens.grid_hw, taps)


def _flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
