"""What has to be run for a table: rows of an entry × images × seeds, each a :class:`Run` with a name that says all about it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from experiments.runner import job
from experiments.runner.store import SCHEMA, digest
from experiments.runner.tables import Entry, Row
from jaxdeblur.config import Config
from jaxdeblur.errors import InputError
from jaxdeblur.evaluation.datasets import Example, find_examples
from jaxdeblur.evaluation.metrics import SMALLEST_MULTI_SCALE_SIDE
from jaxdeblur.presets import PRESETS
from jaxdeblur.version import __version__

_KNOWN_KERNEL = Row("known kernel", preset="fast", known_kernel=True, final="sparse")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line says; see the flags in run.py."""

    data_dir: pathlib.Path
    output_dir: pathlib.Path
    dataset: str | None = None
    limit: int | None = None
    crop: int | None = None
    num_iterations: int | None = None
    seed: int = 0
    preset_override: str = ""
    teacher_weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    workers: int | None = None
    batch_size: int | None = None
    ray: str | None = None
    gpus_per_task: float | None = None
    cache_dir: str | None = None


@dataclasses.dataclass(frozen=True)
class Image:
    """An example, looked at once: where it comes from, and what its results' names hold of it."""

    dataset: str
    example: Example
    digest: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """One image by one method with one seed.

    Attributes:
      image: which image.
      config: how it is restored.
      seed: of the random key.
      known_kernel: whether the true kernel is given.
      base: the run whose kernel is given, or None.
      curve: whether to follow the metrics over the steps.
    """

    image: Image
    config: Config
    seed: int
    known_kernel: bool = False
    base: Run | None = None
    curve: bool = False

    @property
    def name(self) -> str:
        """Where its result is kept: its last part depends on everything that the result depends on."""
        base = None if self.base is None else self.base.name
        parts = (SCHEMA, __version__, self.config, self.seed, self.known_kernel, base, self.curve, self.image.digest)
        stage = "known-" if self.known_kernel else "" if self.base is None else f"{self.base.config.name}-"
        return f"{self.image.dataset}-{self.image.example.name}/{stage}{self.config.name}-{digest(*parts)}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs of an entry.

    Attributes:
      entry: which.
      rows: its runs, by the label of their row.
      known: for error ratios, the known-kernel run of each image.
      not_run: why rows are left out, by label.
    """

    entry: Entry
    rows: Mapping[str, Sequence[Run]]
    known: Mapping[Image, Run]
    not_run: Mapping[str, str]

    def runs(self) -> Iterator[Run]:
        """All of them, those that others need first."""
        for run in (*self.known.values(), *(run for runs in self.rows.values() for run in runs)):
            if run.base is not None:
                yield run.base
            yield run


def find_images(entries: Iterable[Entry], settings: Settings) -> dict[str, list[Image]]:
    """The images of every data set that is needed, all of them read once, and all that is wrong told at once."""
    names = dict.fromkeys(name for entry in entries for name in _datasets(entry, settings))
    found: dict[str, list[Image]] = {}
    problems: list[str] = []
    for name in names:
        folder = settings.data_dir / name
        try:
            examples = find_examples(name, folder if folder.is_dir() else settings.data_dir)
        except InputError as error:
            problems.append(str(error))
            continue
        found[name] = []
        for example in examples:
            try:
                loaded = job.load_example(example, settings.crop)
            except InputError as error:
                problems.append(str(error))
                continue
            shape = loaded.load()[0].shape
            if example.trajectory and min(shape) < SMALLEST_MULTI_SCALE_SIDE:
                problems.append(
                    f"{example.name}: {shape[1]}×{shape[0]} pixels are too few for multi-scale SSIM, this set's measure: "
                    f"give a --crop of {SMALLEST_MULTI_SCALE_SIDE} or more"
                )
                continue
            parts = (*loaded.load(), loaded.true_kernel, len(example.trajectory))
            found[name].append(Image(name, example, digest(*parts), shape))
    if problems:
        raise InputError(*problems)
    return found


def _datasets(entry: Entry, settings: Settings) -> tuple[str, ...]:
    return entry.datasets if settings.dataset is None else (settings.dataset,)


def plan_entry(entry: Entry, images: Mapping[str, Sequence[Image]], settings: Settings) -> Plan:
    """What has to be run for an entry.

    Raises:
      InputError: presets that it names do not exist, or none of its images is there.
    """
    chosen = [image for name in _datasets(entry, settings) for image in _chosen(entry, images[name], settings)]
    overrides = _overrides(settings.preset_override)
    rows: dict[str, list[Run]] = {}
    not_run: dict[str, str] = {}
    unknown: list[str] = []
    for row in entry.rows:
        runs = []
        for image in chosen:
            name = row.preset_for(image.dataset)
            if name is None:
                continue
            name = _overridden(name, overrides)
            if name not in PRESETS:
                unknown.append(name)
            elif (teacher := PRESETS[name].teacher) is not None and teacher.name not in settings.teacher_weights:
                not_run[row.label] = f"weights of {teacher.name.upper()} missing"
            elif row.known_kernel and image.example.kernel is None:
                not_run[row.label] = "no file with the true kernel"
            else:
                trials = row.trials if settings.limit is None else min(row.trials, settings.limit)
                runs += [_planned(entry, row, name, image, settings, settings.seed + trial) for trial in range(trials)]
        if runs:
            rows[row.label] = runs
    if unknown:
        names = ", ".join(dict.fromkeys(unknown))
        raise InputError(f"{entry.name}: no preset called {names}; give --preset_override=OLD=NEW or another table")
    known = {}
    if "error_ratio" in entry.metrics:
        with_kernels = [image for image in chosen if image.example.kernel is not None]
        known = {image: _planned(entry, _KNOWN_KERNEL, "fast", image, settings, settings.seed) for image in with_kernels}
    return Plan(entry, rows, known, not_run)


def _chosen(entry: Entry, images: Sequence[Image], settings: Settings) -> Sequence[Image]:
    if entry.images and settings.dataset in (None, *entry.datasets):
        images = [image for image in images if image.example.name in entry.images]
        if not images:
            raise InputError(f"{entry.name} is about {', '.join(entry.images)}: add it to {settings.data_dir}")
    return images[: settings.limit]


def _planned(entry: Entry, row: Row, preset: str, image: Image, settings: Settings, seed: int) -> Run:
    config = PRESETS[preset]
    if config.teacher is not None:
        config = config.override(teacher_weights=settings.teacher_weights[config.teacher.name])
    if image.example.kernel_size is not None:
        config = config.override(kernel_size=image.example.kernel_size)
    if settings.num_iterations is not None and config.fit is not None:
        config = config.override(num_iterations=settings.num_iterations)
    if row.share_of_steps < 1.0 and config.fit is not None:
        steps = max(1, round(row.share_of_steps * config.fit.num_iterations))
        config = dataclasses.replace(config, fit=dataclasses.replace(config.fit, num_iterations=steps))
    if row.num_posterior_samples:
        config = config.override(num_posterior_samples=row.num_posterior_samples)
    final = row.final_for(image.example.category)
    if final is not None and row.known_kernel:
        config = config.override(final=final)
    curve = entry.figure == "curves" and config.fit is not None
    if curve and config.fit is not None:
        often = max(1, min(config.fit.chunk_size, config.fit.num_iterations // job.CURVE_POINTS))
        config = dataclasses.replace(config, fit=dataclasses.replace(config.fit, chunk_size=often))
    run = Run(image, config, seed, known_kernel=row.known_kernel, curve=curve)
    if final is None or row.known_kernel:
        return run
    # The published two stages: the kernel of the whole method, then a non-blind one; so one fit serves both rows.
    return Run(image, PRESETS["fast"].override(kernel_size=image.example.kernel_size, final=final), seed, base=run)


def _overrides(text: str) -> dict[str, str]:
    pairs = {}
    for part in filter(None, text.split(",")):
        old, equals, new = part.partition("=")
        if part != "small" and not (old and equals and new):
            raise InputError(f"--preset_override={text}: give 'small' or OLD=NEW, several by comma")
        pairs[old] = new
    return pairs


def _overridden(name: str, overrides: Mapping[str, str]) -> str:
    if name in overrides:
        return overrides[name]
    is_deep = name not in PRESETS or PRESETS[name].fit is not None
    return f"{name}_small" if "small" in overrides and is_deep else name
