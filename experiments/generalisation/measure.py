"""Restores one case, blindly or with its true kernel, and measures the result."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pathlib
import time
from typing import Any

import numpy as np

import jaxdeblur
from jaxdeblur.config import Config
from jaxdeblur.evaluation.metrics import aligned_metrics, kernel_similarity
from jaxdeblur.evaluation.protocol import to_json_number

# Values of ``final`` that need a kernel only.
_FOR_KNOWN_KERNELS = ("auto", "sparse", "hyper_laplacian", "saturated")
# Version of the records; raise it when what is measured changes, and results are recomputed.
SCHEMA = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A run.

    Attributes:
      blurry: ``[H, W]`` in [0, 1].
      sharp: the ground truth.
      kernel: the true kernel ``[h, w]``.
      config: the method.
      known: whether the true kernel is given.
      seed: of the random key.
      regret: whether to restore the image with the kernel of every candidate.
      cache_dir: folder of compiled programs, ``off``, or None for the default.
    """

    blurry: np.ndarray
    sharp: np.ndarray
    kernel: np.ndarray
    config: Config
    known: bool
    seed: int = 0
    regret: bool = False
    cache_dir: str | None = None


def alignment(kernel_size: int) -> dict[str, int]:
    """``crop`` and ``max_shift`` of :func:`~jaxdeblur.evaluation.metrics.aligned_metrics` for a kernel of this size.

    Estimated kernels are centred at their mass, true ones at the middle of their extent; the two may be nearly half the support
    apart. For kernels up to 21 px it is the usual window.
    """
    max_shift = max(10, kernel_size // 2)
    return {"crop": max_shift + 5, "max_shift": max_shift}


def known_kernel_config(config: Config) -> Config:
    """The last step of a configuration alone, so that methods with the same last step share known-kernel results."""
    final = config.final if config.final in _FOR_KNOWN_KERNELS else "auto"
    return Config(name="known", final=final, nonblind=config.nonblind, smallest_noise_std=config.smallest_noise_std)


def source_digest() -> str:
    """Of all files of the package, weights included, so that results of changed code are recomputed."""
    folder = pathlib.Path(jaxdeblur.__file__).parent
    sha = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        sha.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.hexdigest()[:16]


def measure(task: Task) -> dict[str, Any]:
    """Restores an image and measures the result.

    Returns:
      ``metrics`` of result and input by name; ``candidates``, a dictionary each; ``chosen`` and ``warnings`` of the pipeline's
      result; ``machine``; ``arrays`` by name.
    """
    from jaxdeblur import runtime

    runtime.set_up_cache(task.cache_dir)
    runtime.clear_compiled_executables()

    import jax

    from jaxdeblur.pipeline import deblur

    began = time.perf_counter()
    result = deblur(task.blurry, task.config, key=jax.random.key(task.seed), kernel=task.kernel if task.known else None)
    seconds = time.perf_counter() - began
    window = alignment(len(task.kernel))
    restored = aligned_metrics(result.restored, task.sharp, **window)
    blurry = aligned_metrics(task.blurry, task.sharp, **window)
    metrics = {
        "psnr": restored.psnr,
        "ssim": restored.ssim,
        "input_psnr": blurry.psnr,
        "input_ssim": blurry.ssim,
        "kernel_similarity": kernel_similarity(result.kernel, task.kernel),
        "seconds": seconds,
        "noise_std": result.noise_std,
        "kernel_size": float(result.kernel_size),
        "shift": max(abs(shift) for shift in restored.shift),
    }
    return {
        "metrics": {name: to_json_number(value) for name, value in metrics.items()},
        "candidates": [] if task.known else [_candidate(candidate, task) for candidate in result.candidates],
        "chosen": result.chosen,
        "warnings": list(result.warnings),
        "machine": {"jax": jax.__version__, "device": jax.devices()[0].device_kind},
        "arrays": {"restored": result.restored, "kernel": result.kernel},
    }


def _candidate(candidate: Any, task: Task) -> dict[str, Any]:
    """Name and score of a candidate and, with ``regret`` and if it has a ``kernel``, the PSNR of a restoration with it."""
    psnr = None
    kernel = getattr(candidate, "kernel", None)
    if task.regret and kernel is not None:
        import jax

        from jaxdeblur.pipeline import deblur

        config = known_kernel_config(task.config)
        restored = deblur(task.blurry, config, key=jax.random.key(task.seed), kernel=np.asarray(kernel)).restored
        psnr = to_json_number(aligned_metrics(restored, task.sharp, **alignment(len(task.kernel))).psnr)
    score = float(candidate.score)
    return {
        "name": candidate.name,
        "score": None if math.isnan(score) else to_json_number(score),
        "chosen": candidate.chosen,
        "psnr": psnr,
    }
