"""Finite differences of images, and their adjoints.

Forward differences over the pixels that have the neighbours they need, so that nothing is assumed beyond the image: each
derivative is smaller than the image by its order along its axis. ``x`` runs along columns, ``y`` along rows. Every operator
``D`` has its adjoint beside it: ``⟨D u, v⟩ = ⟨u, Dᵀ v⟩``. All are jax functions, differentiable and cheap to inline in a jitted
program; leading axes are batch axes.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

Operator = Callable[[jax.Array], jax.Array]


def dx(image: jax.Array) -> jax.Array:
    """``u[i, j+1] − u[i, j]``: ``[..., H, W]`` to ``[..., H, W-1]``."""
    chex.assert_axis_dimension_gteq(image, -1, 2)
    return image[..., :, 1:] - image[..., :, :-1]


def dy(image: jax.Array) -> jax.Array:
    """``u[i+1, j] − u[i, j]``: ``[..., H, W]`` to ``[..., H-1, W]``."""
    chex.assert_axis_dimension_gteq(image, -2, 2)
    return image[..., 1:, :] - image[..., :-1, :]


def dx_adjoint(derivative: jax.Array) -> jax.Array:
    """Adjoint of :func:`dx`: ``[..., H, W-1]`` to ``[..., H, W]``."""
    return -dx(_pad(derivative, columns=1))


def dy_adjoint(derivative: jax.Array) -> jax.Array:
    """Adjoint of :func:`dy`: ``[..., H-1, W]`` to ``[..., H, W]``."""
    return -dy(_pad(derivative, rows=1))


def dxx(image: jax.Array) -> jax.Array:
    """``u[i, j+2] − 2 u[i, j+1] + u[i, j]``: ``[..., H, W]`` to ``[..., H, W-2]``."""
    return dx(dx(image))


def dyy(image: jax.Array) -> jax.Array:
    """``u[i+2, j] − 2 u[i+1, j] + u[i, j]``: ``[..., H, W]`` to ``[..., H-2, W]``."""
    return dy(dy(image))


def dxy(image: jax.Array) -> jax.Array:
    """``u[i+1, j+1] − u[i+1, j] − u[i, j+1] + u[i, j]``: ``[..., H, W]`` to ``[..., H-1, W-1]``."""
    return dy(dx(image))


def dxx_adjoint(derivative: jax.Array) -> jax.Array:
    """Adjoint of :func:`dxx`: ``[..., H, W-2]`` to ``[..., H, W]``."""
    return dx_adjoint(dx_adjoint(derivative))


def dyy_adjoint(derivative: jax.Array) -> jax.Array:
    """Adjoint of :func:`dyy`: ``[..., H-2, W]`` to ``[..., H, W]``."""
    return dy_adjoint(dy_adjoint(derivative))


def dxy_adjoint(derivative: jax.Array) -> jax.Array:
    """Adjoint of :func:`dxy`: ``[..., H-1, W-1]`` to ``[..., H, W]``."""
    return dx_adjoint(dy_adjoint(derivative))


# Pairs of an operator and its adjoint, for priors that sum over derivatives.
FIRST_DERIVATIVES: tuple[tuple[Operator, Operator], ...] = ((dx, dx_adjoint), (dy, dy_adjoint))
SECOND_DERIVATIVES: tuple[tuple[Operator, Operator], ...] = ((dxx, dxx_adjoint), (dyy, dyy_adjoint), (dxy, dxy_adjoint))


def gradient(image: jax.Array) -> jax.Array:
    """Both first derivatives at the pixels that have both: ``[H, W]`` to ``[2, H-1, W-1]``."""
    return jnp.stack([dx(image)[:-1], dy(image)[:, :-1]])


def periodic_energies(shape: tuple[int, int]) -> tuple[jax.Array, ...]:
    """``|F(D)|²`` of each of :data:`FIRST_DERIVATIVES` and then :data:`SECOND_DERIVATIVES` on a periodic grid ``shape``.

    Each broadcasts to the frequencies of ``rfft2``, ``[shape[0], shape[1] // 2 + 1]``.
    """
    y = (2.0 - 2.0 * jnp.cos(2.0 * jnp.pi * jnp.fft.fftfreq(shape[0])))[:, None]
    x = (2.0 - 2.0 * jnp.cos(2.0 * jnp.pi * jnp.fft.rfftfreq(shape[1])))[None, :]
    return x, y, x**2, y**2, x * y


def periodic_energy(shape: tuple[int, int]) -> jax.Array:
    """``|F(∂ₓ)|² + |F(∂ᵧ)|²`` of the forward differences on a periodic grid ``shape``, at the frequencies of ``rfft2``."""
    x, y, *_ = periodic_energies(shape)
    return y + x


def _pad(array: jax.Array, *, rows: int = 0, columns: int = 0) -> jax.Array:
    return jnp.pad(array, [(0, 0)] * (array.ndim - 2) + [(rows, rows), (columns, columns)])
