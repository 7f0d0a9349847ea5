import os

import cv2
import numpy as np
import pytest

from handmim.data.crops import CropFolder, square
from handmim.data.loader import collate_crops, group_number
from handmim.images.decode import read_image
from handmim.images.files import find_images
from handmim.types import CropSample


def paint(path, height=40, width=30, colour=(10, 60, 200)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((height, width, 3), np.uint8)
    image[:] = colour[::-1]  # BGR on disk
    assert cv2.imwrite(str(path), image)


def test_any_tree_is_read_without_labels_or_class_folders(tmp_path, caplog):
    paint(tmp_path / "b.png")
    paint(tmp_path / "deep" / "er" / "a.JPG")
    paint(tmp_path / "deep" / "c.webp", 20, 80)
    paint(tmp_path / ".hidden" / "d.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "broken.jpeg").write_bytes(b"\xff\xd8 not really")
    with caplog.at_level("INFO", logger="handmim.data.crops"):
        data = CropFolder(tmp_path, image_px=24)
    assert data.names == ["b.png", "deep/c.webp", "deep/er/a.JPG"]
    assert data.unreadable == ["broken.jpeg", "empty.png"]
    assert "skipped 2 unreadable of 5 images: broken.jpeg (it is damaged" in caplog.text
    assert "empty.png (it is empty" in caplog.text
    assert "1 of 6 files below" in caplog.text
    batch = collate_crops([data[i] for i in range(3)])
    assert batch.image.shape == (3, 3, 24, 24)
    np.testing.assert_allclose(data[0].image.mean(axis=(0, 1)), (10, 60, 200), atol=3)


def test_links_are_followed_once(tmp_path):
    paint(tmp_path / "a" / "x.png")
    os.symlink(tmp_path, tmp_path / "a" / "loop", target_is_directory=True)
    assert find_images(tmp_path).names == ["a/x.png"]


@pytest.mark.parametrize("fill", ["missing", "empty", "unreadable"])
def test_nothing_to_read_is_a_clear_error(tmp_path, fill):
    root = tmp_path / "crops"
    if fill != "missing":
        root.mkdir()
    if fill == "unreadable":
        (root / "a.png").write_bytes(b"no")
    with pytest.raises(
        ValueError, match=r"no image file|cannot be read|can be read|does not exist|no folder"
    ):
        CropFolder(root)


def test_a_file_that_vanishes_is_named(tmp_path):
    paint(tmp_path / "a.png")
    paint(tmp_path / "b.png")
    data = CropFolder(tmp_path)
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match=r"b\.png cannot be read"):
        data[1]


def test_grey_alpha_and_16_bit_pictures_become_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((8, 8), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "alpha.png"), np.full((8, 8, 4), (90, 90, 90, 255), np.uint8))
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((8, 8, 3), 90 * 257, np.uint16))
    for name in ("grey", "alpha", "deep"):
        image = read_image(tmp_path / f"{name}.png")
        assert image.shape == (8, 8, 3)
        assert abs(int(image[0, 0, 0]) - 90) <= 1


@pytest.mark.parametrize("shape", [(40, 100), (100, 40), (64, 64), (3, 5)])
def test_square_keeps_everything_or_the_middle(shape):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    for fit in ("contain", "cover"):
        assert square(image, 32, fit).shape == (32, 32, 3)


def test_contain_shows_both_ends_and_cover_the_middle_only():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, :20, 0], image[:, 20:40, 1], image[:, 40:, 2] = 255, 255, 255
    wide = square(image, 60, "contain")
    assert wide[30, 5, 0] == 255
    assert wide[30, 55, 2] == 255
    middle = square(image, 20, "cover")
    assert (middle[..., 1] == 255).all()
    with pytest.raises(ValueError, match="fit must be one of"):
        CropFolder(".", fit="stretch")


def test_pictures_of_one_folder_may_be_one_group(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png", "top.png"):
        paint(tmp_path / name)
    alone = CropFolder(tmp_path, image_px=16)
    assert len(set(collate_crops([alone[i] for i in range(4)]).group.tolist())) == 4
    data = CropFolder(tmp_path, image_px=16, group_by="folder")
    group = collate_crops([data[i] for i in range(4)]).group
    assert group.tolist() == [group_number(f"group {g}") for g in ("a", "a", "b", ".")]
    assert len(set(group.tolist())) == 3
    with pytest.raises(ValueError, match="group_by must be one of"):
        CropFolder(tmp_path, group_by="video")


def test_numbers_of_groups_never_change_and_fit_int64():
    numbers = [group_number(name) for name in map(str, range(2000))]
    assert len(set(numbers)) == 2000
    assert -(2**63) <= min(numbers) < 0 < max(numbers) < 2**63
    assert group_number("a") == 4681665781835383343


def crop(name, value=0, partner=None, group=None):
    image = np.full((8, 8, 3), value, np.uint8)
    other = None if partner is None else np.full((8, 8, 3), partner, np.uint8)
    return CropSample(image, name, partner=other, group=group)


def test_partners_are_kept_where_all_have_one_and_groups_where_any_has():
    both = collate_crops([crop("a", 1, 2, "g"), crop("b", 3, 4, "g")])
    assert both.partner.shape == both.image.shape
    assert both.image[:, 0, 0, 0].tolist() == [1, 3]
    assert both.partner[:, 0, 0, 0].tolist() == [2, 4]
    assert both.group[0] == both.group[1]
    assert both.group.dtype.is_signed
    mixed = collate_crops([crop("a", 1, 2, "g"), crop("g"), crop("b"), crop("b")])
    assert mixed.partner is None
    assert len(set(mixed.group.tolist())) == 3, "one image drawn twice is a group"


def test_copies_of_one_sample_are_one_group_whatever_the_others_have():
    group = collate_crops([crop("a"), crop("b"), crop("a")]).group.tolist()
    assert group[0] == group[2] != group[1]


def test_copies_among_the_images_are_counted(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for name in "abc":
        image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    CropFolder(tmp_path, image_px=16)
    assert "are copies of others" not in caplog.text
    for i in range(4):
        (tmp_path / f"again{i}.png").write_bytes((tmp_path / "a.png").read_bytes())
    CropFolder(tmp_path, image_px=16)
    assert "4 of 7 images that were compared" in caplog.text
