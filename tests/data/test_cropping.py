import cv2
import numpy as np
import pytest

from handmim.data.samples import box_of_points, crop_map, crop_sample, cut


@pytest.mark.parametrize("side", [60, 150, 290])
@pytest.mark.parametrize("place", [(320.3, 240.7), (250.0, 200.0)])
def test_pixels_and_points_ride_the_same_map(side, place):
    # A blob's centre of mass is where its centre is carried to, at any zoom and sub-pixel place.
    y, x = np.mgrid[0:480, 0:640] + 0.5
    blob = 255 * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * (side / 15) ** 2))
    image = np.repeat(blob[..., None], 3, axis=2).round().astype(np.uint8)
    box = np.array([place[0] - side / 2 + 3, place[1] - side / 2, place[0] + side / 2 + 3, 0])
    box[3] = place[1] + side / 2
    crop_from_img = crop_map(box, 1.3, 112)
    crop = cut(image, crop_from_img, 112)[..., 0].astype(float)
    y, x = np.mgrid[0:112, 0:112] + 0.5
    centre = [(crop * x).sum() / crop.sum(), (crop * y).sum() / crop.sum()]
    expected = crop_from_img @ [*place, 1]
    np.testing.assert_allclose(centre, expected, atol=0.05)


def test_a_crop_is_a_square_about_the_box():
    crop_from_img = crop_map(np.array([10, 20, 50, 100]), 1.5, 60)
    # longer side 80, so 120 px of the image make 60 px of the crop
    corners = np.array([[30 - 60, 60 - 60, 1], [30 + 60, 60 + 60, 1]]) @ crop_from_img.T
    np.testing.assert_allclose(corners, [[0, 0], [60, 60]], atol=1e-12)
    points = np.array([[3.0, 9.0], [-1.0, 4.0]])
    np.testing.assert_array_equal(box_of_points(points), [-1, 4, 3, 9])


def test_intrinsics_follow_the_crop():
    rng = np.random.default_rng(0)
    K = np.array([[600.0, 2.0, 320], [0, 590, 240], [0, 0, 1]])
    points = rng.normal(0, 0.05, (21, 3)) + np.array([0.02, 0, 0.6])
    seen = points @ K.T
    image, kp2d = np.zeros((480, 640, 3), np.uint8), seen[:, :2] / seen[:, 2:]
    crop_from_img = crop_map(np.array([200, 150, 400, 390]), 1.6, 224)
    sample = crop_sample(image, crop_from_img, 224, "a", K_px=K, kp2d_px=kp2d)
    again = points @ sample.K_crop_px.T
    expected = np.column_stack([kp2d, np.ones(21)]) @ crop_from_img.T
    np.testing.assert_allclose(sample.kp2d_crop_px, expected, atol=1e-4)
    np.testing.assert_allclose(again[:, :2] / again[:, 2:], expected, atol=1e-4)


def test_beyond_the_picture_it_is_reflected_and_bad_boxes_are_refused():
    image = np.full((20, 20, 3), 200, np.uint8)
    crop = cut(image, crop_map(np.array([-10, -10, 10, 10]), 1.0, 16), 16)
    assert (crop == 200).all()
    for box in ([0, 0, np.nan, 5], [5, 0, 0, 5]):
        with pytest.raises(ValueError, match="x0 <= x1"):
            crop_map(np.array(box, float), 1.0, 16)
    tiny = crop_map(np.array([5, 5, 5, 5.0]), 1.5, 16)
    assert tiny[0, 0] == 4.0  # one point still is a crop of 4 px


def test_the_part_of_a_large_picture_gives_the_same_crop():
    # Far from the border only the part is resampled; a border within reach forbids it: both agree.
    rng = np.random.default_rng(1)
    small = cv2.resize(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8), (640, 480))
    wide = cv2.copyMakeBorder(small, 200, 200, 200, 200, cv2.BORDER_REFLECT)
    box = np.array([5.0, 10.0, 300.0, 250.0])
    whole = cut(small, crop_map(box, 1.2, 96), 96)
    part = cut(wide, crop_map(box + 200, 1.2, 96), 96)
    assert np.abs(whole.astype(int) - part).max() <= 3
    assert np.abs(whole.astype(int) - part).mean() < 0.5
