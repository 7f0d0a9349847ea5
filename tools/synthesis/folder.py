"""A tree of unlabeled square hand crops, as pretraining takes it."""

from collections.abc import Callable, Iterator
from pathlib import Path

from synthesis.layout import Labels, write_picture
from synthesis.studio import Studio

NUM_FOLDERS = 4


class FolderLayout:
    """Crops dealt out to a few subfolders.

    Args:
        num: images.
        num_eval: 0: there is nothing to evaluate on.
    """

    side_multiple = 1

    def __init__(self, num: int, num_eval: int) -> None:
        if not 1 <= num < 10**8:
            raise ValueError(f"num must be 1 to {10**8 - 1} for format=folder, got {num} (num=)")
        if num_eval:
            raise ValueError(
                f"format=folder has no evaluation part, got num_eval={num_eval} (num_eval=0)"
            )
        self.counts = {"crops": num}
        self.pictures_per_item = {"crops": 1}

    @staticmethod
    def _file(index: int) -> str:
        return f"set_{index % NUM_FOLDERS}/{index:08d}.jpg"

    def files(self) -> Iterator[str]:
        """Every file below the root, relative to it."""
        return (self._file(i) for i in range(self.counts["crops"]))

    def write(self, studio: Studio, root: Path, part: str, index: int) -> Labels:
        """One crop."""
        write_picture(root / self._file(index), studio.renderer("train").render(index).image)
        return {}

    def assemble(self, root: Path, blocks: Callable[[str], Iterator[Labels]], temp: Path) -> None:
        """Nothing to write: there are no labels."""
