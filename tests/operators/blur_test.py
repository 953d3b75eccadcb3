import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdeblur.operators import blur

pytestmark = pytest.mark.usefixtures("light_compilation")

# A few, odd and even, thin, and smaller than a kernel: every new pair is compiled anew, which takes longer than all else here.
SIDES = st.sampled_from([(1, 1), (1, 24), (17, 2), (24, 23)])
KERNELS = st.sampled_from([(1, 1), (9, 4), (5, 7)])


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@settings(max_examples=8, deadline=None)
@given(SIDES, KERNELS, st.integers(0, 2**16))
def test_adjointness(blurry_shape, kernel_shape, seed):
    image = normal(seed, blur.latent_shape(blurry_shape, kernel_shape))
    kernel, blurry = normal(seed + 1, kernel_shape), normal(seed + 2, blurry_shape)
    forward = blur.blur_valid(image, kernel)
    assert forward.shape == blurry_shape
    backward = blur.blur_valid_adjoint(blurry, kernel)
    assert backward.shape == image.shape
    scale = float(jnp.linalg.norm(forward) * jnp.linalg.norm(blurry)) + 1e-3
    np.testing.assert_allclose(jnp.vdot(forward, blurry) / scale, jnp.vdot(image, backward) / scale, atol=1e-4)


@settings(max_examples=8, deadline=None)
@given(SIDES, KERNELS, st.integers(0, 2**16))
def test_equals_scipy_on_the_valid_support(blurry_shape, kernel_shape, seed):
    image = normal(seed, blur.latent_shape(blurry_shape, kernel_shape))
    kernel = normal(seed + 1, kernel_shape)
    expected = scipy.signal.convolve2d(np.asarray(image, np.float64), np.asarray(kernel, np.float64), mode="valid")
    np.testing.assert_allclose(blur.blur_valid(image, kernel), expected, atol=1e-4)


@settings(max_examples=8, deadline=None)
@given(SIDES, KERNELS)
def test_padding_and_cropping_are_each_others_undoing(blurry_shape, kernel_shape):
    blurry = normal(0, blurry_shape)
    padded = blur.pad_to_latent(blurry, kernel_shape)
    assert padded.shape == blur.latent_shape(blurry_shape, kernel_shape)
    chex.assert_trees_all_equal(blur.crop_to_blurry(padded, kernel_shape), blurry)


def test_centred_delta_leaves_the_visible_image():
    image = normal(1, (20, 23))
    delta = jnp.zeros((5, 7)).at[2, 3].set(1.0)
    np.testing.assert_allclose(blur.blur_valid(image, delta), blur.crop_to_blurry(image, (5, 7)), atol=1e-5)


def test_leading_axes_broadcast():
    images, kernels = normal(2, (3, 1, 20, 21)), normal(3, (2, 5, 4))
    together = blur.blur_valid(images, kernels)
    assert together.shape == (3, 2, 16, 18)
    for i in range(3):
        for j in range(2):
            np.testing.assert_allclose(together[i, j], blur.blur_valid(images[i, 0], kernels[j]), atol=1e-5)


def test_gradients_are_the_adjoints():
    image, kernel, blurry = normal(4, (20, 19)), normal(5, (5, 6)), normal(6, (16, 14))
    inner_product = lambda x, k: jnp.vdot(blur.blur_valid(x, k), blurry)  # noqa: E731
    by_image, by_kernel = jax.grad(inner_product, argnums=(0, 1))(image, kernel)
    np.testing.assert_allclose(by_image, blur.blur_valid_adjoint(blurry, kernel), atol=1e-4)
    expected = scipy.signal.correlate2d(np.asarray(image), np.asarray(blurry), mode="valid")[::-1, ::-1]
    np.testing.assert_allclose(by_kernel, expected, atol=1e-3)


def test_fast_shape_is_five_smooth_and_holds_the_shape():
    for side in (17, 271, 521, 1033):
        fast = blur.fast_shape((side, side))[0]
        assert fast >= side
        rest = fast
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1


def test_kernel_larger_than_the_image_is_refused():
    with pytest.raises(AssertionError):
        blur.blur_valid(normal(7, (4, 9)), normal(8, (5, 5)))


class CompiledOrNot(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_forward_and_adjoint(self):
        image, kernel = normal(9, (30, 31)), normal(10, (7, 4))
        blurry = self.variant(blur.blur_valid)(image, kernel)
        expected = scipy.signal.convolve2d(image, kernel, mode="valid")
        np.testing.assert_allclose(blurry, expected, atol=1e-4)
        back = self.variant(blur.blur_valid_adjoint)(blurry, kernel)
        np.testing.assert_allclose(back, scipy.signal.correlate2d(blurry, kernel, mode="full"), atol=1e-3)


@settings(max_examples=8, deadline=None)
@given(SIDES, KERNELS, st.integers(0, 2**16))
def test_the_pair_of_operators_is_the_blur_and_its_adjoint(blurry_shape, kernel_shape, seed):
    image, kernel = normal(seed, blur.latent_shape(blurry_shape, kernel_shape)), normal(seed + 1, kernel_shape)
    blurry = normal(seed + 2, blurry_shape)
    forward, adjoint = blur.valid_blur(kernel, image.shape)
    chex.assert_trees_all_close(forward(image), blur.blur_valid(image, kernel))
    scale = float(jnp.linalg.norm(forward(image)) * jnp.linalg.norm(blurry)) + 1e-3
    np.testing.assert_allclose(jnp.vdot(forward(image), blurry) / scale, jnp.vdot(image, adjoint(blurry)) / scale, atol=1e-4)


@settings(max_examples=8, deadline=None)
@given(SIDES, KERNELS, st.integers(1, 3), st.integers(0, 2**16))
def test_the_blur_as_an_operator_of_the_kernel(blurry_shape, kernel_shape, count, seed):
    images, kernel = normal(seed, (count, *blur.latent_shape(blurry_shape, kernel_shape))), normal(seed + 1, kernel_shape)
    blurry = normal(seed + 2, (count, *blurry_shape))
    forward, adjoint = blur.valid_blur_of(images, kernel_shape)
    chex.assert_trees_all_close(forward(kernel), blur.blur_valid(images, kernel), atol=1e-4)
    assert adjoint(blurry).shape == kernel_shape
    scale = float(jnp.linalg.norm(forward(kernel)) * jnp.linalg.norm(blurry)) + 1e-3
    np.testing.assert_allclose(jnp.vdot(forward(kernel), blurry) / scale, jnp.vdot(kernel, adjoint(blurry)) / scale, atol=1e-4)


@settings(max_examples=3, deadline=None)
@given(SIDES, KERNELS, st.integers(0, 2**16))
def test_pairs_are_blurred_as_two_images_are(blurry_shape, kernel_shape, seed):
    images, kernel = normal(seed, (2, *blur.latent_shape(blurry_shape, kernel_shape))), normal(seed + 1, kernel_shape)
    blurry = normal(seed + 2, (2, *blurry_shape))
    usual, paired = (blur.valid_blur(kernel, images.shape[-2:], pairs=pairs) for pairs in (False, True))
    chex.assert_trees_all_close(paired[0](images), usual[0](images), atol=1e-4)
    chex.assert_trees_all_close(paired[1](blurry), usual[1](blurry), atol=1e-4)
    usual, paired = (blur.valid_blur_of(images, kernel_shape, pairs=pairs) for pairs in (False, True))
    chex.assert_trees_all_close(paired[0](kernel), usual[0](kernel), atol=1e-4)
    chex.assert_trees_all_close(paired[1](blurry), usual[1](blurry), atol=1e-3)
    lags = [blur.correlation_lags(images, kernel_shape, pairs=pairs) for pairs in (False, True)]
    chex.assert_trees_all_close(lags[1], lags[0], atol=1e-3)


@settings(max_examples=3, deadline=None)
@given(SIDES, KERNELS, st.integers(0, 2**16), st.booleans())
def test_the_normal_operator_is_the_blur_and_its_adjoint(blurry_shape, kernel_shape, seed, counts):
    images, kernel = normal(seed, (2, *blur.latent_shape(blurry_shape, kernel_shape))), normal(seed + 1, kernel_shape)
    counted = jnp.abs(normal(seed + 2, blurry_shape)) if counts else None
    forward, adjoint = blur.valid_blur(kernel, images.shape[-2:])
    expected = adjoint(forward(images) if counted is None else counted * forward(images))
    found = blur.valid_normal(kernel, images.shape[-2:], counted)(images)
    np.testing.assert_allclose(found, expected, atol=1e-4 * (1.0 + float(jnp.abs(expected).max())))


@settings(max_examples=3, deadline=None)
@given(SIDES, KERNELS, st.integers(0, 2**16))
def test_full_blur_equals_scipy(shape, kernel_shape, seed):
    image, kernel = normal(seed, shape), normal(seed + 1, kernel_shape)
    expected = scipy.signal.convolve2d(np.asarray(image, np.float64), np.asarray(kernel, np.float64), mode="full")
    np.testing.assert_allclose(blur.blur_full(image, kernel), expected, atol=1e-4)


def test_a_pair_is_two_images():
    forward, _ = blur.valid_blur(normal(0, (5, 5)), (20, 20), pairs=True)
    with pytest.raises(AssertionError):
        forward(normal(1, (3, 20, 20)))
    with pytest.raises(AssertionError):
        blur.valid_normal(normal(0, (5, 5)), (20, 20))(normal(1, (3, 20, 20)))


def test_operators_refuse_other_shapes_than_their_own():
    forward, _ = blur.valid_blur(normal(0, (5, 5)), (20, 20))
    with pytest.raises(AssertionError):
        forward(normal(1, (20, 21)))
    forward, _ = blur.valid_blur_of(normal(0, (20, 20)), (5, 5))
    with pytest.raises(AssertionError):
        forward(normal(1, (5, 7)))


@pytest.mark.parametrize("kernel_shape", [(1, 1), (5, 5), (3, 7)])
def test_the_centred_spectrum_blurs_in_place_on_a_periodic_grid(kernel_shape):
    image, kernel = normal(0, (12, 15)), normal(1, kernel_shape)
    spectrum = blur.centred_kernel_spectrum(kernel, image.shape)
    found = jnp.fft.irfft2(jnp.fft.rfft2(image) * spectrum, image.shape)
    expected = scipy.ndimage.convolve(np.asarray(image), np.asarray(kernel), mode="wrap")
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kernel_shape", [(5, 5), (3, 7)])
def test_normal_matrix_on_the_kernels_own_grid(kernel_shape):
    """With zeros around the images ``Xᵀ X`` is a correlation."""
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.normal(size=(2, 21, 18)), jnp.float32)
    kernel = jnp.asarray(generator.normal(size=kernel_shape), jnp.float32)
    h, w = kernel_shape
    padded = jnp.pad(images, ((0, 0), (h - 1, h - 1), (w - 1, w - 1)))
    forward, adjoint = blur.valid_blur_of(padded, kernel_shape)
    lags = blur.correlation_lags(images, kernel_shape)
    assert lags.shape == (2 * h - 1, 2 * w - 1)
    np.testing.assert_allclose(blur.stationary_blur(lags)(kernel), adjoint(forward(kernel)), atol=1e-3)
