"""The classical kernel estimate: guesses coarse to fine, the likeliest of them refined, its support grown as needed."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from jaxdeblur.classical import kernel_l0, variational
from jaxdeblur.config import InitialiserConfig
from jaxdeblur.operators.kernels import centre_kernel, crop_kernel, pad_kernel, resize_kernel

_FIRST_SIZE_SHARE = 1 / 8
_SMALLEST_FIRST_SIZE, _LARGEST_FIRST_SIZE = 31, 85
_LARGEST_SIZE_SHARE = 1 / 3
_GROWTH = 1.45
# More than this share of the mass within so many pixels of the border: the kernel may go on beyond it.
_BORDER_MASS, _BORDER_WIDTH = 0.01, 2
_SATURATED = 0.98
# What the refined kernel still holds below this share of its peak, and islands below that mass, is noise.
_FINAL_THRESHOLD, _FINAL_ISLAND = 0.04, 0.05
# Room left around the kernel when its support is drawn in, as a share of its extent.
_MARGIN = 0.25
_TIGHT_SHARES = (0.25, 0.35, 0.5, 0.7)


@dataclasses.dataclass(frozen=True)
class KernelEstimate:
    """A classical kernel estimate and how it came about.

    Attributes:
      kernel: ``[h, h]``, non-negative, summing to one, its mass centred.
      negative_log_evidences: of each guess, ``F(k)`` per pixel at the scale where they were first compared; those with the
        lowest went on.
      touches_border: whether the kernel still reaches the border of the largest support there is room for.
    """

    kernel: np.ndarray
    negative_log_evidences: tuple[float, ...]
    touches_border: bool


def informative_crop(blurry: np.ndarray, side: int) -> tuple[slice, slice]:
    """The window of at most ``side`` pixels a side with most gradients, clipped pixels not counted.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      side: in pixels.

    Returns:
      Row and column slices.
    """
    height, width = blurry.shape
    rows, columns = min(side, height), min(side, width)
    if (rows, columns) == (height, width):
        return slice(0, height), slice(0, width)
    down, across = np.gradient(blurry)
    # Square roots: many moderate edges say more about a kernel than a few strong ones.
    strength = np.sqrt(np.hypot(down, across))
    strength[scipy.ndimage.maximum_filter(blurry, size=9) >= _SATURATED] = 0.0
    total = np.pad(np.cumsum(np.cumsum(strength, axis=0), axis=1), ((1, 0), (1, 0)))
    sums = total[rows:, columns:] - total[:-rows, columns:] - total[rows:, :-columns] + total[:-rows, :-columns]
    top, left = np.unravel_index(np.argmax(sums), sums.shape)
    return slice(int(top), int(top) + rows), slice(int(left), int(left) + columns)


def first_kernel_size(shape: tuple[int, int]) -> int:
    """The odd support tried first when the kernel's size is not known, for an image of ``shape``."""
    side = round(min(shape) * _FIRST_SIZE_SHARE)
    return min(_odd(min(max(side, _SMALLEST_FIRST_SIZE), _LARGEST_FIRST_SIZE)), _largest_size(shape))


def estimate_kernel(
    blurry: np.ndarray,
    config: InitialiserConfig,
    *,
    kernel_size: int | None = None,
    noise_std: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> KernelEstimate:
    """Estimates the blur kernel of one grey image.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      config: see :class:`~jaxdeblur.config.InitialiserConfig`.
      kernel_size: odd side of the support, or None: it then starts from :func:`first_kernel_size`, grows for as long as mass
        touches its border, and is drawn in to what the kernel needs.
      noise_std: of the image, in [0, 1] units.
      progress: called with (pyramid levels done, levels in all).

    Returns:
      The estimate; the kernel's side is ``kernel_size`` if it was given.
    """
    size = kernel_size or first_kernel_size(blurry.shape)
    while True:
        kernel, whole, negative_log_evidences = _estimate(blurry, config, size, noise_std, progress)
        touching = whole and _border_mass(kernel) > _BORDER_MASS
        larger = min(_odd(round(size * _GROWTH)), _largest_size(blurry.shape))
        if kernel_size is not None:
            kernel = np.asarray(pad_kernel(jnp.asarray(kernel), (kernel_size, kernel_size)))
        if kernel_size is not None or not touching or larger <= size:
            return KernelEstimate(kernel, negative_log_evidences, touching)
        size = larger


def _estimate(
    blurry: np.ndarray,
    config: InitialiserConfig,
    kernel_size: int,
    noise_std: float,
    progress: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, bool, tuple[float, ...]]:
    """The kernel, on at most the given support; whether it needs all of that; and the guesses' negative log evidences."""
    levels = kernel_l0.pyramid(blurry.shape, kernel_size)
    judged_at = max((i for i, level in enumerate(levels) if math.prod(level.shape) <= config.guess_side**2), default=0)
    noise = variational.noise_variance(noise_std, smallest=config.noise_variance)

    def refine(image: jax.Array, kernels: list[jax.Array], iterations: int) -> list[jax.Array]:
        if iterations == 0:  # a program that does nothing takes as long to compile as any other
            return kernels
        settings = {
            "blurry": image,
            "iterations": iterations,
            "noise_variance": noise,
            "first_noise_variance": noise * config.first_noise_variance / config.noise_variance,
            "image_softness_std": config.image_softness_std,
        }
        return _side_by_side(variational.refine_kernel, [settings | {"kernel": kernel} for kernel in kernels])

    def judge(image: jax.Array, kernels: list[jax.Array]) -> list[float]:
        settings = {"blurry": image, "noise_variance": noise, "image_softness_std": config.image_softness_std}
        calls = [settings | {"kernel": kernel} for kernel in kernels]
        return [float(np.nan_to_num(value, nan=np.inf)) for value in _side_by_side(variational.negative_log_evidence, calls)]

    total = len(levels) + 1

    def report(done: int) -> None:
        if progress is not None:
            progress(done, total)

    # The guesses, up to the level where they are told apart.
    guesses: list[jax.Array] = []
    for share in config.support_shares:
        sides = [_share_of(level.kernel_size, share) for level in levels]
        batch = [kernel_l0.first_kernel(sides[0])] * len(config.gradient_weights)
        for index, level in enumerate(levels[: judged_at + 1]):
            if index:
                ratio = level.scale / levels[index - 1].scale
                batch = [resize_kernel(guess, (sides[index], sides[index]), scale=ratio) for guess in batch]
            image = _resize(blurry, level)
            batch = _side_by_side(
                kernel_l0.estimate_level,
                [
                    {
                        "blurry": image,
                        "kernel": guess,
                        "weight": kernel_l0.weight_after(weight, index * config.level_iterations),
                        "ridge": config.kernel_ridge,
                        "iterations": config.level_iterations,
                    }
                    for guess, weight in zip(batch, config.gradient_weights, strict=True)
                ],
            )
            if share == config.support_shares[-1]:
                report(index)
        side = levels[judged_at].kernel_size
        guesses += [pad_kernel(guess, (side, side)) for guess in batch]

    # Rounds of refinement and judgement.
    image = _resize(blurry, levels[judged_at])
    guesses = refine(image, guesses, config.guess_iterations)
    negative_log_evidences = judge(image, guesses)
    finalists = [guesses[index] for index in np.argsort(negative_log_evidences)[: config.num_finalists]]
    if config.finalist_iterations > 0:
        finalists = refine(image, finalists, config.finalist_iterations)
        best = finalists[int(np.argmin(judge(image, finalists)))]
    else:
        best = finalists[0]  # nothing has changed since they were judged
    # Support that the kernel does not need fills with spurious kernel mass, which spoils the image.
    best = _clean(best)
    shares = _shares_that_hold(np.asarray(best))

    def draw_in(level: kernel_l0.Level, attempt: Callable[[int], jax.Array]) -> jax.Array:
        """What ``attempt`` makes on the narrowest support whose border it does not reach; narrower ones are given up."""
        while True:
            kernel = attempt(_share_of(level.kernel_size, shares[0]))
            if len(shares) == 1 or _border_mass(np.asarray(_clean(kernel)), width=1) <= _BORDER_MASS:
                return kernel
            shares.pop(0)

    def refine_best(side: int) -> jax.Array:
        return refine(image, [crop_kernel(best, (side, side))], config.refine_iterations)[0]

    kernel = draw_in(levels[judged_at], refine_best)
    report(judged_at + 1)

    for index in range(judged_at + 1, len(levels)):
        level = levels[index]
        image = _resize(blurry, level)
        seen = image[informative_crop(np.asarray(image), config.refine_side)]
        ratio, coarse = level.scale / levels[index - 1].scale, _clean(kernel)

        def refine_enlarged(side: int, seen: jax.Array = seen, coarse: jax.Array = coarse, ratio: float = ratio) -> jax.Array:
            enlarged = resize_kernel(coarse, (side, side), scale=ratio)
            if config.fine_iterations == 0:
                return enlarged
            # A crop that says too little about a large kernel can make it worse.
            pair = [enlarged, *refine(seen, [enlarged], config.fine_iterations)]
            return pair[int(np.argmin(judge(seen, pair)))]

        kernel = draw_in(level, refine_enlarged)
        report(index + 1)
    report(total)
    return np.asarray(_clean(kernel)), len(shares) == 1, tuple(negative_log_evidences)


def _side_by_side(program: jax.stages.Wrapped, calls: Sequence[dict[str, Any]]) -> list[jax.Array]:
    """``program(**call)`` for every call, in order: on CPUs, where such a program keeps one core busy, several at a time."""
    if len(calls) == 1 or jax.default_backend() != "cpu":
        return [program(**call) for call in calls]
    program.lower(**calls[0]).compile()  # kept by jax: otherwise every thread would compile it anew
    with ThreadPoolExecutor(min(len(calls), os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda call: jax.block_until_ready(program(**call)), calls))


@jax.jit
def _clean(kernel: jax.Array) -> jax.Array:
    kernel = kernel_l0.drop_islands(kernel_l0.drop_faint(kernel, _FINAL_THRESHOLD), smallest=_FINAL_ISLAND)
    return centre_kernel(kernel, subpixel=False)


def _resize(blurry: np.ndarray, level: kernel_l0.Level) -> jax.Array:
    image = jnp.asarray(blurry, jnp.float32)
    return image if level.shape == blurry.shape else jax.image.resize(image, level.shape, "linear", antialias=True)


def _border_mass(kernel: np.ndarray, *, width: int = _BORDER_WIDTH) -> float:
    inner = slice(width, -width)
    return float(kernel.sum() - kernel[inner, inner].sum())


def _shares_that_hold(kernel: np.ndarray) -> list[float]:
    """The shares of the support (few, because each is a program to compile) that hold the kernel, the smallest first."""
    middle = kernel.shape[0] // 2
    reach = np.abs(np.argwhere(kernel > 0.0) - middle).max()
    wanted = 2 * math.ceil(reach * (1.0 + _MARGIN)) + 1
    return [share for share in _TIGHT_SHARES if _share_of(kernel.shape[0], share) >= wanted] + [1.0]


def _share_of(size: int, share: float) -> int:
    """That share of an odd side, odd again."""
    return size if share == 1.0 else min(max(_odd(round(size * share)), kernel_l0.SMALLEST_SIZE), size)


def _largest_size(shape: tuple[int, int]) -> int:
    return _odd(int(min(shape) * _LARGEST_SIZE_SHARE) - 1)


def _odd(size: int) -> int:
    return size if size % 2 else size + 1
