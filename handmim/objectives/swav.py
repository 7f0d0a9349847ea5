"""SwAV: the cluster assignment of one view is predicted from the others (Caron et al. 2020, arXiv
2006.09882), without a teacher."""

from typing import Any

import torch
from torch import Tensor, nn

from handmim.losses.composite import loss_dataclass, positive
from handmim.models.teacher import sinkhorn_knopp
from handmim.objectives.base import Objective, Setup, StepContext, Targets
from handmim.objectives.distillation import Pair, class_tokens, cross_view_ce
from handmim.utils.arguments import at_least, below_one
from handmim.utils.ranks import gathered, own_share


class FeatureQueue(nn.Module):
    """The newest `size` features of earlier steps of all processes; part of checkpoints.

    `add` only remembers; features enter once a step, in `move`.
    """

    features: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(size, dim))
        self.num_stored = 0  # on the host: a step must not wait for the device
        self._pending: list[Tensor] = []
        self.register_load_state_dict_post_hook(self._count)

    @staticmethod
    def _count(queue: Any, _: Any) -> None:
        queue.num_stored = int(queue.features.any(dim=1).sum())  # others are still 0
        queue.forget_step()

    def forward(self, *, sync: bool) -> Tensor:
        """[n, dim] features, none before the queue is full; with `sync` this process's share."""
        if self.num_stored < len(self.features):
            return self.features[:0]
        return own_share(self.features) if sync else self.features

    def add(self, features: Tensor) -> None:
        """Remember [n, dim] of this process."""
        self._pending.append(features.detach())

    def forget_step(self) -> None:
        """Drop the features of a step that is refused."""
        self._pending = []

    @torch.no_grad()
    def move(self) -> None:
        """Take in the features of all processes, which all call."""
        if not self._pending:
            return
        new = gathered(torch.cat(self._pending))[0]
        self.features.copy_(torch.cat([new, self.features])[: len(self.features)])
        self.num_stored = min(self.num_stored + len(new), len(self.features))
        self.forget_step()


@loss_dataclass
class SwAV(Objective):
    """`cross_view_ce` of class tokens against codes of the student itself, after an own head of the
    settings of `projection`.

    Codes of a view are a Sinkhorn assignment of its features in the batch and of `queue_size`
    earlier ones, in equal shares to all prototypes, without gradient. One queue serves all views.
    Prototypes have unit length by their head, not by a step of renormalisation.
    """

    reads = frozenset({"local_cls"})
    temp: float = positive(0.1)  # of predictions
    epsilon: float = positive(0.05)  # of codes
    num_iters: int = 3
    queue_size: int = 3840  # used once full; 0 for large batches
    queue_start: float = 0.1  # share of the steps before it is used: features change fast at first

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, num_iters=self.num_iters)
        at_least(0, queue_size=self.queue_size)
        below_one(queue_start=self.queue_start)

    def build(self, setup: Setup) -> None:
        self.projection = setup.make_head("projection")
        self.queue = FeatureQueue(self.queue_size, self.projection.prototypes.shape[1])

    def predict(self, ctx: StepContext) -> Pair:
        """Logits [B, G + L, P] and codes [B, G, P]."""
        z: Tensor = self.projection.embed(class_tokens(ctx))
        logits: Tensor = self.projection.logits(z, ctx.freeze_prototypes)
        whole = z[:, : ctx.shape[1]]
        is_late = ctx.info.step >= self.queue_start * ctx.info.total_steps
        with torch.no_grad():
            stored = self.queue(sync=self.training)
            earlier = self.projection.logits(stored if is_late else stored[:0])
            codes = [
                self.codes(torch.cat([earlier, view]))[len(earlier) :]
                for view in logits.detach()[:, : ctx.shape[1]].unbind(dim=1)
            ]
        if self.training:
            self.queue.add(whole.flatten(0, 1))
        return Pair(logits, torch.stack(codes, dim=1))

    def codes(self, logits: Tensor) -> Tensor:
        """[n, P] to [n, P], rows sum to 1."""
        return sinkhorn_knopp(logits, self.epsilon, self.num_iters, sync=self.training)

    def loss(self, ctx: StepContext, prediction: Pair) -> Tensor:
        return cross_view_ce(prediction, self.temp)

    def after_step(self) -> None:
        """Features of the step enter the queue."""
        self.queue.move()

    def targets(self, prediction: Pair) -> dict[str, Targets]:
        return {"swav_targets": Targets(prediction.teacher.flatten(0, 1))}
