"""How wide an estimated kernel is made before an image is restored with it.

The likeliest kernel is thinner than the mean of all that an image leaves possible, the more so the noisier the image is. So an
estimate is blurred by a Gaussian whose width grows with the noise. What this is worth was measured, see BUILD.md.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage

from jaxdeblur.classical.noise import noisiness
from jaxdeblur.config import InitialiserConfig


def width_std(config: InitialiserConfig, *, noise_std: float) -> float:
    """Standard deviation in pixels of the Gaussian that widens an estimate.

    Args:
      config: between whose ``kernel_width_stds`` it lies.
      noise_std: of the image, in [0, 1] units.
    """
    least, most = config.kernel_width_stds
    return least + (most - least) * noisiness(noise_std)


def widened(kernel: np.ndarray, config: InitialiserConfig, *, noise_std: float) -> np.ndarray:
    """``k * g`` on the kernel's own support, g the Gaussian of :func:`width_std`.

    Args:
      kernel: ``[h, w]``, non-negative, summing to one.
      config: see :func:`width_std`.
      noise_std: likewise.

    Returns:
      ``[h, w]`` float32, non-negative, summing to one.
    """
    std = width_std(config, noise_std=noise_std)
    wide = scipy.ndimage.gaussian_filter(kernel.astype(np.float64), std, mode="constant") if std > 0.0 else kernel
    return (wide / wide.sum()).astype(np.float32)
