import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdeblur.operators import gradients

ALL = gradients.FIRST_DERIVATIVES + gradients.SECOND_DERIVATIVES


@settings(max_examples=8, deadline=None)
@given(st.integers(3, 12), st.integers(3, 12), st.integers(0, 2**16), st.sampled_from(ALL), st.booleans())
def test_adjointness(rows, columns, seed, pair, batched):
    operator, adjoint = pair
    generator = np.random.default_rng(seed)
    image = jnp.asarray(generator.normal(size=(2,) * batched + (rows, columns)), jnp.float32)
    forward = operator(image)
    other = jnp.asarray(generator.normal(size=forward.shape), jnp.float32)
    assert adjoint(other).shape == image.shape
    np.testing.assert_allclose(jnp.vdot(forward, other), jnp.vdot(image, adjoint(other)), rtol=1e-4, atol=1e-4)


def test_derivatives_of_a_quadratic():
    i, j = np.mgrid[0:6, 0:7].astype(np.float32)
    image = jnp.asarray(2 * i**2 + 3 * j**2 + 5 * i * j)
    np.testing.assert_allclose(gradients.dyy(image), np.full((4, 7), 4.0), atol=1e-4)
    np.testing.assert_allclose(gradients.dxx(image), np.full((6, 5), 6.0), atol=1e-4)
    np.testing.assert_allclose(gradients.dxy(image), np.full((5, 6), 5.0), atol=1e-4)
    np.testing.assert_allclose(gradients.dx(image), np.diff(image, axis=1))
    np.testing.assert_allclose(gradients.dy(image), np.diff(image, axis=0))


@pytest.mark.parametrize(("operator", "adjoint"), ALL)
def test_adjoint_is_the_transpose_that_autodiff_finds(operator, adjoint):
    image = jnp.zeros((5, 6))
    other = jnp.asarray(np.random.default_rng(0).normal(size=operator(image).shape), jnp.float32)
    np.testing.assert_allclose(jax.jit(adjoint)(other), jax.linear_transpose(operator, image)(other)[0], atol=1e-6)


def test_too_small_an_image_is_refused():
    with pytest.raises(AssertionError):
        gradients.dx(jnp.zeros((4, 1)))
    chex.assert_shape(gradients.dx(jnp.zeros((1, 2))), (1, 1))
