"""The preview shows what it should, at a size people can look at."""

import numpy as np
import pytest
from PIL import Image

from jaxdeblur.imaging.preview import compose_preview, write_preview


@pytest.mark.parametrize("channels", [(), (3,)])
def test_before_after_and_kernel_are_side_by_side(channels):
    before = np.full((90, 120, *channels), 0.2, np.float32)
    after = np.full((90, 120, *channels), 0.8, np.float32)
    kernel = np.zeros((5, 5), np.float32)
    kernel[2, 2] = 1.0
    sheet = np.asarray(compose_preview(before, after, kernel))
    middle = sheet[sheet.shape[0] // 2]
    assert (middle == 51).all(-1).sum() == 120
    assert (middle == 204).all(-1).sum() == 120
    # The kernel's one bright pixel, enlarged by a whole factor, in the right-hand part.
    white_square = (sheet[24 : 24 + 90, -100:] == 255).all(-1)
    assert white_square.sum() > 15**2


def test_large_images_are_shrunk_and_odd_shapes_fit(tmp_path):
    long = np.zeros((40, 3000, 3), np.float32)
    write_preview(tmp_path / "p.png", long, long, np.ones((75, 31), np.float32) / (75 * 31))
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.width < 2400
        assert sheet.height < 200


def test_a_colour_profile_is_carried(tmp_path):
    image = np.zeros((40, 50, 3), np.float32)
    write_preview(tmp_path / "p.png", image, image, np.ones((5, 5), np.float32), b"profile")
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.info["icc_profile"] == b"profile"


def test_kernels_that_vary_are_a_grid_of_the_images_height():
    image = np.zeros((200, 240), np.float32)
    kernels = np.full((3, 4, 9, 9), 1 / 81, np.float32)
    sheet = np.asarray(compose_preview(image, image, kernels))
    grid = sheet[24 : 24 + 200, 2 * (240 + 8) + 8 :]
    # Bright kernels between darker lines, from top to bottom.
    assert (grid[:, 20] == 255).all(-1).mean() > 0.7
    assert not (grid[:, 20] == 255).all(-1).all()
    many = compose_preview(image, image, np.full((30, 40, 5, 5), 1 / 25, np.float32))
    assert many.width < 3 * 400
