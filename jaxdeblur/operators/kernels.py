"""Blur kernels as arrays: normalising, centring, shifting, resizing, and fitting into another support.

Blind deconvolution knows kernel and image only up to a shift. With ``(S_t u)(p) = u(p − t)``, the move of an array by ``t``
pixels down and right, convolution satisfies ``(S_t k) * x = S_t (k * x) = k * (S_t x)``, hence
``(S_t k) * (S_{−t} x) = k * x``: **a kernel that is moved by t calls for an image moved by −t**, and the blurry image stays
explained.

Everything here is jax, jit-able with static result shapes, and differentiable in the kernel. A kernel is ``[h, w]``, its
centre the pixel ``(h//2, w//2)``.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

# Of a kernel's mass, this share may be pushed over the border when it is centred: generators leave a faint floor on every
# pixel, and without some tolerance no such kernel could be moved at all.
MASS_TOLERANCE = 2e-3


def normalise_kernel(kernel: jax.Array) -> jax.Array:
    """Cuts off negative values and divides by the sum; a kernel without mass becomes the delta at its centre.

    Args:
      kernel: ``[h, w]``.

    Returns:
      ``[h, w]``, non-negative, summing to one.
    """
    chex.assert_rank(kernel, 2)
    kernel = jnp.maximum(kernel, 0.0)
    mass = jnp.sum(kernel)
    delta = jnp.zeros_like(kernel).at[kernel.shape[0] // 2, kernel.shape[1] // 2].set(1.0)
    return jnp.where(mass > 0.0, kernel / jnp.where(mass > 0.0, mass, 1.0), delta)


def kernel_centre(kernel: jax.Array) -> jax.Array:
    """Centre of mass ``Σ p·k(p) / Σ k(p)`` in pixels from the first pixel.

    Args:
      kernel: ``[h, w]``, non-negative with some mass.

    Returns:
      ``[2]``: row and column.
    """
    chex.assert_rank(kernel, 2)
    rows, columns = kernel.sum(1), kernel.sum(0)
    mass = rows.sum()
    return jnp.stack([rows @ jnp.arange(kernel.shape[0]) / mass, columns @ jnp.arange(kernel.shape[1]) / mass])


def shift_kernel(kernel: jax.Array, shift: jax.Array) -> jax.Array:
    """Moves a kernel down and right by a possibly fractional number of pixels (linear interpolation, zeros move in).

    Mass that is pushed over the border is lost; :func:`centring_shift` gives a shift that avoids it.

    Args:
      kernel: ``[h, w]``.
      shift: ``[2]``, rows and columns.

    Returns:
      ``[h, w]``, the sum unchanged unless mass left the array.
    """
    chex.assert_rank(kernel, 2)
    shift = jnp.asarray(shift, kernel.dtype)
    chex.assert_shape(shift, (2,))
    (h, w) = kernel.shape
    return sampling_matrix(h, h, shift=shift[0]) @ kernel @ sampling_matrix(w, w, shift=shift[1]).T


def centring_shift(kernel: jax.Array, *, subpixel: bool = True, tolerance: float = MASS_TOLERANCE) -> jax.Array:
    """The shift that takes the centre of mass to the centre of the array, or as far towards it as the mass allows.

    Along each axis the shift stops where more than ``tolerance`` of the mass would be pushed over the border. For a kernel
    that must be centred whatever its place, first :func:`pad_kernel` it.

    Args:
      kernel: ``[h, w]``, non-negative with some mass.
      subpixel: with False the shift is rounded to whole pixels, which keeps the kernel exactly as sharp as it is (linear
        interpolation widens it by up to a pixel).
      tolerance: share of the mass that may be lost per axis.

    Returns:
      ``[2]``: rows and columns, to be given to :func:`shift_kernel`. The image moves by its negative.
    """
    wanted = jnp.array([kernel.shape[0] // 2, kernel.shape[1] // 2]) - kernel_centre(kernel)
    if not subpixel:
        wanted = jnp.round(wanted)
    room = [_room(kernel.sum(1), tolerance), _room(kernel.sum(0), tolerance)]
    before, after = jnp.array([pair[0] for pair in room]), jnp.array([pair[1] for pair in room])
    return jnp.clip(wanted, -before, after)


def centre_kernel(kernel: jax.Array, *, subpixel: bool = True, tolerance: float = MASS_TOLERANCE) -> jax.Array:
    """Moves a kernel by its :func:`centring_shift`, within the same array and keeping its sum.

    Args:
      kernel: ``[h, w]``, non-negative with some mass.
      subpixel: see :func:`centring_shift`.
      tolerance: see :func:`centring_shift`.

    Returns:
      ``[h, w]``.
    """
    moved = shift_kernel(kernel, centring_shift(kernel, subpixel=subpixel, tolerance=tolerance))
    return moved * (kernel.sum() / moved.sum())


def resize_kernel(kernel: jax.Array, shape: tuple[int, int], *, scale: float | None = None) -> jax.Array:
    """Resamples a kernel for another scale of an image pyramid, about its centre.

    Linear interpolation where it grows, and a triangle as wide as the coarser pixels (so that nothing is skipped) where it
    shrinks.

    Args:
      kernel: ``[h, w]``, non-negative; odd sides keep the centre pixel at the centre.
      shape: shape of the result. What does not fit is cut off.
      scale: by how much the kernel grows: the ratio of the image sides of the two scales. By default the ratio of the
        kernel's own sides, per axis, which differs a little from it when odd sides are rounded.

    Returns:
      ``shape``, non-negative and summing to one.
    """
    chex.assert_rank(kernel, 2)
    rows, columns = (
        sampling_matrix(new, old, scale=scale if scale is not None else new / old)
        for new, old in zip(shape, kernel.shape, strict=True)
    )
    return normalise_kernel(rows @ kernel @ columns.T)


def pad_kernel(kernel: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Puts a kernel into a larger support by zeros on all sides; its centre pixel stays the centre.

    Args:
      kernel: ``[h, w]``.
      shape: at least ``[h, w]``.

    Returns:
      ``shape``.
    """
    chex.assert_rank(kernel, 2)
    before = [new // 2 - old // 2 for new, old in zip(shape, kernel.shape, strict=True)]
    widths = [(b, new - old - b) for b, new, old in zip(before, shape, kernel.shape, strict=True)]
    chex.assert_scalar_non_negative(min(min(pair) for pair in widths))
    return jnp.pad(kernel, widths)


def crop_kernel(kernel: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Cuts a kernel to a smaller support about its centre and gives it its old sum back.

    Args:
      kernel: ``[h, w]``, non-negative.
      shape: at most ``[h, w]``; some mass must lie in it.

    Returns:
      ``shape``.
    """
    chex.assert_rank(kernel, 2)
    start = [old // 2 - new // 2 for new, old in zip(shape, kernel.shape, strict=True)]
    chex.assert_scalar_non_negative(min(start))
    cut = kernel[start[0] : start[0] + shape[0], start[1] : start[1] + shape[1]]
    return cut * (kernel.sum() / cut.sum())


def sampling_matrix(new: int, old: int, *, scale: float = 1.0, shift: jax.Array | float = 0.0) -> jax.Array:
    """``[new, old]``: samples at pixels scaled about the centre and then moved, by a triangle that never skips a pixel."""
    position = (jnp.arange(new) - new // 2 - shift) / scale + old // 2
    distance = jnp.abs(position[:, None] - jnp.arange(old)[None, :])
    return jnp.maximum(0.0, 1.0 - distance * min(1.0, scale))


def _room(marginal: jax.Array, tolerance: float) -> tuple[jax.Array, jax.Array]:
    """Whole pixels a kernel of this marginal may move towards the first and the last pixel without losing mass."""
    allowed = tolerance * marginal.sum()
    return jnp.sum(jnp.cumsum(marginal) <= allowed), jnp.sum(jnp.cumsum(marginal[::-1]) <= allowed)
