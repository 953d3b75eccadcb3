"""The learned step from an estimated kernel towards the true one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.classical import correction
from jaxdeblur.operators import blur
from jaxdeblur.operators.gradients import gradient
from tests.scenes import NOISE_STD, scene


@pytest.fixture(scope="module")
def known():
    return scene(side=128, kernel_size=15)


@pytest.fixture(scope="module")
def spoilt(known):
    """Brighter here and darker there than it should be."""
    kernel = known.kernel * np.exp(0.5 * np.random.default_rng(0).normal(size=(15, 15)))
    return (kernel / kernel.sum()).astype(np.float32)


@pytest.fixture(scope="module")
def corrected(known, spoilt):
    return correction.correct(known.blurry, spoilt, noise_std=NOISE_STD)


def distance(kernel, truth):
    """Of two kernels, in the norm and up to whole pixels."""
    moves = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return min(float(np.linalg.norm(np.roll(kernel, move, (0, 1)) - truth)) for move in moves)


def test_a_spoilt_kernel_comes_nearer_to_the_true_one(known, spoilt, corrected):
    assert distance(corrected, known.kernel) < 0.85 * distance(spoilt, known.kernel)


def test_what_comes_is_a_kernel_of_the_same_support(spoilt, corrected):
    assert corrected.shape == spoilt.shape
    assert corrected.dtype == np.float32
    assert corrected.min() >= 0.0
    assert corrected.sum() == pytest.approx(1.0, abs=1e-5)


def test_the_same_call_gives_the_same_bytes(known, spoilt, corrected):
    again = correction.correct(known.blurry, spoilt, noise_std=NOISE_STD)
    assert again.tobytes() == corrected.tobytes()


def test_a_share_is_taken_of_the_way(known, spoilt, corrected):
    half = correction.correct(known.blurry, spoilt, noise_std=NOISE_STD, share=0.5)
    np.testing.assert_allclose(half, 0.5 * (spoilt + corrected), atol=5e-3 * spoilt.max())
    none = correction.correct(known.blurry, spoilt, noise_std=NOISE_STD, share=0.0)
    np.testing.assert_allclose(none, spoilt, atol=5e-3 * spoilt.max())


@pytest.mark.parametrize("size", [15, pytest.param(51, marks=pytest.mark.slow)])
def test_kernels_of_any_size_are_taken(known, size):
    kernel = np.pad(known.kernel, (size - 15) // 2)
    found = correction.correct(known.blurry, kernel, noise_std=NOISE_STD)
    assert found.shape == (size, size)
    assert np.isfinite(found).all()


@pytest.mark.slow
def test_the_packages_weights_fit_the_networks():
    weights, fresh = correction.load_weights(), correction.initial_weights(jax.random.key(0))
    assert {name: value.shape for name, value in weights.items()} == {name: value.shape for name, value in fresh.items()}
    assert all(bool(jnp.isfinite(value).all()) for value in weights.values())


def test_the_change_solves_the_damped_normal_equations():
    """As a dense solver does, on kernels of 3×3 pixels, whose nine unknowns conjugate gradients find exactly."""
    generator = np.random.default_rng(0)
    edges = gradient(jnp.asarray(generator.normal(size=(24, 20)), jnp.float32))
    target = jnp.asarray(generator.normal(size=(2, 21, 17)), jnp.float32)
    ridges = jnp.array([1e-2, 1.0])
    found = correction._least_squares(edges, target, 3, ridges)
    units = jnp.eye(9).reshape(9, 3, 3)
    inner = edges[:, 1:-1, 1:-1]
    # Of the images' middle, beyond whose borders there is nothing.
    columns = jnp.stack([blur.blur_valid(jnp.pad(inner, ((0, 0), (2, 2), (2, 2))), unit) for unit in units])
    normal = jnp.einsum("kchw,lchw->kl", columns, columns)
    right = jnp.stack([jnp.vdot(blur.blur_valid(edges, unit), target) for unit in units])
    energy = jnp.sum(inner**2)
    for ridge, change in zip(ridges, found, strict=True):
        expected = np.linalg.solve(np.asarray(normal + ridge * energy * jnp.eye(9), np.float64), np.asarray(right, np.float64))
        np.testing.assert_allclose(change.ravel(), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_closed_networks_leave_the_kernel_as_it_is(known, spoilt):
    weights = {name: jnp.zeros_like(value) for name, value in correction.initial_weights(jax.random.key(0)).items()}
    weights["kernel_tail_bias"] = jnp.array([-40.0, -40.0, -40.0, 0.0])
    found = correction.correct(known.blurry, spoilt, noise_std=NOISE_STD, weights=weights)
    np.testing.assert_allclose(found, spoilt, atol=5e-3 * spoilt.max())


def test_kernels_that_vary_are_all_changed_by_the_same(known, spoilt):
    field = np.stack([[spoilt, np.roll(spoilt, 1, 0)], [np.roll(spoilt, 1, 1), spoilt]])
    found = correction.correct_field(known.blurry, field, noise_std=NOISE_STD)
    assert found.shape == field.shape
    assert found.min() >= 0.0
    np.testing.assert_allclose(found.sum((-2, -1)), 1.0, atol=1e-5)
    # Windows are as large as this image.
    changes = [correction.correct(known.blurry, one, noise_std=NOISE_STD) - one for one in field.reshape(-1, 15, 15)]
    expected = np.maximum(field + np.mean(changes, axis=0), 0.0)
    np.testing.assert_allclose(found, expected / expected.sum((-2, -1), keepdims=True), atol=1e-6)


@pytest.mark.parametrize(("count", "places"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 2, 3]), (9, [1, 4, 7])])
def test_places_are_spread_over_the_field(count, places):
    assert correction._spread(count, 3) == places
