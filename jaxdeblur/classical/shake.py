"""Estimating the blur of a camera that turns while it is shaken.

A turn by small angles about the optical axis and across it moves a pixel at p from the image's middle by
``s + θ J p + (p·s) p / f²``: s is the shift in the middle, θ the angle about the axis, J the turn by a right angle, and f the
focal length in pixels. Along the path of an exposure the angle is taken to be a smooth function of the shift, a polynomial
without a constant. Light that the kernel w of the image's middle throws to s then goes elsewhere at p:

    ``k_p(u) = Σ_s w(s) δ(u − s − θ(s) J p − (p·s) p / f²)``

The kernels of all places are consistent by construction, places without edges get theirs from those with edges, and a few
numbers tell how they differ. With neither a roll nor perspective the blur is uniform. Whyte, Sivic, Zisserman, Ponce:
"Non-uniform deblurring for shaken images", IJCV 2012, https://doi.org/10.1007/s11263-011-0502-7, and Gupta, Joshi, Zitnick,
Cohen, Curless: "Single image deblurring using motion density functions", ECCV 2010,
https://doi.org/10.1007/978-3-642-15549-9_13, seek a density over all shifts and angles. Tried, that stayed where it started:
the image's posterior explains any kernel too well.

All are found by marginal likelihood, see :mod:`jaxdeblur.classical.variational`: the image is cut into patches within which the
kernel hardly varies, each has its own sharp image and variances, and F is summed over them. The polynomial and 1/f² descend the
minimum of F over images itself, because alternation would hardly move them; w follows by alternation.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from jaxdeblur.classical import variational as vb
from jaxdeblur.classical.compiled import reproducible_jit, side_by_side
from jaxdeblur.classical.initialiser import informative_crop
from jaxdeblur.classical.kernel_l0 import drop_faint, drop_islands
from jaxdeblur.config import InitialiserConfig, ShakeConfig
from jaxdeblur.operators import blur
from jaxdeblur.operators.filter_flow import patch_middles
from jaxdeblur.operators.kernels import centring_shift, normalise_kernel, pad_kernel, resize_kernel

# Room around the uniform kernel for shifts that it does not have, as a share of its side.
_ROOM = 1.2
# What the kernels hold below this share of their peak, and islands below that mass, is noise.
_FAINT, _ISLAND = 0.04, 0.05
# Beside the support, as a share of it: kernels off the middle are as much wider.
_TURN_ROOM = 0.2
_MOST_NODES = 20
# Image steps after which F is taken.
_SETTLING = 10
# Of perspective, at the corners: that of a lens of 20 mm before a frame of 36 x 24.
_MOST_PERSPECTIVE = 1.2

Profile = Callable[[jax.Array], jax.Array]


def turned_kernels(kernel: jax.Array, angles: jax.Array, perspective: jax.Array | float, positions: jax.Array) -> jax.Array:
    """``k_p(u) = Σ_s w(s) δ(u − s − θ(s) J p − (p·s) p / f²)``, by linear interpolation; what leaves the support is lost.

    Args:
      kernel: w, ``[h, w]``.
      angles: θ, ``[h, w]``, in radians.
      perspective: 1/f², in 1/pixels².
      positions: p, ``[P, 2]``, rows and columns in pixels from the image's middle.

    Returns:
      ``[P, h, w]``.
    """
    chex.assert_equal_shape([kernel, angles])
    return _kernels(kernel, *_interpolations(angles, perspective, positions, _triangle))


def _interpolations(
    angles: jax.Array, perspective: jax.Array | float, positions: jax.Array, profile: Profile
) -> tuple[jax.Array, jax.Array]:
    """``[P, h, h w]`` and ``[P, w, h w]``: which share of the mass at each shift goes to each row and to each column."""
    height, width = angles.shape
    rows, columns = (grid.ravel() for grid in jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))
    flat = angles.ravel()
    down, across = positions[:, :1], positions[:, 1:]
    along = perspective * (down * (rows - height // 2) + across * (columns - width // 2))
    to_row, to_column = rows - flat * across + along * down, columns + flat * down + along * across

    def shares(targets: jax.Array, places: jax.Array) -> jax.Array:
        return profile(targets[None, :, None] - places[:, None, :])

    return shares(jnp.arange(height), to_row), shares(jnp.arange(width), to_column)


def _triangle(distance: jax.Array) -> jax.Array:
    """Linear interpolation: as narrow as it can be, but wider between pixels than on them."""
    return jnp.maximum(0.0, 1.0 - jnp.abs(distance))


def _spline(distance: jax.Array) -> jax.Array:
    """Quadratic B-spline: of one width (variance ¼) wherever it lies, so that the evidence does not prefer whole pixels."""
    away = jnp.abs(distance)
    return jnp.where(away <= 0.5, 0.75 - away**2, 0.5 * jnp.maximum(1.5 - away, 0.0) ** 2)


def _softness_beside_spline(std: jax.Array | float) -> jax.Array:
    """What is left of the sharp image's softness, a deviation in pixels, when the spline makes up for some of it."""
    return jnp.sqrt(jnp.maximum(jnp.asarray(std) ** 2 - 0.25, 0.0))


def _kernels(kernel: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    return (rows * kernel.ravel()) @ columns.transpose(0, 2, 1)


def _kernels_adjoint(kernels: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The adjoint of :func:`_kernels`: ``[P, h, w]`` to ``[h, w]``."""
    return (rows * (kernels @ columns)).sum((0, 1)).reshape(rows.shape[1], columns.shape[1])


@reproducible_jit
def refine_turning(
    patches: jax.Array,
    kernel: jax.Array,
    angles: jax.Array,
    perspective: jax.Array | float,
    positions: jax.Array,
    *,
    support: jax.Array,
    iterations: jax.Array | int,
    noise_variance: jax.Array | float,
    first_noise_variance: jax.Array | float,
    image_softness_std: jax.Array | float,
    thinness: jax.Array | float = 0.0,
) -> jax.Array:
    """Improves w by alternating the minimisation of ``Σ_p F(k_p)`` over images, their variances and w; the rest is kept.

    The image step is that of :func:`jaxdeblur.classical.variational.refine_kernel` for every patch; the kernel step solves
    ``min_{w≥0} Σ_p [‖X_p k_p − y_p‖² + Σ_i C_pi ‖k_p * g‖²]`` with ``k_p`` as in
    :func:`turned_kernels`, likewise; a quadratic spline interpolates, and g is as much narrower.

    Args:
      patches: ``[P, H, W]`` in [0, 1], parts of the blurry image.
      kernel: w, ``[h, w]``, where to start; non-negative, summing to one.
      angles: θ, ``[h, w]``, in radians.
      perspective: 1/f², in 1/pixels².
      positions: ``[P, 2]``, of the patches' middles in pixels from the image's.
      support: ``[h, w]``, one where w may have mass and zero elsewhere.
      iterations: alternations.
      noise_variance: last ν, in squared [0, 1] units.
      first_noise_variance: first ν.
      image_softness_std: of g, in pixels.
      thinness: λ, see :func:`jaxdeblur.classical.variational.refine_kernel`.

    Returns:
      ``[h, w]``, non-negative, summing to one.
    """
    chex.assert_rank([patches, kernel, positions], [3, 2, 2])
    chex.assert_equal_shape([kernel, angles, support])
    observed, soft = _observe(patches, vb.refining_c(noise_variance), image_softness_std)
    interpolations = _interpolations(angles, perspective, positions, _spline)

    def whole_kernels(kernel: jax.Array) -> jax.Array:
        return jax.vmap(lambda own: vb.convolve(own, soft, mode="full"))(_kernels(kernel, *interpolations))

    def of_a_patch(
        observed: jax.Array, kernel: jax.Array, whole: jax.Array, sharp: jax.Array, variance: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The image step, and the right side and the lags of the kernel step."""
        sharp, uncertainty = vb.image_step(observed, whole, sharp, variance, noise)
        target, lags = vb.kernel_normal_equations(observed, kernel, soft, sharp, uncertainty)
        return sharp, sharp**2 + uncertainty, target, lags

    def alternate(_: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        sharp, variance, kernel, steepest, noise = state
        kernels = _kernels(kernel, *interpolations)
        sharp, variance, targets, lags = jax.vmap(of_a_patch, (0, 0, 0, 0, 0, None))(
            observed, kernels, whole_kernels(kernel), sharp, variance, noise
        )

        def normal(candidate: jax.Array) -> jax.Array:
            blurred = jax.vmap(lambda lags, own: blur.stationary_blur(lags)(own))(lags, _kernels(candidate, *interpolations))
            return _kernels_adjoint(blurred, *interpolations)

        target = _kernels_adjoint(targets, *interpolations) - vb.thinness_slope(kernel, thinness * noise * observed.size)
        kernel, steepest = vb.nonnegative_minimum(normal, target, kernel, steepest, support)
        noise = jnp.maximum(vb.NOISE_DECAY * noise, noise_variance)
        return sharp, variance, normalise_kernel(kernel), steepest, noise

    kernel = normalise_kernel(kernel * support)
    noise = jnp.asarray(first_noise_variance, patches.dtype)
    sharp, variance = jax.vmap(vb.settle, (0, 0, None, None))(observed, whole_kernels(kernel), noise, vb.SETTLING_ITERATIONS)
    state = (sharp, variance, kernel, jnp.ones_like(kernel), noise)
    return jax.lax.fori_loop(0, iterations, alternate, state)[2]


def _observe(patches: jax.Array, c: jax.Array, image_softness_std: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """:func:`jaxdeblur.classical.variational.observe` of every patch, with what the spline leaves of the softness."""
    std = _softness_beside_spline(image_softness_std)
    return jax.vmap(lambda patch: vb.observe(patch, c, std), out_axes=(0, None))(patches)


@reproducible_jit
def evidence_and_slope(
    patches: jax.Array,
    kernel: jax.Array,
    coefficients: jax.Array,
    perspective: jax.Array,
    basis: jax.Array,
    positions: jax.Array,
    *,
    noise_variance: jax.Array | float,
    image_softness_std: jax.Array | float,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """F per pixel, the mean over patches of its minimum over images and variances, and its slope in θ's coefficients and 1/f².

    At that minimum the slope is the partial one, with images and variances as they are.

    Args:
      patches: ``[P, H, W]`` in [0, 1].
      kernel: w, ``[h, w]``, non-negative, summing to one.
      coefficients: ``[n]`` of ``θ(s) = Σ_j c_j φ_j(s)``.
      perspective: 1/f², in 1/pixels².
      basis: φ, ``[n, h, w]``.
      positions: ``[P, 2]``.
      noise_variance: ν.
      image_softness_std: of g, in pixels.

    Returns:
      A scalar, and ``[n]`` and a scalar.
    """
    chex.assert_rank([patches, kernel, coefficients, basis, positions], [3, 2, 1, 3, 2])
    observed, soft = _observe(patches, vb.judging_c(noise_variance), image_softness_std)

    def mean_evidence(coefficients: jax.Array, perspective: jax.Array) -> jax.Array:
        angles = jnp.tensordot(coefficients, basis, 1)
        kernels = _kernels(kernel, *_interpolations(angles, perspective, positions, _spline))
        # What has left the support must not be missed as light.
        kernels = kernels / kernels.sum((1, 2), keepdims=True)
        whole = jax.vmap(lambda own: vb.convolve(own, soft, mode="full"))(kernels)
        settled = jax.vmap(vb.settle, (0, 0, None, None))(observed, jax.lax.stop_gradient(whole), noise_variance, _SETTLING)
        sharp, variance = jax.lax.stop_gradient(settled)
        return jax.vmap(vb.free_energy, (0, 0, 0, 0, None))(observed, whole, sharp, variance, noise_variance).mean()

    return jax.value_and_grad(mean_evidence, (0, 1))(coefficients, perspective)


@dataclasses.dataclass(frozen=True, eq=False)
class Turning:
    """A kernel, the camera's angle at each of its shifts, and its perspective.

    Attributes:
      kernel: w, ``[h, h]``, non-negative, summing to one; its centre pixel is no shift.
      coefficients: ``[n]`` of θ in monomials of the shift, in pixels by which a corner of the image moves.
      reach: of the kernel in pixels: a shift of this is one to the monomials.
      corner: how many pixels the image's corner is from its middle.
      perspective: by which share of a shift towards a corner that corner moves further than the middle.
    """

    kernel: np.ndarray
    coefficients: np.ndarray
    reach: float
    corner: float
    perspective: float = 0.0

    def basis(self, degree: int) -> np.ndarray:
        """``[n, h, h]``: the angles in radians that coefficients of one stand for.

        Their means over the kernel are zero: the mean angle turns the sharp image and blurs nothing.
        """
        middle = len(self.kernel) // 2
        place = np.clip((np.arange(len(self.kernel)) - middle) / self.reach, -_ROOM, _ROOM)
        monomials = np.stack(
            [np.outer(place ** (total - power), place**power) for total in range(1, degree + 1) for power in range(total + 1)]
        )
        means = np.einsum("nij,ij->n", monomials, self.kernel) / self.kernel.sum()
        return ((monomials - means[:, None, None]) / self.corner).astype(np.float32)

    @property
    def angles(self) -> np.ndarray:
        """θ, ``[h, h]``, in radians."""
        degree = _degree(len(self.coefficients))
        if degree == 0:
            return np.zeros_like(self.kernel)
        return np.tensordot(self.coefficients, self.basis(degree), 1).astype(np.float32)

    @property
    def inverse_square_of_focal_length(self) -> float:
        """1/f², in 1/pixels²."""
        return self.perspective / self.corner**2

    @property
    def roll_std(self) -> float:
        """Standard deviation of the angle over the exposure, in radians."""
        return float(np.sqrt(np.sum(self.kernel * self.angles**2)))

    def of_degree(self, degree: int) -> Turning:
        """The same with room for a polynomial of that degree, at least its own."""
        count = (degree + 1) * (degree + 2) // 2 - 1
        return dataclasses.replace(self, coefficients=np.pad(self.coefficients, (0, count - len(self.coefficients))))

    def resized(self, size: int, scale: float) -> Turning:
        """The same on a support of ``size``, for an image larger by ``scale``."""
        kernel = np.asarray(resize_kernel(jnp.asarray(self.kernel), (size, size), scale=scale))
        return dataclasses.replace(
            self,
            kernel=kernel,
            coefficients=self.coefficients * scale,
            reach=self.reach * scale,
            corner=self.corner * scale,
        )

    def cleaned(self) -> Turning:
        """The same without what is faint or isolated in the kernel, which is noise, and pulls at the angle's mean."""
        kernel = drop_islands(drop_faint(jnp.asarray(self.kernel), _FAINT), smallest=_ISLAND)
        return dataclasses.replace(self, kernel=np.asarray(normalise_kernel(kernel)))

    def field(self, shape: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
        """``[*grid, h', h']``: the kernels, each summing to one, in the middles of the equal parts of an image of ``shape``."""
        # Room for what the turn moves beyond the support, and for the kernel to be put in the middle.
        turn = np.abs(self.angles[self.kernel > 0.0]).max() * self.corner
        room = math.ceil(turn + self.perspective * len(self.kernel) / 2) + 1
        kernel, angles = np.pad(self.kernel, room), np.pad(self.angles, room)
        shift = np.round(np.asarray(centring_shift(jnp.asarray(kernel), subpixel=False))).astype(int)
        kernel, angles = (np.roll(array, shift, (0, 1)) for array in (kernel, angles))
        middles = [patch_middles(n, count) - (n - 1) / 2 for n, count in zip(shape, grid, strict=True)]
        positions = jnp.asarray(np.stack(np.meshgrid(*middles, indexing="ij"), axis=-1).reshape(-1, 2), jnp.float32)
        kernels = _clean_kernels(jnp.asarray(kernel), jnp.asarray(angles), self.inverse_square_of_focal_length, positions)
        return _tight(np.asarray(kernels).reshape(*grid, *kernel.shape))


@jax.jit
def _clean_kernels(kernel: jax.Array, angles: jax.Array, perspective: jax.Array, positions: jax.Array) -> jax.Array:
    kernels = jax.vmap(lambda own: drop_faint(own, _FAINT))(turned_kernels(kernel, angles, perspective, positions))
    return kernels / kernels.sum((1, 2), keepdims=True)


@dataclasses.dataclass(frozen=True, eq=False)
class ShakeEstimate:
    """How the kernel varies over an image.

    Attributes:
      kernels: ``[R, C, h, h]``, one for each of the equal parts of the image, each non-negative and summing to one; None if
        too little was gained.
      gain: by how much the negative log evidence per pixel is lower than with one kernel, refined alike.
      roll_std: standard deviation of the camera's angle over the exposure, in degrees.
    """

    kernels: np.ndarray | None
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
    least_gain: float = -math.inf,
    progress: Callable[[int, int], None] | None = None,
) -> ShakeEstimate:
    """Estimates how the kernel of a grey image varies, starting from one for the whole of it.

    The polynomial starts from no turn; it and the kernel take turns in being refined, at a reduced size first. There, the
    kernel alone is refined as often on the same patches and the same support: what is gained tells whether the camera turned.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      kernel: ``[h, h]``, non-negative, summing to one.
      config: see :class:`~jaxdeblur.config.ShakeConfig`.
      initialiser: of the variational model, see :class:`~jaxdeblur.config.InitialiserConfig`.
      noise_std: of the image, in [0, 1] units.
      softness_std: of the sharp image, in pixels.
      least_gain: with less, the estimate ends after the rounds at the first scale, without kernels.
      progress: called with (rounds done, rounds in all).

    Returns:
      The estimate.
    """
    reduced = min(1.0, config.largest_side / max(blurry.shape))
    scales = [share * reduced for share in config.scales]
    levels = {
        scale: _Level.of(blurry, scale, share, kernel, config, initialiser, noise_std, softness_std)
        for scale, share in zip(scales, config.scales, strict=True)
    }
    rounds = [
        _Round(levels[scale], degree, descents, iterations)
        for scale, degree, descents, iterations in zip(scales, config.degrees, config.descents, config.iterations, strict=True)
    ]
    coarse = [one for one in rounds if one.level is rounds[0].level]
    start = Turning(kernel, np.zeros(0), _reach(kernel), math.hypot(*blurry.shape) / 2)
    done = itertools.count(1)

    def chain(found: Turning, rounds: Sequence[_Round], last: float, *, turns: bool) -> Turning:
        for one in rounds:
            found, last = found.resized(one.level.size, one.level.scale / last), one.level.scale
            if turns:
                found = one.level.descended(found.of_degree(one.degree), one.descents)
            found = one.level.refined(found, one.iterations).cleaned()
            if turns and progress is not None:
                progress(next(done), len(config.scales))
        return found

    varying, uniform = side_by_side(lambda turns: chain(start, coarse, 1.0, turns=turns), (True, False))
    gain = rounds[0].level.evidence(uniform) - rounds[0].level.evidence(varying)
    if gain <= least_gain:
        return ShakeEstimate(None, gain, math.degrees(varying.roll_std))
    varying = chain(varying, rounds[len(coarse) :], rounds[0].level.scale, turns=True)
    scale = rounds[-1].level.scale
    if scale < 1.0:
        varying = varying.resized(_odd(math.ceil(len(varying.kernel) / scale)), 1.0 / scale)
    # Parts smaller than their kernels cost much and say little.
    spacing = max(config.node_spacing, 2 * len(kernel), max(blurry.shape) / _MOST_NODES)
    rows, columns = (max(1, round(n / spacing)) for n in blurry.shape)
    field = varying.field((blurry.shape[0], blurry.shape[1]), (rows, columns))
    return ShakeEstimate(field, gain, math.degrees(varying.roll_std))


@dataclasses.dataclass(frozen=True, eq=False)
class _Round:
    """A turn of the angles and then the kernel, at one scale; the numbers are those of ShakeConfig."""

    level: _Level
    degree: int
    descents: int
    iterations: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Level:
    """The variational model of an image at one scale.

    Attributes:
      scale: of the image, as a share of its full size.
      size: side of the kernel's support there.
      support: ``[size, size]``, one where the kernel may have mass.
      patches: ``[P, H, W]``.
      positions: ``[P, 2]``.
      noise_variance: ν where its annealing ends.
      first_noise_variance: and where it begins.
      softness_std: of the sharp image there, in pixels.
      thinness: weight of the prior on w.
    """

    scale: float
    size: int
    support: jax.Array
    patches: jax.Array
    positions: jax.Array
    noise_variance: float
    first_noise_variance: float
    softness_std: float
    thinness: float

    @classmethod
    def of(
        cls,
        blurry: np.ndarray,
        scale: float,
        share: float,
        kernel: np.ndarray,
        config: ShakeConfig,
        initialiser: InitialiserConfig,
        noise_std: float,
        softness_std: float,
    ) -> _Level:
        shape = (round(blurry.shape[0] * scale), round(blurry.shape[1] * scale))
        image = blurry
        if shape != blurry.shape:
            image = np.asarray(jax.image.resize(jnp.asarray(blurry), shape, "linear", antialias=True))
        inner = _odd(math.ceil(kernel.shape[0] * scale * _ROOM))
        # Beside the support there is room for what turns move out of it.
        size = inner + 2 * math.ceil(_TURN_ROOM * inner)
        patches, positions = _cut_patches(image, max(round(config.patch_side * share), 2 * inner), config.num_patches)
        noise = vb.noise_variance(noise_std, smallest=initialiser.noise_variance)
        return cls(
            scale,
            size,
            pad_kernel(jnp.ones((inner, inner)), (size, size)),
            jnp.asarray(patches),
            jnp.asarray(positions),
            noise,
            initialiser.first_noise_variance / initialiser.noise_variance * noise,
            vb.softness_at(scale, softness_std),
            initialiser.thinness,
        )

    def refined(self, turning: Turning, iterations: int) -> Turning:
        """With another w, the angles being kept."""
        kernel = refine_turning(
            self.patches,
            jnp.asarray(turning.kernel),
            jnp.asarray(turning.angles),
            turning.inverse_square_of_focal_length,
            self.positions,
            support=self.support,
            iterations=iterations,
            noise_variance=self.noise_variance,
            first_noise_variance=self.first_noise_variance,
            image_softness_std=self.softness_std,
            thinness=self.thinness,
        )
        return dataclasses.replace(turning, kernel=np.asarray(kernel))

    def descended(self, turning: Turning, descents: int) -> Turning:
        """With other coefficients and another perspective, w being kept: by L-BFGS."""
        if descents == 0:
            return turning

        def moved(numbers: np.ndarray) -> Turning:
            """All numbers are pixels by which a corner moves."""
            return dataclasses.replace(turning, coefficients=numbers[:-1], perspective=numbers[-1] / turning.reach)

        def evidence(numbers: np.ndarray) -> tuple[float, np.ndarray]:
            value, (slope, perspective) = self._evidence_and_slope(moved(numbers))
            return float(value), np.append(slope, perspective / (turning.reach * turning.corner**2)).astype(np.float64)

        start = np.append(turning.coefficients, turning.perspective * turning.reach)
        bounds = [(None, None)] * len(turning.coefficients) + [(0.0, _MOST_PERSPECTIVE * turning.reach)]
        options = {"maxiter": descents, "maxfun": 2 * descents}
        found = scipy.optimize.minimize(evidence, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        return moved(found.x)

    def evidence(self, turning: Turning) -> float:
        """F per pixel."""
        return float(self._evidence_and_slope(turning.of_degree(max(1, _degree(len(turning.coefficients)))))[0])

    def _evidence_and_slope(self, turning: Turning) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return evidence_and_slope(
            self.patches,
            jnp.asarray(turning.kernel),
            jnp.asarray(turning.coefficients, jnp.float32),
            jnp.asarray(turning.inverse_square_of_focal_length, jnp.float32),
            jnp.asarray(turning.basis(_degree(len(turning.coefficients)))),
            self.positions,
            noise_variance=self.noise_variance,
            image_softness_std=self.softness_std,
        )


def _degree(count: int) -> int:
    """The degree of a polynomial of two variables without a constant that has so many coefficients."""
    return next(degree for degree in itertools.count() if (degree + 1) * (degree + 2) // 2 - 1 >= count)


def _reach(kernel: np.ndarray) -> float:
    """How far from its centre a kernel reaches, faint parts left out; at least a pixel."""
    places = np.argwhere(kernel > 0.05 * kernel.max())
    return max(1.0, float(np.abs(places - np.array(kernel.shape) // 2).max()))


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
