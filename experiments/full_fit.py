"""A deep prior's fit at the size it was published with, watched: PSNR over the steps beside the error that it minimises.

    python -m experiments.full_fit --preset=selfdeblur --data_dir=data/levin --image=im1_kernel1 --output_dir=full
    python -m experiments.full_fit --table --output_dir=full

On two CPU cores 5000 steps take an hour or more, so a stopped run (Ctrl-C, kill -9) resumes with the same command, from a
checkpoint that is at most a minute old. The kernel's size is the published one. At the end the image is also restored with the
fit's kernel by the sparse prior. Each run leaves ``RUN.json`` (figures), ``RUN.csv`` and ``RUN.png`` (curves), the restored
images and the kernel; ``--table`` prints all runs of the folder beside published figures.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pathlib
import time
from collections.abc import Sequence

import cattrs
import jax
import numpy as np
from absl import flags

from experiments.command_line import run_command, start
from experiments.files import save_figure, write_text
from experiments.runner.render import require_matplotlib
from jaxdeblur import runtime
from jaxdeblur.errors import InputError
from jaxdeblur.evaluation.datasets import find_examples
from jaxdeblur.evaluation.metrics import aligned_metrics
from jaxdeblur.imaging.writing import write_grey
from jaxdeblur.pipeline import deblur, refinish
from jaxdeblur.presets import PRESETS

# Of SelfDeblur's public results, the images that its authors' code made, scored by our protocol.
PUBLIC_RESULTS = {
    ("selfdeblur", "im1_kernel1"): 33.47,
    ("selfdeblur", "im2_kernel6"): 35.38,
    ("selfdeblur", "im3_kernel4"): 32.53,
}


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run came to; PSNR in dB, aligned.

    Attributes:
      preset: that was run.
      image: which.
      seed: of the fit.
      steps: of the fit.
      blurry: PSNR and SSIM of the input.
      direct: of the generator's image.
      sparse: of the image by the fit's kernel and the sparse prior.
      seconds: of the last, perhaps resumed, call.
    """

    preset: str
    image: str
    seed: int
    steps: int
    blurry: tuple[float, float]
    direct: tuple[float, float]
    sparse: tuple[float, float]
    seconds: float


class Curve:
    """PSNR over the steps, kept in a CSV file so that a resumed run goes on with it."""

    def __init__(self, path: pathlib.Path, sharp: np.ndarray, every: int) -> None:
        """Reads the rows that an earlier call has left at ``path``; ``sharp`` is ``[H, W]``."""
        self._path, self._sharp, self._every = path, sharp, every
        self.rows: dict[int, tuple[float, float]] = {}
        if path.exists():
            with path.open(newline="") as file:
                self.rows = {int(row["step"]): (float(row["psnr"]), float(row["ssim"])) for row in csv.DictReader(file)}

    def add(self, step: int, image: np.ndarray, kernel: np.ndarray) -> None:
        """Measures the image after ``step`` steps, where it is due."""
        del kernel
        if step % self._every:
            return
        self.rows[step] = _likeness(image, self._sharp)
        lines = io.StringIO(newline="")
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(("step", "psnr", "ssim"))
        writer.writerows((step, *values) for step, values in sorted(self.rows.items()))
        write_text(self._path, lines.getvalue())


def table(summaries: list[Summary]) -> str:
    """The runs as a Markdown table, with the mean difference to the public results where all steps were done."""
    lines = ["| preset | image | seed | steps | blurry | direct | sparse | public |", "|---|---|---|---|---|---|---|---|"]
    differences = []
    for run in summaries:
        public = PUBLIC_RESULTS.get((run.preset, run.image)) if run.steps == _published_steps(run.preset) else None
        if public is not None:
            differences.append((run.direct[0] - public, run.sparse[0] - public))
        cells = [f"{psnr:.2f} / {ssim:.3f}" for psnr, ssim in (run.blurry, run.direct, run.sparse)]
        known = "" if public is None else f"{public:.2f}"
        lines.append("| " + " | ".join((run.preset, run.image, str(run.seed), str(run.steps), *cells, known)) + " |")
    if differences:
        direct, sparse = np.mean(differences, axis=0)
        lines.append(f"\nMean difference to the public results: {direct:+.2f} dB direct, {sparse:+.2f} dB sparse.")
    return "\n".join(lines)


def define_flags() -> flags.FlagValues:
    """The flags, unparsed."""
    values = flags.FlagValues()
    flags.DEFINE_enum("preset", "selfdeblur", sorted(PRESETS), "The method.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Folder of Levin's set.", flag_values=values)
    flags.DEFINE_string("image", "im1_kernel1", "Which image of it.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of the fit.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "num_iterations", None, "Fewer steps than published; for trying out.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer("every", 100, "Steps between two measurements of the image.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("output_dir", "full_fit", "Folder for results and checkpoints.", flag_values=values)
    flags.DEFINE_bool("table", False, "Only print the table of the runs in --output_dir.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit status."""
    values = define_flags()

    def work() -> int:
        folder = pathlib.Path(values.output_dir).expanduser()
        if not values.table:
            _run(values, folder)
        print(table(summaries(folder)))
        return 0

    return run_command(argv, values, __doc__, work)


def _run(values: flags.FlagValues, folder: pathlib.Path) -> None:
    require_matplotlib()
    if not values.data_dir:
        raise InputError("--data_dir is missing: give the folder of Levin's set")
    examples = {
        one.name.removesuffix("_img"): one for one in find_examples("levin", pathlib.Path(values.data_dir).expanduser())
    }
    if values.image not in examples:
        raise InputError(f"--image={values.image} is none of the set; there are {', '.join(sorted(examples))}")
    preset = PRESETS[values.preset]
    if preset.fit is None:
        raise InputError(f"--preset={values.preset} fits no deep prior; --list_presets of jaxdeblur.main shows those that do")
    preset = preset.override(num_iterations=values.num_iterations)
    assert preset.fit is not None
    runtime.set_up_cache(None)
    example, steps = examples[values.image], preset.fit.num_iterations
    config = dataclasses.replace(preset, kernel_size=example.kernel_size)
    run = folder / f"{values.preset}_{values.image}_seed{values.seed}_{steps}"
    folder.mkdir(parents=True, exist_ok=True)
    blurry, sharp = example.load()
    curve = Curve(run.with_suffix(".csv"), sharp, values.every)
    began = time.perf_counter()

    result = deblur(
        blurry,
        config,
        key=jax.random.key(values.seed),
        snapshot=curve.add,
        progress=lambda phase, done, total, _: print(f"{phase} {done}/{total}", flush=True) if done % 100 == 0 else None,
        checkpoint=run.with_suffix(".checkpoint"),
    )
    seconds = time.perf_counter() - began
    sparse = refinish(blurry, result.kernel, config, final="sparse").restored
    for name, image in (("direct", result.restored), ("sparse", sparse)):
        write_grey(run.with_name(f"{run.name}_{name}.png"), image)
    np.save(run.with_name(f"{run.name}_kernel.npy"), result.kernel)
    _figure(run.with_suffix(".png"), run.name, curve.rows, result.history["error"])
    summary = Summary(
        preset=values.preset,
        image=values.image,
        seed=values.seed,
        steps=steps,
        blurry=_likeness(blurry, sharp),
        direct=_likeness(result.restored, sharp),
        sparse=_likeness(sparse, sharp),
        seconds=round(seconds, 1),
    )
    write_text(run.with_suffix(".json"), json.dumps(dataclasses.asdict(summary), indent=2) + "\n")


def summaries(folder: pathlib.Path) -> list[Summary]:
    """The finished runs of a folder.

    Raises:
      InputError: there is none.
    """
    found = [cattrs.structure(json.loads(path.read_text()), Summary) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise InputError(f"{folder} has no finished run")
    return found


def _likeness(image: np.ndarray, sharp: np.ndarray) -> tuple[float, float]:
    found = aligned_metrics(np.clip(image, 0.0, 1.0), sharp)
    return round(float(found.psnr), 3), round(float(found.ssim), 4)


def _published_steps(preset: str) -> int | None:
    fit = PRESETS[preset].fit
    return None if fit is None else fit.num_iterations


def _figure(path: pathlib.Path, title: str, rows: dict[int, tuple[float, float]], error: list[float]) -> None:
    from matplotlib.figure import Figure  # only figures of the experiments need it

    figure = Figure(figsize=(9, 4), layout="constrained")
    left = figure.subplots()
    left.plot(list(rows), [psnr for psnr, _ in rows.values()], color="C0")
    left.set(xlabel="step", ylabel="aligned PSNR (dB)", title=title)
    right = left.twinx()
    right.semilogy(error, color="C1", linewidth=0.5)
    right.set_ylabel("squared error of the re-blurred image", color="C1")
    left.set_zorder(right.get_zorder() + 1)
    left.patch.set_visible(False)
    save_figure(figure, path)


if __name__ == "__main__":
    runtime.relaunch_with_huge_pages()
    start(main, interrupted="interrupted; the same command goes on from the checkpoint")
