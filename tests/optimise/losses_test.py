"""Loss terms against closed forms and independent implementations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from skimage.metrics import structural_similarity

from jaxdeblur.config import LOSS_TERMS, TEACHER_TERMS
from jaxdeblur.optimise import losses


def _images(shape=(40, 47)):
    first, second = jax.random.split(jax.random.key(0))
    image = jax.random.uniform(first, shape)
    return image, jnp.clip(image + 0.1 * jax.random.normal(second, shape), 0, 1)


class ClosedForms(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(
        ("mse", losses.mse, lambda a, b: np.mean((a - b) ** 2)), ("mae", losses.mae, lambda a, b: np.mean(np.abs(a - b)))
    )
    def test_distances(self, loss, expected):
        a, b = _images()
        np.testing.assert_allclose(self.variant(loss)(a, b), expected(np.asarray(a), np.asarray(b)), rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_total_variation_of_a_ramp(self):
        ramp = jnp.outer(jnp.arange(5.0), jnp.ones(6)) * 0.1
        np.testing.assert_allclose(self.variant(losses.total_variation)(ramp), 0.1, rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_kernel_energy(self):
        energy = self.variant(losses.kernel_energy)
        np.testing.assert_allclose(energy(jnp.full((5, 5), 0.04)), 0.04, rtol=1e-5)
        np.testing.assert_allclose(energy(jnp.zeros((5, 5)).at[2, 2].set(1.0)), 1.0)

    @chex.variants(with_jit=True, without_jit=True)
    def test_ssim_equals_a_direct_convolution(self):
        a, b = _images()
        offsets = np.arange(11) - 5
        taps = np.exp(-(offsets**2) / (2 * 1.5**2))
        window = jnp.asarray(np.outer(taps, taps) / taps.sum() ** 2, jnp.float32)

        def mean(x):
            return jax.scipy.signal.convolve(x, window, mode="same")

        mean_a, mean_b = mean(a), mean(b)
        covariance = mean(a * b) - mean_a * mean_b
        variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
        ssim = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
        ssim = ssim / ((mean_a**2 + mean_b**2 + 1e-4) * (variances + 9e-4))
        np.testing.assert_allclose(self.variant(losses.one_minus_ssim)(a, b), 1 - ssim.mean(), atol=1e-5)


def test_ssim_agrees_with_scikit_image_inside():
    # Where no window meets the border, padding plays no part: compare images that agree near the border.
    a, b = _images((60, 60))
    b = a.at[16:44, 16:44].set(b[16:44, 16:44])
    _, similarity = structural_similarity(
        np.asarray(a),
        np.asarray(b),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    # Elsewhere the similarity is 1, with whatever padding.
    np.testing.assert_allclose(losses.one_minus_ssim(a, b), 1 - similarity.mean(), atol=1e-4)


def test_ssim_loss_of_equal_images_is_zero():
    a, _ = _images()
    np.testing.assert_allclose(losses.one_minus_ssim(a, a), 0.0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSS_TERMS if name not in TEACHER_TERMS])
def test_every_term_has_a_finite_gradient(name):
    image, blurry = _images()
    estimate = losses.Estimate(image=image, kernel=jnp.full((3, 3), 1 / 9), reblurred=image)
    seen = losses.Observation(blurry, noise_std=0.1)
    gradient = jax.grad(lambda e: losses.term(name, e, seen))(estimate)
    chex.assert_tree_all_finite(gradient)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 0
