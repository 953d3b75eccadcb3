"""Fitting untrained deep priors to one blurry image: the host's side of it."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.config import FitConfig, KernelLogitsConfig, check_kernel_size
from jaxdeblur.errors import InputError
from jaxdeblur.networks import kernel_mlp
from jaxdeblur.networks.teachers.teacher import Teacher, restoration
from jaxdeblur.operators import blur
from jaxdeblur.optimise import restarts, schedules
from jaxdeblur.optimise.losses import Estimate, Observation
from jaxdeblur.optimise.restarts import RestartStatus, Stop
from jaxdeblur.optimise.state import TrainState, load_checkpoint, save_checkpoint
from jaxdeblur.optimise.step import Program, initial_state, posterior, render, run_chunk
from jaxdeblur.optimise.stopping import best_params, stops_of
from jaxdeblur.version import __version__

Progress = Callable[[str, int, int, Mapping[str, float]], None]
Snapshot = Callable[[int, np.ndarray, np.ndarray], None]

NUM_RETRIES = 2
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """One image to be fitted, and what is known of it.

    Attributes:
      blurry: ``[H, W]`` in [0, 1].
      key: typed random key.
      kernel: ``[h, w]``, known and kept: only the image generator is fitted. ``[R', C', h, w]`` if it varies, see
        :func:`jaxdeblur.operators.filter_flow.filter_flow`.
      initial_kernel: ``[h, w]`` or one per restart ``[R, h, w]``, where a ``logits`` kernel generator starts.
      teacher_kernel: ``[h, w]`` that the pre-trained network deconvolves with; None for the estimate of the moment.
      surrogate: ``[H, W]``, that network's restoration of the blurry image, if known beforehand (from the colours, say).
      noise_std: of the blurry image's noise, in [0, 1] units.
      snapshot: called between chunks with (steps done, image ``[H, W]``, kernel ``[h, w]``) of the first restart.
    """

    blurry: jax.Array | np.ndarray
    key: jax.Array
    kernel: jax.Array | np.ndarray | None = None
    initial_kernel: jax.Array | np.ndarray | None = None
    teacher_kernel: jax.Array | np.ndarray | None = None
    surrogate: jax.Array | np.ndarray | None = None
    noise_std: float = 0.0
    snapshot: Snapshot | None = None


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a fit found, restarts along the first axis.

    Attributes:
      images: ``[R, H, W]``, cropped to the blurry image's frame, in [0, 1].
      full_images: ``[R, H+h-1, W+w-1]``, on the whole support.
      kernels: ``[R, h, w]``, each sums to 1.
      losses: ``[R, T]``, the loss before each step; NaN after the step at which a run was given up or stopped early.
      errors: ``[R, T]``, the mean squared error of the re-blurred image before each step.
      best: index of the best restart, judged without ground truth.
      statuses: one per restart.
      state: of all restarts after the last step.
      posterior_mean: ``[R, H, W]``, over samples of the image generator; None if none were asked for.
      posterior_std: ``[R, H, W]``, likewise.
    """

    images: np.ndarray
    full_images: np.ndarray
    kernels: np.ndarray
    losses: np.ndarray
    errors: np.ndarray
    best: int
    statuses: tuple[RestartStatus, ...]
    state: TrainState
    posterior_mean: np.ndarray | None = None
    posterior_std: np.ndarray | None = None

    @property
    def image(self) -> np.ndarray:
        """The best restart's image ``[H, W]``."""
        return self.images[self.best]

    @property
    def kernel(self) -> np.ndarray:
        """The best restart's kernel ``[h, w]``."""
        return self.kernels[self.best]


@dataclasses.dataclass(frozen=True)
class _Run:
    """One attempt at some members: its last state, metrics per step ``[T, M]``, and why each member is useless (or None)."""

    state: TrainState
    history: dict[str, np.ndarray]
    reasons: list[str | None]


@dataclasses.dataclass(frozen=True)
class _Task:
    """A fit's inputs after checking; the arguments of :func:`fit_batch` explain them.

    Its members are the restarts of the first problem, then those of the second one and so on. What is said of each
    (``observation``, ``initial_kernels``, ``delta_allowed``, ``blurry_std``) is said in that order.
    """

    problems: tuple[Problem, ...]
    num_restarts: int
    program: Program
    observation: Observation
    plan: schedules.Plan
    num_iterations: int
    initial_kernels: jax.Array | None
    delta_allowed: list[bool]
    blurry_std: list[float]
    progress: Progress | None
    checkpoint: Path | None
    checkpoint_interval: float
    identity: str

    def run(self, members: list[int], attempt: int) -> _Run:
        """Fits ``members``, from a checkpoint if there is one."""
        observation = self.observation.take(np.array(members))
        keys = jnp.stack([self._key(member, attempt) for member in members])
        logits = None if self.initial_kernels is None else kernel_mlp.logits_of(self.initial_kernels[np.array(members)])
        state = initial_state(self.program, keys, logits)
        history: dict[str, np.ndarray] = {}
        identity = f"{self.identity} {attempt} {members}"
        path = self.checkpoint
        if path is not None and attempt:
            path = path.with_name(f"{path.name}.retry{attempt}")
        if path is not None and path.exists():
            state, history = load_checkpoint(path, state, identity)
            _LOG.info("going on from %s at step %d", path, int(state.step))

        done, saved = int(state.step), time.monotonic()
        reasons = self._collapse_reasons(history, members, done)
        while not self._ended(state, reasons):
            count = min(self.program.chunk_size, self.num_iterations - done)
            state, record = run_chunk(self.program, state, observation, self.plan, count)
            taken = int(state.step) - done
            rows = {name: value[:taken] for name, value in jax.device_get(record).items()}
            history = {name: np.concatenate([history[name], row]) if history else row for name, row in rows.items()}
            done += taken
            reasons = self._collapse_reasons(history, members, done)
            if path is not None and (self._ended(state, reasons) or time.monotonic() - saved >= self.checkpoint_interval):
                save_checkpoint(path, state, history, identity)
                saved = time.monotonic()
            if self.progress is not None:
                self.progress("fit", done, self.num_iterations, {"loss": float(np.min(history["loss"][-1]))})
            self._show(state, observation, members, done)
        return _Run(state, history, reasons)

    def _key(self, member: int, attempt: int) -> jax.Array:
        problem, restart = divmod(member, self.num_restarts)
        return jax.random.fold_in(jax.random.fold_in(self.problems[problem].key, restart), attempt)

    def _show(self, state: TrainState, observation: Observation, members: list[int], done: int) -> None:
        """Calls the problems' snapshots."""
        if all(problem.snapshot is None for problem in self.problems):
            return
        estimate = render(self.program, state, observation)
        images, kernels = self.cropped(estimate.image), np.asarray(estimate.kernel)
        for column, member in enumerate(members):
            problem, restart = divmod(member, self.num_restarts)
            snapshot = self.problems[problem].snapshot
            if snapshot is not None and restart == 0:
                snapshot(done, images[column], kernels[column])

    def _ended(self, state: TrainState, reasons: list[str | None]) -> bool:
        stopped = state.stopping is not None and bool(jnp.all(state.stopping.stopped))
        return int(state.step) == self.num_iterations or stopped or all(reasons)

    def rendered(self, state: TrainState) -> Estimate:
        """What all members have come to."""
        return render(self.program, state, self.observation)

    def cropped(self, images: jax.Array | np.ndarray) -> np.ndarray:
        """Images ``[M, H+h-1, W+w-1]`` cut to the blurry frame, ``[M, H, W]``."""
        return np.asarray(blur.crop_to_blurry(jnp.asarray(images), self.program.kernel_shape))

    def _collapse_reasons(self, history: dict[str, np.ndarray], members: list[int], done: int) -> list[str | None]:
        if not history:
            return [None] * len(members)
        return [
            restarts.collapse_reason(
                steps=done,
                loss=float(history["loss"][-1, column]),
                image_std=float(history["image_std"][-1, column]),
                kernel_peak=float(history["kernel_peak"][-1, column]),
                blurry_std=self.blurry_std[member],
                delta_allowed=self.delta_allowed[member],
            )
            for column, member in enumerate(members)
        ]


def _merge(whole: _Run, part: _Run, members: list[int]) -> _Run:
    """Puts the members of ``part`` in their places ``members`` of ``whole``."""
    where = np.array(members)

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return new if old.ndim == 0 else old.at[where].set(new)

    length = max(len(run.history["loss"]) for run in (whole, part))

    def put_rows(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        merged = np.full((length, old.shape[1]), np.nan, old.dtype)
        merged[: len(old)] = old
        merged[:, where] = np.nan
        merged[: len(new), where] = new
        return merged

    reasons = list(whole.reasons)
    for member, reason in zip(members, part.reasons, strict=True):
        reasons[member] = reason
    history = {name: put_rows(old, part.history[name]) for name, old in whole.history.items()}
    return _Run(jax.tree.map(put, whole.state, part.state), history, reasons)


def fit(
    blurry: jax.Array | np.ndarray,
    config: FitConfig,
    *,
    key: jax.Array,
    kernel_size: int | tuple[int, int],
    num_restarts: int = 1,
    kernel: jax.Array | np.ndarray | None = None,
    initial_kernel: jax.Array | np.ndarray | None = None,
    teacher: Teacher | None = None,
    teacher_kernel: jax.Array | np.ndarray | None = None,
    surrogate: jax.Array | np.ndarray | None = None,
    noise_std: float = 0.0,
    num_posterior_samples: int = 0,
    progress: Progress | None = None,
    snapshot: Snapshot | None = None,
    checkpoint: Path | None = None,
    checkpoint_interval: float = 60.0,
) -> FitResult:
    """Fits the generators to one grey image: :func:`fit_batch` of one :class:`Problem`; see both for the arguments."""
    (result,) = fit_batch(
        [Problem(blurry, key, kernel, initial_kernel, teacher_kernel, surrogate, noise_std, snapshot)],
        config,
        kernel_size=kernel_size,
        num_restarts=num_restarts,
        teacher=teacher,
        num_posterior_samples=num_posterior_samples,
        progress=progress,
        checkpoint=checkpoint,
        checkpoint_interval=checkpoint_interval,
    )
    return result


def fit_batch(
    problems: Sequence[Problem],
    config: FitConfig,
    *,
    kernel_size: int | tuple[int, int],
    num_restarts: int = 1,
    teacher: Teacher | None = None,
    num_posterior_samples: int = 0,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    checkpoint_interval: float = 60.0,
) -> list[FitResult]:
    """Fits the generators to grey images of one shape, all of them and all their restarts in one program.

    Minimises ``Σ_terms weight · term(G_x(z_x), G_k(z_k), y)`` over the parameters of the image generator G_x and the kernel
    generator G_k, from random starts, by Adam. Restart r of a problem depends on ``fold_in(its key, r)`` alone, and step t of
    it on ``fold_in(·, t)``: so neither what runs beside it nor an interruption changes what it finds (but for single
    precision's rounding, which depends on the number of fits that run together and which many steps magnify). A restart that
    collapses is run again with a new key, at most :data:`NUM_RETRIES` times.

    Args:
      problems: the images, alike in shape and in what is known of them.
      config: networks, losses, schedules.
      kernel_size: odd side, or sides ``(h, w)``, of the kernels.
      num_restarts: independent runs of each problem.
      teacher: the pre-trained network that ``config``'s loss terms use.
      num_posterior_samples: samples of the fitted image generator of which mean and standard deviation are taken.
      progress: called between chunks with (phase, steps done, steps in all, metrics).
      checkpoint: file to which the state is written now and then, and from which an interrupted run goes on.
      checkpoint_interval: seconds between two writes.

    Returns:
      One result per problem.

    Raises:
      InputError: inconsistent arguments, or a checkpoint that is damaged or belongs to another run.
    """
    shape = (kernel_size, kernel_size) if isinstance(kernel_size, int) else (int(kernel_size[0]), int(kernel_size[1]))
    task = _check(problems, config, shape, num_restarts, teacher, progress, checkpoint, checkpoint_interval)
    num_members = num_restarts * len(problems)
    run = task.run(list(range(num_members)), 0)
    retried: list[tuple[str, ...]] = [()] * num_members
    for attempt in range(1, 1 + NUM_RETRIES):
        collapsed = {member: reason for member, reason in enumerate(run.reasons) if reason is not None}
        if not collapsed:
            break
        for member, reason in collapsed.items():
            image, restart = divmod(member, num_restarts)
            which = f"restart {restart}" if len(problems) == 1 else f"restart {restart} of image {image}"
            _LOG.warning("%s collapsed (%s): trying again with a new key", which, reason)
            retried[member] = (*retried[member], reason)
        run = _merge(run, task.run(list(collapsed), attempt), list(collapsed))

    state, losses = run.state, run.history["loss"].T
    stops: list[Stop | None] = [None] * num_members
    if (stopping := state.stopping) is not None and config.stopping is not None:
        state = dataclasses.replace(state, params=best_params(stopping, state.params))
        stops = stops_of(stopping, config.stopping)
        for member, stop in enumerate(stops):
            if stop is not None:
                losses[member, stop.step + 1 :] = np.nan
    estimate = task.rendered(state)
    images, reblurred = task.cropped(estimate.image), np.asarray(estimate.reblurred)
    statuses = tuple(
        RestartStatus(reason, tuple(past), stop) for reason, past, stop in zip(run.reasons, retried, stops, strict=True)
    )
    mean = std = None
    if num_posterior_samples:
        moments = jax.device_get(posterior(task.program, state, task.plan, num_posterior_samples))
        mean, std = (task.cropped(moment) for moment in moments)

    def result(problem: int) -> FitResult:
        own = slice(problem * num_restarts, (problem + 1) * num_restarts)
        usable = [status.ok for status in statuses[own]]
        return FitResult(
            images=images[own],
            full_images=np.asarray(estimate.image[own]),
            kernels=np.asarray(estimate.kernel[own]),
            losses=losses[own],
            errors=run.history["error"].T[own],
            best=restarts.best_restart(images[own], reblurred[own], np.asarray(problems[problem].blurry), usable),
            statuses=statuses[own],
            # Counts have no axis of members.
            state=jax.tree.map(lambda leaf: leaf if leaf.ndim == 0 else leaf[own], state),
            posterior_mean=None if mean is None else mean[own],
            posterior_std=None if std is None else std[own],
        )

    return [result(problem) for problem in range(len(problems))]


def _observation(problem: Problem, teacher: Teacher | None) -> Observation:
    """What the losses see of a problem."""

    def array(given: jax.Array | np.ndarray | None) -> jax.Array | None:
        return None if given is None else jnp.asarray(given, jnp.float32)

    surrogate = problem.surrogate
    if teacher is not None and surrogate is None and not (teacher.needs_kernel and problem.teacher_kernel is None):
        surrogate = restoration(teacher, np.asarray(problem.blurry), problem.teacher_kernel)
    return Observation(
        blurry=jnp.asarray(problem.blurry, jnp.float32),
        noise_std=problem.noise_std,
        kernel=array(problem.kernel),
        teacher=teacher,
        teacher_kernel=array(problem.teacher_kernel),
        surrogate=array(surrogate),
    )


def _check(
    problems: Sequence[Problem],
    config: FitConfig,
    kernel_shape: tuple[int, int],
    num_restarts: int,
    teacher: Teacher | None,
    progress: Progress | None,
    checkpoint: Path | None,
    checkpoint_interval: float,
) -> _Task:
    """Refuses inconsistent arguments of :func:`fit_batch`, and derives what follows from them."""
    chex.assert_scalar_positive(num_restarts)
    if config.needs_teacher and teacher is None:
        raise InputError("a loss term uses a pre-trained network: give a teacher, or a config without such terms")
    scenes = [_observation(problem, teacher if config.needs_teacher else None) for problem in problems]
    shape = scenes[0].blurry.shape
    for problem, scene in zip(problems, scenes, strict=True):
        chex.assert_rank(scene.blurry, 2)
        if scene.surrogate is not None:
            chex.assert_equal_shape([scene.surrogate, scene.blurry])
        if problem.kernel is not None:
            chex.assert_rank(problem.kernel, {2, 4})
            chex.assert_shape(problem.kernel, (..., *kernel_shape))
            if problem.initial_kernel is not None:
                raise InputError("a known kernel and an initial kernel were both given: leave one out")
        elif config.kernel_generator is None:
            raise InputError("this fit restores the image for a given kernel only: give one")
        if problem.initial_kernel is not None and not isinstance(config.kernel_generator, KernelLogitsConfig):
            raise InputError("this kernel generator cannot start from a given kernel: choose KernelLogitsConfig")
        if scene.blurry.shape != shape or not _alike(problem, problems[0]):
            raise InputError("these images cannot be fitted together: give images of one shape, of which the same is known")
    for side, length in zip(kernel_shape, shape, strict=True):
        check_kernel_size(side)
        if side > length:
            raise InputError(f"kernel size {side} is larger than the image's {length} pixels: choose a smaller one")

    starts = None
    if problems[0].initial_kernel is not None:
        per_problem = [jnp.asarray(problem.initial_kernel, jnp.float32) for problem in problems]
        starts = jnp.concatenate([jnp.broadcast_to(start, (num_restarts, *kernel_shape)) for start in per_problem])
    delta_allowed = []
    for number, problem in enumerate(problems):
        allowed = problem.kernel is not None or restarts.delta_is_plausible(np.asarray(problem.blurry), problem.noise_std)
        for member in range(number * num_restarts, (number + 1) * num_restarts):
            starts_as_delta = starts is not None and float(jnp.max(starts[member])) > restarts.DELTA_PEAK
            delta_allowed.append(allowed or starts_as_delta)

    # A teacher's weights are many: once, and not for every scene.
    observation = Observation.stack(scenes)
    keys = [jax.random.key_data(problem.key).tolist() for problem in problems]
    # An estimate of noise is a sum, whose last digits depend on the number of cores: a fit may go on with another.
    noise = [f"{float(scene.noise_std):.3g}" for scene in scenes]
    parts = (__version__, config, kernel_shape, num_restarts, keys, noise)
    digest = hashlib.sha256(repr(parts).encode())
    for array in (starts, *jax.tree.leaves(dataclasses.replace(observation, noise_std=0.0))):
        digest.update(b"none" if array is None else repr(np.shape(array)).encode() + np.asarray(array).tobytes())
    return _Task(
        problems=tuple(problems),
        num_restarts=num_restarts,
        program=Program.of(config, (shape[0], shape[1]), kernel_shape, kernel_known=problems[0].kernel is not None),
        observation=observation.take(np.repeat(np.arange(len(scenes)), num_restarts)),
        plan=schedules.plan(config),
        num_iterations=config.num_iterations,
        initial_kernels=starts,
        delta_allowed=delta_allowed,
        blurry_std=[float(jnp.std(scene.blurry)) for scene in scenes for _ in range(num_restarts)],
        progress=progress,
        checkpoint=checkpoint,
        checkpoint_interval=checkpoint_interval,
        identity=digest.hexdigest(),
    )


def _alike(one: Problem, other: Problem) -> bool:
    """Whether the same is known of both."""
    names = ("kernel", "initial_kernel", "teacher_kernel", "surrogate")
    return all((getattr(one, name) is None) == (getattr(other, name) is None) for name in names)
