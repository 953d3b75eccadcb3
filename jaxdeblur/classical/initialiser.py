"""The classical kernel estimate: guesses coarse to fine, the likeliest of them refined, its support grown as needed."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from jaxdeblur.classical import descent, kernel_l0, variational
from jaxdeblur.classical.compiled import compile_side_by_side, run_side_by_side
from jaxdeblur.classical.judge import DESCENDED, descent_softness_std, ranked, score
from jaxdeblur.config import InitialiserConfig
from jaxdeblur.operators.kernels import centre_kernel, crop_kernel, pad_kernel, resize_kernel

# Rather too large than too small: a guess that has no room for the kernel is another kernel, which touches no border.
_FIRST_SIZE_SHARE = 1 / 6
_SMALLEST_FIRST_SIZE, _LARGEST_FIRST_SIZE = 43, 85
_LARGEST_SIZE_SHARE = 1 / 3
_GROWTH = 1.45
# More than this share of the mass within so many pixels of the border: the kernel may go on beyond it.
_BORDER_MASS, _BORDER_WIDTH = 0.01, 2
_SATURATED = 0.98
# Of a pixel of a reduced image that still counts as measured.
_LARGEST_CLIPPED_SHARE = 0.01
# Cosine of two kernels from which they count as one.
_SAME = 0.95
# The same for guesses that have further levels to go, from a level of so many pixels on (a square root).
_AGREEING, _AGREEING_SIDE = 0.99, 120
# What the refined kernel still holds below this share of its peak, and islands below that mass, is noise.
_FINAL_THRESHOLD, _FINAL_ISLAND = 0.02, 0.05
# Of a kernel's mass within a pixel of its peak. Kernels of shakes of 11 px or more have 0.54 of it at most, those that were
# found in photographs in place of the right ones 0.77 or more.
_UNBLURRED_SHARE = 0.65
# Of a kernel's mass in its peak alone: that of a Gaussian of 0.3 px.
_UNBLURRED_PEAK = 0.8
# Room left around the kernel when its support is drawn in, as a share of its extent.
_MARGIN = 0.25
_TIGHT_SHARES = (0.25, 0.35, 0.5, 0.7)
# In pixels, of the Gaussian that fills the gaps of a kernel before its score is descended.
_FIRST_WIDTH = 0.5
# So many kernels a side must be seen then: of less, the score descends to kernels that are worse.
_DESCENT_KERNELS = 8
# What follows the levels, variants of the kernel and the descent, counts as so many of them.
_STEPS_OF_VARIANTS, _STEPS_OF_DESCENT = 2, 3
# Square roots of the pixels of the reduced images by which a kernel is compared with guesses.
_REDUCED_SIDES = (128, 180)


@dataclasses.dataclass(frozen=True)
class KernelEstimate:
    """A classical kernel estimate and how it came about.

    Attributes:
      kernels: ``[h, h]`` by name, the best first: before and after the descent or, without one, those that were found with
        different softnesses and thinnesses; non-negative, summing to one, their mass centred.
      scores: of these, by :func:`~jaxdeblur.classical.judge.score`; NaN if there is one only.
      guess_scores: of each guess, by :func:`~jaxdeblur.classical.judge.score` at the scale where they were first compared;
        those with the lowest went on.
      touches_border: whether the kernel still reaches the border of the largest support there is room for.
    """

    kernels: dict[str, np.ndarray]
    scores: dict[str, float]
    guess_scores: tuple[float, ...]
    touches_border: bool

    @property
    def kernel(self) -> np.ndarray:
        """The best of the kernels."""
        return next(iter(self.kernels.values()))


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


def hardly_blurs(kernel: np.ndarray) -> bool:
    """Whether most of the mass of a kernel ``[h, w]`` lies within a pixel of its peak."""
    row, column = np.unravel_index(np.argmax(kernel), kernel.shape)
    near = kernel[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
    return bool(near.sum() > _UNBLURRED_SHARE * kernel.sum())


def is_sharp(kernel: np.ndarray) -> bool:
    """Whether a kernel ``[h, w]`` is next to a single pixel: its image is sharp as it is."""
    return bool(kernel.max() > _UNBLURRED_PEAK * kernel.sum())


def first_kernel_size(shape: tuple[int, int]) -> int:
    """The odd support tried first when the kernel's size is not known, for an image of ``shape``."""
    side = round(min(shape) * _FIRST_SIZE_SHARE)
    return min(_odd(min(max(side, _SMALLEST_FIRST_SIZE), _LARGEST_FIRST_SIZE)), _largest_size(shape))


def estimate_kernel(
    blurry: np.ndarray,
    config: InitialiserConfig,
    *,
    kernel_size: int | None = None,
    first_size: int | None = None,
    start: np.ndarray | None = None,
    noise_std: float = 0.0,
    measured: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> KernelEstimate:
    """Estimates the blur kernel of one grey image.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      config: see :class:`~jaxdeblur.config.InitialiserConfig`.
      kernel_size: odd side of the support, or None: it then starts from ``first_size``, grows for as long as mass touches its
        border, and is drawn in to what the kernel needs.
      first_size: odd, reduced to a third of the image; None for :func:`first_kernel_size`.
      start: ``[h, h]``, odd, a kernel to refine in place of guesses; None for guesses.
      noise_std: of the image, in [0, 1] units.
      measured: ``[H, W]``, one where a pixel was measured and zero where it was clipped, which then says nothing about the
        kernel; None if all were measured.
      progress: called with (steps done, steps in all), which are the pyramid's levels and some more.

    Returns:
      The estimate; the kernel's side is ``kernel_size`` if it was given.
    """
    size = kernel_size or min(first_size or first_kernel_size(blurry.shape), _largest_size(blurry.shape))
    if kernel_size is None and start is not None:
        size = max(size, start.shape[0])
    while True:
        estimate = _estimate(blurry, config, size, start, noise_std, measured, progress)
        touching = estimate.touches_border and _border_mass(estimate.kernel) > _BORDER_MASS
        larger = min(_odd(round(size * _GROWTH)), _largest_size(blurry.shape))
        if kernel_size is not None or not touching or larger <= size:
            kernels = estimate.kernels
            if kernel_size is not None:
                given = (kernel_size, kernel_size)
                kernels = {name: np.asarray(pad_kernel(jnp.asarray(kernel), given)) for name, kernel in kernels.items()}
            return dataclasses.replace(estimate, kernels=kernels, touches_border=touching)
        size = larger


def likely_kernels(
    blurry: np.ndarray, config: InitialiserConfig, *, kernel_size: int, noise_std: float = 0.0
) -> tuple[np.ndarray, ...]:
    """The likeliest distinct guesses at the blur kernel of a small grey image, which are not refined any further.

    By the guesses under ``patient_weights`` of ``config`` alone, if there are any.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      config: see :class:`~jaxdeblur.config.InitialiserConfig`.
      kernel_size: odd side of the support, reduced to a third of the image.
      noise_std: of the image, in [0, 1] units.

    Returns:
      ``num_finalists`` of ``config`` at most, ``[h, h]``, the likeliest first; non-negative, summing to one, centred.
    """
    if config.patient_weights:
        config = dataclasses.replace(config, gradient_weights=())
    levels = kernel_l0.pyramid(blurry.shape, min(kernel_size, _largest_size(blurry.shape)))
    judged_at = _last_within(levels, config.guess_side)
    judged, seen = levels[judged_at], levels[: judged_at + 1]
    looks = [(judged, config.guess_window_side, config.guess_iterations)]
    compile_side_by_side(_guess_programs(seen, config, clipped=False) + _model_programs(looks, [], config, clipped=False))
    whole = _Model.of(blurry, None, config, noise_std, judged)
    kernels, _ = _likely_guesses(blurry, config, seen, whole, None, lambda _: None)
    size = levels[-1].kernel_size
    return tuple(np.asarray(_resize_kernel(_clean(kernel), (size, size), scale=1.0 / judged.scale)) for kernel in kernels)


def _estimate(
    blurry: np.ndarray,
    config: InitialiserConfig,
    kernel_size: int,
    start: np.ndarray | None,
    noise_std: float,
    measured: np.ndarray | None,
    progress: Callable[[int, int], None] | None,
) -> KernelEstimate:
    """The estimate on at most the given support, of which ``touches_border`` tells whether the best kernel needs all of it."""
    levels = kernel_l0.pyramid(blurry.shape, kernel_size)
    judged_at = _last_within(levels, config.guess_side)
    variants = _STEPS_OF_VARIANTS if config.vary_iterations else 0
    total = len(levels) + variants + _STEPS_OF_DESCENT

    def report(done: int) -> None:
        if progress is not None:
            progress(done, total)

    whole = _Model.of(blurry, measured, config, noise_std, levels[judged_at])
    compile_side_by_side(_programs(levels, judged_at, config, measured is not None, guesses=start is None))
    scores: list[float] = []
    if start is None:
        finalists, scores = _finalists(blurry, config, levels[: judged_at + 1], whole, measured, report)
    else:
        finalists = [_on_level(start, levels[judged_at])]
    candidates = [_Candidate.of(_clean(finalist)) for finalist in finalists]
    for index in range(judged_at, len(levels)):
        level = levels[index]
        model = _Model.of(blurry, measured, config, noise_std, level).informative(config.refine_side)
        if index > judged_at:
            for candidate in candidates:
                candidate.resize(level, levels[index - 1])
        iterations = config.refine_iterations if index == judged_at else config.fine_iterations
        reaching = candidates
        while reaching:  # until no kernel reaches the border of its support, or that is all there is
            refined = model.refine([model.attempt(one.kernel, one.support) for one in reaching], iterations)
            reaching = [one for one, (kernel, _) in zip(reaching, refined, strict=True) if not one.takes(kernel)]
        # If they neither vary nor descend, this is the last time that they are judged.
        if index == judged_at and len(candidates) > (config.num_fine if config.vary_iterations or config.descents else 1):
            judged_there = model.judge([_clean(candidate.kernel) for candidate in candidates])
            candidates = [candidates[number] for number in _ranked(judged_there, config)[: config.num_fine]]
        report(index + 1)

    varied = []
    for number, candidate in enumerate(candidates):

        def report_descent(share: float, number: int = number) -> None:
            done = (number * (total - len(levels)) + variants + _STEPS_OF_DESCENT * share) / len(candidates)
            report(min(len(levels) + int(done), total - 1))

        found = _vary(model, _clean(candidate.kernel), candidate.support)
        report_descent(0.0)
        varied.append(_descend(model, found, candidate.support, report_descent))
    report(total)
    chosen = _ranked([next(value for _, value in found.values()) for found in varied], config)[0]
    candidate, found = candidates[chosen], varied[chosen]
    kernels = {name: np.asarray(_clean(candidate.cut(kernel))) for name, (kernel, _) in found.items()}
    judged = {name: value for name, (_, value) in found.items()}
    return KernelEstimate(kernels, judged, tuple(scores), len(candidate.shares) == 1)


def _finalists(
    blurry: np.ndarray,
    config: InitialiserConfig,
    levels: Sequence[kernel_l0.Level],
    whole: _Model,
    measured: np.ndarray | None,
    report: Callable[[int], None],
) -> tuple[list[jax.Array], list[float]]:
    """The likeliest of the guesses on the last level, refined there, the best first; and the scores of all guesses."""
    finalists, scores = _likely_guesses(blurry, config, levels, whole, measured, report)
    if len(finalists) > 1:
        full = _support(levels[-1].kernel_size, 1.0)
        attempts = [whole.attempt(finalist, full) for finalist in finalists]
        finalists = [kernel for kernel, _ in whole.refine(attempts, config.finalist_iterations)]
        order = np.argsort(whole.judge(finalists), kind="stable")
        finalists = [finalists[index] for index in _distinct(finalists, order)[: config.num_refined]]
    return finalists, scores


def _likely_guesses(
    blurry: np.ndarray,
    config: InitialiserConfig,
    levels: Sequence[kernel_l0.Level],
    whole: _Model,
    measured: np.ndarray | None,
    report: Callable[[int], None],
) -> tuple[list[jax.Array], list[float]]:
    """The likeliest distinct guesses on the last level, refined a little, the best first; and the scores of all guesses."""
    guesses: list[jax.Array] = []
    for index, found in enumerate(_guess(blurry, config, levels, measured)):
        report(index)
        guesses = found
    guesses = [guesses[index] for index in _distinct(guesses, range(len(guesses)))]
    model = whole.informative(config.guess_window_side)
    full = _support(levels[-1].kernel_size, 1.0)
    refined = model.refine([model.attempt(guess, full) for guess in guesses], config.guess_iterations)
    scores = [judged for _, judged in refined]
    if config.guess_iterations == 0 and len(guesses) > 1:
        scores = model.judge(guesses)
    compared = [kernel for kernel, _ in refined]
    return [compared[index] for index in _distinct(compared, np.argsort(scores))[: config.num_finalists]], scores


def _ranked(scores: Sequence[float], config: InitialiserConfig) -> list[int]:
    """The numbers of finalists, the likeliest first; the first one has ``smallest_lead`` in hand: small leads mean nothing."""
    return [int(number) for number in np.argsort([scores[0] - config.smallest_lead, *scores[1:]], kind="stable")]


def _on_level(kernel: np.ndarray, level: kernel_l0.Level) -> jax.Array:
    return _resize_kernel(jnp.asarray(kernel), (level.kernel_size, level.kernel_size), scale=level.scale)


def _distinct(kernels: Sequence[jax.Array], order: Iterable[int], same: float | None = None) -> list[int]:
    """Those in ``order`` whose kernel is not the same as one kept before it.

    ``same`` is the cosine from which two count as one; ``_SAME`` if None.
    """
    flat = np.stack([np.asarray(kernel).ravel() for kernel in kernels])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    kept: list[int] = []
    for index in order:
        if not kept or not np.max(flat[kept] @ flat[index]) >= (same or _SAME):  # NaN is like nothing
            kept.append(int(index))
    return kept


def _vary(model: _Model, best: jax.Array, support: jax.Array) -> dict[str, tuple[jax.Array, float]]:
    """Kernels refined from one with each softness, then from the best of them with each thinness, and scores; the best first.

    Each goes on from where the estimate has come to without annealing, which would lead all of them back to the same kernel.
    """
    config = model.config

    def varied(attempts: Sequence[_Attempt], names: Sequence[str]) -> list[tuple[float, str, jax.Array, _Attempt]]:
        kernels = [_clean(kernel) for kernel, _ in model.refine(attempts, config.vary_iterations, annealed=False)]
        judged = model.judge(kernels)
        return list(zip(judged, names, kernels, attempts, strict=True))

    if config.vary_iterations == 0:
        return {"classical": (best, math.nan)}
    softnesses = [model.attempt(best, support, softness_std=std) for std in config.softness_stds]
    found = varied(softnesses, [f"classical, softness {std:g}" for std in config.softness_stds])
    _, name, kernel, attempt = min(found, key=lambda one: one[0])
    thinnesses = [dataclasses.replace(attempt, kernel=kernel, thinness=thinness) for thinness in config.thinnesses]
    found += varied(thinnesses, [f"{name}, thinness {thinness:g}" for thinness in config.thinnesses])
    return {name: (kernel, value) for value, name, kernel, _ in sorted(found, key=lambda one: one[0])}


def _descend(
    model: _Model, found: dict[str, tuple[jax.Array, float]], support: jax.Array, report: Callable[[float], None]
) -> dict[str, tuple[jax.Array, float]]:
    """The best of these kernels and what it becomes when it descends its score, by which both are judged then; the best first.

    The others, which the score put behind it already, would only take time to judge.
    """
    if model.config.descents == 0:
        return found
    best, (kernel, _) = next(iter(found.items()))
    kernels = {best: kernel, best + DESCENDED: _clean(model.descended(kernel, support, report))}
    scores = dict(zip(kernels, model.judge(list(kernels.values()), in_the_end=True), strict=True))
    return {name: (kernels[name], scores[name]) for name in ranked(scores, model.config)}


@dataclasses.dataclass(eq=False)
class _Candidate:
    """A kernel on its way to the full size.

    Attributes:
      kernel: ``[h, h]``, on the level that it has come to.
      shares: of the support there that it may still have, the smallest first. Support that a kernel does not need fills with
        spurious mass, which spoils the image.
    """

    kernel: jax.Array
    shares: list[float]

    @classmethod
    def of(cls, kernel: jax.Array) -> _Candidate:
        """One without faint parts, which say nothing about the support."""
        return cls(kernel, _shares_that_hold(np.asarray(kernel)))

    @property
    def support(self) -> jax.Array:
        """``[h, h]``, one where the kernel may have mass."""
        return _support(self.kernel.shape[0], self.shares[0])

    def cut(self, kernel: jax.Array) -> jax.Array:
        """The part of a kernel on that support."""
        return _cut(kernel, self.shares[0])

    def resize(self, level: kernel_l0.Level, last: kernel_l0.Level) -> None:
        """Goes from one level to a finer one."""
        side = level.kernel_size
        self.kernel = _resize_kernel(_clean(self.kernel), (side, side), scale=level.scale / last.scale)

    def takes(self, refined: jax.Array) -> bool:
        """Whether it becomes that kernel; one that reaches the border of its support gives more support instead."""
        drawn_in = np.asarray(_clean(self.cut(refined)))
        if len(self.shares) > 1 and _border_mass(drawn_in, width=1) > _BORDER_MASS:
            self.shares.pop(0)
            return False
        self.kernel = refined
        return True


@dataclasses.dataclass(frozen=True, eq=False)
class _Attempt:
    """A kernel to be refined.

    Attributes:
      kernel: ``[h, h]``.
      support: ``[h, h]``, one where it may have mass.
      softness_std: of the sharp image, in pixels of the full size.
      thinness: weight of the prior on kernels.
    """

    kernel: jax.Array
    support: jax.Array
    softness_std: float
    thinness: float


def lead_of_guesses(
    blurry: np.ndarray,
    kernel: np.ndarray,
    config: InitialiserConfig,
    *,
    noise_std: float,
    measured: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """By how much guesses are likelier than a kernel, which tells whether another estimate may find a better one.

    At each of two reduced sizes the kernel and all guesses are refined, and those before and after it are judged.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      kernel: ``[h, h]``, odd, non-negative, summing to one.
      config: as of :func:`estimate_kernel`.
      noise_std: of the image, in [0, 1] units.
      measured: as there.
      progress: called with (pyramid levels done, levels in all).

    Returns:
      The kernel's score less that of the likeliest guess, the mean over the sizes: negative if the kernel is the likeliest.
    """
    levels = kernel_l0.pyramid(blurry.shape, max(first_kernel_size(blurry.shape), kernel.shape[0]))
    compared = sorted({_last_within(levels, side) for side in _REDUCED_SIDES})
    levels = levels[: compared[-1] + 1]
    clipped, whole = measured is not None, max(levels[-1].shape)
    refined = [(levels[index], whole, config.guess_iterations) for index in compared]
    judged = [(levels[index], whole, 1) for index in compared]
    compile_side_by_side(_guess_programs(levels, config, clipped) + _model_programs(refined, judged, config, clipped))
    leads = []
    for index, guesses in enumerate(_guess(blurry, config, levels, measured)):
        if progress is not None:
            progress(index, len(levels))
        if index not in compared:
            continue
        level = levels[index]
        model = _Model.of(blurry, measured, config, noise_std, level)
        tried = [_on_level(kernel, level), *(guesses[number] for number in _distinct(guesses, range(len(guesses))))]
        attempts = [model.attempt(one, _support(level.kernel_size, 1.0)) for one in tried]
        improved = [one for one, _ in model.refine(attempts, config.guess_iterations)]
        scores = np.asarray(model.judge(tried + improved)).reshape(2, len(tried)).min(axis=0)
        leads.append(float(scores[0] - scores[1:].min()))
    return float(np.mean(leads))


def _last_within(levels: Sequence[kernel_l0.Level], side: int) -> int:
    """The finest level of no more than ``side²`` pixels; the coarsest if all have more."""
    return max((i for i, level in enumerate(levels) if math.prod(level.shape) <= side**2), default=0)


_Calls = list[tuple[jax.stages.Wrapped, dict[str, Any]]]
# A level, the side of the window of it that is looked at, and how many iterations there; with none it is not looked at.
_Look = tuple[kernel_l0.Level, int, int]


def _programs(
    levels: Sequence[kernel_l0.Level], judged_at: int, config: InitialiserConfig, clipped: bool, *, guesses: bool
) -> _Calls:
    """The programs of an estimate, with guesses or not, each with the shapes it will be called with, and with any numbers."""
    judged, last = levels[judged_at], levels[-1]
    whole = max(judged.shape)
    refined = [(judged, config.refine_side, config.refine_iterations)]
    compared = [(last, config.refine_side, config.vary_iterations + config.descents)]
    guessed: _Calls = []
    if guesses:
        guessed = _guess_programs(levels[: judged_at + 1], config, clipped)
        refined += [(judged, config.guess_window_side, config.guess_iterations), (judged, whole, config.finalist_iterations)]
        compared += [(judged, whole, config.finalist_iterations)]
    refined += [(level, config.refine_side, config.fine_iterations) for level in levels[judged_at + 1 :]]
    refined += [(last, config.refine_side, config.vary_iterations)]
    descended: _Calls = []
    if config.descents:
        image = _any_array(descent.half_shape(tuple(min(config.descent_side, side) for side in last.shape)))
        call = variational.evidence_call(image, image if clipped else None, _any_kernel(last), 0.0, 0.0)
        descended = [(variational.evidence_and_slope, call)]
    return guessed + _model_programs(refined, compared, config, clipped) + descended


_any_array: Callable[..., Any] = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)


def _any_kernel(level: kernel_l0.Level) -> Any:
    return _any_array((level.kernel_size, level.kernel_size))


def _guess_programs(levels: Sequence[kernel_l0.Level], config: InitialiserConfig, clipped: bool) -> _Calls:
    """Those that guess at some levels."""
    calls: _Calls = []
    for level in levels:
        image = _any_array(level.shape)
        guessed = _guess_calls(image, image if clipped else None, [_any_kernel(level)], _guess_settings(config)[:1], 0)
        calls += [(kernel_l0.estimate_level, call) for call in guessed]
    return calls


def _model_programs(refined: Sequence[_Look], compared: Sequence[_Look], config: InitialiserConfig, clipped: bool) -> _Calls:
    """Those that refine and that compare kernels; numbers are arguments, so that looks of one shape share a program."""

    def model(level: kernel_l0.Level, side: int) -> _Model:
        image = _any_array((min(side, level.shape[0]), min(side, level.shape[1])))
        numbers = (config.noise_variance, config.first_noise_variance, config.descent_softness_std, level.scale)
        return _Model(image, image if clipped else None, *numbers, config)

    calls: _Calls = []
    for level, side, iterations in refined:
        if iterations:
            improved, kernel = model(level, side), _any_kernel(level)
            attempts = [improved.attempt(kernel, kernel)]
            calls += [(variational.refine_kernel, call) for call in improved.refine_calls(attempts, iterations)]
    for level, side, iterations in compared:
        if iterations:
            judged_calls = model(level, side).judge_calls([_any_kernel(level)], config.judging_softness_std)
            calls += [(variational.negative_log_evidence, call) for call in judged_calls]
    return list({(program, call["blurry"].shape, call["kernel"].shape): (program, call) for program, call in calls}.values())


def _guess(
    blurry: np.ndarray, config: InitialiserConfig, levels: Sequence[kernel_l0.Level], measured: np.ndarray | None
) -> Iterator[list[jax.Array]]:
    """At one level after the other, guesses under the L0 prior for the choices of settings that ``config`` asks for.

    Of those that have become the same at a level of some size, one goes on.
    """
    settings = _guess_settings(config)
    guesses = [kernel_l0.first_kernel(levels[0].kernel_size)] * len(settings)
    for index, level in enumerate(levels):
        if index:
            if math.prod(levels[index - 1].shape) >= _AGREEING_SIDE**2:
                kept = _distinct(guesses, range(len(guesses)), _AGREEING)
                settings, guesses = [settings[number] for number in kept], [guesses[number] for number in kept]
            ratio, side = level.scale / levels[index - 1].scale, level.kernel_size
            guesses = [_resize_kernel(guess, (side, side), scale=ratio) for guess in guesses]
        image = _resize(blurry, level)
        calls = _guess_calls(image, _measured_at(measured, level), guesses, settings, index * config.level_iterations)
        guesses = run_side_by_side(kernel_l0.estimate_level, calls)
        yield guesses


def _guess_settings(config: InitialiserConfig) -> list[tuple[float, float, float, int]]:
    """Share of the support, weight of the L0 prior, ridge and alternations per level of every guess."""
    settings = [
        (share, weight, config.kernel_ridge, config.level_iterations)
        for share in config.support_shares
        for weight in config.gradient_weights
    ]
    return settings + [(1.0, weight, config.patient_ridge, config.patient_iterations) for weight in config.patient_weights]


def _guess_calls(
    image: jax.Array,
    measured: jax.Array | None,
    guesses: Sequence[jax.Array],
    settings: Sequence[tuple[float, float, float, int]],
    alternations: int,
) -> list[dict[str, Any]]:
    """The calls that improve guesses at one level, after so many alternations of the usual ones on coarser levels."""
    return [
        {
            "blurry": image,
            "kernel": guess,
            "support": _support(guess.shape[0], share),
            "weight": kernel_l0.weight_after(weight, alternations),
            "ridge": ridge,
            "iterations": iterations,
            "measured": measured,
        }
        for guess, (share, weight, ridge, iterations) in zip(guesses, settings, strict=True)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class _Model:
    """The variational model of one image at one scale.

    Attributes:
      image: ``[H, W]``.
      measured: ``[H, W]``, zero where it was clipped; None if it was not.
      noise_variance: ν where its annealing ends.
      first_noise_variance: and where it begins.
      descent_softness_std: of the sharp image, in pixels of the full size, where kernels descend their score.
      scale: of the image, as a share of the full size.
      config: its other settings.
    """

    image: jax.Array
    measured: jax.Array | None
    noise_variance: float
    first_noise_variance: float
    descent_softness_std: float
    scale: float
    config: InitialiserConfig

    @classmethod
    def of(
        cls,
        blurry: np.ndarray,
        measured: np.ndarray | None,
        config: InitialiserConfig,
        noise_std: float,
        level: kernel_l0.Level,
    ) -> _Model:
        """The model of a full-size image at a level of the pyramid."""
        noise = variational.noise_variance(noise_std * level.scale, smallest=config.noise_variance)
        first = config.first_noise_variance / config.noise_variance * noise
        softness = descent_softness_std(config, noise_std=noise_std)
        return cls(_resize(blurry, level), _measured_at(measured, level), noise, first, softness, level.scale, config)

    def informative(self, side: int) -> _Model:
        """That of the :func:`informative_crop` of at most ``side`` pixels a side."""
        window = informative_crop(np.asarray(self.image), side)
        measured = None if self.measured is None else self.measured[window]
        return dataclasses.replace(self, image=self.image[window], measured=measured)

    def attempt(self, kernel: jax.Array, support: jax.Array, *, softness_std: float | None = None) -> _Attempt:
        """An attempt with the first softness and the usual thinness."""
        std = self.config.softness_stds[0] if softness_std is None else softness_std
        return _Attempt(kernel, support, std, self.config.thinness)

    def refine(self, attempts: Sequence[_Attempt], iterations: int, *, annealed: bool = True) -> list[tuple[jax.Array, float]]:
        """Kernels refined, and the score of each, which is NaN where there is nothing to be done.

        Args:
          attempts: what to refine.
          iterations: variational ones.
          annealed: whether ν falls from its first value, or is the last one from the beginning.
        """
        if iterations == 0:  # a program that refines nothing takes as long to compile as any other
            return [(attempt.kernel, math.nan) for attempt in attempts]
        refined = run_side_by_side(variational.refine_kernel, self.refine_calls(attempts, iterations, annealed=annealed))
        return [(kernel, score(evidence, kernel, self.config.judging_thinness)) for kernel, evidence in refined]

    def refine_calls(self, attempts: Sequence[_Attempt], iterations: int, *, annealed: bool = True) -> list[dict[str, Any]]:
        """What :meth:`refine` computes."""
        return [
            {
                "blurry": self.image,
                "kernel": attempt.kernel,
                "support": attempt.support,
                "iterations": iterations,
                "noise_variance": self.noise_variance,
                "first_noise_variance": self.first_noise_variance if annealed else self.noise_variance,
                "image_softness_std": variational.softness_at(self.scale, attempt.softness_std),
                "thinness": attempt.thinness,
                "measured": self.measured,
            }
            for attempt in attempts
        ]

    def descended(self, kernel: jax.Array, support: jax.Array, progress: Callable[[float], None]) -> jax.Array:
        """A kernel after descending its score, from a wider one: what has no mass gets none."""
        found = np.argwhere(np.asarray(kernel) > 0.0)
        extent = int(np.ptp(found, axis=0).max()) + 1
        large = extent * _DESCENT_KERNELS > self.config.descent_side
        model = self if large else self.informative(self.config.descent_side)
        measured = [None] * 2 if model.measured is None else descent.halves(model.measured)
        lowest = descent.descend(
            descent.halves(model.image),
            measured,
            scipy.ndimage.gaussian_filter(np.asarray(kernel, np.float64), _FIRST_WIDTH, mode="constant"),
            np.asarray(support),
            steps=self.config.descents,
            noise_variance=self.noise_variance,
            image_softness_std=variational.softness_at(self.scale, self.descent_softness_std),
            thinness=self.config.descent_thinness,
            progress=progress,
        )
        return jnp.asarray(lowest)

    def judge(self, kernels: Sequence[jax.Array], *, in_the_end: bool = False) -> list[float]:
        """The scores of kernels of one shape, with the same softness for all: that on the way, or that of the descent."""
        thinness = self.config.descent_thinness if in_the_end else self.config.judging_thinness
        softness_std = self.descent_softness_std if in_the_end else self.config.judging_softness_std
        evidences = run_side_by_side(variational.negative_log_evidence, self.judge_calls(kernels, softness_std))
        return [score(evidence, kernel, thinness) for kernel, evidence in zip(kernels, evidences, strict=True)]

    def judge_calls(self, kernels: Sequence[jax.Array], softness_std: float) -> list[dict[str, Any]]:
        """What :meth:`judge` computes."""
        std = variational.softness_at(self.scale, softness_std)
        return [variational.evidence_call(self.image, self.measured, kernel, self.noise_variance, std) for kernel in kernels]


@jax.jit
def _clean(kernel: jax.Array) -> jax.Array:
    kernel = kernel_l0.drop_islands(kernel_l0.drop_faint(kernel, _FINAL_THRESHOLD), smallest=_FINAL_ISLAND)
    return centre_kernel(kernel, subpixel=False)


# One program each, where every operation would be one.
_resize_kernel = jax.jit(resize_kernel, static_argnames=("shape", "scale"))
_reduce = jax.jit(functools.partial(jax.image.resize, method="linear", antialias=True), static_argnames="shape")


def _resize(blurry: np.ndarray, level: kernel_l0.Level) -> jax.Array:
    image = jnp.asarray(blurry, jnp.float32)
    return image if level.shape == blurry.shape else _reduce(image, shape=level.shape)


def _measured_at(measured: np.ndarray | None, level: kernel_l0.Level) -> jax.Array | None:
    """Which pixels of a level owe nothing, or next to nothing, to a clipped one."""
    if measured is None:
        return None
    return jnp.asarray(_resize(measured, level) > 1.0 - _LARGEST_CLIPPED_SHARE, jnp.float32)


def _support(size: int, share: float) -> jax.Array:
    """``[size, size]``: one on the middle square of that share of the side, zero elsewhere."""
    inside = np.abs(np.arange(size) - size // 2) <= _share_of(size, share) // 2
    return jnp.asarray(np.outer(inside, inside), jnp.float32)


def _cut(kernel: jax.Array, share: float) -> jax.Array:
    """The middle square of a kernel, of that share of its side."""
    side = _share_of(kernel.shape[0], share)
    return crop_kernel(kernel, (side, side))


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
