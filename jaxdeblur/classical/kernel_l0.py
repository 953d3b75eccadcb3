"""A first guess of the blur kernel: L0-sparse gradients, coarse to fine.

At each level of an image pyramid two problems alternate. The image's is

    min_x ‖k * x − y‖² + λ ‖∇x‖₀,

solved by half-quadratic splitting with a growing penalty (Xu, Lu, Xu, Jia: "Image smoothing via L0 gradient minimization",
SIGGRAPH Asia 2011, https://doi.org/10.1145/2024156.2024208; as a deblurring prior: Xu, Zheng, Jia, "Unnatural L0 sparse
representation for natural image deblurring", CVPR 2013, https://doi.org/10.1109/CVPR.2013.147). The kernel's is

    min_k ‖k * ∇x − ∇y‖² + γ ‖k‖²,

by conjugate gradients (Cho, Lee: "Fast motion deblurring", SIGGRAPH Asia 2009, https://doi.org/10.1145/1661412.1618491; the
alternation with small-component removal: Pan, Hu, Su, Yang, "Deblurring text images via L0-regularized intensity and gradient
prior", CVPR 2014, https://doi.org/10.1109/CVPR.2014.371). Everything is FFT, so a guess costs a fraction of a second.
"""

from __future__ import annotations

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from jaxdeblur.classical.compiled import reproducible_jit
from jaxdeblur.operators import blur, gradients
from jaxdeblur.operators.kernels import centre_kernel, normalise_kernel

# Side of the kernel at the coarsest level.
SMALLEST_SIZE = 5
_RATIO = math.sqrt(0.5)
_LAST_PENALTY = 1e5
_WEIGHT_DECAY = 1.1
_SMALLEST_WEIGHT = 1e-4
_KERNEL_CG_STEPS = 20
# Pixels below this share of the peak are noise, and so are islands of less than that mass.
_KERNEL_THRESHOLD = 0.05
_SMALLEST_ISLAND = 0.1


@dataclasses.dataclass(frozen=True)
class Level:
    """One level of the pyramid: ``scale`` of the full size, shape of the image, odd side of the kernel."""

    scale: float
    shape: tuple[int, int]
    kernel_size: int


def pyramid(shape: tuple[int, int], kernel_size: int) -> tuple[Level, ...]:
    """Levels from coarse (kernel about 5 pixels) to full size, each √2 larger than the one before."""
    count = max(math.floor(math.log(SMALLEST_SIZE / kernel_size) / math.log(_RATIO)), 0) + 1
    levels = []
    for step in reversed(range(count)):
        scale = _RATIO**step
        side = math.ceil(kernel_size * scale)
        levels.append(Level(scale, (round(shape[0] * scale), round(shape[1] * scale)), side + 1 - side % 2))
    return tuple(levels)


def first_kernel(size: int) -> jax.Array:
    """``[size, size]``: two neighbouring pixels, so that the first image step has a blur to undo."""
    middle = size // 2
    return jnp.zeros((size, size)).at[middle, middle - 1 : middle + 1].set(0.5)


def weight_after(weight: float, alternations: int) -> float:
    """The L0 weight after so many alternations: it shrinks by a tenth at each, so that finer detail joins in."""
    return max(weight / _WEIGHT_DECAY**alternations, _SMALLEST_WEIGHT)


@reproducible_jit
def estimate_level(
    blurry: jax.Array,
    kernel: jax.Array,
    *,
    support: jax.Array,
    weight: jax.Array | float,
    ridge: jax.Array | float,
    iterations: jax.Array | int,
    measured: jax.Array | None = None,
) -> jax.Array:
    """Alternates image and kernel at one level of the pyramid. All numbers are arguments of one compiled program.

    Clipped pixels take the value that the last image and kernel predict, where it is larger than theirs, and do not enter the
    kernel step.

    Args:
      blurry: ``[H, W]`` in [0, 1], at this level's scale.
      kernel: ``[h, h]``, where to start.
      support: ``[h, h]``, one where the kernel may have mass and zero elsewhere.
      weight: ``λ`` at the first alternation.
      ridge: ``γ``.
      iterations: alternations.
      measured: ``[H, W]``, one where a pixel was measured and zero where it was clipped; None if all were measured.

    Returns:
      ``[h, h]``, non-negative, summing to one, its mass centred.
    """
    chex.assert_rank([blurry, kernel], 2)
    chex.assert_equal_shape([kernel, support])
    padded = extend_periodically(blurry, kernel.shape[0])
    clipped = None
    if measured is not None:
        beyond = [(0, whole - own) for whole, own in zip(padded.shape, blurry.shape, strict=True)]
        clipped = jnp.pad(measured, beyond, constant_values=1.0) == 0.0

    def alternate(step: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kernel, seen = state
        current = jnp.maximum(weight / _WEIGHT_DECAY**step, _SMALLEST_WEIGHT)
        image = l0_image(seen, kernel, current)
        if clipped is not None:
            shape = (padded.shape[0], padded.shape[1])
            spectrum = blur.centred_kernel_spectrum(kernel, shape)
            predicted = jnp.fft.irfft2(spectrum * jnp.fft.rfft2(image), shape)
            seen = jnp.where(clipped, jnp.maximum(padded, predicted), padded)
        kernel = least_squares_kernel(image[: blurry.shape[0], : blurry.shape[1]], blurry, support, ridge, measured)
        return centre_kernel(drop_islands(kernel, smallest=_SMALLEST_ISLAND), subpixel=False), seen

    return jax.lax.fori_loop(0, iterations, alternate, (kernel, padded))[0]


def l0_image(padded: jax.Array, kernel: jax.Array, weight: jax.Array | float) -> jax.Array:
    """``argmin_x ‖k * x − y‖² + λ‖∇x‖₀`` on the periodic grid of ``padded [H', W']``, by half-quadratic splitting."""
    shape = (padded.shape[-2], padded.shape[-1])
    spectrum = blur.centred_kernel_spectrum(kernel, shape)
    energy, target = jnp.abs(spectrum) ** 2, jnp.conj(spectrum) * jnp.fft.rfft2(padded)
    gradient_energy = gradients.periodic_energy(shape)

    def split(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        image, penalty = state
        across, down = jnp.roll(image, -1, 1) - image, jnp.roll(image, -1, 0) - image
        kept = across**2 + down**2 >= weight / penalty
        across, down = jnp.where(kept, across, 0.0), jnp.where(kept, down, 0.0)
        divergence = jnp.roll(across, 1, 1) - across + jnp.roll(down, 1, 0) - down
        solution = (target + penalty * jnp.fft.rfft2(divergence)) / (energy + penalty * gradient_energy)
        return jnp.fft.irfft2(solution, shape), 2.0 * penalty

    start = (padded, 2.0 * jnp.asarray(weight, padded.dtype))
    return jax.lax.while_loop(lambda state: state[1] < _LAST_PENALTY, split, start)[0]


def least_squares_kernel(
    image: jax.Array,
    blurry: jax.Array,
    support: jax.Array,
    ridge: jax.Array | float,
    measured: jax.Array | None = None,
) -> jax.Array:
    """``argmin_k ‖k * ∇x − ∇y‖² + γ‖k‖²`` with zeros beyond both images, then cleared of small values.

    Args:
      image: ``[H, W]``, the sharp estimate in the blurry frame.
      blurry: ``[H, W]``.
      support: ``[h, w]``, odd sides: one where the kernel may have mass and zero elsewhere.
      ridge: ``γ``.
      measured: ``[H, W]``, zero for pixels whose gradients do not count; None if all do.

    Returns:
      ``[h, w]``, non-negative, summing to one.
    """
    h, w = support.shape
    sharp = gradients.gradient(image)
    forward, adjoint = blur.valid_blur_of(jnp.pad(sharp, ((0, 0), (h // 2, h // 2), (w // 2, w // 2))), (h, w))
    wanted = gradients.gradient(blurry)
    if measured is None:
        # Without the zeros' part the normal matrix is a stationary correlation, on the kernel's own small grid.
        correlate = blur.stationary_blur(blur.correlation_lags(sharp, (h, w)))
    else:
        counted = jnp.minimum(jnp.minimum(measured[:-1, :-1], measured[:-1, 1:]), measured[1:, :-1])
        wanted = counted * wanted

        def correlate(kernel: jax.Array) -> jax.Array:
            return adjoint(counted * forward(kernel))

    def normal(kernel: jax.Array) -> jax.Array:
        return support * correlate(kernel) + ridge * kernel

    start = support / support.sum()
    target = support * adjoint(wanted)
    kernel, _ = cg(normal, target, x0=start, tol=1e-5, maxiter=_KERNEL_CG_STEPS)
    return drop_faint(kernel, _KERNEL_THRESHOLD)


def drop_faint(kernel: jax.Array, threshold: float) -> jax.Array:
    """``kernel [h, w]`` without what is negative or below ``threshold`` of its peak, summing to one."""
    return normalise_kernel(jnp.where(kernel < threshold * kernel.max(), 0.0, kernel))


def drop_islands(kernel: jax.Array, *, smallest: float) -> jax.Array:
    """Removes 8-connected components with less than ``smallest`` of the mass; the heaviest one always stays.

    Args:
      kernel: ``[h, w]``, non-negative, summing to one.
      smallest: share of the mass in [0, 1].

    Returns:
      ``[h, w]``, summing to one.
    """
    h, w = kernel.shape
    inside = kernel > 0.0
    numbers = jnp.where(inside, jnp.arange(1, h * w + 1).reshape(h, w), 0)

    def spread(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        labels, _ = state
        padded = jnp.pad(labels, 1)
        rows = jnp.maximum(jnp.maximum(padded[:-2], padded[1:-1]), padded[2:])
        around = jnp.maximum(jnp.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])
        grown = jnp.where(inside, around, 0)
        return grown, jnp.any(grown != labels)

    labels, _ = jax.lax.while_loop(lambda state: state[1], spread, (numbers, jnp.array(True)))
    mass = jax.ops.segment_sum(kernel.ravel(), labels.ravel(), num_segments=h * w + 1)
    kept = mass[labels] >= jnp.minimum(smallest, mass[1:].max())
    return normalise_kernel(jnp.where(kept, kernel, 0.0))


def extend_periodically(blurry: jax.Array, margin: int) -> jax.Array:
    """Extends ``blurry [H, W]`` at its far ends to a fast FFT shape, ramping from each last row or column to the first."""
    height, width = blurry.shape
    rows, columns = blur.fast_shape((height + margin, width + margin))
    ramp = jnp.linspace(0.0, 1.0, rows - height + 2)[1:-1, None]
    extended = jnp.concatenate([blurry, (1.0 - ramp) * blurry[-1:] + ramp * blurry[:1]], axis=0)
    ramp = jnp.linspace(0.0, 1.0, columns - width + 2)[None, 1:-1]
    return jnp.concatenate([extended, (1.0 - ramp) * extended[:, -1:] + ramp * extended[:, :1]], axis=1)
