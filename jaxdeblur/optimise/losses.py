"""The terms that loss intervals weigh and sum. Each is a mean over pixels (the kernel's energy a sum), of one restart."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdeblur.config import LossTerm
from jaxdeblur.networks.teachers.teacher import Teacher
from jaxdeblur.operators import blur

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2


@flax.struct.dataclass
class Observation:
    """What is known of a scene; or of several (:meth:`stack`), all fields but the teacher then with a leading axis.

    Attributes:
      blurry: ``[H, W]``.
      noise_std: standard deviation of its noise, in [0, 1] units.
      kernel: ``[h, w]`` if known, or ``[R', C', h, w]`` if it varies over the image, else None.
      teacher: a pre-trained network, for the terms that use one.
      teacher_kernel: ``[h, w]`` that it deconvolves with; None for the estimate of the moment.
      surrogate: ``[H, W]``, that network's restoration of the blurry image; None where it follows the kernel's estimate.
    """

    blurry: jax.Array
    noise_std: jax.Array | float = 0.0
    kernel: jax.Array | None = None
    teacher: Teacher | None = None
    teacher_kernel: jax.Array | None = None
    surrogate: jax.Array | None = None

    @classmethod
    def stack(cls, scenes: Sequence[Observation]) -> Observation:
        """Several scenes, alike in shapes and in what is known of them, as one; the teacher is the first one's."""

        def stacked(*fields: jax.Array | float) -> jax.Array:
            return jnp.stack([jnp.asarray(field, jnp.float32) for field in fields])

        together: Observation = jax.tree.map(stacked, *(scene._without_teacher() for scene in scenes))
        return dataclasses.replace(together, teacher=scenes[0].teacher)

    def take(self, indices: np.ndarray) -> Observation:
        """Those of several scenes that ``indices`` name, in that order."""
        taken: Observation = jax.tree.map(lambda field: field[indices], self._without_teacher())
        return dataclasses.replace(taken, teacher=self.teacher)

    @property
    def axes(self) -> Observation:
        """Where several scenes have their leading axis, as :func:`jax.vmap` wants to be told."""
        axes: Observation = jax.tree.map(lambda _: 0, self._without_teacher())
        return axes

    def _without_teacher(self) -> Observation:
        return dataclasses.replace(self, teacher=None)


@flax.struct.dataclass
class Estimate:
    """What the generators say, and what the blur makes of it.

    Attributes:
      image: sharp image on its full support ``[H+h-1, W+w-1]``.
      kernel: ``[h, w]``, or ``[R', C', h, w]`` if it varies over the image.
      reblurred: valid part of ``kernel * image``, ``[H, W]``.
    """

    image: jax.Array
    kernel: jax.Array
    reblurred: jax.Array


def mse(estimate: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error ``mean((a − b)²)`` of two images ``[H, W]``."""
    chex.assert_equal_shape([estimate, target])
    return jnp.mean(jnp.square(estimate - target))


def mae(estimate: jax.Array, target: jax.Array) -> jax.Array:
    """Mean absolute error ``mean(|a − b|)`` of two images ``[H, W]``."""
    chex.assert_equal_shape([estimate, target])
    return jnp.mean(jnp.abs(estimate - target))


@functools.lru_cache(maxsize=32)
def _window_matrix(size: int) -> np.ndarray:
    """Gaussian window as a banded matrix ``[size, size]``: one product filters a whole axis, zeros beyond the border."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    taps = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    taps /= taps.sum()
    distance = np.arange(size)[None, :] - np.arange(size)[:, None] + SSIM_WINDOW // 2
    inside = (distance >= 0) & (distance < SSIM_WINDOW)
    return np.where(inside, taps[np.clip(distance, 0, SSIM_WINDOW - 1)], 0.0).astype(np.float32)


def _window_mean(image: jax.Array) -> jax.Array:
    rows, columns = _window_matrix(image.shape[-2]), _window_matrix(image.shape[-1])
    return rows @ image @ columns


def one_minus_ssim(estimate: jax.Array, target: jax.Array) -> jax.Array:
    """One minus the mean structural similarity of two images ``[H, W]`` in [0, 1].

    ``SSIM = (2 μa μb + C1)(2 σab + C2) / ((μa² + μb² + C1)(σa² + σb² + C2))``, C1 = 0.01², C2 = 0.03², moments under an 11×11
    Gaussian window of σ 1.5 that sees zeros beyond the border, averaged over every pixel, as SelfDeblur's public code has it.

    Source: Wang, Bovik, Sheikh & Simoncelli, "Image quality assessment: from error visibility to structural similarity",
    IEEE TIP 2004.
    """
    chex.assert_equal_shape([estimate, target])
    chex.assert_rank(estimate, 2)
    mean_a, mean_b = _window_mean(estimate), _window_mean(target)
    square_a, square_b, product = mean_a * mean_a, mean_b * mean_b, mean_a * mean_b
    # The similarity needs the two variances only as their sum, so they share a window.
    variances = _window_mean(estimate * estimate + target * target) - square_a - square_b
    covariance = _window_mean(estimate * target) - product
    similarity = (2 * product + _C1) * (2 * covariance + _C2)
    similarity = similarity / ((square_a + square_b + _C1) * (variances + _C2))
    return 1.0 - jnp.mean(similarity)


def total_variation(image: jax.Array) -> jax.Array:
    """Anisotropic total variation ``mean(|∂x|) + mean(|∂y|)`` of an image ``[H, W]``.

    Source: Rudin, Osher & Fatemi, "Nonlinear total variation based noise removal algorithms", Physica D 1992; as a mean, so
    that its weight does not depend on the image's size.
    """
    chex.assert_rank(image, 2)
    return jnp.mean(jnp.abs(jnp.diff(image, axis=1))) + jnp.mean(jnp.abs(jnp.diff(image, axis=0)))


def noise_tied_tv(estimate: Estimate, seen: Observation) -> jax.Array:
    """``σ · TV(x)``, σ being the standard deviation of the blurry image's noise in [0, 1] units.

    Source: Ren et al., "Neural blind deconvolution using deep priors", CVPR 2020, eq. (9), where its weight is 0.1; their
    public code has no such term.
    """
    return seen.noise_std * total_variation(estimate.image)


def kernel_energy(kernel: jax.Array) -> jax.Array:
    """``‖k‖² = Σ k²`` of a kernel ``[h, w]``, or its mean over ``[R', C', h, w]``: smallest for a flat kernel, 1 for a delta.

    Source: Li, Nan & Ji, "Un-supervised learning for blind image deconvolution via Monte-Carlo sampling", Inverse Problems
    2021.
    """
    chex.assert_rank(kernel, {2, 4})
    return jnp.mean(jnp.sum(jnp.square(kernel), axis=(-2, -1)))


def _restored_by_teacher(image: jax.Array, estimate: Estimate, seen: Observation) -> jax.Array:
    assert seen.teacher is not None
    kernel = lax.stop_gradient(estimate.kernel) if seen.teacher_kernel is None else seen.teacher_kernel
    return seen.teacher.restore(image, kernel)


def _surrogate(estimate: Estimate, seen: Observation) -> jax.Array:
    """The teacher's restoration of the blurry image, which no gradient changes."""
    if seen.surrogate is not None:
        return seen.surrogate
    return lax.stop_gradient(_restored_by_teacher(seen.blurry, estimate, seen))


def weak(
    distance: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[[Estimate, Observation], jax.Array]:
    """The weak supervision ``E(x, x̄)``: distance of the image, in the blurry frame, to a pre-trained network's ``x̄ = T(y)``.

    Source: Chi, "Weakly supervised blind image deblurring" (course report), eq. (5).
    """

    def loss(estimate: Estimate, seen: Observation) -> jax.Array:
        image = blur.crop_to_blurry(estimate.image, (estimate.kernel.shape[-2], estimate.kernel.shape[-1]))
        return distance(image, _surrogate(estimate, seen))

    return loss


def teacher_agreement(estimate: Estimate, seen: Observation) -> jax.Array:
    """``‖T(y) − T(ŷ)‖₂ / √N`` for a pre-trained network T and the re-blurred image ŷ; gradients pass through the frozen T.

    Source: the same, eq. (7); divided by the root of the number of pixels, so that its weight does not depend on the size.
    """
    again = _restored_by_teacher(estimate.reblurred, estimate, seen)
    # The root has no slope at zero.
    return jnp.sqrt(mse(again, _surrogate(estimate, seen)) + 1e-12)


_TERMS: dict[LossTerm, Callable[[Estimate, Observation], jax.Array]] = {
    "mse": lambda estimate, seen: mse(estimate.reblurred, seen.blurry),
    "mae": lambda estimate, seen: mae(estimate.reblurred, seen.blurry),
    "one_minus_ssim": lambda estimate, seen: one_minus_ssim(estimate.reblurred, seen.blurry),
    "total_variation": lambda estimate, _: total_variation(estimate.image),
    "noise_tied_tv": noise_tied_tv,
    "kernel_energy": lambda estimate, _: kernel_energy(estimate.kernel),
    "weak_mse": weak(mse),
    "weak_mae": weak(mae),
    "weak_one_minus_ssim": weak(one_minus_ssim),
    "teacher_agreement": teacher_agreement,
}


def term(name: LossTerm, estimate: Estimate, observation: Observation) -> jax.Array:
    """The loss term ``name`` of one sample of one restart, given what is known: a scalar."""
    return _TERMS[name](estimate, observation)
