"""Refining a blur kernel by marginalising the image, and judging kernels by how well they explain the blurry image.

Looking for the best *pair* of image and kernel favours no blur at all; averaging over images does not (Levin, Weiss, Durand,
Freeman: "Understanding and evaluating blind deconvolution algorithms", CVPR 2009,
https://doi.org/10.1109/CVPR.2009.5206815). The average is taken as in Wipf and Zhang, "Revisiting Bayesian blind
deconvolution", JMLR 15, 2014, https://jmlr.org/papers/v15/wipf14a.html: gradients x of the sharp image are Gaussian with
unknown variances γ (one per pixel, flat prior on log γ, hence sparse), their posterior is approximated by independent
Gaussians with means x and variances C, and

    F(k) = min_{x,γ} ‖k * x − y‖²/ν + Σ_i [x_i²/γ_i + log(ν + γ_i ‖k‖²_i)]

bounds −2 log p(y | k) but for a constant; y holds the gradients of the blurry image, ν their noise variance, ‖k‖²_i the
energy of the kernel that pixel i is seen through (less than ‖k‖² at the borders). Ours adds a fixed narrow Gaussian g to the
model, k * g * x: even a sharp photograph's steps are not one pixel wide, and without g the kernel takes that softness upon
itself.
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from jaxdeblur.classical.compiled import reproducible_jit
from jaxdeblur.operators import blur, gradients
from jaxdeblur.operators.kernels import normalise_kernel

# Wide at first, so that the first images are free to take what structure the kernel leaves them.
_FIRST_VARIANCE = 1e-2
_NOISE_DECAY = 0.97
_IMAGE_CG_STEPS = 10
_KERNEL_STEPS = 8
_POWER_STEPS = 2
_JUDGE_ITERATIONS = 12
_SOFTNESS_RADIUS = 2


def noise_variance(noise_std: float, *, smallest: float) -> float:
    """ν for an image whose pixels carry noise of ``noise_std``: differences carry twice the variance. At least ``smallest``."""
    return max(smallest, 2.0 * noise_std**2)


def softness_kernel(std: float) -> jax.Array:
    """``[5, 5]``: a Gaussian of ``std`` pixels that sums to one; 0 gives the delta."""
    offsets = jnp.arange(-_SOFTNESS_RADIUS, _SOFTNESS_RADIUS + 1)
    profile = jnp.exp(-(offsets**2) / (2.0 * max(std, 1e-3) ** 2))
    return normalise_kernel(jnp.outer(profile, profile))


@functools.partial(reproducible_jit, static_argnames=("iterations", "image_softness_std"))
def refine_kernel(
    blurry: jax.Array,
    kernel: jax.Array,
    *,
    iterations: int,
    noise_variance: float = 1e-5,
    first_noise_variance: float = 3e-5,
    image_softness_std: float = 0.4,
) -> jax.Array:
    """Improves a kernel by alternating the minimisation of F(k) over image gradients, their variances and the kernel.

    The image step solves ``(Kᵀ K/ν + diag(1/γ)) x = Kᵀ y/ν`` by preconditioned conjugate gradients and takes
    ``C_i = 1/(‖k‖²_i/ν + 1/γ_i)``, ``γ_i = x_i² + C_i``. The kernel step solves
    ``min_{k≥0} ‖X k − y‖² + Σ_i C_i ‖k * g‖²`` by accelerated projected gradients; the second part, the image's uncertainty, is
    what keeps the kernel from shrinking to a point. ν falls geometrically from its first to its last value.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      kernel: ``[h, h]``, where to start; non-negative, summing to one.
      iterations: alternations.
      noise_variance: last ν, in squared [0, 1] units of the gradients.
      first_noise_variance: first ν.
      image_softness_std: of g, in pixels.

    Returns:
      ``[h, h]``, non-negative, summing to one.
    """
    chex.assert_rank([blurry, kernel], 2)
    soft = softness_kernel(image_softness_std)
    softness = _convolve(soft, soft[::-1, ::-1], mode="full")
    observed = gradients.gradient(blurry)
    shape = _support(observed, kernel, soft)
    radius, size = soft.shape[0] // 2, (kernel.shape[0], kernel.shape[1])
    soften, _ = blur.valid_blur(soft, shape)

    def alternate(_: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        sharp, variance, kernel, steepest, noise = state
        sharp, uncertainty = _image_step(observed, _convolve(kernel, soft, mode="full"), sharp, variance, noise)

        forward, adjoint = blur.valid_blur_of(soften(sharp), size)
        inner = uncertainty.sum(0)[radius : shape[0] - radius, radius : shape[1] - radius]
        seen = blur.valid_blur_of(inner, size)[1]
        ridge = jnp.sqrt(jnp.maximum(seen(jnp.ones(observed.shape[1:])), 0.0))

        def normal(candidate: jax.Array) -> jax.Array:
            return adjoint(forward(candidate)) + ridge * _convolve(ridge * candidate, softness, mode="same")

        kernel, steepest = _nonnegative_minimum(normal, adjoint(observed), kernel, steepest)
        noise = jnp.maximum(_NOISE_DECAY * noise, noise_variance)
        return sharp, sharp**2 + uncertainty, normalise_kernel(kernel), steepest, noise

    start = jnp.zeros((2, *shape))
    noise = jnp.asarray(first_noise_variance, blurry.dtype)
    state = (start, jnp.full_like(start, _FIRST_VARIANCE), kernel, jnp.ones_like(kernel), noise)
    return jax.lax.fori_loop(0, iterations, alternate, state)[2]


@functools.partial(reproducible_jit, static_argnames=("image_softness_std",))
def negative_log_evidence(
    blurry: jax.Array, kernel: jax.Array, *, noise_variance: float = 1e-5, image_softness_std: float = 0.4
) -> jax.Array:
    """F(k) per pixel: a variational bound (free energy) of −2 log p(y | k), but for a constant. Lower is better.

    Only differences between kernels on the same support of the same image mean something. The outermost pixels, of which too
    little is seen, are left out of the prior's part.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      kernel: ``[h, h]``, non-negative, summing to one.
      noise_variance: ν.
      image_softness_std: see :func:`refine_kernel`.

    Returns:
      A scalar.
    """
    chex.assert_rank([blurry, kernel], 2)
    soft = softness_kernel(image_softness_std)
    whole = _convolve(kernel, soft, mode="full")
    observed = gradients.gradient(blurry)
    start = jnp.zeros((2, *_support(observed, kernel, soft)))

    def improve(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        sharp, uncertainty = _image_step(observed, whole, *state, noise_variance)
        return sharp, sharp**2 + uncertainty

    state = (start, jnp.full_like(start, _FIRST_VARIANCE))
    sharp, variance = jax.lax.fori_loop(0, _JUDGE_ITERATIONS, improve, state)
    forward, _ = blur.valid_blur(whole, (sharp.shape[-2], sharp.shape[-1]))
    misfit = jnp.sum((forward(sharp) - observed) ** 2) / noise_variance
    prior = sharp**2 / variance + jnp.log(noise_variance + variance * _seen_energy(observed, whole))
    return (misfit + blur.crop_to_blurry(prior, (whole.shape[0], whole.shape[1])).sum()) / observed.size


def _support(observed: jax.Array, kernel: jax.Array, soft: jax.Array) -> tuple[int, int]:
    whole = (kernel.shape[0] + soft.shape[0] - 1, kernel.shape[1] + soft.shape[1] - 1)
    return blur.latent_shape((observed.shape[-2], observed.shape[-1]), whole)


def _seen_energy(observed: jax.Array, whole: jax.Array) -> jax.Array:
    """``‖k‖²_i``: how much of the kernel's energy the blurry image holds of every pixel of the sharp one."""
    # FFT rounding makes it slightly negative where nothing is seen.
    return jnp.maximum(blur.blur_valid_adjoint(jnp.ones(observed.shape[-2:]), whole**2), 0.0)


def _image_step(
    observed: jax.Array, whole: jax.Array, sharp: jax.Array, variance: jax.Array, noise: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Posterior mean and (diagonal) variance of the sharp image's gradients, ``[2, H', W']`` each."""
    forward, adjoint = blur.valid_blur(whole, (sharp.shape[-2], sharp.shape[-1]))
    uncertainty = 1.0 / (_seen_energy(observed, whole) / noise + 1.0 / variance)

    def normal(candidate: jax.Array) -> jax.Array:
        return adjoint(forward(candidate)) / noise + candidate / variance

    target = adjoint(observed) / noise
    mean, _ = cg(normal, target, x0=sharp, tol=1e-4, maxiter=_IMAGE_CG_STEPS, M=lambda residual: residual * uncertainty)
    return mean, uncertainty


def _nonnegative_minimum(
    normal: blur.Operator, target: jax.Array, start: jax.Array, steepest: jax.Array
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
        new = jnp.maximum(ahead - step * (normal(ahead) - target), 0.0)
        next_momentum = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * momentum**2))
        return new, new + (momentum - 1.0) / next_momentum * (new - old), next_momentum

    return jax.lax.fori_loop(0, _KERNEL_STEPS, improve, (start, start, jnp.ones(())))[0], steepest


_convolve = jax.scipy.signal.convolve2d
