"""Colour conversion against Pillow's, on NumPy and JAX arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdeblur.imaging.colour import from_opponent_planes, luma, opponent_planes, rgb_to_ycbcr, ycbcr_to_rgb


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).random((7, 9, 3)).astype(np.float32)


def test_conversion_is_that_of_jpeg(rgb):
    levels = np.rint(rgb * 255).astype(np.uint8)
    expected = np.asarray(Image.fromarray(levels).convert("YCbCr"))
    # JPEG centres chroma at level 128, we at 127.5.
    found = rgb_to_ycbcr(levels / 255.0) * 255 + np.array([0, 0.5, 0.5])
    np.testing.assert_allclose(found, expected, atol=1.0)


def test_there_and_back(rgb):
    np.testing.assert_allclose(ycbcr_to_rgb(rgb_to_ycbcr(rgb)), rgb, atol=1e-6)


def test_grey_has_neutral_chroma():
    grey = np.full((2, 2, 3), 0.3, np.float32)
    np.testing.assert_allclose(rgb_to_ycbcr(grey), np.broadcast_to([0.3, 0.5, 0.5], (2, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(luma(grey), 0.3, atol=1e-6)


def test_opponent_planes_are_an_orthonormal_turn_in_which_grey_is_the_first(rgb):
    matrix = opponent_planes(np.eye(3))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(matrix @ np.ones(3), [3**0.5, 0.0, 0.0], atol=1e-12)
    planes = np.moveaxis(rgb, -1, 0)
    np.testing.assert_allclose(from_opponent_planes(opponent_planes(planes)), planes, atol=1e-6)


@pytest.mark.parametrize("convert", [rgb_to_ycbcr, ycbcr_to_rgb, luma])
def test_jitted_jax_arrays_give_what_numpy_gives(convert, rgb):
    found = jax.jit(convert)(jnp.asarray(rgb))
    assert isinstance(found, jax.Array)
    np.testing.assert_allclose(found, convert(rgb), atol=1e-6)
