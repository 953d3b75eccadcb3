"""How time and memory grow with the image, the kernel, the restarts and the number of images, and what processes gain.

    python -m experiments.scaling --quick
    python -m experiments.scaling --output_dir=scaling

Every point is a process of its own, so that its peak memory is its own. It deblurs made-up images twice, with an empty folder
for compiled programs: the first time compiles, the second counts as the time. With several workers the time includes their
start, and the memory is this process's and so many times the largest worker's. On a machine that does other work as well, the
seconds of processors used are the better measure of the two that are given. Growth is the slope of a line through the points in
logarithms: 2 for the side of an image means in proportion to its pixels. A deep prior is fitted for a few steps only
(``--steps``), since each of them costs the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.command_line import run_command, start
from experiments.files import save_figure, write_text
from jaxdeblur import runtime
from jaxdeblur.jobs.cluster import map_batches
from jaxdeblur.jobs.images import Task, run_tasks
from jaxdeblur.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class Point:
    """What is measured at once.

    Attributes:
      preset: the method.
      side: of the image, in pixels.
      kernel: side of the kernel's support.
      restarts: of the deep prior.
      images: how many.
      workers: processes that share the images.
    """

    preset: str
    side: int = 128
    kernel: int = 15
    restarts: int = 1
    images: int = 1
    workers: int = 1


@dataclasses.dataclass(frozen=True)
class Series:
    """Points that differ in one attribute.

    Attributes:
      title: what grows.
      axis: name of the attribute.
      points: in its order.
    """

    title: str
    axis: str
    points: tuple[Point, ...]


def all_series(classical: str, deep: str, *, quick: bool) -> list[Series]:
    """What is measured: each of the two methods along each axis that concerns it."""

    def series(preset: str, axis: str, values: Sequence[int], **base: int) -> Series:
        values = values[:3] if quick else values
        return Series(f"{preset}: {axis}", axis, tuple(Point(preset, **{**base, axis: value}) for value in values))

    sides, kernels, counts = (128, 256, 512, 1024, 2048), (11, 31, 51, 75, 101), (1, 2, 4, 8, 16)
    return [
        series(classical, "side", sides),
        series(classical, "kernel", kernels, side=256),
        series(classical, "images", counts),
        series(classical, "workers", counts[:2], images=8),
        series(deep, "side", sides),
        series(deep, "kernel", kernels, side=256),
        series(deep, "restarts", counts),
        series(deep, "images", counts),
        series(deep, "workers", counts[:2], images=8),
    ]


def growth(values: Sequence[float], costs: Sequence[float]) -> float | None:
    """Exponent b of the least-squares fit ``cost = a·value^b`` in logarithms; None for fewer than two usable points."""
    usable = [(value, cost) for value, cost in zip(values, costs, strict=True) if cost > 0]
    if len({value for value, _ in usable}) < 2:
        return None
    logarithms = np.log(usable)
    return float(np.polyfit(logarithms[:, 0], logarithms[:, 1], 1)[0])


def blurry_scene(side: int, kernel_side: int, seed: int = 0) -> np.ndarray:
    """A blurry image ``[side, side]`` of boxes, under a diagonal line's blur, with a little noise."""
    generator = np.random.default_rng(seed)
    whole = side + kernel_side - 1
    sharp = np.full((whole, whole), 0.5)
    for _ in range(max(60, whole * whole // 300)):
        row, column = generator.integers(0, whole, 2)
        height, width = generator.integers(4, 30, 2)
        sharp[row : row + height, column : column + width] = generator.uniform(0.05, 0.95)
    blurry = np.mean([sharp[step : step + side, step // 2 : step // 2 + side] for step in range(kernel_side)], axis=0)
    noisy: np.ndarray = np.clip(blurry + generator.normal(0.0, 0.002, blurry.shape), 0.0, 1.0).astype(np.float32)
    return noisy


def _peak_mb(workers: int = 1) -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if workers > 1:
        peak += workers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def _cpu_s() -> float:
    """Seconds of processors that this process has used, and those of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(point: Point, steps: int) -> dict[str, float]:
    """Deblurs twice.

    Returns:
      ``first_s``, compiling included; ``seconds`` and ``cpu_s`` (of all processors) of the second time; ``peak_mb``; and
      ``base_mb``, before any work.

    Raises:
      RuntimeError: an image failed.
    """
    config = PRESETS[point.preset].override(kernel_size=point.kernel)
    if config.fit is not None:
        fit = dataclasses.replace(config.fit, num_iterations=steps)
        config = dataclasses.replace(config, fit=fit, num_restarts=point.restarts)
    with tempfile.TemporaryDirectory() as cache_dir:
        tasks = [
            Task(blurry_scene(point.side, point.kernel, seed), config, seed=0, kernel=None, cache_dir=cache_dir, name=str(seed))
            for seed in range(point.images)
        ]
        jax.block_until_ready(jax.numpy.zeros(1))
        found = {"base_mb": _peak_mb()}
        for name in ("first_s", "seconds"):
            began, used = time.perf_counter(), _cpu_s()
            with contextlib.closing(map_batches(run_tasks, ([task] for task in tasks), workers=point.workers)) as outcomes:
                for outcome in outcomes:
                    if outcome.value is None:
                        raise RuntimeError(outcome.errors[-1])
            found[name], found["cpu_s"] = time.perf_counter() - began, _cpu_s() - used
    return {**found, "peak_mb": _peak_mb(point.workers)}


def _in_a_process(point: Point, steps: int, timeout: int, environment: Mapping[str, str]) -> dict[str, float] | None:
    """:func:`measure` in a process of its own; None if it fails or takes too long."""
    command = [sys.executable, "-m", "experiments.scaling", f"--point={json.dumps(dataclasses.asdict(point))}"]
    try:
        done = subprocess.run(
            [*command, f"--steps={steps}"],
            env=dict(environment),
            stdout=subprocess.PIPE,
            timeout=timeout,
            check=True,
            text=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{point}: no figure ({type(error).__name__})", flush=True)
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(series: Series, figures: Sequence[dict[str, float] | None]) -> str:
    """The series as Markdown, its growth in the last line. Memory grows from what a process takes before any work."""
    heading = f"| {series.axis} | seconds | of processors | first call | peak MB |"
    lines = [f"### {series.title}", "", heading, "| ---: | ---: | ---: | ---: | ---: |"]
    known = []
    for point, figure in zip(series.points, figures, strict=True):
        value = getattr(point, series.axis)
        if figure is None:
            lines.append(f"| {value} | – | – | – | – |")
            continue
        known.append((value, figure))
        cells = [
            f"{figure[name]:.{digits}f}" for name, digits in (("seconds", 2), ("cpu_s", 2), ("first_s", 1), ("peak_mb", 0))
        ]
        lines.append(f"| {value} | {' | '.join(cells)} |")
    values = [value for value, _ in known]
    seconds, processors = (growth(values, [figure[name] for _, figure in known]) for name in ("seconds", "cpu_s"))
    memory = growth(values, [figure["peak_mb"] - figure["base_mb"] for _, figure in known])
    lines.append(f"| growth | {_exponent(seconds)} | {_exponent(processors)} | | {_exponent(memory)} |")
    return "\n".join(lines)


def _exponent(value: float | None) -> str:
    return "–" if value is None else f"^{value:.2f}"


def draw(found: Sequence[tuple[Series, Sequence[dict[str, float] | None]]], path: pathlib.Path) -> None:
    """Seconds and memory against each axis, in logarithms, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes_names = list(dict.fromkeys(series.axis for series, _ in found))
    figure = Figure(figsize=(3.2 * len(axes_names), 6.0), layout="constrained")
    grid = figure.subplots(2, len(axes_names), squeeze=False, sharey="row")
    for column, name in zip(grid.T, axes_names, strict=True):
        drawn = [(series, figures) for series, figures in found if series.axis == name]
        for axis, key in zip(column, ("seconds", "peak_mb"), strict=True):
            for series, figures in drawn:
                known = [(getattr(p, name), f[key]) for p, f in zip(series.points, figures, strict=True) if f]
                axis.loglog([v for v, _ in known], [cost for _, cost in known], "o-", label=series.points[0].preset)
            axis.set_xticks(sorted({getattr(point, name) for series, _ in drawn for point in series.points}))
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.grid(alpha=0.3)
        column[1].set_xlabel(name)
        column[0].legend(fontsize="small")
    for axis, label in zip(grid[:, 0], ("seconds", "peak MB"), strict=True):
        axis.set_ylabel(label)
    save_figure(figure, path)


def define_flags() -> flags.FlagValues:
    """The flags, unparsed."""
    values = flags.FlagValues()
    flags.DEFINE_string("output_dir", "scaling", "Folder for the table and the figure.", flag_values=values)
    flags.DEFINE_bool("quick", False, "Only the smaller points.", flag_values=values)
    flags.DEFINE_list(
        "only", [], "Only series whose titles hold one of these, such as 'fast: side,restarts'.", flag_values=values
    )
    flags.DEFINE_enum("classical", "fast", sorted(PRESETS), "Preset without a deep prior.", flag_values=values)
    flags.DEFINE_enum("deep", "selfdeblur_small", sorted(PRESETS), "Preset with a deep prior.", flag_values=values)
    flags.DEFINE_integer("steps", 10, "Steps of the deep prior's fit.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("timeout", 1800, "Seconds after which a point is given up.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("point", None, "Measure one point (used by this script itself).", flag_values=values)
    return values


def main(argv: Sequence[str]) -> int:
    """Runs a command line: the program's name and its arguments. Returns the exit status."""
    values = define_flags()

    def work() -> int:
        if values.point is not None:
            print(json.dumps(measure(Point(**json.loads(values.point)), values.steps)))
        else:
            _measure_all(values)
        return 0

    return run_command(argv, values, __doc__, work)


def _measure_all(values: flags.FlagValues) -> None:
    """Measures all points, one after the other, and writes ``scaling.json``, ``scaling.md`` and ``scaling.png``."""
    environment = runtime.huge_pages_environment() or dict(os.environ)
    folder = pathlib.Path(values.output_dir)
    found: list[tuple[Series, list[dict[str, float] | None]]] = []
    record: list[dict[str, Any]] = []
    wanted = all_series(values.classical, values.deep, quick=values.quick)
    if values.only:
        wanted = [series for series in wanted if any(word in series.title for word in values.only)]
    for series in wanted:
        found.append((series, []))
        for point in series.points:
            figures = _in_a_process(point, values.steps, values.timeout, environment)
            found[-1][1].append(figures)
            record.append({**dataclasses.asdict(point), "axis": series.axis, "figures": figures})
            write_text(folder / "scaling.json", json.dumps(record, indent=1))
        print(f"\n{table(*found[-1])}", flush=True)
        write_text(folder / "scaling.md", "\n\n".join(table(*one) for one in found) + "\n")
    draw(found, folder / "scaling.png")
    print(f"\nload when done: {os.getloadavg()}; see {folder}")


if __name__ == "__main__":
    start(main)
