import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdeblur.classical import kernel_l0
from jaxdeblur.evaluation.metrics import kernel_similarity, psnr
from tests.scenes import scene

drop_islands = jax.jit(functools.partial(kernel_l0.drop_islands, smallest=0.1))


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(40, 900), st.integers(40, 900)), st.integers(1, 40).map(lambda half: 2 * half + 1))
def test_pyramid_grows_to_full_size_with_odd_kernels(shape, kernel_size):
    levels = kernel_l0.pyramid(shape, kernel_size)
    sizes = [level.kernel_size for level in levels]
    assert all(size % 2 == 1 for size in sizes)
    assert sizes == sorted(sizes)
    assert sizes[0] <= max(7, kernel_size if len(levels) == 1 else 0)
    assert (levels[-1].scale, levels[-1].shape, sizes[-1]) == (1.0, shape, kernel_size)
    for coarse, fine in itertools.pairwise(levels):
        assert fine.scale / coarse.scale == pytest.approx(2**0.5)
        assert coarse.shape < fine.shape
        assert coarse.kernel_size >= kernel_size * coarse.scale  # the blur fits


def test_weights_shrink_to_a_floor():
    weights = [kernel_l0.weight_after(4e-3, step) for step in range(60)]
    assert weights[0] == 4e-3
    assert all(a >= b for a, b in itertools.pairwise(weights))
    assert weights[-1] == pytest.approx(1e-4)


def expected_islands(kernel, smallest):
    labels, count = scipy.ndimage.label(kernel > 0, structure=np.ones((3, 3)))
    mass = scipy.ndimage.sum(kernel, labels, np.arange(1, count + 1))
    kept = 1 + np.flatnonzero((mass >= smallest) | (mass == mass.max()))
    kernel = np.where(np.isin(labels, kept), kernel, 0)
    return kernel / kernel.sum()


@pytest.mark.parametrize("density", [0.02, 0.15, 0.4, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_islands_are_those_that_scipy_labels(seed, density):
    generator = np.random.default_rng(seed)
    kernel = generator.random((23, 23)) * (generator.random((23, 23)) < density)
    kernel[11, 11] += 1e-3
    kernel = (kernel / kernel.sum()).astype(np.float32)
    np.testing.assert_allclose(drop_islands(kernel), expected_islands(kernel, 0.1), atol=1e-6)


def test_the_heaviest_island_stays_however_light():
    kernel = np.zeros((23, 23), np.float32)
    kernel[::2, ::2] = 1.0
    kernel[4, 4] = 1.5
    found = drop_islands(kernel / kernel.sum())
    np.testing.assert_array_equal(np.argwhere(np.asarray(found)), [[4, 4]])
    assert float(found.sum()) == pytest.approx(1.0)


def test_a_winding_path_is_one_island():
    kernel = np.zeros((23, 23), np.float32)
    for row in range(0, 23, 4):
        kernel[row] = 1.0
        kernel[row : row + 5, 22 if row % 8 == 0 else 0] = 1.0
    kernel /= kernel.sum()
    np.testing.assert_allclose(drop_islands(kernel), kernel, rtol=1e-5)


def test_faint_and_negative_pixels_go():
    kernel = jnp.asarray([[1.0, 0.04, -0.5], [0.06, 0.0, 0.0], [0.0, 0.0, 0.5]])
    found = kernel_l0.drop_faint(kernel, 0.05)
    np.testing.assert_allclose(found, np.array([[1.0, 0, 0], [0.06, 0, 0], [0, 0, 0.5]]) / 1.56, rtol=1e-5)


def test_extension_keeps_the_image_and_joins_its_ends():
    image = jnp.asarray(scene().blurry)
    extended = np.asarray(kernel_l0.extend_periodically(image, 11))
    np.testing.assert_array_equal(extended[:96, :96], image)
    assert min(extended.shape) >= 96 + 11
    steps = np.abs(np.diff(extended[96 - 1 :], axis=0, append=extended[:1]))
    assert steps.max() <= 1.0 / 11


def test_l0_image_leaves_a_piecewise_constant_image_sharp():
    image = np.zeros((48, 48), np.float32)
    image[10:30, 12:40] = 0.8
    image[20:44, 4:20] = 0.4
    delta = jnp.zeros((5, 5)).at[2, 2].set(1.0)
    found = jax.jit(kernel_l0.l0_image)(jnp.asarray(image), delta, 4e-3)
    np.testing.assert_allclose(found, image, atol=0.02)


def test_l0_image_flattens_noise_and_keeps_steps():
    clean = np.where(np.arange(48)[None, :] % 24 < 12, 0.2, 0.8) * np.ones((48, 1))
    noisy = clean + np.random.default_rng(0).normal(0, 0.02, clean.shape)
    delta = jnp.zeros((5, 5)).at[2, 2].set(1.0)
    found = jax.jit(kernel_l0.l0_image)(jnp.asarray(noisy, jnp.float32), delta, 8e-3)
    assert psnr(np.asarray(found), clean) > psnr(noisy, clean) + 6.0


def test_least_squares_find_the_kernel_of_a_known_image():
    known = scene()
    found = jax.jit(kernel_l0.least_squares_kernel)(
        jnp.asarray(known.sharp), jnp.asarray(known.blurry), jnp.ones((11, 11)), 0.01
    )
    assert found.shape == (11, 11)
    assert float(found.min()) >= 0.0
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-5)
    assert kernel_similarity(found, known.kernel) > 0.97
    np.testing.assert_allclose(found[1:-1, 1:-1], known.kernel, atol=0.03)  # in place, not only in shape


def test_a_level_improves_the_kernel_and_compiles_once():
    known = scene()
    start = kernel_l0.first_kernel(11)
    level = jax.jit(chex.assert_max_traces(kernel_l0.estimate_level.__wrapped__, n=1))
    support = jnp.ones((11, 11))
    kernel = start
    for weight in (8e-3, 4e-3):
        kernel = level(jnp.asarray(known.blurry), kernel, support=support, weight=weight, ridge=2.0, iterations=4)
    assert kernel_similarity(kernel, known.kernel) > kernel_similarity(start, known.kernel) + 0.15
    assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(kernel.min()) >= 0.0


def test_the_same_call_gives_the_same_bytes():
    blurry, start = jnp.asarray(scene().blurry), kernel_l0.first_kernel(11)
    found = {
        np.asarray(
            kernel_l0.estimate_level(blurry, start, support=jnp.ones((11, 11)), weight=4e-3, ridge=2.0, iterations=4)
        ).tobytes()
        for _ in range(12)
    }
    assert len(found) == 1


def test_clipped_pixels_do_not_enter_the_kernel_step():
    known = scene()
    measured = np.ones_like(known.blurry)
    measured[20:26, 30:40] = 0.0
    support = jnp.ones((11, 11))
    found = [
        kernel_l0.least_squares_kernel(known.sharp, jnp.where(measured, known.blurry, value), support, 0.1, measured)
        for value in (1.0, 0.0)
    ]
    np.testing.assert_array_equal(*found)
    assert kernel_similarity(found[0], known.kernel) > 0.9


def test_a_level_predicts_highlights_that_were_clipped():
    """A light eight times white: with its clipped trace taken for its own light, the kernel is that of the trace's outline."""
    known = scene()
    blurry = 0.5 * known.blurry
    for row, column in ((20, 30), (60, 20), (70, 70), (30, 75)):
        blurry[row : row + 9, column : column + 9] += 8.0 * known.kernel
    blurry = jnp.minimum(blurry, 1.0)
    start, options = kernel_l0.first_kernel(11), {"support": jnp.ones((11, 11)), "weight": 4e-3, "ridge": 2.0, "iterations": 20}
    with_them = kernel_l0.estimate_level(blurry, start, **options)
    without = kernel_l0.estimate_level(blurry, start, measured=(blurry < 0.95).astype(jnp.float32), **options)
    assert kernel_similarity(without, known.kernel) > kernel_similarity(with_them, known.kernel)
