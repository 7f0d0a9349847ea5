"""A trained model from stored crops to estimates on one device: eager, compiled, or as one CUDA
graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from handmim.data.augment import HandAugment
from handmim.geometry.crop import similarity
from handmim.hand.skeleton import CONVENTION_NAMES
from handmim.tasks.regression import RegressionTask
from handmim.types import Intrinsics
from handmim.utils.graphed import Graphed
from handmim.utils.timer import Stages

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class CropNetwork:
    """Stored crops to estimates of right hands, seen in the crops that the model itself looks at.

    Args:
        task: trained; it is moved and put in eval mode.
        augment: whose evaluation crop the model looks at.
        device: where.
        precision: one of `PRECISIONS`.
        joint_convention: whose joints are said, a name of `skeleton.CONVENTION_NAMES`.
        compile: torch.compile of the backbone's blocks, for one shape of batches.
        cuda_graph: kernels are recorded at the first batch of a shape and replayed; estimates are
            written over by the next batch.
    Raises: ValueError for unknown words and for what the device cannot do.
    """

    def __init__(
        self,
        task: RegressionTask,
        augment: HandAugment,
        device: str | torch.device = "cpu",
        *,
        precision: str = "32-true",
        joint_convention: str = "model",
        compile: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        self.device = torch.device(device)
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {list(PRECISIONS)}, got {precision!r}")
        if joint_convention not in CONVENTION_NAMES:
            raise ValueError(
                f"joint_convention must be one of {CONVENTION_NAMES}, got {joint_convention!r}"
            )
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={device}: PyTorch sees no GPU here (device='cpu')")
        if cuda_graph and self.device.type != "cuda":
            raise ValueError(
                f"cuda_graph needs a CUDA device, got device={device}: cuda_graph=False, or "
                "device='cuda' on a machine that has one"
            )
        self.task, self.augment = task.to(self.device).eval(), augment
        self.dtype, self.cuda_graph = PRECISIONS[precision], cuda_graph
        self.has_fixed_batches = compile or cuda_graph
        if compile:
            task.answering_backbone.compile_blocks()
        # None leaves joints as heads give them, which is the rule "model"
        self.rule: Tensor | None = None
        if joint_convention != "model":
            self.rule = torch.tensor([CONVENTION_NAMES.index(joint_convention)], device=self.device)
        self.scale = augment.evaluation_scale  # of the model's crop in the stored one
        side = torch.tensor([self.scale])
        self.source_from_crop = similarity(side, torch.zeros(1), torch.zeros(1, 2))  # [1, 2, 3]
        self._map = self.source_from_crop.to(self.device)
        self._graphs: dict[torch.Size, Graphed[Any]] = {}

    def __call__(self, crops: Tensor, is_left: Tensor, K_crop_px: Tensor, has_K: Tensor) -> Any:
        """The estimate of a batch, its fields on the device.

        Args:
            crops: [B, S, S, 3] uint8, as they were stored.
            is_left: [B] bool, hands that are mirrored first.
            K_crop_px: [B, 3, 3] intrinsics of the model's own crops, of the mirrored picture.
            has_K: [B] bool.
        """
        inputs = (crops, is_left, K_crop_px, has_K)
        if not self.cuda_graph:
            return self._answer(*inputs)
        if crops.shape not in self._graphs:
            self._graphs[crops.shape] = Graphed(self._answer, inputs)
        return self._graphs[crops.shape](*inputs)

    def _answer(self, crops: Tensor, is_left: Tensor, K_crop_px: Tensor, has_K: Tensor) -> Any:
        # Nothing here may wait for the device or read memory of the host: a graph could not.
        stored = crops.permute(0, 3, 1, 2)
        stored = torch.where(is_left[:, None, None, None], stored.flip(3), stored)
        image = self.augment.cut(stored, self._map.expand(len(crops), 2, 3))
        rule = None if self.rule is None else self.rule.expand(len(crops))
        intrinsics = Intrinsics(K_crop_px, has_K, self.augment.img_px)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return self.task.answer(image, rule, intrinsics)

    @contextmanager
    def staged(self, stages: Stages | None, num: int) -> Iterator[None]:
        """A call inside makes stages of `num` items: crop, backbone, head and hand; a graph is one
        stage, model."""
        if stages is None:
            yield
            return
        hooks = []
        if not self.cuda_graph:
            backbone = self.task.answering_backbone
            hooks.append(backbone.register_forward_pre_hook(lambda *_: stages.done("crop", num)))
            hooks.append(backbone.register_forward_hook(lambda *_: stages.done("backbone", num)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        stages.done("model" if self.cuda_graph else "head and hand", num)
