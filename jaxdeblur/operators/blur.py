"""Blurring by FFT on the "valid" support, and its adjoint.

The forward model is ``y = k * x + n`` with true convolution: the observed image ``y [H, W]`` is the part of ``k * x`` that
needs no pixel outside ``x [H+h-1, W+w-1]``, so no boundary condition is assumed.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import scipy.fft

Operator = Callable[[jax.Array], jax.Array]


def fast_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """The smallest FFT-friendly (5-smooth, not only powers of two) shape that holds ``shape``."""
    height, width = shape
    return scipy.fft.next_fast_len(height, real=True), scipy.fft.next_fast_len(width, real=True)


def latent_shape(blurry_shape: tuple[int, int], kernel_shape: tuple[int, int]) -> tuple[int, int]:
    """The support ``[H+h-1, W+w-1]`` of the sharp image behind a blurry one of ``[H, W]`` and a kernel of ``[h, w]``."""
    return blurry_shape[0] + kernel_shape[0] - 1, blurry_shape[1] + kernel_shape[1] - 1


def kernel_spectrum(kernel: jax.Array, shape: tuple[int, int], *, pairs: bool = False) -> jax.Array:
    """Transform of ``kernel [..., h, w]``, its first pixel at the origin, zero-padded to ``shape``; all of it for pairs."""
    return jnp.fft.fft2(kernel, shape) if pairs else jnp.fft.rfft2(kernel, shape)


def centred_kernel_spectrum(kernel: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Transform of ``kernel [h, w]`` with its centre pixel at the origin: for circular convolution on a grid ``shape``."""
    h, w = kernel.shape
    placed = jnp.zeros(shape, kernel.dtype).at[:h, :w].set(kernel)
    return jnp.fft.rfft2(jnp.roll(placed, (-(h // 2), -(w // 2)), (0, 1)))


def valid_blur(kernel: jax.Array, image_shape: tuple[int, int], *, pairs: bool = False) -> tuple[Operator, Operator]:
    """The blur ``A`` by one kernel and its adjoint ``Aᵀ``, the kernel's transform taken once for both.

    Args:
      kernel: ``[..., h, w]``; leading axes broadcast against the images'.
      image_shape: ``(H+h-1, W+w-1)``.
      pairs: the images are pairs ``[2, H+h-1, W+w-1]`` and the kernel is ``[h, w]``. The two are the parts of one complex image
        then, which takes two thirds of the time and differs by rounding.

    Returns:
      ``A``, from ``[..., H+h-1, W+w-1]`` to ``[..., H, W]``, and ``Aᵀ`` back, with ``⟨A x, y⟩ = ⟨x, Aᵀ y⟩``.
    """
    (h, w), (rows, columns) = kernel.shape[-2:], image_shape
    chex.assert_scalar_positive(rows - h + 1)
    chex.assert_scalar_positive(columns - w + 1)
    # Wrap-around of a circular convolution of this size stays inside the part that is cut off.
    shape = fast_shape((rows, columns))
    spectrum = kernel_spectrum(kernel, shape, pairs=pairs)

    def filtered(image: jax.Array, spectrum: jax.Array) -> jax.Array:
        return _image(_spectrum(image, shape, pairs) * spectrum, shape, pairs)

    def forward(image: jax.Array) -> jax.Array:
        chex.assert_axis_dimension(image, -2, rows)
        chex.assert_axis_dimension(image, -1, columns)
        return filtered(image, spectrum)[..., h - 1 : rows, w - 1 : columns]

    def adjoint(blurry: jax.Array) -> jax.Array:
        lead = [(0, 0)] * (blurry.ndim - 2)
        padded = jnp.pad(blurry, [*lead, (h - 1, shape[0] - rows), (w - 1, shape[1] - columns)])
        return filtered(padded, jnp.conj(spectrum))[..., :rows, :columns]

    return forward, adjoint


def valid_normal(kernel: jax.Array, image_shape: tuple[int, int], counted: jax.Array | None = None) -> Operator:
    """``Aᵀ C A`` of pairs of images, as of :func:`valid_blur` with C between.

    Between the two nothing leaves the transforms' grid, which saves a sixth of the time.

    Args:
      kernel: ``[h, w]``.
      image_shape: ``(H+h-1, W+w-1)``.
      counted: ``[H, W]``, the diagonal of C; None for ones.

    Returns:
      The operator, from ``[2, H+h-1, W+w-1]`` to ``[2, H+h-1, W+w-1]``.
    """
    (h, w), (rows, columns) = kernel.shape, image_shape
    shape = fast_shape(image_shape)
    spectrum = kernel_spectrum(kernel, shape, pairs=True)
    if counted is None:
        counted = jnp.ones((rows - h + 1, columns - w + 1), kernel.dtype)
    seen = jnp.pad(counted, ((h - 1, shape[0] - rows), (w - 1, shape[1] - columns)))

    def normal(image: jax.Array) -> jax.Array:
        chex.assert_shape(image, (2, rows, columns))
        blurred = jnp.fft.ifft2(_spectrum(image, shape, pairs=True) * spectrum)
        blurred = jax.lax.complex(seen * blurred.real, seen * blurred.imag)
        return _image(jnp.fft.fft2(blurred) * jnp.conj(spectrum), shape, pairs=True)[:, :rows, :columns]

    return normal


def blur_full(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """All of ``k * x``, the image being zero beyond its borders.

    Args:
      image: ``[..., H, W]``.
      kernel: ``[..., h, w]``; leading axes broadcast against the image's.

    Returns:
      ``[..., H+h-1, W+w-1]``.
    """
    h, w = kernel.shape[-2:]
    return blur_valid(jnp.pad(image, [(0, 0)] * (image.ndim - 2) + [(h - 1, h - 1), (w - 1, w - 1)]), kernel)


def blur_valid(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Valid part of the true convolution ``k * x``.

    Args:
      image: ``[..., H+h-1, W+w-1]``.
      kernel: ``[..., h, w]``; leading axes broadcast against the image's.

    Returns:
      ``[..., H, W]``.
    """
    forward, _ = valid_blur(kernel, (image.shape[-2], image.shape[-1]))
    return forward(image)


def blur_valid_adjoint(blurry: jax.Array, kernel: jax.Array) -> jax.Array:
    """Adjoint of :func:`blur_valid` in the image: ``⟨A x, y⟩ = ⟨x, Aᵀ y⟩``.

    Args:
      blurry: ``[..., H, W]``.
      kernel: ``[..., h, w]``.

    Returns:
      ``[..., H+h-1, W+w-1]``.
    """
    blurry_shape, kernel_shape = (blurry.shape[-2], blurry.shape[-1]), (kernel.shape[-2], kernel.shape[-1])
    _, adjoint = valid_blur(kernel, latent_shape(blurry_shape, kernel_shape))
    return adjoint(blurry)


def valid_blur_of(image: jax.Array, kernel_shape: tuple[int, int], *, pairs: bool = False) -> tuple[Operator, Operator]:
    """The blur as a linear operator ``X`` of the kernel, ``X k = A_k x``, and its adjoint ``Xᵀ``.

    Args:
      image: ``[..., H+h-1, W+w-1]``; several images (derivatives of one, say) are one tall operator.
      kernel_shape: ``(h, w)``.
      pairs: as for :func:`valid_blur`: the image is a pair.

    Returns:
      ``X``, from ``[h, w]`` to ``[..., H, W]``, and ``Xᵀ`` from ``[..., H, W]`` to ``[h, w]``, with ``⟨X k, y⟩ = ⟨k, Xᵀ y⟩``.
    """
    (h, w), (rows, columns) = kernel_shape, (image.shape[-2], image.shape[-1])
    shape = fast_shape((rows, columns))
    spectrum = _spectrum(image, shape, pairs)

    def forward(kernel: jax.Array) -> jax.Array:
        chex.assert_shape(kernel, kernel_shape)
        return _image(spectrum * kernel_spectrum(kernel, shape, pairs=pairs), shape, pairs)[..., h - 1 : rows, w - 1 : columns]

    def adjoint(blurry: jax.Array) -> jax.Array:
        product = spectrum * jnp.conj(_spectrum(blurry, shape, pairs))
        return _sum_of_images(product, shape, pairs)[:h, :w][::-1, ::-1]

    return forward, adjoint


def correlation_lags(images: jax.Array, kernel_shape: tuple[int, int], *, pairs: bool = False) -> jax.Array:
    """``Σ_p x(p) x(p + l)``, summed over images, at the lags that meet in ``Xᵀ X`` for kernels of that shape.

    Args:
      images: ``[n, H, W]``, zero beyond their borders.
      kernel_shape: ``(h, w)``.
      pairs: as for :func:`valid_blur`: there are two images.

    Returns:
      ``[2h-1, 2w-1]``, lag zero in the middle.
    """
    (h, w), (rows, columns) = kernel_shape, (images.shape[-2], images.shape[-1])
    shape = fast_shape((rows + h - 1, columns + w - 1))
    whole = _sum_of_images(jnp.abs(_spectrum(images, shape, pairs)) ** 2, shape, pairs)
    return jnp.roll(whole, (h - 1, w - 1), (0, 1))[: 2 * h - 1, : 2 * w - 1]


def _spectrum(images: jax.Array, shape: tuple[int, int], pairs: bool) -> jax.Array:
    """Transforms of ``[..., H, W]`` or, of a pair ``[2, H, W]``, of the complex image whose parts they are."""
    if not pairs:
        return jnp.fft.rfft2(images, shape)
    chex.assert_axis_dimension(images, 0, 2)
    return jnp.fft.fft2(jax.lax.complex(images[0], images[1]), shape)


def _image(spectrum: jax.Array, shape: tuple[int, int], pairs: bool) -> jax.Array:
    """The inverse of :func:`_spectrum`."""
    if not pairs:
        return jnp.fft.irfft2(spectrum, shape)
    whole = jnp.fft.ifft2(spectrum)
    # Not jnp.stack, which under vmap moves the mapped axis; jax's conjugate gradients want it first, as in their start.
    return jnp.concatenate([whole.real[None], whole.imag[None]])


def _sum_of_images(spectrum: jax.Array, shape: tuple[int, int], pairs: bool) -> jax.Array:
    """``[H, W]``: the sum of the correlations whose transforms these are, or whose sum is the real part of one."""
    if not pairs:
        return jnp.fft.irfft2(spectrum.reshape(-1, *spectrum.shape[-2:]).sum(0), shape)
    return jnp.fft.ifft2(spectrum).real


def stationary_blur(lags: jax.Array) -> Operator:
    """``(N k)(u) = Σ_v lags(u − v) k(v)``: what ``Xᵀ X`` does to a kernel, on the kernel's own small grid.

    Args:
      lags: ``[2h-1, 2w-1]``, lag zero in the middle.

    Returns:
      ``N``, from ``[h, w]`` to ``[h, w]``.
    """
    h, w = (lags.shape[0] + 1) // 2, (lags.shape[1] + 1) // 2
    shape = fast_shape((lags.shape[0], lags.shape[1]))
    spectrum = centred_kernel_spectrum(lags, shape)

    def apply(kernel: jax.Array) -> jax.Array:
        chex.assert_shape(kernel, (h, w))
        return jnp.fft.irfft2(spectrum * kernel_spectrum(kernel, shape), shape)[:h, :w]

    return apply


def crop_to_blurry(image: jax.Array, kernel_shape: tuple[int, int]) -> jax.Array:
    """Cuts ``image [..., H+h-1, W+w-1]`` to the ``[..., H, W]`` that the blurry image shows."""
    h, w = kernel_shape
    rows, columns = image.shape[-2] - h + 1, image.shape[-1] - w + 1
    return image[..., h // 2 : h // 2 + rows, w // 2 : w // 2 + columns]


def pad_to_latent(blurry: jax.Array, kernel_shape: tuple[int, int]) -> jax.Array:
    """Extends ``blurry [..., H, W]`` to ``[..., H+h-1, W+w-1]`` by repeating its edge: a start for solvers."""
    h, w = kernel_shape
    lead = [(0, 0)] * (blurry.ndim - 2)
    return jnp.pad(blurry, [*lead, (h // 2, h - 1 - h // 2), (w // 2, w - 1 - w // 2)], mode="edge")
