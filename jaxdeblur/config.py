"""Every setting of a run as frozen, hashable dataclasses, checked when they are built.

A :class:`Config` says what happens along *observe → initialise → optimise → finish*: how the kernel is first guessed
(:class:`InitialiserConfig`), whether and how an untrained deep prior is fitted (:class:`FitConfig`), and how the final image
is made (:class:`NonblindConfig`, ``final``). Methods are values of it, kept in :mod:`jaxdeblur.presets`.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal, get_args

from jaxdeblur.errors import InputError

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
Final = Literal["auto", "generator", "sparse", "hyper_laplacian", "saturated", "teacher"]
Update = Literal["joint", "sequential", "alternating"]

# What a JPEG's quantisation does to a blurry photograph, chosen by eye on such photographs.
COMPRESSED_NOISE_STD = 0.005

# Pictures with fewer pixels a side are refused.
SMALLEST_SIDE = 32

LOSS_TERMS: tuple[str, ...] = get_args(LossTerm)
FINALS: tuple[str, ...] = get_args(Final)
# Terms that ask a pre-trained network.
TEACHER_TERMS = ("weak_mse", "weak_mae", "weak_one_minus_ssim", "teacher_agreement")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def check_kernel_size(size: int) -> None:
    """Raises InputError unless ``size`` is a positive odd number of pixels, at least 3."""
    _require(
        size >= 3 and size % 2 == 1,
        f"kernel size {size} cannot be used: give an odd number of pixels, 3 or more, or 'auto'",
    )


def _require_positive(config: Any, what: str, *names: str) -> None:
    for name in names:
        _require(getattr(config, name) >= 1, f"{what}: {name} must be 1 or more, got {getattr(config, name)}")


@dataclasses.dataclass(frozen=True)
class SkipNetConfig:
    """The skip-connected encoder-decoder ("DIP skip net") of SelfDeblur.

    Attributes:
      name: tells the networks apart in a saved configuration.
      num_scales: how many times the resolution is halved.
      channels: width of the downward and upward paths.
      skip_channels: width of the skip branches.
      latent_channels: channels of the fixed random input.
      latent_scale: that input is uniform in [0, latent_scale].
      non_local: dot-product non-local blocks from the third scale on, as in SelfDeblur's public code.
      non_local_channels: inner width of those blocks.
      negative_slope: slope of the LeakyReLUs.
    """

    name: Literal["skip"] = "skip"
    num_scales: int = 5
    channels: int = 128
    skip_channels: int = 16
    latent_channels: int = 8
    latent_scale: float = 0.1
    non_local: bool = True
    non_local_channels: int = 64
    negative_slope: float = 0.2

    def __post_init__(self) -> None:
        _require_positive(self, "skip net", "num_scales", "channels", "skip_channels", "latent_channels", "non_local_channels")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The U-Net of the Monte-Carlo method.

    Attributes:
      name: tells the networks apart in a saved configuration.
      num_levels: resolutions, the full one included.
      channels: width of every level.
      latent_channels: channels of the fixed random input.
      latent_scale: that input is uniform in [0, latent_scale].
      negative_slope: slope of the LeakyReLUs.
    """

    name: Literal["unet"] = "unet"
    num_levels: int = 6
    channels: int = 128
    latent_channels: int = 8
    latent_scale: float = 0.1
    negative_slope: float = 0.1

    def __post_init__(self) -> None:
        _require(self.num_levels >= 2, f"U-Net: num_levels must be 2 or more, got {self.num_levels}")
        _require_positive(self, "U-Net", "channels", "latent_channels")


@dataclasses.dataclass(frozen=True)
class KernelMlpConfig:
    """SelfDeblur's fully connected generator of the blur kernel.

    Attributes:
      name: tells the networks apart in a saved configuration.
      latent_size: length of the fixed random input.
      latent_scale: that input is uniform in [0, latent_scale].
      hidden_sizes: widths of the hidden layers (ReLU6 between them).
    """

    name: Literal["mlp"] = "mlp"
    latent_size: int = 200
    latent_scale: float = 0.1
    hidden_sizes: tuple[int, ...] = (1000,)

    def __post_init__(self) -> None:
        _require_positive(self, "kernel MLP", "latent_size")
        _require(all(size >= 1 for size in self.hidden_sizes), f"kernel MLP: bad hidden_sizes {self.hidden_sizes}")


@dataclasses.dataclass(frozen=True)
class KernelLogitsConfig:
    """No net for the kernel: its pixels before the softmax are the parameters, so that a known guess can be refined.

    Attributes:
      name: tells the networks apart in a saved configuration.
    """

    name: Literal["logits"] = "logits"


ImageGeneratorConfig = SkipNetConfig | UNetConfig
# A softmax over all pixels keeps kernels non-negative and summing to one, whichever network makes them.
KernelGeneratorConfig = KernelMlpConfig | KernelLogitsConfig | SkipNetConfig | UNetConfig

# A piecewise constant function of the step: pairs of a first step (0-based) and the value from there on.
Schedule = tuple[tuple[int, float], ...]
# The fields of a fit that are such functions.
_SCHEDULES = ("input_noise_std", "kernel_input_noise_std", "dropout_rate", "kernel_dropout_rate")


def constant(value: float) -> Schedule:
    """The schedule that is ``value`` at every step."""
    return ((0, value),)


def _check_starts(what: str, starts: list[int]) -> None:
    _require(
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
        _require(self.start >= 0, f"loss interval: start must be 0 or more, got {self.start}")
        _require(len(self.terms) > 0, "loss interval: at least one term is needed")
        for name, _ in self.terms:
            _require(name in LOSS_TERMS, f"unknown loss term {name!r}: choose from {', '.join(LOSS_TERMS)}")
        names = [name for name, _ in self.terms]
        _require(len(set(names)) == len(names), f"loss interval: a term stands twice in {names}; add its weights")


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
        _require(
            self.criterion in ("error", "variance"), f"unknown stopping criterion {self.criterion!r}: choose error or variance"
        )
        _require_positive(self, "stopping", "patience")
        _require(self.from_step >= 0, f"stopping: from_step must be 0 or more, got {self.from_step}")
        _require(self.window >= 2, f"stopping: window must be 2 or more, got {self.window}")


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
        _require_positive(self, "fit", "num_iterations", "num_samples", "chunk_size")
        _require(self.update in get_args(Update), f"unknown update {self.update!r}: choose from {', '.join(get_args(Update))}")
        _check_starts("loss intervals", [interval.start for interval in self.loss_intervals])
        for name in _SCHEDULES:
            schedule = getattr(self, name)
            _check_starts(name, [start for start, _ in schedule])
            largest = 1.0 if name.endswith("rate") else float("inf")
            _require(all(0 <= value < largest for _, value in schedule), f"{name}: values out of range in {schedule}")
        _require(
            all(a < b for a, b in itertools.pairwise(self.decay_steps)),
            f"decay_steps must increase, got {self.decay_steps}",
        )
        if self.randomises_kernel:
            _require(
                isinstance(self.kernel_generator, SkipNetConfig | UNetConfig),
                "kernel_input_noise_std and kernel_dropout_rate need a convolutional kernel generator; choose a U-Net",
            )
        if self.kernel_generator is None:
            _require(self.update == "joint", f"update {self.update!r} needs a kernel generator; choose joint")

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss term asks a pre-trained network."""
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
            _require(patience is None and from_step is None, "stopping is off: its patience and first step say nothing")
            return dataclasses.replace(self, stopping=None)
        given = _given(patience=patience, from_step=from_step)
        if criterion is None:
            _require(not given or self.stopping is not None, "this preset does not stop early: choose a stopping criterion too")
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


@dataclasses.dataclass(frozen=True)
class InitialiserConfig:
    """The classical kernel estimate: L0-gradient pyramid for several guesses, variational refinement, choice by evidence.

    See :mod:`jaxdeblur.classical.kernel_l0` and :mod:`jaxdeblur.classical.variational` for the equations.

    Attributes:
      gradient_weights: weights of the L0 prior; every pair of a weight and a support makes a guess.
      support_shares: sides of the supports that guesses are confined to, as shares of the kernel's.
      kernel_ridge: weight of ``‖k‖²`` in the L0 pyramid's kernel step.
      level_iterations: alternations of image and kernel per level of the pyramid.
      guess_iterations: variational iterations given to every guess before it is judged.
      num_finalists: guesses that remain after that.
      finalist_iterations: variational iterations given to each of them before they are judged again.
      refine_iterations: variational iterations given to the chosen guess, at the level where it was chosen.
      fine_iterations: variational iterations given to it at each finer level.
      noise_variance: of the gradients in the variational model, in squared [0, 1] units; where its annealing ends.
      first_noise_variance: where the annealing begins.
      camera_blur_std: standard deviation in pixels of the Gaussian that a sharp photograph's steps are taken to carry.
      guess_side: guesses are told apart on a level of the pyramid of at most about this many pixels a side.
      refine_side: on finer levels the kernel is refined on an informative crop of at most this many pixels a side.
      image_side: of larger images, only an informative crop of this many pixels a side is looked at.
    """

    gradient_weights: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
    support_shares: tuple[float, ...] = (1.0, 0.7, 0.5)
    kernel_ridge: float = 2.0
    level_iterations: int = 5
    guess_iterations: int = 20
    num_finalists: int = 3
    finalist_iterations: int = 60
    refine_iterations: int = 120
    fine_iterations: int = 40
    noise_variance: float = 1e-5
    first_noise_variance: float = 3e-5
    camera_blur_std: float = 0.4
    guess_side: int = 300
    refine_side: int = 512
    image_side: int = 1280

    def __post_init__(self) -> None:
        _require(len(self.gradient_weights) > 0, "initialiser: give at least one gradient weight")
        _require(min(self.gradient_weights) > 0, "initialiser: gradient weights must be positive")
        _require(
            len(self.support_shares) > 0 and min(self.support_shares) > 0 and max(self.support_shares) <= 1,
            "initialiser: support_shares must lie in (0, 1]",
        )
        _require(self.num_finalists >= 1, "initialiser: num_finalists must be 1 or more")
        _require(self.level_iterations >= 1, "initialiser: level_iterations must be 1 or more")
        _require(
            0 < self.noise_variance <= self.first_noise_variance,
            "initialiser: noise_variance must be positive and at most first_noise_variance",
        )
        _require(min(self.guess_side, self.refine_side, self.image_side) >= 64, "initialiser: sides must be 64 pixels or more")


@dataclasses.dataclass(frozen=True)
class NonblindConfig:
    """The non-blind step from a kernel to the final image.

    Attributes:
      sparse_weight: weight of the sparse prior for a noise-free photograph of 8 bits; it grows with the noise, see
        :func:`jaxdeblur.classical.sparse.weight_for_noise`.
      tile_side: images larger than this are restored in overlapping tiles, which bounds the memory.
    """

    sparse_weight: float = 1e-4
    tile_side: int = 1280

    def __post_init__(self) -> None:
        _require(self.sparse_weight > 0, "nonblind: sparse_weight must be positive")
        _require(self.tile_side >= 256, "nonblind: tile_side must be 256 or more")


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """A pre-trained deblurring network.

    Attributes:
      name: ``dmphn`` (blind) or ``dwdn`` (deconvolves with a kernel).
      weights: file or folder of its weights; None as long as nobody has said where they are.
      kernel_source: where ``dwdn``'s kernel comes from: the ``classical`` initialiser, or the ``current`` estimate of the fit.
    """

    name: Literal["dmphn", "dwdn"] = "dmphn"
    weights: str | None = None
    kernel_source: Literal["classical", "current"] = "classical"

    def __post_init__(self) -> None:
        _require(self.name in ("dmphn", "dwdn"), f"unknown teacher {self.name!r}: choose dmphn or dwdn")
        _require(
            self.kernel_source in ("classical", "current"),
            f"unknown kernel_source {self.kernel_source!r}: choose classical or current",
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run: *initialise → optimise → finish*.

    Attributes:
      name: the preset's name.
      kernel_size: odd side of the blur kernel's support, or None to find it.
      initialiser: how the kernel is estimated classically, or None to leave that to the deep prior alone.
      fit: the deep prior to fit, or None for a classical run.
      num_restarts: independent fits of the deep prior, in one program.
      teacher: the pre-trained network that loss terms or the final image ask, or None.
      final: where the final image comes from. ``generator``: the deep prior's image. ``teacher``: the pre-trained network's
        alone. ``sparse``, ``hyper_laplacian``, ``saturated`` (for clipped highlights): that non-blind method with the estimated
        kernel. ``auto``: the method's own choice.
      nonblind: settings of the non-blind step.
      num_posterior_samples: samples of the fitted image generator (under the noise and dropout of the last step) of which mean
        and standard deviation are taken; 0 for none.
      smallest_noise_std: noise of at least this standard deviation, in [0, 1] units, is assumed. Lossy compression leaves
        errors that a noise estimate cannot see; for JPEG files the command line sets :data:`COMPRESSED_NOISE_STD`.
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

    def __post_init__(self) -> None:
        if self.kernel_size is not None:
            check_kernel_size(self.kernel_size)
        _require(0 <= self.smallest_noise_std < 1, f"smallest_noise_std must be in [0, 1), got {self.smallest_noise_std}")
        _require(self.num_restarts >= 1, f"num_restarts must be 1 or more, got {self.num_restarts}")
        _require(self.final in FINALS, f"unknown final {self.final!r}: choose from {', '.join(FINALS)}")
        _require(
            self.initialiser is not None or self.fit is not None or self.final == "teacher",
            f"{self.name}: nothing estimates the kernel; give an initialiser, a fit, or both",
        )
        _require(
            self.fit is not None or self.final != "generator",
            f"{self.name}: final 'generator' needs a deep prior, and this preset fits none; choose sparse or hyper_laplacian",
        )
        _require(
            self.num_posterior_samples == 0 or (self.fit is not None and self.num_posterior_samples >= 2),
            f"{self.name}: num_posterior_samples={self.num_posterior_samples} cannot be used; give 2 or more, with a fit",
        )

        _require(
            self.teacher is not None or not (self.final == "teacher" or (self.fit is not None and self.fit.needs_teacher)),
            f"{self.name}: a pre-trained network is asked but none is named; give a teacher",
        )
        if self.teacher is not None and self.teacher.name == "dwdn":
            classical = self.teacher.kernel_source == "classical"
            _require(
                not classical or self.initialiser is not None,
                f"{self.name}: dwdn deconvolves with the classical kernel; give an initialiser (preset weak_dwdn has one)",
            )
            _require(
                classical or self.final != "teacher",
                f"{self.name}: dwdn alone has no current estimate; choose kernel_source='classical'",
            )
        _require(
            self.final != "teacher" or self.fit is None,
            f"{self.name}: final 'teacher' makes no use of a fit; leave the fit out",
        )

    @property
    def needs_kernel(self) -> bool:
        """Whether the kernel has to be given, because nothing here estimates it."""
        if self.final == "teacher" and self.teacher is not None and self.teacher.name == "dmphn":
            return False
        return self.initialiser is None and (self.fit is None or self.fit.kernel_generator is None)

    def override(
        self,
        *,
        kernel_size: int | None = None,
        num_iterations: int | None = None,
        num_restarts: int | None = None,
        num_posterior_samples: int | None = None,
        final: Final | None = None,
        teacher: str | None = None,
        teacher_weights: str | None = None,
        stopping: str | None = None,
        stopping_patience: int | None = None,
        stopping_from: int | None = None,
    ) -> Config:
        """A copy with the fields that are not None replaced; a fit's schedules are stretched with ``num_iterations``.

        ``stopping`` is a criterion of :class:`StoppingConfig`, or ``off``. If nothing else is said, iterates count from three
        tenths of the steps on, but not in the 15 % after the loss has changed for the last time, and 30 steps without a
        smaller error, or as many as the window's without a smaller variance, end it.

        Raises:
          InputError: a value is out of range, or the preset has nothing that it could set.
        """
        of_a_fit = _given(
            num_iterations=num_iterations,
            num_restarts=num_restarts,
            num_posterior_samples=num_posterior_samples,
            stopping=stopping,
            stopping_patience=stopping_patience,
            stopping_from=stopping_from,
        )
        for name in of_a_fit:
            _require(
                self.fit is not None,
                f"{name} cannot be set: preset {self.name!r} fits no deep prior; choose another preset",
            )
        changes = _given(
            kernel_size=kernel_size, num_restarts=num_restarts, num_posterior_samples=num_posterior_samples, final=final
        )
        if self.fit is not None:
            fit = self.fit if num_iterations is None else self.fit.stretched(num_iterations)
            changes["fit"] = fit.stopped(stopping, patience=stopping_patience, from_step=stopping_from)
        named = _given(name=teacher, weights=teacher_weights)
        _require(
            not named or self.teacher is not None,
            f"preset {self.name!r} asks no pre-trained network; choose one that does, such as weak_dmphn or dmphn",
        )
        if self.teacher is not None:
            changes["teacher"] = dataclasses.replace(self.teacher, **named)
        return dataclasses.replace(self, **changes)
