"""Writing a dataset by several processes, resumably. Run as `python -m synthesis.runner
JOB.json WORKER`.

Work is cut into blocks of items. A block's files are written first and its labels last, as one file
in a hidden folder, so that a block whose labels are there is finished. Lists are put together at
the end, and last of all comes the file that marks the set as whole.
"""

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from handmim.data.label_files import FACTS, PARTS
from handmim.hand.io import HandArrays, load_hand_arrays, resolve_hand_path
from handmim.render.cache import cores, run_workers
from handmim.render.scene import SceneSettings
from handmim.utils.console import Progress
from handmim.utils.files import atomic_path
from handmim.utils.processes import end_with_parent
from synthesis.layout import Labels, Layout, write_text
from synthesis.mano import write_fake_mano
from synthesis.metadata import (
    MANO_FILE,
    DatasetSpec,
    claim,
    own_files,
    spec_from_metadata,
)
from synthesis.scenes import SceneSource

log = logging.getLogger(__name__)

BLOCK = 32  # items


class Block(NamedTuple):
    """Consecutive items of a part."""

    part: str
    start: int
    stop: int

    def label_file(self, root: Path) -> Path:
        """Where its labels are once it is finished."""
        return root / PARTS / f"{self.part}-{self.start:08d}.npz"


def blocks_of(layout: Layout) -> list[Block]:
    """All work, in spec."""
    return [
        Block(part, start, min(start + BLOCK, count))
        for part, count in layout.counts.items()
        for start in range(0, count, BLOCK)
    ]


def write_block(layout: Layout, source: SceneSource, root: Path, block: Block) -> None:
    """Files of a block, then its labels."""
    rows = [layout.write(source, root, block.part, i) for i in range(block.start, block.stop)]
    labels = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    target = block.label_file(root)
    with atomic_path(target, sync=False) as partial, partial.open("wb") as file:
        np.savez(file, **labels)  # type: ignore[arg-type]


def run_job(job: Mapping[str, Any], worker: int, report: Callable[[], None] = lambda: None) -> None:
    """One worker's share of the pending blocks.

    Args:
        job: root, hand_path, metadata, blocks, num_workers.
        worker: 0 .. num_workers - 1.
        report: called after each block.
    """
    spec = spec_from_metadata(job["metadata"])
    source = SceneSource(load_hand_arrays(job["hand_path"]), spec.scene, spec.seed)
    layout = spec.layout()
    for block in job["blocks"][worker :: max(1, job["num_workers"])]:
        write_block(layout, source, Path(job["root"]), Block(*block))
        report()


def _labels(layout: Layout, root: Path, part: str) -> Iterator[Labels]:
    for block in blocks_of(layout):
        if block.part == part:
            with np.load(block.label_file(root), allow_pickle=False) as file:
                yield {name: file[name] for name in file.files}


def _render(layout: Layout, job: dict[str, Any], pending: Sequence[Block]) -> None:
    root, num_workers = Path(job["root"]), job["num_workers"]
    sizes = [(b, (b.stop - b.start) * layout.images_per_item[b.part]) for b in pending]

    def finished() -> int:
        return sum(size for block, size in sizes if block.label_file(root).is_file())

    with Progress(sum(size for _, size in sizes), log=log) as progress:

        def report() -> None:
            progress.update(finished)

        if not num_workers:
            run_job(job, 0, report)
            return
        # One small image here compiles the kernels before all processes would at the same time.
        small = SceneSettings(image_px=16, background="studio")
        SceneSource(load_hand_arrays(job["hand_path"]), small, 0).renderer("train").render(0)
        run_workers(__name__, job, root / PARTS, num_workers, report)


def _finish(root: Path, layout: Layout, arrays: HandArrays, metadata: Mapping[str, Any]) -> None:
    temp = root / PARTS
    layout.assemble(root, lambda part: _labels(layout, root, part), temp)
    if metadata["forge_mano"]:
        write_fake_mano(arrays, root / MANO_FILE)
    write_text(root / FACTS, [json.dumps(metadata, indent=2) + "\n"], temp)
    shutil.rmtree(temp)


def synthesize(
    root: str | Path,
    format: str,
    num: int,
    num_eval: int,
    scene: SceneSettings | Mapping[str, Any],
    *,
    hand_path: str | Path = "standin",
    seed: int = 0,
    fake_mano: bool = False,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a dataset, or go on with one that was interrupted.

    Every byte is a function of the settings, however many processes write them.

    Args:
        root: its folder.
        format: freihand, ho3d_v2, ho3d_v3 or folder.
        num, num_eval: samples of the two parts; FreiHAND has four training images of each.
        scene: `SceneSettings` or its fields.
        hand_path: hand model to draw, and the model of the labels.
        seed: of everything random.
        fake_mano: also write the hand model as mano/MANO_RIGHT.pkl.
        num_workers: processes that render; None recordings every core, 0 renders in this one.
        overwrite: replace a set that is there already.
    Returns: root.
    Raises: ValueError for bad settings; FileExistsError when the folder holds something else.
    """
    root = Path(root)
    settings = scene if isinstance(scene, SceneSettings) else SceneSettings(**scene)
    spec = DatasetSpec(format, num, num_eval, seed, settings, fake_mano)
    num_workers = cores() if num_workers is None else num_workers
    if num_workers < 0:
        raise ValueError(f"num_workers must be >= 0, got {num_workers}")
    arrays = load_hand_arrays(hand_path)
    SceneSource(arrays, settings, seed)  # refuses a hand that cannot be rendered
    metadata = spec.metadata(arrays)
    if not claim(root, metadata, overwrite):
        log.info("%s is whole already: %d %s samples", root, num, format)
        return root
    layout = spec.layout()
    for folder in {str(Path(name).parent) for name in own_files(spec)}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    todo = blocks_of(layout)
    pending = [block for block in todo if not block.label_file(root).is_file()]
    images = sum((b.stop - b.start) * layout.images_per_item[b.part] for b in pending)
    began = time.perf_counter()
    log.info(
        "%s: %d of %d blocks are there, %d images to go, %d processes",
        root, len(todo) - len(pending), len(todo), images, max(1, num_workers),
    )  # fmt: skip
    job = {
        "root": str(root.resolve()),
        "hand_path": str(resolve_hand_path(hand_path).resolve()),
        "metadata": metadata,
        "blocks": pending,
        "num_workers": min(num_workers, len(pending)),
    }
    if pending:
        _render(layout, job, pending)
    _finish(root, layout, arrays, metadata)
    seconds = time.perf_counter() - began
    log.info("%d images in %.0f s (%.1f/s): %s", images, seconds, images / seconds, root)
    return root


if __name__ == "__main__":
    end_with_parent()
    run_job(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]))
