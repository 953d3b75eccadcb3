"""Settings of the deep prior's fit: networks, losses by interval, schedules, early ends."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal, get_args

from jaxdeblur.config.checks import not_none, require, require_positive
from jaxdeblur.config.networks import ImageGeneratorConfig, KernelGeneratorConfig, KernelMlpConfig, SkipNetConfig, UNetConfig

LossTerm = Literal[
    "mse",
    "mae",
    "one_minus_ssim",
    "total_variation",
    "noise_tied_tv",
    "kernel_energy",
    "weak_mse",
    "weak_mae",
    "weak_one_minus_ssim",
    "teacher_agreement",
]
Update = Literal["joint", "sequential", "alternating"]

LOSS_TERMS: tuple[str, ...] = get_args(LossTerm)
# Terms that use a pre-trained network.
TEACHER_TERMS = ("weak_mse", "weak_mae", "weak_one_minus_ssim", "teacher_agreement")

# A piecewise constant function of the step: pairs of a first step (0-based) and the value from there on.
Schedule = tuple[tuple[int, float], ...]
# The fields of a fit that are such functions.
_SCHEDULES = ("input_noise_std", "kernel_input_noise_std", "dropout_rate", "kernel_dropout_rate")


def constant(value: float) -> Schedule:
    """The schedule that is ``value`` at every step."""
    return ((0, value),)


def check_starts(what: str, starts: list[int]) -> None:
    require(
        bool(starts) and starts[0] == 0 and all(a < b for a, b in itertools.pairwise(starts)),
        f"{what} must start at step 0 and increase, got starts {starts}",
    )


@dataclasses.dataclass(frozen=True)
class LossInterval:
    """A weighted sum of loss terms, used from step ``start`` until the next interval begins.

    Attributes:
      start: first step (0-based) of the interval.
      terms: pairs of a term's name (one of ``LOSS_TERMS``) and its weight.
    """

    start: int
    terms: tuple[tuple[LossTerm, float], ...]

    def __post_init__(self) -> None:
        require(self.start >= 0, f"loss interval: start must be 0 or more, got {self.start}")
        require(len(self.terms) > 0, "loss interval: at least one term is needed")
        for name, _ in self.terms:
            require(name in LOSS_TERMS, f"unknown loss term {name!r}: choose from {', '.join(LOSS_TERMS)}")
        names = [name for name, _ in self.terms]
        require(len(set(names)) == len(names), f"loss interval: a term stands twice in {names}; add its weights")


@dataclasses.dataclass(frozen=True)
class StoppingConfig:
    """When a fit ends before its last step: once its criterion has not improved for a while. The best iterate is kept.

    Attributes:
      criterion: ``error``: the squared error of the re-blurred image (Chi). ``variance``: the moving variance of the last
        images (ES-WMV; Wang et al., TMLR 2023).
      patience: steps without improvement after which a restart ends (Chi's w).
      from_step: first step (0-based) whose iterate counts.
      window: images over which the variance is taken.
    """

    criterion: Literal["error", "variance"] = "error"
    patience: int = 30
    from_step: int = 1500
    window: int = 100

    def __post_init__(self) -> None:
        require(
            self.criterion in ("error", "variance"), f"unknown stopping criterion {self.criterion!r}: choose error or variance"
        )
        require_positive(self, "stopping", "patience")
        require(self.from_step >= 0, f"stopping: from_step must be 0 or more, got {self.from_step}")
        require(self.window >= 2, f"stopping: window must be 2 or more, got {self.window}")


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Fitting an untrained deep prior to one image: networks, losses, schedules.

    Attributes:
      image_generator: network of the sharp image; a sigmoid keeps it in (0, 1).
      kernel_generator: network of the kernel; None where the kernel is given from outside.
      num_iterations: optimisation steps.
      loss_intervals: the loss as a function of the step; the first starts at 0, starts increase.
      num_samples: Monte-Carlo samples of the latents' noise and the dropout masks per step; the loss is their mean.
      input_noise_std: standard deviation of the Gaussian noise added to the image latent at every step.
      dropout_rate: probability with which features of the image generator are dropped before each re-scaling of its decoder.
      kernel_input_noise_std: as ``input_noise_std``, for the kernel's latent.
      kernel_dropout_rate: as ``dropout_rate``, for a convolutional kernel generator.
      image_learning_rate: Adam's, for the image generator.
      kernel_learning_rate: Adam's, for the kernel generator.
      decay_steps: steps at which both learning rates are multiplied by ``decay_rate``.
      decay_rate: see above.
      update: ``joint``: both sets of parameters by the gradient at the same point. ``sequential``: at every step the kernel's
        first, then the image's by the gradient at the new kernel. ``alternating``: the image's on even steps, the kernel's on
        odd ones.
      stopping: when to end early; None for never.
      chunk_size: steps inside one compiled call; the host looks in between chunks.
    """

    image_generator: ImageGeneratorConfig = SkipNetConfig()
    kernel_generator: KernelGeneratorConfig | None = KernelMlpConfig()
    num_iterations: int = 5000
    loss_intervals: tuple[LossInterval, ...] = (LossInterval(0, (("mse", 1.0),)),)
    num_samples: int = 1
    input_noise_std: Schedule = ((0, 0.001),)
    dropout_rate: Schedule = ((0, 0.0),)
    kernel_input_noise_std: Schedule = ((0, 0.0),)
    kernel_dropout_rate: Schedule = ((0, 0.0),)
    image_learning_rate: float = 1e-2
    kernel_learning_rate: float = 1e-4
    decay_steps: tuple[int, ...] = (2000, 3000, 4000)
    decay_rate: float = 0.5
    update: Update = "joint"
    stopping: StoppingConfig | None = None
    chunk_size: int = 50

    def __post_init__(self) -> None:
        require_positive(self, "fit", "num_iterations", "num_samples", "chunk_size")
        require(self.update in get_args(Update), f"unknown update {self.update!r}: choose from {', '.join(get_args(Update))}")
        check_starts("loss intervals", [interval.start for interval in self.loss_intervals])
        for name in _SCHEDULES:
            schedule = getattr(self, name)
            check_starts(name, [start for start, _ in schedule])
            largest = 1.0 if name.endswith("rate") else float("inf")
            require(all(0 <= value < largest for _, value in schedule), f"{name}: values out of range in {schedule}")
        require(
            all(a < b for a, b in itertools.pairwise(self.decay_steps)),
            f"decay_steps must increase, got {self.decay_steps}",
        )
        if self.randomises_kernel:
            require(
                isinstance(self.kernel_generator, SkipNetConfig | UNetConfig),
                "kernel_input_noise_std and kernel_dropout_rate need a convolutional kernel generator; choose a U-Net",
            )
        if self.kernel_generator is None:
            require(self.update == "joint", f"update {self.update!r} needs a kernel generator; choose joint")

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss term uses a pre-trained network."""
        return any(name in TEACHER_TERMS for interval in self.loss_intervals for name, _ in interval.terms)

    @property
    def randomises_kernel(self) -> bool:
        """Whether the kernel generator is sampled too."""
        return any(value > 0 for schedule in (self.kernel_input_noise_std, self.kernel_dropout_rate) for _, value in schedule)

    def stopped(self, criterion: str | None, *, patience: int | None = None, from_step: int | None = None) -> FitConfig:
        """The same fit with what is not None of its early end changed; see :meth:`Config.override`.

        Raises:
          InputError: a value is out of range, or there is no early end whose values could be set.
        """
        if criterion == "off":
            require(patience is None and from_step is None, "stopping is off: its patience and first step say nothing")
            return dataclasses.replace(self, stopping=None)
        given = not_none(patience=patience, from_step=from_step)
        if criterion is None:
            require(not given or self.stopping is not None, "this preset does not stop early: choose a stopping criterion too")
            return (
                self
                if self.stopping is None
                else dataclasses.replace(self, stopping=dataclasses.replace(self.stopping, **given))
            )
        # The error leaps when the loss changes, and takes a while to come down again; measured, see experiments/README.md.
        settled = self.loss_intervals[-1].start + round(0.15 * self.num_iterations)
        usual = {"from_step": max(settled, round(0.3 * self.num_iterations))}
        if criterion == "variance":
            usual["patience"] = StoppingConfig.window
        return dataclasses.replace(self, stopping=StoppingConfig(**({"criterion": criterion} | usual | given)))

    def stretched(self, num_iterations: int) -> FitConfig:
        """The same fit in another number of steps: every schedule is stretched or shrunk in proportion.

        Args:
          num_iterations: of the result. If it is so small that two changes fall on one step, the later one holds.

        Raises:
          InputError: it is less than 1.
        """
        factor = num_iterations / self.num_iterations

        def scale(step: int) -> int:
            return round(step * factor)

        changes: dict[str, Any] = {}
        for name in _SCHEDULES:
            changes[name] = tuple({scale(start): (scale(start), value) for start, value in getattr(self, name)}.values())
        intervals = [dataclasses.replace(interval, start=scale(interval.start)) for interval in self.loss_intervals]
        changes["loss_intervals"] = tuple({interval.start: interval for interval in intervals}.values())
        if self.stopping is not None:
            changes["stopping"] = dataclasses.replace(self.stopping, from_step=scale(self.stopping.from_step))
        changes["decay_steps"] = tuple(sorted({scale(step) for step in self.decay_steps}))
        return dataclasses.replace(self, num_iterations=num_iterations, **changes)
