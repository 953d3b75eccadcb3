"""Whole fits: images of one kernel size in one program, restarts of one image, precisions, weak supervision."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.accelerator import device, images, numerics, plan, sizes
from experiments.accelerator.plan import Context, Found
from experiments.runner.job import LoadedExample, Task, run_tasks
from jaxdeblur.classical import finish
from jaxdeblur.classical.noise import noise_std
from jaxdeblur.config import Config, NonblindConfig
from jaxdeblur.errors import InputError
from jaxdeblur.evaluation.protocol import score
from jaxdeblur.jobs.batches import batch_size

# Of the first image; more of them tell how much two fits differ by chance.
_SEEDS_OF_A_PRECISION = (0, 1)
# The weights that the training part leaves.
WEIGHTS = "dwdn.msgpack"


def measure(part: str, item: str, context: Context) -> Found:
    """Does the fits that the part and the item name."""
    checkpoint = context.work_dir / f"{part}_{item}.checkpoint"
    if part == "fits":
        preset, _, size = item.rpartition("_")
        examples = images.to_fit(context, int(size.removesuffix("px")))
        return fitted(examples, sizes.preset(preset, toy=context.toy), context, checkpoint)
    if part == "weak":
        weights = context.output_dir / WEIGHTS
        config = sizes.preset(item, toy=context.toy)
        if config.teacher is not None:
            if not weights.is_file():
                raise InputError("no DWDN has been trained yet: run the part 'training' first")
            config = config.override(teacher_weights=str(weights))
        return fitted(_first_group(context), config, context, checkpoint)
    preset, _, which = item.rpartition("_")
    config, example = sizes.preset(preset, toy=context.toy), _first_group(context)[0]
    if part == "restarts":
        found = fitted([example], config.override(num_restarts=int(which.removeprefix("x"))), context, checkpoint)
        return Found({**found.figures, "num_restarts": int(which.removeprefix("x"))}, found.arrays)
    assert part == "precision"
    with numerics.precision(which):
        return fitted([example] * len(_SEEDS_OF_A_PRECISION), config, context, checkpoint, seeds=_SEEDS_OF_A_PRECISION)


def _first_group(context: Context) -> list[LoadedExample]:
    levin = plan.has_set(context.data_dir, "levin")
    return images.to_fit(context, (plan.LEVIN_SIZES if levin else plan.MADE_SIZES)[0])


def fitted(
    examples: Sequence[LoadedExample],
    config: Config,
    context: Context,
    checkpoint: pathlib.Path,
    *,
    seeds: Sequence[int] | None = None,
) -> Found:
    """Fits images of one kernel size, as many in one program as the memory holds.

    A few steps go first, so that the seconds of the fit hold no compiling. Two-stage figures are those of the sparse prior with
    the fit's kernel.

    Args:
      examples: alike in shape and kernel size.
      config: with a fit.
      context: of the item.
      checkpoint: file from which a fit that was cut goes on.
      seeds: of the examples; 0 for all if left out.
    """
    fit = config.fit
    assert fit is not None
    config = dataclasses.replace(config, kernel_size=examples[0].kernel_size)
    tasks = [
        Task(example, config, seed, None, False, None)
        for example, seed in zip(examples, seeds or [0] * len(examples), strict=True)
    ]
    # A toy's images go together on a processor too, as a real run's do on an accelerator.
    asked = len(tasks) if context.toy and context.batch_size is None else context.batch_size
    size = batch_size(asked, config, examples[0].load_blurry().shape, elsewhere=False)
    batches = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    before, rows, arrays = device.peak_bytes(), [], {}
    short = config.override(num_iterations=fit.chunk_size)
    first = sum(
        row["metrics"]["seconds"] for row in run_tasks([dataclasses.replace(task, config=short) for task in batches[0]])
    )
    resumed = False
    for number, batch in enumerate(batches):
        file = checkpoint.with_name(f"{checkpoint.name}.{number}")
        resumed |= file.exists()
        for task, row in zip(batch, run_tasks(batch, checkpoint=file), strict=True):
            rows.append(_row(task, row))
            label = f"{task.example.name}_seed{task.seed}"
            arrays[f"{label}_restored"] = row["arrays"]["restored"]
            arrays[f"{label}_kernel"] = row["arrays"]["kernel"]
    for file in checkpoint.parent.glob(f"{checkpoint.name}*"):
        file.unlink()
    figures = {
        "images": rows,
        "psnr": float(np.mean([row["psnr"] for row in rows])),
        "two_stage_psnr": float(np.mean([row["two_stage_psnr"] for row in rows])),
        "seconds": sum(row["seconds"] for row in rows),
        "seconds_per_image": sum(row["seconds"] for row in rows) / len(rows),
        "first_s": first,
        "steps": fit.num_iterations,
        "together": len(batches[0]),
        "kernel_size": config.kernel_size,
        "peak_mb": device.risen_peak_mb(before),
        # Its seconds are then those of the rest alone.
        "resumed": resumed,
    }
    return Found(figures, arrays)


def _row(task: Task, row: dict[str, Any]) -> dict[str, Any]:
    example, metrics = task.example, row["metrics"]
    blurry = example.load_blurry()
    sparse = finish.restore(blurry, row["arrays"]["kernel"], "sparse", NonblindConfig(), noise_std=noise_std(blurry))
    return {
        "name": example.name,
        "seed": task.seed,
        "input_psnr": score(blurry, example).psnr,
        "psnr": float(metrics["psnr"]),
        "ssim": float(metrics["ssim"]),
        "two_stage_psnr": score(sparse, example).psnr,
        "kernel_similarity": metrics.get("kernel_similarity"),
        "seconds": float(metrics["seconds"]),
        "warnings": row["warnings"],
    }
