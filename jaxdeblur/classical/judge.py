"""Choosing among kernels without ground truth."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.classical import variational
from jaxdeblur.classical.compiled import run_side_by_side
from jaxdeblur.classical.noise import noisiness
from jaxdeblur.config import InitialiserConfig
from jaxdeblur.operators.kernels import pad_kernel

# How the name of a kernel ends that has descended its score.
DESCENDED = ", descended"


def judge(
    blurry: np.ndarray,
    kernels: Mapping[str, np.ndarray],
    config: InitialiserConfig,
    *,
    noise_std: float,
    measured: np.ndarray | None = None,
) -> dict[str, float]:
    """How badly each kernel explains an image: its :func:`score`, all of them on the support of the largest.

    All are judged with the same softness of the sharp image, that of :func:`descent_softness_std`, whatever they were estimated
    with: evidences under different softnesses are not comparable, because the softer model always explains less.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      kernels: ``[h, w]`` by name, odd sides, non-negative, summing to one.
      config: of the model by which they are judged.
      noise_std: of the image, in [0, 1] units.
      measured: ``[H, W]``, one where a pixel was measured and zero where it was clipped; None if all were measured.

    Returns:
      Scores by name, lower is better; infinite where one cannot be computed, NaN if there is one kernel only and so nothing to
      choose.
    """
    if len(kernels) == 1:
        return dict.fromkeys(kernels, float("nan"))
    shape = (max(k.shape[0] for k in kernels.values()), max(k.shape[1] for k in kernels.values()))
    variance = variational.noise_variance(noise_std, smallest=config.noise_variance)
    image, softness_std = jnp.asarray(blurry), descent_softness_std(config, noise_std=noise_std)
    counted = None if measured is None else jnp.asarray(measured, jnp.float32)
    padded = [pad_kernel(jnp.asarray(kernel), shape) for kernel in kernels.values()]
    calls = [variational.evidence_call(image, counted, kernel, variance, softness_std) for kernel in padded]
    evidences = run_side_by_side(variational.negative_log_evidence, calls)
    return {
        name: score(evidence, kernel, config.descent_thinness)
        for (name, kernel), evidence in zip(kernels.items(), evidences, strict=True)
    }


def descent_softness_std(config: InitialiserConfig, *, noise_std: float) -> float:
    """The sharp image's softness, in pixels, with which kernels of an image of that noise are judged and descend their score.

    The noisier the image, the more it speaks for too small kernels, and the less may be left to the softness.
    """
    noisy, usual = config.noisy_descent_softness_std, config.descent_softness_std
    return usual + (noisy - usual) * noisiness(noise_std)


def ranked(scores: Mapping[str, float], config: InitialiserConfig) -> list[str]:
    """The names of kernels, the best first: one that has descended its score, as its name says, has ``smallest_lead`` in hand.

    What it descended was not quite this score, but that of parts of the image, and small leads mean nothing. Those without a
    score come last.
    """

    def rank(name: str) -> float:
        return math.inf if math.isnan(scores[name]) else scores[name] - config.smallest_lead * name.endswith(DESCENDED)

    return sorted(scores, key=rank)


def score(evidence: jax.Array | float, kernel: jax.Array | np.ndarray, thinness: float) -> float:
    """``F(k) + λ Σ √k``: a kernel's negative log evidence per pixel and prior; lower is better.

    Args:
      evidence: F(k), see :func:`jaxdeblur.classical.variational.negative_log_evidence`.
      kernel: ``[h, w]``, non-negative, summing to one.
      thinness: λ.

    Returns:
      The score; infinite where the evidence is not finite.
    """
    value = float(evidence) + thinness * float(variational.thinness_penalty(kernel))
    return value if math.isfinite(value) else math.inf
