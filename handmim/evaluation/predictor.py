"""A fine-tuned checkpoint as a model, and as a function of arrays: crops in, 3D hands out."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from handmim.data.augment import HandAugment
from handmim.engine.checkpoint import check_fits, check_saved, load_checkpoint
from handmim.evaluation.inference import InferenceModule
from handmim.evaluation.model_file import read_model
from handmim.geometry.camera import px_from_ndc, solve_translation
from handmim.hand.conventions import mirror_intrinsics, mirror_points, mirror_rotmats
from handmim.tasks.regression import RegressionTask
from handmim.utils.arguments import at_least, one_of
from handmim.utils.config import build, set_everywhere
from handmim.utils.paths import SMALL_MODEL
from handmim.utils.tensor_files import is_safetensors
from handmim.utils.timer import Stages

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
# What constructors raise for values of a wrong kind or size.
UNBUILDABLE = (ValueError, RuntimeError, TypeError, AttributeError, LookupError, ArithmeticError)


def model_file(path: str | Path) -> Path:
    """The file of a model: the name "small" is that which ships; `Path("small")` and "./small" are
    files of the caller."""
    return SMALL_MODEL if path == "small" else Path(path)


def read_model_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of fine-tuning, or a model exported from one, whose config builds nothing but
    our own parts; "small" ships with handmim. Raises: FileNotFoundError; ValueError naming the
    entry that is missing or of another kind."""
    path = model_file(path)
    is_exported = path.is_file() and is_safetensors(path)
    saved = read_model(path) if is_exported else load_checkpoint(path, map_location="cpu")
    check_saved(saved, path)
    return saved


def hand_config(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Config of the hand model: the checkpoint's own, but for what is given and not None."""
    return {**saved["config"]["hand"], **{k: v for k, v in given.items() if v is not None}}


def build_part(config: Any, path: str, key: str, kind: type = object) -> Any:
    """Build a part of a checkpoint's config; errors name the checkpoint and the part's key."""
    try:
        part = build(config)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error} ({key} of its config)") from error
    except (OmegaConfBaseException, *UNBUILDABLE) as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: {key} of its config cannot be built: {text[0]}") from error
    if not isinstance(part, kind):
        raise ValueError(f"{path}: {key} of its config builds a {type(part).__name__}")
    return part


def load_model(
    saved: Mapping[str, Any], hand: Mapping[str, Any], path: str
) -> tuple[RegressionTask, HandAugment]:
    """The model of `read_model_checkpoint`, its weights loaded, and the rule that its crops are cut
    by; `hand` as `hand_config` gives it. Raises FileNotFoundError for the hand model, ValueError
    for another hand than it was trained with, and for a config that does not fit the weights."""
    config = OmegaConf.create(saved["config"])
    set_everywhere(config.task, "hand", hand)  # bare joints have none
    if Path(hand["path"]).exists() and not Path(hand["path"]).is_file():
        raise ValueError(f"{path}: {hand['path']} is no regular file")
    augment = build_part(config.augment, path, "augment", HandAugment)
    _check_networks(config.task, saved["task"], path)
    task = build_part(config.task, path, "task", RegressionTask)
    own, known = task.hand_metadata(), saved["meta"]
    check_same_hand(own.get("hand_sha256"), known.get("hand_sha256"), path)
    # What trained on unlabeled crops takes no part in predictions.
    tensors = {k: v for k, v in saved["task"].items() if not k.startswith("unlabeled.")}
    check_fits(tensors, task.state_dict(), path)
    task.load_state_dict(tensors)
    return task, augment


def _check_networks(config: DictConfig, tensors: Mapping[str, Any], path: str) -> None:
    """Compare backbone and head with the checkpoint's tensors, before either takes memory."""
    head: Any = OmegaConf.to_container(config.head)
    hand = {"hand": build_part(head.pop("hand"), path, "hand")} if "hand" in head else {}
    with torch.device("meta"):
        parts = {"backbone": build_part(config.backbone, path, "task.backbone")}
        make = build_part({**head, "_partial_": True}, path, "task.head")
        try:
            parts["head"] = make(dim=parts["backbone"].embed_dim, **hand)
        except UNBUILDABLE as error:
            raise ValueError(f"{path}: task.head of its config cannot be built: {error}") from error
    here = {f"{name}.{k}": v for name, part in parts.items() for k, v in part.state_dict().items()}
    check_fits({k: v for k, v in tensors.items() if k.startswith(tuple(parts))}, here, path)


def check_same_hand(model: str | None, data: str | None, where: str) -> None:
    """Refuse to mix hand models: SHA-256 of the model's hand and of that which labels or weights
    `where` were made with, None for one that has none."""
    if model is not None and data is not None and data != model:
        text = f"{where} was made with hand model {data[:12]}, the model's hand is {model[:12]}"
        raise ValueError(f"{text}: vertices and betas do not correspond (hand.path, data)")


class HandPredictions(NamedTuple):
    """Hands of N crops: canonical joint order, OpenCV axes, left hands as left hands."""

    joints_root_m: NDArray[np.float32]  # [N, 21, 3] metres from the middle knuckle
    joints_crop_px: NDArray[np.float32]  # [N, 21, 2] in the crops that were given
    verts_root_m: NDArray[np.float32] | None  # [N, V, 3]; None where bare joints are regressed
    verts_crop_px: NDArray[np.float32] | None  # [N, V, 2]
    rotmats: NDArray[np.float32] | None  # [N, 16, 3, 3] of the hand model, wrist first
    betas: NDArray[np.float32] | None  # [N, 10]
    # [N, 3] root translation in metres: points relative to the root plus it are in the camera's
    # frame; NaN where the intrinsics are not known
    transl_cam_m: NDArray[np.float64]


def hand_predictions(
    estimate: Any,
    module: InferenceModule,
    K_px: Tensor,
    has_K: Tensor,
    is_left: NDArray[np.bool_],
    side_px: int,
) -> HandPredictions:
    """Estimates of B right hands, on the CPU, as hands in the stored crops of side `side_px` and
    before the camera, left hands mirrored back; `K_px` [B, 3, 3] is of the mirrored stored crops,
    `has_K` [B] says where it is known."""
    transl = np.full((len(is_left), 3), np.nan)
    if bool(has_K.any()):
        known = type(estimate)(*(None if field is None else field[has_K] for field in estimate))
        K_crop_px = module.crop_intrinsics(K_px[has_K].to(module.device), side_px).cpu()
        # The estimate's own where it is metric, or else solved from its projection.
        seen_px = px_from_ndc(known.joints_crop_ndc.double(), module.augment.img_px)
        solved = solve_translation(known.joints_root_m.double(), seen_px, K_crop_px)
        own, is_metric = (getattr(known, name, None) for name in ("transl_cam_m", "is_metric"))
        if own is not None and is_metric is not None:
            solved = torch.where(is_metric[:, None], own.double(), solved)
        transl[has_K.numpy()] = solved.numpy()

    def array(name: str) -> Any:
        value = getattr(estimate, name, None)
        return None if value is None else value.numpy().copy()

    joints, joints_px = array("joints_root_m"), array("joints_crop_ndc")
    verts, verts_px = array("verts_root_m"), array("verts_crop_ndc")
    for points_px in (joints_px, verts_px):
        if points_px is not None:  # both crops have the same centre
            points_px *= module.augment.evaluation_scale * side_px / 2
            points_px += side_px / 2
            points_px[is_left, :, 0] = side_px - points_px[is_left, :, 0]
    for points in (joints, verts, transl):
        if points is not None:
            points[is_left] = mirror_points(points[is_left])
    rotmats = array("rotmats")
    if rotmats is not None:
        rotmats[is_left] = mirror_rotmats(rotmats[is_left])
    return HandPredictions(joints, joints_px, verts, verts_px, rotmats, array("betas"), transl)


class HandPredictor:
    """Crops of hands through a trained model; left hands are mirrored before and after.

    A crop is a square around a hand as the training set has them, of any side. The model sees its
    middle, as in evaluation. The last batch is filled up for compile and cuda_graph.
    """

    def __init__(self, module: InferenceModule, batch_size: int = 64) -> None:
        at_least(1, batch_size=batch_size)
        self.module, self.batch_size = module, batch_size

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, device: str | torch.device = "cpu", *, hand_path: str | None = None,
        precision: str = "32-true", batch_size: int = 64, **options: Any,
    ) -> "HandPredictor":  # fmt: skip
        """From last.pt or best.pt of a fine-tuning, or a file of tools/export.py; crops are cut as
        its evaluation cuts them.

        Args:
            path: of the checkpoint; "small" ships with handmim (data/handmim_small.md).
            hand_path: of the hand model, where its file has moved.
            precision: one of `PRECISIONS`.
            options: joint_convention, views, compile, cuda_graph of `InferenceModule`.
        Raises: FileNotFoundError, ValueError.
        """
        path = model_file(path)
        if path.is_dir():
            raise FileNotFoundError(f"{path} is a folder: {path / 'last.pt'} or best.pt")
        autocast = autocast_of(precision, device)
        saved = read_model_checkpoint(path)
        task, augment = load_model(saved, hand_config(saved, {"path": hand_path}), str(path))
        return cls(InferenceModule(task, augment, device, autocast=autocast, **options), batch_size)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.module.device

    @torch.inference_mode()
    def __call__(
        self,
        crops: NDArray[np.uint8],
        K_px: NDArray[np.floating] | None = None,
        is_right: NDArray[np.bool_] | None = None,
        stages: Stages | None = None,
    ) -> HandPredictions:
        """Hands of any number of crops.

        Args:
            crops: [N, S, S, 3] RGB, N >= 1.
            K_px: [3, 3] or [N, 3, 3] intrinsics of the crops; those with a NaN are not known.
            is_right: [N] bool; all are right hands when left out.
            stages: takes the times of the stages, for which the device is waited for after each.
        """
        crops = np.asarray(crops)
        is_square = crops.ndim == 4 and crops.shape[1] == crops.shape[2] and crops.shape[3] == 3
        if not is_square or crops.dtype != np.uint8 or not len(crops):
            came = f"{crops.shape} of {crops.dtype}"
            raise ValueError(f"crops must be [N, S, S, 3] of uint8 in 0..255, N >= 1, got {came}")
        num = len(crops)
        right = np.ones(num, bool) if is_right is None else np.asarray(is_right)
        K = np.full((3, 3), np.nan) if K_px is None else np.asarray(K_px)
        if right.dtype != bool or right.shape != (num,) or K.shape not in ((3, 3), (num, 3, 3)):
            text = f"{num} crops require K_px [3, 3] or [{num}, 3, 3] and is_right [{num}] of bool"
            raise ValueError(f"{text}, got {K.shape} and {right.shape} of {right.dtype}")
        K = np.broadcast_to(K, (num, 3, 3))
        if (K[:, [0, 1], [0, 1]] <= 0).any():
            raise ValueError("focal lengths in K_px must be > 0 (NaN where they are not known)")
        pieces = [slice(i, i + self.batch_size) for i in range(0, num, self.batch_size)]
        parts = [self._batch(crops[p], K[p], ~right[p], stages) for p in pieces]
        columns = zip(*parts, strict=True)
        joined: list[Any] = [None if c[0] is None else np.concatenate(c) for c in columns]
        return HandPredictions(*joined)

    def _batch(
        self,
        crops: NDArray[np.uint8],
        K_px: NDArray[np.floating],
        is_left: NDArray[np.bool_],
        stages: Stages | None,
    ) -> HandPredictions:
        num, side_px = crops.shape[:2]
        if stages is not None:
            stages.begin()
        if is_left.any():
            crops = np.where(is_left[:, None, None, None], crops[:, :, ::-1], crops)
            K_px = np.where(is_left[:, None, None], mirror_intrinsics(K_px, side_px), K_px)
        has_K = torch.from_numpy(np.isfinite(K_px).all(axis=(1, 2)))
        K = torch.from_numpy(np.nan_to_num(K_px).astype(np.float32))
        inputs = [torch.from_numpy(np.ascontiguousarray(crops)), K, has_K]
        missing = self.batch_size - num
        if missing and self.module.has_fixed_batches:  # whole batches, the first sample repeated
            inputs = [torch.cat([t, t[:1].expand(missing, *t.shape[1:])]) for t in inputs]
        image, *of_camera = (t.to(self.device) for t in inputs)
        if stages is not None:
            stages.done("upload", num)
        with self.module.staged(stages, num):
            estimate = self.module(image.permute(0, 3, 1, 2), *of_camera)
        on_host = type(estimate)(*(None if f is None else f[:num].cpu() for f in estimate))
        hands = hand_predictions(on_host, self.module, K, has_K, is_left, side_px)
        if stages is not None:
            stages.done("download", num)
        return hands


def autocast_of(precision: str, device: str | torch.device) -> partial[torch.autocast]:
    """The model's precision, a name of `PRECISIONS`, as a context of a device."""
    one_of("precision", precision, PRECISIONS)
    dtype = PRECISIONS[precision]
    return partial(torch.autocast, torch.device(device).type, dtype, enabled=dtype is not None)
