"""Refining a blur kernel by marginalising the image, and judging kernels by how well they explain the blurry image.

Looking for the best *pair* of image and kernel favours no blur at all; averaging over images does not (Levin, Weiss, Durand,
Freeman: "Understanding and evaluating blind deconvolution algorithms", CVPR 2009,
https://doi.org/10.1109/CVPR.2009.5206815). The average is taken as in Wipf and Zhang, "Revisiting Bayesian blind
deconvolution", JMLR 15, 2014, https://jmlr.org/papers/v15/wipf14a.html: gradients x of the sharp image are Gaussian with
unknown variances γ (one per pixel, flat prior on log γ, hence sparse), their posterior is approximated by independent
Gaussians with means x and variances C, and

    F(k) = min_{x,γ} ‖k * x − y‖²/ν + Σ_i [x_i²/γ_i + log(ν + γ_i ‖k‖²_i)]

bounds −2 log p(y | k) but for a constant; y holds the gradients of the blurry image, ν their noise variance, ‖k‖²_i the
energy of the kernel that pixel i is seen through (less than ‖k‖² at the borders). Ours adds two fixed narrow filters.

A Gaussian g, k * g * x: even a sharp photograph's steps are not one pixel wide, and without g the kernel takes that softness
upon itself.

And w, which makes the noise white: w * k * g * x − w * y. White noise of variance σ² in an image has the power
``4σ² sin²(ω/2)`` in its differences. Taken for white there, the highest frequencies, where there is most noise and least else,
are believed twice too much, and the likeliest kernel is too small. With ``|W|² = 1/(|D_x|² + |D_y|² + c)``, D the differences'
transforms, both derivatives together have the likelihood that the image itself has under white noise of variance ν = σ². What
else the model does not explain (a blur that varies a little, rounding) is about white in the differences: c ν is its variance.
"""

from __future__ import annotations

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg

from jaxdeblur.classical.compiled import reproducible_jit
from jaxdeblur.operators import blur, gradients
from jaxdeblur.operators.kernels import crop_kernel, normalise_kernel, pad_kernel

# Wide at first, so that the first images are free to take what structure the kernel leaves them.
_FIRST_VARIANCE = 1e-2
NOISE_DECAY = 0.97
_IMAGE_CG_STEPS = 10
_KERNEL_STEPS = 8
_POWER_STEPS = 2
# Where F is compared or descended: x has to be at its minimum, or F speaks for kernels that conjugate gradients like.
_JUDGE_ITERATIONS, _JUDGE_CG_STEPS = 12, 20
SETTLING_ITERATIONS = 8
_SOFTNESS_RADIUS = 3
_WHITENING_RADIUS = 3
# What the model does not explain in the differences beside noise, and the largest c. More of it makes the refinement robust,
# less of it the comparison of kernels sharp; both were chosen on the images that settings are chosen on.
_REFINING_ERROR, _LARGEST_REFINING_C = 1e-5, 10.0
_JUDGING_ERROR, _LARGEST_JUDGING_C = 3e-6, 1.0
# Where the slope of √k is no longer steeper: a hundredth of a pixel of a kernel of a hundred.
_THINNEST = 1e-4
_SMALLEST_C = 0.3  # for the filter to stay short
# Averaging over larger pixels is a blur of its own.
_REDUCED_SOFTNESS = 0.3


def noise_variance(noise_std: float, *, smallest: float) -> float:
    """ν for an image whose pixels carry noise of ``noise_std``: at least ``smallest``."""
    return max(smallest, noise_std**2)


def whitening_filter(c: jax.Array | float) -> jax.Array:
    """``[7, 7]``: w, under which the noise of an image's differences and cν more of white noise are white together."""
    side = 64
    whole = jnp.fft.irfft2(1.0 / jnp.sqrt(gradients.periodic_energy((side, side)) + c), (side, side))
    window = slice(side // 2 - _WHITENING_RADIUS, side // 2 + _WHITENING_RADIUS + 1)
    return jnp.fft.fftshift(whole)[window, window]


def refining_c(noise_variance: jax.Array | float) -> jax.Array:
    """c of the whitening filter while kernels are refined."""
    return jnp.clip(_REFINING_ERROR / noise_variance, _SMALLEST_C, _LARGEST_REFINING_C)


def judging_c(noise_variance: jax.Array | float) -> jax.Array:
    """c of the whitening filter while kernels are compared."""
    return jnp.clip(_JUDGING_ERROR / noise_variance, _SMALLEST_C, _LARGEST_JUDGING_C)


def observe(blurry: jax.Array, c: jax.Array, image_softness_std: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """The whitened gradients ``[2, H-7, W-7]`` of the blurry image, and ``w * g``, through which they show the sharp one's."""
    white = whitening_filter(c)
    # Not by FFT, whose rounding carries what a clipped pixel holds to all others.
    observed = jax.vmap(lambda gradient: jax.scipy.signal.convolve2d(gradient, white, mode="valid"))(gradients.gradient(blurry))
    return observed, blur.blur_full(softness_kernel(image_softness_std), white)


def thinness_penalty(kernel: jax.Array | np.ndarray) -> jax.Array:
    """``Σ √k``, the negative logarithm of a hyper-Laplacian prior on kernels but for its weight; √n for n equal pixels."""
    return jnp.sum(jnp.sqrt(jnp.asarray(kernel)))


def thinness_slope(kernel: jax.Array, weight: jax.Array | float) -> jax.Array:
    """``[h, w]``: what of ``weight · Σ √k`` enters a kernel step, linear about the last kernel."""
    return 0.5 * weight / jnp.sqrt(kernel + _THINNEST)


def softness_kernel(std: jax.Array | float) -> jax.Array:
    """``[7, 7]``: a Gaussian of ``std`` pixels that sums to one; 0 gives the delta."""
    offsets = jnp.arange(-_SOFTNESS_RADIUS, _SOFTNESS_RADIUS + 1)
    profile = jnp.exp(-(offsets**2) / (2.0 * jnp.maximum(std, 1e-2) ** 2))
    return normalise_kernel(jnp.outer(profile, profile))


def softness_at(scale: float, std: float) -> float:
    """Softness in its own pixels of an image reduced to ``scale`` of its size: what is left of ``std``, and the reduction's."""
    return std if scale == 1.0 else math.hypot(std * scale, _REDUCED_SOFTNESS)


@reproducible_jit
def refine_kernel(
    blurry: jax.Array,
    kernel: jax.Array,
    *,
    support: jax.Array,
    iterations: jax.Array | int,
    noise_variance: jax.Array | float = 1e-6,
    first_noise_variance: jax.Array | float = 3e-6,
    image_softness_std: jax.Array | float = 0.4,
    thinness: jax.Array | float = 0.0,
    measured: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Improves a kernel by alternating the minimisation of F(k) over image gradients, their variances and the kernel.

    The image step solves ``(Kᵀ K/ν + diag(1/γ)) x = Kᵀ y/ν`` by preconditioned conjugate gradients and takes
    ``C_i = 1/(‖k‖²_i/ν + 1/γ_i)``, ``γ_i = x_i² + C_i``. The kernel step solves
    ``min_{k≥0} ‖X k − y‖² + Σ_i C_i ‖k * g‖²`` by accelerated projected gradients; the second part, the image's uncertainty, is
    what keeps the kernel from shrinking to a point. ν falls geometrically from its first to its last value.

    Of X only the pixels count that the blurry image shows through the whole kernel; what the others add to it is taken away
    with the last kernel. Then ``Xᵀ X`` is a correlation on the kernel's own small grid, and the kernel step costs little.

    All numbers are arguments of one compiled program.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      kernel: ``[h, h]``, where to start; non-negative, summing to one.
      support: ``[h, h]``, one where the kernel may have mass and zero elsewhere.
      iterations: alternations.
      noise_variance: last ν, in squared [0, 1] units.
      first_noise_variance: first ν.
      image_softness_std: of g, in pixels, at most 1.2 or so.
      thinness: λ, weight of :func:`thinness_penalty` beside F per pixel.
      measured: ``[H, W]``, one where a pixel was measured and zero where it was clipped; None if all were measured.

    Returns:
      ``[h, h]``, non-negative, summing to one, and F of it per pixel, as far as its minimum over x and γ has been found.
    """
    chex.assert_rank([blurry, kernel], 2)
    chex.assert_equal_shape([kernel, support])
    observed, soft = observe(blurry, refining_c(noise_variance), image_softness_std)
    counted = None if measured is None else counted_gradients(measured)

    def alternate(_: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        sharp, variance, kernel, steepest, noise = state
        sharp, uncertainty = image_step(observed, blur.blur_full(kernel, soft), sharp, variance, noise, counted)
        if counted is None:
            target, lags = kernel_normal_equations(observed, kernel, soft, sharp, uncertainty)
            normal = blur.stationary_blur(lags)
        else:
            target, normal = counted_normal_equations(observed, kernel, soft, sharp, uncertainty, counted)
        target = target - thinness_slope(kernel, thinness * noise * observed.size)
        kernel, steepest = nonnegative_minimum(normal, target, kernel, steepest, support)
        noise = jnp.maximum(NOISE_DECAY * noise, noise_variance)
        return sharp, sharp**2 + uncertainty, normalise_kernel(kernel), steepest, noise

    kernel = normalise_kernel(kernel * support)
    noise = jnp.asarray(first_noise_variance, blurry.dtype)
    # With variances that have not found their values yet, the image explains everything and the kernel would shrink.
    sharp, variance = settle(observed, blur.blur_full(kernel, soft), noise, SETTLING_ITERATIONS, counted)
    state = (sharp, variance, kernel, jnp.ones_like(kernel), noise)
    sharp, variance, kernel, _, noise = jax.lax.fori_loop(0, iterations, alternate, state)
    return kernel, free_energy(observed, blur.blur_full(kernel, soft), sharp, variance, noise, counted)


@reproducible_jit
def negative_log_evidence(
    blurry: jax.Array,
    kernel: jax.Array,
    *,
    noise_variance: jax.Array | float = 1e-6,
    image_softness_std: jax.Array | float = 0.4,
    measured: jax.Array | None = None,
) -> jax.Array:
    """F(k) per pixel: a variational bound (free energy) of −2 log p(y | k), but for a constant. Lower is better.

    Only differences between kernels on the same support of the same image mean something. The outermost pixels, of which too
    little is seen, are left out of the prior's part.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      kernel: ``[h, h]``, non-negative, summing to one.
      noise_variance: ν.
      image_softness_std: see :func:`refine_kernel`.
      measured: likewise.

    Returns:
      A scalar.
    """
    return _evidence(kernel, blurry, noise_variance, image_softness_std, measured)


@reproducible_jit
def evidence_and_slope(
    blurry: jax.Array,
    kernel: jax.Array,
    *,
    noise_variance: jax.Array | float,
    image_softness_std: jax.Array | float,
    measured: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """F(k) per pixel as in :func:`negative_log_evidence`, and its slope, ``[h, h]``.

    At the minimum over x the slope is the partial one, with x and γ as they are. Short of it it leads elsewhere.
    """
    return jax.value_and_grad(_evidence)(kernel, blurry, noise_variance, image_softness_std, measured)


def evidence_call(
    blurry: Any, measured: Any | None, kernel: Any, noise_variance: float, image_softness_std: float
) -> dict[str, Any]:
    """The arguments of :func:`negative_log_evidence` or :func:`evidence_and_slope` by name, arrays or their shapes."""
    return {
        "blurry": blurry,
        "kernel": kernel,
        "noise_variance": noise_variance,
        "image_softness_std": image_softness_std,
        "measured": measured,
    }


def _evidence(
    kernel: jax.Array,
    blurry: jax.Array,
    noise_variance: jax.Array | float,
    image_softness_std: jax.Array | float,
    measured: jax.Array | None,
) -> jax.Array:
    """F(k) per pixel, whose slope in k is the partial one."""
    chex.assert_rank([blurry, kernel], 2)
    observed, soft = observe(blurry, judging_c(noise_variance), image_softness_std)
    counted = None if measured is None else counted_gradients(measured)
    whole = blur.blur_full(kernel, soft)
    fixed = jax.lax.stop_gradient(whole)
    settled = settle(observed, fixed, noise_variance, _JUDGE_ITERATIONS, counted, steps=_JUDGE_CG_STEPS)
    sharp, variance = jax.lax.stop_gradient(settled)
    return free_energy(observed, whole, sharp, variance, noise_variance, counted)


def counted_gradients(measured: jax.Array) -> jax.Array:
    """``[H-7, W-7]``: one where no clipped pixel enters the whitened gradients of :func:`observe`, zero elsewhere.

    Args:
      measured: ``[H, W]``, one where a pixel was measured and zero where it was clipped.
    """
    side = 2 * _WHITENING_RADIUS + 2
    return jax.lax.reduce_window(measured, jnp.inf, jax.lax.min, (side, side), (1, 1), "valid")


def settle(
    observed: jax.Array,
    whole: jax.Array,
    noise: jax.Array | float,
    iterations: jax.Array | int,
    counted: jax.Array | None = None,
    *,
    steps: int = _IMAGE_CG_STEPS,
) -> tuple[jax.Array, jax.Array]:
    """x and γ for a kernel that stays as it is; ``steps`` of conjugate gradients in each iteration."""
    start = jnp.zeros((2, *blur.latent_shape((observed.shape[-2], observed.shape[-1]), (whole.shape[0], whole.shape[1]))))

    def improve(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        sharp, uncertainty = image_step(observed, whole, *state, noise, counted, steps=steps)
        return sharp, sharp**2 + uncertainty

    return jax.lax.fori_loop(0, iterations, improve, (start, jnp.full_like(start, _FIRST_VARIANCE)))


def free_energy(
    observed: jax.Array,
    whole: jax.Array,
    sharp: jax.Array,
    variance: jax.Array,
    noise: jax.Array | float,
    counted: jax.Array | None = None,
) -> jax.Array:
    """F per pixel at given x and γ."""
    forward, _ = blur.valid_blur(whole, (sharp.shape[-2], sharp.shape[-1]), pairs=True)
    misfit = jnp.sum(_counting(forward(sharp) - observed, counted) ** 2) / noise
    prior = sharp**2 / variance + jnp.log(noise + variance * _seen_energy(observed, whole, counted))
    return (misfit + blur.crop_to_blurry(prior, (whole.shape[0], whole.shape[1])).sum()) / observed.size


def _support(observed: jax.Array, kernel: jax.Array, soft: jax.Array) -> tuple[int, int]:
    whole = (kernel.shape[0] + soft.shape[0] - 1, kernel.shape[1] + soft.shape[1] - 1)
    return blur.latent_shape((observed.shape[-2], observed.shape[-1]), whole)


def _counting(values: jax.Array, counted: jax.Array | None) -> jax.Array:
    return values if counted is None else counted * values


def _seen_energy(observed: jax.Array, whole: jax.Array, counted: jax.Array | None = None) -> jax.Array:
    """``‖k‖²_i``: how much of the kernel's energy the blurry image holds of every pixel of the sharp one."""
    if counted is not None:
        return jnp.maximum(blur.blur_valid_adjoint(counted, whole**2), 0.0)

    def seen(side: int, reach: int) -> jax.Array:
        """``[side+reach-1, reach]``: one where a pixel of the sharp image is seen through that row of the kernel."""
        place = jnp.arange(side + reach - 1)[:, None] + jnp.arange(reach) - (reach - 1)
        return ((place >= 0) & (place < side)).astype(whole.dtype)

    rows, columns = (seen(side, reach) for side, reach in zip(observed.shape[-2:], whole.shape, strict=True))
    return rows @ whole**2 @ columns.T


def image_step(
    observed: jax.Array,
    whole: jax.Array,
    sharp: jax.Array,
    variance: jax.Array,
    noise: jax.Array | float,
    counted: jax.Array | None = None,
    *,
    steps: int = _IMAGE_CG_STEPS,
) -> tuple[jax.Array, jax.Array]:
    """Posterior mean and (diagonal) variance of the sharp image's gradients, ``[2, H', W']`` each."""
    shape = (sharp.shape[-2], sharp.shape[-1])
    seen_again = blur.valid_normal(whole, shape, counted)
    uncertainty = 1.0 / (_seen_energy(observed, whole, counted) / noise + 1.0 / variance)

    def normal(candidate: jax.Array) -> jax.Array:
        return seen_again(candidate) / noise + candidate / variance

    _, adjoint = blur.valid_blur(whole, shape, pairs=True)
    target = adjoint(_counting(observed, counted)) / noise
    mean, _ = cg(normal, target, x0=sharp, tol=1e-4, maxiter=steps, M=lambda residual: residual * uncertainty)
    return mean, uncertainty


def kernel_normal_equations(
    observed: jax.Array, kernel: jax.Array, soft: jax.Array, sharp: jax.Array, uncertainty: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """b and the lags of N in the kernel step's ``min_k ½⟨k, N k⟩ − ⟨b, k⟩``, see :func:`refine_kernel`.

    Args:
      observed: ``[2, H, W]``, of :func:`observe`.
      kernel: ``[h, w]``, the last one.
      soft: ``w * g``, of :func:`observe`.
      sharp: ``[2, H', W']``, of :func:`image_step`.
      uncertainty: its variances, likewise.

    Returns:
      b, ``[h, w]``, and the lags of N, ``[2h-1, 2w-1]``, as :func:`jaxdeblur.operators.blur.stationary_blur` takes them.
    """
    size = (kernel.shape[0], kernel.shape[1])
    rows, columns = observed.shape[-2:]
    shown = jnp.zeros((rows + size[0] - 1, columns + size[1] - 1)).at[size[0] - 1 : rows, size[1] - 1 : columns].set(1.0)
    softened, spread, softness = _softened(size, soft, sharp, uncertainty)
    seen = softened * shown
    rest = blur.valid_blur(kernel, (softened.shape[-2], softened.shape[-1]), pairs=True)[0](softened - seen)
    target = blur.valid_blur_of(seen, size, pairs=True)[1](observed - rest)
    return target, blur.correlation_lags(seen, size, pairs=True) + jnp.sum(spread * shown) * softness


def counted_normal_equations(
    observed: jax.Array, kernel: jax.Array, soft: jax.Array, sharp: jax.Array, uncertainty: jax.Array, counted: jax.Array
) -> tuple[jax.Array, blur.Operator]:
    """b and N as in :func:`kernel_normal_equations`, from the counted gradients alone: N then has no lags, and costs FFTs.

    Args:
      observed: ``[2, H, W]``, of :func:`observe`.
      kernel: ``[h, w]``, the last one.
      soft: ``w * g``, of :func:`observe`.
      sharp: ``[2, H', W']``, of :func:`image_step`.
      uncertainty: its variances, likewise.
      counted: ``[H, W]``, of :func:`counted_gradients`.

    Returns:
      b, ``[h, w]``, and N.
    """
    size = (kernel.shape[0], kernel.shape[1])
    softened, spread, softness = _softened(size, soft, sharp, uncertainty)
    forward, adjoint = blur.valid_blur_of(softened, size, pairs=True)
    soften = blur.stationary_blur(softness)
    # How much of each pixel of the sharp image the counted gradients show.
    weight = jnp.sum(spread * blur.blur_valid_adjoint(counted, kernel))

    def normal(candidate: jax.Array) -> jax.Array:
        return adjoint(counted * forward(candidate)) + weight * soften(candidate)

    return adjoint(counted * observed), normal


def _softened(
    size: tuple[int, int], soft: jax.Array, sharp: jax.Array, uncertainty: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a kernel of ``size`` sees of the sharp image: ``w * g * x``, its pixels' variances, and the lags of ``w * g``."""
    radius = soft.shape[0] // 2
    height, width = sharp.shape[-2:]
    soften, _ = blur.valid_blur(soft, (height, width), pairs=True)
    softness = in_the_middle(blur.blur_full(soft, soft), (2 * size[0] - 1, 2 * size[1] - 1))
    return soften(sharp), uncertainty.sum(0)[radius : height - radius, radius : width - radius], softness


def in_the_middle(array: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """``array``, of odd sides, cut or padded by zeros to the odd ``shape``, middle on middle."""
    smaller = (min(array.shape[0], shape[0]), min(array.shape[1], shape[1]))
    return pad_kernel(crop_kernel(array, smaller), shape)


def nonnegative_minimum(
    normal: blur.Operator, target: jax.Array, start: jax.Array, steepest: jax.Array, support: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Steps towards ``argmin_{k≥0} ½⟨k, N k⟩ − ⟨b, k⟩`` by FISTA (Beck, Teboulle, 2009, https://doi.org/10.1137/080716542).

    ``steepest`` is a guess of the eigenvector of N's largest eigenvalue, which bounds the step; it is improved and returned.
    """

    def grow(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        grown = normal(state[0] / jnp.linalg.norm(state[0]))
        return grown, jnp.linalg.norm(grown)

    steepest, curvature = jax.lax.fori_loop(0, _POWER_STEPS, grow, (steepest, jnp.ones(())))
    step = 1.0 / (1.05 * curvature)

    def improve(_: int, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        old, ahead, momentum = state
        new = jnp.maximum(ahead - step * (normal(ahead) - target), 0.0) * support
        next_momentum = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * momentum**2))
        return new, new + (momentum - 1.0) / next_momentum * (new - old), next_momentum

    return jax.lax.fori_loop(0, _KERNEL_STEPS, improve, (start, start, jnp.ones(())))[0], steepest
