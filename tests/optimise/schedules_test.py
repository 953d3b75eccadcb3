"""Loss intervals, samples and schedules as functions of the step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.config import FitConfig, LossInterval, constant
from jaxdeblur.optimise import losses, schedules

INTERVALS = (
    LossInterval(0, (("mae", 1.0),)),
    LossInterval(3, (("mse", 2.0), ("kernel_energy", 0.5))),
    LossInterval(7, (("one_minus_ssim", 1.0),)),
)
PLAN = schedules.plan(FitConfig(loss_intervals=INTERVALS))
NUM_SAMPLES = 3


def _estimates(num_samples=NUM_SAMPLES):
    image = jax.random.uniform(jax.random.key(0), (2, num_samples, 20, 20))
    kernel = jax.nn.softmax(jax.random.normal(jax.random.key(1), (2, num_samples, 9))).reshape(2, num_samples, 3, 3)
    return losses.Estimate(image=image, kernel=kernel, reblurred=image[..., 1:-1, 1:-1])


def _observation():
    """Of two scenes."""
    return losses.Observation(jax.random.uniform(jax.random.key(2), (2, 18, 18)), noise_std=jnp.array([0.03, 0.05]))


@pytest.mark.parametrize(("step", "interval"), [(0, 0), (2, 0), (3, 1), (6, 1), (7, 2), (1000, 2)])
def test_the_interval_of_the_step_is_in_force(step, interval):
    estimates, observation = _estimates(), _observation()
    loss, gradient = jax.jit(lambda s: schedules.loss_and_gradient(PLAN, s, estimates, observation))(step)

    def expected(samples, seen):
        def one(estimate):
            return sum(weight * losses.term(name, estimate, seen) for name, weight in INTERVALS[interval].terms)

        return jnp.mean(jax.vmap(one)(samples))

    for restart in range(2):
        samples = jax.tree.map(lambda field: field[restart], estimates)  # noqa: B023
        wanted, wanted_gradient = jax.value_and_grad(expected)(samples, losses.Observation(observation.blurry[restart]))
        np.testing.assert_allclose(loss[restart], wanted, rtol=1e-5)
        for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted_gradient), strict=True):
            np.testing.assert_allclose(ours[restart], theirs, atol=1e-7)


def test_the_loss_is_the_mean_over_samples():
    estimates, observation = _estimates(), _observation()
    together, _ = schedules.loss_and_gradient(PLAN, 4, estimates, observation)
    single = [
        schedules.loss_and_gradient(PLAN, 4, jax.tree.map(lambda field: field[:, i : i + 1], estimates), observation)[0]  # noqa: B023
        for i in range(NUM_SAMPLES)
    ]
    np.testing.assert_allclose(together, np.mean(single, axis=0), rtol=1e-6)


def test_one_program_serves_all_steps_and_weights_and_branches_stay_branches():
    estimates, observation = _estimates(), _observation()
    program = jax.jit(lambda plan, step: schedules.loss_and_gradient(plan, step, estimates, observation)[0])
    for step in range(9):
        program(PLAN, step)
    heavier = tuple(
        dataclasses.replace(interval, terms=tuple((name, 2 * weight) for name, weight in interval.terms))
        for interval in INTERVALS
    )
    doubled = program(schedules.plan(FitConfig(loss_intervals=heavier, decay_steps=(1, 2, 3))), 4)
    np.testing.assert_allclose(doubled, 2 * program(PLAN, 4), rtol=1e-5)
    assert program._cache_size() == 1
    # A conditional, not a selection among losses that have all been computed.
    assert "conditional(" in program.lower(PLAN, 0).compile().as_text()


def test_tied_total_variation_is_weighed_by_each_scenes_own_noise():
    estimates, observation = _estimates(), _observation()
    plan = schedules.plan(FitConfig(loss_intervals=(LossInterval(0, (("noise_tied_tv", 10.0),)),)))
    variation = jnp.mean(jax.vmap(jax.vmap(losses.total_variation))(estimates.image), axis=1)
    loss, _ = schedules.loss_and_gradient(plan, 0, estimates, observation)
    np.testing.assert_allclose(loss, jnp.array([0.3, 0.5]) * variation, rtol=1e-5)


def test_learning_rates_decay_at_the_given_steps():
    rate = schedules.piecewise_constant(schedules.learning_rate(0.01, FitConfig(decay_steps=(5, 10), decay_rate=0.5)))
    np.testing.assert_allclose([rate.at(step) for step in (0, 4, 5, 9, 10)], [0.01, 0.01, 0.005, 0.005, 0.0025], rtol=1e-6)


def test_what_is_zero_throughout_is_no_part_of_the_program():
    plan = schedules.plan(FitConfig(input_noise_std=((0, 0.0), (5, 0.1)), dropout_rate=constant(0.0)))
    assert set(plan.input_noise_std) == {"image"}
    assert plan.dropout_rate == {}
    np.testing.assert_allclose([plan.input_noise_std["image"].at(step) for step in (0, 4, 5)], [0.0, 0.0, 0.1])
