import copy

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from handmim.images.decode import UnreadableImage


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
