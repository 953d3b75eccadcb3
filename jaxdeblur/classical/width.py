"""How wide an estimated kernel is made before an image is restored with it.

Estimates come out too thin: the prior on kernels and the marginal likelihood both prefer a trace of single pixels with gaps
(on Lai's images one pixel wide where the true one has three). The mean of the kernels that an image leaves possible is wider
than the likeliest one, the more so the less the image says of each of their pixels: where there is much noise, and where the
trace is long and each of its pixels faint. So an estimate is blurred by a Gaussian whose width grows with both. What this is
worth was measured, see BUILD.md.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage

from jaxdeblur.config import InitialiserConfig

# The noise, in [0, 1] units, from which on a kernel is widened by the most, and the extents in pixels from which on by more
# than the least and by the most.
_MUCH_NOISE = 0.01
_SHORT, _LONG = 15, 40


def width_std(kernel: np.ndarray, config: InitialiserConfig, *, noise_std: float) -> float:
    """Standard deviation in pixels of the Gaussian that widens an estimate.

    Args:
      kernel: ``[h, w]``, non-negative with some mass.
      config: between whose ``kernel_width_stds`` it lies.
      noise_std: of the image, in [0, 1] units.
    """
    least, most = config.kernel_width_stds
    extent = 1 + max(int(np.ptp(places)) for places in np.nonzero(kernel > 0.0))
    share = max(noise_std / _MUCH_NOISE, (extent - _SHORT) / (_LONG - _SHORT))
    return least + (most - least) * float(np.clip(share, 0.0, 1.0))


def widened(kernel: np.ndarray, config: InitialiserConfig, *, noise_std: float) -> np.ndarray:
    """``k * g`` on the kernel's own support, g the Gaussian of :func:`width_std`.

    Args:
      kernel: ``[h, w]``, non-negative, summing to one.
      config: see :func:`width_std`.
      noise_std: likewise.

    Returns:
      ``[h, w]`` float32, non-negative, summing to one.
    """
    std = width_std(kernel, config, noise_std=noise_std)
    wide = scipy.ndimage.gaussian_filter(kernel.astype(np.float64), std, mode="constant") if std > 0.0 else kernel
    return (wide / wide.sum()).astype(np.float32)
