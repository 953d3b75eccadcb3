"""Choosing among kernels without ground truth."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jaxdeblur.classical import variational
from jaxdeblur.config import InitialiserConfig
from jaxdeblur.operators.kernels import pad_kernel


def judge(
    blurry: np.ndarray,
    kernels: Mapping[str, np.ndarray],
    config: InitialiserConfig,
    *,
    noise_std: float,
    softness_stds: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """How badly each kernel explains an image, all of them on the support of the largest.

    The negative log evidence per pixel at the softness with which a kernel was estimated, plus ``thinness_weight · log Σ √k``.
    The first alone would prefer the crispest image, whose softness the kernel then takes upon itself; the second is the length
    of a thin trace, and grows with its width.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      kernels: ``[h, w]`` by name, odd sides, non-negative, summing to one.
      config: of the model by which they are judged.
      noise_std: of the image, in [0, 1] units.
      softness_stds: by a kernel's name, in pixels; the first of ``config`` for those that are not named.

    Returns:
      Scores by name, lower is better; infinite where one cannot be computed, NaN if there is one kernel only and so nothing to
      choose.
    """
    if len(kernels) == 1:
        return dict.fromkeys(kernels, float("nan"))
    shape = (max(k.shape[0] for k in kernels.values()), max(k.shape[1] for k in kernels.values()))
    variance = variational.noise_variance(noise_std, smallest=config.noise_variance)

    def score(name: str, kernel: np.ndarray) -> float:
        evidence = variational.negative_log_evidence(
            jnp.asarray(blurry),
            pad_kernel(jnp.asarray(kernel), shape),
            noise_variance=variance,
            image_softness_std=(softness_stds or {}).get(name, config.softness_stds[0]),
        )
        value = float(evidence) + config.thinness_weight * math.log(float(np.sqrt(kernel).sum()))
        return value if math.isfinite(value) else math.inf

    return {name: score(name, kernel) for name, kernel in kernels.items()}
