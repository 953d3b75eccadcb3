"""Non-blind deconvolution with a hyper-Laplacian prior, every iteration a few FFTs: fast on whole photographs.

After Krishnan and Fergus, "Fast image deconvolution using hyper-Laplacian priors" (NIPS 2009),
https://papers.nips.cc/paper/2009/hash/3dd48ab31d016ffcbf3314df2b3cb9ce-Abstract.html, with the boundary left out of the model
as Almeida and Figueiredo do, "Deconvolving images with unknown boundaries using the alternating direction method of
multipliers" (2013), https://doi.org/10.1109/TIP.2013.2258354.
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp

from jaxdeblur.classical.compiled import reproducible_jit
from jaxdeblur.operators import blur, gradients

# The splitting weight of each iteration. Krishnan and Fergus raise it from 1 to 256 in seven steps of 2√2, one iteration each;
# 256 from the start needs fewer iterations for the same quality: 0.3-1.5 dB better after 20 on Levin's and synthetic images.
DEFAULT_BETAS: tuple[float, ...] = (256.0,) * 16
_NEWTON_STEPS = 4

# The image, its blurred version and the multiplier.
_Carry = tuple[jax.Array, jax.Array, jax.Array]


def weight_for_noise(noise_std: float) -> float:
    """A prior weight that suits an image with this noise.

    Among multiples of σ and of σ², measured with known kernels on Levin's images and on synthetic motion blur with noise of
    0.3 to 3 %, proportional to σ was the closest to the best weight everywhere (within 0.3 dB of it). Below 0.2 % errors of the
    kernel outweigh the noise.

    Args:
      noise_std: standard deviation of the noise, for an image in [0, 1].

    Returns:
      ``weight`` for :func:`hyper_laplacian`.
    """
    return 0.05 * max(noise_std, 0.002)


@functools.partial(reproducible_jit, static_argnames=("exponent", "betas"))
def hyper_laplacian(
    blurry: jax.Array,
    kernel: jax.Array,
    *,
    weight: jax.Array | float = 5e-4,
    exponent: float = 2.0 / 3.0,
    betas: tuple[float, ...] = DEFAULT_BETAS,
    data_penalty: float = 0.3,
) -> jax.Array:
    """Deconvolves an image with a known kernel: ``min_x ½‖M(k*x) − y‖² + weight · Σ (|∂ₓx|^p + |∂ᵧx|^p)``.

    ``M`` keeps the pixels that were observed. Gradients are split off as ``w``, the blurred image as ``u``; per iteration

    - ``w ← argmin ½(w − ∂x)² + |w|^p / β``, pixel by pixel (:func:`shrink`);
    - ``u ← (y + γ(k*x + m)) / (1 + γ)`` where observed, ``k*x + m`` elsewhere;
    - ``m ← m + k*x − u``, the multiplier of the constraint ``u = k*x``;
    - ``x ← argmin γ/2 ‖k*x − u + m‖² + weight·β/2 ‖∂x − w‖²``, in closed form by FFT.

    The image lies on a periodic grid with a margin as wide as the kernel on every side. Nothing is observed there, so the
    solver fills it with whatever explains the visible pixels, and neither wrap-around nor an assumed boundary rings.

    Args:
      blurry: ``[H, W]`` or ``[H, W, C]`` in [0, 1]; channels share the kernel and are deconvolved together.
      kernel: ``[h, w]`` with odd sides, non-negative and summing to one.
      weight: of the prior: larger is smoother. See :func:`weight_for_noise`; the default suits noise of 1 %.
      exponent: ``p`` in (0, 1]; natural images have 0.5 to 0.8.
      betas: splitting weight ``β`` of each iteration; their number is the number of iterations.
      data_penalty: ``γ``; smaller follows the data faster.

    Returns:
      The sharp image on the blurry one's support and of its shape, float32, not clipped.
    """
    chex.assert_rank(blurry, {2, 3})
    chex.assert_rank(kernel, 2)
    if any(side % 2 == 0 for side in kernel.shape):
        raise ValueError(f"kernel sides must be odd, got {kernel.shape}")
    if not 0.0 < exponent <= 1.0:
        raise ValueError(f"exponent must lie in (0, 1], got {exponent}")
    blurry, kernel = jnp.asarray(blurry, jnp.float32), jnp.asarray(kernel, jnp.float32)
    channels = blurry[None] if blurry.ndim == 2 else jnp.moveaxis(blurry, -1, 0)
    (h, w), (rows, columns) = kernel.shape, channels.shape[-2:]
    shape = blur.fast_shape((rows + 2 * h, columns + 2 * w))
    observed = jnp.pad(jnp.ones((rows, columns), bool), [(0, shape[0] - rows), (0, shape[1] - columns)])
    extended = _extend_periodically(channels, shape)

    # The kernel's centre at the origin, so that blurred and sharp pixels share their places.
    spectrum = blur.centred_kernel_spectrum(kernel, shape)
    kernel_energy = jnp.abs(spectrum) ** 2
    gradient_energy = gradients.periodic_energy(shape)

    def iterate(carry: _Carry, beta: jax.Array) -> tuple[_Carry, None]:
        restored, blurred, multiplier = carry
        horizontal, vertical = (shrink(gradient, 1.0 / beta, exponent=exponent) for gradient in _gradients(restored))
        target = blurred + multiplier
        split = jnp.where(observed, (extended + data_penalty * target) / (1.0 + data_penalty), target)
        multiplier = target - split

        numerator = data_penalty * jnp.conj(spectrum) * jnp.fft.rfft2(split - multiplier)
        numerator += weight * beta * jnp.fft.rfft2(_gradients_adjoint(horizontal, vertical))
        solution = numerator / (data_penalty * kernel_energy + weight * beta * gradient_energy)
        return (jnp.fft.irfft2(solution, shape), jnp.fft.irfft2(solution * spectrum, shape), multiplier), None

    start = (extended, extended, jnp.zeros_like(extended))
    (restored, _, _), _ = jax.lax.scan(iterate, start, jnp.asarray(betas, jnp.float32))
    restored = restored[:, :rows, :columns]
    return restored[0] if blurry.ndim == 2 else jnp.moveaxis(restored, 0, -1)


def shrink(value: jax.Array, weight: jax.Array | float, *, exponent: float) -> jax.Array:
    """``argmin_w ½(w − v)² + weight·|w|^p`` for every element.

    Zero up to the threshold ``τ = w₀ + weight·p·w₀^(p−1)`` with ``w₀ = (2·weight·(1−p))^(1/(2−p))``, the larger root of the
    stationarity condition beyond it (Zuo et al., "A generalized iterated shrinkage algorithm for non-convex sparse coding",
    ICCV 2013, https://doi.org/10.1109/ICCV.2013.34). To the right of that root the condition is convex and increasing, so
    Newton's method from ``v`` descends to it; four steps are exact to float32 rounding for p of 0.5 and more, and to 1e-3 of
    the threshold below. Krishnan and Fergus tabulate or solve a quartic instead.

    Args:
      value: any shape.
      weight: positive; broadcasts against ``value``.
      exponent: ``p`` in (0, 1]; 1 is soft thresholding.

    Returns:
      The shape of ``value``.
    """
    size = jnp.abs(value)
    if exponent == 1.0:
        return jnp.sign(value) * jnp.maximum(size - weight, 0.0)
    smallest = (2.0 * weight * (1.0 - exponent)) ** (1.0 / (2.0 - exponent))
    threshold = smallest + weight * exponent * smallest ** (exponent - 1.0)
    goal = jnp.maximum(size, threshold)
    root = goal
    for _ in range(_NEWTON_STEPS):
        pull = weight * exponent * root ** (exponent - 1.0)
        root -= (root - goal + pull) / (1.0 - (1.0 - exponent) * pull / root)
    return jnp.where(size > threshold, jnp.sign(value) * root, 0.0)


def _gradients(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Forward differences on the periodic grid, along columns and along rows."""
    return jnp.roll(image, -1, -1) - image, jnp.roll(image, -1, -2) - image


def _gradients_adjoint(horizontal: jax.Array, vertical: jax.Array) -> jax.Array:
    return jnp.roll(horizontal, 1, -1) - horizontal + jnp.roll(vertical, 1, -2) - vertical


def _extend_periodically(channels: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Extends ``[C, H, W]`` to ``shape`` at the far ends, fading from one edge's mirror image into the other's."""
    for axis, length in zip((-2, -1), shape, strict=True):
        size = channels.shape[axis]
        extra = length - size
        # Indices 0 … size-1, size-1 … 0 and round again: mirrored continuation past the far edge and before the near one.
        mirror = jnp.concatenate([jnp.arange(size), jnp.arange(size)[::-1]])
        index = jnp.arange(extra)
        beyond = jnp.take(channels, mirror[(size + index) % (2 * size)], axis=axis)
        before = jnp.take(channels, mirror[(index - extra) % (2 * size)], axis=axis)
        fade = 0.5 - 0.5 * jnp.cos(jnp.pi * (index + 0.5) / extra)
        fade = fade[:, None] if axis == -2 else fade
        channels = jnp.concatenate([channels, (1.0 - fade) * beyond + fade * before], axis=axis)
    return channels
