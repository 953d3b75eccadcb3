"""Made-up camera shake: blur kernels for samples, synthetic sets and training."""

from __future__ import annotations

import chex
import numpy as np


def motion_kernel(
    seed: int | np.random.Generator, *, size: int, num_points: int = 2000, persistence: float = 0.995
) -> np.ndarray:
    """The path of a trembling hand during an exposure, as a blur kernel.

    The hand's acceleration is noise, its velocity is correlated over time: a smooth, bent path, brighter where it lingers. The
    path is scaled to fill the support up to a margin of one pixel and drawn with bilinear weights. Host-side NumPy in float64.

    Args:
      seed: of the randomness; a generator is drawn from as it stands, so that a caller can go on with it. The same seed gives
        the same kernel.
      size: odd side of the support in pixels, 3 or more.
      num_points: samples along the path.
      persistence: share of the velocity that is left after one sample, in [0, 1): nearer to 1 the path is straighter.

    Returns:
      ``[size, size]`` float32, non-negative, summing to 1.
    """
    chex.assert_scalar_in(size % 2, 1, 1)
    chex.assert_scalar_in(size, 3, np.inf)
    generator = np.random.default_rng(seed)
    velocity = np.zeros(2)
    position = np.zeros(2)
    path = np.empty((num_points, 2))
    for index in range(num_points):
        velocity = persistence * velocity + generator.normal(0.0, 1.0, 2)
        position = position + velocity
        path[index] = position
    low, high = path.min(0), path.max(0)
    path = (path - (low + high) / 2) * ((size - 3) / (high - low).max()) + size // 2
    kernel = np.zeros((size, size))
    whole = np.floor(path).astype(int)
    part = path - whole
    for row in (0, 1):
        for column in (0, 1):
            weight = np.abs(1 - row - part[:, 0]) * np.abs(1 - column - part[:, 1])
            np.add.at(kernel, (whole[:, 0] + row, whole[:, 1] + column), weight)
    return (kernel / kernel.sum()).astype(np.float32)
