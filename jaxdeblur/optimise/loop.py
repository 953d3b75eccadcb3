"""Fitting untrained deep priors to one blurry image: the host's side of it."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur import schedules
from jaxdeblur.config import FitConfig, KernelLogitsConfig, check_kernel_size
from jaxdeblur.errors import InputError
from jaxdeblur.losses import Estimate, Observation
from jaxdeblur.networks import kernel_mlp
from jaxdeblur.networks.teachers.teacher import Teacher, restoration
from jaxdeblur.operators import blur
from jaxdeblur.optimise import restarts
from jaxdeblur.optimise.restarts import RestartStatus, Stop
from jaxdeblur.optimise.state import TrainState, load_checkpoint, save_checkpoint
from jaxdeblur.optimise.step import Program, initial_state, posterior, render, run_chunk
from jaxdeblur.optimise.stopping import best_params, stops_of
from jaxdeblur.version import __version__

Progress = Callable[[str, int, int, Mapping[str, float]], None]
Snapshot = Callable[[int, np.ndarray, np.ndarray], None]

NUM_RETRIES = 2
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What :func:`fit` found, restarts along the first axis.

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
    """One attempt at some restarts: its last state, metrics per step ``[T, R]``, and why each restart is useless (or None)."""

    state: TrainState
    history: dict[str, np.ndarray]
    reasons: list[str | None]


@dataclasses.dataclass(frozen=True)
class _Task:
    """A fit's inputs after checking; the arguments of :func:`fit` explain them."""

    program: Program
    observation: Observation
    plan: schedules.Plan
    num_iterations: int
    key: jax.Array
    initial_kernels: jax.Array | None
    delta_allowed: list[bool]
    progress: Progress | None
    snapshot: Snapshot | None
    checkpoint: Path | None
    checkpoint_interval: float
    identity: str

    def run(self, members: list[int], attempt: int) -> _Run:
        """Fits the restarts ``members``, from a checkpoint if there is one."""
        keys = jnp.stack([jax.random.fold_in(jax.random.fold_in(self.key, member), attempt) for member in members])
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
            state, record = run_chunk(self.program, state, self.observation, self.plan, count)
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
            if self.snapshot is not None:
                estimate = self.rendered(state)
                self.snapshot(done, self.cropped(estimate.image)[0], np.asarray(estimate.kernel[0]))
        return _Run(state, history, reasons)

    def _ended(self, state: TrainState, reasons: list[str | None]) -> bool:
        stopped = state.stopping is not None and bool(jnp.all(state.stopping.stopped))
        return int(state.step) == self.num_iterations or stopped or all(reasons)

    def rendered(self, state: TrainState) -> Estimate:
        """What all restarts have come to."""
        return render(self.program, state, self.observation)

    def cropped(self, images: jax.Array | np.ndarray) -> np.ndarray:
        """Images ``[R, H+h-1, W+w-1]`` cut to the blurry frame, ``[R, H, W]``."""
        return np.asarray(blur.crop_to_blurry(jnp.asarray(images), self.program.kernel_shape))

    def _collapse_reasons(self, history: dict[str, np.ndarray], members: list[int], done: int) -> list[str | None]:
        if not history:
            return [None] * len(members)
        blurry_std = float(jnp.std(self.observation.blurry))
        return [
            restarts.collapse_reason(
                steps=done,
                loss=float(history["loss"][-1, column]),
                image_std=float(history["image_std"][-1, column]),
                kernel_peak=float(history["kernel_peak"][-1, column]),
                blurry_std=blurry_std,
                delta_allowed=self.delta_allowed[member],
            )
            for column, member in enumerate(members)
        ]


def _merge(whole: _Run, part: _Run, members: list[int]) -> _Run:
    """Puts the restarts of ``part`` in their places ``members`` of ``whole``."""
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
    surrogate: jax.Array | np.ndarray | None = None,
    noise_std: float = 0.0,
    num_posterior_samples: int = 0,
    progress: Progress | None = None,
    snapshot: Snapshot | None = None,
    checkpoint: Path | None = None,
    checkpoint_interval: float = 60.0,
) -> FitResult:
    """Fits the generators to one grey image.

    Minimises ``Σ_terms weight · term(G_x(z_x), G_k(z_k), y)`` over the parameters of the image generator G_x and the kernel
    generator G_k, from random starts, by Adam. Restart r depends on ``fold_in(key, r)`` alone, and step t of it on
    ``fold_in(·, t)``: so neither the number of restarts beside it nor an interruption changes what it finds. A restart that
    collapses is run again with a new key, at most :data:`NUM_RETRIES` times.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      config: networks, losses, schedules.
      key: typed random key.
      kernel_size: odd side, or sides ``(h, w)``, of the kernel.
      num_restarts: independent runs, all in one program.
      kernel: ``[h, w]``, known and kept: only the image generator is fitted.
      initial_kernel: ``[h, w]`` or one per restart ``[R, h, w]``, where a ``logits`` kernel generator starts.
      teacher: the pre-trained network that ``config``'s loss terms ask.
      surrogate: ``[H, W]``, that network's restoration of the blurry image, if known beforehand (from the colours, say).
      noise_std: of the blurry image's noise, in [0, 1] units; used by ``config.noise_tied_tv_factor``.
      num_posterior_samples: samples of the fitted image generator of which mean and standard deviation are taken.
      progress: called between chunks with (phase, steps done, steps in all, metrics).
      snapshot: called between chunks with (steps done, image ``[H, W]``, kernel ``[h, w]``) of the first restart.
      checkpoint: file to which the state is written now and then, and from which an interrupted run goes on.
      checkpoint_interval: seconds between two writes.

    Raises:
      InputError: inconsistent arguments, or a checkpoint that is damaged or belongs to another run.
    """

    def array(given: jax.Array | np.ndarray | None) -> jax.Array | None:
        return None if given is None else jnp.asarray(given, jnp.float32)

    task = _check(
        Observation(jnp.asarray(blurry, jnp.float32), array(kernel), teacher, array(surrogate)),
        config,
        key,
        (kernel_size, kernel_size) if isinstance(kernel_size, int) else (int(kernel_size[0]), int(kernel_size[1])),
        num_restarts,
        array(initial_kernel),
        noise_std,
        progress,
        snapshot,
        checkpoint,
        checkpoint_interval,
    )
    run = task.run(list(range(num_restarts)), 0)
    retried: list[tuple[str, ...]] = [()] * num_restarts
    for attempt in range(1, 1 + NUM_RETRIES):
        collapsed = {member: reason for member, reason in enumerate(run.reasons) if reason is not None}
        if not collapsed:
            break
        for member, reason in collapsed.items():
            _LOG.warning("restart %d collapsed (%s): trying again with a new key", member, reason)
            retried[member] = (*retried[member], reason)
        run = _merge(run, task.run(list(collapsed), attempt), list(collapsed))

    state, losses = run.state, run.history["loss"].T
    stops: list[Stop | None] = [None] * num_restarts
    if (stopping := state.stopping) is not None and config.stopping is not None:
        state = dataclasses.replace(state, params=best_params(stopping, state.params))
        stops = stops_of(stopping, config.stopping)
        for member, stop in enumerate(stops):
            if stop is not None:
                losses[member, stop.step + 1 :] = np.nan
    estimate = task.rendered(state)
    images = task.cropped(estimate.image)
    statuses = tuple(
        RestartStatus(reason, tuple(past), stop) for reason, past, stop in zip(run.reasons, retried, stops, strict=True)
    )
    target = np.asarray(task.observation.blurry)
    mean = std = None
    if num_posterior_samples:
        moments = jax.device_get(posterior(task.program, state, task.plan, num_posterior_samples))
        mean, std = (task.cropped(moment) for moment in moments)
    return FitResult(
        images=images,
        full_images=np.asarray(estimate.image),
        kernels=np.asarray(estimate.kernel),
        losses=losses,
        errors=run.history["error"].T,
        best=restarts.best_restart(images, np.asarray(estimate.reblurred), target, [status.ok for status in statuses]),
        statuses=statuses,
        state=state,
        posterior_mean=mean,
        posterior_std=std,
    )


def _check(
    observation: Observation,
    config: FitConfig,
    key: jax.Array,
    kernel_shape: tuple[int, int],
    num_restarts: int,
    initial_kernel: jax.Array | None,
    noise_std: float,
    progress: Progress | None,
    snapshot: Snapshot | None,
    checkpoint: Path | None,
    checkpoint_interval: float,
) -> _Task:
    """Refuses inconsistent arguments of :func:`fit`, and derives what follows from them."""
    blurry, kernel, teacher = observation.blurry, observation.kernel, observation.teacher
    chex.assert_rank(blurry, 2)
    chex.assert_scalar_positive(num_restarts)
    for side, length in zip(kernel_shape, blurry.shape, strict=True):
        check_kernel_size(side)
        if side > length:
            raise InputError(f"kernel size {side} is larger than the image's {length} pixels: choose a smaller one")
    if kernel is not None:
        chex.assert_shape(kernel, kernel_shape)
        if initial_kernel is not None:
            raise InputError("a known kernel and an initial kernel were both given: leave one out")
    elif config.kernel_generator is None:
        raise InputError("this fit restores the image for a given kernel only: give one")
    if initial_kernel is not None:
        if not isinstance(config.kernel_generator, KernelLogitsConfig):
            raise InputError("this kernel generator cannot start from a given kernel: choose KernelLogitsConfig")
        initial_kernel = jnp.broadcast_to(initial_kernel, (num_restarts, *kernel_shape))

    if config.needs_teacher:
        if teacher is None:
            raise InputError("a loss term asks a pre-trained network: give a teacher, or a config without such terms")
        if observation.surrogate is None and not teacher.follows_estimate:
            surrogate = jnp.asarray(restoration(teacher, np.asarray(blurry)))
            observation = dataclasses.replace(observation, surrogate=surrogate)
        if observation.surrogate is not None:
            chex.assert_equal_shape([observation.surrogate, blurry])

    plausible = restarts.delta_is_plausible(np.asarray(blurry), noise_std)
    starts_as_delta = [False] * num_restarts
    if initial_kernel is not None:
        starts_as_delta = [float(jnp.max(start)) > restarts.DELTA_PEAK for start in initial_kernel]
    parts = (__version__, config, kernel_shape, num_restarts, noise_std, jax.random.key_data(key).tolist())
    digest = hashlib.sha256(repr(parts).encode())
    for array in (initial_kernel, *jax.tree.leaves(observation)):
        digest.update(b"none" if array is None else repr(array.shape).encode() + np.asarray(array).tobytes())
    return _Task(
        program=Program.of(config, (blurry.shape[0], blurry.shape[1]), kernel_shape, kernel_known=kernel is not None),
        observation=observation,
        plan=schedules.plan(config, noise_std=noise_std),
        num_iterations=config.num_iterations,
        key=key,
        initial_kernels=initial_kernel,
        delta_allowed=[kernel is not None or plausible or start for start in starts_as_delta],
        progress=progress,
        snapshot=snapshot,
        checkpoint=checkpoint,
        checkpoint_interval=checkpoint_interval,
        identity=digest.hexdigest(),
    )
