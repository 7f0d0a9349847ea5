import cv2
import numpy as np
import pytest

from handmim.render.background import BackdropBank, load_photos, room, studio
from handmim.render.scene import SceneSettings


@pytest.mark.parametrize("paint", [studio, room])
def test_painted_backdrops_are_calm_and_in_range(paint):
    for seed in range(12):
        image = paint(np.random.default_rng(seed), 96)
        assert image.shape == (96, 96, 3)
        assert image.min() >= 0
        assert image.max() <= 1
        chroma = np.ptp(image, axis=2)
        assert chroma.mean() < 0.25, "photo-like backgrounds are muted"
        assert np.array_equal(image, paint(np.random.default_rng(seed), 96))


def test_a_folder_of_photos_is_used_and_bad_files_are_named(tmp_path, caplog):
    red = np.zeros((60, 90, 3), np.uint8)
    red[..., 2] = 255  # BGR
    cv2.imwrite(str(tmp_path / "red.png"), red)
    (tmp_path / "broken.jpg").write_bytes(b"not a image")
    with caplog.at_level("WARNING", logger="handmim.render.background"):
        photos = load_photos(tmp_path, 48)
    assert len(photos) == 1
    assert "broken.jpg" in caplog.text
    assert photos[0].shape == (48, 48, 3)
    bank = BackdropBank("photos", np.random.default_rng(0), photos_dir=str(tmp_path))
    crop = bank.crop(np.random.default_rng(1), 32)
    assert crop[..., 0].mean() > 0.4
    assert crop[..., 1:].max() < 0.1


def test_folders_without_photos_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"photos_dir"):
        load_photos(tmp_path, 48)
    with pytest.raises(ValueError, match=r"photos_dir"):
        SceneSettings(background="photos")


def test_crops_are_resized_mirrored_and_tinted_pieces():
    bank = BackdropBank("room", np.random.default_rng(0), size=80, num=4)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image = bank.images[rng.integers(4)]
        k = int(rng.integers(40, 81))
        y, x = rng.integers(0, 81 - k, 2)
        piece = cv2.resize(image[y : y + k, x : x + k], (50, 50), interpolation=cv2.INTER_AREA)
        piece = piece[:, ::-1] if rng.random() < 0.5 else piece
        cast = rng.uniform(-0.03, 0.03, 3)
        expected = np.clip(piece * rng.uniform(0.7, 1.15) + cast, 0, 1)
        got = bank.crop(np.random.default_rng(seed), 50)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-6)
