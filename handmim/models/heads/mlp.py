"""The small network that every head on a token starts from."""

from torch import nn


def mlp(dim_in: int, hidden_dim: int, dim_out: int, num_hidden: int) -> nn.Sequential:
    """LayerNorm, hidden layers with GELU, a linear output; no hidden layer makes it linear.

    Args:
        dim_in, hidden_dim, dim_out: widths.
        num_hidden: hidden layers.
    """
    layers: list[nn.Module] = [nn.LayerNorm(dim_in)]
    for i in range(num_hidden):
        layers += [nn.Linear(dim_in if i == 0 else hidden_dim, hidden_dim), nn.GELU()]
    layers.append(nn.Linear(hidden_dim if num_hidden else dim_in, dim_out))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
