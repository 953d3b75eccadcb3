"""Deblurs a benchmark set blindly and prints PSNR and SSIM of every image, before and after.

    python -m experiments.blind_table --dataset=levin --data_dir=data/levin
    python -m experiments.blind_table --dataset=lai --data_dir=data/lai --kernel_size=published --match='text_*' --csv=text.csv

Metrics are taken at the best quarter-pixel shift (see jaxdeblur/evaluation/metrics.py) of the restored image clipped to [0, 1].
With ``--csv`` a run that was stopped goes on: rows that the file has are not measured again.
Seconds are those of the whole run of an image; compilation is in them unless its programs are in the cache. As the command line
does, the script starts itself anew on Linux CPUs to get huge memory pages (see jaxdeblur/runtime.py).
"""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import io
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from absl import flags

from experiments.command_line import run_command, start
from experiments.files import write_text
from jaxdeblur import runtime
from jaxdeblur.config import Config
from jaxdeblur.errors import InputError
from jaxdeblur.evaluation.datasets import Example, find_examples
from jaxdeblur.evaluation.metrics import aligned_metrics
from jaxdeblur.pipeline import Result, deblur
from jaxdeblur.presets import PRESETS

Key = tuple[str, int, str, str, int]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table; ``preset``, ``asked`` and ``max_shift`` are the flags that it was measured with."""

    name: str
    seed: int
    input_psnr: float
    input_ssim: float
    psnr: float
    ssim: float
    seconds: float
    kernel_side: int
    chosen: str
    preset: str
    asked: str
    max_shift: int

    @property
    def key(self) -> Key:
        return self.name, self.seed, self.preset, self.asked, self.max_shift


NUMBERS = ("input_psnr", "input_ssim", "psnr", "ssim", "seconds")


def measure(
    examples: Iterable[Example],
    seeds: Sequence[int],
    run: Callable[[np.ndarray, Example, int], Result],
    *,
    preset: str = "fast",
    asked: str = "auto",
    max_shift: int = 10,
    done: Sequence[Row] = (),
) -> Iterator[Row]:
    """Runs every image with every seed and yields a row as soon as it is known.

    Args:
      examples: the images.
      seeds: of the runs.
      run: takes the blurry image ``[H, W]``, its example and a seed.
      preset: goes into the rows.
      asked: the kernel size that was asked for, likewise.
      max_shift: in pixels, the largest at which the restored image is compared with the sharp one.
      done: rows that are known already.
    """
    known = {row.key: row for row in done}
    for example in examples:
        keys = [(example.name, seed, preset, asked, max_shift) for seed in seeds]
        if all(key in known for key in keys):
            yield from (known[key] for key in keys)
            continue
        blurry, sharp = example.load()
        before = aligned_metrics(blurry, sharp, max_shift=max_shift)
        for key in keys:
            if key in known:
                yield known[key]
                continue
            start = time.perf_counter()
            result = run(blurry, example, key[1])
            seconds = time.perf_counter() - start
            after = aligned_metrics(np.clip(result.restored, 0.0, 1.0), sharp, max_shift=max_shift)
            numbers = dict(zip(NUMBERS, (before.psnr, before.ssim, after.psnr, after.ssim, seconds), strict=True))
            yield Row(
                name=example.name,
                seed=key[1],
                **numbers,
                kernel_side=max(result.kernel.shape),
                chosen=result.chosen,
                preset=preset,
                asked=asked,
                max_shift=max_shift,
            )


def read_rows(path: pathlib.Path) -> list[Row]:
    """The rows of an earlier run's ``--csv``; none if there is no such file.

    Raises:
      InputError: the file is something else.
    """
    if not path.exists():
        return []
    types = {"str": str, "int": int, "float": float}
    fields = {field.name: types[str(field.type)] for field in dataclasses.fields(Row)}
    try:
        with path.open(newline="") as file:
            return [Row(**{name: kind(row[name]) for name, kind in fields.items()}) for row in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"--csv={path}: not a table of this command ({error!r}); give another file") from None


def summary(rows: Sequence[Row]) -> list[str]:
    """Lines with mean, median, smallest and largest value of every number, aligned with the rows'."""
    lines = []
    for name, reduce in (("mean", statistics.fmean), ("median", statistics.median), ("min", min), ("max", max)):
        values = [reduce([getattr(row, number) for row in rows]) for number in NUMBERS]
        lines.append(_line(f"{name} of {len(rows)}", "", values, "", ""))
    return lines


def category_means(rows: Sequence[Row]) -> list[str]:
    """A line of means for each of Lai's categories, which its images' names begin with."""
    categories = list(dict.fromkeys(row.name.split("_")[0] for row in rows))
    of = {one: [row for row in rows if row.name.startswith(f"{one}_")] for one in categories}
    return [summary(found)[0].replace("mean of", f"{one},", 1) for one, found in of.items()]


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
    flags.DEFINE_integer(
        "max_shift",
        10,
        "Pixels by which the restored image may be shifted against the sharp one; kernels of 75 px may need 30.",
        lower_bound=0,
        upper_bound=100,
        flag_values=values,
    )
    string("csv", None, "Also write the rows to this file; those in it already are not measured again.")
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
    path = pathlib.Path(values.csv).expanduser() if values.csv else None
    earlier = read_rows(path) if path is not None else []
    runtime.relaunch_with_huge_pages()
    runtime.set_up_cache()

    def run(blurry: np.ndarray, example: Example, seed: int) -> Result:
        runtime.clear_compiled_executables()
        return deblur(blurry, configs[example], key=jax.random.key(seed))

    asked = {"preset": values.preset, "asked": values.kernel_size, "max_shift": values.max_shift}
    rows = _report(measure(examples, values.seed, run, **asked, done=earlier), path, earlier)
    print(*summary(rows), *(category_means(rows) if values.dataset == "lai" else []), sep="\n")


def _report(rows: Iterable[Row], path: pathlib.Path | None, earlier: Sequence[Row] = ()) -> list[Row]:
    """Prints rows as they come, and writes them and the earlier ones to a CSV file where one is asked for."""
    print(header(), flush=True)
    done = []
    written = {row.key: row for row in earlier}
    for row in rows:
        print(line(row), flush=True)
        done.append(row)
        if path is not None and row.key not in written:
            written[row.key] = row
            lines = io.StringIO(newline="")
            writer = csv.DictWriter(lines, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(dataclasses.asdict, written.values()))
            write_text(path, lines.getvalue())
    return done


if __name__ == "__main__":
    start(main)
