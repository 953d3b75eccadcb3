"""One restored image judged as its benchmark set is judged, and figures that may be infinite kept fit for tables and files.

Levin et al.'s and Lai et al.'s sets, and any folder with truths: aligned PSNR, SSIM and error ratio. Köhler et al.'s: PSNR and
multi-scale SSIM, the best over the camera's trajectory. What a known kernel gives is our own run with that kernel and a
non-blind method, not a published figure.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from jaxdeblur.classical import finish
from jaxdeblur.classical.noise import noise_std
from jaxdeblur.config import NonblindConfig
from jaxdeblur.errors import InputError
from jaxdeblur.evaluation import metrics
from jaxdeblur.evaluation.datasets import Example


@dataclasses.dataclass(frozen=True)
class Score:
    """What the tables hold of one restored image.

    Attributes:
      psnr: in dB; infinite for an image equal to the truth.
      ssim: structural similarity; multi-scale where there is a trajectory of truths, as that set's tables have it.
      squared_error: sum of squared differences at the best shift, for error ratios; None with a trajectory of truths.
      spectral_error: largest singular value of the differences, likewise.
    """

    psnr: float
    ssim: float
    squared_error: float | None = None
    spectral_error: float | None = None


def score(restored: npt.ArrayLike, example: Example) -> Score:
    """Compares a restored image with the truth of its example by the protocol of its set.

    Args:
      restored: ``[H, W]``; clipped to [0, 1] first, as it is when it is written to a file.
      example: what was restored.

    Raises:
      InputError: the example has no truth, or it differs in size.
    """
    clipped = np.clip(np.asarray(restored, np.float64), 0.0, 1.0)
    if example.trajectory:
        along = metrics.trajectory_metrics(clipped, example.load_truths())
        return Score(along.psnr, along.mssim)
    _, sharp = example.load()
    aligned = metrics.aligned_metrics(clipped, sharp)
    return Score(aligned.psnr, aligned.ssim, aligned.squared_error, aligned.spectral_error)


def error_ratio(blind: Score, known: Score, *, of_squares: bool = False) -> float | None:
    """How much larger the blind result's error is than with the true kernel; see :func:`metrics.error_ratio`.

    Args:
      blind: of the blind result.
      known: of the result with the true kernel.
      of_squares: Levin et al.'s convention, the ratio of sums of squares, instead of the ratio of norms.

    Returns:
      The ratio, or None where the set's protocol has none.
    """
    if blind.squared_error is None or known.squared_error is None:
        return None
    return metrics.ratio_of_errors(blind.squared_error, known.squared_error, of_squares=of_squares)


def spectral_error_ratio(blind: Score, known: Score) -> float | None:
    """:func:`error_ratio` with spectral norms of the differences, as the script behind SelfDeblur's published ratios has it."""
    if blind.spectral_error is None or known.spectral_error is None:
        return None
    return metrics.ratio_of_errors(blind.spectral_error, known.spectral_error, of_squares=True)


def restore_with_true_kernel(
    example: Example,
    *,
    method: Literal["sparse", "hyper_laplacian"] = "sparse",
    nonblind: NonblindConfig | None = None,
) -> np.ndarray:
    """The known-kernel run: the blurry image restored with the set's own kernel.

    Args:
      example: what to restore.
      method: the non-blind method.
      nonblind: its settings; the usual ones if left out.

    Returns:
      ``[H, W]``, not clipped.

    Raises:
      InputError: the example has no true kernel.
    """
    kernel = example.load_kernel()
    if kernel is None:
        raise InputError(f"{example.blurry}: its true kernel is not known; add the set's kernel files to the folder")
    blurry = example.load_blurry()
    return finish.restore(blurry, kernel, method, nonblind or NonblindConfig(), noise_std=noise_std(blurry))


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of the finite values; infinite if all are.

    A single image restored exactly would else make a table's mean PSNR infinite, which says nothing about the others.

    Raises:
      InputError: there are no values, or one is not a number.
    """
    if not values or any(math.isnan(value) for value in values):
        raise InputError("a mean needs at least one value, and numbers only: leave out images that failed")
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.inf


def to_json_number(value: float) -> float | str:
    """``value`` as JSON can hold it: infinity, which JSON lacks, as the string ``"inf"``. ``float()`` reads both back."""
    return value if math.isfinite(value) else str(value)
