"""Terms on unlabeled crops that a regression trains by beside its labels."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from handmim.data.views import ViewMaker
from handmim.engine.optim import Schedule, as_schedule
from handmim.geometry.crop import from_source, to_source
from handmim.geometry.rotation import rotation_about_z
from handmim.hand.skeleton import ROOT_JOINT
from handmim.models.token_norm import UNLABELED
from handmim.types import HandBatch, PretrainBatch, StepInfo
from handmim.utils.arguments import at_least, below_one, shares
from handmim.utils.config import differences

Losses = tuple[Tensor, dict[str, Tensor]]
# Of a `ViewMaker`: what no rotation carries predictions back from, and what nothing reads.
NOT_RIGID = ("aspect", "flip_prob", "warp_ndc", "partner_prob", "num_local")


class UnlabeledTerm(nn.Module, ABC):
    """A loss on views of unlabeled crops. `weight` is constant or a schedule."""

    def __init__(self, weight: float | Schedule = 1.0) -> None:
        super().__init__()
        self.weight = as_schedule(weight)

    def join(self, task: Any) -> None:
        """Take part in the training of a `RegressionTask`; raises ValueError where it cannot."""

    def check_views(self, views: ViewMaker) -> None:
        """Raises: ValueError for views that the term cannot use."""

    @abstractmethod
    def forward(self, task: Any, batch: PretrainBatch, info: StepInfo) -> Losses:
        """The weighted loss, and scalars worth logging."""

    def before_update(self, info: StepInfo) -> None:
        """As of a `Task`."""

    def after_step(self, info: StepInfo) -> dict[str, float]:
        """As of a `Task`."""
        return {}


class Pretext(UnlabeledTerm):
    """The pretraining of the backbone goes on beside the labels (SSAT, Das et al. 2024; UDA-SS, Sun
    et al. 2019, arXiv 1909.11825): `method` is its task, whose student the backbone becomes."""

    def __init__(self, method: Any, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        self.method = method

    def join(self, task: Any) -> None:
        """Share the backbone, whose copy the teacher's becomes. Raises: ValueError for one that
        differs from the pretraining's, or is not trained."""
        method, backbone = self.method, task.backbone
        if found := differences(*map(_network, (method.student["backbone"], backbone))):
            text = "the pretraining (unlabeled.terms.pretext.run) has another backbone than"
            raise ValueError(f"{text} task.backbone: {found[0]}")
        if not any(p.requires_grad for p in backbone.net.parameters()):
            raise ValueError("a pretext trains the backbone: raise task.trained_blocks above 0")
        method.student["backbone"] = backbone
        if method.teacher is not None:
            method.teacher.net["backbone"].load_state_dict(backbone.state_dict())
        backbone.mask_token.requires_grad_(not method.drops_masked)

    def forward(self, task: Any, batch: PretrainBatch, info: StepInfo) -> Losses:
        """The method's own loss."""
        result = self.method(batch, info)
        return self.weight(*info) * result.loss, dict(result.scalars)

    def before_update(self, info: StepInfo) -> None:
        """As of the method."""
        self.method.before_update(info)

    def after_step(self, info: StepInfo) -> dict[str, float]:
        """As of the method."""
        return dict(self.method.after_step(info))


def _network(backbone: Any) -> dict[str, Any]:
    """What two backbones of one network have in common."""
    stated = {"pixel_norm": backbone.pixel_norm, "num_heads": backbone.num_heads}
    return stated | {name: tuple(value.shape) for name, value in backbone.state_dict().items()}


class Consensus(UnlabeledTerm):
    """Averaged weights predict several clean views of a crop; their mean in the crop's frame is
    what the live weights have to predict of the augmented views, for the joints that the views
    agree on best (mean teacher, Tarvainen and Valpola 2017, arXiv 1703.01780; Kim et al. 2022,
    arXiv 2204.08451).

    start: share of the steps before which the term does nothing. kept: share of the joints of a
    batch that count. student_views: of each crop, that the live weights predict."""

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        start: float = 0.5,
        kept: float = 0.5,
        student_views: int = 1,
    ) -> None:
        super().__init__(weight)
        below_one(start=start)
        shares(kept=kept)
        at_least(1, student_views=student_views)
        self.start, self.kept, self.student_views = start, kept, student_views

    def join(self, task: Any) -> None:
        """Raises: ValueError for a task without averaged weights."""
        if task.averaged is None:
            raise ValueError("the teacher is the average of the weights: task.average=0.998")

    def check_views(self, views: ViewMaker) -> None:
        """Raises: ValueError for views that differ by more than a similarity, or are too few."""
        given = {name: getattr(views, name) for name in NOT_RIGID}
        if wrong := [f"{name}={value}" for name, value in given.items() if value]:
            text = "views of a consensus are rotated, scaled and shifted alone: 0 instead of"
            raise ValueError(f"{text} {', '.join(wrong)} (unlabeled.terms.consensus.views)")
        if self.student_views > views.num_views:
            text = f"student_views={self.student_views} of num_views={views.num_views}"
            raise ValueError(f"{text}: no more than there are (unlabeled.terms.consensus)")

    def forward(self, task: Any, batch: PretrainBatch, info: StepInfo) -> Losses:
        """The task's own losses against the consensus."""
        if info.step < self.start * info.total_steps:
            return batch.views.new_zeros(()), {}
        labels, spread = self.labels(task, batch)
        images, head_alone = (labels.image, labels.intrinsics), task.head_alone(info)
        out = task.refinements(*images, UNLABELED, head_alone=head_alone)
        loss, scalars = task.losses(out, labels, info)
        return self.weight(*info) * loss, {**scalars, "spread_ndc": spread}

    @torch.no_grad()
    def labels(self, task: Any, batch: PretrainBatch) -> tuple[HandBatch, Tensor]:
        """Pseudo-labels of the views that the live weights predict, and the mean spread of the
        teacher's joints, ndc."""
        views = batch.views if batch.clean_views is None else batch.clean_views
        b, g = views.shape[:2]
        maps = batch.source_from_view
        state = task.refinements(views.flatten(0, 1), None, UNLABELED, as_teacher=True).steps[-1]
        n = min(self.student_views, g)
        with torch.autocast(maps.device.type, enabled=False):
            seen = to_source(state.joints_crop_ndc.unflatten(0, (b, g)), maps)
            angle = torch.atan2(maps[..., 1, 0], maps[..., 0, 0])
            R = rotation_about_z(angle)  # [B, G, 3, 3] source from view
            joints = state.joints_root_m.unflatten(0, (b, g)) @ R.transpose(-1, -2)
            mean_2d, mean_3d = seen.mean(dim=1), joints.mean(dim=1)
            spread = (seen - mean_2d[:, None]).norm(dim=-1).mean(dim=1)  # [B, 21]
            limit = spread.flatten().quantile(self.kept)
            confident = spread <= limit
            target_2d = from_source(mean_2d[:, None].expand(-1, n, -1, -1), maps[:, :n])
            target_3d = mean_3d[:, None] @ R[:, :n]
        valid = confident[:, None].expand(-1, n, -1).flatten(0, 1)
        valid_3d = valid.clone()
        valid_3d[:, ROOT_JOINT] = True
        num, image = b * n, batch.views[:, :n].flatten(0, 1)
        num_verts = 0 if state.verts_root_m is None else state.verts_root_m.shape[1]
        no = image.new_zeros(num, dtype=torch.bool)
        labels = HandBatch(
            image=image,
            was_left=no,
            joint_convention=torch.zeros(num, dtype=torch.int64, device=image.device),
            K_crop_px=image.new_zeros(num, 3, 3),
            has_K=no,
            kp2d_crop_ndc=target_2d.flatten(0, 1),
            kp2d_valid=valid,
            kp2d_conf=valid.float(),
            joints_cam_m=target_3d.flatten(0, 1),
            joints_valid=valid_3d,
            verts_cam_m=image.new_zeros(num, 1, 1).expand(-1, num_verts, 3),
            has_verts=no,
            rotmats=torch.eye(3, device=image.device).expand(num, 16, 3, 3),
            betas=image.new_zeros(num, 10),
            has_mano=no,
        )
        return labels, spread.mean()
