"""Pixel reconstruction of masked patches (He et al. 2022, MAE; Xie et al. 2022, SimMIM)."""

from torch import Tensor, nn

from handmim.contracts import PretrainBatch, PretrainOutputs


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


def masked_pixel_mse(pred: Tensor, target: Tensor, weight: Tensor, num_views: int) -> Tensor:
    """Mean squared error per value, averaged in each view first, then over all views; fp32 scalar.

    Args:
        pred, target: [M, p*p*3].
        weight: [M], 1 / (masked patches of that view).
        num_views: views in the batch, also those without a mask.
    """
    error = (pred.float() - target.float()).square().mean(dim=-1)
    return (error * weight).sum() / num_views


class Term(nn.Module):
    """`masked_pixel_mse` on `PretrainOutputs.pixels`.

    Args:
        per_patch_norm: normalise every target patch (MAE) or regress raw [0, 1] values.
        min_var: floor of a patch's variance.
    """

    def __init__(self, *, per_patch_norm: bool = True, min_var: float = 1e-4) -> None:
        super().__init__()
        self.per_patch_norm, self.min_var = per_patch_norm, min_var

    def forward(self, out: PretrainOutputs, batch: PretrainBatch) -> Tensor:
        """Scalar loss."""
        assert out.pixels is not None, "pixel_recon needs the pixel head"
        p = out.pixels
        target = normalise_patches(p.target, self.min_var) if self.per_patch_norm else p.target
        return masked_pixel_mse(p.pred, target, p.weight, p.num_views)
