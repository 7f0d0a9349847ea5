"""A pretraining step in parts: batches come apart rightly, and iBOT's step is that of the whole."""

import pytest
import torch

from handmim.types import CropBatch, PretrainBatch, StepInfo
from handmim.utils.seed import step_generator
from tests.tasks.test_no_waiting import built

INFO = StepInfo(0, 10)


def batch_of(views, num: int = 6) -> PretrainBatch:
    g = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (num, 3, 64, 64), generator=g, dtype=torch.uint8)
    return views(CropBatch(crops), step_generator(0, "prepare", 0, 0), INFO)


def test_hidden_places_of_a_part_are_its_own():
    _, views, _ = built("ibot", ["views.num_local=2", "views.local_px=24"])
    batch = batch_of(views)
    assert batch.known_masked_idx is not None
    parts = [batch.part(start, start + 2) for start in (0, 2, 4)]
    for number, part in enumerate(parts):
        assert len(part[0]) == 2
        torch.testing.assert_close(part.views, batch.views[2 * number : 2 * number + 2])
        expected = part.is_masked.flatten().nonzero().squeeze(1)
        torch.testing.assert_close(part.known_masked_idx, expected)
        assert part.local_views.shape[0] == 2
    behind = batch.part(4, 99)
    torch.testing.assert_close(behind.known_masked_idx, parts[2].known_masked_idx)


@pytest.mark.parametrize("parts", [2, 3])
def test_ibot_in_parts_has_the_gradients_and_centres_of_the_whole(parts):
    found = []
    for number in (1, parts):
        torch.manual_seed(0)
        task, views, _ = built("ibot", ["task.backbone.drop_path_rate=0"])
        task, batch = task.double().train(), batch_of(views)
        batch = batch._replace(views=batch.views.double())
        size = 6 // number
        for start in range(0, 6, size):
            (task(batch.part(start, start + size), INFO).loss / number).backward()
        task.after_step(INFO)
        grads = {k: p.grad for k, p in task.named_parameters() if p.grad is not None}
        centres = {k: o.centering.centre for k, o in task.each.items()}
        found.append((grads, centres))
    torch.testing.assert_close(found[0], found[1])
