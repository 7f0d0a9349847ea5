"""handmim: from unlabeled images of hands to 3D hand mesh estimators.

    import handmim

    predict = handmim.load()                            # a HandPredictor: crops in, hands out
    predict = handmim.load("runs/finetune/best.pt")     # the same, of your own training
    hand = handmim.HandModel.from_file("standin")       # MANO's interface
    backbone = handmim.load_backbone("runs/pretrain/backbone.safetensors")    # a ViT

The command line is in `handmim.cli`. Importing the package loads none of its parts.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handmim.evaluation.predictor import HandPredictor
    from handmim.hand.model import HandModel
    from handmim.models.vit import ViT

__version__ = "0.1.0"
__all__ = ["HandModel", "__version__", "load", "load_backbone"]


def load(checkpoint: str | Path = "small", device: str = "cpu", **options: Any) -> "HandPredictor":
    """The model of a fine-tuning run's best.pt or last.pt, or of a file of tools/export.py, as a
    function from crops to hands; "small" ships with handmim (data/handmim_small.md). Options are
    those of `HandPredictor.from_checkpoint`. Raises: FileNotFoundError; ValueError for another
    file."""
    from handmim.evaluation.predictor import HandPredictor

    return HandPredictor.from_checkpoint(checkpoint, device, **options)


def load_backbone(path: str | Path) -> "ViT":
    """A backbone from backbone.safetensors of a pretraining run. Raises: FileNotFoundError;
    ValueError for a file of another origin, which `timm.create_model` loads."""
    from handmim.models.exported import load_exported

    return load_exported(str(path))


def __getattr__(name: str) -> Any:
    if name == "HandModel":
        from handmim.hand.model import HandModel

        return HandModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
