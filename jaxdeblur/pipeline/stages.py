"""The pipeline on one page: observe → initialise (and search) → optimise → finish."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.classical import finish
from jaxdeblur.classical.initialiser import (
    KernelEstimate,
    estimate_kernel,
    first_kernel_size,
    hardly_blurs,
    informative_crop,
    lead_of_guesses,
)
from jaxdeblur.classical.judge import ranked
from jaxdeblur.classical.noise import noise_std as estimate_noise_std
from jaxdeblur.classical.saturated import is_unexplained, misfit_by_clipping
from jaxdeblur.classical.shake import ShakeEstimate, estimate_shake
from jaxdeblur.config import HIGHLIGHTS_PHASE, WITHOUT_CLIPPED, Config, FitConfig, InitialiserConfig, KernelLogitsConfig
from jaxdeblur.errors import InputError
from jaxdeblur.imaging.colour import grey, with_luma
from jaxdeblur.imaging.input_checks import Region, check_image, check_kernel, check_kernel_fits, check_region
from jaxdeblur.networks.teachers.teacher import Teacher
from jaxdeblur.networks.teachers.teacher import restoration as teacher_restoration
from jaxdeblur.networks.teachers.weights import load_teacher
from jaxdeblur.operators.filter_flow import kernels_of_part
from jaxdeblur.operators.kernels import centre_kernel, pad_kernel
from jaxdeblur.optimise.loop import Problem, Progress, Snapshot, fit_batch
from jaxdeblur.optimise.restarts import restart_warnings
from jaxdeblur.pipeline.case import DEEP_PRIOR, GIVEN, NO_BLUR, VARYING, Case, Clock, Photo, Scene, in_groups
from jaxdeblur.pipeline.result import Candidate, Result, Shake, with_account
from jaxdeblur.pipeline.search import SMALLEST_NOISE_NEAR_HIGHLIGHTS, Attempt, judged, put_in_order, search
from jaxdeblur.presets import PRESETS

# A share of values far outside [0, 1] that no sound restoration should have; not calibrated yet.
_LARGEST_OVERSHOOT = 0.05
# Kernels that were varied from one another give images that are alike: no more of one kind are tried.
_MOST_OF_A_KIND, _MOST_TRIED = 2, 4
# Pixels this bright may be clipped ones, but for noise. A grey image may be the luma of a colour one, in which channels were
# clipped that do not make a white pixel. Fewer than this share of them are too few to mislead an estimate.
_CLIPPED_FROM, _CLIPPED_FROM_IN_GREY, _SMALLEST_CLIPPED_SHARE = 0.95, 0.85, 1e-4
# With fewer pixels there is too little left for an estimate without the others.
_LEAST_MEASURED_SHARE = 0.2
# Enough to find the support's size for a deep prior that starts from scratch.
_SIZE_ONLY = InitialiserConfig(
    support_shares=(1.0,),
    patient_weights=(),
    guess_iterations=0,
    finalist_iterations=0,
    refine_iterations=0,
    fine_iterations=0,
    vary_iterations=0,
    descents=0,
)


def deblur(
    image: np.ndarray | jax.Array,
    config: Config = PRESETS["fast"],
    *,
    key: jax.Array,
    kernel: np.ndarray | jax.Array | None = None,
    region: Region | None = None,
    progress: Progress | None = None,
    snapshot: Snapshot | None = None,
    checkpoint: pathlib.Path | None = None,
    time_budget: float | None = None,
) -> Result:
    """Restores one blurry image.

    Args:
      image: ``[H, W]`` or ``[H, W, 3]`` in [0, 1], 32 pixels or more a side.
      config: what to do; a preset or one's own.
      key: typed random key (``jax.random.key(seed)``); the same one on the same machine gives the same bytes.
      kernel: a known blur kernel ``[h, w]`` of a true convolution, odd sides, non-negative: only the image is sought. One that
        varies over the image: ``[rows, columns, h, w]``, for its equal parts.
      region: ``(x, y, width, height)`` in pixels: the part from which the kernel is estimated; the whole image is restored.
      progress: called now and then with (phase, steps done, steps in all, metrics). An exception that it raises ends the run.
      snapshot: called now and then during a deep prior's fit with (steps done, image, kernel) of its first restart.
      checkpoint: file that keeps the state of a deep prior's fit; if there is one of this very run, it goes on from there.
      time_budget: seconds for the whole of it. What the first estimate and the last step leave of them goes into further
        attempts at the kernel (:mod:`jaxdeblur.pipeline.search`), until two agree; Ctrl-C then ends the search alone. None for
        ``config.more_attempts`` attempts, however long they take. ``Result.more_attempts`` tells how many there were.

    Returns:
      The restored image, the kernel, and how they came about.

    Raises:
      InputError: the image, the kernel, the region or the time budget cannot be used, or there is no kernel where ``config``
        needs one.
    """
    photo = Photo(image, key, kernel, snapshot, region)
    (result,) = deblur_batch([photo], config, progress=progress, checkpoint=checkpoint, time_budget=time_budget)
    return result


def deblur_batch(
    photos: Sequence[Photo],
    config: Config = PRESETS["fast"],
    *,
    progress: Progress | None = None,
    checkpoint: pathlib.Path | None = None,
    time_budget: float | None = None,
) -> list[Result]:
    """Restores several images; the deep priors of those alike in shape and kernel size are fitted in one compiled program.

    On an accelerator that is faster than one after the other, as long as their activations fit into its memory. A fit depends
    on its own image and key alone, but sums are rounded in an order that depends on how many are fitted together, and hundreds
    of steps magnify that: pixels differ from those of :func:`deblur` as they do between two machines.

    Args:
      photos: the images.
      config: what to do with each.
      progress: as for :func:`deblur`; it tells of one image, or one fit of several, after the other.
      checkpoint: as for :func:`deblur`; with a number added to its name for each further shape.
      time_budget: as for :func:`deblur`, for each image.

    Returns:
      One result per image. The seconds of a fit that several shared are shared out evenly.

    Raises:
      InputError: one of the images or kernels or the time budget cannot be used, or there is no kernel where ``config`` needs
        one.
    """
    if time_budget is not None and not time_budget >= 0:
        raise InputError(f"a time budget of {time_budget} seconds is none; give 0 or more")
    if time_budget is not None and not config.can_search:
        raise InputError(f"preset {config.name!r} makes no further attempts at a kernel: leave out the time, or take fast")
    if config.needs_kernel and any(photo.kernel is None for photo in photos):
        raise InputError(f"preset {config.name!r} restores the image for a known kernel only; give the kernel")
    # Before anything that takes time: weights are what is most often not in its place.
    teacher = None
    if config.teacher is not None:
        teacher = Teacher(config.teacher.name, load_teacher(config.teacher.name, config.teacher.weights))
    cases = [_observe(photo, config) for photo in photos]
    for case in cases:
        _initialise(case, teacher, progress)
        if case.kernels and GIVEN not in case.kernels:
            _leave_out_clipped(case, progress)
            if time_budget is not None or config.more_attempts:
                _search(case, time_budget, progress)
            if config.blur != "uniform":
                _see_shake(case, progress)
    if config.fit is not None:
        for number, group in enumerate(in_groups(cases)):
            numbered = checkpoint.with_name(f"{checkpoint.name}.{number}") if checkpoint and number else checkpoint
            _optimise(group, config.fit, teacher, progress, numbered)
    return [_finish(case, progress) for case in cases]


def _observe(photo: Photo, config: Config) -> Case:
    """Looks at an image: its luma, its noise, where it says most about a kernel, and what is known of that already."""
    clock = Clock()
    with clock("observe"):
        blurry = check_image(photo.image)
        luma = grey(blurry)
        part = check_region(photo.region, luma.shape)
        if config.kernel_size is not None:
            check_kernel_fits(config.kernel_size, luma[part].shape)
        initialiser = config.initialiser or _SIZE_ONLY
        noise = max(float(estimate_noise_std(luma)), config.smallest_noise_std)
        window = _informative(luma, part, initialiser.refine_side)
        measured = _measured(blurry)
        scene = Scene(blurry, luma, noise, measured, part, window, initialiser, config)
        kernels = {} if photo.kernel is None else {GIVEN: check_kernel(photo.kernel, luma.shape)}
    return Case(photo, scene, clock, kernels, config.kernel_size)


def _measured(blurry: np.ndarray) -> np.ndarray | None:
    """``[H, W]``: one where no channel of a pixel may have been clipped, zero elsewhere; None if hardly any may."""
    clipped = blurry >= _CLIPPED_FROM_IN_GREY if blurry.ndim == 2 else blurry.max(axis=-1) >= _CLIPPED_FROM
    return None if clipped.mean() < _SMALLEST_CLIPPED_SHARE else 1.0 - clipped.astype(np.float32)


def _informative(image: np.ndarray, part: tuple[slice, slice], side: int) -> tuple[slice, slice]:
    """The :func:`informative_crop` of a part of ``image [H, W]``, as slices of the whole."""
    rows, columns = informative_crop(image[part], side)
    top, left = part[0].start, part[1].start
    return slice(top + rows.start, top + rows.stop), slice(left + columns.start, left + columns.stop)


def _initialise(case: Case, teacher: Teacher | None, progress: Progress | None) -> None:
    """Estimates the kernel classically, or at least its size, and runs the pre-trained network; each only if needed."""
    config = case.scene.config
    needs_size = config.kernel_size is None and config.fit is not None
    if not case.kernels and (config.initialiser is not None or needs_size):
        with case.clock("initialise"):
            estimate = _estimate(case, config.kernel_size, None, progress)
            if config.initialiser is not None and hardly_blurs(estimate.kernel):
                estimate = _doubted(case, estimate, progress)
        case.kernel_size = estimate.kernel.shape[0]
        case.warnings += _border_warnings(estimate)
        if config.initialiser is not None:
            case.kernels |= estimate.kernels
            case.scores |= estimate.scores

    if config.teacher is not None and teacher is not None:
        with case.clock("teacher"):
            if teacher.needs_kernel and config.teacher.kernel_source == "classical":
                case.teacher_kernel = case.restoring_kernel(next(iter(case.kernels)))
            if case.teacher_kernel is not None or not teacher.needs_kernel:
                case.surrogate = teacher_restoration(teacher, case.scene.blurry, case.teacher_kernel)


def _estimate(
    case: Case,
    kernel_size: int | None,
    first_size: int | None,
    progress: Progress | None,
    *,
    start: np.ndarray | None = None,
) -> KernelEstimate:
    scene, measured = case.scene, case.measured
    window = _informative(scene.grey, scene.part, scene.initialiser.image_side)
    return estimate_kernel(
        scene.grey[window],
        scene.initialiser,
        kernel_size=kernel_size,
        first_size=first_size,
        start=start,
        noise_std=scene.kernel_noise_std,
        measured=None if measured is None else measured[window],
        progress=_phase(f"kernel {WITHOUT_CLIPPED}" if case.without_clipped else "kernel", progress),
    )


def _doubted(case: Case, found: KernelEstimate, progress: Progress | None) -> KernelEstimate:
    """Estimates the kernel again where hardly any blur was found, and from then on reckons with more noise if that finds some.

    A photograph is never just the blur of a sharp one by one kernel: tone curve, compression and a camera that turns see to
    that. If its noise is all that the model allows for, no blur at all can explain it better than the right kernel.
    """
    scene, noise_std = case.scene, case.scene.initialiser.doubting_noise_std
    if scene.kernel_noise_std >= noise_std:
        return found
    noisy = dataclasses.replace(scene.initialiser, smallest_noise_std=noise_std)
    case.scene = dataclasses.replace(scene, initialiser=noisy)
    again = _estimate(case, scene.config.kernel_size, None, progress)
    if not hardly_blurs(again.kernel):
        return again
    case.scene = scene
    return found


def _border_warnings(estimate: KernelEstimate) -> list[str]:
    if not estimate.touches_border:
        return []
    size = estimate.kernel.shape[0]
    return [f"the kernel reaches the border of its {size}-pixel support; a larger --kernel_size may help"]


def _leave_out_clipped(case: Case, progress: Progress | None) -> None:
    """Estimates the kernel again from what was not clipped, if the first one leaves highlights, or all of it, unexplained.

    Only then: paper and sky that are just white say something about the kernel.
    """
    scene, measured = case.scene, case.scene.measured
    if measured is None:
        return
    window = _informative(scene.grey, scene.part, scene.initialiser.image_side)
    if measured[window].all() or measured[window].mean() < _LEAST_MEASURED_SHARE:
        return
    with case.clock("highlights"):
        seen = window
        if scene.grey[window].shape != scene.grey.shape:
            # To restore all of a large image takes as long as its last step: the edges of the highlights tell.
            seen = _informative(0.5 * measured, window, scene.initialiser.refine_side)
        plausible, explained = _looks(case, seen, progress)
        if plausible and explained:
            return
        leads = plausible and _leads_without_clipped(case, window, progress)
        case.without_clipped = True
        start = next(iter(case.kernels.values())) if leads else None
        estimate = _estimate(case, scene.config.kernel_size, None, progress, start=start)
        found = {f"{WITHOUT_CLIPPED}: {name}": kernel for name, kernel in estimate.kernels.items()}
        put_in_order(case, case.kernels | found)
    name, kernel = next(iter(case.kernels.items()))
    case.kernel_size = kernel.shape[0]
    if name in found:
        case.warnings = _border_warnings(estimate)


def _looks(case: Case, window: tuple[slice, slice], progress: Progress | None) -> tuple[bool, bool]:
    """Whether the best kernel's image of a window is plausible, and explains the highlights; one of the whole image is kept."""
    scene, name = case.scene, next(iter(case.kernels))
    kernel = case.restoring_kernel(name)
    seen = dataclasses.replace(scene, blurry=scene.blurry[window], grey=scene.grey[window])
    restored, method, misfit = _restore(seen, kernel, progress)
    if seen.grey.shape == scene.grey.shape:
        case.restored = {name: (restored, method)}
    if finish.overshoot(restored, method) > _LARGEST_OVERSHOOT:
        return False, False
    if misfit is None:
        misfit = _misfit(seen, restored, kernel)
    return True, not is_unexplained(misfit, noise_std=scene.noise_std)


def _leads_without_clipped(case: Case, window: tuple[slice, slice], progress: Progress | None) -> bool:
    """Whether the best kernel is likelier than all guesses at reduced sizes, clipped pixels being left out of all.

    Then guesses at full size, which take half of an estimate's time, find none that is better to begin with.
    """
    scene, kernel = case.scene, next(iter(case.kernels.values()))
    lead = lead_of_guesses(
        scene.grey[window],
        kernel,
        scene.initialiser,
        noise_std=max(scene.kernel_noise_std, SMALLEST_NOISE_NEAR_HIGHLIGHTS),
        measured=None if scene.measured is None else scene.measured[window],
        progress=_phase(HIGHLIGHTS_PHASE, progress),
    )
    return lead <= 0.0


def _search(case: Case, time_budget: float | None, progress: Progress | None) -> None:
    """Makes further attempts at the kernel: as many as ``config`` says, or as many as fit into the time that is left."""
    began, until = time.monotonic(), math.inf
    with case.clock("search"):
        if time_budget is not None:
            left = time_budget - sum(case.clock.seconds.values())
            _is_plausible(case, progress)
            last_step = time.monotonic() - began
            until = began + left - last_step
        found = search(
            case,
            _attempt,
            content=lambda: _is_plausible(case, progress),
            most=case.scene.config.more_attempts if time_budget is None else None,
            until=until,
            progress=progress,
        )
    case.more_attempts = found.attempts
    if found.cut:
        case.warnings.append("the search for a better kernel was ended; this is the best so far")


def _attempt(case: Case, attempt: Attempt, progress: Progress) -> dict[str, np.ndarray]:
    """The kernels that one attempt of a search comes to, the best first."""
    scene, size = case.scene, case.scene.config.kernel_size
    if attempt.fit is not None:
        before = next(iter(case.kernels.values()))
        case.kernel_size = before.shape[0]
        _optimise([case], attempt.fit, None, progress, None)
        return {DEEP_PRIOR: case.kernels.pop(DEEP_PRIOR)}
    usual = size or first_kernel_size(scene.grey[scene.part].shape)
    support = 2 * round(attempt.support_share * usual / 2) + 1
    if size is None:
        return _estimate(case, None, support, progress).kernels
    if support >= size:
        return {}  # no larger one was allowed, and that one was tried
    kernels = _estimate(case, support, None, progress).kernels
    return {name: np.asarray(pad_kernel(jnp.asarray(kernel), (size, size))) for name, kernel in kernels.items()}


def _is_plausible(case: Case, progress: Progress | None) -> bool:
    """Whether the best kernel gives a plausible image, which is kept for the last step."""
    name = next(iter(case.kernels))
    if name not in case.restored:
        case.restored = {name: _restore(case.scene, case.restoring_kernel(name), progress)[:2]}
    return finish.overshoot(*case.restored[name]) <= _LARGEST_OVERSHOOT


def _see_shake(case: Case, progress: Progress | None) -> None:
    """Looks whether, or just how, the kernel varies over the image."""
    scene, config = case.scene, case.scene.config
    with case.clock("shake"):
        case.shake = estimate_shake(
            scene.grey,
            next(iter(case.kernels.values())),
            config.shake,
            scene.initialiser,
            noise_std=scene.kernel_noise_std,
            softness_std=scene.initialiser.softness_stds[0],
            only_if_clear=config.blur == "auto",
            progress=_phase("varying kernels", progress),
        )
    if case.shake.kernels is not None:
        case.kernels[VARYING] = case.shake.kernels
        if not case.shake.clear:
            case.warnings.append("kernels that vary explain this image hardly better than one does; try --blur=auto")


def _optimise(
    cases: Sequence[Case], fit: FitConfig, teacher: Teacher | None, progress: Progress | None, checkpoint: pathlib.Path | None
) -> None:
    """Fits the deep priors of cases of the same shapes, and tells each case what was found."""
    config = cases[0].scene.config

    def problem(case: Case) -> Problem:
        known = case.known_kernel
        if known is not None:
            known = kernels_of_part(known, case.scene.grey.shape, case.window)
        starts_from_kernel = known is None and isinstance(fit.kernel_generator, KernelLogitsConfig)
        return Problem(
            blurry=case.scene.grey[case.window],
            key=case.photo.key,
            kernel=known,
            initial_kernel=next(iter(case.kernels.values()), None) if starts_from_kernel else None,
            teacher_kernel=case.teacher_kernel,
            surrogate=None if case.surrogate is None else grey(case.surrogate)[case.window],
            noise_std=case.scene.noise_std,
            snapshot=case.photo.snapshot,
        )

    began = time.perf_counter()
    found = fit_batch(
        [problem(case) for case in cases],
        fit,
        kernel_size=cases[0].kernel_shape,
        num_restarts=config.num_restarts,
        teacher=teacher,
        num_posterior_samples=config.num_posterior_samples,
        progress=progress,
        checkpoint=checkpoint,
    )
    share = (time.perf_counter() - began) / len(cases)
    for case, fitted in zip(cases, found, strict=True):
        case.clock.seconds["fit"] = share
        case.fitted = fitted
        case.warnings += restart_warnings(fitted.statuses)
        if case.known_kernel is None:
            case.kernels[DEEP_PRIOR] = np.asarray(centre_kernel(jnp.asarray(fitted.kernel), subpixel=False))


def _finish(case: Case, progress: Progress | None) -> Result:
    """Chooses among the kernels and makes the final image."""
    scene, kernels, config = case.scene, case.kernels, case.scene.config
    if not kernels:
        kernels[NO_BLUR] = np.pad(np.ones((1, 1), np.float32), 1)
        case.warnings.append("this network finds no kernel; the one that is written is that of no blur")

    with case.clock("judge"):
        scores = dict.fromkeys(kernels, float("nan")) | case.scores
        uniform = {name: kernel for name, kernel in kernels.items() if kernel.ndim == 2}
        if uniform.keys() - case.scores.keys():
            scores |= judged(case, uniform)
    with case.clock("finish"):
        if config.final == "generator" and case.fitted is not None:
            name, chosen = next(reversed(kernels)), "generator"
            restored = with_luma(scene.blurry, case.fitted.image)
        elif config.final == "teacher" and case.surrogate is not None:
            name, chosen = next(iter(kernels)), "teacher"
            restored = case.surrogate
        else:
            name, chosen, restored = _deconvolve(case, scores, progress)
    shown = {label: case.shown_kernel(label) for label in kernels}
    result = Result(
        restored=finish.blend(scene.blurry, np.clip(restored, 0.0, 1.0).astype(np.float32), config.nonblind.amount),
        kernel=shown[name],
        candidates=tuple(Candidate(label, scores[label], label == name, shown[label]) for label in kernels),
        chosen=chosen,
        history={},
        seconds=case.clock.seconds,
        noise_std=scene.noise_std,
        kernel_size=kernels[name].shape[-2],
        warnings=tuple(case.warnings),
        more_attempts=case.more_attempts,
        shake=None if case.shake is None else _told(case.shake, chosen=name == VARYING),
        blurry=scene.blurry,
    )
    return result if case.fitted is None else with_account(result, case.fitted)


def _told(shake: ShakeEstimate, *, chosen: bool) -> Shake:
    return Shake(shake.gain, shake.roll_std, shake.corner_std, shake.agreement, chosen)


def _deconvolve(case: Case, scores: Mapping[str, float], progress: Progress | None) -> tuple[str, str, np.ndarray]:
    """A kernel's name, how the final image was made, and that image: by the best kernel that gives a plausible one.

    One that varies goes first: it is there only if it was asked for or explains the image better. If none does, the image stays
    as it was; a kernel from outside is taken at its word.
    """
    scene, kernels = case.scene, case.kernels
    order = sorted(ranked(scores, scene.initialiser), key=lambda name: name != VARYING)
    for name in _worth_trying(order):
        restored, method = case.restored.get(name) or _restore(scene, case.restoring_kernel(name), progress)[:2]
        plausible = finish.overshoot(restored, method) <= _LARGEST_OVERSHOOT
        if plausible or GIVEN in kernels:
            break
    if VARYING in kernels and name != VARYING:
        case.warnings.append("kernels that vary over the image give no plausible image, so one kernel was used")
    if not plausible and GIVEN in kernels:
        case.warnings.append(
            "the result is far brighter or darker than an image can be in many places; the kernel may be wrong"
        )
    elif not plausible:
        case.warnings.append(
            "no kernel that was found gives a plausible image, so it is left as it was; a crop with more edges may do better"
        )
        return order[0], "input", scene.blurry
    if case.finds_no_blur(name):
        case.warnings.append(
            "next to no blur was found, so the image is nearly as it was; if it is blurred, give a --region with clear edges"
        )
    # Where the method was chosen here, these were looked at already.
    looks = scene.config.final in finish.METHODS and method != "saturated"
    if looks and is_unexplained(_misfit(scene, restored, case.restoring_kernel(name)), noise_std=scene.noise_std):
        case.warnings.append(
            "the restored image does not explain the saturated highlights; --final=saturated may restore them better"
        )
    return name, f"{name} kernel, {method}", restored


def _worth_trying(names: Sequence[str]) -> list[str]:
    """The first few names without those that follow two others of their kind, which is what stands before the comma."""
    kinds = [name.partition(",")[0] for name in names]
    kept = [name for index, name in enumerate(names) if kinds[:index].count(kinds[index]) < _MOST_OF_A_KIND]
    return kept[:_MOST_TRIED]


def _restore(scene: Scene, kernel: np.ndarray, progress: Progress | None) -> tuple[np.ndarray, str, float | None]:
    """The image by one kernel, not clipped, the non-blind method that made it, and the misfit by which that was chosen; None
    if it was asked for."""
    final, nonblind = scene.config.final, scene.config.nonblind
    tell = _phase("final image", progress)
    if final in finish.METHODS:
        restored = finish.restore(scene.blurry, kernel, final, nonblind, noise_std=scene.noise_std, progress=tell)
        return restored, final, None
    return finish.restore_as_needed(scene.blurry, kernel, nonblind, noise_std=scene.noise_std, progress=tell)


def _misfit(scene: Scene, restored: np.ndarray, kernel: np.ndarray) -> float:
    return misfit_by_clipping(scene.blurry, restored, kernel, tile_side=scene.config.nonblind.tile_side)


def _phase(name: str, progress: Progress | None) -> Callable[[int, int], None] | None:
    """``progress`` as a stage calls it that has nothing to tell but how far it is."""
    return progress and (lambda done, total: progress(name, done, total, {}))
