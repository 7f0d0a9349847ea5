"""Training the top of a backbone alone."""

from torch import nn

from handmim.models.vit import ViT


def freeze_below(backbone: ViT, trained_blocks: int | None) -> tuple[nn.Module, ...]:
    """Take the gradient from all but the last blocks of a backbone.

    Frozen blocks lie below all that is trained, so autograd keeps none of their activations.

    Args:
        backbone: changed in place.
        trained_blocks: None trains all of it; 0 nothing; k the last k blocks and the final norm,
            but never embeddings and positions.
    Returns: modules that have to stay in eval mode, so that what is frozen does not drop paths.
    Raises: ValueError for a number that is no number of blocks.
    """
    if trained_blocks is None:
        return ()
    depth = backbone.depth
    if not 0 <= trained_blocks <= depth:
        raise ValueError(
            f"trained_blocks must be null or 0 to {depth}, the blocks of this backbone, got "
            f"{trained_blocks} (task.trained_blocks)"
        )
    top_frozen = depth - trained_blocks if trained_blocks else depth + 1
    for name, parameter in backbone.named_parameters():
        if backbone.layer_of(name) <= top_frozen:
            parameter.requires_grad_(False)
    net = backbone.net
    below = (net.patch_embed, net.pos_drop, net.norm_pre, *net.blocks[:top_frozen])
    frozen = below if trained_blocks else (backbone,)
    for module in frozen:
        module.eval()
    return frozen
