"""FreiHAND (Zimmermann et al. 2019, public version 2): 32,560 hands before four backgrounds each.

Labels are metres, OpenCV camera, canonical order, right hands; the whole image is the hand's box.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from handmim.data.benchmark_checks import SOURCE, check_every_sample, check_freihand_labels
from handmim.data.datasets import arrays_digest, digest_of, files_digest, refuse_empty, split_text
from handmim.data.label_files import (
    VERSIONS,
    StoredArray,
    cached_number_lists,
    check_made_with,
    file_names,
)
from handmim.data.samples import crop_map, crop_sample, cut
from handmim.hand.arrays import NUM_VERTS
from handmim.hand.conventions import freihand_hand, project_px
from handmim.hand.io import load_hand_arrays
from handmim.hand.model import HandModel
from handmim.images.decode import image_head, read_image
from handmim.types import CropSample, HandSample
from handmim.utils.arguments import below_one, one_of
from handmim.utils.findings import Notes, shown, spread

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "all", "evaluation")
CHECKED = 64  # samples whose labels are checked at the start
FIELDS: dict[str, tuple[int, ...]] = {
    "K": (3, 3),
    "xyz": (21, 3),
    "verts": (NUM_VERTS, 3),
    "mano": (61,),
}


def split_samples(num: int, split: str, val_fraction: float, seed: int) -> NDArray[np.int64]:
    """Unique samples of a training split, so that one hand never straddles it: ids, sorted."""
    below_one(val_fraction=val_fraction)
    if split == "all":
        return np.arange(num)
    order = np.random.default_rng([seed, num]).permutation(num)
    num_val = round(val_fraction * num)
    return np.sort(order[:num_val] if split == "val" else order[num_val:])


def missing_images(
    names: set[str], samples: Sequence[int], num: int, versions: Sequence[str]
) -> dict[str, list[str]]:
    """Images of `samples`, of `num` unique ones, that are not among `names`, by version."""
    missing: dict[str, list[str]] = {}
    for version in versions:
        first = num * VERSIONS.index(version)
        files = (f"{first + int(sample):08d}.jpg" for sample in samples)
        missing[version] = [name for name in files if name not in names]
    return missing


class FreiHand(Dataset[HandSample | CropSample]):
    """Labelled crops of one split, or its images in pairs of one hand.

    "train" and "val" share the training images, cut by unique sample; "all" is both; "evaluation"
    is the official one, labelled where the released ground truth is beside it. `versions` without
    any image are left out with a warning. `partners` gives unlabelled crops, each with the same
    hand before another background as its partner and the hand as its group.
    """

    def __init__(
        self,
        root: str | Path,
        hand_path: str | Path,
        *,
        split: str = "train",
        versions: tuple[str, ...] = VERSIONS,
        val_fraction: float = 0.02,
        seed: int = 0,
        image_px: int = 224,
        crop_scale: float = 1.0,
        cache_dir: str | Path = "data/cache",
        partners: bool = False,
    ) -> None:
        one_of("split", split, SPLITS)
        if not versions or set(versions) - set(VERSIONS):
            raise ValueError(f"versions must be some of {VERSIONS}, got {list(versions)}")
        if partners and (split == "evaluation" or len(set(versions)) < 2):
            got = f"got split {split}, versions {list(versions)}"
            raise ValueError(f"partners=true requires two versions of training images, {got}")
        self.partners = partners
        self.root, self.split, self.image_px = Path(root), split, image_px
        self.crop_scale = crop_scale
        self.source = split_text("FreiHAND", split, val_fraction, seed)
        self.folder = "evaluation" if split == "evaluation" else "training"
        folder = self.root / self.folder / "rgb"
        if not folder.is_dir():
            raise FileNotFoundError(
                f"no {self.folder}/rgb below {root}: data.root is the unpacked FreiHAND_pub_v2 "
                "(https://lmb.informatik.uni-freiburg.de/resources/datasets/FreihandDataset.en.html)"
            )
        arrays = load_hand_arrays(hand_path)
        self.hand_sha256, self.hands_mean = arrays.sha256, arrays.hands_mean
        check_made_with(self.root, arrays)
        names = set(file_names(folder))
        self.labels = self._read_labels(Path(cache_dir))
        self._check_labels(HandModel(arrays), min(names, default=""))
        self.num_unique = num = len(self.labels["K"])
        last = max((name for name in names if name[:8].isdigit()), default="")
        if last and int(last[:8]) >= num * (1 if split == "evaluation" else len(VERSIONS)):
            raise ValueError(
                f"{folder} has images up to {last}, the lists have {num} entries: they are of "
                "different versions, or the lists are cut off; unpack FreiHAND again"
            )
        if split == "evaluation":
            samples, versions = np.arange(num), VERSIONS[:1]
        else:
            samples = split_samples(num, split, val_fraction, seed)
        refuse_empty(split, root, len(samples), val_fraction)
        self.versions = self._present(folder, names, samples, versions)
        if partners and len(self.versions) < 2:
            raise ValueError(f"partners=true requires two versions of images in {folder}")
        self._version_ids = [VERSIONS.index(version) for version in self.versions]
        self.ids = np.concatenate([samples + num * v for v in self._version_ids])

    def _read_labels(self, cache: Path) -> dict[str, StoredArray]:
        labels: dict[str, StoredArray] = {}
        # Metrics are computed in float64: the ground truth keeps all its digits.
        dtype = "float64" if self.folder == "evaluation" else "float32"
        for name, shape in FIELDS.items():
            path = self.root / f"{self.folder}_{name}.json"
            # The ground truth of the evaluation came later; one can predict and submit without it.
            if path.is_file() or self.folder == "training" or name == "K":
                labels[name] = cached_number_lists(path, shape, cache, dtype)
        counts = {name: len(values) for name, values in labels.items()}
        if len(set(counts.values())) != 1:
            names = f"{self.root}/{self.folder}_*.json"
            raise ValueError(f"{names} differ in length: {counts}; unpack them again")
        return labels

    def _check_labels(self, hand: HandModel, image: str) -> None:
        """Check the size of all labels and, with the doctor's functions, the meaning of some."""
        notes, part = Notes("freihand", SOURCE), self.folder
        every = {name: array.values for name, array in self.labels.items() if name != "verts"}
        head = image_head(self.root / part / "rgb" / image)
        size_px = None if head is None else head[:2]
        check_every_sample(notes, part, every, size_px)
        if not notes.failed("finite"):
            chosen = spread(len(self.labels["K"]), CHECKED)
            raw = {name: array[chosen] for name, array in self.labels.items()}
            check_freihand_labels(notes, part, raw, hand, size_px)
        notes.enforce(f"{self.root} (data.root)")

    def _present(
        self, folder: Path, names: set[str], samples: NDArray[np.int64], versions: Sequence[str]
    ) -> tuple[str, ...]:
        """The versions of which there are images of `samples`; missing images are logged. Raises:
        FileNotFoundError when no version has any."""
        missing = missing_images(names, samples.tolist(), self.num_unique, versions)
        present = tuple(version for version in versions if len(missing[version]) < len(samples))
        lost = [name for version in present or versions for name in missing[version]]
        counts = ", ".join(f"{v} {len(samples) - len(missing[v])}" for v in versions)
        text = f"{folder} has of {len(samples)} images of each version: {counts}"
        if not present:
            raise FileNotFoundError(f"{text}; missing {shown(lost)}")
        if present != tuple(versions):
            listed = ",".join(present)
            log.warning("%s: training on %s (data.versions=[%s])", text, listed, listed)
        if lost:
            log.warning("%s; missing %s: unpack FreiHAND again", text, shown(lost))
        return present

    def label_of(self, index: int) -> int:
        """The hand of an image: images of one hand share one label."""
        return int(self.ids[index]) % self.num_unique

    def label_id(self, index: int) -> str:
        """Its number among the unique samples, from 0 on as in FreiHAND's JSON files."""
        return str(self.label_of(index))

    def fingerprint(self) -> str:
        """Digest of the labels, of the ids in this part and of some of its images."""
        names = [f"{self.folder}/rgb/{self.ids[i]:08d}.jpg" for i in spread(len(self.ids))]
        images = files_digest(self.root, names)
        return digest_of(arrays_digest(self.labels.values()), self.ids.tobytes(), images)

    def __len__(self) -> int:
        return len(self.ids)

    def _read(self, image_id: int) -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
        """An image, and crop_from_img."""
        image = read_image(self.root / self.folder / "rgb" / f"{image_id:08d}.jpg")
        height, width = image.shape[:2]
        return image, crop_map(np.array([0, 0, width, height]), self.crop_scale, self.image_px)

    def __getitem__(self, index: int) -> HandSample | CropSample:
        image_id = int(self.ids[index])
        version, item = divmod(image_id, self.num_unique)
        sample_id = f"{self.folder}/{image_id:08d}"
        image, crop_from_img = self._read(image_id)
        if self.partners:
            crop = cut(image, crop_from_img, self.image_px)
            # Always the same other background for an image.
            others = [v for v in self._version_ids if v != version]
            other = int(np.random.default_rng(image_id).choice(others))
            partner = cut(*self._read(item + self.num_unique * other), self.image_px)
            return CropSample(crop, sample_id, partner=partner, group=f"freihand {item}")
        label = {name: values[item] for name, values in self.labels.items()}
        K, joints = label["K"], label.get("xyz")
        rotmats = betas = None
        if "mano" in label:
            rotmats, betas, _ = freihand_hand(label["mano"], K, self.hands_mean)
        return crop_sample(
            image,
            crop_from_img,
            self.image_px,
            sample_id,
            joint_convention="freihand",
            K_px=K,
            kp2d_px=None if joints is None else project_px(joints, K),
            joints_cam_m=joints,
            verts_cam_m=label.get("verts"),
            rotmats=rotmats,
            betas=betas,
        )
