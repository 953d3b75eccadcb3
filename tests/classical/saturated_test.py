import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.signal

from jaxdeblur.classical.saturated import inlier_probability, misfit_by_clipping, response_slope, saturated, unclipped
from jaxdeblur.classical.sparse import sparse, weight_for_noise
from jaxdeblur.errors import InputError
from jaxdeblur.evaluation.metrics import psnr
from tests.scenes import scene

NOISE_STD = 0.003


def highlights(side):
    """Radiance of a few small discs and streaks, up to twenty times white, on black."""
    rows, columns = np.mgrid[:side, :side]
    radiance = np.zeros((side, side), np.float32)
    for row, column, radius, power in ((30, 40, 2, 20), (75, 85, 3, 6), (90, 25, 1.5, 12), (25, 95, 2.5, 4)):
        radiance[np.hypot(rows - row, columns - column) <= radius] = power
    radiance[60:62, 40:62] = 8.0
    return radiance


@functools.cache
def night(colour=False):
    """A dark image with saturated highlights: (blurry, kernel, the sharp image of a camera at rest, where no highlight is)."""
    known = scene(side=112, colour=colour)
    light = highlights(112)
    if colour:
        light = light[..., None] * np.array([1.0, 0.6, 0.2], np.float32)
    radiance = np.maximum(0.35 * known.sharp, light)
    kernel = known.kernel
    planes = radiance[..., None] if not colour else radiance
    blurred = np.stack([scipy.signal.convolve2d(plane, kernel, mode="valid") for plane in np.moveaxis(planes, -1, 0)], axis=-1)
    noise = np.random.default_rng(3).normal(0.0, NOISE_STD, blurred.shape)
    blurry = np.round(np.clip(np.clip(blurred, 0.0, 1.0) + noise, 0.0, 1.0) * 255.0).astype(np.float32) / 255.0
    sharp = crop(np.clip(radiance, 0.0, 1.0), kernel)
    dark = crop(light if not colour else light.max(-1), kernel) == 0.0
    return blurry if colour else blurry[..., 0], kernel, sharp, dark


def crop(image, kernel):
    h, w = kernel.shape
    return np.asarray(image)[h // 2 : image.shape[0] - h // 2, w // 2 : image.shape[1] - w // 2]


def restored(method, blurry, kernel, **options):
    whole = method(jnp.asarray(blurry), jnp.asarray(kernel), weight=weight_for_noise(NOISE_STD), **options)
    return np.clip(crop(whole, kernel), 0.0, 1.0)


@functools.cache
def restored_night(method, colour=False):
    blurry, kernel, _, _ = night(colour)
    return restored(method, blurry, kernel)


@functools.cache
def whole_night(method, colour=False):
    """With the default weight, uncropped and unclipped."""
    blurry, kernel, _, _ = night(colour)
    return np.asarray(method(jnp.asarray(blurry), jnp.asarray(kernel)))


@pytest.mark.slow
def test_highlights_no_longer_ring():
    blurry, _, sharp, dark = night()
    assert 0.01 < np.mean(blurry >= 0.95) < 0.2
    plain, aware = restored_night(sparse), restored_night(saturated)
    assert psnr(aware, sharp) > psnr(plain, sharp) + 6.0
    # Also beyond the highlights themselves: what is left there is the ringing.
    assert np.abs(aware - sharp)[dark].mean() < 0.5 * np.abs(plain - sharp)[dark].mean()


def test_highlights_are_brighter_than_white():
    _, kernel, _, _ = night()
    radiance = crop(whole_night(saturated), kernel)
    assert radiance.max() > 3.0
    assert np.abs(radiance - crop(highlights(112), kernel)).mean() < 0.25


@pytest.mark.parametrize("colour", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nothing_clipped_is_what_sparse_makes_of_it(colour):
    known = scene(colour=colour)
    blurry = 0.9 * known.blurry
    expected = restored(sparse, blurry, known.kernel)
    np.testing.assert_allclose(restored(saturated, blurry, known.kernel), expected, atol=2e-3)


def test_a_bright_image_that_is_not_clipped_is_restored_as_well():
    """White paper is bright enough to be doubted, but its pixels are what they say."""
    known = scene()
    blurry = np.clip(known.blurry / known.blurry.max(), 0.0, 1.0)
    sharp = known.sharp / known.blurry.max()
    assert np.mean(blurry >= 0.95) > 0.0
    plain, aware = (restored(method, blurry, known.kernel) for method in (sparse, saturated))
    assert psnr(aware, np.clip(sharp, 0.0, 1.0)) > psnr(plain, np.clip(sharp, 0.0, 1.0)) - 0.5


@pytest.mark.slow
def test_colours_clip_one_by_one():
    blurry, kernel, sharp, _ = night(colour=True)
    whole = whole_night(saturated, colour=True)
    assert whole.shape == (*(a + b - 1 for a, b in zip(blurry.shape[:2], kernel.shape, strict=True)), 3)
    plain, aware = restored_night(sparse, colour=True), restored_night(saturated, colour=True)
    for channel in range(3):
        assert psnr(aware[..., channel], sharp[..., channel]) > psnr(plain[..., channel], sharp[..., channel]) + 3.0


def test_equal_channels_stay_equal():
    blurry, kernel, _, _ = night()
    grey = restored_night(saturated)
    colour = restored(saturated, np.repeat(blurry[..., None], 3, axis=-1), kernel)
    np.testing.assert_allclose(colour, np.repeat(grey[..., None], 3, axis=-1), atol=0.02)


def test_outliers_near_a_highlight_are_passed_over():
    """A hot pixel in a highlight's halo: with every deviation allowed it is believed, and rings."""
    blurry, kernel, sharp, _ = night()
    spoilt = blurry.copy()
    for row, column in ((30, 47), (66, 50), (70, 78), (83, 25)):
        spoilt[row, column] = 0.9 if spoilt[row, column] < 0.5 else 0.1
    robust = restored(saturated, spoilt, kernel)
    assert psnr(robust, sharp) > psnr(restored(saturated, spoilt, kernel, outlier_std=10.0), sharp) + 0.5


def test_the_same_call_gives_the_same_bytes():
    blurry, kernel, _, _ = night()
    again = np.asarray(saturated(jnp.asarray(blurry), jnp.asarray(kernel)))
    assert again.tobytes() == whole_night(saturated).tobytes()


def test_an_unclipped_sensor_would_have_seen_the_highlights():
    _, kernel, _, _ = night()
    radiance = np.maximum(0.35 * scene(side=112).sharp, highlights(112))
    light = scipy.signal.convolve2d(radiance, kernel, mode="valid").astype(np.float32)
    blurry = np.clip(light, 0.0, 1.0)
    assert light.max() > 1.2
    found = unclipped(jnp.asarray(blurry)[None], jnp.asarray(radiance, jnp.float32)[None], jnp.asarray(kernel))[0]
    # At white itself the response bends, so that half of what is seen there is believed.
    np.testing.assert_allclose(found, light, atol=0.02)
    dim = jnp.asarray(0.9 * blurry)[None]
    np.testing.assert_array_equal(unclipped(dim, jnp.asarray(radiance, jnp.float32)[None], jnp.asarray(kernel)), dim)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_image_all_black_or_all_clipped_stays_finite(value):
    whole = np.asarray(saturated(jnp.full((36, 41), value), jnp.full((3, 7), 1 / 21)))
    assert whole.shape == (38, 47)
    assert np.all(np.isfinite(whole))
    np.testing.assert_allclose(np.clip(whole, 0.0, 1.0), value, atol=0.05)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 5), {}, "odd sides"),
        ((5, 5), {"exponent": 0.0}, "exponent"),
        ((5, 5), {"exponent": 2.5}, "exponent"),
        ((5, 5), {"num_reweightings": 0}, "num_reweightings"),
        ((5, 5), {"num_cg_steps": 0}, "num_cg_steps"),
    ],
)
def test_arguments_out_of_range_are_refused(shape, options, message):
    with pytest.raises(InputError, match=message):
        saturated(jnp.zeros((32, 32)), jnp.ones(shape) / 25, **options)


def test_another_weight_or_threshold_takes_no_new_program():
    known = scene()
    solve = jax.jit(
        chex.assert_max_traces(saturated.__wrapped__, n=1), static_argnames=("exponent", "num_reweightings", "num_cg_steps")
    )
    for weight, threshold in ((1e-2, 0.95), (1e-4, 0.9)):
        whole = solve(
            jnp.asarray(known.blurry), jnp.asarray(known.kernel), weight=weight, clipped_from=threshold, num_reweightings=1
        )
        assert np.all(np.isfinite(whole))


@pytest.mark.parametrize("colour", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_linear_image_misfits_where_highlights_were_clipped_and_not_where_white_is_white(colour):
    blurry, kernel, _, _ = night(colour)
    known = scene(side=112, colour=colour)
    unclipped = 0.9 * known.blurry
    for image, whole, low, high in (
        (blurry, whole_night(sparse, colour), 0.02, 1.0),
        (unclipped, sparse(jnp.asarray(unclipped), jnp.asarray(kernel)), 0.0, 0.0),
    ):
        linear = crop(whole, kernel)
        assert low <= misfit_by_clipping(image, linear, kernel) <= high


def test_white_paper_is_no_saturated_highlight():
    known = scene(side=112)
    page = np.ones((120, 120), np.float32)
    page[20:100:12, 15:105] = page[22:102:12, 20:95] = 0.1
    blurry = scipy.signal.convolve2d(page, known.kernel, mode="valid").astype(np.float32)
    linear = crop(sparse(jnp.asarray(blurry), jnp.asarray(known.kernel)), known.kernel)
    assert np.mean(blurry >= 0.99) > 0.05
    assert misfit_by_clipping(blurry, linear, known.kernel) < 0.01


def test_the_slope_is_that_of_a_response_that_clips_softly():
    radiance = np.linspace(-1.0, 5.0, 6001)
    slope = np.asarray(response_slope(jnp.asarray(radiance)))
    response = radiance[0] + scipy.integrate.cumulative_trapezoid(slope, radiance, initial=0.0)
    np.testing.assert_allclose(response, np.minimum(radiance, 1.0), atol=0.005)
    assert slope[2000] == pytest.approx(0.5, abs=1e-3)


def test_inliers_are_close_to_the_prediction():
    residual = jnp.asarray([0.0, 0.05, -0.05, 0.1, 0.3, 1.0, 1e3])
    probability = np.asarray(inlier_probability(residual, 0.06))
    assert probability[0] == pytest.approx(1.0)
    assert probability[1] == probability[2] > 0.95
    assert np.all(np.diff(probability[2:]) <= 0.0)
    assert probability[4] < 0.01
    assert np.all(np.isfinite(np.asarray(jax.vmap(jax.grad(lambda r: inlier_probability(r, 0.06)))(residual))))
