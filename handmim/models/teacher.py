"""The EMA teacher: a frozen copy that follows the student by name."""

import copy
from collections.abc import Iterable

import torch
from torch import nn


class EmaTeacher(nn.Module):
    """Exponential moving average of a student's modules; always in eval mode, never trained.

    Args:
        student: modules to copy; parameters and buffers are paired by name.
        shared: modules among them that hold constants alone: the teacher uses them uncopied.
    """

    def __init__(self, student: nn.ModuleDict, shared: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        copied: nn.ModuleDict = copy.deepcopy(student, {id(module): module for module in shared})
        self.net = copied.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "EmaTeacher":
        """Stay in eval mode whatever the parent does: dropout must never reach a target."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.ModuleDict, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student.

        Buffers are copied: running statistics of batch norm, where there is any, stay those of the
        student's own activations.

        Raises: ValueError when the two modules do not have the same parameters.
        """
        mine, theirs = dict(self.net.named_parameters()), dict(student.named_parameters())
        if mine.keys() != theirs.keys():
            raise ValueError(
                f"teacher and student differ in {sorted(mine.keys() ^ theirs.keys())[:5]}"
            )
        names = list(mine)
        torch._foreach_lerp_([mine[n] for n in names], [theirs[n] for n in names], 1.0 - momentum)
        buffers = dict(student.named_buffers())
        for name, buffer in self.net.named_buffers():
            if buffer is not buffers[name]:
                buffer.copy_(buffers[name])
