"""Further attempts at a kernel after the first: other supports, then a deep prior, until two agree or the time is over.

Which local minimum the classical estimate ends in depends on the support that it begins with, and which support is lucky
depends on the image. So the same estimate from another support is a candidate of its own, and so is the kernel of a deep prior.
Attempts that end in the same kernel are unlikely to be wrong together.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping

import numpy as np

from jaxdeblur.classical.judge import judge, ranked
from jaxdeblur.config import SEARCH_PHASE, FitConfig
from jaxdeblur.errors import Terminated
from jaxdeblur.evaluation.metrics import kernel_similarity
from jaxdeblur.optimise.loop import Progress
from jaxdeblur.pipeline.case import Case
from jaxdeblur.presets import PRESETS

# Of an attempt's kernels, which were varied from one another, so many are kept.
_KEPT = 2
# A light many times brighter than white shows every fault of a kernel so many times larger. With the image's own noise, kernels
# that are too small explain it better.
SMALLEST_NOISE_NEAR_HIGHLIGHTS = 0.02
# Kernels of two attempts as similar as this are one and the same.
AGREEMENT = 0.98


@dataclasses.dataclass(frozen=True)
class Attempt:
    """Another way to the kernel.

    Attributes:
      support_share: the support that the classical estimate begins with, as a share of the usual one.
      fit: in place of it, the deep prior that is fitted from the best kernel so far on.
    """

    support_share: float = 1.0
    fit: FitConfig | None = None


ATTEMPTS = (
    Attempt(support_share=0.68),
    Attempt(support_share=1.42),
    Attempt(fit=PRESETS["deep"].fit),
    Attempt(support_share=0.5),
    Attempt(support_share=2.0),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
      attempts: that were brought to an end.
      cut: whether the user ended it.
    """

    attempts: int
    cut: bool


class _TimeOverError(Exception):
    """Ends an attempt that has taken all the time there is."""


def search(
    case: Case,
    attempt_at: Callable[[Case, Attempt, Progress], Mapping[str, np.ndarray]],
    *,
    content: Callable[[], bool],
    most: int | None,
    until: float = math.inf,
    progress: Progress | None = None,
) -> Found:
    """Adds kernels to ``case.kernels``, judges all that are uniform, and puts them in order, the best first.

    Args:
      case: that has kernels already.
      attempt_at: makes an attempt and returns its kernels by name, the best first.
      content: asked when two attempts agree on the best kernel: whether that may end the search.
      most: attempts to make, whatever comes of them; None for as many as ``until`` and ``content`` leave room for.
      until: when no more time is left, by ``time.monotonic``.
      progress: as for :func:`jaxdeblur.deblur`.
    """
    best_of = [_best(case.kernels)]
    longest, done, cut = 0.0, 0, False
    try:
        for number, attempt in enumerate(ATTEMPTS[:most], start=2):
            began = time.monotonic()
            if began + longest > until:
                break
            found = attempt_at(case, attempt, _labelled(f"{SEARCH_PHASE} {number}", progress, until))
            kernels = {f"{SEARCH_PHASE} {number}: {name}": kernel for name, kernel in list(found.items())[:_KEPT]}
            longest, done = max(longest, time.monotonic() - began), done + 1
            if not kernels:
                continue
            if attempt.fit is None:  # which does not begin with what another one found
                best_of.append(_best(kernels))
            put_in_order(case, case.kernels | kernels)
            agreeing = [kernel_similarity(_best(case.kernels), kernel) >= AGREEMENT for kernel in best_of]
            if most is None and sum(agreeing) >= 2 and content():
                break
    except _TimeOverError:
        pass
    except KeyboardInterrupt as stop:
        if isinstance(stop, Terminated):
            raise
        cut = True
    return Found(done, cut)


def _best(kernels: Mapping[str, np.ndarray]) -> np.ndarray:
    return next(iter(kernels.values()))


def judged(case: Case, kernels: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The scores of kernels by name, see :func:`jaxdeblur.classical.judge.judge`."""
    scene, window = case.scene, case.scene.window
    if case.measured is None:
        return judge(scene.grey[window], kernels, scene.initialiser, noise_std=scene.kernel_noise_std)
    noise_std = max(scene.kernel_noise_std, SMALLEST_NOISE_NEAR_HIGHLIGHTS)
    return judge(scene.grey[window], kernels, scene.initialiser, noise_std=noise_std, measured=case.measured[window])


def put_in_order(case: Case, kernels: Mapping[str, np.ndarray]) -> None:
    """Makes these the kernels of a case, the best first."""
    case.scores = judged(case, kernels)
    case.kernels = {name: kernels[name] for name in ranked(case.scores, case.scene.initialiser)}


def _labelled(label: str, progress: Progress | None, until: float) -> Progress:
    """``progress`` that says which attempt it is, and ends it when the time is over."""

    def report(phase: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        if time.monotonic() > until:
            raise _TimeOverError
        if progress is not None:
            progress(f"{label}: {phase}", done, total, metrics)

    return report
