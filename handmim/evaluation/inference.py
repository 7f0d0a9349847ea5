"""A trained model from stored crops to estimates on one device: eager, compiled, or as one CUDA
graph. Every prediction of the project is made here."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from handmim.data.augment import HandAugment
from handmim.evaluation.tta import CropTransform, RotatedViews, carried_back, mean_of
from handmim.geometry.crop import invert, px_from_px, similarity
from handmim.hand.skeleton import CONVENTION_NAMES
from handmim.tasks.regression import RegressionTask
from handmim.types import HandBatch, Intrinsics
from handmim.utils.graphed import Graphed
from handmim.utils.timer import Stages

# What is scored: the model, the mean hand that refinement starts from, or the labels themselves.
SOURCES = ("model", "mean_hand", "ground_truth")
PLAIN = ((0.0, 1.0),)  # angle and scale of the evaluation crop itself


class InferenceModule(nn.Module):
    """Stored crops of right hands to estimates in the plain evaluation crop.

    Args:
        task: trained; it is moved and put in eval mode.
        augment: whose evaluation crop is the model's input.
        device: where.
        autocast: precision of the model, for example `fabric.autocast`.
        source: one of `SOURCES`.
        joint_convention: of crops that state none, a name of `skeleton.CONVENTION_NAMES`.
        views: crops whose estimates are averaged; None takes the plain one.
        compile: torch.compile of the backbone's blocks, for one shape of batches.
        cuda_graph: kernels are recorded at the first batch of a shape and replayed; estimates are
            written over by the next batch.
    Raises: ValueError for an unknown source or joint convention, and a device that is not there.
    """

    source_from_crop: Tensor
    R_plain_from_crop: Tensor
    plain_from_crop: Tensor
    last_row: Tensor
    convention: Tensor

    def __init__(
        self,
        task: RegressionTask,
        augment: HandAugment,
        device: str | torch.device = "cpu",
        *,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        source: str = "model",
        joint_convention: str = "model",
        views: RotatedViews | None = None,
        compile: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__()
        self.device = torch.device(device)
        if source not in SOURCES:
            raise ValueError(f"predictor must be one of {SOURCES}, got {source!r}")
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
        self.task, self.augment, self.autocast = task, augment, autocast
        self.source, self.cuda_graph = source, cuda_graph
        self.has_fixed_batches = compile or cuda_graph
        self.views = PLAIN if views is None else tuple(views.views)
        transforms = [CropTransform.of(*view) for view in self.views]
        maps = [
            similarity(
                torch.tensor([augment.evaluation_scale * scale]),
                torch.tensor([angle_rad]),
                torch.zeros(1, 2),
            )
            for angle_rad, scale in self.views
        ]
        for name, value in (
            ("source_from_crop", torch.cat(maps)),  # [views, 2, 3]
            ("R_plain_from_crop", torch.stack([t.R_plain_from_crop for t in transforms])),
            ("plain_from_crop", torch.stack([t.plain_from_crop for t in transforms])),
            ("last_row", torch.tensor([[[0.0, 0.0, 1.0]]])),
            # heads give joints by the convention "model"
            ("convention", torch.tensor([CONVENTION_NAMES.index(joint_convention)])),
        ):
            self.register_buffer(name, value, persistent=False)
        self.has_convention = joint_convention != "model"
        self.log_scales = [t.log_scale for t in transforms]
        self._graphs: dict[torch.Size, Graphed[Any]] = {}
        self.to(self.device).eval()
        if compile:
            task.active_backbone.compile_blocks()

    def forward(
        self, image: Tensor, K_px: Tensor, has_K: Tensor, joint_convention: Tensor | None = None
    ) -> Any:
        """The model's estimate of a batch, its fields on the device.

        Args:
            image: [B, 3, S, S] uint8 stored crops of right hands.
            K_px: [B, 3, 3] their intrinsics.
            has_K: [B] bool, where those are known.
            joint_convention: [B] int64 indices in `skeleton.CONVENTION_NAMES`; None takes that of
                the module.
        """
        if joint_convention is None and self.has_convention:
            joint_convention = self.convention.expand(len(image))
        inputs = (image, K_px, has_K, *(() if joint_convention is None else (joint_convention,)))
        if not self.cuda_graph:
            return self._estimate(*inputs)
        if image.shape not in self._graphs:
            self._graphs[image.shape] = Graphed(self._estimate, inputs)
        return self._graphs[image.shape](*inputs)

    def _estimate(
        self, image: Tensor, K_px: Tensor, has_K: Tensor, joint_convention: Tensor | None = None
    ) -> Any:
        # Nothing here may wait for the device or read memory of the host: a graph could not.
        estimates = []
        for i, log_scale in enumerate(self.log_scales):
            source_from_crop = self.source_from_crop[i : i + 1].expand(len(image), 2, 3)
            crop = self.augment.cut(image, source_from_crop)
            intrinsics = Intrinsics(
                self.crop_intrinsics(K_px, image.shape[-1], i), has_K, crop.shape[-1]
            )
            with self.autocast():
                estimate = self.task.predict(crop, joint_convention, intrinsics)
            if self.views is PLAIN:
                return estimate
            to_plain = CropTransform(self.R_plain_from_crop[i], self.plain_from_crop[i], log_scale)
            estimates.append(carried_back(estimate, to_plain))
        return mean_of(estimates)

    def crop_intrinsics(self, K_px: Tensor, side_px: int, view: int = 0) -> Tensor:
        """Intrinsics [B, 3, 3] of a view from those of stored crops of side `side_px`."""
        crop_from_source = invert(self.source_from_crop[view : view + 1])
        px_map = px_from_px(crop_from_source, self.augment.img_px, side_px)
        R = self.R_plain_from_crop[view : view + 1]
        return torch.cat([px_map, self.last_row], dim=1) @ K_px @ R

    def estimate(self, stored: HandBatch) -> Any:
        """The estimate of a labelled batch on the device, by the module's source."""
        if self.source == "model":
            return self(stored.image, stored.K_crop_px, stored.has_K, stored.joint_convention)
        task = self.task
        of_crop = task.mean_estimate if self.source == "mean_hand" else task.label_estimate
        transforms = [CropTransform.of(*view) for view in self.views]
        crops = [self.augment.evaluate_at(stored, *view) for view in self.views]
        pairs = zip(crops, transforms, strict=True)
        return mean_of([carried_back(of_crop(crop), to_plain) for crop, to_plain in pairs])

    @contextmanager
    def staged(self, stages: Stages | None, num: int) -> Iterator[None]:
        """A call inside makes stages of `num` items: crop, backbone, head and hand; a graph is one
        stage, model."""
        if stages is None:
            yield
            return
        hooks = []
        if not self.cuda_graph:
            backbone = self.task.active_backbone
            hooks.append(backbone.register_forward_pre_hook(lambda *_: stages.done("crop", num)))
            hooks.append(backbone.register_forward_hook(lambda *_: stages.done("backbone", num)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        stages.done("model" if self.cuda_graph else "head and hand", num)
