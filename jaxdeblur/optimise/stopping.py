"""Stopping a fit early: each restart has its own end, and keeps the best it has seen.

Everything here is part of the compiled step: no trip to the host decides when to stop.
"""

from __future__ import annotations

import dataclasses
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.config import StoppingConfig
from jaxdeblur.optimise.restarts import Stop

# The moving variance is taken over at most so many pixels, evenly spread: their average stands for all.
MAX_PIXELS = 128 * 128


@flax.struct.dataclass
class Stopping:
    """What the criterion remembers, of R restarts.

    Attributes:
      stopped: ``[R]``, whether a restart has ended.
      best_value: ``[R]``, the smallest value of the criterion so far.
      best_step: ``[R]``, the step it was seen at.
      best_params: the parameters at that step, keys as in ``TrainState.params``.
      recent: ``[R, window, pixels]``, the last images, for the moving variance; None otherwise.
    """

    stopped: jax.Array
    best_value: jax.Array
    best_step: jax.Array
    best_params: dict[str, jax.Array]
    recent: jax.Array | None = None


def initial(config: StoppingConfig, params: dict[str, jax.Array], image_shape: tuple[int, int]) -> Stopping:
    """The state before the first step.

    Args:
      config: the criterion.
      params: of the generators, ``[R, P]``.
      image_shape: of the generator's image.
    """
    restarts = len(params["image"])
    pixels = len(range(0, math.prod(image_shape), _stride(image_shape)))
    return Stopping(
        stopped=jnp.zeros(restarts, bool),
        best_value=jnp.full(restarts, jnp.inf),
        best_step=jnp.zeros(restarts, jnp.int32),
        best_params=jax.tree.map(jnp.array, params),
        recent=jnp.zeros((restarts, config.window, pixels)) if config.criterion == "variance" else None,
    )


def _stride(image_shape: tuple[int, int]) -> int:
    return -(-math.prod(image_shape) // MAX_PIXELS)


def criterion(
    config: StoppingConfig, stopping: Stopping, images: jax.Array, error: jax.Array, step: jax.Array
) -> tuple[jax.Array, Stopping]:
    """The value to be small at the iterate of ``step``, ``[R]``, and the state that remembers it; infinite where not yet known.

    ``error``: ``MSE(y, k * x)``, eq. (6) of Chi's report. ``variance``: the windowed moving variance
    ``(1/W) Σ_w ‖x_{t−w} − mean_w x_{t−w}‖² / N`` of the last W iterates (Wang et al., "Early stopping for deep image prior",
    TMLR 2023, https://arxiv.org/abs/2112.06074): it falls while the image forms and rises when noise is fitted.

    Args:
      config: the criterion.
      stopping: before this step.
      images: ``[R, H+h-1, W+w-1]``, of this step.
      error: ``[R]``, mean squared error of the re-blurred images.
      step: 0-based scalar.
    """
    if config.criterion == "error":
        return jnp.where(step >= config.from_step, error, jnp.inf), stopping
    assert stopping.recent is not None
    flat = images.reshape(len(images), -1)[:, :: _stride((images.shape[1], images.shape[2]))]
    recent = stopping.recent.at[:, step % config.window].set(flat)
    variance = jnp.mean(jnp.var(recent, axis=1), axis=1)
    known = (step >= config.from_step) & (step >= config.window - 1)
    return jnp.where(known, variance, jnp.inf), dataclasses.replace(stopping, recent=recent)


def advance(
    config: StoppingConfig, stopping: Stopping, value: jax.Array, params: dict[str, jax.Array], step: jax.Array
) -> Stopping:
    """Takes note of the iterate of ``step``, and ends the restarts that have not improved for ``config.patience`` steps.

    Args:
      config: the criterion.
      stopping: before this step.
      value: ``[R]``, what is to be small.
      params: that gave it, ``[R, P]``.
      step: 0-based scalar.
    """
    better = (value < stopping.best_value) & ~stopping.stopped
    best_step = jnp.where(better, step, stopping.best_step)
    best_value = jnp.where(better, value, stopping.best_value)
    best_params = jax.tree.map(lambda new, old: jnp.where(better[:, None], new, old), params, stopping.best_params)
    ended = jnp.isfinite(best_value) & (step - best_step >= config.patience)
    return dataclasses.replace(
        stopping,
        stopped=stopping.stopped | ended,
        best_value=best_value,
        best_step=best_step,
        best_params=best_params,
    )


def best_params(stopping: Stopping, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """For each restart the parameters of its best iterate, or ``params`` where the criterion has not been known yet."""
    known = jnp.isfinite(stopping.best_value)[:, None]
    return jax.tree.map(lambda best, last: jnp.where(known, best, last), stopping.best_params, params)


def stops_of(stopping: Stopping, config: StoppingConfig) -> list[Stop | None]:
    """Where each restart ended early; None where it did not."""
    steps, stopped = np.asarray(stopping.best_step), np.asarray(stopping.stopped)
    return [
        Stop(step=int(best) + config.patience, best_step=int(best), criterion=config.criterion) if early else None
        for best, early in zip(steps, stopped, strict=True)
    ]
