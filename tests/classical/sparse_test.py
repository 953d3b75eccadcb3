import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.classical import sparse
from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.operators.blur import crop_to_blurry, latent_shape
from tests.scenes import scene


def restored(blurry, kernel, **options):
    whole = jnp.asarray(sparse.sparse(jnp.asarray(blurry), jnp.asarray(kernel), **options))
    planes = whole[None] if whole.ndim == 2 else jnp.moveaxis(whole, -1, 0)
    cropped = crop_to_blurry(planes, kernel.shape)
    return np.asarray(cropped[0] if whole.ndim == 2 else jnp.moveaxis(cropped, 0, -1))


def test_a_known_kernel_brings_the_image_back():
    known = scene()
    assert sparse.sparse(jnp.asarray(known.blurry), jnp.asarray(known.kernel)).shape == latent_shape((96, 96), (9, 9))
    found = restored(known.blurry, known.kernel)
    assert psnr(found, known.sharp) > psnr(known.blurry, known.sharp) + 12.0
    # The boundary is not worse for having been assumed to be something: nothing was assumed.
    assert np.abs(found - known.sharp)[:4].mean() < 3 * np.abs(found - known.sharp).mean() + 0.01


def test_channels_of_one_grey_are_restored_as_that_grey():
    known = scene()
    grey = restored(known.blurry, known.kernel)
    colour = restored(np.repeat(known.blurry[..., None], 3, axis=-1), known.kernel)
    np.testing.assert_allclose(colour, np.repeat(grey[..., None], 3, axis=-1), atol=2e-3)


def test_channels_share_their_edges():
    """A channel too noisy to show its edges is restored better beside one that shows them."""
    known = scene()
    noisy = known.blurry + np.random.default_rng(5).normal(0, 0.03, known.blurry.shape).astype(np.float32)
    weight = sparse.weight_for_noise(0.03)
    alone = restored(np.repeat(noisy[..., None], 3, axis=-1), known.kernel, weight=weight)[..., 0]
    beside = restored(np.stack([noisy, known.blurry, known.blurry], axis=-1), known.kernel, weight=weight)[..., 0]
    assert psnr(beside, known.sharp) > psnr(alone, known.sharp) + 0.05


def test_a_sparser_prior_beats_a_quadratic_one():
    known = scene()
    weight = 1e-3
    sparse_psnr = psnr(restored(known.blurry, known.kernel, weight=weight), known.sharp)
    assert sparse_psnr > psnr(restored(known.blurry, known.kernel, weight=weight, num_reweightings=0), known.sharp) + 1.0


@pytest.mark.parametrize("colour", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_fast_solver_is_as_good_in_a_quarter_of_the_steps(colour):
    known = scene(colour=colour)
    blurry, kernel = jnp.asarray(known.blurry), jnp.asarray(known.kernel)

    def quality(whole):
        planes = jnp.moveaxis(whole, -1, 0) if colour else whole[None]
        cropped = np.asarray(crop_to_blurry(planes, known.kernel.shape))
        return psnr(np.moveaxis(cropped, 0, -1) if colour else cropped[0], known.sharp)

    slow, short = (quality(sparse.sparse(blurry, kernel, num_cg_steps=steps)) for steps in (40, sparse._NUM_LUMA_STEPS))
    fast = sparse.sparse_fast(blurry, kernel)
    assert fast.shape == (*latent_shape(known.blurry.shape[:2], known.kernel.shape), *known.blurry.shape[2:])
    assert quality(fast) > slow - 0.1
    assert quality(fast) > short + 0.3


def test_the_fast_solver_makes_no_colour_of_grey():
    known = scene()
    grey = sparse.sparse_fast(jnp.asarray(known.blurry), jnp.asarray(known.kernel))
    colour = sparse.sparse_fast(jnp.repeat(jnp.asarray(known.blurry)[..., None], 3, axis=-1), jnp.asarray(known.kernel))
    np.testing.assert_allclose(colour, jnp.broadcast_to(colour.mean(-1, keepdims=True), colour.shape), atol=1e-5)
    np.testing.assert_allclose(colour[..., 0], grey, atol=0.02)


def test_the_weight_follows_the_noise():
    noises = np.linspace(0.0, 0.1, 21)
    weights = [sparse.weight_for_noise(noise) for noise in noises]
    assert all(a <= b for a, b in itertools.pairwise(weights))
    assert weights[0] == 1e-4
    assert sparse.weight_for_noise(0.0, base=3e-4) == 3e-4
    assert weights[20] == pytest.approx(4 * weights[10])


def test_another_weight_takes_no_new_program():
    known = scene()
    solve = jax.jit(
        chex.assert_max_traces(sparse.sparse.__wrapped__, n=1),
        static_argnames=("exponent", "num_reweightings", "num_cg_steps"),
    )
    smooth, fine = (
        np.asarray(solve(jnp.asarray(known.blurry), jnp.asarray(known.kernel), weight=w, num_reweightings=1))
        for w in (1e-2, 1e-4)
    )
    assert np.abs(np.diff(smooth)).sum() < np.abs(np.diff(fine)).sum()
