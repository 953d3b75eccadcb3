"""Kernels from files: what is accepted, and what is refused in one line."""

import numpy as np
import pytest
from PIL import Image

from jaxdeblur.errors import InputError
from jaxdeblur.imaging.kernel_files import (
    kernel_levels,
    read_kernel,
    require_kernel_fits,
    write_kernel_array,
    write_kernel_image,
)


def blob(height=7, width=9):
    rows, columns = np.mgrid[:height, :width]
    return np.exp(-((rows - height // 2) ** 2) / 4.0 - (columns - width // 2) ** 2 / 6.0)


def test_npy_is_scaled_to_sum_to_one(tmp_path):
    np.save(tmp_path / "k.npy", 17 * blob())
    kernel = read_kernel(tmp_path / "k.npy")
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, blob() / blob().sum(), rtol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_png(tmp_path, mode):
    levels = kernel_levels(blob())
    image = Image.fromarray(levels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(levels).convert(mode)
    image.save(tmp_path / "k.png")
    np.testing.assert_allclose(read_kernel(tmp_path / "k.png"), levels / levels.sum(), rtol=1e-4)


def test_what_is_written_can_be_read(tmp_path):
    kernel = (blob() / blob().sum()).astype(np.float32)
    write_kernel_array(tmp_path / "k.npy", kernel)
    write_kernel_image(tmp_path / "k.png", kernel)
    np.testing.assert_allclose(read_kernel(tmp_path / "k.npy"), kernel, rtol=1e-6)
    np.testing.assert_allclose(read_kernel(tmp_path / "k.png"), kernel, atol=1e-3)
    assert np.asarray(Image.open(tmp_path / "k.png")).max() == 255


def test_one_kernel_for_each_part_of_an_image(tmp_path):
    kernels = np.stack([[blob(), 3 * blob(), blob()], [blob(), blob()[::-1], blob()]])
    write_kernel_array(tmp_path / "k.npy", kernels)
    found = read_kernel(tmp_path / "k.npy")
    assert found.shape == (2, 3, 7, 9)
    np.testing.assert_allclose(found.sum((2, 3)), 1.0, rtol=1e-5)
    write_kernel_image(tmp_path / "k.png", found)
    assert np.asarray(Image.open(tmp_path / "k.png")).shape == (2 * 8 - 1, 3 * 10 - 1)
    require_kernel_fits(found.shape, (20, 30), "photo")
    with pytest.raises(InputError, match="3×2 parts are too many"):
        require_kernel_fits(found.shape, (12, 30), "photo")


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((5, 5)), "zero everywhere"),
        (np.zeros((2, 2, 5, 5)), "zero everywhere"),
        (np.ones((2, 2, 5, 4)), "odd sides"),
        (np.where(blob() > 0.9, -1.0, blob()), "negative"),
        (np.where(blob() > 0.9, np.nan, blob()), "NaN"),
        (np.ones((4, 5)), "odd sides"),
        (np.ones((1, 1)), "odd sides"),
        (np.ones(5), "two dimensions"),
        (np.ones((5, 5, 3)), "two dimensions"),
        (np.array([["a"]]), "array of numbers"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, array, reason):
    np.save(tmp_path / "k.npy", array)
    with pytest.raises(InputError, match=reason) as caught:
        read_kernel(tmp_path / "k.npy")
    assert "k.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["k.npy", "k.png"])
def test_files_that_hold_no_kernel_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="no such file"):
        read_kernel(tmp_path / name)
    (tmp_path / name).write_text("no kernel")
    with pytest.raises(InputError, match="not a"):
        read_kernel(tmp_path / name)


def test_black_kernel_image_is_refused(tmp_path):
    Image.new("L", (5, 5)).save(tmp_path / "k.png")
    with pytest.raises(InputError, match="zero everywhere"):
        read_kernel(tmp_path / "k.png")


def test_pickled_objects_are_not_loaded(tmp_path):
    np.save(tmp_path / "k.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="NumPy array"):
        read_kernel(tmp_path / "k.npy")


def test_a_kernel_must_be_smaller_than_the_image():
    require_kernel_fits((31, 31), (40, 50), "a.png")
    with pytest.raises(InputError, match=r"a\.png: a kernel of 51×31 pixels is larger than the image of 50×40"):
        require_kernel_fits((31, 51), (40, 50), "a.png")
