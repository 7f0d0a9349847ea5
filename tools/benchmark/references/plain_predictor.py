"""Prediction as most demonstration code does it: one picture at a time, all that the model gives
brought back piece by piece."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handmim.data.augment import HandAugment
from handmim.geometry.crop import similarity
from handmim.tasks.mesh import HandRegressionTask


def predict_one_by_one(
    task: HandRegressionTask, augment: HandAugment, crops: NDArray[np.uint8]
) -> list[dict[str, Any]]:
    """Vertices, joints and parameters of [N, S, S, 3] crops of right hands, fp32, eager."""
    device = next(task.parameters()).device
    scale = torch.tensor([augment.evaluation_scale])
    answers = []
    for crop in crops:
        with torch.no_grad():
            stored = torch.from_numpy(crop.transpose(2, 0, 1)[None].copy()).to(device)
            source_from_crop = similarity(scale, torch.zeros(1), torch.zeros(1, 2)).to(device)
            picture = augment.cut(stored, source_from_crop)
            state = task.predict(picture)
        fields = {name: value for name, value in state._asdict().items() if value is not None}
        answers.append({name: value.cpu().numpy()[0] for name, value in fields.items()})
    return answers
