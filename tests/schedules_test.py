"""Loss intervals and learning rates as functions of the step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import losses, schedules
from jaxdeblur.config import FitConfig, LossInterval

INTERVALS = (
    LossInterval(0, (("mae", 1.0),)),
    LossInterval(3, (("mse", 2.0), ("kernel_energy", 0.5))),
    LossInterval(7, (("one_minus_ssim", 1.0),)),
)


def _estimates():
    image = jax.random.uniform(jax.random.key(0), (2, 20, 20))
    kernel = jax.nn.softmax(jax.random.normal(jax.random.key(1), (2, 9))).reshape(2, 3, 3)
    return losses.Estimate(image=image, kernel=kernel, reblurred=image[:, 1:-1, 1:-1])


@pytest.mark.parametrize(("step", "interval"), [(0, 0), (2, 0), (3, 1), (6, 1), (7, 2), (1000, 2)])
def test_the_interval_of_the_step_is_in_force(step, interval):
    estimates, blurry = _estimates(), jax.random.uniform(jax.random.key(2), (18, 18))
    loss, gradient = jax.jit(lambda s: schedules.loss_and_gradient(INTERVALS, s, estimates, blurry))(step)

    def expected(estimate):
        return sum(weight * losses.term(name, estimate, blurry) for name, weight in INTERVALS[interval].terms)

    wanted, wanted_gradient = jax.vmap(jax.value_and_grad(expected))(estimates)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted_gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


def test_one_program_serves_all_steps_and_branches_stay_branches():
    estimates, blurry = _estimates(), jnp.zeros((18, 18))
    program = jax.jit(lambda s: schedules.loss_and_gradient(INTERVALS, s, estimates, blurry)[0])
    for step in range(9):
        program(step)
    assert program._cache_size() == 1
    # A conditional, not a selection among losses that have all been computed.
    assert "conditional(" in program.lower(0).compile().as_text()


def test_tied_total_variation_is_added_to_every_interval():
    estimates, blurry = _estimates(), jnp.zeros((18, 18))
    for step in (0, 3, 7):
        plain, _ = schedules.loss_and_gradient(INTERVALS, step, estimates, blurry)
        tied, _ = schedules.loss_and_gradient(INTERVALS, step, estimates, blurry, jnp.float32(0.3))
        variation = jax.vmap(losses.total_variation)(estimates.image)
        np.testing.assert_allclose(tied - plain, 0.3 * variation, rtol=1e-4)


def test_learning_rates_decay_at_the_given_steps():
    rate = schedules.learning_rate(0.01, FitConfig(decay_steps=(5, 10), decay_rate=0.5))
    np.testing.assert_allclose([rate(step) for step in (0, 4, 5, 9, 10)], [0.01, 0.01, 0.005, 0.005, 0.0025], rtol=1e-6)
