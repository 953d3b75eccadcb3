import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxdeblur.classical import variational
from jaxdeblur.classical.kernel_l0 import first_kernel
from jaxdeblur.evaluation.metrics import kernel_similarity
from jaxdeblur.operators.gradients import periodic_energy
from jaxdeblur.operators.kernels import pad_kernel
from tests.scenes import scene

SIZE = 11


def refined(kernel, **options):
    kernel = jnp.asarray(kernel)
    options = {"iterations": 20, "support": jnp.ones_like(kernel)} | options
    return variational.refine_kernel(jnp.asarray(scene().blurry), kernel, **options)[0]


def negative_log_evidence(kernel, **options):
    return float(variational.negative_log_evidence(jnp.asarray(scene().blurry), jnp.asarray(kernel, jnp.float32), **options))


@pytest.fixture(scope="module")
def true_kernel():
    return np.asarray(pad_kernel(jnp.asarray(scene().kernel), (SIZE, SIZE)))


def wrong_kernels(true_kernel):
    delta = np.zeros((SIZE, SIZE))
    delta[SIZE // 2, SIZE // 2] = 1.0
    return {
        "no blur": delta,
        "mirrored": true_kernel[:, ::-1],
        "turned": true_kernel.T,
        "too wide": scipy.ndimage.gaussian_filter(true_kernel, 0.8),
        "half of it": np.where(np.arange(SIZE) < SIZE // 2, true_kernel, 0) / true_kernel[:, : SIZE // 2].sum(),
        "a box": np.full((SIZE, SIZE), 1.0 / SIZE**2),
    }


@pytest.mark.parametrize("name", ["no blur", "mirrored", "turned", "too wide", "half of it", "a box"])
def test_the_true_kernel_has_the_least_negative_log_evidence(true_kernel, name):
    # Per pixel: over the image's nine thousand, a difference of 0.1 is overwhelming.
    assert negative_log_evidence(true_kernel) < negative_log_evidence(wrong_kernels(true_kernel)[name]) - 0.1


def test_negative_log_evidence_does_not_depend_on_where_the_kernel_lies(true_kernel):
    moved = np.roll(true_kernel, (1, -1), (0, 1))
    assert abs(negative_log_evidence(moved) - negative_log_evidence(true_kernel)) < 0.3


def test_negative_log_evidence_takes_no_new_program_for_another_noise(true_kernel):
    judge = jax.jit(chex.assert_max_traces(variational.negative_log_evidence.__wrapped__, n=1))
    values = [float(judge(jnp.asarray(scene().blurry), true_kernel, noise_variance=v)) for v in (1e-5, 2e-5, 1e-4)]
    assert np.isfinite(values).all()


@pytest.mark.parametrize("spoilt", ["speckled", "softened"])
def test_refinement_finds_the_kernel_and_lowers_the_negative_log_evidence(true_kernel, spoilt):
    if spoilt == "speckled":
        start = true_kernel * np.random.default_rng(0).uniform(0.2, 1.8, true_kernel.shape)
        start = (start / start.sum()).astype(np.float32)
    else:
        start = scipy.ndimage.gaussian_filter(true_kernel, 0.5)
    found = refined(start)
    assert found.shape == (SIZE, SIZE)
    assert float(found.min()) >= 0.0
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-5)
    assert kernel_similarity(start, true_kernel) < 0.98
    assert kernel_similarity(found, true_kernel) > 0.99
    assert negative_log_evidence(found) < negative_log_evidence(start) - 0.2


def test_refinement_leaves_the_kernel_of_no_blur():
    """Maximising over pairs of image and kernel would shrink every kernel to a point; marginalising spreads even this one."""
    found = refined(first_kernel(SIZE))
    assert negative_log_evidence(found) < negative_log_evidence(first_kernel(SIZE)) - 0.3
    assert float((found**2).sum()) < 0.8 * float((first_kernel(SIZE) ** 2).sum())


def test_refinement_stays_at_the_truth(true_kernel):
    found = refined(true_kernel)
    assert kernel_similarity(found, true_kernel) > 0.995


def test_refinement_keeps_to_its_support(true_kernel):
    support = jnp.zeros((SIZE, SIZE)).at[2:-2, 2:-2].set(1.0)
    found = refined(true_kernel, support=support)
    assert float((found * (1.0 - support)).sum()) == 0.0
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-5)


def test_refinement_tells_a_negative_log_evidence_that_falls(true_kernel):
    start = jnp.asarray(scipy.ndimage.gaussian_filter(true_kernel, 0.8))
    told = [
        float(variational.refine_kernel(jnp.asarray(scene().blurry), start, support=jnp.ones_like(start), iterations=n)[1])
        for n in (5, 60)
    ]
    assert told[1] < told[0] - 0.05


def test_a_prior_on_thin_kernels_takes_spurious_mass_away(true_kernel):
    rng = np.random.default_rng(2)
    spurious = rng.uniform(size=true_kernel.shape) * (rng.uniform(size=true_kernel.shape) < 0.3)
    start = (0.8 * true_kernel + 0.2 * spurious / spurious.sum()).astype(np.float32)
    without, thin = refined(start, iterations=10), refined(start, iterations=10, thinness=3e-3)
    outside = scipy.ndimage.binary_dilation(true_kernel > 0, iterations=1) == 0
    assert float(variational.thinness_penalty(thin)) < float(variational.thinness_penalty(without))
    assert float(thin[outside].sum()) < 0.75 * float(without[outside].sum())
    assert kernel_similarity(thin, true_kernel) > kernel_similarity(without, true_kernel) - 0.002


def test_thinness_penalty_and_its_slope():
    assert float(variational.thinness_penalty(np.full((4, 4), 1 / 16))) == pytest.approx(4.0)
    kernel = jnp.asarray(np.random.default_rng(3).uniform(0.1, 0.2, (3, 3)), jnp.float32)
    slope = jax.grad(lambda k: 2.0 * variational.thinness_penalty(k))(kernel)
    np.testing.assert_allclose(variational.thinness_slope(kernel, 2.0), slope, rtol=1e-2)


@pytest.mark.parametrize("c", [0.3, 1.0])
def test_noise_is_white_after_the_whitening_filter(c):
    """Both derivatives together: where the image itself has the noise's power, they have ``|D|²/(|D|² + c)`` of it."""
    side = 256
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(40, side, side)), jnp.float32)
    differences = jnp.stack([jnp.roll(noise, -1, -1) - noise, jnp.roll(noise, -1, -2) - noise])
    white = jnp.fft.rfft2(variational.whitening_filter(c), (side, side))
    power = np.asarray((jnp.abs(white * jnp.fft.rfft2(differences)) ** 2).sum(0).mean(0)) / side**2
    energy = np.asarray(periodic_energy((side, side)))
    expected = energy / (energy + c)
    high = energy > 1.0
    # The filter is short, so it is white to within a fifth; unfiltered, the power would be `energy`, from 1 to 8.
    smooth = scipy.ndimage.uniform_filter(power / np.maximum(expected, 1e-6), 9)
    np.testing.assert_allclose(smooth[high], 1.0, atol=0.2)


def test_noise_does_not_make_a_smaller_kernel_likelier(true_kernel):
    """Taken for white in the differences, noise spoke for kernels smaller than the true one."""
    rng = np.random.default_rng(1)
    noisy = jnp.asarray(scene().blurry + 0.02 * rng.normal(size=scene().blurry.shape), jnp.float32)
    smaller = np.where(true_kernel > 0.4 * true_kernel.max(), true_kernel, 0.0)
    values = [
        float(variational.negative_log_evidence(noisy, jnp.asarray(k / k.sum(), jnp.float32), noise_variance=4e-4))
        for k in (true_kernel, smaller)
    ]
    assert values[0] < values[1]


def test_a_reduced_image_keeps_a_softness_of_its_own():
    assert variational.softness_at(1.0, 0.7) == 0.7
    assert variational.softness_at(0.5, 0.8) == pytest.approx(0.5)


def test_softness_kernel():
    soft = np.asarray(variational.softness_kernel(0.4))
    assert soft.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(soft, soft.T)
    np.testing.assert_allclose(soft[3, 4] / soft[3, 3], np.exp(-0.5 / 0.4**2), rtol=1e-5)
    delta = np.zeros((7, 7))
    delta[3, 3] = 1.0
    np.testing.assert_allclose(variational.softness_kernel(0.0), delta, atol=1e-7)


def test_the_same_call_gives_the_same_bytes(true_kernel):
    assert len({np.asarray(refined(true_kernel)).tobytes() for _ in range(3)}) == 1


@pytest.fixture(scope="module")
def spoilt():
    """Two images that differ only where pixels were clipped, and one where they were measured."""
    generator = np.random.default_rng(0)
    measured = np.ones_like(scene().blurry)
    for row, column in generator.integers(0, 90, (6, 2)):
        measured[row : row + 4, column : column + 4] = 0.0
    images = [np.where(measured, scene().blurry, value) for value in (1.0, generator.random(measured.shape))]
    return [jnp.asarray(image, jnp.float32) for image in images], jnp.asarray(measured)


class TestClippedPixels:
    """Pixels that were not measured, and all that is known to have been."""

    def test_what_a_clipped_pixel_holds_does_not_matter(self, spoilt, true_kernel):
        images, measured = spoilt
        values = [float(variational.negative_log_evidence(image, true_kernel, measured=measured)) for image in images]
        assert values[0] == values[1]
        options = {"support": jnp.ones((SIZE, SIZE)), "iterations": 5, "measured": measured}
        kernels = [variational.refine_kernel(image, first_kernel(SIZE), **options)[0] for image in images]
        np.testing.assert_array_equal(*kernels)

    def test_beside_them_the_kernel_is_that_of_an_image_without_them(self, spoilt, true_kernel):
        images, measured = spoilt
        wanted = refined(true_kernel)
        options = {"support": jnp.ones((SIZE, SIZE)), "iterations": 20}
        without, _ = variational.refine_kernel(images[0], true_kernel, measured=measured, **options)
        misled, _ = variational.refine_kernel(images[0], true_kernel, **options)
        assert kernel_similarity(without, wanted) > 0.9995
        assert kernel_similarity(misled, wanted) < 0.998

    def test_where_all_were_measured_it_is_the_same_model(self, true_kernel):
        every = jnp.ones_like(jnp.asarray(scene().blurry))
        assert negative_log_evidence(true_kernel, measured=every) == pytest.approx(negative_log_evidence(true_kernel), abs=0.02)
        similar = kernel_similarity(refined(true_kernel, measured=every), refined(true_kernel))
        assert similar > 0.99

    def test_a_gradient_counts_if_no_clipped_pixel_enters_it(self):
        measured = np.ones((20, 24), np.float32)
        measured[9, 11] = 0.0
        blurry = np.random.default_rng(0).random(measured.shape)
        change = np.where(measured, blurry, 5.0)
        observed = [variational.observe(jnp.asarray(image), jnp.asarray(1.0), 0.0)[0] for image in (blurry, change)]
        touched = np.any(np.abs(np.subtract(*observed)) > 1e-5, axis=0)
        counted = np.asarray(variational.counted_gradients(jnp.asarray(measured)))
        assert not np.any(touched & (counted == 1.0))
        assert counted.sum() == counted.size - 64
