"""What a run returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxdeblur.optimise.loop import FitResult
from jaxdeblur.optimise.restarts import Stop


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A kernel that was considered.

    Attributes:
      name: where it comes from.
      score: by :func:`jaxdeblur.classical.judge.judge`; lower is better. NaN if it was not judged because there was no other.
      chosen: whether the final image was made with it.
      kernel: ``[h, w]``, non-negative, summing to one, or ``[rows, columns, h, w]``.
    """

    name: str
    score: float
    chosen: bool
    kernel: np.ndarray


@dataclasses.dataclass(frozen=True)
class Shake:
    """What was found of a camera that turns during the exposure.

    Attributes:
      gain: by how much the negative log evidence per pixel is lower with kernels that vary than with one.
      roll_std: standard deviation of the camera's roll over the exposure, in degrees.
      chosen: whether the final image was made with kernels that vary.
    """

    gain: float
    roll_std: float
    chosen: bool


@dataclasses.dataclass(frozen=True)
class Result:
    """What :func:`deblur` found.

    Attributes:
      restored: the sharp image, shaped as the input, float32 in [0, 1].
      kernel: ``[h, w]`` of a true convolution, non-negative, summing to one, its mass centred; ``[rows, columns, h, w]``, one
        for each of the equal parts of the image, where the blur varies.
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
      shake: what was found of a camera that turns; None if that was not asked.
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
    shake: Shake | None = None


def with_account(result: Result, fitted: FitResult) -> Result:
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
