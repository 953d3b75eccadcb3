import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.classical.windows import cut_windows, local_kernels
from jaxdeblur.config import InitialiserConfig
from jaxdeblur.evaluation.metrics import kernel_similarity
from jaxdeblur.operators import blur
from tests.scenes import NOISE_STD, dead_leaves, motion_kernel

QUICK = InitialiserConfig(patient_weights=(4e-3, 8e-3), patient_iterations=10, guess_iterations=20)
EACH = {"each": 2, "kernel_size": 13}


def test_windows_cover_a_small_image_and_are_spread_over_a_large_one():
    image = np.random.default_rng(0).uniform(size=(150, 230)).astype(np.float32)
    windows, middles = cut_windows(image, 80, 24)
    assert windows.shape == (6, 80, 80)
    assert np.abs(middles[:, 0]).max() == 35.0
    assert np.abs(middles[:, 1]).max() == 75.0
    few, _ = cut_windows(np.tile(image, (3, 3)), 80, 6)
    assert few.shape == (6, 80, 80)


def test_an_image_of_one_window_has_no_local_kernels():
    image = np.zeros((64, 64), np.float32)
    assert local_kernels(image, QUICK, side=64, most=6, noise_std=0.0, **EACH) == []
    assert local_kernels(np.tile(image, (2, 2)), QUICK, side=64, most=0, noise_std=0.0, **EACH) == []


@pytest.mark.slow
def test_each_window_finds_the_kernel_of_its_place():
    """Two halves of an image with different kernels: one for both is neither."""
    side, size = 112, 9
    kernels = [motion_kernel(size), np.ascontiguousarray(motion_kernel(size)[:, ::-1])]
    assert kernel_similarity(*kernels) < 0.8
    noise = np.random.default_rng(1)
    halves = []
    for number, kernel in enumerate(kernels):
        latent = jnp.asarray(dead_leaves(side + size - 1, 3 + number))
        halves.append(np.asarray(blur.blur_valid(latent, jnp.asarray(kernel))) + noise.normal(0.0, NOISE_STD, (side, side)))
    calls = []
    found = local_kernels(
        np.concatenate(halves, axis=1).astype(np.float32),
        QUICK,
        side=side,
        most=2,
        noise_std=NOISE_STD,
        progress=lambda *call: calls.append(call),
        **EACH,
    )
    assert calls == [(1, 2), (2, 2)]
    assert [tuple(one.middle) for one in found] == [(0.0, -side / 2), (0.0, side / 2)]
    assert all(1 <= len(one.kernels) <= 2 for one in found)
    for one, kernel, other in zip(found, kernels, reversed(kernels), strict=True):
        assert kernel_similarity(one.kernels[0], kernel) > 0.8
        assert kernel_similarity(one.kernels[0], kernel) > kernel_similarity(one.kernels[0], other) + 0.1
