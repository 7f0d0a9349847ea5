"""What is drawn for the views of a batch, before any pixel is made."""

from typing import NamedTuple

from torch import Tensor

from handmim.contracts import CropBatch
from handmim.data.colour import ColourPlan

PADDINGS = ("reflection", "zeros", "border")


class ViewFrame(NamedTuple):
    """What all views have in common."""

    view_px: int
    local_px: int
    padding: str  # what lies outside a crop, one of `PADDINGS`
    keep_clean: bool  # views before colour augmentation are wanted, too


class ViewPlan(NamedTuple):
    """All that is random about the views of B crops; None where there is no such thing.

    Whoever makes pixels by the same plan makes the same pixels, up to rounding.
    """

    source_from_view: Tensor  # [B, G, 2, 3]
    crop_from_view: Tensor  # [B, G, 2, 3] the same after the hidden similarity
    is_masked: Tensor  # [B, G, N] bool
    hidden: Tensor  # [M] int64 places of True in it
    num_hidden: tuple[int, ...]  # of each sample
    displacement_ndc: Tensor | None  # [B, G, 2, c, c]
    from_partner: Tensor | None  # [B] bool, samples whose later views are cut from the partner
    # of the B G views; or of the B first and the B (G - 1) later ones
    colours: tuple[ColourPlan | None, ...]
    crop_from_local: Tensor | None  # [B, L, 2, 3]
    local_colours: ColourPlan | None  # of the B L local crops


class PlannedCrops(NamedTuple):
    """Crops and what is to become of them."""

    crops: CropBatch
    plan: ViewPlan
