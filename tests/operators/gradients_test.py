import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdeblur.operators import gradients

pytestmark = pytest.mark.usefixtures("light_compilation")

ALL = gradients.FIRST_DERIVATIVES + gradients.SECOND_DERIVATIVES


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([(3, 3), (4, 11), (12, 7)]), st.integers(0, 2**16), st.sampled_from(ALL), st.booleans())
def test_adjointness(shape, seed, pair, batched):
    operator, adjoint = pair
    generator = np.random.default_rng(seed)
    image = jnp.asarray(generator.normal(size=(2,) * batched + shape), jnp.float32)
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


def test_gradient_stacks_both_derivatives_where_both_exist():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(6, 7)), jnp.float32)
    found = gradients.gradient(image)
    assert found.shape == (2, 5, 6)
    for i, j in ((0, 0), (3, 2), (4, 5)):
        np.testing.assert_allclose(found[:, i, j], [image[i, j + 1] - image[i, j], image[i + 1, j] - image[i, j]])


@pytest.mark.parametrize("shape", [(8, 10), (7, 9), (8, 9)])
def test_periodic_energy_is_that_of_the_differences_on_a_torus(shape):
    image = np.random.default_rng(0).normal(size=shape)
    across, down = np.roll(image, -1, 1) - image, np.roll(image, -1, 0) - image
    # Dᵀ D in both domains.
    expected = np.roll(across, 1, 1) - across + np.roll(down, 1, 0) - down
    found = np.fft.irfft2(np.fft.rfft2(image) * np.asarray(gradients.periodic_energy(shape)), shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("index", range(len(ALL)))
def test_periodic_energies_are_those_of_each_derivative(index):
    """Away from its border an image knows nothing of the torus: ``Dᵀ D`` is the same on both."""
    operator, adjoint = ALL[index]
    image = np.zeros((12, 11), np.float32)
    image[4:8, 4:7] = np.random.default_rng(0).normal(size=(4, 3))
    energy = np.broadcast_to(gradients.periodic_energies(image.shape)[index], (12, 6))
    found = np.fft.irfft2(np.fft.rfft2(image) * energy, image.shape)
    np.testing.assert_allclose(found, adjoint(operator(jnp.asarray(image))), atol=1e-4)
