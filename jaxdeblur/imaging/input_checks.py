"""What an image or a kernel that a caller hands over must be like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxdeblur.config import SMALLEST_SIDE
from jaxdeblur.errors import InputError

# Of an image: x and y of the top left corner, width, height, in pixels.
Region = tuple[int, int, int, int]

_ROUNDING = 1e-5  # by which the sum of a normalised kernel in float32 may miss one

if TYPE_CHECKING:  # the command line answers a mistyped flag without waiting for jax
    import jax


def check_image(image: np.ndarray | jax.Array) -> np.ndarray:
    """``image`` as float32, once it has been found fit to be deblurred.

    Args:
      image: ``[H, W]`` or ``[H, W, 3]``, floats in [0, 1].

    Raises:
      InputError: its shape, type, size or values are others.
    """
    array = np.asarray(image)
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise InputError(f"image has shape {array.shape}; give [H, W] or [H, W, 3]")
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"image has type {array.dtype}; give floats in [0, 1] (8-bit pixels divided by 255)")
    if min(array.shape[:2]) < SMALLEST_SIDE:
        raise InputError(f"image of {array.shape[1]}×{array.shape[0]} pixels is too small; give {SMALLEST_SIDE} or more a side")
    if not np.all(np.isfinite(array)):
        raise InputError("image has values that are not finite; replace NaN and infinity first")
    if array.min() < -1e-3 or array.max() > 1.0 + 1e-3:
        raise InputError(f"image values run from {array.min():.3g} to {array.max():.3g}; scale them to [0, 1]")
    return array.astype(np.float32)


def check_kernel(kernel: np.ndarray | jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    """``kernel`` as float32 that sums to one, once it has been found to be a blur kernel for an image of ``shape``.

    Args:
      kernel: ``[h, w]``, odd sides, non-negative; or ``[rows, columns, h, w]``, one for each of the equal parts of the image.
      shape: ``(H, W)``.

    Raises:
      InputError: its shape or values are others.
    """
    array = np.asarray(kernel, np.float32)
    if array.ndim not in (2, 4) or array.size == 0 or not all(side % 2 for side in array.shape[-2:]):
        raise InputError(f"kernel has shape {array.shape}; give [h, w] with odd sides")
    if array.shape[-2] >= shape[0] or array.shape[-1] >= shape[1]:
        raise InputError(f"kernel of shape {array.shape} is larger than the image; give a smaller one")
    if array.ndim == 4 and (array.shape[0] > shape[0] // 8 or array.shape[1] > shape[1] // 8):
        raise InputError(f"kernels of shape {array.shape} are for too many parts; give parts of 8 pixels a side or more")
    total = array.sum((-2, -1), keepdims=True)
    if not np.all(np.isfinite(array)) or array.min() < 0 or total.min() <= 0:
        raise InputError("kernel must be finite and non-negative with some mass; give a blur kernel")
    # One that was normalised before keeps its bytes, and with them the image that it gave.
    return np.where(np.isclose(total, 1, rtol=0, atol=_ROUNDING), array, array / total)


def check_region(region: Region | None, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """``region`` of an image of ``shape`` as row and column slices; the whole image if it is None.

    Args:
      region: x and y of its top left corner, width, height, in pixels.
      shape: ``(H, W)``.

    Raises:
      InputError: it is not wholly within the image, or has too few pixels.
    """
    if region is None:
        return slice(0, shape[0]), slice(0, shape[1])
    x, y, width, height = region
    named = f"region {x},{y},{width},{height}"
    if min(width, height) < SMALLEST_SIDE:
        raise InputError(f"{named} is too small for a kernel estimate; give {SMALLEST_SIDE} pixels or more a side")
    if min(x, y) < 0 or x + width > shape[1] or y + height > shape[0]:
        raise InputError(f"{named} reaches beyond the image of {shape[1]}×{shape[0]} pixels; give x,y,width,height within it")
    return slice(y, y + height), slice(x, x + width)


def check_kernel_fits(kernel_size: int, shape: tuple[int, ...]) -> None:
    """Raises InputError unless a support of ``kernel_size`` pixels a side is smaller than an image of ``shape``."""
    if kernel_size >= min(shape):
        raise InputError(f"kernel size {kernel_size} does not fit an image of {shape[1]}×{shape[0]} pixels; give a smaller one")
