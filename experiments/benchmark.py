"""How long a preset compiles, how long its step takes and how much memory it needs; on demand against PyTorch.

    python -m experiments.benchmark --preset=selfdeblur --compare=torch
    python -m experiments.benchmark --preset=selfdeblur --profile

Each side runs as its users start it: ours relaunched with huge memory pages (see jaxdeblur.runtime), PyTorch plainly, and
PyTorch once more with huge pages. The sides are separate processes that take turns, a few steps each, so that
whatever else the machine does meets all alike. The last line is JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from absl import app, flags, logging

from experiments import step_profile
from experiments.accelerator import device
from experiments.steppers import Stepper, jax_stepper, torch_stepper
from jaxdeblur import runtime
from jaxdeblur.config import FitConfig
from jaxdeblur.presets import PRESETS

_PRESET = flags.DEFINE_string("preset", "selfdeblur", "preset whose fit is timed")
_COMPARE = flags.DEFINE_enum("compare", "none", ["none", "torch"], "what else to time, in turn")
_SIDE = flags.DEFINE_integer("side", 255, "height and width of the blurry image", lower_bound=32)
_KERNEL_SIZE = flags.DEFINE_integer("kernel_size", 17, "side of the kernel", lower_bound=3)
_CHANNELS = flags.DEFINE_integer("channels", None, "width of the image generator, instead of the preset's", lower_bound=1)
_NUM_RESTARTS = flags.DEFINE_integer("num_restarts", 1, "restarts in one program", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 5, "steps timed per turn", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 5, "turns of each side; the median counts", lower_bound=1)
_CACHE_DIR = flags.DEFINE_string("cache_dir", runtime.OFF, "compilation cache; off, so that compiling is timed")
_PROFILE = flags.DEFINE_boolean("profile", False, "instead of timing sides: where a turn's time goes, by layer (on CPUs)")
_WORKER = flags.DEFINE_enum("worker", None, ["jax", "torch"], "run as one of the sides (used by this script itself)")

# Worker threads of one side may spin a while after its turn; the next side should not pay for that.
_PAUSE_SECONDS = 0.5
# Larger than a processor's caches, and seconds rather than minutes on two cores.
_LIMIT_SIZES = {"length": 1 << 25, "side": 2048, "repeats": 4}


def _fit_config() -> FitConfig:
    """The preset's fit, narrower if asked."""
    config = PRESETS[_PRESET.value].fit
    if config is None:
        raise app.UsageError(f"preset {_PRESET.value} fits no network: nothing to time")
    if _CHANNELS.value is not None:
        narrower = dataclasses.replace(config.image_generator, channels=_CHANNELS.value)
        config = dataclasses.replace(config, image_generator=narrower)
    return config


def _stepper() -> Stepper:
    arguments = (_fit_config(), (_SIDE.value, _SIDE.value), _KERNEL_SIZE.value, _STEPS.value)
    if _WORKER.value == "jax":
        return jax_stepper(*arguments, num_restarts=_NUM_RESTARTS.value, cache_dir=_CACHE_DIR.value)
    try:
        return torch_stepper(*arguments, num_restarts=_NUM_RESTARTS.value)
    except ValueError as error:
        raise app.UsageError(f"{_PRESET.value} cannot be compared: {error}") from None


def _work() -> None:
    """A side: gets ready, then does one turn for every line read, and answers with JSON."""
    stepper = _stepper()
    turn = stepper.turn
    turn()
    print(json.dumps({"compile_s": stepper.compile_s}), flush=True)
    for _ in sys.stdin:
        time.sleep(_PAUSE_SECONDS)
        start = time.perf_counter()
        turn()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({"step_ms": seconds / _STEPS.value * 1e3, "peak_mb": peak / 1e6}), flush=True)


def _profile() -> None:
    """Prints the table of a turn, and a line of JSON."""
    stepper = _stepper()
    stepper.turn()
    start = time.perf_counter()
    stepper.turn()
    step_ms = 1e3 * (time.perf_counter() - start) / _STEPS.value
    milliseconds = step_profile.traced_turn(stepper.turn)
    parts = step_profile.profile(stepper.compiled.as_text(), milliseconds, _STEPS.value)
    if not parts:
        raise SystemExit("XLA has recorded no instruction: this version or device traces in another way")
    limits = device.measured_limits(**_LIMIT_SIZES, precisions=["float32"])
    print(step_profile.table(parts, limits))
    traced_ms = sum(part.milliseconds for part in parts)
    print(json.dumps({"step_ms": round(step_ms, 2), "traced_ms": round(traced_ms, 2), **limits}))


class _Side:
    """A worker process and what it has reported."""

    def __init__(self, worker: str, environment: dict[str, str]) -> None:
        command = [sys.executable, *sys.orig_argv[1:], f"--worker={worker}"]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.reports: list[dict[str, float]] = []
        self.compile_s = self._read()["compile_s"]

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a side of the comparison ended early, status {self.process.wait()}")
        report: dict[str, float] = json.loads(line)
        return report

    def turn(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.reports.append(self._read())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    @property
    def step_ms(self) -> float:
        return statistics.median(report["step_ms"] for report in self.reports)


def main(argv: list[str]) -> None:
    """Starts the sides, lets them take turns, prints the table and the JSON line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: everything is a flag")
    logging.set_verbosity(logging.WARNING)
    if _PROFILE.value and _COMPARE.value != "none":
        raise app.UsageError("--profile looks at our own step: leave --compare out")
    if _WORKER.value is not None:
        _profile() if _PROFILE.value else _work()
        return
    plain = dict(os.environ)
    ours = runtime.huge_pages_environment(plain) or plain
    if _PROFILE.value:
        flags_of_xla = " ".join(filter(None, [ours.get("XLA_FLAGS"), step_profile.TRACE_FLAG]))
        command = [sys.executable, *sys.orig_argv[1:], "--worker=jax"]
        raise SystemExit(subprocess.run(command, env={**ours, "XLA_FLAGS": flags_of_xla}, check=False).returncode)
    sides = {"ours": _Side("jax", ours)}
    if _COMPARE.value == "torch":
        sides["torch"] = _Side("torch", plain)
        sides["torch, huge pages"] = _Side("torch", ours)
    try:
        for _ in range(_TURNS.value):
            for side in sides.values():
                side.turn()
    finally:
        for side in sides.values():
            side.close()
    for name, side in sides.items():
        peak = max(report["peak_mb"] for report in side.reports)
        print(f"{name:18s} {side.step_ms:9.1f} ms per step   peak {peak:7.0f} MB   compiled in {side.compile_s:.1f} s")
    first = sides["ours"]
    result: dict[str, Any] = {
        "compile_s": round(first.compile_s, 2),
        "step_ms": round(first.step_ms, 2),
        "peak_mb": round(max(report["peak_mb"] for report in first.reports)),
        "torch_step_ms": None,
        "step_ratio": None,
        "step_ratio_huge_pages_both": None,
    }
    if len(sides) > 1:
        result["torch_step_ms"] = round(sides["torch"].step_ms, 2)
        for key, name in (("step_ratio", "torch"), ("step_ratio_huge_pages_both", "torch, huge pages")):
            turns = zip(first.reports, sides[name].reports, strict=True)
            result[key] = round(statistics.median(a["step_ms"] / b["step_ms"] for a, b in turns), 3)
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
