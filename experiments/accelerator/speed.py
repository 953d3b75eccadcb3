"""Milliseconds of a step, seconds of compiling and memory: ours, and the PyTorch twin's on the same device."""

from __future__ import annotations

import statistics
import time
from typing import Any

from experiments.accelerator import device, sizes
from experiments.accelerator.plan import Context, Found
from experiments.steppers import Stepper, jax_stepper, torch_stepper
from jaxdeblur.errors import InputError
from jaxdeblur.runtime import OFF

_COMPILED = "_compiled"


def measure(part: str, item: str, context: Context) -> Found:
    """Times a preset's step; the part tells the size, and whether PyTorch is meant."""
    size = sizes.speed(large="large" in part, toy=context.toy)
    fit = sizes.preset(item.removesuffix(_COMPILED), toy=context.toy).fit
    assert fit is not None
    arguments = (fit, size.shape, size.kernel_size, size.steps)
    about = {"height": size.shape[0], "width": size.shape[1], "kernel_size": size.kernel_size}
    if part.endswith("torch"):
        figures = _torch(arguments, compiled=item.endswith(_COMPILED), turns=size.turns, toy=context.toy)
    else:
        figures = _ours(arguments, size.turns)
    return Found({**about, **figures})


def _timed(stepper: Stepper, steps: int, turns: int) -> dict[str, float]:
    start = time.perf_counter()
    stepper.turn()
    first = time.perf_counter() - start
    found = []
    for _ in range(turns):
        start = time.perf_counter()
        stepper.turn()
        found.append((time.perf_counter() - start) / steps * 1e3)
    return {
        "step_ms": statistics.median(found),
        "fastest_ms": min(found),
        "slowest_ms": max(found),
        "first_turn_s": first,
        "compile_s": stepper.compile_s,
    }


def _ours(arguments: tuple[Any, ...], turns: int) -> dict[str, Any]:
    before = device.peak_bytes()
    stepper = jax_stepper(*arguments, cache_dir=OFF)
    figures: dict[str, Any] = _timed(stepper, arguments[-1], turns)
    figures["peak_mb"] = device.risen_peak_mb(before)
    return {**figures, **cost(stepper.compiled)}


def cost(compiled: Any) -> dict[str, float | None]:
    """What XLA says of a compiled chunk: FLOPs and bytes of one step (a loop's body counts once), and memory in MB."""
    analysis = compiled.cost_analysis() or {}
    if isinstance(analysis, list):  # of older versions of JAX
        analysis = analysis[0] if analysis else {}
    memory = compiled.memory_analysis()
    planned = None
    if memory is not None:
        planned = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        planned += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "flops": analysis.get("flops"),
        "bytes": analysis.get("bytes accessed"),
        "planned_mb": None if planned is None else planned / 1e6,
    }


def _torch(arguments: tuple[Any, ...], *, compiled: bool, turns: int, toy: bool) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise InputError("PyTorch is not installed here: the comparison needs it") from None
    cuda = torch.cuda.is_available() and not toy
    # The toy is traced by torch.compile but not compiled, which takes longer than all the rest.
    backend = ("eager" if toy else "inductor") if compiled else None
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    stepper = torch_stepper(*arguments, device="cuda" if cuda else "cpu", backend=backend)
    figures: dict[str, Any] = _timed(stepper, arguments[-1], turns)
    figures["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6 if cuda else None
    return {**figures, "torch": torch.__version__, "device": torch.cuda.get_device_name() if cuda else "cpu"}
