"""Entries of pretraining checkpoints from before objectives held their own heads."""

from typing import Any

from torch import Tensor, nn

from handmim.utils.renames import new_entry


def rename_old_entries(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """A hook that renames old entries in place; heads that no objective reads are left out."""
    own = module.state_dict().keys()
    for name in list(state):
        renamed = prefix + new_entry(name.removeprefix(prefix))
        if renamed != name:
            value = state.pop(name)
            if renamed.removeprefix(prefix) in own:
                state[renamed] = value
