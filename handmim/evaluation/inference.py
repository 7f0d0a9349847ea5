"""A trained model from stored crops to estimates on one device: eager, compiled, or as one CUDA
graph; of the plain crops, or averaged over rotated and scaled ones (test-time augmentation)."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from handmim.data.augment import HandAugment
from handmim.geometry.crop import invert, px_from_px, similarity, transform_points
from handmim.geometry.rotation import chordal_mean, rotation_about_z
from handmim.hand.skeleton import CONVENTION_NAMES
from handmim.tasks.regression import RegressionTask
from handmim.types import HandBatch, Intrinsics
from handmim.utils.arguments import one_of
from handmim.utils.timer import Graphed, Stages

# What is scored: the model, the mean hand that refinement starts from, or the labels themselves.
SOURCES = ("model", "mean_hand", "ground_truth")
PLAIN = ((0.0, 1.0),)  # angle and scale of the evaluation crop itself


class RotatedViews:
    """Rotated and scaled evaluation crops of every image about its centre, every angle with every
    scale; a scale is the side relative to the plain crop."""

    def __init__(self, *, angles_deg: Sequence[float], scales: Sequence[float] = (1.0,)) -> None:
        if not angles_deg or not scales or min(scales) <= 0:
            came = f"angles_deg={angles_deg}, scales={scales}"
            raise ValueError(f"at least one angle and scale > 0 are required, got {came}")
        self.views = [(math.radians(a), float(s)) for s in scales for a in angles_deg]


class CropTransform(NamedTuple):
    """How a plain crop follows from a rotated one that is `scale` times as large."""

    R_plain_from_crop: Tensor  # [3, 3] of the camera's axes, about the optical axis
    plain_from_crop: Tensor  # [2, 3] crop ndc -> plain crop's ndc
    log_scale: float

    @classmethod
    def of(cls, angle_rad: float, scale: float) -> "CropTransform":
        """The transform of a crop of `HandAugment.evaluate`."""
        angle = torch.tensor(angle_rad)
        plain_from_crop = similarity(torch.full_like(angle, scale), angle, angle.new_zeros(2))
        return cls(rotation_about_z(angle), plain_from_crop, math.log(scale))


def _rotated(points: Tensor, to_plain: CropTransform) -> Tensor:
    return points @ to_plain.R_plain_from_crop.to(points).T


def _moved(points_ndc: Tensor, to_plain: CropTransform) -> Tensor:
    return transform_points(to_plain.plain_from_crop.to(points_ndc), points_ndc)


def _moved_camera(cam: Tensor, to_plain: CropTransform) -> Tensor:
    # A crop twice as large shows the hand at half the size: s grows by its scale.
    shift_m = cam[:, 1:] @ to_plain.R_plain_from_crop[:2, :2].to(cam).T
    return torch.cat([cam[:, :1] + to_plain.log_scale, shift_m], dim=1)


# How each field of an estimate is carried back from a rotated crop; None: it stays as it is.
RULES: dict[str, Callable[[Tensor, CropTransform], Tensor] | None] = {
    "rotmats": lambda x, to: torch.cat([to.R_plain_from_crop.to(x) @ x[:, :1], x[:, 1:]], dim=1),
    "betas": None,
    "cam": _moved_camera,
    "verts_root_m": _rotated,
    "joints_root_m": _rotated,
    "verts_crop_ndc": _moved,
    "joints_crop_ndc": _moved,
    "transl_cam_m": _rotated,
    "is_metric": None,
}


def _fields_of(estimate: Any) -> dict[str, Tensor]:
    unknown = sorted(set(estimate._fields) - set(RULES))
    if unknown:
        kind = type(estimate).__name__
        raise ValueError(f"{kind} has {unknown}, which no rule carries back (inference.RULES)")
    return {name: value for name, value in estimate._asdict().items() if value is not None}


def carried_back(estimate: Any, to_plain: CropTransform) -> Any:
    """The estimate of a rotated crop, by `RULES` in the frame of the plain one."""
    back = {n: rule(x, to_plain) for n, x in _fields_of(estimate).items() if (rule := RULES[n])}
    return estimate._replace(**back)


def mean_of(estimates: Sequence[Any]) -> Any:
    """Mean of several estimates of the same crops, rotations by their chordal mean; a single one is
    returned unchanged. The mean mesh is not exactly the one that the mean parameters pose."""
    first = estimates[0]
    if len(estimates) == 1:
        return first
    means = {n: torch.stack([getattr(e, n) for e in estimates]) for n in _fields_of(first)}
    for name, values in means.items():
        if name == "rotmats":
            means[name] = chordal_mean(values)
        else:
            means[name] = values.all(dim=0) if name == "is_metric" else values.mean(dim=0)
    return first._replace(**means)


class InferenceModule(nn.Module):
    """Stored crops of right hands to estimates in the plain evaluation crop.

    Args:
        task: trained; it is moved and put in eval mode.
        augment: whose evaluation crop is the model's input.
        autocast: precision of the model, for example `fabric.autocast`.
        source: one of `SOURCES`.
        joint_convention: of crops that state none, a name of `skeleton.CONVENTION_NAMES`.
        views: crops whose estimates are averaged; None takes the plain one.
        compile: torch.compile of the backbone's blocks, for one shape of batches.
        domain: whose moments standardise tokens, as `TokenNorm` takes it.
        cuda_graph: kernels are recorded at the first batch of a shape and replayed; estimates are
            written over by the next batch.
    """

    source_from_crop: Tensor
    R_plain_from_crop: Tensor
    plain_from_crop: Tensor
    last_row: Tensor
    convention: Tensor | None

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
        domain: str | None = None,
        compile: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__()
        self.device = torch.device(device)
        one_of("predictor", source, SOURCES)
        one_of("joint_convention", joint_convention, CONVENTION_NAMES)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={device}: PyTorch sees no GPU here (device='cpu')")
        if cuda_graph and self.device.type != "cuda":
            raise ValueError(f"cuda_graph=True needs a CUDA device, got device={device}")
        self.task, self.augment, self.autocast = task, augment, autocast
        self.source, self.domain, self.cuda_graph = source, domain, cuda_graph
        self.has_fixed_batches = compile or cuda_graph
        self.views = PLAIN if views is None else tuple(views.views)
        side = augment.evaluation_scale
        maps = [
            similarity(torch.tensor([side * scale]), torch.tensor([angle_rad]), torch.zeros(1, 2))
            for angle_rad, scale in self.views
        ]
        transforms = [CropTransform.of(*view) for view in self.views]
        R, plain, self.log_scales = zip(*transforms, strict=True)
        # heads give joints by the convention "model"
        convention = torch.tensor([CONVENTION_NAMES.index(joint_convention)])
        for name, value in (
            ("source_from_crop", torch.cat(maps)),  # [views, 2, 3]
            ("R_plain_from_crop", torch.stack(R)),
            ("plain_from_crop", torch.stack(plain)),
            ("last_row", torch.tensor([[[0.0, 0.0, 1.0]]])),
            ("convention", None if joint_convention == "model" else convention),
        ):
            self.register_buffer(name, value, persistent=False)
        self._graphs: dict[torch.Size, Graphed[Any]] = {}
        self.to(self.device).eval()
        if compile:
            task.active_backbone.compile_blocks()

    def forward(
        self, image: Tensor, K_px: Tensor, has_K: Tensor, joint_convention: Tensor | None = None
    ) -> Any:
        """The model's estimate of uint8 stored crops [B, 3, S, S], on the device; `K_px` [B, 3, 3]
        is known where `has_K` [B], `joint_convention` [B] are indices in `CONVENTION_NAMES`."""
        if joint_convention is None and self.convention is not None:
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
        for i in range(len(self.views)):
            source_from_crop = self.source_from_crop[i : i + 1].expand(len(image), 2, 3)
            crop = self.augment.cut(image, source_from_crop)
            K_crop_px = self.crop_intrinsics(K_px, image.shape[-1], i)
            with self.autocast():
                intrinsics = Intrinsics(K_crop_px, has_K, crop.shape[-1])
                estimate = self.task.predict(crop, joint_convention, intrinsics, self.domain)
            if self.views is PLAIN:
                return estimate
            estimates.append(carried_back(estimate, self._to_plain(i)))
        return mean_of(estimates)

    def _to_plain(self, view: int) -> CropTransform:
        R, plain = self.R_plain_from_crop[view], self.plain_from_crop[view]
        return CropTransform(R, plain, self.log_scales[view])

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
        is_mean = self.source == "mean_hand"
        of_crop = self.task.mean_estimate if is_mean else self.task.label_estimate
        crops = [self.augment.evaluate(stored, *view) for view in self.views]
        found = [carried_back(of_crop(c), self._to_plain(i)) for i, c in enumerate(crops)]
        return mean_of(found)

    @contextmanager
    def staged(self, stages: Stages | None, num: int) -> Iterator[None]:
        """Times a call inside as stages crop, backbone, head and hand; a graph is one, model."""
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
