"""A blur whose kernel varies over the image, and its adjoint: efficient filter flow.

The image is covered by overlapping patches. Each patch has its own kernel k_p and a window w_p, and the windows sum to one:

    ``A x = Σ_p w_p · (k_p * x)``,  ``Aᵀ y = Σ_p k_p ⋆ (w_p · y)``

with true convolution on the valid support, as in :mod:`jaxdeblur.operators.blur`. Windows rise and fall linearly between the
middles of neighbouring patches, so that each pixel is blurred by the linear interpolation of the kernels around it: the mean
displacement of light is then interpolated exactly. Time and memory are linear in the number of pixels.

Hirsch, Sra, Schölkopf, Harmeling: "Efficient filter flow for space-variant multiframe blind deconvolution", CVPR 2010,
https://doi.org/10.1109/CVPR.2010.5540158 (there the windows are applied before the blur); Hirsch, Schuler, Harmeling,
Schölkopf: "Fast removal of non-uniform camera shake", ICCV 2011, https://doi.org/10.1109/ICCV.2011.6126276.
"""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.operators import blur


def patch_middles(length: int, count: int) -> np.ndarray:
    """``[count]``: positions, in pixels of an axis of ``length``, of the middles of ``count`` equal parts."""
    return (np.arange(count) + 0.5) * (length / count) - 0.5


def interpolation_weights(positions: np.ndarray, length: int, count: int) -> np.ndarray:
    """The share of each patch's kernel in that of each position along an axis.

    Args:
      positions: ``[n]`` in pixels.
      length: of the axis, in pixels.
      count: patches along it.

    Returns:
      ``[count, n]`` in [0, 1], summing to one over patches: linear between middles, constant beyond the outermost.
    """
    place = np.clip((np.asarray(positions) + 0.5) * (count / length) - 0.5, 0.0, count - 1.0)
    return np.maximum(0.0, 1.0 - np.abs(place[None, :] - np.arange(count)[:, None]))


def kernels_within(kernels: jax.Array, shape: tuple[int, int], window: tuple[slice, slice], grid: tuple[int, int]) -> jax.Array:
    """The kernels of a part of an image, on a grid of its own, interpolated from those of the whole.

    Args:
      kernels: ``[R, C, h, w]`` of an image of ``shape``.
      shape: ``(H, W)`` of the blurry image.
      window: the part.
      grid: rows and columns of its own.

    Returns:
      ``[*grid, h, w]``.
    """
    chex.assert_rank(kernels, 4)
    weights = []
    for span, length, count, own in zip(window, shape, kernels.shape[:2], grid, strict=True):
        start, stop, _ = span.indices(length)
        weights.append(interpolation_weights(start + patch_middles(stop - start, own), length, count))
    return jnp.einsum("ri,cj,rchw->ijhw", jnp.asarray(weights[0]), jnp.asarray(weights[1]), kernels).astype(kernels.dtype)


def kernels_of_part(kernel: np.ndarray, shape: tuple[int, ...], part: tuple[slice, slice]) -> np.ndarray:
    """The kernel of a part of an image: ``[h, w]`` itself, or of ``[R, C, h, w]`` those of the part, about as many."""
    sides = [len(range(*span.indices(length))) / length for span, length in zip(part, shape, strict=False)]
    if kernel.ndim == 2 or sides == [1.0, 1.0]:
        return kernel
    grid = (math.ceil(sides[0] * kernel.shape[0]), math.ceil(sides[1] * kernel.shape[1]))
    return np.asarray(kernels_within(jnp.asarray(kernel), (shape[0], shape[1]), part, grid))


def filter_flow(kernels: jax.Array, image_shape: tuple[int, int]) -> tuple[blur.Operator, blur.Operator]:
    """The blur ``A`` by a kernel for each patch, and its adjoint ``Aᵀ``; their transforms are taken once for both.

    Args:
      kernels: ``[R, C, h, w]``: of the R × C equal parts of the blurry image, each holding in the part's middle.
      image_shape: ``(H+h-1, W+w-1)``.

    Returns:
      ``A``, from ``[..., H+h-1, W+w-1]`` to ``[..., H, W]``, and ``Aᵀ`` back, with ``⟨A x, y⟩ = ⟨x, Aᵀ y⟩``. Both are
      differentiable in the image and in the kernels.
    """
    chex.assert_rank(kernels, 4)
    h, w = kernels.shape[-2:]
    latent = (image_shape[0], image_shape[1])
    seen = (latent[0] - h + 1, latent[1] - w + 1)
    for length, count in zip(seen, kernels.shape[:2], strict=True):
        chex.assert_scalar_positive(length - count + 1)
    (row_starts, height, row_windows), (column_starts, width, column_windows) = (
        _spans(length, count) for length, count in zip(seen, kernels.shape[:2], strict=True)
    )
    starts = [(int(row), int(column)) for row in row_starts for column in column_starts]
    windows = row_windows[:, None, :, None] * column_windows[None, :, None, :]
    windows = jnp.asarray(windows.reshape(-1, height, width), kernels.dtype)
    rows, columns = height + h - 1, width + w - 1
    # Wrap-around of a circular convolution of this size stays inside the part that is cut off.
    shape = blur.fast_shape((rows, columns))
    spectra = blur.kernel_spectrum(kernels.reshape(-1, h, w), shape)

    def forward(image: jax.Array) -> jax.Array:
        chex.assert_axis_dimension(image, -2, latent[0])
        chex.assert_axis_dimension(image, -1, latent[1])
        patches = _cut(image, starts, (rows, columns))
        blurred = jnp.fft.irfft2(jnp.fft.rfft2(patches, shape) * spectra, shape)[..., h - 1 : rows, w - 1 : columns]
        return _overlap_add(blurred * windows, starts, seen)

    def adjoint(blurry: jax.Array) -> jax.Array:
        chex.assert_axis_dimension(blurry, -2, seen[0])
        chex.assert_axis_dimension(blurry, -1, seen[1])
        patches = _cut(blurry, starts, (height, width)) * windows
        lead = [(0, 0)] * (patches.ndim - 2)
        padded = jnp.pad(patches, [*lead, (h - 1, shape[0] - rows), (w - 1, shape[1] - columns)])
        spread = jnp.fft.irfft2(jnp.fft.rfft2(padded) * jnp.conj(spectra), shape)[..., :rows, :columns]
        return _overlap_add(spread, starts, latent)

    return forward, adjoint


def blur_operator(kernel: jax.Array, image_shape: tuple[int, int]) -> tuple[blur.Operator, blur.Operator]:
    """The blur and its adjoint: :func:`~jaxdeblur.operators.blur.valid_blur` for one kernel ``[h, w]``, :func:`filter_flow` for
    ``[R, C, h, w]``."""
    chex.assert_rank(kernel, {2, 4})
    return blur.valid_blur(kernel, image_shape) if kernel.ndim == 2 else filter_flow(kernel, image_shape)


def blur_varying(image: jax.Array, kernels: jax.Array) -> jax.Array:
    """``A x`` of :func:`filter_flow`: ``[..., H+h-1, W+w-1]`` and ``[R, C, h, w]`` to ``[..., H, W]``."""
    forward, _ = filter_flow(kernels, (image.shape[-2], image.shape[-1]))
    return forward(image)


def mean_power(kernel: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """``|K|²`` of ``kernel [h, w]``, zero-padded to ``shape``, or its mean over the patches of ``[R, C, h, w]``."""
    power = jnp.abs(blur.kernel_spectrum(kernel, shape)) ** 2
    return power if kernel.ndim == 2 else power.mean((0, 1))


def _spans(length: int, count: int) -> tuple[np.ndarray, int, np.ndarray]:
    """First pixels of the patches along an axis, their common side, and their windows ``[count, side]``."""
    weights = interpolation_weights(np.arange(length), length, count)
    seen = weights > 0.0
    first = seen.argmax(1)
    side = int((length - seen[:, ::-1].argmax(1) - first).max())
    starts = np.minimum(first, length - side)
    return starts, side, np.stack([row[start : start + side] for row, start in zip(weights, starts, strict=True)])


def _cut(image: jax.Array, starts: list[tuple[int, int]], shape: tuple[int, int]) -> jax.Array:
    """``[..., P, *shape]``: patches of ``image``."""
    return jnp.stack([image[..., row : row + shape[0], column : column + shape[1]] for row, column in starts], axis=-3)


def _overlap_add(patches: jax.Array, starts: list[tuple[int, int]], shape: tuple[int, int]) -> jax.Array:
    """The adjoint of :func:`_cut` for images of ``shape``."""
    if len(starts) == 1:
        return patches[..., 0, :, :]
    lead = patches.shape[:-3]
    corners = jnp.asarray(starts)

    def add(index: jax.Array, total: jax.Array) -> jax.Array:
        corner = [*[jnp.zeros((), corners.dtype)] * len(lead), corners[index, 0], corners[index, 1]]
        patch = jax.lax.dynamic_index_in_dim(patches, index, axis=-3, keepdims=False)
        # Slices instead of a scatter, which on CPUs goes through an image pixel by pixel.
        return jax.lax.dynamic_update_slice(total, jax.lax.dynamic_slice(total, corner, patch.shape) + patch, corner)

    return jax.lax.fori_loop(0, len(starts), add, jnp.zeros((*lead, *shape), patches.dtype))
