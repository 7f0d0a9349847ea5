import pytest
import torch
from torch.utils.data import Dataset, Subset

from handmim.data.datasets import MixedHands
from handmim.data.freihand import FreiHand
from handmim.data.ho3d import Ho3d
from handmim.data.loader import batches
from handmim.utils.files import UnreadableSample


class Damaged(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise UnreadableSample(f"{index}.jpg", "cut short")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_evaluation_leaves_out_no_sample(num_workers):
    with pytest.raises(ValueError, match=r"4 of 4 .* be read: 0\.jpg \(cut short\)"):
        next(batches(Damaged(), 2, num_workers))


def test_workers_give_what_this_process_would(freihand_tree, ho3d_v2_tree, hand_path, tmp_path):
    how = {"image_px": 48, "cache_dir": tmp_path}
    sets = {
        "freihand": FreiHand(freihand_tree, hand_path, **how),
        "ho3d": Ho3d(ho3d_v2_tree, hand_path, **how),
    }
    data = Subset(MixedHands(sets), [0, 5, 95, 100])
    here, there = list(batches(data, 3)), list(batches(data, 3, num_workers=1))
    assert [len(batch.image) for batch in here] == [3, 1]
    for one, other in zip(here, there, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
