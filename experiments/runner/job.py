"""Runs of images, wherever they are done: what goes in (:class:`Task`), what comes out (:func:`run_tasks`).

The module stands alone, so that it can be sent by value to machines that have the package but not this folder.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdeblur.config import Config
from jaxdeblur.evaluation.datasets import Example

if TYPE_CHECKING:
    from jaxdeblur.pipeline import Result

# Points of a curve over the steps, beside the first one. More would cost more than the fit itself on large images.
CURVE_POINTS = 40
# After these shares of the steps, what the generators show is kept for the figure.
_SNAPSHOT_SHARES = (0.02, 0.1, 0.4, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedExample(Example):
    """An example whose pixels travel with it. Truths along a camera's trajectory do not: they are read where they lie.

    Attributes:
      pixels: blurry image ``[H, W]``.
      truth: sharp image ``[H, W]``.
      true_kernel: ``[h, w]``, or None.
      window: the part of the files' images that is looked at.
    """

    pixels: np.ndarray | None = None
    truth: np.ndarray | None = None
    true_kernel: np.ndarray | None = None
    window: tuple[slice, slice] = (slice(None), slice(None))

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        assert self.pixels is not None
        assert self.truth is not None
        return self.pixels, self.truth

    def load_blurry(self) -> np.ndarray:
        return self.load()[0]

    def load_truths(self) -> Iterator[np.ndarray]:
        if not self.trajectory:
            yield self.load()[1]
            return
        for truth in super().load_truths():
            yield truth[self.window]

    def load_kernel(self) -> np.ndarray | None:
        return self.true_kernel


def load_example(example: Example, crop: int | None) -> LoadedExample:
    """Reads an example's files; with ``crop``, only their central ``crop`` pixels a side count.

    Raises:
      InputError: a file is damaged or missing.
    """
    blurry, truth = example.load()
    window = (_middle(blurry.shape[0], crop), _middle(blurry.shape[1], crop))
    fields = {field.name: getattr(example, field.name) for field in dataclasses.fields(example)}
    return LoadedExample(**fields, pixels=blurry[window], truth=truth[window], true_kernel=example.load_kernel(), window=window)


def _middle(length: int, wanted: int | None) -> slice:
    if wanted is None or wanted >= length:
        return slice(None)
    start = (length - wanted) // 2
    return slice(start, start + wanted)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A run.

    Attributes:
      example: what to restore.
      config: how.
      seed: of the random key.
      kernel: ``[h, w]`` that is given, or None.
      curve: whether to follow the metrics over the steps.
      cache_dir: folder of compiled programs, ``off``, or None for the default.
    """

    example: LoadedExample
    config: Config
    seed: int
    kernel: np.ndarray | None
    curve: bool
    cache_dir: str | None


def run_tasks(tasks: Sequence[Task], *, checkpoint: pathlib.Path | None = None) -> list[dict[str, Any]]:
    """Does tasks of one configuration, together where their images are alike.

    Args:
      tasks: the runs.
      checkpoint: file that keeps the state of a deep prior's fit, see :func:`jaxdeblur.deblur`.

    Returns:
      For each, ``metrics`` by name; ``arrays`` by name, ``restored`` and ``kernel`` among them; ``curve``, lists by name, or
      empty; ``chosen`` and ``warnings`` of the pipeline's result; ``machine``, what did it.
    """
    from jaxdeblur import runtime

    runtime.set_up_cache(tasks[0].cache_dir)
    runtime.clear_compiled_executables()

    import jax

    from jaxdeblur.pipeline import Photo, deblur_batch

    followers = [_Follower(task) if task.curve else None for task in tasks]
    photos = [
        Photo(task.example.load_blurry(), jax.random.key(task.seed), task.kernel, follower.look if follower else None)
        for task, follower in zip(tasks, followers, strict=True)
    ]
    began = time.perf_counter()
    results = deblur_batch(photos, tasks[0].config, checkpoint=checkpoint)
    seconds = (time.perf_counter() - began) / len(tasks)
    return [
        _measured(task, result, follower, seconds) for task, result, follower in zip(tasks, results, followers, strict=True)
    ]


def _measured(task: Task, result: Result, follower: _Follower | None, seconds: float) -> dict[str, Any]:
    """A result as :func:`run_tasks` returns it."""
    import jax

    from jaxdeblur.evaluation.metrics import kernel_similarity
    from jaxdeblur.evaluation.protocol import score, to_json_number

    found = score(result.restored, task.example)
    losses = result.history.get("fit", [])
    metrics: dict[str, float] = {
        "psnr": found.psnr,
        "ssim": found.ssim,
        "seconds": seconds,
        "kernel_peak": float(result.kernel.max()),
    }
    errors = {"squared_error": found.squared_error, "spectral_error": found.spectral_error}
    metrics |= {name: value for name, value in errors.items() if value is not None}
    if task.example.true_kernel is not None:
        metrics["kernel_similarity"] = kernel_similarity(result.kernel, task.example.true_kernel)
    if losses:
        metrics["steps"] = float(len(losses))
    arrays = {"restored": result.restored, "kernel": result.kernel}
    if result.posterior_std is not None:
        metrics["posterior_std"] = float(np.mean(result.posterior_std))
        arrays["posterior_std"] = result.posterior_std
    curve: dict[str, list[float]] = {}
    if follower is not None:
        curve = {**follower.curve, "loss": _thinned(losses)}
        arrays.update(follower.snapshots)
    return {
        "metrics": {name: to_json_number(value) for name, value in metrics.items()},
        "curve": curve,
        "chosen": result.chosen,
        "warnings": list(result.warnings),
        "machine": {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "cpus": os.cpu_count()},
        "arrays": arrays,
    }


def _thinned(losses: list[float]) -> list[float]:
    """Ten times as many points as the other curves have, or all."""
    return losses[:: max(1, len(losses) // (10 * CURVE_POINTS))]


class _Follower:
    """Looks at the generators between chunks of steps."""

    def __init__(self, task: Task) -> None:
        self._sharp = task.example.load()[1]
        self._kernel = task.example.true_kernel
        self._steps = 1 if task.config.fit is None else task.config.fit.num_iterations
        self._next = 0.0
        self._shares = list(_SNAPSHOT_SHARES)
        self.curve: dict[str, list[float]] = {"step": [], "psnr": [], "ssim": []}
        self.snapshots: dict[str, np.ndarray] = {}

    def look(self, step: int, image: np.ndarray, kernel: np.ndarray) -> None:
        """The callback of a fit: ``image`` is ``[H, W]``, ``kernel`` ``[h, w]``."""
        if step >= self._next or step >= self._steps:
            self._next = step + self._steps / CURVE_POINTS
            self._measure(step, image, kernel)
        if self._shares and step >= self._shares[0] * self._steps:
            self._shares = [share for share in self._shares if step < share * self._steps]
            self.snapshots[f"step{step}_restored"] = np.asarray(image, np.float32)
            self.snapshots[f"step{step}_kernel"] = np.asarray(kernel, np.float32)

    def _measure(self, step: int, image: np.ndarray, kernel: np.ndarray) -> None:
        from jaxdeblur.evaluation.metrics import aligned_metrics

        aligned = aligned_metrics(np.clip(image, 0.0, 1.0), self._sharp)
        self.curve["step"].append(step)
        self.curve["psnr"].append(aligned.psnr)
        self.curve["ssim"].append(aligned.ssim)
        if self._kernel is not None:
            self.curve.setdefault("kernel_mse", []).append(kernel_error(kernel, self._kernel))


def kernel_error(kernel: np.ndarray, true_kernel: np.ndarray) -> float:
    """Mean squared error of a kernel against the true one at the best whole-pixel shift, over the larger support.

    ``min_s ‖k − k_true(· − s)‖² = ‖k‖² + ‖k_true‖² − 2·max_s ⟨k, k_true(· − s)⟩``, the last from the kernels' similarity.
    """
    from jaxdeblur.evaluation.metrics import kernel_similarity

    first, second = float(np.linalg.norm(kernel)), float(np.linalg.norm(true_kernel))
    similarity = kernel_similarity(kernel, true_kernel)
    size = math.prod(max(sides) for sides in zip(kernel.shape, true_kernel.shape, strict=True))
    return max(0.0, first**2 + second**2 - 2.0 * similarity * first * second) / size
