"""FreiHAND (Zimmermann et al. 2019, public version 2): 32,560 hands before four backgrounds each.

Labels are metres, OpenCV camera, canonical order, right hands; the whole image is the hand's box.
The doctor runs the checks of this module too.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from handmim.data import label_checks as checks
from handmim.data import label_files as files
from handmim.data.datasets import arrays_digest, digest_of, files_digest, refuse_empty, split_text
from handmim.data.samples import crop_sample, cut, whole_image
from handmim.hand.conventions import freihand_hand, project_px, regressed_joints
from handmim.hand.io import NUM_VERTS, load_hand_arrays
from handmim.hand.model import HandModel
from handmim.hand.skeleton import FINGERTIP_VERTS, ROOT_JOINT
from handmim.images.decode import image_head, read_image
from handmim.types import CropSample, HandSample
from handmim.utils.arguments import below_one, one_of
from handmim.utils.findings import FEW_WRONG, Level, Notes, level_of, shown, spread

Array = NDArray[np.float64]
Labels = Mapping[str, Array]
Size = tuple[int, int]  # width and height of images
Ids = Mapping[str, NDArray[np.int64]]  # numbers of images by version

SPLITS = ("train", "val", "all", "evaluation")
PAGE = "https://lmb.informatik.uni-freiburg.de/resources/datasets/FreihandDataset.en.html"
SOURCE = "unpack FreiHAND_pub_v2.zip again"
CHECKED = 64  # samples whose labels are checked at the start
FIELDS = {"K": (3, 3), "xyz": (21, 3), "verts": (NUM_VERTS, 3), "mano": (61,)}
LARGEST = 1e6  # of a label that is no vertex
USUAL_M = 0.002  # version 2's own vertices are 0.6 mm off their vectors in the mean, up to 6
USUAL_JOINTS_M, LARGEST_JOINTS_M = 0.001, 0.005  # joints regressed from vertices, off the given
LARGEST_SCALE_ERROR = 0.02  # relative
# What single samples must be: by list, which of [n, ...] are, and what the others have.
POSSIBLE: dict[str, tuple[Callable[[Array], NDArray[np.bool_]], str]] = {
    "K": (checks.usable, checks.NO_CAMERA),
    "mano": (lambda vectors: vectors[:, 60] > 0, "no scale above 0 as number 60"),
    "xyz": (partial(checks.are_hands, sign_z=checks.OPENCV), checks.NO_HAND),
}


def split_samples(num: int, split: str, val_fraction: float, seed: int) -> NDArray[np.int64]:
    """Unique samples of a training split, so that one hand never straddles it: ids, sorted."""
    below_one(val_fraction=val_fraction)
    if split == "all":
        return np.arange(num)
    order = np.random.default_rng([seed, num]).permutation(num)
    num_val = round(val_fraction * num)
    return np.sort(order[:num_val] if split == "val" else order[num_val:])


def note_images(
    notes: Notes, folder: Path, names: set[str], ids: Ids, num: int, bad: Level
) -> tuple[str, ...]:
    """The versions that have any image, of `ids` by version; notes which are not among the files of
    the folder, of level `bad`, and files beyond the first `num`, which have no labels."""
    expected = {version: [f"{i:08d}.jpg" for i in each] for version, each in ids.items()}
    lost = {version: [n for n in each if n not in names] for version, each in expected.items()}
    present = tuple(version for version in ids if len(lost[version]) < len(ids[version]))
    missing = [name for version in present or ids for name in lost[version]]
    extra = sorted(name for name in names if name[:8].isdigit() and int(name[:8]) >= num)
    counts = ", ".join(f"{v} {len(each) - len(lost[v])} of {len(each)}" for v, each in ids.items())
    text = f"{folder} has images {counts}"
    text += f"; missing {shown(missing)}" if missing else ""
    text += f"; without labels {shown(extra)}: lists cut off, or of another version" * bool(extra)
    if extra or not present:
        bad = "error"
    elif not missing:  # whole versions are left out
        bad = "warning"
    fix = SOURCE
    if present and len(present) < len(ids):
        fix += f", or train on data.versions=[{','.join(present)}]"
    notes.judge(not extra and not any(lost.values()), "images", text, fix, bad=bad)
    return present


def check_freihand_labels(
    notes: Notes,
    part: str,
    raw: Labels,
    model: HandModel | None,
    size_px: Size | None,
    fall_on_masks: Callable[[NDArray[np.bool_], Labels], bool] | None = None,
) -> None:
    """Note what is wrong with labels [n, ...] of some samples, by name of the list. No model leaves
    out what needs it, no size (width, height) K; `fall_on_masks` compares joints with masks."""
    where = {name: f"{part}_{name}.json" for name in raw}
    is_finite = checks.finite(notes, {where[name]: values for name, values in raw.items()})
    labels = {name: values[is_finite] for name, values in raw.items()}
    if "xyz" in labels:
        with notes.guard("xyz"):
            xyz = labels.pop("xyz")
            labels["xyz"] = checks.settle_joints(
                notes, xyz, "canonical", checks.OPENCV, where["xyz"]
            )
    if "verts" in labels:
        with notes.guard("verts"):
            verts = checks.settle_unit(notes, labels.pop("verts"), where["verts"])
            labels["verts"] = checks.settle_axes(notes, verts, checks.OPENCV, where["verts"])
    if "scale" in labels and "xyz" in labels:
        bone_m = labels["xyz"][:, ROOT_JOINT] - labels["xyz"][:, ROOT_JOINT + 1]
        ratio = labels["scale"] / np.linalg.norm(bone_m, axis=1)
        middle = float(np.median(ratio))
        unit = next((u for u, m in checks.METRES.items() if abs(middle * m - 1) < 0.1), "m")
        if unit != "m":
            fix = f"metres are required: multiply it by {checks.METRES[unit]:g}, or {SOURCE}"
            notes.error("unit", f"{where['scale']} is in {unit}", fix)
        off = float(np.quantile(np.abs(ratio * checks.METRES[unit] - 1), 0.9))
        text = (
            f"{where['scale']} is within {off:.1%} of the bone from joint 9 to 10 in most samples"
        )
        notes.judge(off <= LARGEST_SCALE_ERROR, "scale", text)
    trusts_K = "K" in labels
    if trusts_K and size_px is not None:
        trusts_K = checks.note_cameras(notes, labels["K"], size_px, where["K"])
    if trusts_K and "xyz" in labels and fall_on_masks is not None:
        with notes.guard("mask"):
            trusts_K = fall_on_masks(is_finite, labels)
    if model is not None and "verts" in labels:
        with notes.guard("residual"):
            _note_pose(notes, part, labels, model, trusts_K)


def _note_pose(notes: Notes, part: str, labels: Labels, model: HandModel, trusts_K: bool) -> None:
    verts, off_m, tips = labels["verts"], np.inf, FINGERTIP_VERTS["freihand"]
    if "xyz" in labels:
        error = regressed_joints(verts, model.arrays.J_regressor, tips) - labels["xyz"]
        off_m = float(np.median(np.linalg.norm(error, axis=2).mean(axis=1)))
    if "mano" in labels and "K" in labels:
        pairs = zip(labels["mano"], labels["K"], strict=True)
        hands = [freihand_hand(vector, K, model.arrays.hands_mean) for vector, K in pairs]
        rotmats, betas, root_m = (np.stack(values) for values in zip(*hands, strict=True))
        hands_m = checks.posed(model, rotmats, betas).verts_m.double().numpy()
        joints = regressed_joints(hands_m, model.arrays.J_regressor, tips)
        hands_m = hands_m + (root_m - joints[:, ROOT_JOINT])[:, None]
        posing = f"{part}: posing {model.name} by the MANO vectors misses the given vertices"
        fix = f"{checks.OTHER_HAND}{SOURCE}; MANO v1.2 and FreiHAND version 2 give below 2 mm"
        if off_m <= USUAL_JOINTS_M:
            fix = f"vertices and joints agree, {part}_mano.json is of another version: {SOURCE}"
        placed = f"{part}: vertices placed by root, scale and K" if trusts_K else ""
        if not checks.note_posing(notes, hands_m, verts, posing, USUAL_M, fix, placed):
            return  # joints of another hand's regressor have no meaning
    if "xyz" in labels:
        text = f"{part}: joints regressed from the vertices are {off_m * 1e3:.2f} mm off the given"
        fix = f"{part}_xyz.json and _verts.json do not fit, or not this hand model: "
        fix += checks.OTHER_HAND + SOURCE
        bad: Level = "error" if off_m > LARGEST_JOINTS_M else "warning"
        notes.judge(off_m <= USUAL_JOINTS_M, "joints", text, fix, bad=bad)


def check_every_sample(
    notes: Notes, part: str, labels: Mapping[str, NDArray[np.floating]], size_px: Size | None
) -> None:
    """Note FreiHAND samples without a possible camera, hand or position, of all samples, for images
    of (width, height); a fault of most samples has another name in `check_freihand_labels`."""
    good: dict[str, NDArray[np.bool_]] = {}
    for name, values in labels.items():
        num, where = len(values), f"samples of {part}_{name}.json have"
        is_number = np.asarray((np.abs(values).reshape(num, -1) <= LARGEST).all(axis=1))
        odd = np.flatnonzero(~is_number).tolist()
        notes.count(odd, num, "finite", f"{where} NaN or numbers above {LARGEST:.0e}")
        is_possible, what = POSSIBLE[name]
        good[name] = is_possible(values.astype(np.float64)) | ~is_number
        odd = np.flatnonzero(~good[name]).tolist()
        if len(odd) < num / 2:
            bad = level_of(len(odd), num, 0.0 if name == "K" else FEW_WRONG)
            notes.count(odd, num, "samples", f"{where} {what}", bad=bad)
    if size_px is not None and "xyz" in labels and good["K"].all() and not notes.failed("finite"):
        xyz = np.where(good["xyz"][:, None, None], labels["xyz"], 1.0).astype(np.float64)
        off = np.abs(project_px(xyz, labels["K"].astype(np.float64)) - np.array(size_px) / 2)
        is_outside = good["xyz"] & np.all((off > size_px).any(axis=2), axis=1)
        odd, num = np.flatnonzero(is_outside).tolist(), len(xyz)
        text = f"samples of {part}_xyz.json and _K.json have all joints far outside of their image"
        notes.count(odd, num, "samples", text, bad=level_of(len(odd), num))


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
        versions: tuple[str, ...] = files.VERSIONS,
        val_fraction: float = 0.02,
        seed: int = 0,
        image_px: int = 224,
        crop_scale: float = 1.0,
        cache_dir: str | Path = "data/cache",
        partners: bool = False,
    ) -> None:
        one_of("split", split, SPLITS)
        if not versions or set(versions) - set(files.VERSIONS):
            raise ValueError(f"versions must be some of {files.VERSIONS}, got {list(versions)}")
        if partners and (split == "evaluation" or len(set(versions)) < 2):
            got = f"got split {split}, versions {list(versions)}"
            raise ValueError(f"partners=true requires two versions of training images, {got}")
        self.partners, self.root, self.split = partners, Path(root), split
        self.image_px, self.crop_scale = image_px, crop_scale
        self.source = split_text("FreiHAND", split, val_fraction, seed)
        self.folder = "evaluation" if split == "evaluation" else "training"
        folder = self.root / self.folder / "rgb"
        if not folder.is_dir():
            text = f"no {self.folder}/rgb below {root}: data.root is the unpacked FreiHAND_pub_v2"
            raise FileNotFoundError(f"{text} ({PAGE})")
        arrays = load_hand_arrays(hand_path)
        self.hand_sha256, self.hands_mean = arrays.sha256, arrays.hands_mean
        files.check_made_with(self.root, arrays)
        notes, names = Notes("freihand", SOURCE), set(files.file_names(folder))
        self.labels = self._read_labels(Path(cache_dir))
        self._check_labels(notes, HandModel(arrays), folder / min(names, default=""))
        self.num_unique = num = len(self.labels["K"])
        if split == "evaluation":
            samples, versions = np.arange(num), files.VERSIONS[:1]
        else:
            samples = split_samples(num, split, val_fraction, seed)
        refuse_empty(split, root, len(samples), val_fraction)
        ids = {version: samples + num * files.VERSIONS.index(version) for version in versions}
        num_images = num * (1 if split == "evaluation" else len(files.VERSIONS))
        self.versions = note_images(notes, folder, names, ids, num_images, "warning")
        notes.enforce(f"{self.root} (data.root)")
        if partners and len(self.versions) < 2:
            raise ValueError(f"partners=true requires two versions of images in {folder}")
        self._version_ids = [files.VERSIONS.index(version) for version in self.versions]
        self.ids = np.concatenate([ids[version] for version in self.versions])

    def _read_labels(self, cache: Path) -> dict[str, files.StoredArray]:
        labels: dict[str, files.StoredArray] = {}
        # Metrics are computed in float64: the ground truth keeps all its digits.
        dtype = "float64" if self.folder == "evaluation" else "float32"
        for name, shape in FIELDS.items():
            path = self.root / f"{self.folder}_{name}.json"
            # The ground truth of the evaluation came later; one can predict and submit without it.
            if path.is_file() or self.folder == "training" or name == "K":
                labels[name] = files.cached_number_lists(path, shape, cache, dtype)
        counts = {name: len(values) for name, values in labels.items()}
        if len(set(counts.values())) != 1:
            names = f"{self.root}/{self.folder}_*.json"
            raise ValueError(f"{names} differ in length: {counts}; unpack them again")
        return labels

    def _check_labels(self, notes: Notes, hand: HandModel, image: Path) -> None:
        """Check the size of all labels and, with the doctor's functions, the meaning of some."""
        every = {name: array.values for name, array in self.labels.items() if name != "verts"}
        head = image_head(image)
        size_px = None if head is None else head[:2]
        check_every_sample(notes, self.folder, every, size_px)
        if not notes.failed("finite"):
            chosen = spread(len(self.labels["K"]), CHECKED)
            raw = {name: array[chosen] for name, array in self.labels.items()}
            check_freihand_labels(notes, self.folder, raw, hand, size_px)

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
        image = read_image(self.root / self.folder / "rgb" / f"{image_id:08d}.jpg")
        return image, whole_image(image, self.crop_scale, self.image_px)

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
        K, joints, verts = label["K"], label.get("xyz"), label.get("verts")
        labels: dict[str, Any] = {"joint_convention": "freihand", "K_px": K, "verts_cam_m": verts}
        if joints is not None:
            labels |= {"kp2d_px": project_px(joints, K), "joints_cam_m": joints}
        if "mano" in label:
            rotmats, betas, _ = freihand_hand(label["mano"], K, self.hands_mean)
            labels |= {"rotmats": rotmats, "betas": betas}
        return crop_sample(image, crop_from_img, self.image_px, sample_id, **labels)
