"""Non-blind deconvolution with a sparse prior on first and second derivatives."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from jaxdeblur.classical.compiled import reproducible_jit
from jaxdeblur.imaging.colour import from_opponent_planes, opponent_planes
from jaxdeblur.operators import blur, filter_flow, gradients

# Second derivatives weigh less: they are larger for the same edge.
_OPERATORS = tuple((*pair, 1.0) for pair in gradients.FIRST_DERIVATIVES) + tuple(
    (*pair, 0.25) for pair in gradients.SECOND_DERIVATIVES
)
_SMALLEST_DERIVATIVE = 0.01
# After the first, quadratic problem.
NUM_REWEIGHTINGS = 4
# For each of those problems.
NUM_CG_STEPS = 40
# The same where they are preconditioned, for the luma and for each of the two other planes: see :func:`sparse_fast`.
_NUM_LUMA_STEPS, _NUM_CHROMA_STEPS = 10, 5


def weight_for_noise(noise_std: float, *, base: float = 1e-4) -> float:
    """Weight of the prior for a noise standard deviation in [0, 1] units: never below ``base``, then as its square."""
    return max(base, 10.0 * noise_std**2)


def flat_weights(image: jax.Array) -> list[jax.Array]:
    """Weights of a quadratic prior, with which reweighting begins: one for every derivative of ``image [C, H, W]``."""
    return [jnp.ones((1, *operator(image).shape[-2:])) for operator, _, _ in _OPERATORS]


def prior_weights(image: jax.Array, exponent: float) -> list[jax.Array]:
    """``c_d |D_d x|^(α−2)`` at ``image [C, H, W]``: the quadratic prior that touches the sparse one there.

    The channels share the weights, taken from their mean squared derivative.
    """
    weights = []
    for operator, _, factor in _OPERATORS:
        size = jnp.sqrt(jnp.mean(operator(image) ** 2, axis=0, keepdims=True))
        weights.append(factor * jnp.maximum(size, _SMALLEST_DERIVATIVE) ** (exponent - 2.0))
    return weights


def prior_gradient(image: jax.Array, weights: list[jax.Array]) -> jax.Array:
    """``Σ_d D_dᵀ (w_d · D_d x)`` for ``image [C, H, W]``, half the gradient of the weighted quadratic prior."""
    total = jnp.zeros_like(image)
    for (operator, transpose, _), factor in zip(_OPERATORS, weights, strict=True):
        total = total + transpose(factor * operator(image))
    return total


@functools.partial(reproducible_jit, static_argnames=("exponent", "num_reweightings", "num_cg_steps"))
def sparse(
    blurry: jax.Array,
    kernel: jax.Array,
    *,
    weight: jax.Array | float = 1e-4,
    exponent: float = 0.8,
    num_reweightings: int = NUM_REWEIGHTINGS,
    num_cg_steps: int = NUM_CG_STEPS,
) -> jax.Array:
    """Restores the sharp image behind a blurry one whose kernel is known.

    Minimises ``‖k * x − y‖² + weight · Σ_d c_d Σ_p |(D_d x)(p)|^α`` over x on its whole support (the blurry image is the valid
    part of ``k * x``, nothing is assumed beyond it), D running over first (c = 1) and second (c = ¼) derivatives, by
    iteratively reweighted least squares: each quadratic problem is solved by conjugate gradients from the last one's answer.
    The channels of a colour image share the weights, taken from their mean squared derivative, so that their edges stay
    together.

    Levin, Fergus, Durand, Freeman: "Image and depth from a conventional camera with a coded aperture", SIGGRAPH 2007,
    https://doi.org/10.1145/1276377.1276464 (the sparse prior and its solver).

    Args:
      blurry: ``[H, W]`` or ``[H, W, C]``, in [0, 1].
      kernel: ``[h, w]``, odd sides, non-negative, summing to one; or ``[R, C, h, w]``, one for each of the parts of the
        image, see :func:`jaxdeblur.operators.filter_flow.filter_flow`.
      weight: of the prior.
      exponent: ``α`` in (0, 2].
      num_reweightings: quadratic problems after the first.
      num_cg_steps: conjugate-gradient steps for each.

    Returns:
      ``[H+h-1, W+w-1]`` or ``[H+h-1, W+w-1, C]``; not clipped. :func:`jaxdeblur.operators.blur.crop_to_blurry` cuts a single
      channel to the blurry frame.
    """
    chex.assert_rank(blurry, {2, 3})
    chex.assert_rank(kernel, {2, 4})
    problem = _Problem.of(blurry[None] if blurry.ndim == 2 else jnp.moveaxis(blurry, -1, 0), kernel)

    def solve(image: jax.Array, weights: list[jax.Array]) -> jax.Array:
        return cg(problem.normal(weight, weights), problem.target, x0=image, tol=1e-5, maxiter=num_cg_steps)[0]

    restored = _reweighted(solve, problem.start, exponent, num_reweightings)
    return restored[0] if blurry.ndim == 2 else jnp.moveaxis(restored, 0, -1)


@functools.partial(reproducible_jit, static_argnames=("exponent", "num_reweightings"))
def sparse_fast(
    blurry: jax.Array,
    kernel: jax.Array,
    *,
    weight: jax.Array | float = 1e-4,
    exponent: float = 0.8,
    num_reweightings: int = NUM_REWEIGHTINGS,
) -> jax.Array:
    """What :func:`sparse` restores, in about a third of its time: for images on which that takes minutes.

    The problem is the same, and two things differ in how it is solved. The conjugate gradients are preconditioned with

        ``1 / (|K|² + weight · Σ_d mean(w_d) |F(D_d)|²)``,

    the inverse of what the matrix would be if the image went round and the prior's weights were everywhere their mean. And the
    image is taken in the planes of :func:`~jaxdeblur.imaging.colour.opponent_planes`, which changes nothing by itself, the
    prior's shared weights included; but most of what there is to restore is in the first, so that the others get fewer steps.
    Measured by experiments/README.md.

    Args:
      blurry: as of ``sparse``.
      kernel: likewise.
      weight: likewise.
      exponent: likewise.
      num_reweightings: likewise.

    Returns:
      As ``sparse``.
    """
    chex.assert_rank(blurry, {2, 3})
    chex.assert_rank(kernel, {2, 4})
    problem = _Problem.of(blurry[None] if blurry.ndim == 2 else opponent_planes(jnp.moveaxis(blurry, -1, 0)), kernel)
    support = problem.start.shape[-2:]
    shape = blur.fast_shape((support[0], support[1]))
    power, energies = filter_flow.mean_power(kernel, shape), gradients.periodic_energies(shape)

    def solve(image: jax.Array, weights: list[jax.Array]) -> jax.Array:
        normal = problem.normal(weight, weights)
        diagonal = power + weight * sum(one.mean() * energy for one, energy in zip(weights, energies, strict=True))

        def precondition(residual: jax.Array) -> jax.Array:
            return jnp.fft.irfft2(jnp.fft.rfft2(residual, shape) / diagonal, shape)[..., : support[0], : support[1]]

        def planes(part: slice, steps: int) -> jax.Array:
            return cg(normal, problem.target[part], x0=image[part], tol=1e-5, maxiter=steps, M=precondition)[0]

        first = planes(slice(0, 1), _NUM_LUMA_STEPS)
        return first if len(image) == 1 else jnp.concatenate([first, planes(slice(1, None), _NUM_CHROMA_STEPS)])

    restored = _reweighted(solve, problem.start, exponent, num_reweightings)
    return restored[0] if blurry.ndim == 2 else jnp.moveaxis(from_opponent_planes(restored), 0, -1)


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What is the same in all of the quadratic problems.

    Attributes:
      start: ``[C, H+h-1, W+w-1]``, with which the first begins.
      target: of that shape, ``Aᵀ y``.
      forward: ``A``, the blur.
      adjoint: ``Aᵀ``.
    """

    start: jax.Array
    target: jax.Array
    forward: blur.Operator
    adjoint: blur.Operator

    @classmethod
    def of(cls, channels: jax.Array, kernel: jax.Array) -> _Problem:
        start = blur.pad_to_latent(channels, (kernel.shape[-2], kernel.shape[-1]))
        forward, adjoint = filter_flow.blur_operator(kernel, (start.shape[-2], start.shape[-1]))
        return cls(start, adjoint(channels), forward, adjoint)

    def normal(self, weight: jax.Array | float, weights: list[jax.Array]) -> blur.Operator:
        """``AᵀA + weight · Σ_d D_dᵀ w_d D_d``."""
        return lambda image: self.adjoint(self.forward(image)) + weight * prior_gradient(image, weights)


def _reweighted(
    solve: Callable[[jax.Array, list[jax.Array]], jax.Array], start: jax.Array, exponent: float, count: int
) -> jax.Array:
    """The quadratic problem with flat weights, then ``count`` more, each with the weights of the last one's answer."""
    first = solve(start, flat_weights(start))
    return jax.lax.fori_loop(0, count, lambda _, image: solve(image, prior_weights(image, exponent)), first)
