"""The pipeline on one page: observe → initialise → optimise → finish → report."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.classical import finish, variational
from jaxdeblur.classical.initialiser import KernelEstimate, estimate_kernel, informative_crop
from jaxdeblur.classical.noise import noise_std as estimate_noise_std
from jaxdeblur.classical.saturated import misfit_by_clipping
from jaxdeblur.config import SMALLEST_SIDE, Config, InitialiserConfig, KernelLogitsConfig
from jaxdeblur.errors import InputError
from jaxdeblur.imaging.colour import luma, rgb_to_ycbcr, ycbcr_to_rgb
from jaxdeblur.networks.teachers.teacher import Teacher
from jaxdeblur.networks.teachers.teacher import restoration as teacher_restoration
from jaxdeblur.networks.teachers.weights import load_teacher
from jaxdeblur.operators.kernels import centre_kernel, pad_kernel
from jaxdeblur.optimise.loop import FitResult, Problem, Progress, Snapshot, fit_batch
from jaxdeblur.optimise.restarts import Stop
from jaxdeblur.presets import PRESETS

# White paper that a linear method restores leaves less than this unexplained around it, lamps leave more. Measured.
_MISFIT_OF_LAMPS = 0.012
# Enough to find the support's size for a deep prior that starts from scratch.
_SIZE_ONLY = InitialiserConfig(
    support_shares=(1.0,), guess_iterations=0, finalist_iterations=0, refine_iterations=0, fine_iterations=0
)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A kernel that was considered.

    Attributes:
      name: where it comes from.
      score: how badly it explains the image (:func:`jaxdeblur.classical.variational.surprise`); lower is better. NaN if it was
        not judged because there was no other.
      chosen: whether the final image was made with it.
    """

    name: str
    score: float
    chosen: bool


@dataclasses.dataclass(frozen=True)
class Result:
    """What :func:`deblur` found.

    Attributes:
      restored: the sharp image, shaped as the input, float32 in [0, 1].
      kernel: ``[h, w]`` of a true convolution, non-negative, summing to one, its mass centred.
      candidates: the kernels that were compared.
      chosen: how the final image was made: a candidate's name and a non-blind method, or ``generator``.
      history: curves over the deep prior's steps: its loss (``fit``) and the squared error of the re-blurred image (``error``).
      seconds: per phase.
      noise_std: standard deviation of the input's noise that was reckoned with, in [0, 1] units.
      kernel_size: side of the support that was used.
      warnings: what the user should know, one sentence each.
      posterior_mean: mean over samples of the deep prior's grey image, ``[H, W]``; None if no samples were asked for.
      posterior_std: their standard deviation at each pixel, ``[H, W]``.
      stop: where the deep prior's fit ended early, and why; None if it did not.
    """

    restored: np.ndarray
    kernel: np.ndarray
    candidates: tuple[Candidate, ...]
    chosen: str
    history: Mapping[str, list[float]]
    seconds: Mapping[str, float]
    noise_std: float
    kernel_size: int
    warnings: tuple[str, ...]
    posterior_mean: np.ndarray | None = None
    posterior_std: np.ndarray | None = None
    stop: Stop | None = None


def deblur(
    image: np.ndarray | jax.Array,
    config: Config = PRESETS["fast"],
    *,
    key: jax.Array,
    kernel: np.ndarray | jax.Array | None = None,
    progress: Progress | None = None,
    snapshot: Snapshot | None = None,
    checkpoint: pathlib.Path | None = None,
) -> Result:
    """Restores one blurry image.

    Args:
      image: ``[H, W]`` or ``[H, W, 3]`` in [0, 1], 32 pixels or more a side.
      config: what to do; a preset or one's own.
      key: typed random key (``jax.random.key(seed)``); the same one on the same machine gives the same bytes.
      kernel: a known blur kernel ``[h, w]`` of a true convolution, odd sides, non-negative: only the image is sought.
      progress: called now and then with (phase, steps done, steps in all, metrics).
      snapshot: called now and then during a deep prior's fit with (steps done, image, kernel) of its first restart.
      checkpoint: file that keeps the state of a deep prior's fit; if there is one of this very run, it goes on from there.

    Returns:
      The restored image, the kernel, and how they came about.

    Raises:
      InputError: the image or the kernel cannot be used, or there is no kernel where ``config`` needs one.
    """
    (result,) = deblur_batch([Photo(image, key, kernel, snapshot)], config, progress=progress, checkpoint=checkpoint)
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class Photo:
    """One image of a batch; :func:`deblur` explains the fields."""

    image: np.ndarray | jax.Array
    key: jax.Array
    kernel: np.ndarray | jax.Array | None = None
    snapshot: Snapshot | None = None


def deblur_batch(
    photos: Sequence[Photo],
    config: Config = PRESETS["fast"],
    *,
    progress: Progress | None = None,
    checkpoint: pathlib.Path | None = None,
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

    Returns:
      One result per image. The seconds of a fit that several shared are shared out evenly.

    Raises:
      InputError: one of the images or kernels cannot be used, or there is no kernel where ``config`` needs one.
    """
    if config.needs_kernel and any(photo.kernel is None for photo in photos):
        raise InputError(f"preset {config.name!r} restores the image for a known kernel only; give the kernel")
    # Before anything that takes time: weights are what is most often not in its place.
    teacher = None
    if config.teacher is not None:
        teacher = Teacher(config.teacher.name, load_teacher(config.teacher.name, config.teacher.weights))
    cases = [_prepare(photo, config, teacher, progress) for photo in photos]
    if config.fit is not None:
        alike: dict[tuple[object, ...], list[_Case]] = {}
        for case in cases:
            alike.setdefault(case.shapes, []).append(case)
        for number, group in enumerate(alike.values()):
            numbered = checkpoint.with_name(f"{checkpoint.name}.{number}") if checkpoint and number else checkpoint
            _fit(group, config, teacher, progress, numbered)
    return [_conclude(case, progress) for case in cases]


@dataclasses.dataclass(eq=False)
class _Case:
    """An image on its way through the pipeline.

    Attributes:
      photo: as given.
      scene: what is seen.
      kernels: the candidates so far, by name.
      kernel_size: side of the support; None if nothing asks for one.
      surrogate: what the pre-trained network makes of the image, shaped as it, if that does not depend on the fit.
      teacher_kernel: that it made it with, if any.
      warnings: so far.
      clock: its seconds.
      fitted: what its fit found.
    """

    photo: Photo
    scene: _Scene
    kernels: dict[str, np.ndarray]
    kernel_size: int | None
    surrogate: np.ndarray | None
    teacher_kernel: np.ndarray | None
    warnings: list[str]
    clock: _Clock
    fitted: FitResult | None = None

    @property
    def window(self) -> tuple[slice, slice]:
        """What is fitted: the whole image only where the generator's own picture is wanted, as steps cost by the pixel."""
        config = self.scene.config
        whole = config.final == "generator" or config.num_posterior_samples > 0
        return (slice(None), slice(None)) if whole else self.scene.window

    @property
    def known_kernel(self) -> np.ndarray | None:
        """The kernel of a fit that seeks the image alone."""
        fit = self.scene.config.fit
        if fit is not None and fit.kernel_generator is None and "given" not in self.kernels:
            return self.kernels["classical"]
        return self.kernels.get("given")

    @property
    def kernel_shape(self) -> tuple[int, int]:
        """``(h, w)`` of the fit's kernel."""
        if self.known_kernel is not None:
            return (self.known_kernel.shape[0], self.known_kernel.shape[1])
        assert self.kernel_size is not None
        return (self.kernel_size, self.kernel_size)

    @property
    def shapes(self) -> tuple[object, ...]:
        """Cases that agree in these can be fitted together."""
        return (self.scene.grey[self.window].shape, self.kernel_shape, tuple(self.kernels))


def _prepare(photo: Photo, config: Config, teacher: Teacher | None, progress: Progress | None) -> _Case:
    """All that comes before the fit."""
    clock = _Clock()
    with clock("observe"):
        scene = _observe(photo.image, config)
    warnings: list[str] = []

    kernels: dict[str, np.ndarray] = {}
    size = config.kernel_size
    if photo.kernel is not None:
        kernels["given"] = _check_kernel(photo.kernel, scene.grey.shape)
    elif config.initialiser is not None or (size is None and config.fit is not None):
        with clock("initialise"):
            estimate = _initialise(scene, progress)
        size = estimate.kernel.shape[0]
        if estimate.touches_border:
            warnings.append(f"the kernel reaches the border of its {size}-pixel support; a larger --kernel_size may help")
        if config.initialiser is not None:
            kernels["classical"] = estimate.kernel

    surrogate: np.ndarray | None = None
    teacher_kernel: np.ndarray | None = None
    if config.teacher is not None and teacher is not None:
        with clock("teacher"):
            if teacher.needs_kernel and config.teacher.kernel_source == "classical":
                teacher_kernel = next(iter(kernels.values()))
            if teacher_kernel is not None or not teacher.needs_kernel:
                surrogate = teacher_restoration(teacher, scene.blurry, teacher_kernel)
    return _Case(photo, scene, kernels, size, surrogate, teacher_kernel, warnings, clock)


def _fit(
    cases: Sequence[_Case], config: Config, teacher: Teacher | None, progress: Progress | None, checkpoint: pathlib.Path | None
) -> None:
    """Fits the deep priors of cases of the same shapes, and tells each case what was found."""
    assert config.fit is not None

    def problem(case: _Case) -> Problem:
        known = case.known_kernel
        starts_from_kernel = known is None and isinstance(fit_config.kernel_generator, KernelLogitsConfig)
        return Problem(
            blurry=case.scene.grey[case.window],
            key=case.photo.key,
            kernel=known,
            initial_kernel=case.kernels.get("classical") if starts_from_kernel else None,
            teacher_kernel=case.teacher_kernel,
            surrogate=None if case.surrogate is None else _grey(case.surrogate)[case.window],
            noise_std=case.scene.noise_std,
            snapshot=case.photo.snapshot,
        )

    fit_config = config.fit
    began = time.perf_counter()
    found = fit_batch(
        [problem(case) for case in cases],
        fit_config,
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
        case.warnings += _restart_warnings(fitted)
        if "given" not in case.kernels and fit_config.kernel_generator is not None:
            case.kernels["deep prior"] = np.asarray(centre_kernel(jnp.asarray(fitted.kernel), subpixel=False))


def _conclude(case: _Case, progress: Progress | None) -> Result:
    """Judges the kernels and makes the final image."""
    scene, kernels, config = case.scene, case.kernels, case.scene.config
    if not kernels:
        kernels["none"] = np.pad(np.ones((1, 1), np.float32), 1)
        case.warnings.append("this network finds no kernel; the one that is written is that of no blur")

    with case.clock("judge"):
        scores = _judge(scene, kernels)
    with case.clock("finish"):
        if config.final == "generator" and case.fitted is not None:
            name, chosen = next(reversed(kernels)), "generator"
            restored = _with_luma(scene.blurry, case.fitted.image)
        elif config.final == "teacher" and case.surrogate is not None:
            name, chosen = next(iter(kernels)), "teacher"
            restored = case.surrogate
        else:
            name = min(kernels, key=lambda candidate: scores[candidate])
            method = config.final if config.final in ("hyper_laplacian", "saturated") else "sparse"
            chosen = f"{name} kernel, {method}"
            restored = _restore(scene, kernels[name], method, progress)
            if method != "saturated" and _hides_lamps(scene, restored, kernels[name]):
                case.warnings.append(
                    "the picture does not explain its clipped highlights; --final=saturated may restore it better"
                )
    restored = np.clip(restored, 0.0, 1.0).astype(np.float32)
    result = Result(
        restored=restored,
        kernel=kernels[name],
        candidates=tuple(Candidate(label, scores[label], label == name) for label in kernels),
        chosen=chosen,
        history={},
        seconds=case.clock.seconds,
        noise_std=scene.noise_std,
        kernel_size=kernels[name].shape[0],
        warnings=tuple(case.warnings),
    )
    return result if case.fitted is None else _with_account(result, case.fitted)


@dataclasses.dataclass(frozen=True)
class _Scene:
    """What is seen, and how it is dealt with.

    Attributes:
      blurry: as given, checked.
      grey: ``[H, W]``.
      noise_std: in [0, 1] units.
      window: the informative part of a large picture, in which kernels are refined and judged.
      initialiser: how a kernel, or at least its size, is found.
      config: of the run.
    """

    blurry: np.ndarray
    grey: np.ndarray
    noise_std: float
    window: tuple[slice, slice]
    initialiser: InitialiserConfig
    config: Config


def _observe(image: np.ndarray | jax.Array, config: Config) -> _Scene:
    blurry = _check_image(image)
    grey = _grey(blurry)
    if config.kernel_size is not None and config.kernel_size >= min(grey.shape):
        raise InputError(
            f"kernel size {config.kernel_size} does not fit an image of {grey.shape[1]}×{grey.shape[0]} pixels; "
            "give a smaller one"
        )
    initialiser = config.initialiser or _SIZE_ONLY
    noise = max(float(estimate_noise_std(grey)), config.smallest_noise_std)
    return _Scene(blurry, grey, noise, informative_crop(grey, initialiser.refine_side), initialiser, config)


def _initialise(scene: _Scene, progress: Progress | None) -> KernelEstimate:
    """The classical estimate of the kernel."""
    return estimate_kernel(
        scene.grey[informative_crop(scene.grey, scene.initialiser.image_side)],
        scene.initialiser,
        kernel_size=scene.config.kernel_size,
        noise_std=scene.noise_std,
        progress=progress and (lambda done, total: progress("kernel", done, total, {})),
    )


def _restore(scene: _Scene, kernel: np.ndarray, method: str, progress: Progress | None) -> np.ndarray:
    return finish.restore(
        scene.blurry,
        kernel,
        method,
        scene.config.nonblind,
        noise_std=scene.noise_std,
        progress=progress and (lambda done, total: progress("final image", done, total, {})),
    )


def _hides_lamps(scene: _Scene, restored: np.ndarray, kernel: np.ndarray) -> bool:
    """Whether the picture has highlights that a linear method cannot explain."""
    misfit = misfit_by_clipping(jnp.asarray(scene.blurry), jnp.asarray(restored), jnp.asarray(kernel))
    return float(misfit) > max(_MISFIT_OF_LAMPS, 2 * scene.noise_std)


def _with_account(result: Result, fitted: FitResult) -> Result:
    """``result`` with what the deep prior's fit has to tell."""
    best = fitted.best
    curves = {"fit": fitted.losses[best], "error": fitted.errors[best]}
    taken = np.isfinite(curves["fit"])
    return dataclasses.replace(
        result,
        history={name: [float(value) for value in curve[taken]] for name, curve in curves.items()},
        posterior_mean=None if fitted.posterior_mean is None else fitted.posterior_mean[best],
        posterior_std=None if fitted.posterior_std is None else fitted.posterior_std[best],
        stop=fitted.statuses[best].stop,
    )


def _grey(image: np.ndarray) -> np.ndarray:
    return luma(image) if image.ndim == 3 else image


def _restart_warnings(fitted: FitResult) -> list[str]:
    lines = []
    for index, status in enumerate(fitted.statuses):
        if status.retried:
            lines.append(f"restart {index} collapsed ({', '.join(status.retried)}) and was run again with a new key")
        if not status.ok:
            lines.append(
                f"restart {index} collapsed to the end ({status.collapsed}); its result is not used if another one is sound"
            )
    return lines


class _Clock:
    """Seconds per named phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - began


def _check_image(image: np.ndarray | jax.Array) -> np.ndarray:
    array = np.asarray(image)
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise InputError(f"image has shape {array.shape}; give [H, W] or [H, W, 3]")
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"image has type {array.dtype}; give floats in [0, 1] (8-bit pixels divided by 255)")
    if min(array.shape[:2]) < SMALLEST_SIDE:
        raise InputError(f"image of {array.shape[1]}×{array.shape[0]} pixels is too small; give {SMALLEST_SIDE} or more a side")
    if not np.all(np.isfinite(array)):
        raise InputError("image has values that are not finite; replace NaN and infinity first")
    if array.min() < -1e-3 or array.max() > 1.0 + 1e-3:
        raise InputError(f"image values run from {array.min():.3g} to {array.max():.3g}; scale them to [0, 1]")
    return array.astype(np.float32)


def _check_kernel(kernel: np.ndarray | jax.Array, shape: tuple[int, int]) -> np.ndarray:
    array = np.asarray(kernel, np.float32)
    if array.ndim != 2 or not all(side % 2 for side in array.shape):
        raise InputError(f"kernel has shape {array.shape}; give [h, w] with odd sides")
    if array.shape[0] >= shape[0] or array.shape[1] >= shape[1]:
        raise InputError(f"kernel of shape {array.shape} is larger than the image; give a smaller one")
    if not np.all(np.isfinite(array)) or array.min() < 0 or array.sum() <= 0:
        raise InputError("kernel must be finite and non-negative with some mass; give a blur kernel")
    return array / array.sum()


def _judge(scene: _Scene, kernels: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The surprise of each kernel, or NaN where there is nothing to choose."""
    if len(kernels) == 1:
        return dict.fromkeys(kernels, float("nan"))
    shape = (max(k.shape[0] for k in kernels.values()), max(k.shape[1] for k in kernels.values()))
    variance = variational.noise_variance(scene.noise_std, smallest=scene.initialiser.noise_variance)
    scores = {
        name: float(
            variational.surprise(
                jnp.asarray(scene.grey[scene.window]),
                pad_kernel(jnp.asarray(kernel), shape),
                noise_variance=variance,
                camera_blur_std=scene.initialiser.camera_blur_std,
            )
        )
        for name, kernel in kernels.items()
    }
    return {name: score if np.isfinite(score) else float("inf") for name, score in scores.items()}


def _with_luma(blurry: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """The restored luma with the blurry image's chroma, as SelfDeblur does for colour."""
    if blurry.ndim == 2:
        return np.asarray(restored)
    ycbcr = np.array(rgb_to_ycbcr(blurry))
    ycbcr[..., 0] = restored
    return ycbcr_to_rgb(ycbcr)
