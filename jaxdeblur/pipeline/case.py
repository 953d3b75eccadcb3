"""An image on its way through the pipeline, and which of them go together."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import jax
import numpy as np

from jaxdeblur.classical.correction import correct, correct_field
from jaxdeblur.classical.initialiser import informative_crop, is_sharp
from jaxdeblur.classical.shake import ShakeEstimate
from jaxdeblur.classical.width import widened
from jaxdeblur.config import WITHOUT_CLIPPED, Config, InitialiserConfig
from jaxdeblur.imaging.input_checks import Region
from jaxdeblur.optimise.loop import FitResult, Snapshot

# Names of candidates that are no classical estimates of one kernel: that of the caller, of the deep prior, of a camera that
# turns (interpolated between shifts, which widens it), and of no blur.
GIVEN, DEEP_PRIOR, VARYING, NO_BLUR = "given", "deep prior", "varying", "none"
_OF_OTHER_KINDS = frozenset((GIVEN, DEEP_PRIOR, VARYING, NO_BLUR))


@dataclasses.dataclass(frozen=True, eq=False)
class Photo:
    """One image of a batch; :func:`jaxdeblur.deblur` explains the fields."""

    image: np.ndarray | jax.Array
    key: jax.Array
    kernel: np.ndarray | jax.Array | None = None
    snapshot: Snapshot | None = None
    region: Region | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is seen, and how it is dealt with.

    Attributes:
      blurry: as given, checked.
      grey: ``[H, W]``.
      noise_std: in [0, 1] units.
      measured: ``[H, W]``, one where a pixel was measured and zero where it was clipped; None if none was.
      part: in which the kernel is sought: the region that the caller gave, or the whole image.
      window: the informative part of it, if it is large, in which kernels are refined and judged.
      initialiser: how a kernel, or at least its size, is found.
      config: of the run.
    """

    blurry: np.ndarray
    grey: np.ndarray
    noise_std: float
    measured: np.ndarray | None
    part: tuple[slice, slice]
    window: tuple[slice, slice]
    initialiser: InitialiserConfig
    config: Config

    @property
    def kernel_noise_std(self) -> float:
        """The noise that is reckoned with where kernels are estimated and compared, in [0, 1] units."""
        return max(self.noise_std, self.initialiser.smallest_noise_std)


class Clock:
    """Seconds per named phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - began


@dataclasses.dataclass(eq=False)
class Case:
    """An image on its way through the pipeline.

    Attributes:
      photo: as given.
      scene: what is seen.
      clock: its seconds.
      kernels: the candidates so far, by name, as they are found and judged: ``[h, w]``, or ``[rows, columns, h, w]`` where the
        blur varies.
      scores: of those that have been judged together already.
      kernel_size: side of the support; None as long as nothing has said so.
      surrogate: what the pre-trained network makes of the image, shaped as it, if that does not depend on the fit.
      teacher_kernel: that it made it with, if any.
      fitted: what its fit found.
      warnings: so far.
      shake: what was found of a camera that turns, if that was asked.
      without_clipped: whether kernels are estimated and judged without the clipped pixels.
      more_attempts: at the kernel that were made after the first.
      corrected: the kernel as it was found and as images are restored with it, by name, if it was needed.
      restored: the image and the method that made it, by the name of the kernel, if it was needed before the last step.
    """

    photo: Photo
    scene: Scene
    clock: Clock
    kernels: dict[str, np.ndarray]
    kernel_size: int | None
    surrogate: np.ndarray | None = None
    teacher_kernel: np.ndarray | None = None
    fitted: FitResult | None = None
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    shake: ShakeEstimate | None = None
    without_clipped: bool = False
    more_attempts: int = 0
    corrected: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    restored: dict[str, tuple[np.ndarray, str]] = dataclasses.field(default_factory=dict)

    @property
    def measured(self) -> np.ndarray | None:
        """``[H, W]``, zero where a pixel says nothing about the kernel; None if all do."""
        return self.scene.measured if self.without_clipped else None

    @property
    def window(self) -> tuple[slice, slice]:
        """What is fitted: the whole image only where the generator's own image is wanted, as steps cost by the pixel."""
        config = self.scene.config
        whole = config.final == "generator" or config.num_posterior_samples > 0
        return (slice(None), slice(None)) if whole else self.scene.window

    def restoring_kernel(self, name: str) -> np.ndarray:
        """A candidate as the image is restored with it: corrected by a learned step if it is a classical estimate.

        Not where clipped pixels were left out, because the step knows of none: then it is widened. Nor if it says that there is
        nothing to restore: the step has seen blurry images alone, and makes a blur of it.
        """
        kernel, initialiser = self.kernels[name], self.scene.initialiser
        kind = name.rpartition(": ")[2]
        found_otherwise = kind in _OF_OTHER_KINDS - {VARYING} or WITHOUT_CLIPPED in name
        if found_otherwise or self.finds_no_blur(name) or initialiser.correction_share == 0.0:
            return self.shown_kernel(name)
        if name not in self.corrected or self.corrected[name][0] is not kernel:
            seen = self.scene.grey
            if kind != VARYING:
                seen = seen[self.scene.window]
                seen = seen[informative_crop(seen, initialiser.correction_side)]
            share = initialiser.correction_share * min(1.0, math.sqrt(seen.size) / initialiser.correction_trusted_side)
            step = correct_field if kind == VARYING else correct
            new = step(seen, kernel, noise_std=self.scene.noise_std, share=share)
            self.corrected[name] = kernel, new
        return self.corrected[name][1]

    def shown_kernel(self, name: str) -> np.ndarray:
        """A candidate as the image was restored with it, or would be but for a correction that was not worth its time."""
        kernel = self.kernels[name]
        before, corrected = self.corrected.get(name, (None, None))
        if corrected is not None and before is kernel:
            return corrected
        if name.rpartition(": ")[2] in _OF_OTHER_KINDS or self.finds_no_blur(name):
            return kernel
        return widened(kernel, self.scene.initialiser, noise_std=self.scene.noise_std)

    def finds_no_blur(self, name: str) -> bool:
        """Whether a candidate is a classical estimate that says that the image is sharp."""
        return name.rpartition(": ")[2] not in _OF_OTHER_KINDS and is_sharp(self.kernels[name])

    @property
    def known_kernel(self) -> np.ndarray | None:
        """The kernel of a fit that seeks the image alone; one that varies is not refined further."""
        fit = self.scene.config.fit
        if VARYING in self.kernels:
            return self.restoring_kernel(VARYING)
        if fit is not None and fit.kernel_generator is None and GIVEN not in self.kernels:
            return self.restoring_kernel(next(iter(self.kernels)))
        return self.kernels.get(GIVEN)

    @property
    def kernel_shape(self) -> tuple[int, int]:
        """``(h, w)`` of the fit's kernel."""
        if self.known_kernel is not None:
            return (self.known_kernel.shape[-2], self.known_kernel.shape[-1])
        assert self.kernel_size is not None
        return (self.kernel_size, self.kernel_size)

    @property
    def shapes(self) -> tuple[object, ...]:
        """Cases that agree in these can be fitted together."""
        return (self.scene.grey[self.window].shape, self.kernel_shape, self.known_kernel is None)


def in_groups(cases: Iterable[Case]) -> list[list[Case]]:
    """The cases that can be fitted together, in the order of the first of each group."""
    groups: dict[tuple[object, ...], list[Case]] = {}
    for case in cases:
        groups.setdefault(case.shapes, []).append(case)
    return list(groups.values())
