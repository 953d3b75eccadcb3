"""Settings of a whole run."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from jaxdeblur.config.checks import check_kernel_size, not_none, require
from jaxdeblur.config.classical import InitialiserConfig, NonblindConfig
from jaxdeblur.config.fit import FitConfig
from jaxdeblur.config.networks import TeacherConfig
from jaxdeblur.config.shake import BLURS, Blur, ShakeConfig

Final = Literal["auto", "generator", "learned", "sparse", "hyper_laplacian", "saturated", "teacher"]
FINALS: tuple[str, ...] = get_args(Final)

# What a JPEG's quantisation does to a blurry photograph, chosen by eye on such photographs; and that with all else that keeps a
# photograph from being the blur of a sharp one by one kernel: its tone curve, a camera that turns. See BUILD.md.
COMPRESSED_NOISE_STD, COMPRESSED_KERNEL_NOISE_STD = 0.005, 0.01

# How the names of a search's phases begin, by which those who watch it know that there is a result already.
SEARCH_PHASE = "attempt"
# The phase in which it is found out whether clipped pixels mislead the kernel, and what phase and kernels of an estimate
# without those are called beside their usual names.
HIGHLIGHTS_PHASE, WITHOUT_CLIPPED = "highlights", "without clipped pixels"

# Images with fewer pixels a side are refused.
SMALLEST_SIDE = 32


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run: *initialise → optimise → finish*.

    Attributes:
      name: the preset's name.
      kernel_size: odd side of the blur kernel's support, or None to find it.
      initialiser: how the kernel is estimated classically, or None to leave that to the deep prior alone.
      fit: the deep prior to fit, or None for a classical run.
      num_restarts: independent fits of the deep prior, in one program.
      teacher: the pre-trained network that loss terms or the final image use, or None.
      final: where the final image comes from. ``generator``: the deep prior's image. ``teacher``: the pre-trained network's
        alone. ``learned``, ``sparse``, ``hyper_laplacian``, ``saturated`` (``learned`` for clipped highlights): that non-blind
        method with the estimated kernel. ``auto``: ``learned``, or ``saturated`` where highlights ask for it.
      nonblind: settings of the non-blind step.
      num_posterior_samples: samples of the fitted image generator (under the noise and dropout of the last step) of which mean
        and standard deviation are taken; 0 for none.
      smallest_noise_std: noise of at least this standard deviation, in [0, 1] units, is assumed. Lossy compression leaves
        errors that a noise estimate cannot see, see :meth:`for_compressed`.
      blur: ``uniform``: one kernel for the whole image. ``varying``: that of a camera that turns while it shakes, another one
        at each place. ``auto``: the latter where it explains the image better.
      shake: settings of the varying one.
      more_attempts: at the kernel after the first, see :mod:`jaxdeblur.pipeline.search`; the best of all kernels is taken.
    """

    name: str = "custom"
    kernel_size: int | None = None
    initialiser: InitialiserConfig | None = InitialiserConfig()
    fit: FitConfig | None = None
    num_restarts: int = 1
    teacher: TeacherConfig | None = None
    final: Final = "auto"
    nonblind: NonblindConfig = NonblindConfig()
    num_posterior_samples: int = 0
    smallest_noise_std: float = 0.0
    blur: Blur = "uniform"
    shake: ShakeConfig = ShakeConfig()
    more_attempts: int = 0

    def for_compressed(self) -> Config:
        """The configuration for an image that was compressed with loss, as the command line adapts it to JPEG files."""
        initialiser = self.initialiser
        if initialiser is not None:
            noise_std = max(initialiser.smallest_noise_std, COMPRESSED_KERNEL_NOISE_STD)
            initialiser = dataclasses.replace(initialiser, smallest_noise_std=noise_std)
        noise_std = max(self.smallest_noise_std, COMPRESSED_NOISE_STD)
        return dataclasses.replace(self, initialiser=initialiser, smallest_noise_std=noise_std)

    def __post_init__(self) -> None:
        if self.kernel_size is not None:
            check_kernel_size(self.kernel_size)
        require(0 <= self.smallest_noise_std < 1, f"smallest_noise_std must be in [0, 1), got {self.smallest_noise_std}")
        require(self.num_restarts >= 1, f"num_restarts must be 1 or more, got {self.num_restarts}")
        require(self.final in FINALS, f"unknown final {self.final!r}: choose from {', '.join(FINALS)}")
        require(self.blur in BLURS, f"unknown blur {self.blur!r}: choose from {', '.join(BLURS)}")
        require(
            self.blur == "uniform" or self.initialiser is not None,
            f"{self.name}: blur {self.blur!r} starts from the classical kernel estimate, which is left out here; choose fast",
        )
        require(
            self.blur == "uniform" or self.final not in ("hyper_laplacian", "teacher"),
            f"final {self.final!r} takes one kernel for the whole image; choose learned or sparse, or blur 'uniform'",
        )
        require(
            self.initialiser is not None or self.fit is not None or self.final == "teacher",
            f"{self.name}: nothing estimates the kernel; give an initialiser, a fit, or both",
        )
        require(self.more_attempts >= 0, f"more_attempts must not be negative, got {self.more_attempts}")
        require(
            self.more_attempts == 0 or self.can_search,
            f"{self.name}: further attempts at the kernel are for presets that estimate it classically alone; choose fast",
        )
        require(
            self.fit is not None or self.final != "generator",
            f"{self.name}: final 'generator' needs a deep prior, and this preset fits none; choose sparse or hyper_laplacian",
        )
        require(
            self.num_posterior_samples == 0 or (self.fit is not None and self.num_posterior_samples >= 2),
            f"{self.name}: num_posterior_samples={self.num_posterior_samples} cannot be used; give 2 or more, with a fit",
        )

        require(
            self.teacher is not None or not (self.final == "teacher" or (self.fit is not None and self.fit.needs_teacher)),
            f"{self.name}: a pre-trained network is needed but none is named; give a teacher",
        )
        if self.teacher is not None and self.teacher.name == "dwdn":
            classical = self.teacher.kernel_source == "classical"
            require(
                not classical or self.initialiser is not None,
                f"{self.name}: dwdn deconvolves with the classical kernel; give an initialiser (preset weak_dwdn has one)",
            )
            require(
                classical or self.final != "teacher",
                f"{self.name}: dwdn alone has no current estimate; choose kernel_source='classical'",
            )
        require(
            self.final != "teacher" or self.fit is None,
            f"{self.name}: final 'teacher' makes no use of a fit; leave the fit out",
        )

    @property
    def needs_kernel(self) -> bool:
        """Whether the kernel has to be given, because nothing here estimates it."""
        if self.final == "teacher" and self.teacher is not None and self.teacher.name == "dmphn":
            return False
        return self.initialiser is None and (self.fit is None or self.fit.kernel_generator is None)

    @property
    def can_search(self) -> bool:
        """Whether further attempts at the kernel can be made."""
        return self.initialiser is not None and self.fit is None and self.final != "teacher"

    def last_step_only(self) -> Config:
        """The same run as far as a kernel at hand leaves something to do: no fit, no network, a non-blind final image."""
        final: Final = "auto" if self.final in ("generator", "teacher") else self.final
        initialiser = self.initialiser or InitialiserConfig()
        plain: dict[str, Any] = {
            "fit": None,
            "num_restarts": 1,
            "num_posterior_samples": 0,
            "teacher": None,
            "kernel_size": None,
            "more_attempts": 0,
        }
        return dataclasses.replace(self, final=final, initialiser=initialiser, **plain)

    def override(
        self,
        *,
        kernel_size: int | None = None,
        num_iterations: int | None = None,
        num_restarts: int | None = None,
        num_posterior_samples: int | None = None,
        final: Final | None = None,
        blur: Blur | None = None,
        teacher: str | None = None,
        teacher_weights: str | None = None,
        stopping: str | None = None,
        stopping_patience: int | None = None,
        stopping_from: int | None = None,
        smoothness: float | None = None,
        amount: float | None = None,
    ) -> Config:
        """A copy with the fields that are not None replaced; a fit's schedules are stretched with ``num_iterations``.

        ``stopping`` is a criterion of :class:`StoppingConfig`, or ``off``. If nothing else is said, iterates count from three
        tenths of the steps on, but not in the 15 % after the loss has changed for the last time, and 30 steps without a
        smaller error, or as many as the window's without a smaller variance, end it.

        Raises:
          InputError: a value is out of range, or the preset has nothing that it could set.
        """
        of_a_fit = not_none(
            num_iterations=num_iterations,
            num_restarts=num_restarts,
            num_posterior_samples=num_posterior_samples,
            stopping=stopping,
            stopping_patience=stopping_patience,
            stopping_from=stopping_from,
        )
        for name in of_a_fit:
            require(
                self.fit is not None,
                f"{name} cannot be set: preset {self.name!r} fits no deep prior; choose another preset",
            )
        changes = not_none(
            kernel_size=kernel_size,
            num_restarts=num_restarts,
            num_posterior_samples=num_posterior_samples,
            final=final,
            blur=blur,
        )
        if nonblind := not_none(smoothness=smoothness, amount=amount):
            changes["nonblind"] = dataclasses.replace(self.nonblind, **nonblind)
        if self.fit is not None:
            fit = self.fit if num_iterations is None else self.fit.stretched(num_iterations)
            changes["fit"] = fit.stopped(stopping, patience=stopping_patience, from_step=stopping_from)
        named = not_none(name=teacher, weights=teacher_weights)
        require(
            not named or self.teacher is not None,
            f"preset {self.name!r} uses no pre-trained network; choose one that does, such as weak_dmphn or dmphn",
        )
        if self.teacher is not None:
            changes["teacher"] = dataclasses.replace(self.teacher, **named)
        return dataclasses.replace(self, **changes)
