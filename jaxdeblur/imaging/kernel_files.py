"""Blur kernels as files."""

from __future__ import annotations

import io
import math
import pathlib

import numpy as np

from jaxdeblur.errors import InputError
from jaxdeblur.imaging.colour import luma
from jaxdeblur.imaging.reading import MAX_MEGAPIXELS, read_image, require_plausible
from jaxdeblur.imaging.untrusted import BoundedFile, decoding
from jaxdeblur.imaging.writing import write_levels

# Brightness of the lines between the kernels of a grid.
_LINE = 0.3


def read_kernel(path: pathlib.Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """Reads a blur kernel ``[h, w]`` from an NPY array or an image, scaled to sum to 1.

    An array ``[rows, columns, h, w]`` holds one for each of the equal parts of an image, and each is scaled.

    Args:
      path: of the file.
      max_megapixels: the largest array or image that is decoded, see :func:`jaxdeblur.imaging.reading.read_image`.

    Raises:
      InputError: it cannot be read, or is not a non-negative array of two (or four) dimensions, with odd sides and a positive
        sum.
    """
    kernel = (_read_npy if path.suffix.lower() == ".npy" else _read_image)(path, max_megapixels)
    if kernel.ndim not in (2, 4):
        raise InputError(
            f"{path}: a kernel has two dimensions, this array has {kernel.ndim}; save it as [height, width], or as "
            "[rows, columns, height, width] for one in each part of an image"
        )
    if not all(side % 2 == 1 and side >= 3 for side in kernel.shape[-2:]):
        raise InputError(
            f"{path}: a kernel of {_by(kernel.shape[-2:])} has no centre; pad it with zeros to odd sides of 3 or more"
        )
    if not np.isfinite(kernel).all():
        raise InputError(f"{path}: the kernel holds NaN or infinite values; replace them")
    if (kernel < 0).any():
        raise InputError(f"{path}: the kernel holds negative values; a blur kernel is non-negative, so clip it at 0")
    with np.errstate(over="ignore"):
        total = kernel.sum((-2, -1), keepdims=True)
    if kernel.size == 0 or not total.min() > 0:
        raise InputError(f"{path}: the kernel is zero everywhere; give one with some mass")
    if total.max() == math.inf:
        raise InputError(f"{path}: the kernel's values are too large to be added up; scale it to sum to 1")
    return (kernel / total).astype(np.float32)


def require_kernel_fits(size: tuple[int, ...], image_size: tuple[int, int], name: str) -> None:
    """Raises InputError unless a kernel of ``size`` (height, width) is smaller than an image of (height, width).

    Args:
      size: the kernel's; of kernels for each part, (rows, columns, height, width).
      image_size: the image's.
      name: what to call the image in the message.
    """
    if len(size) == 4 and (size[0] > image_size[0] // 8 or size[1] > image_size[1] // 8):
        raise InputError(
            f"{name}: kernels for {_by(size[:2])} parts are too many for an image of {_by(image_size)}; give fewer"
        )
    size = size[-2:]
    if size[0] >= image_size[0] or size[1] >= image_size[1]:
        raise InputError(
            f"{name}: a kernel of {_by(size)} pixels is larger than the image of {_by(image_size)}; give a smaller one"
        )


def kernel_levels(kernel: np.ndarray) -> np.ndarray:
    """``kernel [h, w]`` scaled to its maximum, as 8-bit grey levels for people to look at.

    Kernels ``[rows, columns, h, w]`` become a picture of the grid, each where its part of the image is, between grey lines.
    """
    if kernel.ndim == 4:
        framed = np.pad(kernel, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=_LINE * float(kernel.max()))
        rows, columns, height, width = framed.shape
        return kernel_levels(framed.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)[:-1, :-1])
    peak = float(kernel.max())
    return np.rint(kernel * (255.0 / peak if peak > 0 else 0.0)).astype(np.uint8)


def write_kernel_image(path: pathlib.Path, kernel: np.ndarray) -> None:
    """Writes :func:`kernel_levels` of ``kernel [h, w]`` or ``[rows, columns, h, w]`` as a PNG."""
    write_levels(path, kernel_levels(kernel))


def write_kernel_array(path: pathlib.Path, kernel: np.ndarray) -> None:
    """Writes ``kernel [h, w]`` or ``[rows, columns, h, w]`` as a float32 NPY array."""
    content = io.BytesIO()
    np.save(content, kernel.astype(np.float32))
    path.write_bytes(content.getvalue())  # written by numpy itself, a small array is cut short on a full disk without an error


def _read_npy(path: pathlib.Path, max_megapixels: float) -> np.ndarray:
    damaged, remedy = "not a NumPy array that can be read", "save it with numpy.save"
    with decoding(path, "a kernel", damaged=damaged, remedy=remedy) as size, BoundedFile(path) as file:
        # numpy takes all the memory that a header asks for, so it is asked first. Versions above 2 are for named fields.
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if math.prod(shape) * dtype.itemsize > size:
            raise ValueError(f"its header promises an array of shape {shape}, more than its {size} bytes can hold")
        require_plausible(path, math.prod(shape), size, max_megapixels)
        file.seek(0)
        kernel = np.lib.format.read_array(file, allow_pickle=False)
        if kernel.dtype.kind not in "buif":
            raise InputError(f"{path}: not an array of numbers; save the kernel as a float array with numpy.save")
        return kernel.astype(np.float64)


def _read_image(path: pathlib.Path, max_megapixels: float) -> np.ndarray:
    pixels = read_image(path, max_megapixels=max_megapixels).pixels.astype(np.float64)
    return luma(pixels) if pixels.ndim == 3 else pixels


def _by(size: tuple[int, ...]) -> str:
    """``(height, width)`` the way people write sizes: width × height."""
    return "×".join(str(side) for side in reversed(size))
