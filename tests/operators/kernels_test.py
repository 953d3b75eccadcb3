import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdeblur.operators import kernels

pytestmark = pytest.mark.usefixtures("light_compilation")

# A few: every new shape is compiled anew, which takes longer than all else here.
SHAPES = st.sampled_from([(9, 16), (12, 12), (13, 10)])
HALF_SIDES = st.sampled_from([2, 5, 8])


def random_kernel(seed, shape, margin=(0, 0, 0, 0)):
    """Random positive kernel with ``margin`` (top, bottom, left, right) zero rows and columns."""
    top, bottom, left, right = margin
    inner = np.random.default_rng(seed).random((shape[0] - top - bottom, shape[1] - left - right)) ** 3 + 0.05
    return jnp.asarray(np.pad(inner / inner.sum(), ((top, bottom), (left, right))), jnp.float32)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**16), SHAPES)
def test_normalised_kernels_are_non_negative_and_sum_to_one(seed, shape):
    kernel = kernels.normalise_kernel(jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32))
    assert kernel.min() >= 0
    np.testing.assert_allclose(kernel.sum(), 1.0, rtol=1e-5)


def test_kernel_without_mass_becomes_a_delta():
    kernel = kernels.normalise_kernel(-jnp.ones((5, 7)))
    assert kernel[2, 3] == 1.0
    assert kernel.sum() == 1.0
    chex.assert_tree_all_finite(jax.grad(lambda k: kernels.normalise_kernel(k)[2, 3])(-jnp.ones((5, 7))))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**16), st.floats(-3, 3), st.floats(-3, 3))
def test_shift_moves_the_centre_by_as_much(seed, dy, dx):
    kernel = random_kernel(seed, (15, 17), (4, 4, 4, 4))
    moved = kernels.shift_kernel(kernel, jnp.array([dy, dx]))
    np.testing.assert_allclose(moved.sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(kernels.kernel_centre(moved), kernels.kernel_centre(kernel) + np.array([dy, dx]), atol=1e-3)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**16), SHAPES, st.booleans())
def test_centring_reaches_the_centre_when_there_is_room(seed, shape, subpixel):
    h, w = shape
    kernel = random_kernel(seed, shape)
    kernel = kernels.pad_kernel(kernel, (h * 2 + 1, w * 2 + 1))
    centred = kernels.centre_kernel(kernel, subpixel=subpixel)
    chex.assert_equal_shape([centred, kernel])
    off = kernels.kernel_centre(centred) - jnp.array([h, w])
    assert float(jnp.abs(off).max()) < (1e-3 if subpixel else 0.5 + 1e-3)
    np.testing.assert_allclose(centred.sum(), 1.0, rtol=1e-5)


def test_whole_pixel_centring_only_moves_the_kernel():
    kernel = random_kernel(0, (15, 15), (0, 7, 6, 0))
    centred = np.asarray(kernels.centre_kernel(kernel, subpixel=False))
    shift = np.asarray(kernels.centring_shift(kernel, subpixel=False)).astype(int)
    assert shift[0] > 0 > shift[1]
    np.testing.assert_allclose(centred, np.roll(kernel, shift, (0, 1)), atol=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**16), st.tuples(*[st.integers(0, 5)] * 4), st.booleans())
def test_centring_never_cuts_mass_off(seed, margin, subpixel):
    kernel = random_kernel(seed, (13, 13), margin)
    shift = kernels.centring_shift(kernel, subpixel=subpixel)
    lost = 1.0 - float(kernels.shift_kernel(kernel, shift).sum())
    assert lost <= 2 * kernels.MASS_TOLERANCE + 1e-5


def test_centring_stops_at_the_border():
    # Mass in both the first row and the last: there is no room to move vertically, however uneven it is.
    kernel = jnp.zeros((9, 9)).at[0, 4].set(0.9).at[8, 4].set(0.1)
    np.testing.assert_allclose(kernels.centre_kernel(kernel), kernel, atol=1e-6)


def test_a_faint_floor_does_not_pin_the_kernel():
    kernel = jnp.full((21, 21), 1e-6).at[3, 5].set(1.0)
    centred = kernels.centre_kernel(kernel)
    assert np.unravel_index(np.argmax(centred), centred.shape) == (10, 10)


def test_kernel_and_image_move_in_opposite_directions():
    kernel = random_kernel(1, (15, 15), (4, 4, 4, 4))
    image = np.random.default_rng(2).random((40, 40))
    moved = kernels.shift_kernel(kernel, jnp.array([2.0, -3.0]))
    one = scipy.signal.convolve2d(image, kernel, "valid")
    other = scipy.signal.convolve2d(np.roll(image, (-2, 3), (0, 1)), moved, "valid")
    np.testing.assert_allclose(one[5:-5, 5:-5], other[5:-5, 5:-5], atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**16), HALF_SIDES, HALF_SIDES, HALF_SIDES)
def test_resized_kernels_keep_centre_and_mass(seed, a, b, c):
    kernel = random_kernel(seed, (2 * a + 1, 2 * a + 1))
    resized = kernels.resize_kernel(kernel, (2 * b + 1, 2 * c + 1))
    assert resized.shape == (2 * b + 1, 2 * c + 1)
    assert resized.min() >= 0
    np.testing.assert_allclose(resized.sum(), 1.0, rtol=1e-5)
    delta = jnp.zeros((2 * a + 1, 2 * a + 1)).at[a, a].set(1.0)
    np.testing.assert_allclose(kernels.kernel_centre(kernels.resize_kernel(delta, (2 * b + 1, 2 * c + 1))), [b, c], atol=1e-4)


@pytest.mark.parametrize("scale", [0.5, 1 / np.sqrt(2), np.sqrt(2), 2.0])
def test_resizing_scales_offsets_and_spread_by_the_given_factor(scale):
    i, j = np.mgrid[-30:31, -30:31]
    kernel = jnp.asarray(np.exp(-0.5 * ((i - 4) ** 2 + (j + 6) ** 2) / 4.0**2), jnp.float32)
    resized = np.asarray(kernels.resize_kernel(kernel, (121, 121), scale=scale))
    np.testing.assert_allclose(kernels.kernel_centre(resized) - 60, [4 * scale, -6 * scale], atol=0.02)
    spread = np.sqrt((resized * (np.mgrid[0:121, 0:121][0] - 60 - 4 * scale) ** 2).sum())
    assert spread == pytest.approx(4 * scale, rel=0.1)


def test_resizing_to_the_same_shape_changes_nothing():
    kernel = random_kernel(3, (9, 11))
    np.testing.assert_allclose(kernels.resize_kernel(kernel, (9, 11)), kernel, atol=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**16), SHAPES, st.sampled_from([0, 3, 6]), st.sampled_from([0, 5]))
def test_cropping_undoes_padding(seed, small, more_h, more_w):
    (h, w) = small
    kernel = random_kernel(seed, small)
    shape = (h + more_h, w + more_w)
    padded = kernels.pad_kernel(kernel, shape)
    assert padded.shape == shape
    assert padded[shape[0] // 2, shape[1] // 2] == kernel[h // 2, w // 2]
    np.testing.assert_allclose(kernels.crop_kernel(padded, small), kernel, rtol=1e-5)


def test_cropping_keeps_the_sum():
    np.testing.assert_allclose(kernels.crop_kernel(random_kernel(4, (11, 11)), (5, 7)).sum(), 1.0, rtol=1e-5)
    with pytest.raises(AssertionError):
        kernels.crop_kernel(random_kernel(4, (5, 5)), (7, 5))
    with pytest.raises(AssertionError):
        kernels.pad_kernel(random_kernel(4, (5, 5)), (3, 7))


def test_functions_of_the_pyramid_are_jitted_once_and_differentiable():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def next_scale(kernel):
        return kernels.centre_kernel(kernels.resize_kernel(kernel, (19, 19), scale=1.41))

    chex.clear_trace_counter()
    for seed in range(3):
        kernel = random_kernel(seed, (13, 13))
        with jax.disable_jit():
            plain = next_scale(kernel)
        np.testing.assert_allclose(next_scale(kernel), plain, atol=1e-5)
    chex.assert_tree_all_finite(jax.grad(lambda k: jnp.sum(next_scale(k) ** 2))(kernel))
