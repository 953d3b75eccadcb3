"""Descending a kernel's score: the negative log evidence and the prior on kernels.

Alternation (:func:`jaxdeblur.classical.variational.refine_kernel`) finds a kernel and then hardly moves it: the image's
variances, which were found with the last kernel, explain what the next one should. Here

    J(u) = F(u²) + λ Σ u,    u = √k ≥ 0,

is descended itself: for every value the image and its variances are found anew, from equal variances, and the slope of F at its
minimum over the image is the partial one. In u the prior Σ √k is linear, so mass can vanish; what has none gets none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from jaxdeblur.classical import variational
from jaxdeblur.classical.compiled import run_side_by_side

# Values of J for every step, at most.
_MOST_VALUES = 1.3


def halves(image: np.ndarray | jax.Array) -> list[jax.Array]:
    """Two halves of an image along its longer side, which have an F each, so that two programs run side by side."""
    shape = half_shape(image.shape)
    image = jnp.asarray(image, jnp.float32)
    return [image[: shape[0], : shape[1]], image[-shape[0] :, -shape[1] :]]


def half_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """That of the halves."""
    height, width = shape
    return (height, width // 2) if width > height else (height // 2, width)


def descend(
    images: Sequence[jax.Array],
    measured: Sequence[jax.Array | None],
    kernel: np.ndarray,
    support: np.ndarray,
    *,
    steps: int,
    noise_variance: float,
    image_softness_std: float,
    thinness: float,
    progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """The kernel after steps of L-BFGS (Liu, Nocedal, 1989, https://doi.org/10.1007/BF01589116) down J.

    Args:
      images: ``[H, W]`` in [0, 1], parts of one shape; J is the mean of theirs.
      measured: for each ``[H, W]``, one where a pixel was measured and zero where it was clipped; None if all were measured.
      kernel: ``[h, h]``, where to start; non-negative with some mass.
      support: ``[h, h]``, one where the kernel may have mass.
      steps: at most.
      noise_variance: ν, in squared [0, 1] units.
      image_softness_std: of the sharp image, in pixels.
      thinness: λ, of F per pixel.
      progress: called after each step with the share of the steps that are done; what it raises ends the descent.

    Returns:
      ``[h, h]`` float32, non-negative, summing to one: the best of all that were tried.
    """
    first = np.sqrt(np.asarray(kernel, np.float64) * support)
    best = (np.inf, first**2 / np.sum(first**2))

    def value_and_slope(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        # The kernel sums to one, whatever the numbers' length.
        length = np.linalg.norm(numbers)
        root = (numbers / length).reshape(first.shape)
        tried = jnp.asarray(root**2, jnp.float32)
        calls = [
            variational.evidence_call(image, counted, tried, noise_variance, image_softness_std)
            for image, counted in zip(images, measured, strict=True)
        ]
        evidences, slopes = zip(*run_side_by_side(variational.evidence_and_slope, calls), strict=True)
        value = float(np.mean([float(one) for one in evidences])) + thinness * float(root.sum())
        if value < best[0]:
            best = (value, root**2)
        slope = 2.0 * root * np.mean([np.asarray(one, np.float64) for one in slopes], axis=0) + thinness
        return value, ((slope - np.sum(slope * root) * root) / length).ravel()

    done = itertools.count(1)

    def report(_: np.ndarray) -> None:
        if progress is not None:
            progress(next(done) / steps)

    bounds = [(0.0, None if inside else 0.0) for inside in np.asarray(support).ravel() > 0]
    limits = {"maxiter": steps, "maxfun": int(_MOST_VALUES * steps)}
    start = (first / first.max()).ravel()
    settings: dict[str, Any] = {"method": "L-BFGS-B", "bounds": bounds, "options": limits, "callback": report}
    scipy.optimize.minimize(value_and_slope, start, jac=True, **settings)
    return np.asarray(best[1], np.float32)
