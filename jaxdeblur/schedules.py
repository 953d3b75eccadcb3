"""What changes over the steps of a fit: the loss and the learning rates, as functions of the step number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdeblur import losses
from jaxdeblur.config import FitConfig, LossInterval


def interval_index(starts: Sequence[int], step: jax.Array) -> jax.Array:
    """Which interval ``step`` (0-based scalar) falls into, the intervals beginning at ``starts`` (increasing, first 0)."""
    return jnp.searchsorted(jnp.asarray(starts), step, side="right") - 1


def _interval_loss(
    interval: LossInterval, blurry: jax.Array, total_variation_weight: jax.Array | None
) -> Callable[[losses.Estimate], jax.Array]:
    def loss(estimate: losses.Estimate) -> jax.Array:
        total = sum(weight * losses.term(name, estimate, blurry) for name, weight in interval.terms)
        if total_variation_weight is not None:
            total = total + total_variation_weight * losses.total_variation(estimate.image)
        return jnp.asarray(total)

    return loss


def loss_and_gradient(
    intervals: tuple[LossInterval, ...],
    step: jax.Array,
    estimates: losses.Estimate,
    blurry: jax.Array,
    total_variation_weight: jax.Array | None = None,
) -> tuple[jax.Array, losses.Estimate]:
    """The loss in force at ``step`` and its gradient with respect to the estimates of all restarts.

    Only the terms of that interval are computed. The branch is taken here, on images and kernels alone, and not around the
    networks: so the networks are compiled once, whatever the number of intervals, and a branch copies next to nothing.

    Args:
      intervals: the schedule.
      step: 0-based scalar.
      estimates: fields with a leading axis R.
      blurry: ``[H, W]``.
      total_variation_weight: scalar added to every interval's TV weight; None for none.

    Returns:
      Losses ``[R]``, and the gradients in the estimates' shape.
    """
    branches = [jax.vmap(jax.value_and_grad(_interval_loss(i, blurry, total_variation_weight))) for i in intervals]
    if len(branches) == 1:
        return branches[0](estimates)
    return lax.switch(interval_index([i.start for i in intervals], step), branches, estimates)


def learning_rate(initial: float, config: FitConfig) -> optax.Schedule:
    """``initial``, multiplied by ``config.decay_rate`` at each of ``config.decay_steps``."""
    return optax.piecewise_constant_schedule(initial, dict.fromkeys(config.decay_steps, config.decay_rate))
