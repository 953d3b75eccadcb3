import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from jaxdeblur.operators import blur, filter_flow

pytestmark = pytest.mark.usefixtures("light_compilation")


@jax.jit
def both(kernels, image, blurry):
    """The blur of an image and the adjoint of another one, in one program."""
    forward, adjoint = filter_flow.filter_flow(kernels, image.shape[-2:])
    return forward(image), adjoint(blurry)


blur_varying = jax.jit(filter_flow.blur_varying)


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("blurry_shape", "grid", "kernel_shape"),
    [((22, 20), (2, 3), (5, 5)), ((9, 40), (1, 4), (1, 6)), ((17, 11), (4, 1), (7, 2))],
)
def test_adjointness(blurry_shape, grid, kernel_shape):
    kernels = normal(0, (*grid, *kernel_shape))
    image, blurry = normal(1, blur.latent_shape(blurry_shape, kernel_shape)), normal(2, blurry_shape)
    blurred, back = both(kernels, image, blurry)
    assert blurred.shape == blurry_shape
    assert back.shape == image.shape
    scale = float(jnp.linalg.norm(blurred) * jnp.linalg.norm(blurry)) + 1e-3
    np.testing.assert_allclose(jnp.vdot(blurred, blurry) / scale, jnp.vdot(image, back) / scale, atol=1e-4)


def test_one_patch_is_the_uniform_blur():
    image, kernel, blurry = normal(0, (3, 40, 33)), normal(1, (7, 5)), normal(2, (3, 34, 29))
    kernel = kernel / jnp.abs(kernel).sum()
    blurred, back = both(kernel[None, None], image, blurry)
    np.testing.assert_allclose(blurred, blur.blur_valid(image, kernel), atol=1e-5)
    np.testing.assert_allclose(back, blur.blur_valid_adjoint(blurry, kernel), atol=1e-5)


def test_equal_kernels_are_the_uniform_blur():
    """The windows sum to one everywhere."""
    image, kernel = normal(0, (61, 50)), normal(1, (5, 7))
    kernels = jnp.broadcast_to(kernel, (4, 3, 5, 7))
    np.testing.assert_allclose(blur_varying(image, kernels), blur.blur_valid(image, kernel), atol=1e-4)


def test_each_pixel_is_blurred_by_the_kernels_around_it():
    """Against the sum written out: at every pixel the linear interpolation of the four nearest kernels."""
    image, kernels = np.asarray(normal(0, (32, 27))), np.asarray(normal(1, (3, 2, 5, 4)))
    height, width = 28, 24
    whole = np.array([[scipy.signal.convolve2d(image, kernel, mode="valid") for kernel in row] for row in kernels])
    expected = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            row = np.clip((i + 0.5) * 3 / height - 0.5, 0, 2)
            column = np.clip((j + 0.5) * 2 / width - 0.5, 0, 1)
            for r in range(3):
                for c in range(2):
                    expected[i, j] += max(0, 1 - abs(row - r)) * max(0, 1 - abs(column - c)) * whole[r, c, i, j]
    np.testing.assert_allclose(blur_varying(jnp.asarray(image), jnp.asarray(kernels)), expected, atol=1e-4)


def test_gradients_are_the_adjoints():
    image, kernels, blurry = normal(4, (26, 24)), normal(5, (2, 3, 5, 5)), normal(6, (22, 20))
    slopes = jax.jit(jax.grad(lambda x, k: jnp.vdot(filter_flow.blur_varying(x, k), blurry), (0, 1)))
    by_image, by_kernels = slopes(image, kernels)
    np.testing.assert_allclose(by_image, both(kernels, image, blurry)[1], atol=1e-3)
    # Linear in the kernels too: the slope along any direction is the difference itself.
    direction = normal(7, kernels.shape)
    difference = jnp.vdot(blur_varying(image, direction), blurry)
    np.testing.assert_allclose(jnp.vdot(by_kernels, direction), difference, rtol=1e-3)


def test_leading_axes_and_batches():
    images, kernels = normal(2, (2, 3, 24, 22)), normal(3, (2, 2, 2, 5, 3))
    together = blur_varying(images, kernels[0])
    assert together.shape == (2, 3, 20, 20)
    np.testing.assert_allclose(together[1, 2], blur_varying(images[1, 2], kernels[0]), atol=1e-5)
    mapped = jax.jit(jax.vmap(filter_flow.blur_varying))(images, kernels)
    np.testing.assert_allclose(mapped[0], together[0], atol=1e-5)


@pytest.mark.parametrize(("length", "count"), [(10, 1), (10, 3), (31, 4), (7, 7)])
def test_windows_sum_to_one_and_are_one_in_the_middles(length, count):
    weights = filter_flow.interpolation_weights(np.arange(length), length, count)
    np.testing.assert_allclose(weights.sum(0), 1.0, atol=1e-12)
    assert weights.min() >= 0.0
    middles = filter_flow.patch_middles(length, count)
    np.testing.assert_allclose(filter_flow.interpolation_weights(middles, length, count), np.eye(count), atol=1e-12)


def test_kernels_of_a_part_are_interpolated():
    kernels = jnp.arange(4.0)[:, None, None, None] * jnp.ones((4, 2, 3, 3))
    own = filter_flow.kernels_within(kernels, (40, 20), (slice(10, 30), slice(0, 20)), (2, 2))
    # Middles of the whole's parts: rows 4.5, 14.5, 24.5, 34.5; of the part's: 14.5 and 24.5.
    np.testing.assert_allclose(own[:, 0, 0, 0], [1.0, 2.0], atol=1e-6)
    same = filter_flow.kernels_within(kernels, (40, 20), (slice(None), slice(None)), (4, 2))
    np.testing.assert_allclose(same, kernels, atol=1e-6)


def test_other_shapes_than_its_own_are_refused():
    forward, adjoint = filter_flow.filter_flow(normal(0, (2, 2, 5, 5)), (20, 20))
    with pytest.raises(AssertionError):
        forward(normal(1, (20, 21)))
    with pytest.raises(AssertionError):
        adjoint(normal(1, (20, 20)))
    with pytest.raises(AssertionError):
        filter_flow.filter_flow(normal(0, (9, 2, 5, 5)), (12, 20))
