"""Metadata of a synthesised dataset, and whose files a folder holds: nobody else's are overwritten
or deleted."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handmim.data.label_files import FACTS, PARTS
from handmim.hand.io import HandArrays
from handmim.render.scene import RENDERER_VERSION, SceneSettings
from handmim.utils.json_files import read_object
from handmim.utils.renames import update_targets
from synthesis.freihand import FreiHandLayout
from synthesis.ho3d import Ho3dV2Layout, Ho3dV3Layout
from synthesis.layout import FolderLayout, Layout, write_text

log = logging.getLogger(__name__)

SETTINGS = "settings.json"  # metadata of an unfinished set, in PARTS
LAYOUT_VERSION = 2  # raise it when the files of the same settings change
MANO_FILE = "mano/MANO_RIGHT.pkl"
LAYOUTS: Mapping[str, type[Any]] = {
    "freihand": FreiHandLayout,
    "ho3d_v2": Ho3dV2Layout,
    "ho3d_v3": Ho3dV3Layout,
    "folder": FolderLayout,
}


@dataclass(frozen=True)
class DatasetSpec:
    """Settings of a dataset.

    Args:
        format: a key of LAYOUTS.
        num, num_eval: samples of the two parts, as the format counts them.
        seed: of everything random.
        scene: of the images.
        fake_mano: also write the hand model as a pickle like MANO's own.
    """

    format: str
    num: int
    num_eval: int
    seed: int
    scene: SceneSettings
    fake_mano: bool

    def __post_init__(self) -> None:
        if self.format not in LAYOUTS:
            raise ValueError(f"format must be one of {sorted(LAYOUTS)}, got {self.format!r}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
        multiple = self.layout().side_multiple
        if self.scene.image_px % multiple:
            raise ValueError(
                f"images of {self.format} need scene.image_px to be a multiple of {multiple}, "
                f"got {self.scene.image_px}"
            )

    def layout(self) -> Layout:
        """Its files."""
        made: Layout = LAYOUTS[self.format](self.num, self.num_eval)
        return made

    def metadata(self, arrays: HandArrays) -> dict[str, Any]:
        """JSON-ready: the same metadata means the same bytes in every file."""
        return {
            "hand": arrays.name,
            "hand_sha256": arrays.sha256,
            "format": self.format,
            "num": self.num,
            "num_eval": self.num_eval,
            "seed": self.seed,
            "renderer": RENDERER_VERSION,
            "layout": LAYOUT_VERSION,
            "forge_mano": self.fake_mano,  # the key of earlier sets
            "scene": self.scene.plain(),
        }


def spec_from_metadata(metadata: Mapping[str, Any]) -> DatasetSpec:
    """The settings of a set that is there."""
    fields = {key: metadata[key] for key in ("format", "num", "num_eval", "seed")}
    update_targets(known := {"scene": dict(metadata["scene"])})
    scene = SceneSettings(**known["scene"])
    return DatasetSpec(**fields, scene=scene, fake_mano=metadata["forge_mano"])


def own_files(spec: DatasetSpec) -> Iterator[str]:
    """Every file of a set but FACTS, relative to its root."""
    yield from spec.layout().files()
    if spec.fake_mano:
        yield MANO_FILE


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no file.

    Raises: ValueError for a damaged file.
    """
    return read_object(path) if path.is_file() else None


def claim(root: Path, metadata: Mapping[str, Any], overwrite: bool) -> bool:
    """Prepare `root` for a set, or find that it already holds it.

    Args:
        root: folder, made when missing.
        metadata: of the set.
        overwrite: replace a finished set, or an unfinished other one.
    Returns: False when the set is there and whole, True when it is to be made or finished.
    Raises: FileExistsError when the folder holds another set or files of someone else.
    """
    done, begun = read_json(root / FACTS), read_json(root / PARTS / SETTINGS)
    if done == metadata and not overwrite:
        shutil.rmtree(root / PARTS, ignore_errors=True)
        return False
    old = done or begun
    if old is None and root.exists() and {p.name for p in root.iterdir()} - {PARTS}:
        raise FileExistsError(
            f"{root} holds files that this tool did not write: choose an empty folder (root=)"
        )
    if old is not None and (done is not None or begun != metadata):
        if not overwrite:
            state = "a" if done is not None else "an unfinished"
            other = sorted(k for k in {*old, *metadata} if old.get(k) != metadata.get(k))
            raise FileExistsError(
                f"{root} holds {state} set that differs in {', '.join(other)}: choose another "
                "folder (root=) or replace it (overwrite=true)"
            )
        remove(root, old)
    (root / PARTS).mkdir(parents=True, exist_ok=True)
    write_text(root / PARTS / SETTINGS, [json.dumps(metadata, indent=2) + "\n"], root / PARTS)
    return True


def remove(root: Path, metadata: Mapping[str, Any]) -> None:
    """Delete the files that `metadata` prove to be ours, and folders that this leaves empty.

    Interrupted, it leaves an unfinished set that can be removed again.
    """
    log.info("removing the set of %s in %s", metadata["format"], root)
    (root / PARTS).mkdir(exist_ok=True)
    write_text(root / PARTS / SETTINGS, [json.dumps(metadata) + "\n"], root / PARTS)
    (root / FACTS).unlink(missing_ok=True)
    folders: set[Path] = set()
    for name in own_files(spec_from_metadata(metadata)):
        (root / name).unlink(missing_ok=True)
        folders.update(p for p in Path(name).parents if p.parts)
    shutil.rmtree(root / PARTS)
    for folder in sorted(folders, key=lambda p: -len(p.parts)):
        if (root / folder).is_dir() and not any((root / folder).iterdir()):
            (root / folder).rmdir()
