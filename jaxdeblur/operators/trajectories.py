"""Made-up camera shake: blur kernels for samples, synthetic sets and training."""

from __future__ import annotations

import chex
import numpy as np
from scipy.spatial.transform import Rotation


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


def camera_path(
    seed: int | np.random.Generator,
    *,
    extent: float,
    roll: float,
    focal_length: float,
    num_points: int = 2000,
    persistence: float = 0.995,
) -> np.ndarray:
    """How a trembling hand turns a camera during an exposure.

    As in :func:`motion_kernel`, the hand's acceleration is noise and its velocity is correlated over time, here about three
    axes. A turn by pitch or yaw moves the image by the focal length times the angle.

    Args:
      seed: of the randomness, as there.
      extent: larger side of the box around the middle pixel's path, in pixels.
      roll: difference between the largest and the smallest angle about the optical axis, in radians.
      focal_length: in pixels.
      num_points: samples along the path, at equal times.
      persistence: share of the velocity that is left after one sample, in [0, 1).

    Returns:
      ``[num_points, 3]``: rotation vectors in radians (pitch, yaw, roll) whose mean is zero.
    """
    chex.assert_scalar_positive(focal_length)
    generator = np.random.default_rng(seed)
    acceleration = generator.normal(0.0, 1.0, (num_points, 3))
    velocity = np.zeros(3)
    path = np.zeros((num_points, 3))
    for index in range(1, num_points):
        velocity = persistence * velocity + acceleration[index]
        path[index] = path[index - 1] + velocity
    ranges = np.ptp(path, axis=0)
    path[:, :2] *= extent / (focal_length * ranges[:2].max())
    path[:, 2] *= roll / ranges[2]
    return path - path.mean(0)


def homographies(path: np.ndarray, shape: tuple[int, int], focal_length: float) -> np.ndarray:
    """What turns of a camera do to an image: ``K R K⁻¹``, K with the principal point in the image's middle.

    Args:
      path: ``[n, 3]``, rotation vectors as of :func:`camera_path`.
      shape: ``(H, W)`` in pixels.
      focal_length: in pixels.

    Returns:
      ``[n, 3, 3]``, for points ``(column, row, 1)``.
    """
    chex.assert_shape(path, (None, 3))
    middle_row, middle_column = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    camera = np.array([[focal_length, 0.0, middle_column], [0.0, focal_length, middle_row], [0.0, 0.0, 1.0]])
    # A positive pitch moves the image down, a positive yaw to the right.
    turns = Rotation.from_rotvec(np.stack([-path[:, 0], path[:, 1], path[:, 2]], axis=1)).as_matrix()
    return np.asarray(camera @ turns @ np.linalg.inv(camera))


def displaced(points: np.ndarray, transforms: np.ndarray) -> np.ndarray:
    """Where homographies ``[n, 3, 3]`` take points ``[m, 2]`` (row, column): ``[n, m, 2]``."""
    chex.assert_shape(points, (None, 2))
    flat = np.concatenate([points[:, ::-1], np.ones((len(points), 1))], axis=1)
    moved = np.einsum("nij,mj->nmi", transforms, flat)
    return moved[..., 1::-1] / moved[..., 2:]
