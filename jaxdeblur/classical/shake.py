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

Where the blur varies, the kernel that is estimated for the whole image is often like none that it has, and nothing leads from
it to the right ones. So estimates from windows begin too (:mod:`jaxdeblur.classical.windows`), each as the kernel of its
window's middle; each finds its own turn, and fewer and fewer of them, the likeliest, go on.

All are found by marginal likelihood, see :mod:`jaxdeblur.classical.variational`: the image is cut into patches within which the
kernel hardly varies, each has its own sharp image and variances, and F is summed over them. The polynomial and 1/f² descend the
minimum of F over images itself, because alternation would hardly move them; w follows by alternation.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from jaxdeblur.classical import variational as vb
from jaxdeblur.classical.compiled import compile_side_by_side, reproducible_jit, side_by_side
from jaxdeblur.classical.initialiser import first_kernel_size
from jaxdeblur.classical.kernel_l0 import drop_faint, drop_islands
from jaxdeblur.classical.windows import cut_windows, local_kernels
from jaxdeblur.config import InitialiserConfig, ShakeConfig
from jaxdeblur.operators import blur
from jaxdeblur.operators.filter_flow import patch_middles
from jaxdeblur.operators.kernels import centring_shift, normalise_kernel, pad_kernel, resize_kernel

# Room around the uniform kernel for shifts that it does not have, as a share of its side.
_ROOM = 1.2
# What the kernels hold below this share of their peak, and islands below that mass, is noise.
_FAINT, _ISLAND = 0.04, 0.05
# The share of all kernels to begin with that have room for all their mass, beside that of the whole image.
_EXTENTS_HELD = 0.8
# Beside the support, as a share of it: kernels off the middle are as much wider.
_TURN_ROOM = 0.2
_MOST_NODES = 20
# Sides of windows, in extents of the kernel of the whole image, at least.
_ROOM_IN_WINDOWS = 5
# In F per pixel at the first scale, by the rounds there: with less a kernel is taken to full size as it began.
_LITTLE_GAINED = 0.02
# Image steps after which F is taken: where estimates are compared, and where one descends, which has a slope sooner.
_SETTLING, _SETTLING_IN_DESCENT = 10, 6
# Of what turns add to the shifts in the corners, in standard deviations of the shifts. With a lens of 35 mm before a frame of
# 36 x 24, turns as large about all three axes make 0.45.
_MOST_TURN = 1.0
# Of perspective, at the corners: that of a lens of 20 mm before a frame of 36 x 24.
_MOST_PERSPECTIVE = 1.2


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
    neighbours = tuple(itertools.product((0, 1), (0, 1)))

    # Light by light: the matrices of _interpolations would take gigabytes for the large kernels of large images.
    def turned(position: jax.Array) -> jax.Array:
        targets = jnp.stack([of_axis[0] for of_axis in _turned_shifts(angles, perspective, position[None])])
        whole = jnp.floor(targets)
        parts = targets - whole
        found = jnp.zeros_like(kernel)
        for neighbour in neighbours:
            shares = jnp.prod(jnp.where(jnp.array(neighbour)[:, None] == 1, parts, 1.0 - parts), axis=0)
            row, column = (whole + jnp.array(neighbour)[:, None]).astype(int)
            inside = (row >= 0) & (row < kernel.shape[0]) & (column >= 0) & (column < kernel.shape[1])
            found = found.at[row, column].add(jnp.where(inside, shares * kernel.ravel(), 0.0), mode="clip")
        return found

    return jax.lax.map(turned, positions)


def _turned_shifts(angles: jax.Array, perspective: jax.Array | float, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``[P, h w]`` each: the row and the column of the kernel at p to which the light goes that w throws to each shift."""
    height, width = angles.shape
    rows, columns = (grid.ravel() for grid in jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))
    flat = angles.ravel()
    down, across = positions[:, :1], positions[:, 1:]
    along = perspective * (down * (rows - height // 2) + across * (columns - width // 2))
    return rows - flat * across + along * down, columns + flat * down + along * across


def _interpolations(angles: jax.Array, perspective: jax.Array | float, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``[P, h, h w]`` and ``[P, w, h w]``: which share of the mass at each shift goes to each row and to each column."""

    def shares(targets: jax.Array, places: jax.Array) -> jax.Array:
        return _spline(targets[:, None, :] - places[None, :, None])

    to_row, to_column = _turned_shifts(angles, perspective, positions)
    return shares(to_row, jnp.arange(angles.shape[0])), shares(to_column, jnp.arange(angles.shape[1]))


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
    interpolations = _interpolations(angles, perspective, positions)

    def whole_kernels(kernel: jax.Array) -> jax.Array:
        return jax.vmap(lambda own: blur.blur_full(own, soft))(_kernels(kernel, *interpolations))

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
    settling: jax.Array | int,
    noise_variance: jax.Array | float,
    image_softness_std: jax.Array | float,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """F per pixel, the mean over patches of its minimum over images and variances, and its slope in θ's coefficients and 1/f².

    At that minimum the slope is the partial one, with images and variances as they are.

    Args:
      patches: ``[P, H, W]`` in [0, 1].
      kernel: w, ``[h, w]``, non-negative, summing to one.
      coefficients: ``[n]`` of ``θ(s) = Σ_j c_j φ_j(s)``.
      perspective: 1/f², in 1/pixels².
      basis: φ, ``[n, h, w]``.
      positions: ``[P, 2]``.
      settling: image steps after which F is taken.
      noise_variance: ν.
      image_softness_std: of g, in pixels.

    Returns:
      A scalar and the patches' own, ``[P]``; the slope, ``[n]`` and a scalar.
    """
    chex.assert_rank([patches, kernel, coefficients, basis, positions], [3, 2, 1, 3, 2])
    observed, soft = _observe(patches, vb.judging_c(noise_variance), image_softness_std)

    def mean_evidence(coefficients: jax.Array, perspective: jax.Array) -> tuple[jax.Array, jax.Array]:
        angles = jnp.tensordot(coefficients, basis, 1)
        kernels = _kernels(kernel, *_interpolations(angles, perspective, positions))
        # What has left the support must not be missed as light.
        kernels = kernels / kernels.sum((1, 2), keepdims=True)
        whole = jax.vmap(lambda own: blur.blur_full(own, soft))(kernels)
        settled = jax.vmap(vb.settle, (0, 0, None, None))(observed, jax.lax.stop_gradient(whole), noise_variance, settling)
        sharp, variance = jax.lax.stop_gradient(settled)
        evidences = jax.vmap(vb.free_energy, (0, 0, 0, 0, None))(observed, whole, sharp, variance, noise_variance)
        return evidences.mean(), evidences

    return jax.value_and_grad(mean_evidence, (0, 1), has_aux=True)(coefficients, perspective)


@dataclasses.dataclass(frozen=True, eq=False)
class Turning:
    """A kernel, the camera's angle at each of its shifts, and its perspective.

    Attributes:
      kernel: w, ``[h, h]``, non-negative, summing to one; its centre pixel is no shift.
      coefficients: ``[n]`` of θ in monomials of the shift, in pixels by which a corner of the image moves.
      reach: of the kernel in pixels: a shift of this is one to the monomials.
      corner: how many pixels the image's corner is from its middle.
      perspective: by which share of a shift towards a corner that corner moves further than the middle.
      origin: rows and columns in pixels from the image's middle to the place whose kernel w is. Turning about another place
        differs by a shift of w alone.
    """

    kernel: np.ndarray
    coefficients: np.ndarray
    reach: float
    corner: float
    perspective: float = 0.0
    origin: tuple[float, float] = (0.0, 0.0)

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

    @property
    def corner_std(self) -> float:
        """By how much a corner's kernel differs from w: standard deviation in pixels of what the turn adds to the shifts."""
        # Half of the kernel's variance lies towards one of the corners, in the mean.
        return float(np.sqrt((self.corner * self.roll_std) ** 2 + (self.perspective * self.shift_std) ** 2 / 2))

    @property
    def shift_std(self) -> float:
        """Standard deviation of the shifts over the exposure, in pixels."""
        shifts = np.stack(np.meshgrid(*[np.arange(n) - n // 2 for n in self.kernel.shape], indexing="ij"))
        means = np.sum(self.kernel * shifts, axis=(1, 2), keepdims=True)
        return float(np.sqrt(np.sum(self.kernel * (shifts - means) ** 2)))

    @property
    def is_plausible(self) -> bool:
        """Whether it turns no more than a hand does that also shakes."""
        return self.corner_std <= _MOST_TURN * self.shift_std

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
            origin=(self.origin[0] * scale, self.origin[1] * scale),
        )

    def cleaned(self) -> Turning:
        """The same without what is faint or isolated in the kernel, which is noise, and pulls at the angle's mean."""
        kernel = drop_islands(drop_faint(jnp.asarray(self.kernel), _FAINT), smallest=_ISLAND)
        return dataclasses.replace(self, kernel=np.asarray(normalise_kernel(kernel)))

    def field(self, shape: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
        """``[*grid, h', h']``: the kernels, each summing to one, in the middles of the equal parts of an image of ``shape``."""
        # Room for what the turn moves beyond the support, and for the kernel to be put in the middle.
        farthest = self.corner + math.hypot(*self.origin)
        turn = np.abs(self.angles[self.kernel > 0.0]).max() * farthest
        room = math.ceil(turn + self.perspective * farthest / self.corner * len(self.kernel) / 2) + 1
        kernel, angles = np.pad(self.kernel, room), np.pad(self.angles, room)
        shift = np.round(np.asarray(centring_shift(jnp.asarray(kernel), subpixel=False))).astype(int)
        kernel, angles = (np.roll(array, shift, (0, 1)) for array in (kernel, angles))
        middles = [patch_middles(n, count) - (n - 1) / 2 for n, count in zip(shape, grid, strict=True)]
        places = np.stack(np.meshgrid(*middles, indexing="ij"), axis=-1).reshape(-1, 2)
        positions = jnp.asarray(places - np.array(self.origin), jnp.float32)
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
        it was not clear that the camera turned.
      gain: by how much the negative log evidence per pixel is lower than with the one kernel of the whole image, refined alike.
      roll_std: standard deviation of the camera's angle over the exposure, in degrees.
      corner_std: standard deviation in pixels of what the turn adds to the shifts in the image's corners.
      agreement: how well the parts of the image agree about the turn, at most 1, see :func:`_agreement`.
      clear: whether gain, corner_std and agreement are as large as :class:`~jaxdeblur.config.ShakeConfig` demands.
    """

    kernels: np.ndarray | None
    gain: float
    roll_std: float
    corner_std: float
    agreement: float
    clear: bool


def estimate_shake(
    blurry: np.ndarray,
    kernel: np.ndarray,
    config: ShakeConfig,
    initialiser: InitialiserConfig,
    *,
    noise_std: float,
    softness_std: float,
    only_if_clear: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ShakeEstimate:
    """Estimates how the kernel of a grey image varies, starting from one for the whole of it and from kernels of windows.

    From each, the polynomial starts from no turn. At a reduced size first, it and the kernel take turns in being refined, for
    the likeliest starts, of which a third is left halfway, and the likeliest result is taken to full size. At the reduced
    size the kernel of the whole image alone is refined as often on the same patches and the same support: what is gained over
    that, how far the corners move, and how well the patches agree, tell whether the camera turned.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      kernel: ``[h, h]``, non-negative, summing to one.
      config: see :class:`~jaxdeblur.config.ShakeConfig`.
      initialiser: of the variational model, see :class:`~jaxdeblur.config.InitialiserConfig`.
      noise_std: of the image, in [0, 1] units.
      softness_std: of the sharp image, in pixels.
      only_if_clear: the estimate ends after the rounds at the first scale, without kernels, unless they show clearly that the
        camera turned.
      progress: called with (rounds done, rounds in all).

    Returns:
      The estimate.
    """
    reduced = min(1.0, config.largest_side / max(blurry.shape), config.largest_kernel / _extent(kernel))
    image, corner = _reduced(blurry, reduced), reduced * math.hypot(*blurry.shape) / 2
    starts, num_windows = _starts(image, _reduced_kernel(kernel, reduced), corner, config, initialiser, noise_std, progress)
    levels = {
        share: _Level.of(
            _reduced(image, share), share, share * reduced, starts[0].kernel, config, initialiser, noise_std, softness_std
        )
        for share in config.scales
    }
    rounds = [
        _Round(levels[share], degree, descents, iterations)
        for share, degree, descents, iterations in zip(
            config.scales, config.degrees, config.descents, config.iterations, strict=True
        )
    ]
    compile_side_by_side([program for one in rounds for program in one.programs])
    coarse = [one for one in rounds if one.level is rounds[0].level]
    fine = rounds[len(coarse) :]
    done = itertools.count(num_windows + 1)

    def report() -> None:
        if progress is not None:
            progress(next(done), num_windows + len(rounds))

    start, varying, gain = _coarse(starts, coarse, config.num_starts, report)
    level = coarse[0].level
    corner_std = varying.corner_std / (level.share * reduced)
    agreement = _agreement(level, varying)
    large = gain >= config.smallest_gain and reduced * corner_std >= config.smallest_corner_std
    clear = large and agreement >= config.smallest_agreement
    told = ShakeEstimate(None, gain, math.degrees(varying.roll_std), corner_std, agreement, clear)
    if only_if_clear and not clear:
        return told
    if fine:
        finer = _fine(start, varying, coarse[-1], fine, report)
        varying = finer if finer.is_plausible else fine[-1].level.fitted(varying, share=level.share)
    scale = rounds[-1].level.share * reduced
    if scale < 1.0:
        varying = varying.resized(_odd(math.ceil(len(varying.kernel) / scale)), 1.0 / scale)
    # Parts smaller than their kernels cost much and say little.
    spacing = max(config.node_spacing, 2 * len(kernel), max(blurry.shape) / _MOST_NODES)
    rows, columns = (max(1, round(n / spacing)) for n in blurry.shape)
    field = varying.field((blurry.shape[0], blurry.shape[1]), (rows, columns))
    return dataclasses.replace(told, kernels=field, roll_std=math.degrees(varying.roll_std))


def _starts(
    image: np.ndarray,
    kernel: np.ndarray,
    corner: float,
    config: ShakeConfig,
    initialiser: InitialiserConfig,
    noise_std: float,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Turning], int]:
    """Kernels to begin with, on one support, none of them turning yet: that of the whole image, then those of windows.

    And how many windows there were.
    """
    extent = _extent(kernel)
    side = max(config.window_side, _ROOM_IN_WINDOWS * extent)
    found = local_kernels(
        image,
        initialiser,
        side=side,
        most=config.num_windows,
        each=config.kernels_per_window,
        kernel_size=_odd(max(first_kernel_size((side, side)), math.ceil(_ROOM * extent))),
        noise_std=noise_std,
        progress=progress and (lambda done, total: progress(done, total + len(config.scales))),
    )
    kernels = [(kernel, (0.0, 0.0))]
    kernels += [(own, (float(one.middle[0]), float(one.middle[1]))) for one in found for own in one.kernels]
    # A wrong one may fill its support, and all others would have to be computed on as large a one.
    extent = max(extent, _odd(int(np.quantile([_extent(kernel) for kernel, _ in kernels], _EXTENTS_HELD))))
    starts = []
    for kernel, origin in kernels:
        held = np.asarray(vb.in_the_middle(jnp.asarray(kernel), (extent, extent)))
        starts.append(Turning(held, np.zeros(0), _reach(held), corner, origin=origin))
    return starts, len(found)


def _coarse(
    starts: Sequence[Turning], rounds: Sequence[_Round], num_starts: int, report: Callable[[], None]
) -> tuple[Turning, Turning, float]:
    """The start that leads to the likeliest estimate, that estimate, and its gain.

    A first descent alone tells little of where a start leads to, so the most promising ``num_starts`` of them go through half
    of the rounds, and the best third of these through the others; those that turn more than a hand does come last. The gain is
    counted from the first start's kernel without a turn, refined alike, which is the estimate where no other is plausible.
    """
    level, half = rounds[0].level, len(rounds) // 2
    brief = dataclasses.replace(rounds[0], descents=rounds[0].descents // 2)
    still = level.fitted(starts[0])

    def valued(call: Callable[[], Turning]) -> tuple[Turning, float]:
        turning = call()
        return turning, level.evidence(turning)

    calls: list[Callable[[], Turning]] = [functools.partial(brief.descended, level.fitted(start)) for start in starts]
    found = dict(enumerate(side_by_side(valued, calls)))

    def ranked() -> list[int]:
        return sorted(found, key=lambda number: (not found[number][0].is_plausible, found[number][1]))

    for part, count in ((rounds[:half], num_starts), (rounds[half:], math.ceil(num_starts / 3))):
        numbers = ranked()[:count]
        without_turns = [dataclasses.replace(one, descents=0) for one in part]
        calls = [
            functools.partial(_through, part, found[number][0], None if index else report)
            for index, number in enumerate(numbers)
        ]
        calls.append(functools.partial(_through, without_turns, still, None))
        *improved, (still, without) = side_by_side(valued, calls)
        found = dict(zip(numbers, improved, strict=True))
    best = ranked()[0]
    varying, evidence = found[best]
    return (starts[best], varying, without - evidence) if varying.is_plausible else (starts[0], still, 0.0)


def _agreement(level: _Level, turning: Turning) -> float:
    """How well the patches agree about a turn: ``Σ_p g_p / Σ_p |g_p|``, g_p being by how much it lowers F of patch p.

    1 if it explains every patch better than the same kernel without a turn. A camera that turned is seen everywhere. Where it
    did not turn, a turn that makes up for faults of the kernel in some patches does harm in others.
    """
    gains = level.evidences(dataclasses.replace(turning, coefficients=np.zeros(0), perspective=0.0)) - level.evidences(turning)
    return float(gains.sum() / max(np.abs(gains).sum(), 1e-12))


def _through(rounds: Sequence[_Round], turning: Turning, report: Callable[[], None] | None) -> Turning:
    """An estimate after further rounds, of which each is reported."""
    for one in rounds:
        turning = one.refined(one.descended(turning))
        if report is not None:
            report()
    return turning


def _fine(start: Turning, varying: Turning, last: _Round, rounds: Sequence[_Round], report: Callable[[], None]) -> Turning:
    """Takes an estimate to larger scales: with the kernel that it began with, if that has gained little since.

    The reduced kernel has lost what the first one holds of small things. At full size F tells the two apart no more: it prefers
    kernels of single pixels with gaps, as they are found there.
    """
    level = last.level
    kept = last.descended(dataclasses.replace(varying, kernel=level.fitted(start).kernel))
    keeps = level.evidence(kept) - level.evidence(varying) <= _LITTLE_GAINED
    found = kept if keeps else varying
    for one in rounds:
        found = one.level.fitted(found, share=level.share)
        if keeps:
            # The angles too: with a kernel that was found at that scale F is smooth enough in them.
            kernel = one.level.fitted(start).kernel if level is last.level else found.kernel
            found = one.descended(dataclasses.replace(found, kernel=kernel))
        found, level = one.refined(found), one.level
        report()
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Round:
    """A turn of the angles and then the kernel, at one scale; the numbers are those of ShakeConfig."""

    level: _Level
    degree: int
    descents: int
    iterations: int

    def descended(self, turning: Turning) -> Turning:
        """With other angles."""
        return self.level.descended(turning.of_degree(self.degree), self.descents)

    def refined(self, turning: Turning) -> Turning:
        """With another kernel, cleaned."""
        return self.level.refined(turning, self.iterations).cleaned()

    @property
    def programs(self) -> list[tuple[jax.stages.Wrapped, dict[str, Any]]]:
        """That of its descents and that of its refinements, with arguments of their shapes."""
        turning = Turning(np.ones((self.level.size,) * 2, np.float32), np.zeros(0), 1.0, 1.0)
        return [
            (evidence_and_slope, self.level.evidence_arguments(turning, _SETTLING)),
            (refine_turning, self.level.refining_arguments(turning, 1)),
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class _Level:
    """The variational model of an image at one scale.

    Attributes:
      share: of the size at which the estimate ends, which this is.
      degree: the highest of a polynomial: all have as many coefficients, so that one program serves all.
      size: side of the kernel's support there.
      support: ``[size, size]``, one where the kernel may have mass.
      patches: ``[P, H, W]``.
      positions: ``[P, 2]``.
      noise_variance: ν where its annealing ends.
      first_noise_variance: and where it begins.
      softness_std: of the sharp image there, in pixels.
      thinness: weight of the prior on w.
    """

    share: float
    degree: int
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
        image: np.ndarray,
        share: float,
        scale: float,
        kernel: np.ndarray,
        config: ShakeConfig,
        initialiser: InitialiserConfig,
        noise_std: float,
        softness_std: float,
    ) -> _Level:
        inner = _odd(math.ceil(kernel.shape[0] * share * _ROOM))
        # Beside the support there is room for what turns move out of it.
        size = inner + 2 * math.ceil(_TURN_ROOM * inner)
        patches, positions = cut_windows(image, max(round(config.patch_side * share), 2 * inner), config.num_patches)
        noise = vb.noise_variance(noise_std, smallest=initialiser.noise_variance)
        return cls(
            share,
            max(config.degrees),
            size,
            pad_kernel(jnp.ones((inner, inner)), (size, size)),
            jnp.asarray(patches),
            jnp.asarray(positions),
            noise,
            initialiser.first_noise_variance / initialiser.noise_variance * noise,
            vb.softness_at(scale, softness_std),
            initialiser.thinness,
        )

    def fitted(self, turning: Turning, *, share: float = 1.0) -> Turning:
        """One of a level of ``share`` at this scale, on this support."""
        return turning.resized(self.size, self.share / share)

    def refined(self, turning: Turning, iterations: int) -> Turning:
        """With another w, the angles being kept."""
        return dataclasses.replace(turning, kernel=np.asarray(refine_turning(**self.refining_arguments(turning, iterations))))

    def refining_arguments(self, turning: Turning, iterations: int) -> dict[str, Any]:
        """Those of :func:`refine_turning`."""
        return {
            "patches": self.patches,
            "kernel": jnp.asarray(turning.kernel),
            "angles": jnp.asarray(turning.angles),
            "perspective": turning.inverse_square_of_focal_length,
            "positions": self.positions - jnp.asarray(turning.origin, jnp.float32),
            "support": self.support,
            "iterations": iterations,
            "noise_variance": self.noise_variance,
            "first_noise_variance": self.first_noise_variance,
            "image_softness_std": self.softness_std,
            "thinness": self.thinness,
        }

    def descended(self, turning: Turning, descents: int) -> Turning:
        """With other coefficients and another perspective, w being kept: by L-BFGS."""
        if descents == 0:
            return turning

        def moved(numbers: np.ndarray) -> Turning:
            """All numbers are pixels by which a corner moves."""
            return dataclasses.replace(turning, coefficients=numbers[:-1], perspective=numbers[-1] / turning.reach)

        def evidence(numbers: np.ndarray) -> tuple[float, np.ndarray]:
            arguments = self.evidence_arguments(moved(numbers), _SETTLING_IN_DESCENT)
            (value, _), (slope, perspective) = evidence_and_slope(**arguments)
            slope = slope[: len(turning.coefficients)]
            return float(value), np.append(slope, perspective / (turning.reach * turning.corner**2)).astype(np.float64)

        start = np.append(turning.coefficients, turning.perspective * turning.reach)
        bounds = [(None, None)] * len(turning.coefficients) + [(0.0, _MOST_PERSPECTIVE * turning.reach)]
        options = {"maxiter": descents, "maxfun": 2 * descents}
        found = scipy.optimize.minimize(evidence, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        return moved(found.x)

    def evidence(self, turning: Turning) -> float:
        """F per pixel."""
        return float(self.evidences(turning).mean())

    def evidences(self, turning: Turning) -> np.ndarray:
        """F per pixel of each patch, ``[P]``."""
        (_, evidences), _ = evidence_and_slope(**self.evidence_arguments(turning, _SETTLING))
        return np.asarray(evidences, np.float64)

    def evidence_arguments(self, turning: Turning, settling: int) -> dict[str, Any]:
        """Those of :func:`evidence_and_slope`."""
        turning = turning.of_degree(self.degree)
        return {
            "patches": self.patches,
            "kernel": jnp.asarray(turning.kernel),
            "coefficients": jnp.asarray(turning.coefficients, jnp.float32),
            "perspective": jnp.asarray(turning.inverse_square_of_focal_length, jnp.float32),
            "basis": jnp.asarray(turning.basis(self.degree)),
            "positions": self.positions - jnp.asarray(turning.origin, jnp.float32),
            "settling": settling,
            "noise_variance": self.noise_variance,
            "image_softness_std": self.softness_std,
        }


def _degree(count: int) -> int:
    """The degree of a polynomial of two variables without a constant that has so many coefficients."""
    return next(degree for degree in itertools.count() if (degree + 1) * (degree + 2) // 2 - 1 >= count)


def _reach(kernel: np.ndarray) -> float:
    """How far from its centre a kernel reaches, faint parts left out; at least a pixel."""
    places = np.argwhere(kernel > 0.05 * kernel.max())
    return max(1.0, float(np.abs(places - np.array(kernel.shape) // 2).max()))


def _reduced(image: np.ndarray, scale: float) -> np.ndarray:
    shape = (round(image.shape[0] * scale), round(image.shape[1] * scale))
    return image if shape == image.shape else np.asarray(jax.image.resize(jnp.asarray(image), shape, "linear", antialias=True))


def _reduced_kernel(kernel: np.ndarray, scale: float) -> np.ndarray:
    size = _odd(math.ceil(len(kernel) * scale))
    return kernel if scale == 1.0 else np.asarray(resize_kernel(jnp.asarray(kernel), (size, size), scale=scale))


def _extent(kernel: np.ndarray) -> int:
    """Side of the smallest odd support about the centre that holds a kernel."""
    return 1 + 2 * max(1, int(np.abs(np.argwhere(kernel > 0.0) - len(kernel) // 2).max()))


def _tight(kernels: np.ndarray) -> np.ndarray:
    """The kernels on the smallest odd support about their centre that holds all of them."""
    middle = kernels.shape[-1] // 2
    taken = np.argwhere(kernels.max((0, 1)) > 0.0)
    reach = min(middle, max(1, int(np.abs(taken - middle).max())))
    kept = slice(middle - reach, middle + reach + 1)
    return np.ascontiguousarray(kernels[..., kept, kept])


def _odd(size: int) -> int:
    return size if size % 2 else size + 1
