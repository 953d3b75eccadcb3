"""Convolutions with zero borders against a direct sum."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.networks.teachers import zero_padded


def _direct_conv(image, kernel, stride):
    size = len(kernel)
    margin = size // 2
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)))
    rows, columns = (-(-side // stride) for side in image.shape[:2])
    return np.stack(
        [
            [
                np.einsum("uvc,uvcd->d", padded[stride * i : stride * i + size, stride * j : stride * j + size], kernel)
                for j in range(columns)
            ]
            for i in range(rows)
        ]
    )


def _direct_transpose(image, kernel):
    height, width, _ = image.shape
    size = len(kernel)
    # Room for the taps that fall outside, cut off at the end.
    out = np.zeros((2 * height + size, 2 * width + size, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            out[2 * i : 2 * i + size, 2 * j : 2 * j + size] += np.einsum("c,uvcd->uvd", image[i, j], kernel)
    return out[1 : 2 * height + 1, 1 : 2 * width + 1]


@pytest.mark.parametrize("in_loop", [False, True])
@pytest.mark.parametrize(
    ("shape", "size", "stride"), [((50, 47), 3, 1), ((9, 11), 3, 1), ((9, 12), 3, 2), ((9, 11), 5, 1), ((10, 7), 5, 2)]
)
def test_conv_equals_the_sum_over_taps(shape, size, stride, in_loop):
    generator = np.random.default_rng(0)
    image, kernel = generator.normal(size=(*shape, 3)), generator.normal(size=(size, size, 3, 4))
    ours = zero_padded.conv(jnp.asarray([[image]] * 2), jnp.asarray(kernel), stride=stride, in_loop=in_loop)
    np.testing.assert_allclose(ours, [[_direct_conv(image, kernel, stride)]] * 2, atol=1e-4)


@pytest.mark.parametrize("size", [3, 4])
def test_conv_transpose_equals_the_sum_over_taps(size):
    generator = np.random.default_rng(0)
    image, kernel = generator.normal(size=(5, 7, 3)), generator.normal(size=(size, size, 3, 4))
    ours = zero_padded.conv_transpose(jnp.asarray([image] * 2), jnp.asarray(kernel))
    np.testing.assert_allclose(ours, [_direct_transpose(image, kernel)] * 2, atol=1e-4)
