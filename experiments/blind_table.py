"""Deblurs a benchmark set blindly and prints PSNR and SSIM of every image, before and after.

    python -m experiments.blind_table --dataset=levin --data_dir=data/levin
    python -m experiments.blind_table --dataset=lai --data_dir=data/lai --kernel_size=published --match='text_*' --csv=text.csv

Metrics are taken at the best quarter-pixel shift (see jaxdeblur/evaluation/metrics.py) of the restored image clipped to [0, 1].
Seconds are those of the whole run of an image; compilation is in them unless its programs are in the cache. As the command line
does, the script starts itself anew on Linux CPUs to get huge memory pages (see jaxdeblur/runtime.py).
"""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from absl import flags

from experiments.command_line import run_command, start
from jaxdeblur import runtime
from jaxdeblur.config import Config
from jaxdeblur.errors import InputError
from jaxdeblur.evaluation.datasets import Example, find_examples
from jaxdeblur.evaluation.metrics import aligned_metrics
from jaxdeblur.pipeline import Result, deblur
from jaxdeblur.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    seed: int
    input_psnr: float
    input_ssim: float
    psnr: float
    ssim: float
    seconds: float
    kernel_side: int
    chosen: str


NUMBERS = ("input_psnr", "input_ssim", "psnr", "ssim", "seconds")


def measure(
    examples: Iterable[Example], seeds: Sequence[int], run: Callable[[np.ndarray, Example, int], Result]
) -> Iterator[Row]:
    """Runs every image with every seed and yields a row as soon as it is known.

    Args:
      examples: the images.
      seeds: of the runs.
      run: takes the blurry image ``[H, W]``, its example and a seed.
    """
    for example in examples:
        blurry, sharp = example.load()
        before = aligned_metrics(blurry, sharp)
        for seed in seeds:
            start = time.perf_counter()
            result = run(blurry, example, seed)
            seconds = time.perf_counter() - start
            after = aligned_metrics(np.clip(result.restored, 0.0, 1.0), sharp)
            side = max(result.kernel.shape)
            yield Row(example.name, seed, before.psnr, before.ssim, after.psnr, after.ssim, seconds, side, result.chosen)


def summary(rows: Sequence[Row]) -> list[str]:
    """Lines with mean, median, smallest and largest value of every number, aligned with the rows'."""
    lines = []
    for name, reduce in (("mean", statistics.fmean), ("median", statistics.median), ("min", min), ("max", max)):
        values = [reduce([getattr(row, number) for row in rows]) for number in NUMBERS]
        lines.append(_line(f"{name} of {len(rows)}", "", values, "", ""))
    return lines


def header() -> str:
    """The first line of the table."""
    return f"{'image':<24}{'seed':>5}{'in dB':>8}{'SSIM':>7}{'out dB':>8}{'SSIM':>7}{'s':>8}{'side':>6}  chosen"


def line(row: Row) -> str:
    """One row as text."""
    return _line(row.name, str(row.seed), [getattr(row, number) for number in NUMBERS], str(row.kernel_side), row.chosen)


def _line(name: str, seed: str, values: Sequence[float], side: str, chosen: str) -> str:
    before, before_ssim, after, after_ssim, seconds = values
    return (
        f"{name:<24}{seed:>5}{before:>8.2f}{before_ssim:>7.3f}{after:>8.2f}{after_ssim:>7.3f}{seconds:>8.1f}{side:>6}  {chosen}"
    ).rstrip()


def configured(config: Config, kernel_size: str, example: Example) -> Config:
    """``config`` with the kernel size that ``--kernel_size`` asks for.

    Raises:
      InputError: it is neither 'auto' nor 'published' nor an odd number.
    """
    if kernel_size == "auto":
        return dataclasses.replace(config, kernel_size=None)
    try:
        side = example.kernel_size if kernel_size == "published" else int(kernel_size)
    except ValueError:
        raise InputError(f"--kernel_size={kernel_size} is no size: give 'auto', 'published' or an odd number") from None
    return dataclasses.replace(config, kernel_size=side)


def define_flags() -> flags.FlagValues:
    """The flags, unparsed."""
    values = flags.FlagValues()

    def string(name: str, default: str | None, text: str) -> None:
        flags.DEFINE_string(name, default, text, flag_values=values)

    flags.DEFINE_enum("dataset", "levin", ["lai", "levin"], "Which set.", flag_values=values)
    string("data_dir", None, "Folder of the set.")
    flags.DEFINE_enum("preset", "fast", sorted(PRESETS), "The method.", flag_values=values)
    string("kernel_size", "auto", "'auto', 'published' (each kernel's own), or an odd number.")
    string("teacher_weights", None, "Weights of the network that the preset asks, if it does.")
    flags.DEFINE_multi_integer("seed", [0], "Seed; repeat the flag for several runs of each image.", flag_values=values)
    flags.DEFINE_multi_string(
        "match", ["*"], "Only images whose names match this pattern; repeat it for several.", flag_values=values
    )
    flags.DEFINE_integer("limit", None, "Only the first so many images.", lower_bound=1, flag_values=values)
    string("csv", None, "Also write the rows to this file.")
    return values


def main(argv: Sequence[str]) -> int:
    """Runs a command line: the program's name and its arguments. Returns the exit status."""
    values = define_flags()

    def work() -> int:
        if not values.data_dir:
            raise InputError("--data_dir is missing: give a folder")
        _print_table(values)
        return 0

    return run_command(argv, values, __doc__, work)


def _print_table(values: flags.FlagValues) -> None:
    found = find_examples(values.dataset, pathlib.Path(values.data_dir).expanduser())
    examples = [one for one in found if any(fnmatch.fnmatch(one.name, pattern) for pattern in values.match)][: values.limit]
    if not examples:
        raise InputError(f"--match={','.join(values.match)} fits no image of the set: names look like {found[0].name}")
    preset = PRESETS[values.preset].override(teacher_weights=values.teacher_weights)
    configs = {example: configured(preset, values.kernel_size, example) for example in examples}
    runtime.relaunch_with_huge_pages()
    runtime.set_up_cache()

    def run(blurry: np.ndarray, example: Example, seed: int) -> Result:
        runtime.clear_compiled_executables()
        return deblur(blurry, configs[example], key=jax.random.key(seed))

    rows = _report(measure(examples, values.seed, run), values.csv)
    print(*summary(rows), sep="\n")


def _report(rows: Iterable[Row], path: str | None) -> list[Row]:
    """Prints rows as they come, and writes them to a CSV file where one is asked for."""
    print(header(), flush=True)
    done = []
    with open(path or os.devnull, "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        for row in rows:
            print(line(row), flush=True)
            writer.writerow(dataclasses.asdict(row))
            file.flush()
            done.append(row)
    return done


if __name__ == "__main__":
    start(main)
