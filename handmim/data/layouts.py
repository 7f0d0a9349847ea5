"""Facts of layouts that reading and writing share. No torch: rendering processes use it."""

import os
import re
from pathlib import Path

FACTS = "handmim.json"  # what a rendered set says of itself; written last: with it a set is whole
PARTS = ".parts"  # folder in a rendered set until it is whole

# FreiHAND: order in which the backgrounds follow each other, image id = sample + number * place.
VERSIONS = ("gs", "hom", "sample", "auto")


def take_of(sequence: str) -> str:
    """The take of an HO-3D sequence: of two final digits the second is the camera.

    ABF10 and ABF14 are of ABF1, MC1 is a take of its own.
    """
    match = re.match(r"^(.*\d)\d$", sequence)
    return match.group(1) if match else sequence


def file_names(folder: Path) -> list[str]:
    """Names of the files in a folder, in no order; none where there is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if not entry.is_dir()]
