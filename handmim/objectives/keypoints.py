"""Heads of pseudo-keypoints, regressed from the class token or found among the patch tokens.

Every head is called with a backbone's tokens and has `num_keypoints` (K) and `num_dims` (d). Points
have 2 numbers in the view's ndc, or 3: z is a depth in the view's own size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.geometry.camera import cell_centres_ndc
from handmim.models.layers import BatchNormMlp, mlp
from handmim.objectives.point_sets import canonical_shapes, in_source
from handmim.types import PretrainBatch, Tokens
from handmim.utils.arguments import above, at_least, one_of


def check_points(num_keypoints: int, num_dims: int) -> None:
    """Raises: ValueError for sizes that make no shape."""
    at_least(3, num_keypoints=num_keypoints)
    one_of("num_dims", num_dims, (2, 3))


class KeypointHead(nn.Module):
    """K points from the class token, bounded a little outside of the image.

    They start spread out: output biases are drawn from U(-init_spread, init_spread). No BatchNorm,
    since masked and whole views share the head.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_keypoints: int = 21,
        num_dims: int = 2,
        hidden_dim: int = 1024,
        num_hidden: int = 2,
        bound_ndc: float = 1.5,
        init_spread: float = 0.6,
    ) -> None:
        super().__init__()
        check_points(num_keypoints, num_dims)
        self.num_keypoints, self.num_dims, self.bound_ndc = num_keypoints, num_dims, bound_ndc
        self.mlp = mlp(dim, hidden_dim, num_keypoints * num_dims, num_hidden)
        nn.init.uniform_(self.mlp[-1].get_parameter("bias"), -init_spread, init_spread)

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens of [V, D] to [V, K, d] points in ndc, fp32."""
        raw = self.mlp(tokens.cls).float().unflatten(-1, (self.num_keypoints, self.num_dims))
        return self.bound_ndc * torch.tanh(raw)


class SoftArgmaxKeypoints(nn.Module):
    """K points as expected positions of heat maps over the patch tokens (soft-argmax).

    Each patch has refine x refine keys, one per cell; each point has a learned query, to which the
    class token adds its own where `class_query` is set. Heat maps are the softmax of query . key
    and of a learned Gaussian prior, which keeps points apart before training: of width `prior_ndc`
    (None for none), with centres from U(-init_spread, init_spread). A depth, at most `bound_ndc`,
    comes from the class token, of whose MLP `hidden_dim` and `num_hidden` are.
    """

    cells_ndc: Tensor
    reads_patches = True

    def __init__(
        self,
        dim: int,
        *,
        grid_hw: tuple[int, int],
        num_keypoints: int = 21,
        num_dims: int = 2,
        refine: int = 3,
        key_dim: int = 64,
        temp: float = 0.3,
        class_query: bool = True,
        hidden_dim: int = 256,
        num_hidden: int = 1,
        prior_ndc: float | None = 0.5,
        init_spread: float = 0.6,
        bound_ndc: float = 1.5,
    ) -> None:
        super().__init__()
        check_points(num_keypoints, num_dims)
        at_least(1, refine=refine)
        above(0.0, temp=temp)
        if prior_ndc is not None:
            above(0.0, prior_ndc=prior_ndc)
        self.num_keypoints, self.num_dims, self.bound_ndc = num_keypoints, num_dims, bound_ndc
        self.refine, self.key_dim, self.grid_hw = refine, key_dim, grid_hw
        self.scale = 1.0 / (temp * math.sqrt(key_dim))
        self.keys = mlp(dim, 0, refine * refine * key_dim, 0)
        self.queries = nn.Parameter(torch.randn(num_keypoints, key_dim))
        width = key_dim * class_query + num_keypoints * (num_dims - 2)
        self.of_class = mlp(dim, hidden_dim, width, num_hidden) if width else None
        self.class_query = class_query
        self.prior_centres: nn.Parameter | None = None
        if prior_ndc is not None:
            centres = torch.empty(num_keypoints, 2).uniform_(-init_spread, init_spread)
            self.prior_centres = nn.Parameter(centres)
            self.prior_log_width = nn.Parameter(torch.full((num_keypoints,), math.log(prior_ndc)))
        # [N * refine^2, 2] centres of all cells, patch by patch, row by row within a patch.
        h, w = grid_hw
        y, x = (cell_centres_ndc(n * refine) for n in grid_hw)
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)  # [h r, w r, 2]
        cells = grid.reshape(h, refine, w, refine, 2).transpose(1, 2).reshape(-1, 2)
        self.register_buffer("cells_ndc", cells, persistent=False)

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens of [V, ...] to [V, K, d] points in ndc, fp32.

        Raises: ValueError when tokens were dropped or the image has another size.
        """
        v, n = tokens.patches.shape[:2]
        if n != self.grid_hw[0] * self.grid_hw[1]:
            text = f"a grid of {self.grid_hw} patches, got {n} (img_px, mask_mode)"
            raise ValueError(f"keypoints require {text}")
        of_class = None if self.of_class is None else self.of_class(tokens.cls)
        keys = self.keys(tokens.patches).reshape(v, n * self.refine**2, self.key_dim)
        queries = self.queries.expand(v, -1, -1)
        if self.class_query and of_class is not None:
            queries = queries + of_class[:, None, : self.key_dim]
        # Sharp maps have logits beyond 50, which half precision rounds by a quarter.
        with torch.autocast(keys.device.type, enabled=False):
            logits = queries.float() @ keys.float().transpose(1, 2) * self.scale
        if self.prior_centres is not None:
            gap = (self.prior_centres[:, None] - self.cells_ndc).square().sum(dim=-1)
            logits = logits - 0.5 * gap / (2.0 * self.prior_log_width).exp()[:, None]
        heat = logits.softmax(dim=-1)  # [V, K, N * refine^2]
        # Written out: autocast would round positions to 1e-2.
        positions = torch.stack([(heat * axis).sum(dim=-1) for axis in self.cells_ndc.T], dim=-1)
        if self.num_dims == 2 or of_class is None:
            return positions
        raw = of_class.float()[:, -self.num_keypoints :]
        return torch.cat([positions, self.bound_ndc * torch.tanh(raw)[..., None]], dim=-1)


class LatentPoints(nn.Module):
    """PeCLR's projection: the class token as K unbounded points of a latent plane, with batch
    statistics of all processes. All views have to be whole (nothing masked)."""

    num_dims = 2

    def __init__(
        self, dim: int, *, num_keypoints: int = 64, hidden_dim: int = 512, num_hidden: int = 1
    ) -> None:
        super().__init__()
        check_points(num_keypoints, self.num_dims)
        self.num_keypoints = num_keypoints
        self.project = BatchNormMlp(dim, hidden_dim, num_keypoints * 2, num_hidden)

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens of [V, D] to [V, K, 2] latents, fp32."""
        return self.project(tokens.cls).float().unflatten(-1, (self.num_keypoints, 2))


def agreed_deviation(a: Tensor, b: Tensor) -> Tensor:
    """Deviation over samples of what two views agree on; [n, E] of either view -> scalar.

    It is the root of the mean covariance between the views over samples, 0 where that is negative.
    Noise of each view alone drops out but for chance: independent noise of deviation s everywhere
    gives 0 or about s (n E)^(-1/4). Equal views give their root mean square deviation.
    """
    covariance = ((a - a.mean(dim=0)) * (b - b.mean(dim=0))).mean()
    return covariance.clamp(min=0).sqrt()


@torch.no_grad()
def keypoint_diagnostics(points_ndc: Tensor, batch: PretrainBatch) -> dict[str, Tensor]:
    """Spread and agreement of pseudo-keypoints [B, G, K, d] of each view, as keypoints/...:

    spread_ndc: deviation within a sample; 0 when all points coincide.
    view_std_ndc: deviation over the batch in the view; 0 for a constant template in the view.
    source_std_ndc: `agreed_deviation` of the first two views over the batch in the source crop; 0
        for a template that is constant there, and for points that follow nothing.
    articulation: the same of shapes without position, size and orientation, as a share of the
        shape's size; 0 for a rigid template, wherever it is and however noisy.
    disagreement_ndc: distance of two views' points in the source crop.
    retrieval: share of samples whose other view has the nearest mean-free shape in the batch.
    cosine: mean over pairs of samples between mean-free shapes; near 1 when a common template
        dominates them.
    """
    points = points_ndc.float()
    source = in_source(points, batch)
    a, b = source[:, 0], source[:, 1]
    shapes = (source - source.mean(dim=2, keepdim=True)).flatten(2)
    distinct = shapes - shapes.mean(dim=(0, 1), keepdim=True)
    nearest = torch.cdist(distinct[:, 0], distinct[:, 1]).argmin(dim=1)
    same = nearest == torch.arange(len(nearest), device=nearest.device)
    unit = F.normalize(shapes[:, 0], dim=-1)
    pairs = max(len(unit) * (len(unit) - 1), 1)
    cosine = (unit.sum(dim=0).square().sum() - unit.square().sum()) / pairs
    q = canonical_shapes(source[:, :2])
    return {
        "keypoints/spread_ndc": points.std(dim=2, correction=0).mean(),
        "keypoints/view_std_ndc": points[:, 0].std(dim=0, correction=0).mean(),
        "keypoints/source_std_ndc": agreed_deviation(a, b),
        "keypoints/articulation": agreed_deviation(q[:, 0], q[:, 1]),
        "keypoints/disagreement_ndc": (a - b).norm(dim=-1).mean(),
        "keypoints/retrieval": same.float().mean(),
        "keypoints/cosine": cosine,
    }
