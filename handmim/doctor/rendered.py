"""Whether the chosen hand can be the hand of a dataset's labels."""

from pathlib import Path

from handmim.data.label_checks import check_made_with
from handmim.hand.arrays import HandArrays
from handmim.hand.model import HandModel
from handmim.utils.findings import Notes


def usable_hand(notes: Notes, prefix: str, root: Path, hand: HandArrays | None) -> HandModel | None:
    """The model to pose labels with, or None with a note why not.

    Args:
        notes, prefix: where and how findings are noted.
        root: of the dataset.
        hand: the chosen one; None where it could not be read.
    """
    name = f"{prefix}-hand"
    if hand is None:
        text = "poses and joints are not checked: the hand model could not be read"
        notes.warning(name, text, "mend hand.path first")
        return None
    if hand.side == "left":
        text = f"{hand.name} is a left hand, the dataset's are right"
        notes.error(name, text, "hand=mano hand.path=MANO_RIGHT.pkl")
        return None
    with notes.guard(name, "choose the hand that the set was rendered from (hand, hand.path)"):
        check_made_with(root, hand)
        notes.ok(name, f"labels are posed again with {hand.name}")
        return HandModel(hand)
    return None
