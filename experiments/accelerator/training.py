"""DWDN trained for some minutes on free images, and its non-blind restorations beside the sparse prior's."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments import train_dwdn
from experiments.accelerator import images, sizes
from experiments.accelerator.fits import WEIGHTS
from experiments.accelerator.plan import Context, Found
from experiments.files import write_text
from jaxdeblur import runtime
from jaxdeblur.errors import InputError
from jaxdeblur.networks.teachers.weights import load_teacher

# For what is left to do once the steps are done, and for steps that take longer than the first ones did.
_RESERVE_SECONDS = 40.0
_RESERVE_SHARE = 0.05
_TIMED_STEPS = 5


def measure(part: str, item: str, context: Context) -> Found:
    """Trains, or compares what was trained."""
    runtime.set_up_cache()
    size = sizes.training(toy=context.toy)
    training, held_out = images.to_train(context, size.crop + size.kernel_sizes[1] - 1)
    if context.toy:
        held_out = dict(list(held_out.items())[:1])
    cases = train_dwdn.held_out_cases(held_out, size.kernel_sizes, 0)
    return _trained(training, cases, context) if item == "train" else _compared(cases, context)


def _trained(training: dict[str, np.ndarray], cases: Sequence[train_dwdn.Case], context: Context) -> Found:
    size = sizes.training(toy=context.toy)
    smallest = size.crop + size.kernel_sizes[1] - 1
    crops = [version for image in training.values() for version in train_dwdn.reduced(image, smallest)]
    folder = context.work_dir / "dwdn"
    folder.mkdir(exist_ok=True)
    config = _config(crops, context)
    start = time.perf_counter()
    state = train_dwdn.train(config, crops, cases, folder)
    seconds = time.perf_counter() - start
    shutil.copy(folder / "dwdn.msgpack", context.output_dir / WEIGHTS)
    figures = {
        "steps": int(state.step),
        "seconds": seconds,
        "batch_size": config.batch_size,
        "crop": config.crop,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "megabytes": (context.output_dir / WEIGHTS).stat().st_size / 1e6,
        "best_psnr": float(state.best_psnr),
        "trained_on": sorted(training),
    }
    return Found(figures)


def _config(crops: Sequence[np.ndarray], context: Context) -> train_dwdn.TrainConfig:
    """As many steps as fit into the time, found once: the learning rate of a run that goes on must not change."""
    size = sizes.training(toy=context.toy)
    validations = 2 if context.toy else 20

    def config(num_steps: int) -> train_dwdn.TrainConfig:
        return train_dwdn.TrainConfig(
            size.model, num_steps, size.batch_size, size.crop, size.kernel_sizes, 1e-3, max(1, num_steps // validations), 0
        )

    file = context.work_dir / "dwdn" / "steps.json"
    if file.exists():
        return config(int(json.loads(file.read_text(encoding="utf-8"))))
    seconds = _seconds_per_step(config(1), crops)
    reserve = 0.0 if context.toy else _RESERVE_SECONDS
    usable = (min(size.seconds, context.seconds_left() - reserve)) * (1 - _RESERVE_SHARE)
    if usable <= 0:
        raise InputError("no time left to train: give --budget_minutes=9 and --part=training")
    num_steps = max(2, min(int(usable / seconds), 4 if context.toy else 1_000_000))
    write_text(file, json.dumps(num_steps))
    return config(num_steps)


def _seconds_per_step(config: train_dwdn.TrainConfig, crops: Sequence[np.ndarray]) -> float:
    """Of steps after the first, drawing their examples included."""
    init, step = train_dwdn.make_step(config)
    state, kernels = init(jax.random.key(0)), train_dwdn.kernel_bank(config.kernel_sizes, 0)
    start = 0.0
    for index in range(1 + _TIMED_STEPS):
        if index == 1:
            start = time.perf_counter()
        sharp, chosen, noise = train_dwdn.draw_batch(crops, kernels, config, index)
        state, value = step(state, jnp.asarray(sharp), jnp.asarray(chosen), jnp.asarray(noise))
        float(value)
    return (time.perf_counter() - start) / _TIMED_STEPS


def _compared(cases: Sequence[train_dwdn.Case], context: Context) -> Found:
    weights = context.output_dir / WEIGHTS
    if not weights.is_file():
        raise InputError("no DWDN has been trained yet: the item 'train' goes first")
    rows = train_dwdn.compared(load_teacher("dwdn", weights), cases)
    names = ("input_psnr", "sparse_psnr", "dwdn_psnr")
    by_noise = [
        {"noise_std": std, "cases": len(chosen), **dict(zip(names, np.mean(chosen, axis=0)[1:].tolist(), strict=True))}
        for std in sorted({row[0] for row in rows})
        for chosen in [[row for row in rows if row[0] == std]]
    ]
    means = dict(zip(names, np.mean(rows, axis=0)[1:].tolist(), strict=True))
    return Found({**means, "cases": len(rows), "by_noise": by_noise, "table": train_dwdn.comparison(rows)})
