"""A checkpoint of fine-tuning as one small file, for prediction alone."""

import argparse
from pathlib import Path

from handmim.evaluation.model_file import model_content, write_model
from handmim.evaluation.predictor import hand_config, load_model, read_model_checkpoint
from handmim.utils.entry import given_output, given_path
from handmim.utils.paths import STANDIN


def main() -> None:
    """Write the weights that predict, averaged ones where they are kept, with their config."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=given_path, help="best.pt or last.pt of a fine-tuning")
    parser.add_argument("out", type=given_output, help="FILE.safetensors")
    parser.add_argument("--hand", help="path of the hand model that the file names")
    args = parser.parse_args()
    export(args.checkpoint, args.out, args.hand)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB, loads with handmim.load")


def export(checkpoint: Path, out: Path, hand: str | None = None) -> None:
    """Raises: FileNotFoundError and ValueError as `read_model_checkpoint` and `load_model`."""
    saved = read_model_checkpoint(checkpoint)
    config = saved["config"]
    if hand is None and Path(config["hand"]["path"]).name == STANDIN.name:
        hand = "standin"  # wherever the file is read
    config["hand"] = hand_config(saved, {"path": hand})
    task, _ = load_model(saved, config["hand"], str(checkpoint))
    write_model(model_content(saved, task.eval().predicting().state_dict()), out)
