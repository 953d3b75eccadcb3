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
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.classical import variational as vb
from jaxdeblur.classical.compiled import reproducible_jit
from jaxdeblur.classical.initialiser import informative_crop
from jaxdeblur.operators import blur, gradients
from jaxdeblur.operators.filter_flow import patch_middles
from jaxdeblur.operators.kernels import centring_shift, resize_kernel, sampling_matrix, shift_kernel


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
      weights: ``[T, h, w]``, non-negative, summing to one; the kernel's centre pixel is no shift.
      angles: ``[T]``, in radians, equally spaced.
    """

    weights: np.ndarray
    angles: np.ndarray

    def centred(self) -> Poses:
        """The same, seen from its mean pose: every place's kernel then has its mass around its centre."""
        mean = float(self.weights.sum((1, 2)) @ self.angles)
        flat = jnp.asarray(self.weights.sum(0))
        shift = centring_shift(flat)
        moved = jax.vmap(shift_kernel, (0, None))(jnp.asarray(self.weights), shift)
        return Poses(np.asarray(moved / moved.sum()), self.angles - mean)

    def kernels(self, positions: np.ndarray) -> jax.Array:
        """``[P, h, w]`` at places ``[P, 2]`` in pixels from the image's middle, each summing to one."""
        return _normalised_kernels(jnp.asarray(self.weights), roll_moves(jnp.asarray(positions), jnp.asarray(self.angles)))

    def field(self, shape: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
        """``[*grid, h, w]``: the kernels in the middles of the equal parts of an image of ``shape``."""
        middles = [patch_middles(n, count) - (n - 1) / 2 for n, count in zip(shape, grid, strict=True)]
        positions = np.stack(np.meshgrid(*middles, indexing="ij"), axis=-1).reshape(-1, 2)
        return np.asarray(self.kernels(positions)).reshape(*grid, *self.weights.shape[1:])

    def resampled(self, angles: np.ndarray, size: int, scale: float) -> Poses:
        """The same at other angles, on another support, for an image larger by ``scale``."""
        step = self.angles[1] - self.angles[0] if len(self.angles) > 1 else 1.0
        shares = np.maximum(0.0, 1.0 - np.abs(angles[:, None] - self.angles[None, :]) / max(step, angles[1] - angles[0]))
        shares = shares / np.maximum(shares.sum(0), 1e-6)
        rows = np.asarray(sampling_matrix(size, self.weights.shape[1], scale=scale))
        columns = np.asarray(sampling_matrix(size, self.weights.shape[2], scale=scale))
        weights = np.einsum("ij,kjl,ml->kim", rows, np.einsum("ij,jkl->ikl", shares, self.weights), columns)
        return Poses((weights / weights.sum()).astype(np.float32), angles)


@jax.jit
def _normalised_kernels(weights: jax.Array, moves: jax.Array) -> jax.Array:
    kernels = jnp.maximum(pose_kernels(weights, moves), 0.0)
    return kernels / kernels.sum((1, 2), keepdims=True)


def angles_within(shape: tuple[int, int], largest: float, step: float) -> np.ndarray:
    """``[T]``: angles, in radians, up to ``largest`` either way, whose steps move a corner of an image by ``step`` pixels."""
    reach = math.hypot(*shape) / 2
    count = max(1, math.ceil(largest * reach / step))
    return np.arange(-count, count + 1) * (step / reach)


def cut_patches(image: np.ndarray, side: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches that cover an image, or as much of it as ``most`` of them can: the most informative ones of equal parts.

    Returns:
      ``[P, side, side]``, and where their middles are: ``[P, 2]`` in pixels from the image's.
    """
    side = min(side, *image.shape)
    counts = [max(1, math.ceil(n / side - 0.25)) for n in image.shape]
    while math.prod(counts) > most:
        counts[int(np.argmax(counts))] -= 1
    patches, positions = [], []
    for i in range(counts[0]):
        for j in range(counts[1]):
            corner = []
            for n, count, index in zip(image.shape, counts, (i, j), strict=True):
                part = n / count
                start = round(index * part) if part >= side else round(index * (n - side) / max(count - 1, 1))
                corner.append((start, start + max(round(part), side)))
            (top, bottom), (left, right) = [
                (min(a, n - (b - a)), min(b, n)) for (a, b), n in zip(corner, image.shape, strict=True)
            ]
            rows, columns = informative_crop(image[top:bottom, left:right], side)
            rows, columns = slice(top + rows.start, top + rows.stop), slice(left + columns.start, left + columns.stop)
            patches.append(image[rows, columns])
            positions.append([(s.start + s.stop - n) / 2 for s, n in zip((rows, columns), image.shape, strict=True)])
    return np.stack(patches), np.asarray(positions)


def estimate_poses(
    blurry: np.ndarray,
    kernel: np.ndarray,
    *,
    noise_std: float,
    largest_angle: float = 0.02,
    softness_std: float = 0.7,
    noise_variance: float = 2e-6,
    first_noise_variance: float = 6e-6,
    scales: tuple[float, ...] = (0.5, 1.0),
    iterations: tuple[int, ...] = (60, 30),
    side: int = 128,
    most: int = 24,
    spread: float = 0.0,
    angle_step: float = 1.0,
    verbose: bool = False,
) -> tuple[Poses, np.ndarray]:
    poses = None
    last = None
    for scale, steps in zip(scales, iterations, strict=True):
        shape = (round(blurry.shape[0] * scale), round(blurry.shape[1] * scale))
        image = np.asarray(blurry if scale == 1.0 else jax.image.resize(jnp.asarray(blurry), shape, "linear", antialias=True))
        angles = angles_within(shape, largest_angle, angle_step) if largest_angle > 0 else np.zeros(1)
        reach = math.ceil(largest_angle * math.hypot(*shape) / 2)
        own = kernel.shape[0] * scale
        size = _odd(math.ceil(own * 1.2) + 2 * reach)
        if poses is None:
            start = Poses(kernel[None], np.zeros(1))
            poses = (
                start.resampled(angles, size, scale)
                if len(angles) > 1
                else Poses(np.asarray(resize_kernel(jnp.asarray(kernel), (size, size), scale=scale))[None], angles)
            )
            if len(angles) > 1:
                shares = np.exp(-0.5 * (angles / max(spread * (angles[1] - angles[0]), 1e-9)) ** 2)
                flat = poses.weights.sum(0)
                poses = Poses((flat[None] * (shares / shares.sum())[:, None, None]).astype(np.float32), angles)
        else:
            poses = (
                poses.resampled(angles, size, scale / last)
                if len(angles) > 1
                else Poses(
                    np.asarray(resize_kernel(jnp.asarray(poses.weights[0]), (size, size), scale=scale / last))[None], angles
                )
            )
        last = scale
        patches, positions = cut_patches(image, max(round(side * scale), 64), most)
        support = np.zeros((size, size), np.float32)
        inner = (size - _odd(math.ceil(own * 1.2))) // 2
        support[inner : size - inner, inner : size - inner] = 1.0
        moves = roll_moves(jnp.asarray(positions, jnp.float32), jnp.asarray(angles, jnp.float32))
        noise = vb.noise_variance(noise_std, smallest=noise_variance)
        weights, evidence = refine_poses(
            jnp.asarray(patches),
            jnp.asarray(poses.weights),
            moves,
            support=jnp.broadcast_to(jnp.asarray(support), poses.weights.shape),
            iterations=steps,
            noise_variance=noise,
            first_noise_variance=first_noise_variance / noise_variance * noise,
            image_softness_std=vb.softness_at(scale, softness_std),
        )
        poses = Poses(np.asarray(weights), angles)
        if verbose:
            print(scale, patches.shape, weights.shape, float(evidence.mean()), np.round(np.asarray(weights.sum((1, 2))), 3))
    return poses, np.asarray(evidence)


def _odd(size: int) -> int:
    return size if size % 2 else size + 1
