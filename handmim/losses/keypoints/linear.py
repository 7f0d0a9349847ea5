"""The linear part of a view's known map, for latents that have no place of their own."""

from torch import Tensor


def linear_part(source_from_view: Tensor, *, with_scale: bool) -> Tensor:
    """Rotation, stretch and flip of a map, with or without its size.

    Args:
        source_from_view: [..., 2, 3].
        with_scale: False divides by sqrt|det|, which leaves the rotation of a similarity.
    Returns: [..., 2, 2].
    """
    linear = source_from_view[..., :2].float()
    if with_scale:
        return linear
    det = linear[..., 0, 0] * linear[..., 1, 1] - linear[..., 0, 1] * linear[..., 1, 0]
    return linear / det.abs().sqrt()[..., None, None]


def carried(linear: Tensor, vectors: Tensor) -> Tensor:
    """[..., 2, 2] applied to [..., P, 2] vectors, in the precision of its inputs."""
    return (linear.unsqueeze(-3) * vectors.unsqueeze(-2)).sum(dim=-1)
