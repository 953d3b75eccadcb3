"""Blur kernels as files."""

from __future__ import annotations

import pathlib

import numpy as np

from jaxdeblur.errors import InputError
from jaxdeblur.imaging.colour import luma
from jaxdeblur.imaging.reading import read_image
from jaxdeblur.imaging.writing import write_levels


def read_kernel(path: pathlib.Path) -> np.ndarray:
    """Reads a blur kernel ``[h, w]`` from an NPY array or an image, scaled to sum to 1.

    Raises:
      InputError: it cannot be read, or is not a non-negative two-dimensional array of odd sides with a positive sum.
    """
    kernel = _read_npy(path) if path.suffix.lower() == ".npy" else _read_image(path)
    if kernel.ndim != 2:
        raise InputError(f"{path}: a kernel has two dimensions, this array has {kernel.ndim}; save it as [height, width]")
    if not all(side % 2 == 1 and side >= 3 for side in kernel.shape):
        raise InputError(f"{path}: a kernel of {_by(kernel.shape)} has no centre; pad it with zeros to odd sides of 3 or more")
    if not np.isfinite(kernel).all():
        raise InputError(f"{path}: the kernel holds NaN or infinite values; replace them")
    if (kernel < 0).any():
        raise InputError(f"{path}: the kernel holds negative values; a blur kernel is non-negative, so clip it at 0")
    total = kernel.sum()
    if not total > 0:
        raise InputError(f"{path}: the kernel is zero everywhere; give one with some mass")
    return (kernel / total).astype(np.float32)


def require_kernel_fits(size: tuple[int, int], image_size: tuple[int, int], name: str) -> None:
    """Raises InputError unless a kernel of ``size`` (height, width) is smaller than an image of (height, width).

    Args:
      size: the kernel's.
      image_size: the image's.
      name: what to call the image in the message.
    """
    if size[0] >= image_size[0] or size[1] >= image_size[1]:
        raise InputError(
            f"{name}: a kernel of {_by(size)} pixels is larger than the image of {_by(image_size)}; give a smaller one"
        )


def kernel_levels(kernel: np.ndarray) -> np.ndarray:
    """``kernel [h, w]`` scaled to its maximum, as 8-bit grey levels for people to look at."""
    peak = float(kernel.max())
    return np.rint(kernel * (255.0 / peak if peak > 0 else 0.0)).astype(np.uint8)


def write_kernel_image(path: pathlib.Path, kernel: np.ndarray) -> None:
    """Writes :func:`kernel_levels` of ``kernel [h, w]`` as a PNG."""
    write_levels(path, kernel_levels(kernel))


def write_kernel_array(path: pathlib.Path, kernel: np.ndarray) -> None:
    """Writes ``kernel [h, w]`` as a float32 NPY array."""
    np.save(path, kernel.astype(np.float32))


def _read_npy(path: pathlib.Path) -> np.ndarray:
    try:
        kernel = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError, EOFError):
        raise InputError(f"{path}: not a NumPy array that can be read; save it with numpy.save") from None
    if not isinstance(kernel, np.ndarray) or kernel.dtype.kind not in "buif":
        raise InputError(f"{path}: not an array of numbers; save the kernel as a float array with numpy.save")
    return kernel.astype(np.float64)


def _read_image(path: pathlib.Path) -> np.ndarray:
    pixels = read_image(path).pixels.astype(np.float64)
    return luma(pixels) if pixels.ndim == 3 else pixels


def _by(size: tuple[int, ...]) -> str:
    """``(height, width)`` the way people write sizes: width × height."""
    return "×".join(str(side) for side in reversed(size))
