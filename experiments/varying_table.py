"""Uniform and varying kernels on images whose blur is known to vary, or known not to.

    python -m experiments.varying_table --data_dir=data/shakes --blur=varying --csv=shakes.csv
    python -m experiments.varying_table --data_dir=data/uniform --blur=auto

Each image is deblurred with one kernel, with ``--blur``, and with its true kernels where the set has them; the first two share
the uniform kernel's estimate, so that the difference is due to the rest. PSNR is aligned, over the whole image and by region:
the middle third of both sides, the corners (outer thirds of both), and the edges between, all at the whole image's best shift.
"""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import io
import pathlib
import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from experiments.command_line import run_command, start
from experiments.files import write_text
from jaxdeblur.config import Blur
from jaxdeblur.errors import InputError

COLUMNS = ("name", "blurry", "uniform", "other", "truth", "gain", "roll_std", "corner_std", "agreement", "chosen", "seconds")
REGIONS = ("centre", "edges", "corners")


def regional_psnr(restored: np.ndarray, sharp: np.ndarray, *, crop: int = 15) -> dict[str, float]:
    """PSNR in dB of regions of ``restored`` against ``sharp``, both ``[H, W]`` in [0, 1], at the best shift of the whole.

    Returns:
      ``whole``, ``centre``, ``edges``, ``corners``.
    """
    import scipy.ndimage

    from jaxdeblur.evaluation.metrics import aligned_metrics

    whole = aligned_metrics(restored, sharp, crop=crop)
    moved = scipy.ndimage.shift(restored.astype(np.float64), [-part for part in whole.shift], order=1, mode="nearest")
    errors = ((moved - sharp) ** 2)[crop:-crop, crop:-crop]
    outer = [np.abs(np.arange(n) - (n - 1) / 2) > n / 6 for n in errors.shape]
    count = outer[0][:, None].astype(int) + outer[1][None, :]
    regional = {name: -10 * np.log10(errors[count == number].mean()) for number, name in enumerate(REGIONS)}
    return {"whole": whole.psnr} | {name: float(value) for name, value in regional.items()}


def measure(name: str, blurry: np.ndarray, sharp: np.ndarray, kernel: np.ndarray | None, blur: Blur) -> dict[str, object]:
    """One row of the table."""
    import jax

    from jaxdeblur.pipeline import deblur
    from jaxdeblur.presets import PRESETS

    config = dataclasses.replace(PRESETS["fast"], blur=blur)
    key = jax.random.key(0)
    began = time.perf_counter()
    other = deblur(blurry, config, key=key)
    seconds = time.perf_counter() - began
    images = {"blurry": blurry, "other": other.restored, "uniform": other.restored}
    if other.shake is not None and other.shake.chosen:
        one = next(candidate.kernel for candidate in other.candidates if candidate.kernel.ndim == 2)
        uniform = dataclasses.replace(config, blur="uniform")
        images["uniform"] = deblur(blurry, uniform, key=key, kernel=one).restored
    if kernel is not None:
        images["truth"] = deblur(blurry, dataclasses.replace(config, blur="uniform"), key=key, kernel=kernel).restored
    row: dict[str, object] = {"name": name, "seconds": round(seconds, 1)}
    for label, image in images.items():
        for region, value in regional_psnr(np.asarray(image), sharp).items():
            row[label if region == "whole" else f"{label}_{region}"] = round(value, 2)
    if other.shake is not None:
        shake = other.shake
        row |= {name: round(getattr(shake, name), 4) for name in ("gain", "roll_std", "corner_std", "agreement")}
        row["chosen"] = shake.chosen
    return row


def define_flags() -> flags.FlagValues:
    """The flags, unparsed."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "data_dir", None, "Folder of a set in the layout 'folder', or of Levin's with --dataset.", flag_values=values
    )
    flags.DEFINE_string("dataset", "folder", "The set.", flag_values=values)
    flags.DEFINE_enum("blur", "varying", ["varying", "auto"], "What is compared with one kernel.", flag_values=values)
    flags.DEFINE_string("match", "*", "Only names that match this pattern.", flag_values=values)
    flags.DEFINE_string("csv", None, "File for the rows; those in it already are not measured again.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit status."""
    values = define_flags()

    def work() -> int:
        if not values.data_dir:
            raise InputError("--data_dir is missing: give a folder")
        _run(values)
        return 0

    return run_command(argv, values, __doc__, work)


def _run(values: flags.FlagValues) -> None:
    from jaxdeblur import runtime
    from jaxdeblur.evaluation.datasets import find_examples

    runtime.set_up_cache(None)
    path = pathlib.Path(values.csv) if values.csv else None
    rows: list[dict[str, object]] = []
    if path is not None and path.exists():
        with path.open(newline="") as file:
            rows = [
                {name: value if name in ("name", "chosen") else float(value) for name, value in row.items() if value}
                for row in csv.DictReader(file)
            ]
    for example in find_examples(values.dataset, pathlib.Path(values.data_dir)):
        if not fnmatch.fnmatch(example.name, values.match) or any(row["name"] == example.name for row in rows):
            continue
        runtime.clear_compiled_executables()
        blurry, sharp = example.load()
        rows.append(measure(example.name, blurry, sharp, example.load_kernel(), values.blur))
        print(" ".join(f"{name} {rows[-1].get(name, '')}" for name in COLUMNS), flush=True)
        if path is not None:
            names = sorted({name for row in rows for name in row}, key=lambda name: (name not in COLUMNS, name))
            lines = io.StringIO(newline="")
            writer = csv.DictWriter(lines, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_text(path, lines.getvalue())
    print(f"{len(rows)} images; means in dB, and differences of --blur={values.blur} from uniform")
    for region in ("", *REGIONS):
        ending = f"_{region}" if region else ""
        means = {
            label: np.mean([float(str(row[label + ending])) for row in rows if label + ending in row] or [np.nan])
            for label in ("blurry", "uniform", "other", "truth")
        }
        gains = [float(str(row["other" + ending])) - float(str(row["uniform" + ending])) for row in rows]
        told = " ".join(f"{label} {value:.2f}" for label, value in means.items())
        print(f"{region or 'whole':8} {told} | mean {np.mean(gains):+.2f} smallest {min(gains):+.2f} largest {max(gains):+.2f}")


if __name__ == "__main__":
    start(main, interrupted="interrupted; the rows in --csv are not measured again")
