"""Luma and chroma: full-range YCbCr with the weights of ITU-R BT.601 (0.299, 0.587, 0.114), as JPEG uses it; opponent colours.

The functions take NumPy and JAX arrays alike and are made of element-wise arithmetic, so that no accelerator lowers their
precision as it may for a matrix product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:  # a mistyped flag is answered without waiting for jax
    import jax

Array = TypeVar("Array", "jax.Array", np.ndarray)

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
# Chroma is (blue − luma) and (red − luma), scaled to the width of [−0.5, 0.5].
_CB_SCALE = 2 * (1 - _BLUE)
_CR_SCALE = 2 * (1 - _RED)


def luma(rgb: Array) -> Array:
    """Brightness ``Y = 0.299 R + 0.587 G + 0.114 B`` of ``rgb [..., 3]``, as ``[...]``."""
    return _RED * rgb[..., 0] + _GREEN * rgb[..., 1] + _BLUE * rgb[..., 2]


def rgb_to_ycbcr(rgb: Array) -> Array:
    """Full-range YCbCr of ``rgb [..., 3]`` in [0, 1]: Y in [0, 1], Cb and Cr in [0, 1] with 0.5 for grey."""
    y = luma(rgb)
    channels = [y, (rgb[..., 2] - y) / _CB_SCALE + 0.5, (rgb[..., 0] - y) / _CR_SCALE + 0.5]
    return rgb.__array_namespace__().stack(channels, axis=-1)


def ycbcr_to_rgb(ycbcr: Array) -> Array:
    """Inverse of :func:`rgb_to_ycbcr`. Values outside [0, 1] are kept: the caller clips."""
    y, cb, cr = (ycbcr[..., channel] for channel in range(3))
    red = y + _CR_SCALE * (cr - 0.5)
    blue = y + _CB_SCALE * (cb - 0.5)
    green = (y - _RED * red - _BLUE * blue) / _GREEN
    return ycbcr.__array_namespace__().stack([red, green, blue], axis=-1)


def opponent_planes(rgb: Array) -> Array:
    """An orthonormal turn of ``rgb [3, ...]``: its grey, ``(R + G + B) / √3``, and two planes of colour, zero for grey.

    Orthonormal, unlike YCbCr: sums of squares over the three channels, and so white noise, stay what they were.
    """
    red, green, blue = rgb[0], rgb[1], rgb[2]
    planes = [(red + green + blue) / 3**0.5, (red - blue) / 2**0.5, (red - 2.0 * green + blue) / 6**0.5]
    return rgb.__array_namespace__().stack(planes)


def from_opponent_planes(planes: Array) -> Array:
    """Inverse of :func:`opponent_planes`, its transpose."""
    grey, across, along = planes[0] / 3**0.5, planes[1] / 2**0.5, planes[2] / 6**0.5
    return planes.__array_namespace__().stack([grey + across + along, grey - 2.0 * along, grey - across + along])


def grey(image: np.ndarray) -> np.ndarray:
    """``image [H, W]`` itself, or the luma of ``image [H, W, 3]``."""
    return luma(image) if image.ndim == 3 else image


def with_luma(image: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """The chroma of ``image`` with a luma restored apart from it, as SelfDeblur does for colour.

    Args:
      image: ``[H, W]`` or ``[H, W, 3]`` in [0, 1].
      restored: the new luma ``[H, W]``.

    Returns:
      The shape of ``image``; not clipped.
    """
    if image.ndim == 2:
        return np.asarray(restored)
    ycbcr = np.array(rgb_to_ycbcr(image))
    ycbcr[..., 0] = restored
    return ycbcr_to_rgb(ycbcr)
