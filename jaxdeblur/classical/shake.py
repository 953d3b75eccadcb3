"""Estimating the blur of a camera that turns about its optical axis while it is shaken.

At the angle θ and the shift s, a pixel at p from the image's middle c moves by ``s + θ J (p − c)``, with J the turn by a right
angle. An exposure spends a share W(θ, s) of its time in each pose, so that the kernels of all places follow from one density:

    ``k_p(u) = Σ_θ W(θ, u − θ J (p − c))``

They are consistent by construction, and places without edges get theirs from those with edges. Where the density is all at
θ = 0, the blur is uniform. Whyte, Sivic, Zisserman, Ponce: "Non-uniform deblurring for shaken images", IJCV 2012,
https://doi.org/10.1007/s11263-011-0502-7 (poses with weights); Gupta, Joshi, Zitnick, Cohen, Curless: "Single image deblurring
using motion density functions", ECCV 2010, https://doi.org/10.1007/978-3-642-15549-9_13 (two shifts and the roll are enough).

W is found by marginal likelihood, as in :mod:`jaxdeblur.classical.variational`: the image is cut into small patches within
which the kernel hardly varies, each has its own sharp image and variances, and F is summed over them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.classical import variational as vb
from jaxdeblur.classical.compiled import reproducible_jit
from jaxdeblur.classical.initialiser import informative_crop
from jaxdeblur.classical.kernel_l0 import drop_faint
from jaxdeblur.config import InitialiserConfig, ShakeConfig
from jaxdeblur.operators import blur, gradients
from jaxdeblur.operators.filter_flow import patch_middles
from jaxdeblur.operators.kernels import centring_shift, pad_kernel, resize_kernel, sampling_matrix, shift_kernel

# Room around the uniform kernel for shifts that it does not have, as a share of its side.
_ROOM = 1.2
# What the kernels still hold below this share of their peak is noise.
_FAINT = 0.04
_MOST_NODES = 20


def pose_kernels(weights: jax.Array, moves: jax.Array) -> jax.Array:
    """The kernels ``k_p(u) = Σ_θ W(θ, u − m_pθ)`` that a density of poses makes; linear interpolation, mass beyond is lost.

    Args:
      weights: W, ``[T, h, w]``.
      moves: ``m_pθ = θ J (p − c)``, ``[P, T, 2]``, rows and columns in pixels.

    Returns:
      ``[P, h, w]``.
    """
    return _kernels(weights, *_interpolations(moves, (weights.shape[1], weights.shape[2])))


def roll_moves(positions: jax.Array, angles: jax.Array) -> jax.Array:
    """``θ J (p − c)``, the moves of light at some places by some angles.

    Args:
      positions: ``p − c``, ``[P, 2]``, rows and columns in pixels.
      angles: θ, ``[T]``, in radians.

    Returns:
      ``[P, T, 2]``.
    """
    chex.assert_shape(positions, (None, 2))
    turned = jnp.stack([-positions[:, 1], positions[:, 0]], axis=-1)
    return angles[None, :, None] * turned[:, None, :]


@reproducible_jit
def refine_poses(
    patches: jax.Array,
    weights: jax.Array,
    moves: jax.Array,
    *,
    support: jax.Array,
    iterations: jax.Array | int,
    noise_variance: jax.Array | float,
    first_noise_variance: jax.Array | float,
    image_softness_std: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """Improves a density of poses by alternating the minimisation of ``Σ_p F(k_p)`` over images, their variances and W.

    The image step is that of :func:`jaxdeblur.classical.variational.refine_kernel` for every patch; the kernel step solves
    ``min_{W≥0} Σ_p [‖X_p k_p − y_p‖² + Σ_i C_pi ‖k_p * g‖²]`` with ``k_p`` of :func:`pose_kernels`, likewise.

    Args:
      patches: ``[P, H, W]`` in [0, 1], parts of the blurry image.
      weights: ``[T, h, w]``, where to start; non-negative, summing to one.
      moves: ``[P, T, 2]``, see :func:`roll_moves`.
      support: ``[T, h, w]``, one where W may have mass and zero elsewhere.
      iterations: alternations.
      noise_variance: last ν, in squared [0, 1] units of the gradients.
      first_noise_variance: first ν.
      image_softness_std: of g, in pixels.

    Returns:
      ``[T, h, w]``, non-negative, summing to one, and F per pixel of every patch, ``[P]``.
    """
    chex.assert_rank([patches, weights, moves], 3)
    chex.assert_equal_shape([weights, support])
    soft = vb.softness_kernel(image_softness_std)
    size = (weights.shape[1], weights.shape[2])
    rows, columns = patches.shape[1] - 1, patches.shape[2] - 1
    observed = jax.vmap(gradients.gradient)(patches)
    radius = soft.shape[0] // 2
    shape = (rows + size[0] + 2 * radius - 1, columns + size[1] + 2 * radius - 1)
    soften, _ = blur.valid_blur(soft, shape)
    shown = jnp.zeros((rows + size[0] - 1, columns + size[1] - 1)).at[size[0] - 1 : rows, size[1] - 1 : columns].set(1.0)
    softness = vb.in_the_middle(vb.convolve(soft, soft, mode="full"), (2 * size[0] - 1, 2 * size[1] - 1))
    interpolations = _interpolations(moves, size)

    def whole_kernels(weights: jax.Array) -> jax.Array:
        return jax.vmap(lambda kernel: vb.convolve(kernel, soft, mode="full"))(_kernels(weights, *interpolations))

    def of_a_patch(
        observed: jax.Array, kernel: jax.Array, whole: jax.Array, sharp: jax.Array, variance: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The image step, and the right side and the lags of the kernel step."""
        sharp, uncertainty = vb.image_step(observed, whole, sharp, variance, noise)
        softened = soften(sharp)
        rest = blur.blur_valid(softened * (1.0 - shown), kernel)
        target = blur.valid_blur_of(softened * shown, size)[1](observed - rest)
        spread = uncertainty.sum(0)[radius : shape[0] - radius, radius : shape[1] - radius]
        lags = blur.correlation_lags(softened * shown, size) + jnp.sum(spread * shown) * softness
        return sharp, sharp**2 + uncertainty, target, lags

    def alternate(_: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        sharp, variance, weights, steepest, noise = state
        kernels = _kernels(weights, *interpolations)
        sharp, variance, targets, lags = jax.vmap(of_a_patch, (0, 0, 0, 0, 0, None))(
            observed, kernels, whole_kernels(weights), sharp, variance, noise
        )

        def normal(candidate: jax.Array) -> jax.Array:
            blurred = jax.vmap(lambda lags, kernel: blur.stationary_blur(lags)(kernel))(
                lags, _kernels(candidate, *interpolations)
            )
            return _kernels_adjoint(blurred, *interpolations)

        target = _kernels_adjoint(targets, *interpolations)
        weights, steepest = vb.nonnegative_minimum(normal, target, weights, steepest, support)
        noise = jnp.maximum(vb.NOISE_DECAY * noise, noise_variance)
        return sharp, variance, weights / weights.sum(), steepest, noise

    noise = jnp.asarray(first_noise_variance, patches.dtype)
    sharp, variance = jax.vmap(vb.settle, (0, 0, None, None))(observed, whole_kernels(weights), noise, vb.SETTLING_ITERATIONS)
    state = (sharp, variance, weights, jnp.ones_like(weights), noise)
    sharp, variance, weights, _, noise = jax.lax.fori_loop(0, iterations, alternate, state)
    evidences = jax.vmap(vb.free_energy, (0, 0, 0, 0, None))(observed, whole_kernels(weights), sharp, variance, noise)
    return weights, evidences


def _interpolations(moves: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """``[P, T, h, h]`` and ``[P, T, w, w]``: the shifts along rows and along columns as matrices."""
    both = jax.vmap(jax.vmap(lambda move: tuple(sampling_matrix(n, n, shift=m) for n, m in zip(size, move, strict=True))))
    rows, columns = both(moves)
    return rows, columns


def _kernels(weights: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    return jnp.einsum("ptik,ptjk->pij", rows @ weights, columns)


def _kernels_adjoint(kernels: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    return jnp.einsum("ptki,ptkj->tij", rows, kernels[:, None] @ columns)


@dataclasses.dataclass(frozen=True, eq=False)
class Poses:
    """A density of poses.

    Attributes:
      weights: ``[T, h, h]``, non-negative, summing to one; the kernel's centre pixel is no shift.
      angles: ``[T]``, in radians, equally spaced.
    """

    weights: np.ndarray
    angles: np.ndarray

    @classmethod
    def of_kernel(cls, kernel: np.ndarray, angles: np.ndarray) -> Poses:
        """``kernel [h, h]`` everywhere: all of the time at the angle nearest to none."""
        weights = np.zeros((len(angles), *kernel.shape), np.float32)
        weights[np.argmin(np.abs(angles))] = kernel
        return cls(weights, angles)

    @property
    def roll_std(self) -> float:
        """Standard deviation of the angle, in radians."""
        shares = self.weights.sum((1, 2))
        return float(np.sqrt(shares @ (self.angles - shares @ self.angles) ** 2))

    def centred(self) -> Poses:
        """The same, seen from its mean pose: every place's kernel then has its mass around its centre."""
        shift = centring_shift(jnp.asarray(self.weights.sum(0)))
        moved = jax.vmap(shift_kernel, (0, None))(jnp.asarray(self.weights), shift)
        return Poses(np.asarray(moved / moved.sum()), self.angles - self.weights.sum((1, 2)) @ self.angles)

    def resampled(self, angles: np.ndarray, size: int, scale: float) -> Poses:
        """The same at other angles on another support, for an image larger by ``scale``; linear interpolation."""
        weights = self.weights
        if len(self.angles) > 1:
            step = max(self.angles[1] - self.angles[0], angles[1] - angles[0])
            shares = np.maximum(0.0, 1.0 - np.abs(angles[:, None] - self.angles[None, :]) / step)
            weights = np.einsum("ij,jkl->ikl", shares / np.maximum(shares.sum(0), 1e-6), weights)
        axis = np.asarray(sampling_matrix(size, weights.shape[1], scale=scale))
        weights = np.maximum(axis @ weights @ axis.T, 0.0)
        return Poses((weights / weights.sum()).astype(np.float32), angles)

    def field(self, shape: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
        """``[*grid, h, h]``: the kernels, each summing to one, in the middles of the equal parts of an image of ``shape``."""
        middles = [patch_middles(n, count) - (n - 1) / 2 for n, count in zip(shape, grid, strict=True)]
        positions = np.stack(np.meshgrid(*middles, indexing="ij"), axis=-1).reshape(-1, 2)
        kernels = _clean_kernels(jnp.asarray(self.weights), roll_moves(jnp.asarray(positions), jnp.asarray(self.angles)))
        return np.asarray(kernels).reshape(*grid, *self.weights.shape[1:])


@jax.jit
def _clean_kernels(weights: jax.Array, moves: jax.Array) -> jax.Array:
    kernels = jax.vmap(lambda kernel: drop_faint(kernel, _FAINT))(pose_kernels(weights, moves))
    return kernels / kernels.sum((1, 2), keepdims=True)


@dataclasses.dataclass(frozen=True, eq=False)
class ShakeEstimate:
    """How the kernel varies over an image.

    Attributes:
      kernels: ``[R, C, h, h]``, one for each of the equal parts of the image, each non-negative and summing to one.
      gain: by how much the negative log evidence per pixel is lower than with one kernel, refined alike.
      roll_std: standard deviation of the camera's roll over the exposure, in degrees.
    """

    kernels: np.ndarray
    gain: float
    roll_std: float


def estimate_shake(
    blurry: np.ndarray,
    kernel: np.ndarray,
    config: ShakeConfig,
    initialiser: InitialiserConfig,
    *,
    noise_std: float,
    softness_std: float,
    progress: Callable[[int, int], None] | None = None,
) -> ShakeEstimate:
    """Estimates how the kernel of a grey image varies, starting from one for the whole of it.

    The density of poses starts as that kernel without any roll, and is refined at a reduced size first. Beside it the kernel
    alone is refined in the same way, on the same patches and on the same support: what is gained tells whether the camera
    turned.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      kernel: ``[h, h]``, non-negative, summing to one.
      config: see :class:`~jaxdeblur.config.ShakeConfig`.
      initialiser: of the variational model, see :class:`~jaxdeblur.config.InitialiserConfig`.
      noise_std: of the image, in [0, 1] units.
      softness_std: of the sharp image, in pixels.
      progress: called with (refinements done, refinements in all).

    Returns:
      The estimate.
    """
    reduced = min(1.0, config.largest_side / max(blurry.shape))
    varying: Poses | None = None
    uniform: Poses | None = None
    gain = 0.0
    last = 1.0
    for number, (share, iterations) in enumerate(zip(config.scales, config.iterations, strict=True)):
        scale = share * reduced
        shape = (round(blurry.shape[0] * scale), round(blurry.shape[1] * scale))
        image = _resized(blurry, shape)
        angles = _angles(shape, math.radians(config.largest_angle), config.angle_step)
        inner = _odd(math.ceil(kernel.shape[0] * scale * _ROOM))
        size = inner + 2 * math.ceil(math.radians(config.largest_angle) * math.hypot(*shape) / 2)
        patches, positions = _cut_patches(image, max(round(config.patch_side * share), 3 * inner), config.num_patches)
        noise = vb.noise_variance(noise_std, smallest=initialiser.noise_variance)

        def refine(
            poses: Poses,
            *,
            inner: int = inner,
            size: int = size,
            patches: np.ndarray = patches,
            positions: np.ndarray = positions,
            iterations: int = iterations,
            noise: float = noise,
            scale: float = scale,
        ) -> tuple[Poses, float]:
            support = pad_kernel(jnp.ones((inner, inner)), (size, size))
            weights, evidences = refine_poses(
                jnp.asarray(patches),
                jnp.asarray(poses.weights),
                roll_moves(jnp.asarray(positions), jnp.asarray(poses.angles, jnp.float32)),
                support=jnp.broadcast_to(support, poses.weights.shape),
                iterations=iterations,
                noise_variance=noise,
                first_noise_variance=initialiser.first_noise_variance / initialiser.noise_variance * noise,
                image_softness_std=vb.softness_at(scale, softness_std),
            )
            return Poses(np.asarray(weights), poses.angles), float(evidences.mean())

        if varying is None or uniform is None:
            start = np.asarray(resize_kernel(jnp.asarray(kernel), (size, size), scale=scale))
            varying, uniform = Poses.of_kernel(start, angles), Poses.of_kernel(start, np.zeros(1))
        else:
            varying = varying.resampled(angles, size, scale / last)
            uniform = uniform.resampled(np.zeros(1), size, scale / last)
        (varying, of_varying), (uniform, of_uniform) = _both(refine, varying, uniform)
        gain, last = of_uniform - of_varying, scale
        if progress is not None:
            progress(number + 1, len(config.scales))
    assert varying is not None
    if last < 1.0:
        size = _odd(math.ceil(varying.weights.shape[1] / last))
        varying = varying.resampled(
            _angles(blurry.shape, math.radians(config.largest_angle), config.angle_step), size, 1 / last
        )
    spacing = max(config.node_spacing, max(blurry.shape) / _MOST_NODES)
    grid = tuple(max(1, round(n / spacing)) for n in blurry.shape)
    kernels = varying.centred().field((blurry.shape[0], blurry.shape[1]), (grid[0], grid[1]))
    return ShakeEstimate(_tight(kernels), gain, math.degrees(varying.roll_std))


def _both(
    refine: Callable[[Poses], tuple[Poses, float]], varying: Poses, uniform: Poses
) -> tuple[tuple[Poses, float], tuple[Poses, float]]:
    """``refine`` of both; on CPUs, where such a program keeps one core busy, at the same time."""
    if jax.default_backend() != "cpu":
        return refine(varying), refine(uniform)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(refine, (varying, uniform))
    return first, second


def _angles(shape: tuple[int, ...], largest: float, step: float) -> np.ndarray:
    """``[T]``: angles, in radians, up to ``largest`` either way, whose steps move a corner of an image by ``step`` pixels."""
    reach = math.hypot(*shape[:2]) / 2
    count = max(1, math.ceil(largest * reach / step))
    return np.arange(-count, count + 1) * (step / reach)


def _resized(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if image.shape == shape:
        return image
    return np.asarray(jax.image.resize(jnp.asarray(image), shape, "linear", antialias=True))


def _cut_patches(image: np.ndarray, side: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches that cover an image or, where more than ``most`` were needed, the most informative ones of equal parts.

    Args:
      image: ``[H, W]``.
      side: of the patches in pixels; the image's own where that is less.
      most: patches.

    Returns:
      ``[P, side, side]``, and where their middles are: ``[P, 2]`` float32, in pixels from the image's middle.
    """
    side = min(side, *image.shape)
    counts = [max(1, math.ceil(n / side - 0.25)) for n in image.shape]
    while math.prod(counts) > most:
        counts[int(np.argmax(counts))] -= 1
    patches, positions = [], []
    for index in itertools.product(*(range(count) for count in counts)):
        parts = []
        for n, count, number in zip(image.shape, counts, index, strict=True):
            length = max(math.ceil(n / count), side)
            start = round(number * (n - length) / max(count - 1, 1))
            parts.append(slice(start, start + length))
        within = informative_crop(image[parts[0], parts[1]], side)
        rows, columns = (slice(part.start + own.start, part.start + own.stop) for part, own in zip(parts, within, strict=True))
        patches.append(image[rows, columns])
        positions.append([(s.start + s.stop - n) / 2 for s, n in zip((rows, columns), image.shape, strict=True)])
    return np.stack(patches), np.asarray(positions, np.float32)


def _tight(kernels: np.ndarray) -> np.ndarray:
    """The kernels on the smallest odd support about their centre that holds all of them."""
    middle = kernels.shape[-1] // 2
    taken = np.argwhere(kernels.max((0, 1)) > 0.0)
    reach = min(middle, max(1, int(np.abs(taken - middle).max())))
    kept = slice(middle - reach, middle + reach + 1)
    return np.ascontiguousarray(kernels[..., kept, kept])


def _odd(size: int) -> int:
    return size if size % 2 else size + 1
