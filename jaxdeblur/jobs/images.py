"""Images of a command line, from their files to their results.

Everything that can be checked cheaply is checked before jax is imported, so that a mistyped name is reported at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import hashlib
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdeblur.config import SMALLEST_SIDE, Config
from jaxdeblur.errors import InputError, describe
from jaxdeblur.imaging.colour import grey
from jaxdeblur.imaging.input_checks import Region, check_region
from jaxdeblur.imaging.kernel_files import require_kernel_fits, write_kernel_array, write_kernel_image
from jaxdeblur.imaging.preview import write_preview
from jaxdeblur.imaging.reading import MAX_MEGAPIXELS, read_image
from jaxdeblur.imaging.selection import Outputs, ReportKinds, prepare_folder, remove_if_empty
from jaxdeblur.imaging.staging import staged
from jaxdeblur.imaging.stored_image import StoredImage
from jaxdeblur.imaging.trace import write_trace
from jaxdeblur.imaging.writing import write_grey, write_image
from jaxdeblur.jobs import batches
from jaxdeblur.jobs.cluster import TaskError, map_batches
from jaxdeblur.jobs.html_report import write_html_report
from jaxdeblur.jobs.progress import show_progress
from jaxdeblur.jobs.report import write_report
from jaxdeblur.version import __version__

if TYPE_CHECKING:
    from jaxdeblur.pipeline import Result


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all images of a command line share.

    Attributes:
      config: the resolved configuration.
      seed: of the random key; every image gets the same one, so that a result does not depend on the others.
      kernel: a known kernel ``[h, w]``, or None.
      reference: the sharp image, or None.
      overwrite: whether results that exist are replaced.
      cache_dir: folder of compiled programs, ``off``, or None for the default.
      checkpoint_dir: folder for the states of unfinished fits, or None for keeping none.
      max_megapixels: the largest image that is read, in millions of pixels, above 0.
      region: ``(x, y, width, height)`` of the part from which kernels are estimated, or None for the whole image.
      reports: which of the two reports are written, ``html`` and ``json``.
      time_budget: seconds for an image, see :func:`jaxdeblur.deblur`; None for no search.
      shown_name: what reports call the image, if that is not its file's name; they then take it to lie beside them.
    """

    config: Config
    seed: int
    kernel: np.ndarray | None
    reference: StoredImage | None
    overwrite: bool
    cache_dir: str | None
    checkpoint_dir: pathlib.Path | None = None
    max_megapixels: float = MAX_MEGAPIXELS
    region: Region | None = None
    reports: ReportKinds = "both"
    time_budget: float | None = None
    shown_name: str | None = None


@dataclasses.dataclass
class Failures:
    """Tells of the images that fail, so that one that does costs the others nothing, and counts them.

    Attributes:
      complain: called with a line for every failure.
      debug: whether an unexpected error ends the program, so that Python shows where it came from.
      count: failures so far.
    """

    complain: Callable[[str], None]
    debug: bool = False
    count: int = 0

    @contextlib.contextmanager
    def of(self, path: pathlib.Path) -> Iterator[None]:
        """Surrounds the work on the image at ``path``; errors end here."""
        try:
            yield
        except InputError as error:
            message = str(error)
        except Exception as error:
            if self.debug:
                raise
            cause = str(error) if isinstance(error, TaskError) else describe(error)
            message = f"{path}: failed, {cause} (--debug shows where)"
        else:
            return
        self.complain(message)
        self.count += 1


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What a worker needs to deblur an image, on whatever machine it is."""

    pixels: np.ndarray
    config: Config
    seed: int
    kernel: np.ndarray | None
    cache_dir: str | None
    name: str
    checkpoint: pathlib.Path | None = None
    shows_progress: bool = False
    region: Region | None = None
    time_budget: float | None = None


def run_tasks(tasks: Sequence[Task]) -> list[tuple[Result, float]]:
    """Deblurs images of one configuration, together where they are alike; returns the results and the seconds of each."""
    first = tasks[0]
    _setup_cache(first.cache_dir)
    import jax

    from jaxdeblur import runtime
    from jaxdeblur.pipeline import Photo, deblur_batch

    runtime.clear_compiled_executables()

    began = time.perf_counter()
    photos = [Photo(task.pixels, jax.random.key(task.seed), task.kernel, region=task.region) for task in tasks]
    label = first.name if len(tasks) == 1 else f"{first.name} and {len(tasks) - 1} more"
    with show_progress(label) if first.shows_progress else contextlib.nullcontext() as progress:
        results = deblur_batch(
            photos, first.config, progress=progress, checkpoint=first.checkpoint, time_budget=first.time_budget
        )
    seconds = (time.perf_counter() - began) / len(tasks)
    # Who asked has the input already; it need not come back from another process.
    return [(dataclasses.replace(result, blurry=None), seconds) for result in results]


def run_job(
    path: pathlib.Path,
    outputs: Outputs | InputError,
    settings: Settings,
    log: Callable[[str], None],
    *,
    compute: Callable[[Task], tuple[Result, float]] | None = None,
) -> tuple[StoredImage, Result]:
    """Deblurs the image at ``path`` in this process and writes its results, all of them or none.

    Args:
      path: of the image.
      outputs: where its results go, or why it has no place for them.
      settings: as for all images.
      log: called with a line for its success.
      compute: what deblurs it and tells the seconds; None for :func:`run_tasks`, which shows its progress.

    Returns:
      The image and what was found.

    Raises:
      InputError: the image, or something else that the user gave, cannot be used.
    """
    if isinstance(outputs, InputError):
        raise outputs
    image = _open(path, outputs, settings)
    made = prepare_folder(outputs.folder)
    try:
        task = _task(path, image, settings, shows_progress=True)
        result, seconds = run_tasks([task])[0] if compute is None else compute(task)
        _finish(path, image, outputs, settings, result, seconds, log)
    finally:
        remove_if_empty(made)  # after a success they are not empty
    return image, result


def run_jobs(
    jobs: Iterable[tuple[pathlib.Path, Outputs | InputError]],
    settings: Settings,
    log: Callable[[str], None],
    failures: Failures,
    *,
    workers: int = 1,
    ray_address: str | None = None,
    batch_size: int | None = None,
) -> None:
    """Deblurs images in several processes, or on the machines of a Ray cluster, and writes their results here.

    Args:
      jobs: images and where their results go, or why an image has no place for them.
      settings: for all of them.
      log: called with a line for every success.
      failures: told of every failure.
      workers: processes, or with a local Ray its CPUs.
      ray_address: of a Ray cluster, or ``local``.
      batch_size: images of one size whose deep priors are fitted together; None for one on a CPU or in a cluster, else as
        many as the accelerator's memory holds.

    Raises:
      InputError: there is no such cluster.
    """
    shows_progress = workers == 1 and ray_address is None  # one thing at a time
    under_way: dict[int, _Opened] = {}
    numbers = itertools.count()

    def opened() -> Iterator[_Opened]:
        for path, outputs in jobs:
            one = None
            with failures.of(path):
                if isinstance(outputs, InputError):
                    raise outputs
                one = _Opened(path, _open(path, outputs, settings), outputs)
            if one is not None:
                yield one

    def size(one: _Opened) -> int:
        shape = one.image.pixels.shape
        return batches.batch_size(batch_size, settings.config, shape, elsewhere=ray_address is not None)

    def tasks() -> Iterator[list[Task]]:
        for batch in batches.in_batches(opened(), lambda one: (one.image.pixels.shape[:2], one.image.lossy), size):
            under_way.update((next(numbers), one) for one in batch)
            yield [_task(one.path, one.image, settings, shows_progress=shows_progress) for one in batch]

    with contextlib.closing(map_batches(run_tasks, tasks(), workers=workers, ray_address=ray_address)) as outcomes:
        for outcome in outcomes:
            one = under_way.pop(outcome.index)
            with failures.of(one.path):
                if outcome.value is None and outcome.trace is not None:
                    raise TaskError.of(outcome)
                if outcome.value is None:
                    raise InputError(f"{one.path}: failed, {outcome.errors[-1]}")
                for error in outcome.errors:
                    log(f"{one.path}: note: tried again, because at first it failed: {error}")
                made = prepare_folder(one.outputs.folder)
                try:
                    _finish(one.path, one.image, one.outputs, settings, *outcome.value, log)
                finally:
                    remove_if_empty(made)


@dataclasses.dataclass(frozen=True, eq=False)
class _Opened:
    path: pathlib.Path
    image: StoredImage
    outputs: Outputs


def _open(path: pathlib.Path, outputs: Outputs, settings: Settings) -> StoredImage:
    """Reads an image and refuses what would fail later."""
    image = read_image(path, max_megapixels=settings.max_megapixels)
    _check(path, image, outputs, settings)
    return image


def _task(path: pathlib.Path, image: StoredImage, settings: Settings, *, shows_progress: bool = False) -> Task:
    return Task(
        pixels=image.pixels,
        config=_config_for(image, settings),
        seed=settings.seed,
        kernel=settings.kernel,
        cache_dir=settings.cache_dir,
        name=path.name,
        checkpoint=_checkpoint(path, settings),
        shows_progress=shows_progress,
        region=settings.region,
        time_budget=settings.time_budget,
    )


def _finish(
    path: pathlib.Path,
    image: StoredImage,
    outputs: Outputs,
    settings: Settings,
    result: Result,
    seconds: float,
    log: Callable[[str], None],
) -> None:
    """Measures, writes and tells of a result; its checkpoint has then done its duty."""
    metrics = _metrics(image, result, settings.reference)
    final_paths = _paths(outputs, image, settings)
    _write(path, image, final_paths, settings, result, metrics, seconds)
    *parts, height, width = result.kernel.shape
    size = f"{width}×{height}" + (f" in each of {parts[1]}×{parts[0]} parts" if parts else "")
    log(f"{path} -> {final_paths[0]} (kernel {size}, final image: {result.chosen}, {seconds:.1f} s)")
    if metrics is not None:
        before, after = metrics["input"], metrics["output"]
        log(f"{path}: PSNR {before['psnr']:.2f} -> {after['psnr']:.2f} dB, SSIM {before['ssim']:.4f} -> {after['ssim']:.4f}")
    if result.stop is not None:
        stop = result.stop
        log(f"{path}: the fit stopped early at step {stop.step}: its {stop.criterion} was smallest at step {stop.best_step}")
    for warning in (*image.notes, *result.warnings):
        log(f"{path}: note: {warning}")
    if (checkpoint := _checkpoint(path, settings)) is not None:
        for file in checkpoint.parent.glob(f"{glob.escape(checkpoint.name)}*"):  # those of second attempts too
            file.unlink(missing_ok=True)


def _checkpoint(path: pathlib.Path, settings: Settings) -> pathlib.Path | None:
    """Where the state of an image's fit is kept, if anywhere. Images of one name in two folders have one each."""
    if settings.checkpoint_dir is None:
        return None
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    return settings.checkpoint_dir / f"{path.stem}-{place}.checkpoint"


def _check(path: pathlib.Path, image: StoredImage, outputs: Outputs, settings: Settings) -> None:
    width, height = image.size
    if min(width, height) < SMALLEST_SIDE:
        raise InputError(f"{path}: {width}×{height} pixels are too few to deblur; give {SMALLEST_SIDE} or more a side")
    try:
        rows, columns = check_region(settings.region, (height, width))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if settings.kernel is not None:
        require_kernel_fits(settings.kernel.shape, (height, width), str(path))
    elif (side := settings.config.kernel_size) is not None:
        require_kernel_fits((side, side), (rows.stop - rows.start, columns.stop - columns.start), str(path))
    if settings.reference is not None and settings.reference.size != image.size:
        other = "×".join(map(str, settings.reference.size))
        raise InputError(
            f"{path}: is {width}×{height} pixels but the reference is {other}; give the sharp version of this image"
        )
    if not settings.overwrite:
        for existing in _paths(outputs, image, settings):
            if existing.exists():
                raise InputError(f"{path}: {existing} exists already; give --overwrite or another --output_dir")


def _config_for(image: StoredImage, settings: Settings) -> Config:
    """The configuration that an image is deblurred with: lossy compression counts as noise."""
    return settings.config.for_compressed() if image.lossy else settings.config


@functools.cache
def _setup_cache(setting: str | None) -> None:
    from jaxdeblur import runtime

    runtime.set_up_cache(setting)


def _metrics(image: StoredImage, result: Result, reference: StoredImage | None) -> dict[str, dict[str, Any]] | None:
    """Likeness of the input and the output to the reference; in luma if only one of image and reference has colour."""
    if reference is None:
        return None
    from jaxdeblur.evaluation.metrics import aligned_metrics

    images = {"input": image.pixels, "output": result.restored}
    sharp = reference.pixels
    if sharp.ndim != image.pixels.ndim:
        images = {name: grey(pixels) for name, pixels in images.items()}
        sharp = grey(sharp)
    found = {name: aligned_metrics(pixels, sharp) for name, pixels in images.items()}
    return {name: {"psnr": one.psnr, "ssim": one.ssim, "shift": one.shift} for name, one in found.items()}


def _paths(outputs: Outputs, image: StoredImage, settings: Settings) -> list[pathlib.Path]:
    fitted, posterior = settings.config.fit is not None, settings.config.num_posterior_samples > 0
    return outputs.all(image.suffix, fitted=fitted, posterior=posterior, reports=settings.reports)


def _write_trace(path: pathlib.Path, result: Result) -> None:
    stop = result.stop
    write_trace(
        path,
        result.history["error"],
        "mean squared error of the re-blurred image",
        best_step=None if stop is None else stop.best_step,
        stop_step=None if stop is None else stop.step,
    )


def _write(
    path: pathlib.Path,
    image: StoredImage,
    final_paths: list[pathlib.Path],
    settings: Settings,
    result: Result,
    metrics: dict[str, dict[str, Any]] | None,
    seconds: float,
) -> None:
    try:
        with staged(final_paths, replace=settings.overwrite) as (deblurred, kernel_image, kernel_array, preview, *more):
            write_image(deblurred, image, result.restored)
            write_kernel_image(kernel_image, result.kernel)
            write_kernel_array(kernel_array, result.kernel)
            write_preview(preview, image.pixels, result.restored, result.kernel, image.icc)
            if settings.config.fit is not None:
                _write_trace(more.pop(0), result)
            if result.posterior_mean is not None and result.posterior_std is not None:
                write_grey(more.pop(0), result.posterior_mean)
                write_grey(more.pop(0), result.posterior_std / max(float(result.posterior_std.max()), 1e-6))
            report = _report(path, image, final_paths, settings, result, metrics, seconds)
            if settings.reports != "json":
                write_html_report(
                    more.pop(0),
                    report,
                    blurry=image.pixels,
                    restored=result.restored,
                    kernels={candidate.name: candidate.kernel for candidate in result.candidates},
                    icc=image.icc,
                    run_file=_shown_report(settings) or final_paths[-1].name,
                )
            if settings.reports != "html":
                write_report(more.pop(0), report)
    except OSError as error:
        folder = final_paths[0].parent
        raise InputError(
            f"{folder}: cannot write the results ({error.strerror or error}); give another --output_dir"
        ) from error


def _shown_report(settings: Settings) -> str | None:
    """What the page that repeats the run is called where its image is called otherwise than its file."""
    return None if settings.shown_name is None else f"{pathlib.PurePath(settings.shown_name).stem}_report.html"


def _report(
    path: pathlib.Path,
    image: StoredImage,
    final_paths: list[pathlib.Path],
    settings: Settings,
    result: Result,
    metrics: dict[str, dict[str, Any]] | None,
    seconds: float,
) -> dict[str, Any]:
    import jax

    device = jax.devices()[0]
    return {
        "input": {
            "file": settings.shown_name or path.name,
            "path": settings.shown_name or os.path.relpath(path.resolve(), final_paths[-1].resolve().parent),
            "width": image.size[0],
            "height": image.size[1],
            "channels": image.pixels.ndim if image.pixels.ndim == 3 else 1,
            "sample_type": str(image.dtype),
            "alpha": image.alpha is not None,
        },
        "outputs": [final.name for final in final_paths],
        "version": __version__,
        "jax_version": jax.__version__,
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "cpus": os.cpu_count(),
        },
        "seed": settings.seed,
        # However long the search went on: to repeat the run is to make as many attempts.
        "config": dataclasses.replace(_config_for(image, settings), more_attempts=result.more_attempts),
        "known_kernel": settings.kernel is not None,
        "region": settings.region,
        "kernel_size": result.kernel_size,
        "noise_std": result.noise_std,
        "chosen": result.chosen,
        "shake": result.shake,
        "early_stop": result.stop,
        "posterior_std": _spread(result.posterior_std),
        "candidates": [{"name": one.name, "score": one.score, "chosen": one.chosen} for one in result.candidates],
        "metrics": metrics,
        "warnings": [*image.notes, *result.warnings],
        "seconds": {**result.seconds, "total": seconds},
        "losses": result.history,
    }


def _spread(posterior_std: np.ndarray | None) -> dict[str, float] | None:
    """What the uncertainty image's white stands for, and its mean; in [0, 1] units."""
    return None if posterior_std is None else {"max": float(posterior_std.max()), "mean": float(posterior_std.mean())}
