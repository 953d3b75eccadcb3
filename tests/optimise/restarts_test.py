"""Judging restarts without ground truth."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jaxdeblur.optimise import restarts

HEALTHY = {
    "steps": 500,
    "loss": 0.1,
    "image_std": 0.2,
    "kernel_peak": 0.1,
    "blurry_std": 0.2,
    "delta_allowed": False,
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"loss": float("nan")}, "not finite"),
        ({"loss": float("inf"), "steps": 1}, "not finite"),
        ({"image_std": 0.001}, "constant image"),
        ({"image_std": 0.001, "steps": 10}, None),
        ({"kernel_peak": 0.999}, "delta kernel"),
        ({"kernel_peak": 0.999, "delta_allowed": True}, None),
    ],
)
def test_collapse(change, reason):
    assert restarts.collapse_reason(**{**HEALTHY, **change}) == reason


def _fractal(side=128):
    """An image with a natural 1/f amplitude spectrum."""
    generator = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1.0
    image = np.fft.irfft2(np.fft.rfft2(generator.standard_normal((side, side))) / frequency, (side, side))
    return (image - image.min()) / np.ptp(image)


def test_a_delta_is_plausible_for_sharp_images_only():
    sharp = _fractal()
    assert restarts.delta_is_plausible(sharp)
    assert not restarts.delta_is_plausible(gaussian_filter(sharp, 2.0))


def test_noise_does_not_pass_for_detail():
    blurry = gaussian_filter(_fractal(), 2.0)
    noisy = blurry + 0.02 * np.random.default_rng(1).standard_normal(blurry.shape)
    assert restarts.delta_is_plausible(noisy)
    assert not restarts.delta_is_plausible(noisy, noise_std=0.02)


def test_the_sharper_of_equal_fits_wins_and_useless_ones_never():
    edges = np.kron(np.random.default_rng(0).random((8, 8)), np.ones((8, 8)))
    images = np.stack([gaussian_filter(edges, 2.0), edges, edges])
    blurry = gaussian_filter(edges, 2.0)
    reblurred = np.stack([blurry + 0.01] * 3)
    assert restarts.best_restart(images, reblurred, blurry, [True, True, False]) == 1
    assert restarts.best_restart(images, reblurred, blurry, [True, False, False]) == 0
    reblurred[1] = np.nan
    assert restarts.best_restart(images, reblurred, blurry, [False, False, False]) == 2
