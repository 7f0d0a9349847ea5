"""Which hand model labels were made with; using another one is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handmim.data.layouts import FACTS, PARTS
from handmim.hand.arrays import HandArrays
from handmim.hand.model import HandLayer
from handmim.utils.json_files import read_object

# FreiHAND's own vertices are up to 6 mm off its MANO vectors; another hand model is off by
# centimetres.
LARGEST_RESIDUAL_M = 0.012


def read_facts(root: Path) -> dict[str, Any] | None:
    """What a rendered dataset says of itself; None for any other.

    Raises: ValueError for a damaged file.
    """
    path = root / FACTS
    return read_object(path, needs=("hand", "hand_sha256")) if path.is_file() else None


def check_made_with(root: Path, arrays: HandArrays) -> None:
    """Refuse labels that were rendered from another hand.

    Raises: ValueError naming both hands, or for a dataset that is still being rendered.
    """
    facts = read_facts(root)
    if facts is None and (root / PARTS).is_dir():
        raise ValueError(
            f"{root} is not rendered to its end: call the same tools/synthesize.py again"
        )
    if facts is not None and facts["hand_sha256"] != arrays.sha256:
        raise ValueError(
            f"{root} was rendered from hand {facts['hand']} ({facts['hand_sha256'][:12]}), the "
            f"chosen one is {arrays.name} ({arrays.sha256[:12]}): set hand and hand.path to the "
            "hand of the dataset"
        )


def reposed_error_m(
    hand: HandLayer,
    rotmats: NDArray[np.floating],
    betas: NDArray[np.floating],
    verts_m: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Mean distance of re-posed to given vertices, wherever the hands stand.

    Args:
        hand: the model.
        rotmats, betas: [n, 16, 3, 3] and [n, 10].
        verts_m: [n, V, 3].
    Returns: [n] metres.
    """
    with torch.no_grad():
        posed = hand(torch.from_numpy(rotmats).float(), torch.from_numpy(betas).float())
    ours = posed.verts_m.double().numpy()
    given = np.asarray(verts_m, np.float64)
    shift = (given - ours).mean(axis=1, keepdims=True)
    return np.linalg.norm(ours + shift - given, axis=2).mean(axis=1)
