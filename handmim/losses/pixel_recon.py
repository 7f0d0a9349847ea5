"""Pixel reconstruction of masked patches (He et al. 2022, MAE; Xie et al. 2022, SimMIM)."""

from torch import Tensor, nn

from handmim.types import PretrainBatch, PretrainOutputs

KINDS = ("mse", "l1")


def normalise_patches(patches: Tensor, min_var: float = 1e-4) -> Tensor:
    """Each patch to mean 0 and variance 1 over all its values.

    The variance is floored: a uniform background would otherwise turn its sensor noise into the
    target.

    Args:
        patches: [M, p*p*3] in [0, 1].
        min_var: floor of the variance.
    """
    centred = patches - patches.mean(dim=-1, keepdim=True)
    var = centred.square().mean(dim=-1, keepdim=True)
    return centred * var.clamp(min=min_var).rsqrt()


def masked_pixel_error(
    pred: Tensor, target: Tensor, weight: Tensor, num_views: int, kind: str = "mse"
) -> Tensor:
    """Mean error per value, averaged in each view first, then over all views; fp32 scalar.

    Args:
        pred, target: [M, p*p*3].
        weight: [M], 1 / (chosen patches of that view).
        num_views: views in the batch, also those without a chosen patch.
        kind: "mse" squared or "l1" absolute.
    """
    difference = pred.float() - target.float()
    error = difference.square() if kind == "mse" else difference.abs()
    return (error.mean(dim=-1) * weight).sum() / num_views


class Term(nn.Module):
    """`masked_pixel_error` on `PretrainOutputs.pixels`.

    Args:
        kind: "mse" (MAE) or "l1" (SimMIM).
        per_patch_norm: normalise every target patch (MAE) or regress raw [0, 1] values (SimMIM).
        min_var: floor of a patch's variance.
    Raises: ValueError for an unknown kind, or a floor that lets flat patches divide by 0.
    """

    needs = ("pixels",)

    def __init__(
        self, *, kind: str = "mse", per_patch_norm: bool = True, min_var: float = 1e-4
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(
                f"kind must be one of {KINDS}, got {kind!r} (task.losses.pixel_recon.term.kind)"
            )
        if min_var <= 0:
            raise ValueError(
                f"min_var must be > 0, got {min_var} (task.losses.pixel_recon.term.min_var)"
            )
        self.kind, self.per_patch_norm, self.min_var = kind, per_patch_norm, min_var

    def forward(self, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """Scalar loss."""
        assert out.pixels is not None, "pixel_recon needs the pixel head"
        p = out.pixels
        target = normalise_patches(p.target, self.min_var) if self.per_patch_norm else p.target
        return masked_pixel_error(p.pred, target, p.weight, p.num_views, self.kind)
