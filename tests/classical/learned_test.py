import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.classical import learned, saturated, sparse
from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.operators.blur import latent_shape
from tests.scenes import scene

NOISE_STD = 0.02


@pytest.fixture(scope="module")
def noisy():
    known = scene()
    noise = np.random.default_rng(5).normal(0.0, NOISE_STD, known.blurry.shape)
    return known, jnp.asarray(known.blurry + noise, jnp.float32), jnp.asarray(known.kernel)


def cropped(whole, kernel):
    (h, w), (rows, columns) = kernel.shape, whole.shape[:2]
    return np.asarray(whole[h // 2 : rows - h // 2, w // 2 : columns - w // 2])


def test_noisy_images_come_out_better_than_with_the_sparse_prior(noisy):
    known, blurry, kernel = noisy
    found = learned.learned(blurry, kernel, noise_std=NOISE_STD)
    assert found.shape == latent_shape(blurry.shape, kernel.shape)
    plain = sparse.sparse(blurry, kernel, weight=sparse.weight_for_noise(NOISE_STD))
    assert psnr(cropped(found, kernel), known.sharp) > psnr(cropped(plain, kernel), known.sharp) + 0.2


def test_the_same_call_gives_the_same_bytes(noisy):
    _, blurry, kernel = noisy
    first, second = (np.asarray(learned.learned(blurry, kernel, noise_std=NOISE_STD)) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_channels_of_one_grey_are_restored_as_that_grey(noisy):
    _, blurry, kernel = noisy
    grey = learned.learned(blurry, kernel, noise_std=NOISE_STD)
    colour = learned.learned(jnp.repeat(blurry[..., None], 3, axis=-1), kernel, noise_std=NOISE_STD)
    np.testing.assert_allclose(np.asarray(colour), np.repeat(np.asarray(grey)[..., None], 3, axis=-1), atol=4e-3)


@pytest.mark.parametrize("colour", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_fast_way_is_as_good_and_gives_the_same_bytes(noisy, colour):
    known, grey, kernel = noisy
    sharp, blurry = known.sharp, grey
    if colour:
        sharp, clean = (np.stack([image, 0.8 * image, 0.1 + 0.6 * image], axis=-1) for image in (known.sharp, known.blurry))
        blurry = jnp.asarray(clean + np.random.default_rng(6).normal(0.0, NOISE_STD, clean.shape), jnp.float32)
    usual = learned.learned(blurry, kernel, noise_std=NOISE_STD)
    first, second = (learned.learned(blurry, kernel, noise_std=NOISE_STD, fast=True) for _ in range(2))
    assert np.asarray(first).tobytes() == np.asarray(second).tobytes()
    assert psnr(cropped(first, kernel), sharp) > psnr(cropped(usual, kernel), sharp) - 0.1


def test_clipped_highlights_come_out_better_than_with_the_sparse_prior(noisy):
    known, _, kernel = noisy
    light = np.zeros_like(known.sharp)
    light[30:34, 40:44] = light[70:72, 60:68] = 8.0
    margins = [(side // 2, side // 2) for side in kernel.shape]
    radiance = np.pad(0.8 * known.sharp + light, margins, mode="edge")
    blurred = np.clip(learned.blur.blur_valid(jnp.asarray(radiance, jnp.float32), kernel), 0.0, 1.0)
    blurry = jnp.clip(blurred + np.random.default_rng(8).normal(0.0, NOISE_STD, blurred.shape), 0.0, 1.0)
    sharp = np.clip(0.8 * known.sharp + light, 0.0, 1.0)
    assert np.mean(blurry >= 1.0) > 0.001

    found = learned.learned(blurry, kernel, noise_std=NOISE_STD, clipped=True)
    plain = saturated.saturated(blurry, kernel, weight=sparse.weight_for_noise(NOISE_STD))
    linear = learned.learned(blurry, kernel, noise_std=NOISE_STD)
    aware, sparse_aware, unaware = (psnr(np.clip(cropped(whole, kernel), 0.0, 1.0), sharp) for whole in (found, plain, linear))
    assert aware > sparse_aware + 0.1
    assert aware > unaware + 1.5
    assert np.asarray(found).max() > 2.0  # highlights keep their light


def test_a_kernel_that_is_not_trusted_leaves_it_to_the_sparse_prior(noisy):
    _, blurry, kernel = noisy
    plain = sparse.sparse(blurry, kernel, weight=sparse.weight_for_noise(0.0))
    trusted, doubted = (
        np.abs(np.asarray(learned.learned(blurry, kernel, noise_std=0.0, kernel_std=std) - plain)).mean() for std in (0.0, 0.2)
    )
    assert doubted < 0.05 * trusted


def test_the_data_step_solves_its_equation(noisy):
    _, blurry, kernel = noisy
    support = latent_shape(blurry.shape, kernel.shape)
    anchor = jnp.asarray(np.random.default_rng(1).random((1, *support)), jnp.float32)
    found = learned.data_step(kernel, support, num_cg_steps=40)(blurry[None], anchor, 0.02)
    forward, adjoint = learned.blur.valid_blur(kernel, support)
    left = adjoint(forward(found)) + 0.02 * found
    np.testing.assert_allclose(left, adjoint(blurry[None]) + 0.02 * anchor, atol=1e-4)


@pytest.mark.parametrize("shape", [(32, 32), (33, 38)])
def test_the_network_takes_noise_off_images_of_any_size(shape):
    generator = np.random.default_rng(2)
    sharp = np.tile(np.linspace(0.2, 0.8, shape[1], dtype=np.float32), (shape[0], 1))
    noisy = sharp + generator.normal(0.0, 0.05, shape).astype(np.float32)
    found = learned.denoise(jnp.asarray(noisy)[None], 0.05, learned.load_weights())[0]
    assert found.shape == shape
    assert psnr(found, sharp) > psnr(noisy, sharp) + 3.0


def test_fresh_weights_are_made_like_those_that_come_with_the_package():
    fresh, packaged = jax.eval_shape(learned.initial_weights, jax.random.key(0)), learned.load_weights()
    assert {name: value.shape for name, value in packaged.items() if not name.startswith("stage_")} == {
        name: value.shape for name, value in fresh.items()
    }
