"""The methods that need no long fit: seconds and dB, on the accelerator and on the processor beside it."""

from __future__ import annotations

from experiments.accelerator import images, sizes
from experiments.accelerator.plan import CLASSICAL, Context, Found
from experiments.runner.job import Task, run_tasks
from jaxdeblur.evaluation.protocol import score


def measure(part: str, item: str, context: Context) -> Found:
    """Restores one image twice: the first time may compile, the second counts as the time."""
    preset = next(name for name in CLASSICAL if item.startswith(f"{name}_"))
    example = images.one(context, item.removeprefix(f"{preset}_"))
    task = Task(example, sizes.preset(preset, toy=context.toy), 0, None, False, None)
    (first,), (again,) = run_tasks([task]), run_tasks([task])
    figures = {
        "input_psnr": score(example.load_blurry(), example).psnr,
        "psnr": float(again["metrics"]["psnr"]),
        "ssim": float(again["metrics"]["ssim"]),
        "first_s": float(first["metrics"]["seconds"]),
        "seconds": float(again["metrics"]["seconds"]),
        "same_twice": bool((first["arrays"]["restored"] == again["arrays"]["restored"]).all()),
        "chosen": again["chosen"],
        "warnings": again["warnings"],
    }
    return Found(figures, {"restored": again["arrays"]["restored"], "kernel": again["arrays"]["kernel"]})
