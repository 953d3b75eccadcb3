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
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import step_profile
from experiments.accelerator import device
from experiments.command_line import run_command, start
from experiments.steppers import Stepper, jax_stepper, torch_stepper
from jaxdeblur import runtime
from jaxdeblur.config import FitConfig
from jaxdeblur.errors import InputError
from jaxdeblur.presets import PRESETS

# Worker threads of one side may spin a while after its turn; the next side should not pay for that.
_PAUSE_SECONDS = 0.5
# Larger than a processor's caches, and seconds rather than minutes on two cores.
_LIMIT_SIZES = {"length": 1 << 25, "side": 2048, "repeats": 4}


def _fit_config(values: flags.FlagValues) -> FitConfig:
    """The preset's fit, narrower if asked."""
    config = PRESETS[values.preset].fit
    if config is None:
        raise InputError(f"preset {values.preset} fits no network, so there is nothing to time: choose another --preset")
    if values.channels is not None:
        narrower = dataclasses.replace(config.image_generator, channels=values.channels)
        config = dataclasses.replace(config, image_generator=narrower)
    return config


def _stepper(values: flags.FlagValues) -> Stepper:
    arguments = (_fit_config(values), (values.side, values.side), values.kernel_size, values.steps)
    if values.worker == "jax":
        return jax_stepper(*arguments, num_restarts=values.num_restarts, cache_dir=values.cache_dir)
    try:
        return torch_stepper(*arguments, num_restarts=values.num_restarts)
    except ValueError as error:
        raise InputError(f"{values.preset} cannot be compared: {error}") from None


def _work(values: flags.FlagValues) -> None:
    """A side: gets ready, then does one turn for every line read, and answers with JSON."""
    stepper = _stepper(values)
    turn = stepper.turn
    turn()
    print(json.dumps({"compile_s": stepper.compile_s}), flush=True)
    for _ in sys.stdin:
        time.sleep(_PAUSE_SECONDS)
        start = time.perf_counter()
        turn()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({"step_ms": seconds / values.steps * 1e3, "peak_mb": peak / 1e6}), flush=True)


def _profile(values: flags.FlagValues) -> None:
    """Prints the table of a turn, and a line of JSON."""
    stepper = _stepper(values)
    stepper.turn()
    start = time.perf_counter()
    stepper.turn()
    step_ms = 1e3 * (time.perf_counter() - start) / values.steps
    milliseconds = step_profile.traced_turn(stepper.turn)
    parts = step_profile.profile(stepper.compiled.as_text(), milliseconds, values.steps)
    if not parts:
        raise InputError("XLA has recorded no instruction: this version or device traces in another way; leave --profile out")
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


def define_flags() -> flags.FlagValues:
    """The flags, unparsed."""
    values = flags.FlagValues()

    def integer(name: str, default: int | None, text: str, least: int = 1) -> None:
        flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=values)

    flags.DEFINE_enum("preset", "selfdeblur", sorted(PRESETS), "Preset whose fit is timed.", flag_values=values)
    flags.DEFINE_enum("compare", "none", ["none", "torch"], "What else to time, in turn.", flag_values=values)
    integer("side", 255, "Height and width of the blurry image.", least=32)
    integer("kernel_size", 17, "Side of the kernel.", least=3)
    integer("channels", None, "Width of the image generator, instead of the preset's.")
    integer("num_restarts", 1, "Restarts in one program.")
    integer("steps", 5, "Steps timed per turn.")
    integer("turns", 5, "Turns of each side; the median counts.")
    flags.DEFINE_string(
        "cache_dir", runtime.OFF, "Cache of compiled programs; off, so that compiling is timed.", flag_values=values
    )
    text = "Instead of timing sides: where a turn's time goes, by layer (on CPUs)."
    flags.DEFINE_boolean("profile", False, text, flag_values=values)
    text = "Run as one of the sides (used by this script itself)."
    flags.DEFINE_enum("worker", None, ["jax", "torch"], text, flag_values=values)
    return values


def main(argv: Sequence[str]) -> int:
    """Runs a command line: the program's name and its arguments. Returns the exit status."""
    values = define_flags()
    return run_command(argv, values, __doc__, lambda: _command(values))


def _command(values: flags.FlagValues) -> int:
    if values.profile and values.compare != "none":
        raise InputError("--profile looks at our own step: leave --compare out")
    if values.worker is not None:
        _profile(values) if values.profile else _work(values)
        return 0
    _fit_config(values)
    plain = dict(os.environ)
    ours = runtime.huge_pages_environment(plain) or plain
    if values.profile:
        flags_of_xla = " ".join(filter(None, [ours.get("XLA_FLAGS"), step_profile.TRACE_FLAG]))
        command = [sys.executable, *sys.orig_argv[1:], "--worker=jax"]
        return subprocess.run(command, env={**ours, "XLA_FLAGS": flags_of_xla}, check=False).returncode
    _time(values, plain, ours)
    return 0


def _time(values: flags.FlagValues, plain: dict[str, str], ours: dict[str, str]) -> None:
    """Starts the sides, lets them take turns, prints the table and the JSON line."""
    sides = {"ours": _Side("jax", ours)}
    if values.compare == "torch":
        sides["torch"] = _Side("torch", plain)
        sides["torch, huge pages"] = _Side("torch", ours)
    try:
        for _ in range(values.turns):
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
    start(main)
