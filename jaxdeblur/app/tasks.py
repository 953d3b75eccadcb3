"""What the page's worker processes do. Files and plain values go in and out, so that nothing large crosses a pipe."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur import runtime
from jaxdeblur.app.advice import advice
from jaxdeblur.classical import finish
from jaxdeblur.classical.hyper_laplacian import hyper_laplacian, weight_for_noise
from jaxdeblur.classical.initialiser import first_kernel_size
from jaxdeblur.config import SEARCH_PHASE, SMALLEST_SIDE, Config, InitialiserConfig
from jaxdeblur.errors import InputError
from jaxdeblur.imaging.colour import grey
from jaxdeblur.imaging.input_checks import Region
from jaxdeblur.imaging.kernel_files import read_kernel as kernel_from_file
from jaxdeblur.imaging.kernel_files import write_kernel_array
from jaxdeblur.imaging.preview import jpeg_bytes, png_bytes
from jaxdeblur.imaging.reading import read_image
from jaxdeblur.imaging.selection import Outputs
from jaxdeblur.imaging.writing import write_jpeg
from jaxdeblur.jobs.images import Settings, Task, run_job
from jaxdeblur.operators.kernels import normalise_kernel, resize_kernel
from jaxdeblur.pipeline import Result, deblur
from jaxdeblur.presets import PRESETS

STEM = "photo"
# What the browser shows of a large photograph until it is looked at closely.
_SCREEN_SIDE = 1600
# While a slider moves: so many pixels a side are restored within a second.
_PREVIEW_SIDE = 640
# Of a preview's kernel: few sizes, so that few programs are compiled.
_PREVIEW_SUPPORTS = (9, 15, 21, 31, 45, 63, 91)
_PREVIEW_ITERATIONS = 5
_ESTIMATE_SIDE = InitialiserConfig().image_side
_SNAPSHOT_SIDE = 800

# Given a kind and a value; returns whether the visitor has asked for the best so far.
Tell = Callable[[str, Any], bool]


def inspect(tell: Tell, *, path: str, folder: str, max_megapixels: float) -> dict[str, Any]:
    """Decodes an upload and writes what the browser shows of it; returns what the page says of it."""
    image = read_image(pathlib.Path(path), max_megapixels=max_megapixels)
    width, height = image.size
    if min(width, height) < SMALLEST_SIDE:
        raise InputError(f"{width}×{height} pixels are too few to deblur; give {SMALLEST_SIDE} or more a side")
    shown = _write_views(pathlib.Path(folder), "before", image.pixels, image.icc)
    return {
        "width": width,
        "height": height,
        "channels": 3 if image.pixels.ndim == 3 else 1,
        "sample_type": str(image.dtype),
        "lossy": image.lossy,
        "suffix": image.suffix,
        "notes": list(image.notes),
        "screen_side": shown,
    }


def read_kernel(tell: Tell, *, path: str, out: str, max_megapixels: float) -> dict[str, Any]:
    """Reads a kernel's file and keeps it as an array."""
    kernel = kernel_from_file(pathlib.Path(path), max_megapixels=max_megapixels)
    write_kernel_array(pathlib.Path(out), kernel)
    return {"kernel": _plain(kernel)}


def restore(
    tell: Tell,
    *,
    path: str,
    folder: str,
    name: str,
    preset: str,
    changes: Mapping[str, Any],
    kernel_size: int | None,
    region: Region | None,
    kernel: str | None,
    erased: Sequence[int],
    last_step_only: bool,
    max_megapixels: float,
    minutes: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Deblurs a photograph as the command line does, and writes its results and what the browser shows of them.

    Args:
      tell: given progress and pictures on the way.
      path: of the photograph.
      folder: for the results.
      name: of the photograph, as its owner calls it.
      preset: the method.
      changes: to it, as of :meth:`jaxdeblur.config.Config.override`.
      kernel_size: odd side of the support, or None to find it.
      region: from which the kernel is estimated.
      kernel: file of a known kernel.
      erased: places in it, counted row by row, that are to be zero.
      last_step_only: the kernel is at hand, and only the final image is made.
      max_megapixels: the largest image that is read.
      minutes: for further attempts at the kernel too; None for none.
      seed: of all randomness.
    """
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}; choose one of the list")
    config = PRESETS[preset].override(kernel_size=kernel_size, **changes)
    known = _erase(np.load(kernel), erased) if kernel is not None else None
    if last_step_only:
        config = config.last_step_only()
    if config.needs_kernel and known is None:
        raise InputError(f"the preset {preset} needs a known kernel; load one, or choose another preset")
    settings = Settings(
        config=config,
        seed=seed,
        kernel=known,
        reference=None,
        overwrite=False,
        cache_dir=None,
        max_megapixels=max_megapixels,
        region=region,
        time_budget=None if minutes is None else 60.0 * minutes,
        shown_name=name,
    )

    unblended = []

    def compute(task: Task) -> tuple[Result, float]:
        began = time.perf_counter()
        whole = _compute(tell, path, task)
        unblended.append(whole.restored)
        restored = finish.blend(task.pixels, whole.restored, task.config.nonblind.amount)
        return dataclasses.replace(whole, restored=restored), time.perf_counter() - began

    place = pathlib.Path(folder)
    image, result = run_job(pathlib.Path(path), Outputs(place, STEM), settings, lambda line: None, compute=compute)
    tell("progress", ("saving", 0, 1))
    _write_views(place, "after", result.restored, image.icc)
    if image.lossy:
        write_jpeg(place / f"{STEM}_deblurred.jpg", image, result.restored)
    elif image.suffix != ".png":
        (place / f"{STEM}_for_browsers.png").write_bytes(png_bytes(result.restored, image.icc))
    _write_preview_data(place / "preview.npz", image.pixels, dataclasses.replace(result, restored=unblended[0]), config)
    return {
        "kernel": _plain(result.kernel),
        "chosen": result.chosen,
        "noise_std": result.noise_std,
        "kernel_size": result.kernel_size,
        "seconds": {phase: round(seconds, 2) for phase, seconds in result.seconds.items()},
        "advice": advice([*image.notes, *result.warnings], result.kernel_size, image.size),
        "suffix": image.suffix,
    }


def preview(tell: Tell, *, data: str, smoothness: float, amount: float, kernel: str | None, erased: Sequence[int]) -> bytes:
    """The final image at the size of the screen for other settings, as a JPEG.

    It is the reduced result of the last full run, plus the change that a faster non-blind method sees between the settings of
    that run and the new ones: at the old settings it is that result.

    Args:
      tell: unused.
      data: file that :func:`restore` has left.
      smoothness: factor on the prior's weight.
      amount: share of the restored image, in [0, 1].
      kernel: file of another kernel, or None for that of the run.
      erased: places in the kernel that are to be zero.
    """
    scene = _preview_scene(data)
    changed = scene.kernel if kernel is None else np.load(kernel)
    changed = _erase(changed, erased)
    after = _fast(scene, changed, smoothness)
    restored = scene.restored + _like(after - scene.before, scene.restored)
    return jpeg_bytes(finish.blend(scene.blurry, np.clip(restored, 0.0, 1.0), amount), quality=90)


def prepare_preview(tell: Tell, *, width: int, height: int) -> None:
    """Compiles what :func:`preview` needs for a photograph of that size, while its kernel is still being estimated.

    Args:
      tell: unused.
      width: of the photograph, in pixels.
      height: likewise.
    """
    scale = _preview_scale((height, width))
    nothing = np.zeros(_reduced_shape((height, width), scale), np.float32)
    scene = _PreviewScene(nothing, nothing, np.ones((3, 3), np.float32) / 9, scale, 0.01, nothing)
    _fast(scene, scene.kernel, 1.0)


def warm_up(tell: Tell) -> None:
    """Nothing: to be here, the process has loaded what takes time to load."""


@dataclasses.dataclass(frozen=True, eq=False)
class _PreviewScene:
    """What previews of one result are made from.

    Attributes:
      blurry: ``[h, w]`` or ``[h, w, 3]``, the reduced photograph.
      restored: as ``blurry``, the reduced result before it is blended.
      kernel: ``[k, l]`` of the whole photograph.
      scale: of the reduced photograph, as a share of the whole.
      noise_std: of the reduced photograph.
      before: ``[h, w]``, what the fast method makes of it with the settings of the result.
    """

    blurry: np.ndarray
    restored: np.ndarray
    kernel: np.ndarray
    scale: float
    noise_std: float
    before: np.ndarray


_SCENES: dict[str, _PreviewScene] = {}
_MOST_SCENES = 4


def _preview_scene(data: str) -> _PreviewScene:
    if data not in _SCENES:
        with np.load(data) as file:
            blurry, restored, kernel = file["blurry"], file["restored"], file["kernel"]
            scale, noise_std, smoothness = (float(file[name]) for name in ("scale", "noise_std", "smoothness"))
        scene = _PreviewScene(blurry, restored, kernel, scale, noise_std, np.zeros((), np.float32))
        while len(_SCENES) >= _MOST_SCENES:
            del _SCENES[next(iter(_SCENES))]
        _SCENES[data] = dataclasses.replace(scene, before=_fast(scene, kernel, smoothness))
    return _SCENES[data]


def _fast(scene: _PreviewScene, kernel: np.ndarray, smoothness: float) -> np.ndarray:
    """``[h, w]``: the luma of a reduced photograph, restored in a fraction of a second."""
    luma = grey(scene.blurry)
    # Not less than the estimate begins with: previews then share their programs, whatever the kernel.
    usual = first_kernel_size(tuple(min(round(length / scene.scale), _ESTIMATE_SIDE) for length in luma.shape))
    needed = max(round(max(*kernel.shape, usual) * scene.scale), 3) | 1
    side = next((size for size in _PREVIEW_SUPPORTS if size >= needed), needed)
    side = min(side, (min(luma.shape) - 2) | 1)
    around = [(max(usual - length, 0) // 2,) * 2 for length in kernel.shape]
    small = resize_kernel(jnp.asarray(np.pad(kernel, around)), (side, side), scale=scene.scale)
    weight = smoothness * weight_for_noise(scene.noise_std)
    return np.asarray(hyper_laplacian(jnp.asarray(luma), small, weight=weight, betas=(256.0,) * _PREVIEW_ITERATIONS))


def _write_preview_data(path: pathlib.Path, blurry: np.ndarray, result: Result, config: Config) -> None:
    """What :func:`preview` needs of a result, which is not blended here."""
    scale = _preview_scale(blurry.shape)
    np.savez(
        path,
        blurry=_reduced(blurry, scale),
        restored=_reduced(result.restored, scale),
        kernel=result.kernel,
        scale=scale,
        noise_std=result.noise_std * scale,
        smoothness=config.nonblind.smoothness,
    )


def _compute(tell: Tell, path: str, task: Task) -> Result:
    """Deblurs, not blended yet; where nothing but the blend has changed since the last time, there is nothing to do."""
    kept = _KEPT.get(_key(path, task.kernel, task.config)) if task.config.fit is None else None
    if kept is not None:
        return kept
    runtime.clear_compiled_executables()

    def progress(phase: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        if tell("progress", (phase, step, total)) and phase.startswith(SEARCH_PHASE):
            raise KeyboardInterrupt  # as the command line's user ends a search

    def snapshot(step: int, image: np.ndarray, kernel: np.ndarray) -> None:
        tell("snapshot", jpeg_bytes(np.asarray(image), longest_side=_SNAPSHOT_SIDE))

    whole = dataclasses.replace(task.config, nonblind=dataclasses.replace(task.config.nonblind, amount=1.0))
    result = deblur(
        task.pixels,
        whole,
        key=jax.random.key(task.seed),
        kernel=task.kernel,
        region=task.region,
        progress=progress,
        snapshot=snapshot,
        time_budget=task.time_budget,
    )
    _KEPT.clear()
    _KEPT[_key(path, result.kernel, task.config)] = result
    return result


# The last result before it was blended. A dictionary of one, because it may be large.
_KEPT: dict[tuple[Any, ...] | None, Result] = {}


def _key(path: str, kernel: np.ndarray | None, config: Config) -> tuple[Any, ...] | None:
    """What a final image depends on but the amount; None where that is more than a kernel and a non-blind method."""
    if kernel is None:
        return None
    last = config.last_step_only()
    alike = dataclasses.replace(last, name="", nonblind=dataclasses.replace(last.nonblind, amount=1.0))
    return path, kernel.tobytes(), kernel.shape, alike


def _erase(kernel: np.ndarray, erased: Sequence[int]) -> np.ndarray:
    if not erased:
        return kernel
    if min(erased) < 0 or max(erased) >= kernel.size:
        raise InputError("what is to be erased lies outside the kernel; load the page again")
    left = kernel.copy()
    left.flat[list(erased)] = 0.0
    if not left.sum() > 0:
        raise InputError("nothing is left of the kernel; leave some of it, or press Reset")
    return np.asarray(normalise_kernel(jnp.asarray(left)))


def _write_views(folder: pathlib.Path, name: str, pixels: np.ndarray, icc: bytes) -> int:
    """``NAME.jpg`` in full and ``NAME_screen.jpg``; returns the longest side of the latter."""
    profile = icc if pixels.ndim == 3 else b""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jpg").write_bytes(jpeg_bytes(pixels, quality=95, icc=profile))
    (folder / f"{name}_screen.jpg").write_bytes(jpeg_bytes(pixels, longest_side=_SCREEN_SIDE, quality=92, icc=profile))
    return min(_SCREEN_SIDE, max(pixels.shape[:2]))


def _reduced(pixels: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1.0:
        return pixels
    shape = _reduced_shape(pixels.shape, scale)
    return np.asarray(jax.image.resize(pixels, shape, "linear", antialias=True))


def _reduced_shape(shape: tuple[int, ...], scale: float) -> tuple[int, ...]:
    return round(shape[0] * scale), round(shape[1] * scale), *shape[2:]


def _preview_scale(shape: tuple[int, ...]) -> float:
    return min(1.0, _PREVIEW_SIDE / max(shape[:2]))


def _like(luma: np.ndarray, image: np.ndarray) -> np.ndarray:
    return luma[..., None] if image.ndim == 3 else luma


def _plain(kernel: np.ndarray) -> dict[str, Any]:
    return {"height": kernel.shape[0], "width": kernel.shape[1], "values": [float(value) for value in kernel.ravel()]}


def release_memory() -> None:
    """Gives memory that is no longer needed back to the system, which glibc does not do by itself."""
    gc.collect()
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


TASKS: dict[str, Callable[..., Any]] = {
    "inspect": inspect,
    "read_kernel": read_kernel,
    "restore": restore,
    "preview": preview,
    "prepare_preview": prepare_preview,
    "warm_up": warm_up,
}
