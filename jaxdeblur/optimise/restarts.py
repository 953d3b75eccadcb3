"""Judging restarts without ground truth: which have collapsed, which is the best."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

# Before this many steps an image may still be on its way from the generator's grey start.
MIN_STEPS_TO_JUDGE = 100
# A restored image varies at least as much as the blurry one; a collapsed one hardly at all.
CONSTANT_STD_RATIO = 0.1
# More of the mass than this in one pixel is no blur.
DELTA_PEAK = 0.95
# Ratio of second to first differences' energy (noise removed) above which an image may be sharp already: Levin's sharp
# images have 0.60 to 0.98, blurred by motion 0.19 to 0.61. Beyond it a delta is given the benefit of the doubt.
SHARP_DETAIL = 0.6
# Weight of the log error against normalised sparsity in the score.
_ERROR_WEIGHT = 0.3


@dataclasses.dataclass(frozen=True)
class Stop:
    """An early end.

    Attributes:
      step: the last step taken (0-based).
      best_step: the step whose iterate is the result.
      criterion: what had ceased to improve: ``error`` or ``variance``.
    """

    step: int
    best_step: int
    criterion: str


@dataclasses.dataclass(frozen=True)
class RestartStatus:
    """How a restart ended.

    Attributes:
      collapsed: why the final attempt cannot be used (``not finite``, ``constant image``, ``delta kernel``), or None.
      retried: the reasons for which earlier attempts were thrown away.
      stop: where it ended before its last step, or None.
    """

    collapsed: str | None = None
    retried: tuple[str, ...] = ()
    stop: Stop | None = None

    @property
    def ok(self) -> bool:
        """Whether the result can be used."""
        return self.collapsed is None


def restart_warnings(statuses: Sequence[RestartStatus]) -> list[str]:
    """What the user should know of a fit's restarts, one sentence each."""
    lines = []
    for index, status in enumerate(statuses):
        if status.retried:
            lines.append(f"restart {index} collapsed ({', '.join(status.retried)}) and was run again with a new key")
        if not status.ok:
            lines.append(
                f"restart {index} collapsed to the end ({status.collapsed}); its result is not used if another one is sound"
            )
    return lines


def detail(image: np.ndarray, noise_std: float = 0.0) -> float:
    """Energy of second over first differences of ``image [H, W]``, white noise of ``noise_std`` subtracted from both.

    Images have a power spectrum near 1/f², so first differences of a sharp one are nearly white and the ratio is of
    the order of 1; blur takes from the second differences first.
    """
    image = np.asarray(image, np.float64)
    first = np.mean(np.diff(image, axis=1) ** 2) + np.mean(np.diff(image, axis=0) ** 2) - 4 * noise_std**2
    second = np.mean(np.diff(image, n=2, axis=1) ** 2) + np.mean(np.diff(image, n=2, axis=0) ** 2) - 12 * noise_std**2
    return float(second / first) if first > 0 and second > 0 else 0.0


def delta_is_plausible(blurry: np.ndarray, noise_std: float = 0.0) -> bool:
    """Whether "no blur" may be the truth, because ``blurry [H, W]`` is sharp."""
    return detail(blurry, noise_std) > SHARP_DETAIL


def collapse_reason(
    *, steps: int, loss: float, image_std: float, kernel_peak: float, blurry_std: float, delta_allowed: bool
) -> str | None:
    """Why a restart is useless, or None.

    Args:
      steps: done so far; before :data:`MIN_STEPS_TO_JUDGE` only finiteness is judged.
      loss: its last loss.
      image_std: of its image.
      kernel_peak: largest pixel of its kernel.
      blurry_std: of the blurry image.
      delta_allowed: the kernel is given, or a delta is plausible.
    """
    if not np.all(np.isfinite([loss, image_std, kernel_peak])):
        return "not finite"
    if steps < MIN_STEPS_TO_JUDGE:
        return None
    if image_std < CONSTANT_STD_RATIO * blurry_std:
        return "constant image"
    if kernel_peak > DELTA_PEAK and not delta_allowed:
        return "delta kernel"
    return None


def normalised_sparsity(image: np.ndarray) -> float:
    """``‖∇x‖₁ / (√N ‖∇x‖₂)`` of ``image [H, W]``: in (0, 1], smaller for sharper images.

    Source: Krishnan, Tay & Fergus, "Blind deconvolution using a normalized sparsity measure", CVPR 2011.
    """
    image = np.asarray(image, np.float64)
    gradients = np.concatenate([np.diff(image, axis=1).ravel(), np.diff(image, axis=0).ravel()])
    norm = np.sqrt(np.mean(gradients**2))
    return float(np.mean(np.abs(gradients)) / norm) if norm > 0 else 1.0


def score(image: np.ndarray, reblurred: np.ndarray, blurry: np.ndarray) -> float:
    """Smaller is better: log normalised sparsity of the image plus 0.3 times the log of the mean squared error of the fit.

    Args:
      image: ``[H, W]``, cropped to the blurry frame.
      reblurred: ``[H, W]``.
      blurry: ``[H, W]``.
    """
    error = float(np.mean((np.asarray(reblurred, np.float64) - blurry) ** 2))
    return float(np.log(normalised_sparsity(image)) + _ERROR_WEIGHT * np.log(error + 1e-12))


def best_restart(images: np.ndarray, reblurred: np.ndarray, blurry: np.ndarray, usable: list[bool]) -> int:
    """Index of the usable restart with the smallest :func:`score`; if none is usable, of the best among all finite ones.

    Args:
      images: ``[R, H, W]``, cropped to the blurry frame.
      reblurred: ``[R, H, W]``.
      blurry: ``[H, W]``.
      usable: per restart.
    """
    scores = np.array([score(image, again, blurry) for image, again in zip(images, reblurred, strict=True)])
    scores = np.where(np.isfinite(scores), scores, np.inf)
    if any(usable):
        scores = np.where(usable, scores, np.inf)
    return int(np.argmin(scores))
