"""Non-blind deconvolution of images with saturated highlights: night shots, light sources, reflections.

A clipped pixel gives only a lower bound of the light. Taken as a measurement it contradicts the blur model, and a linear
deconvolution rings around every such highlight. Here the sensor's response is part of the model, the sharp image may be
brighter than white, and pixels near a clipped one that still do not fit count as outliers.

After Whyte, Sivic, Zisserman, "Deblurring shaken and partially saturated images" (IJCV 2014),
https://doi.org/10.1007/s11263-014-0727-3 (the response), and Cho, Wang, Lee, "Handling outliers in non-blind image
deconvolution" (ICCV 2011), https://doi.org/10.1109/ICCV.2011.6126280 (the outliers), with the prior and the solver of
:mod:`jaxdeblur.classical.sparse` in place of theirs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg

from jaxdeblur.classical import sparse
from jaxdeblur.classical.compiled import reproducible_jit
from jaxdeblur.classical.tiles import tiles_of
from jaxdeblur.errors import InputError
from jaxdeblur.operators import blur, filter_flow
from jaxdeblur.operators.filter_flow import kernels_of_part

# Sharpness of the response's knee. Whyte's 50 bends it from 0.9 on; measured, 200 restores 0.3 dB better.
_SHARPNESS = 200.0
_INLIER_SHARE = 0.9
_NEGATIVE_WEIGHT = 0.1
# Pixels this bright may be clipped ones; below 1, for what noise and compression take off them.
CLIPPED_FROM = 0.95
NUM_REWEIGHTINGS, NUM_CG_STEPS = 16, 40
# How far from the prediction a pixel near a clipped one may lie, as a deviation in [0, 1] units.
_OUTLIER_STD = 0.06
# A pixel lends another one light if it gives it more than this share of its own: more than an FFT's rounding, less than what
# would show of a highlight.
_SMALLEST_SHARE = 1e-3
# White paper that a linear method restores leaves less than this unexplained around it, saturated highlights leave more.
# Measured.
LARGEST_MISFIT_OF_WHITE = 0.012
# Beyond this the exponential of an outlier's residual is infinite for every purpose but float32's.
_LARGEST_EXPONENT = 60.0


@functools.partial(reproducible_jit, static_argnames=("exponent", "num_reweightings", "num_cg_steps"))
def saturated(
    blurry: jax.Array,
    kernel: jax.Array,
    *,
    weight: jax.Array | float = 1e-4,
    exponent: float = 0.8,
    clipped_from: jax.Array | float = CLIPPED_FROM,
    outlier_std: jax.Array | float = _OUTLIER_STD,
    num_reweightings: int = NUM_REWEIGHTINGS,
    num_cg_steps: int = NUM_CG_STEPS,
) -> jax.Array:
    """Restores the sharp image behind a blurry, partly clipped one whose kernel is known.

    Seeks the radiance x, from 0 to beyond 1, behind ``y = R(k * x) + n``, with the response

        ``R(v) = v − log(1 + exp(a(v − 1))) / a``,  ``R'(v) = 1 / (1 + exp(a(v − 1)))``,

    under :func:`jaxdeblur.classical.sparse.sparse`'s prior, by iteratively reweighted least squares: each round minimises
    ``Σ_p w_p ((k * x − y)(p))² + weight · Σ_d c_d Σ_p v_d(p) (D_d x)(p)² + ν Σ_{x(p) < 0} x(p)²`` by conjugate gradients from
    the last one's answer, with the weights of the last prediction ``u = k * x``:

    - clipped pixels, ``w = R'(u)²`` (Gauss-Newton): none once ``u`` passes white, a full one while it falls short;
    - pixels that share light with a clipped one, the probability of being no outlier,
      ``w ∝ p N(u − y; σ²) / (p N(u − y; σ²) + 1 − p)``, and one for ``u = y``; what they are blurred from may not be negative;
    - all others, ``w = 1``.

    Clipped pixels are left out of the first round. An image without any gets just what ``sparse`` makes of it. Whether a pixel
    is clipped is asked channel by channel, so colour images should come as they were taken and not as luma.

    Args:
      blurry: ``[H, W]`` or ``[H, W, C]``, in [0, 1], clipped at 1.
      kernel: ``[h, w]``, odd sides, non-negative, summing to one; or ``[R, C, h, w]``, as there.
      weight: of the prior, see :func:`jaxdeblur.classical.sparse.weight_for_noise`.
      exponent: ``α`` of the prior, in (0, 2].
      clipped_from: pixels this bright may be clipped ones.
      outlier_std: ``σ``, how far from the prediction a pixel near a clipped one may lie, in [0, 1] units.
      num_reweightings: rounds after the first, where something is clipped.
      num_cg_steps: conjugate-gradient steps of each round.

    Returns:
      The radiance ``[H+h-1, W+w-1]`` or ``[H+h-1, W+w-1, C]``, saturated highlights well above 1; not clipped.

    Raises:
      InputError: a side of the kernel is even, or an option is out of its range.
    """
    chex.assert_rank(blurry, {2, 3})
    chex.assert_rank(kernel, {2, 4})
    if any(side % 2 == 0 for side in kernel.shape[-2:]):
        raise InputError(f"kernel has shape {kernel.shape}; give [h, w] with odd sides")
    if not 0.0 < exponent <= 2.0:
        raise InputError(f"exponent must lie in (0, 2], got {exponent}")
    if num_reweightings < 1 or num_cg_steps < 1:
        raise InputError(f"num_reweightings and num_cg_steps must be 1 or more, got {num_reweightings} and {num_cg_steps}")
    channels = blurry[None] if blurry.ndim == 2 else jnp.moveaxis(blurry, -1, 0)
    start = blur.pad_to_latent(channels, (kernel.shape[-2], kernel.shape[-1]))
    seen = _Clipping.of(channels, kernel, (start.shape[-2], start.shape[-1]), clipped_from, outlier_std)

    def solve(image: jax.Array, prior: list[jax.Array], data: jax.Array, negative: jax.Array) -> jax.Array:
        def normal(candidate: jax.Array) -> jax.Array:
            fitted = seen.adjoint(data * seen.forward(candidate))
            return fitted + weight * sparse.prior_gradient(candidate, prior) + negative * candidate

        return cg(normal, seen.adjoint(data * channels), x0=image, tol=1e-5, maxiter=num_cg_steps)[0]

    def improve(_: int, image: jax.Array) -> jax.Array:
        negative = jnp.where(seen.lighting & (image < 0.0), _NEGATIVE_WEIGHT, 0.0)
        return solve(image, sparse.prior_weights(image, exponent), seen.weights(seen.forward(image)), negative)

    first = solve(start, sparse.flat_weights(start), 1.0 - seen.clipped.astype(jnp.float32), jnp.zeros_like(start))
    rounds = jnp.where(seen.clipped.any(), num_reweightings, min(num_reweightings, sparse.NUM_REWEIGHTINGS))
    restored = jax.lax.fori_loop(0, rounds, improve, first)
    return restored[0] if blurry.ndim == 2 else jnp.moveaxis(restored, 0, -1)


def unclipped(blurry: jax.Array, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """What a sensor that never clips would have seen: ``w y + (1 − w) k * x``, w being the data's weights in :func:`saturated`.

    Args:
      blurry: y, ``[C, H, W]`` in [0, 1], clipped at 1.
      image: x, the radiance ``[C, H+h-1, W+w-1]``.
      kernel: ``[h, w]`` or ``[R, C, h, w]``.

    Returns:
      The shape of ``blurry``; y itself where nothing was clipped.
    """
    seen = _Clipping.of(blurry, kernel, (image.shape[-2], image.shape[-1]))
    predicted = seen.forward(image)
    weights = seen.weights(predicted)
    return weights * blurry + (1.0 - weights) * predicted


@dataclasses.dataclass(frozen=True)
class _Clipping:
    """Which pixels of a blurry image are clipped, and which share light with those.

    Attributes:
      observed: ``[C, H, W]``.
      forward: the blur.
      adjoint: its adjoint.
      clipped: ``[C, H, W]``.
      lighting: ``[C, H+h-1, W+w-1]``: what gives a clipped pixel light.
      lit: ``[C, H, W]``: what gets light from there.
      outlier_std: σ.
    """

    observed: jax.Array
    forward: blur.Operator
    adjoint: blur.Operator
    clipped: jax.Array
    lighting: jax.Array
    lit: jax.Array
    outlier_std: jax.Array | float

    @classmethod
    def of(
        cls,
        observed: jax.Array,
        kernel: jax.Array,
        support: tuple[int, int],
        clipped_from: jax.Array | float = CLIPPED_FROM,
        outlier_std: jax.Array | float = _OUTLIER_STD,
    ) -> _Clipping:
        forward, adjoint = filter_flow.blur_operator(kernel, support)
        clipped = observed >= clipped_from
        lighting = adjoint(clipped.astype(jnp.float32)) > _SMALLEST_SHARE
        lit = forward(lighting.astype(jnp.float32)) > _SMALLEST_SHARE
        return cls(observed, forward, adjoint, clipped, lighting, lit, outlier_std)

    def weights(self, predicted: jax.Array) -> jax.Array:
        """w for a prediction u, ``[C, H, W]`` in [0, 1]."""
        inlier = inlier_probability(predicted - self.observed, self.outlier_std)
        return jnp.where(self.clipped, response_slope(predicted) ** 2, jnp.where(self.lit, inlier, 1.0))


def misfit_by_clipping(
    blurry: np.ndarray, restored: np.ndarray, kernel: np.ndarray, *, clipped_from: float = 0.99, tile_side: int = 1280
) -> float:
    """How badly a linear method's image, clipped to [0, 1], explains the pixels that share light with clipped ones.

    Where highlights were brighter than white, a linear method needs values beyond [0, 1] to explain the blurry image, and
    without them fails by some hundredths; where white is just white (paper, sky), by little more than the noise.

    Args:
      blurry: ``[H, W]`` or ``[H, W, C]``, in [0, 1].
      restored: the same shape, before it is clipped.
      kernel: ``[h, w]``, odd sides; or ``[R, C, h, w]``, one for each of the parts of the image.
      clipped_from: pixels this bright are clipped.
      tile_side: larger images are looked at in tiles of this side, of which those without a clipped pixel say nothing.

    Returns:
      The root mean square of ``k * clip(restored) − blurry`` over those pixels, those of two tiles counted twice; zero if
      there are none.
    """
    chex.assert_rank(blurry, {2, 3})
    chex.assert_equal_shape([blurry, restored])
    return root_mean_square(
        errors_by_clipping(blurry[tile], restored[tile], kernels_of_part(kernel, blurry.shape, tile), clipped_from=clipped_from)
        for tile in tiles_of(blurry.shape, tile_side, 2 * max(kernel.shape[-2:]))
    )


def errors_by_clipping(
    blurry: np.ndarray, restored: np.ndarray, kernel: np.ndarray, *, clipped_from: float = 0.99
) -> tuple[float, float]:
    """The sum of squares of :func:`misfit_by_clipping`, and of how many pixels it is; the arguments are those, of one tile."""
    if blurry.max() < clipped_from:
        return 0.0, 0.0
    # Those pixels are predicted that see none but the tile's own.
    (h, w), (rows, columns) = kernel.shape[-2:], blurry.shape[:2]
    seen = (slice(h // 2, rows - h // 2), slice(w // 2, columns - w // 2))
    own = kernels_of_part(kernel, blurry.shape, seen)
    errors, count = _errors_by_clipping(jnp.asarray(blurry), jnp.asarray(restored), jnp.asarray(own), clipped_from)
    return float(errors), float(count)


def root_mean_square(sums: Iterable[tuple[float, float]]) -> float:
    """Of sums of squares, each with how many they are; zero if there are none. In whatever order they come."""
    squares, counts = zip(*sums, strict=True)
    return math.sqrt(math.fsum(squares) / max(math.fsum(counts), 1.0))


@reproducible_jit
def _errors_by_clipping(
    blurry: jax.Array, restored: jax.Array, kernel: jax.Array, clipped_from: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """As :func:`errors_by_clipping`; the kernel is that of the pixels that are predicted."""
    observed, candidate = (image[None] if image.ndim == 2 else jnp.moveaxis(image, -1, 0) for image in (blurry, restored))
    h, w = kernel.shape[-2:]
    seen = _Clipping.of(blur.crop_to_blurry(observed, (h, w)), kernel, (observed.shape[-2], observed.shape[-1]), clipped_from)
    errors = jnp.where(seen.lit, seen.forward(jnp.clip(candidate, 0.0, 1.0)) - seen.observed, 0.0)
    return jnp.sum(errors**2), seen.lit.sum()


def is_unexplained(misfit: float, *, noise_std: float, largest: float = LARGEST_MISFIT_OF_WHITE) -> bool:
    """Whether a :func:`misfit_by_clipping` is that of highlights which a linear method does not explain.

    Args:
      misfit: in [0, 1] units.
      noise_std: of the image, in [0, 1] units.
      largest: that of white which is just white, where there is little noise.
    """
    return misfit > max(largest, 2 * noise_std)


def response_slope(radiance: jax.Array) -> jax.Array:
    """``R'(v)`` of :func:`saturated`'s response, of any shape: 1 well below white, ½ there, 0 above."""
    return jax.nn.sigmoid(_SHARPNESS * (1.0 - radiance))


def inlier_probability(residual: jax.Array, std: jax.Array | float) -> jax.Array:
    """Probability that a pixel with this residual follows the model, relative to one with none.

    Inliers are normal with deviation ``std``, outliers uniform over [0, 1], nine pixels in ten inliers.

    Args:
      residual: prediction less observation, any shape.
      std: positive; broadcasts against ``residual``.

    Returns:
      The shape of ``residual``: 1 for 0, falling to 0.
    """
    odds = (1.0 - _INLIER_SHARE) / _INLIER_SHARE * jnp.sqrt(2.0 * jnp.pi) * std
    return (1.0 + odds) / (1.0 + odds * jnp.exp(jnp.minimum(0.5 * (residual / std) ** 2, _LARGEST_EXPONENT)))
