"""How noisy an image is, from the image alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from jaxdeblur.operators import gradients

# Median of |N(0, 1)|.
_NORMAL_MEDIAN = 0.6744898
# Residuals beyond this many standard deviations are taken for texture; of a normal variable the rest has this variance.
_CLIP = 2.0
_CLIPPED_VARIANCE = 1.0 - 2.0 * _CLIP * math.exp(-0.5 * _CLIP**2) / math.sqrt(2.0 * math.pi) / math.erf(_CLIP / math.sqrt(2.0))
_CLIP_ITERATIONS = 4
# Nearer than one and a half steps of 8 bits to black or white a pixel counts as saturated: its noise has been cut off.
_SATURATION_MARGIN = 1.5 / 255.0
# Fewer usable pixels than this, and saturated ones are used too.
_FEWEST_PIXELS = 100
# The median only starts the clipping, and sorting is slow: about this many pixels of a regular grid do.
_MEDIAN_SAMPLES = 40_000
# Images with at most so much noise, and with at least so much, in [0, 1] units, are treated alike.
_LITTLE_NOISE, _MUCH_NOISE = 0.002, 0.01


def noise_std(image: npt.ArrayLike | jax.Array) -> float:
    """Standard deviation of the noise in one image, assumed white, Gaussian and alike in all channels.

    The residual is Immerkær's, a second difference along both axes, ``r = [1 −2 1]ᵀ[1 −2 1] * y / 6``, which smooth (and so
    all blurred) content hardly reaches while white noise of variance σ² keeps its variance: "Fast noise variance
    estimation" (1996), https://doi.org/10.1006/cviu.1996.0060. What texture is left is held off by robust statistics in the
    place of his mean: the median absolute deviation, as Donoho and Johnstone take it for wavelet coefficients, "Ideal spatial
    adaptation by wavelet shrinkage" (1994), https://doi.org/10.1093/biomet/81.3.425, and from there the standard deviation of
    the residuals within 2σ, iterated, since a median of 8-bit data moves in coarse steps. Pixels whose 3×3 neighbourhood is
    saturated, or so near black or white that the noise would be cut off, are left out: the neighbourhood's mean decides, which
    is independent of the residual for Gaussian noise.

    Noise that has been smoothed (by JPEG, demosaicking, resizing) is underestimated; fine unblurred texture can count as noise.

    Args:
      image: ``[H, W]`` or ``[H, W, C]`` in [0, 1], at least 3×3.

    Returns:
      σ in the image's units; with several channels the root mean square over them.
    """
    image = jnp.asarray(np.asarray(image), jnp.float32)
    chex.assert_rank(image, {2, 3})
    chex.assert_axis_dimension_gteq(image, 0, 3)
    chex.assert_axis_dimension_gteq(image, 1, 3)
    channels = image[None] if image.ndim == 2 else jnp.moveaxis(image, -1, 0)
    return float(jnp.sqrt(jnp.mean(_channel_noise_std(channels) ** 2)))


@jax.jit
def _channel_noise_std(channels: jax.Array) -> jax.Array:
    """``[C, H, W]`` to ``[C]``."""
    residual = gradients.dxx(gradients.dyy(channels)) / 6.0
    mean = _neighbourhood(jnp.add, channels) / 9.0
    darkest, brightest = _neighbourhood(jnp.minimum, channels), _neighbourhood(jnp.maximum, channels)
    unsaturated = (darkest > _SATURATION_MARGIN) & (brightest < 1.0 - _SATURATION_MARGIN)

    def estimate(residual: jax.Array, mean: jax.Array, unsaturated: jax.Array) -> jax.Array:
        usable = unsaturated | (jnp.sum(unsaturated) < _FEWEST_PIXELS)
        first = _robust_std(residual, usable)
        clear = usable & (jnp.minimum(mean, 1.0 - mean) > 3.0 * first)
        return _robust_std(residual, jnp.where(jnp.sum(clear) < _FEWEST_PIXELS, usable, clear))

    return jax.lax.map(lambda channel: estimate(*channel), (residual, mean, unsaturated))


def _robust_std(residual: jax.Array, usable: jax.Array) -> jax.Array:
    size = jnp.abs(residual)
    stride = max(1, round(math.sqrt(size.size / _MEDIAN_SAMPLES)))
    start = jnp.nanmedian(jnp.where(usable, size, jnp.nan)[::stride, ::stride]) / _NORMAL_MEDIAN
    # A thinned grid may miss every usable pixel; the clipping then starts from its floor.
    start = jnp.nan_to_num(start)

    def clipped(_: int, std: jax.Array) -> jax.Array:
        # A step of 8 bits' worth at least, or an exactly flat majority would hide all else.
        inside = usable & (size <= _CLIP * jnp.maximum(std, 1.0 / 255.0 / 6.0))
        count = jnp.maximum(jnp.sum(inside), 1)
        return jnp.sqrt(jnp.sum(jnp.where(inside, residual**2, 0.0)) / count / _CLIPPED_VARIANCE)

    return jax.lax.fori_loop(0, _CLIP_ITERATIONS, clipped, start)


def _neighbourhood(combine: Callable[[jax.Array, jax.Array], jax.Array], channels: jax.Array) -> jax.Array:
    """Combines the 3×3 pixels around each inner pixel: ``[..., H, W]`` to ``[..., H-2, W-2]``."""
    rows = combine(combine(channels[..., :-2, :], channels[..., 1:-1, :]), channels[..., 2:, :])
    return combine(combine(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])


def noisiness(noise_std: float) -> float:
    """How noisy an image counts as: 0 for a noise of at most 0.002, in [0, 1] units, 1 from 0.01 on, linear between."""
    return min(1.0, max(0.0, (noise_std - _LITTLE_NOISE) / (_MUCH_NOISE - _LITTLE_NOISE)))
