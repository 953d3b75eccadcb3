import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.classical import descent, variational
from jaxdeblur.evaluation.metrics import kernel_similarity
from jaxdeblur.operators.kernels import pad_kernel
from tests.scenes import NOISE_STD, scene

SIZE = 11
MODEL = {"noise_variance": NOISE_STD**2, "image_softness_std": 0.4}


@pytest.fixture(scope="module")
def true_kernel():
    return np.asarray(pad_kernel(jnp.asarray(scene().kernel), (SIZE, SIZE)))


@pytest.fixture(scope="module")
def spoilt(true_kernel):
    """With a part that is much too bright."""
    kernel = true_kernel * np.where(np.arange(SIZE) < SIZE // 2, 3.0, 1.0)
    return (kernel / kernel.sum()).astype(np.float32)


def descended(kernel, *, support=None, measured=None, steps=6, thinness=1e-3):
    support = np.ones((SIZE, SIZE)) if support is None else support
    images = descent.halves(scene().blurry)
    counted = [None, None] if measured is None else descent.halves(measured)
    return descent.descend(images, counted, kernel, support, steps=steps, thinness=thinness, **MODEL)


@pytest.fixture(scope="module")
def found(spoilt):
    return descended(spoilt)


def test_the_kernel_comes_nearer_to_the_true_one(true_kernel, spoilt, found):
    assert found.dtype == np.float32
    assert found.min() >= 0.0
    assert found.sum() == pytest.approx(1.0, abs=1e-5)
    before, after = (kernel_similarity(kernel, true_kernel) for kernel in (spoilt, found))
    assert before < 0.9
    assert after > before + 0.02


def test_the_score_falls(spoilt, found):
    def score(kernel):
        images = descent.halves(scene().blurry)
        values = [variational.negative_log_evidence(image, jnp.asarray(kernel), **MODEL) for image in images]
        return float(np.mean(values)) + 1e-3 * np.sqrt(kernel).sum()

    assert score(found) < score(spoilt) - 0.05


def test_the_same_call_gives_the_same_bytes(spoilt, found):
    assert descended(spoilt).tobytes() == found.tobytes()


def test_there_is_no_mass_where_there_was_none_or_may_be_none(spoilt):
    support = np.ones((SIZE, SIZE))
    support[:, :4] = 0.0
    inside = descended(spoilt, support=support, steps=2)
    assert inside[:, :4].sum() == 0.0
    assert (inside[spoilt == 0.0] == 0.0).all()
    assert inside.sum() == pytest.approx(1.0, abs=1e-5)


def test_much_thinness_leaves_fewer_pixels(spoilt, found):
    thin = descended(spoilt, thinness=0.1)
    assert np.sqrt(thin).sum() < np.sqrt(found).sum() - 0.05


def test_pixels_that_are_not_measured_say_nothing(spoilt):
    measured = np.ones_like(scene().blurry)
    measured[30:40, 40:50] = 0.0
    images, counted = descent.halves(scene().blurry), descent.halves(measured)
    changed = descent.halves(np.where(measured > 0, scene().blurry, 1.0))
    support, options = np.ones((SIZE, SIZE)), {"steps": 2, "thinness": 1e-3, **MODEL}
    kernels = [descent.descend(one, counted, spoilt, support, **options) for one in (images, changed)]
    np.testing.assert_allclose(*kernels, atol=1e-4)


def test_the_slope_is_that_of_the_evidence(true_kernel, spoilt):
    """Along the way to the true kernel, where images hardly change."""
    image = jnp.asarray(scene().blurry)
    kernel, ahead = (spoilt + part * (true_kernel - spoilt) for part in (0.5, 0.52))
    value, slope = variational.evidence_and_slope(image, jnp.asarray(kernel, jnp.float32), **MODEL)
    later, _ = variational.evidence_and_slope(image, jnp.asarray(ahead, jnp.float32), **MODEL)
    assert float(value) == pytest.approx(
        float(variational.negative_log_evidence(image, jnp.asarray(kernel), **MODEL)), abs=1e-4
    )
    expected = float(np.sum(np.asarray(slope) * (ahead - kernel)))
    assert float(later - value) == pytest.approx(expected, rel=0.3)
    assert expected < 0.0


@pytest.mark.parametrize(("shape", "half"), [((96, 96), (48, 96)), ((97, 64), (48, 64)), ((64, 101), (64, 50))])
def test_halves_are_those_along_the_longer_side(shape, half):
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    first, second = descent.halves(image)
    assert descent.half_shape(shape) == first.shape == second.shape == half
    assert first[0, 0] == image[0, 0]
    assert second[-1, -1] == image[-1, -1]
