"""The written-out layers against XLA's own operations and their derived gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from jaxdeblur.networks import layers

pytestmark = pytest.mark.usefixtures("light_compilation")


def _reference_conv(padded, kernel, stride):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(padded[None], kernel, (stride, stride), "VALID", dimension_numbers=dimensions)[0]


def _random(*shapes):
    keys = jax.random.split(jax.random.key(1), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def _value_and_cotangents(function, cotangent, *arguments):
    @jax.jit
    def run(*arguments):
        value, pull_back = jax.vjp(function, *arguments)
        return value, pull_back(cotangent)

    return run(*arguments)


@pytest.mark.parametrize("shape", [(2, 2), (7, 8), (8, 7)])
@pytest.mark.parametrize(
    ("ours", "stride"), [(layers.minimal3x3, 1), (layers.gathered3x3, 1), (lambda x, w: layers.gathered3x3(x, w, 2), 2)]
)
def test_convolutions_agree_with_the_library_forward_and_gradient(ours, stride, shape):
    image, kernel = _random((*shape, 5), (3, 3, 5, 4))

    def theirs(image, kernel):
        return _reference_conv(layers.pad_reflect(image), kernel, stride)

    (cotangent,) = _random(jax.eval_shape(theirs, image, kernel).shape)
    expected = _value_and_cotangents(theirs, cotangent, image, kernel)
    result = _value_and_cotangents(lambda x, w: ours(layers.pad_reflect(x), w), cotangent, image, kernel)
    chex.assert_trees_all_close(result, expected, atol=1e-4)


@pytest.mark.parametrize("conv", [layers.conv3x3, layers.conv3x3_stride2])
def test_convolutions_map_over_images_and_weights(conv):
    images, kernels = _random((3, 49, 50, 4), (3, 3, 3, 4, 6))
    alone = jax.jit(conv)
    one_by_one = jnp.stack([alone(image, kernel) for image, kernel in zip(images, kernels, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(conv))(images, kernels), one_by_one, atol=1e-4)
    np.testing.assert_allclose(alone(images, kernels[0])[0], one_by_one[0], atol=1e-4)


@pytest.mark.parametrize("slope", [0.2, 1.0])
def test_normalise_activate_is_the_formula_and_has_its_gradient(slope):
    image, scale, bias = _random((6, 7, 3), (3,), (3,))
    image = 2.0 * image + 1.0

    def formula(image, scale, bias):
        value = (image - image.mean((0, 1))) / jnp.sqrt(image.var((0, 1)) + 1e-5) * scale + bias
        return jnp.where(value >= 0, value, slope * value)

    (cotangent,) = _random(image.shape)
    expected = _value_and_cotangents(formula, cotangent, image, scale, bias)
    result = _value_and_cotangents(lambda *args: layers.normalise_activate(*args, slope), cotangent, image, scale, bias)
    chex.assert_trees_all_close(result, expected, atol=1e-4)


def test_normalise_activate_treats_images_of_a_batch_apart():
    images, scale, bias = _random((3, 6, 7, 2), (2,), (2,))
    expected = jnp.stack([layers.normalise_activate(image, scale, bias, 0.2) for image in images])
    np.testing.assert_allclose(layers.normalise_activate(images, scale, bias, 0.2), expected, atol=1e-6)


def test_upsampling_is_bilinear():
    (image,) = _random((5, 6, 2))
    expected = jax.image.resize(image, (10, 12, 2), "bilinear")
    np.testing.assert_allclose(layers.upsample_bilinear(image), expected, atol=1e-6)
    check_grads(layers.upsample_bilinear, (image,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def test_crop_to_common_cuts_centrally():
    large, small = jnp.arange(7.0 * 6).reshape(7, 6, 1), jnp.zeros((5, 6, 1))
    first, second = layers.crop_to_common(large, small)
    np.testing.assert_array_equal(first, large[1:6])
    np.testing.assert_array_equal(second, small)


def test_max_pool_drops_an_odd_last_row():
    image = jnp.arange(15.0).reshape(5, 3, 1)
    np.testing.assert_array_equal(layers.max_pool2(image)[..., 0], [[4.0], [10.0]])
