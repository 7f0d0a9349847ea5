"""Labelled sets as sources of unlabelled crops: partners and groups."""

import numpy as np
import pytest

from handmim.data.freihand import FreiHand
from handmim.data.ho3d import Ho3d
from handmim.data.label_files import take_of
from handmim.data.loader import collate_crops, collate_hands
from handmim.types import CropSample


def freihand(root, cache, **kwargs):
    return FreiHand(root, "standin", image_px=32, val_fraction=0.25, cache_dir=cache, **kwargs)


def number(sample_id: str) -> int:
    return int(sample_id.split("/")[1])


def test_freihand_partners_show_the_same_hand_before_another_background(freihand_tree, tmp_path):
    plain = freihand(freihand_tree, tmp_path)
    data = freihand(freihand_tree, tmp_path, partners=True)
    assert len(data) == len(plain)
    images = {number(s.sample_id): s.image for s in (plain[i] for i in range(len(plain)))}
    places = set()
    for i in range(len(data)):
        sample = data[i]
        assert isinstance(sample, CropSample)
        own = number(sample.sample_id)
        np.testing.assert_array_equal(sample.image, images[own])
        same_hand = [n for n in images if n % 24 == own % 24 and n != own]
        matches = [n for n in same_hand if np.array_equal(images[n], sample.partner)]
        assert len(matches) == 1
        places.add((own // 24, matches[0] // 24))
        np.testing.assert_array_equal(data[i].partner, sample.partner)
    assert len(places) == 12, "every version meets every other"


def test_freihand_pairs_become_batches_with_groups_by_hand(freihand_tree, tmp_path):
    data = freihand(freihand_tree, tmp_path, partners=True, versions=("gs", "auto"))
    batch = collate_crops([data[i] for i in range(len(data))])
    assert batch.partner.shape == batch.image.shape == (36, 3, 32, 32)
    labels = [data.label_of(i) for i in range(len(data))]
    same = batch.group[:, None] == batch.group
    assert same.tolist() == [[a == b for b in labels] for a in labels]
    versions = {number(data[i].sample_id) // 24 for i in range(len(data))}
    assert versions == {0, 3}
    with pytest.raises(ValueError, match=r"partners"):
        collate_hands([data[0]])


@pytest.mark.parametrize("settings", [{"versions": ("gs",)}, {"split": "evaluation"}])
def test_partners_need_two_versions_of_training_pictures(freihand_tree, tmp_path, settings):
    with pytest.raises(ValueError, match=r"partners"):
        freihand(freihand_tree, tmp_path, partners=True, **settings)


def test_labelled_samples_alone_have_no_partner_and_own_groups(freihand_tree, tmp_path):
    data = freihand(freihand_tree, tmp_path)
    batch = collate_crops([data[0], data[1]])
    assert batch.partner is None
    assert batch.group[0] != batch.group[1]


def test_ho3d_takes_are_groups(ho3d_v3_tree, tmp_path):
    kwargs = {"split": "all", "image_px": 32, "cache_dir": tmp_path}
    plain = Ho3d(ho3d_v3_tree, "standin", **kwargs)
    data = Ho3d(ho3d_v3_tree, "standin", grouped=True, **kwargs)
    np.testing.assert_array_equal(data[0].image, plain[0].image)
    takes = [take_of(frame.split("/")[0]) for frame in data.frames]
    assert len(set(takes)) > 1
    group = collate_crops([data[i] for i in range(len(data))]).group
    assert (group[:, None] == group).tolist() == [[a == b for b in takes] for a in takes]
