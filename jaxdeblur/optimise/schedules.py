"""What changes over the steps of a fit, as functions of the step number that the compiled step evaluates.

A :class:`Plan` is data: fits whose schedules differ in their steps and values, but not in which loss terms they name, share one
compiled program.
"""

from __future__ import annotations

from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
from jax import lax

from jaxdeblur.config import FitConfig, LossTerm, Schedule
from jaxdeblur.optimise import losses

Terms = tuple[LossTerm, ...]


@flax.struct.dataclass
class PiecewiseConstant:
    """A function of the step.

    Attributes:
      starts: ``[n]`` first steps (0-based), increasing, the first one 0.
      values: ``[n]`` values from there on.
    """

    starts: jax.Array
    values: jax.Array

    def index(self, step: jax.Array) -> jax.Array:
        """Which piece the scalar ``step`` falls into."""
        return jnp.searchsorted(self.starts, step, side="right") - 1

    def at(self, step: jax.Array) -> jax.Array:
        """The value at the scalar ``step``."""
        return self.values[self.index(step)]


def piecewise_constant(schedule: Schedule) -> PiecewiseConstant:
    """A configured schedule as arrays."""
    starts, values = zip(*schedule, strict=True)
    return PiecewiseConstant(jnp.asarray(starts, jnp.int32), jnp.asarray(values, jnp.float32))


def learning_rate(initial: float, config: FitConfig) -> Schedule:
    """``initial``, multiplied by ``config.decay_rate`` at each of ``config.decay_steps``."""
    return tuple((start, initial * config.decay_rate**power) for power, start in enumerate((0, *config.decay_steps)))


@flax.struct.dataclass
class Plan:
    """Every schedule of a fit.

    Attributes:
      terms: names of the loss terms in each interval.
      weights: ``[intervals]`` of arrays ``[terms]``, theirs.
      intervals: which interval is in force.
      learning_rates: per generator.
      input_noise_std: of the latents' noise, for the generators that have any.
      dropout_rate: for the generators that have any.
    """

    terms: tuple[Terms, ...] = flax.struct.field(pytree_node=False)
    weights: tuple[jax.Array, ...]
    intervals: PiecewiseConstant
    learning_rates: dict[str, PiecewiseConstant]
    input_noise_std: dict[str, PiecewiseConstant]
    dropout_rate: dict[str, PiecewiseConstant]


def plan(config: FitConfig) -> Plan:
    """The schedules of ``config``."""
    intervals = [dict(interval.terms) for interval in config.loss_intervals]

    def active(image: Schedule, kernel: Schedule) -> dict[str, PiecewiseConstant]:
        """Those that are not zero throughout: what a fit does not use is no part of its program."""
        both = {"image": image, "kernel": kernel}
        return {name: piecewise_constant(one) for name, one in both.items() if any(value for _, value in one)}

    rates = {"image": config.image_learning_rate, "kernel": config.kernel_learning_rate}
    return Plan(
        terms=tuple(tuple(terms) for terms in intervals),
        weights=tuple(jnp.asarray(list(terms.values()), jnp.float32) for terms in intervals),
        intervals=piecewise_constant(tuple((interval.start, 0.0) for interval in config.loss_intervals)),
        learning_rates={name: piecewise_constant(learning_rate(rate, config)) for name, rate in rates.items()},
        input_noise_std=active(config.input_noise_std, config.kernel_input_noise_std),
        dropout_rate=active(config.dropout_rate, config.kernel_dropout_rate),
    )


def loss_and_gradient(
    plan: Plan, step: jax.Array, estimates: losses.Estimate, observation: losses.Observation
) -> tuple[jax.Array, losses.Estimate]:
    """The loss in force at ``step`` and its gradient with respect to the estimates of all restarts.

    The loss of a restart is the mean over its samples: an unbiased estimate of the expectation over noise and dropout,
    ``E[Σ_terms weight · term] ≈ (1/S) Σ_s Σ_terms weight · term(x_s, k_s, y)`` (Li, Nan & Ji, eq. (27)).

    Only the terms of that interval are computed. The branch is taken here, on images and kernels alone, and not around the
    networks: so the networks are compiled once, whatever the number of intervals, and a branch copies next to nothing.

    Args:
      plan: the schedules.
      step: 0-based scalar.
      estimates: fields with leading axes ``[R, S]``.
      observation: what each restart is fitted to, fields with leading axis ``[R]``.

    Returns:
      Losses ``[R]``, and the gradients in the estimates' shape.
    """

    Branch = Callable[[losses.Estimate, losses.Observation], tuple[jax.Array, losses.Estimate]]

    def branch(names: Terms, weights: jax.Array) -> Branch:
        def sample_loss(estimate: losses.Estimate, seen: losses.Observation) -> jax.Array:
            values = [losses.term(name, estimate, seen) for name in names]
            return jnp.dot(weights, jnp.stack(values))

        def mean_loss(samples: losses.Estimate, seen: losses.Observation) -> jax.Array:
            return jnp.mean(jax.vmap(sample_loss, (0, None))(samples, seen))

        return jax.vmap(jax.value_and_grad(mean_loss), (0, observation.axes))

    branches = [branch(names, weights) for names, weights in zip(plan.terms, plan.weights, strict=True)]
    if len(branches) == 1:
        return branches[0](estimates, observation)
    return lax.switch(plan.intervals.index(step), branches, estimates, observation)
