"""The pipeline on one page: observe → initialise → optimise → finish → report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.classical import finish, variational
from jaxdeblur.classical.initialiser import estimate_kernel, informative_crop
from jaxdeblur.classical.noise import noise_std as estimate_noise_std
from jaxdeblur.classical.saturated import misfit_by_clipping
from jaxdeblur.config import SMALLEST_SIDE, Config, InitialiserConfig, KernelLogitsConfig
from jaxdeblur.errors import InputError
from jaxdeblur.imaging.colour import luma, rgb_to_ycbcr, ycbcr_to_rgb
from jaxdeblur.networks.teachers.teacher import Teacher
from jaxdeblur.networks.teachers.teacher import restoration as teacher_restoration
from jaxdeblur.networks.teachers.weights import load_teacher
from jaxdeblur.operators.kernels import centre_kernel, pad_kernel
from jaxdeblur.optimise.loop import FitResult, Progress, Snapshot, fit
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
) -> Result:
    """Restores one blurry image.

    Args:
      image: ``[H, W]`` or ``[H, W, 3]`` in [0, 1], 32 pixels or more a side.
      config: what to do; a preset or one's own.
      key: typed random key (``jax.random.key(seed)``); the same one on the same machine gives the same bytes.
      kernel: a known blur kernel ``[h, w]`` of a true convolution, odd sides, non-negative: only the image is sought.
      progress: called now and then with (phase, steps done, steps in all, metrics).
      snapshot: called now and then during a deep prior's fit with (steps done, image, kernel) of its first restart.

    Returns:
      The restored image, the kernel, and how they came about.

    Raises:
      InputError: the image or the kernel cannot be used, or there is no kernel where ``config`` needs one.
    """
    if config.needs_kernel and kernel is None:
        raise InputError(f"preset {config.name!r} restores the image for a known kernel only; give the kernel")
    teacher: Teacher | None = None
    # Before anything that takes time: weights are what is most often not in its place.
    weights = load_teacher(config.teacher.name, config.teacher.weights) if config.teacher is not None else {}
    clock = _Clock()
    blurry = _check_image(image)
    grey = _grey(blurry)
    known = None if kernel is None else _check_kernel(kernel, grey.shape)
    if config.kernel_size is not None and config.kernel_size >= min(grey.shape):
        raise InputError(
            f"kernel size {config.kernel_size} does not fit an image of {grey.shape[1]}×{grey.shape[0]} pixels; "
            "give a smaller one"
        )
    with clock("observe"):
        noise = max(float(estimate_noise_std(grey)), config.smallest_noise_std)
    initialiser = config.initialiser or _SIZE_ONLY
    window = informative_crop(grey, initialiser.refine_side)
    warnings: list[str] = []

    kernels: dict[str, np.ndarray] = {}
    shape = (config.kernel_size, config.kernel_size) if config.kernel_size is not None else None
    if known is not None:
        kernels["given"], shape = known, known.shape
    elif config.initialiser is not None or (shape is None and config.fit is not None):
        with clock("initialise"):
            estimate = estimate_kernel(
                grey[informative_crop(grey, initialiser.image_side)],
                initialiser,
                kernel_size=config.kernel_size,
                noise_std=noise,
                progress=progress and (lambda done, total: progress("kernel", done, total, {})),
            )
        shape = estimate.kernel.shape
        if estimate.touches_border:
            warnings.append(f"the kernel reaches the border of its {shape[0]}-pixel support; a larger --kernel_size may help")
        if config.initialiser is not None:
            kernels["classical"] = estimate.kernel

    if config.final == "teacher" and not kernels:
        kernels["none"] = np.pad(np.ones((1, 1), np.float32), 1)
        warnings.append("this network finds no kernel; the one that is written is that of no blur")
    surrogate: np.ndarray | None = None
    if config.teacher is not None:
        with clock("teacher"):
            first = next(iter(kernels.values()), None) if config.teacher.kernel_source == "classical" else None
            teacher = Teacher(config.teacher.name, weights, None if first is None else jnp.asarray(first))
            if not teacher.follows_estimate:
                surrogate = teacher_restoration(teacher, blurry)

    fitted: FitResult | None = None
    if config.fit is not None:
        assert shape is not None
        fixed = known if config.fit.kernel_generator is not None else next(iter(kernels.values()))
        starts_from_guess = isinstance(config.fit.kernel_generator, KernelLogitsConfig) and fixed is None
        # The whole image only where the generator's own picture is wanted: steps cost in proportion to the pixels.
        whole = config.final == "generator" or config.num_posterior_samples > 0
        with clock("fit"):
            fitted = fit(
                grey if whole else grey[window],
                config.fit,
                key=key,
                kernel_size=shape,
                kernel=fixed,
                num_restarts=config.num_restarts,
                initial_kernel=kernels.get("classical") if starts_from_guess else None,
                teacher=teacher,
                surrogate=None if surrogate is None else _grey(surrogate)[... if whole else window],
                noise_std=noise,
                num_posterior_samples=config.num_posterior_samples,
                progress=progress,
                snapshot=snapshot,
            )
        warnings += _restart_warnings(fitted)
        if fixed is None:
            kernels["deep prior"] = np.asarray(centre_kernel(jnp.asarray(fitted.kernel), subpixel=False))

    with clock("judge"):
        scores = _judge(grey[window], kernels, initialiser, noise)
    name = min(kernels, key=lambda candidate: scores[candidate])
    with clock("finish"):
        if config.final == "generator" and fitted is not None:
            name = next(reversed(kernels))  # the generator's own
            chosen = "generator"
            restored = _with_luma(blurry, fitted.image)
        elif surrogate is not None and config.final == "teacher":
            chosen = f"{name} kernel, teacher" if name != "none" else "teacher"
            restored = surrogate
        else:
            method = config.final if config.final in ("hyper_laplacian", "saturated") else "sparse"
            chosen = f"{name} kernel, {method}"
            restored = finish.restore(
                blurry,
                kernels[name],
                method,
                config.nonblind,
                noise_std=noise,
                progress=progress and (lambda done, total: progress("final image", done, total, {})),
            )
            if method != "saturated":
                misfit = misfit_by_clipping(jnp.asarray(blurry), jnp.asarray(restored), jnp.asarray(kernels[name]))
                if misfit > max(_MISFIT_OF_LAMPS, 2 * noise):
                    warnings.append(
                        "the picture does not explain its clipped highlights; --final=saturated may restore it better"
                    )
    restored = np.clip(restored, 0.0, 1.0).astype(np.float32)
    return Result(
        restored=restored,
        kernel=kernels[name],
        candidates=tuple(Candidate(label, scores[label], label == name) for label in kernels),
        chosen=chosen,
        history={} if fitted is None else _curves(fitted),
        seconds=clock.seconds,
        noise_std=noise,
        kernel_size=kernels[name].shape[0],
        warnings=tuple(warnings),
        posterior_mean=None if fitted is None or fitted.posterior_mean is None else fitted.posterior_mean[fitted.best],
        posterior_std=None if fitted is None or fitted.posterior_std is None else fitted.posterior_std[fitted.best],
        stop=None if fitted is None else fitted.statuses[fitted.best].stop,
    )


def _curves(fitted: FitResult) -> dict[str, list[float]]:
    """The best restart's curves, up to its last step."""
    curves = {"fit": fitted.losses[fitted.best], "error": fitted.errors[fitted.best]}
    taken = np.isfinite(curves["fit"])
    return {name: [float(value) for value in curve[taken]] for name, curve in curves.items()}


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


def _judge(grey: np.ndarray, kernels: Mapping[str, np.ndarray], config: InitialiserConfig, noise: float) -> dict[str, float]:
    """The surprise of each kernel, or NaN where there is nothing to choose."""
    if len(kernels) == 1:
        return dict.fromkeys(kernels, float("nan"))
    shape = (max(k.shape[0] for k in kernels.values()), max(k.shape[1] for k in kernels.values()))
    variance = variational.noise_variance(noise, smallest=config.noise_variance)
    scores = {
        name: float(
            variational.surprise(
                jnp.asarray(grey),
                pad_kernel(jnp.asarray(kernel), shape),
                noise_variance=variance,
                camera_blur_std=config.camera_blur_std,
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
