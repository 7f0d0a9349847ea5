import copy

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from handmim.data.loader import SkipUnreadable, batches
from handmim.images.decode import UnreadableImage
from tests.tasks.test_keypoints_task import photo


class _Damaged(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UnreadableImage("a.jpg", "cut short")


def test_an_unreadable_image_survives_copying():
    error = copy.deepcopy(UnreadableImage("a.jpg", "cut short"))
    assert (error.path, error.reason) == ("a.jpg", "cut short")
    assert str(error) == "a.jpg cannot be read: cut short"


def test_an_unreadable_image_keeps_its_type_through_a_loader_process():
    loader = DataLoader(
        _Damaged(), num_workers=1, multiprocessing_context="spawn", generator=torch.Generator()
    )
    with pytest.raises(UnreadableImage, match=r"a\.jpg cannot be read: cut short"):
        next(iter(loader))


class _Photos(Dataset):
    def __init__(self, damaged):
        self.damaged = damaged

    def __len__(self):
        return 7

    def __getitem__(self, index):
        if index in self.damaged:
            raise UnreadableImage(f"{index}.jpg", "cut short")
        return photo(index)


def test_all_unreadable_images_of_a_scored_set_are_named_at_once():
    named = r"2 of 7 .*1\.jpg \(cut short\), 5\.jpg.*annotations.*doctor\.py full=true"
    with pytest.raises(ValueError, match=named):
        list(batches(_Photos((1, 5)), 2))


def test_measured_labels_leave_out_as_many_images_as_training_may(caplog):
    spared = SkipUnreadable(_Photos((1, 4, 5)), 3)
    assert sum(len(batch.image) for batch in batches(spared, 2)) == 4
    assert sum(len(batch.image) for batch in batches(spared, 3)) == 4
    (record,) = caplog.records
    assert "3 of 7" in record.message
    assert "1.jpg (cut short)" in record.message
    with pytest.raises(ValueError, match=r"3 of 7 .*more than the 2 .*max_unreadable"):
        list(batches(SkipUnreadable(_Photos((1, 4, 5)), 2), 2))
    with pytest.raises(ValueError, match="7 of 7"):
        list(batches(SkipUnreadable(_Photos(range(7)), 7), 2))
