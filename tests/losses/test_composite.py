import pytest
import torch

from handmim.losses.composite import CompositeLoss, LossTerm
from handmim.types import StepInfo


class Fixed(LossTerm):
    def __init__(self, value: float, weight: float):
        super().__init__(weight)
        self.value = value

    def forward(self, out, batch):
        return torch.tensor(self.value)


def test_a_composite_loss_weights_names_and_keeps_zero_in_the_graph():
    total = CompositeLoss({"a": Fixed(2.0, 0.5), "b": Fixed(3.0, 0.0)})
    value, scalars = total(None, None, StepInfo(0, 10))
    assert value.item() == 1.0
    assert {k: v.item() for k, v in scalars.items()} == {"loss/a": 2.0, "loss/b": 3.0}
    with pytest.raises(ValueError, match="no loss term"):
        CompositeLoss({})
