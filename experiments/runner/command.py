"""Reruns a table or figure of one of the papers and sets our figures beside the published ones.

    python -m experiments.run --list_tables
    python -m experiments.run --table=selfdeblur_table3 --data_dir=data/levin
    python -m experiments.run --table=mc_table5 --data_dir=data --limit=2 --preset_override=small
    python -m experiments.run --table=selfdeblur_table3,mc_table1 --data_dir=data/levin --ray=10.0.0.1:6379

A run that was stopped, in whatever way, goes on where it was when the same command is given again: see store.py. Exit status: 0
if every image succeeded, 1 if one failed or the command could not be understood, 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments.command_line import start
from experiments.runner import job, render
from experiments.runner.plan import Plan, Run, Settings, find_images, plan_entry
from experiments.runner.store import Store
from experiments.runner.tables import TABLES, Entry
from experiments.runner.tables.entry import AVERAGE
from jaxdeblur import runtime
from jaxdeblur.errors import InputError
from jaxdeblur.evaluation import protocol
from jaxdeblur.evaluation.datasets import DATASETS, LAYOUTS
from jaxdeblur.jobs.batches import batch_size, fit_bytes, in_batches, pixels_of
from jaxdeblur.jobs.cluster import map_batches
from jaxdeblur.version import __version__

# Bytes that a process takes beside a fit, compiling included.
_MEMORY = 1.4e9

USAGE = "usage: python -m experiments.run --table=NAME --data_dir=FOLDER [flags]"


def run() -> None:
    """The command."""
    runtime.relaunch_with_huge_pages()
    start(main, interrupted="interrupted; finished images are kept, the same command goes on from there")


def main(argv: Sequence[str]) -> int:
    """Runs a command line.

    Args:
      argv: the program's name and its arguments.

    Returns:
      The exit status.
    """
    values = define_flags()
    try:
        _, *unexpected = values(list(argv))
        if values.help:
            print(_help(values))
            return 0
        if values.list_tables:
            print("\n".join(f"{entry.name:<20} {entry.title} ({entry.paper})" for entry in TABLES.values()))
            return 0
        if unexpected:
            raise InputError(f"unexpected argument {unexpected[0]!r}; {USAGE}")
        return reproduce(_entries(values.table), _settings(values))
    except (InputError, flags.Error) as error:
        print(error, file=sys.stderr)
        return 1


def define_flags() -> flags.FlagValues:
    """The flags, unparsed."""
    values = flags.FlagValues()

    def string(name: str, default: str | None, text: str) -> None:
        flags.DEFINE_string(name, default, text, flag_values=values)

    def integer(name: str, default: int | None, text: str, lower_bound: int) -> None:
        flags.DEFINE_integer(name, default, text, lower_bound=lower_bound, flag_values=values)

    string("table", None, "Which: a name of --list_tables, several by comma, or 'all'.")
    string("data_dir", None, "Folder of the data set, or a folder with the sets' folders levin, lai, kohler in it.")
    string("output_dir", "reproduced", "Folder for results, tables and figures.")
    flags.DEFINE_enum("dataset", None, DATASETS, "Another data set than the paper's.", flag_values=values)
    integer("limit", None, "Only the first so many images of each set, and at most so many trials.", 1)
    integer("crop", None, "Only the central so many pixels a side of each image, to try something out.", 64)
    integer("num_iterations", None, "Steps of every deep prior's fit, schedules in proportion; to try something out.", 1)
    integer("seed", 0, "Seed of the first trial.", 0)
    string("preset_override", "", "'small' for the small variant of every deep prior, or OLD=NEW; several by comma.")
    string("teacher_weights", None, "Folder of DMPHN's weights, for rows with that teacher.")
    string("dwdn_weights", None, "File of DWDN's weights, for rows with that teacher.")
    integer("workers", None, "Processes side by side (with --ray=local: CPUs of that cluster). Default: found out.", 1)
    integer("batch_size", None, "Like images fitted together in one program. Default: found out; with --ray: 1.", 1)
    string("ray", None, "Address of a Ray cluster that does the work, or 'local' to start one here.")
    flags.DEFINE_float(
        "gpus_per_task",
        None,
        "With --ray: GPUs for each image, fractions allowed. Default: 1 if any.",
        lower_bound=0.0,
        flag_values=values,
    )
    string("cache_dir", None, "Folder for compiled programs, or 'off' (default: a folder of the user's cache).")
    flags.DEFINE_bool("list_tables", False, "List the tables and figures and leave.", flag_values=values)
    flags.DEFINE_bool("help", False, "Print this help and leave.", flag_values=values)
    return values


def _help(values: flags.FlagValues) -> str:
    """Our flags in the order of their definition, without those that absl adds of its own."""
    modules = values.flags_by_module_dict()
    own = [flag for module, flags_of_it in modules.items() if not module.startswith("absl") for flag in flags_of_it]
    return "\n".join([USAGE, "", *(f"  --{flag.name:<16} {flag.help}" for flag in own)])


def _settings(values: flags.FlagValues) -> Settings:
    if not values.data_dir:
        raise InputError(f"--data_dir is missing; {USAGE}")
    given = {"dmphn": values.teacher_weights, "dwdn": values.dwdn_weights}
    weights = {teacher: pathlib.Path(path).expanduser() for teacher, path in given.items() if path}
    for path in weights.values():
        if not path.exists():
            raise InputError(f"{path}: no weights there; check the path")
    return Settings(
        data_dir=pathlib.Path(values.data_dir).expanduser(),
        output_dir=pathlib.Path(values.output_dir).expanduser(),
        dataset=values.dataset,
        limit=values.limit,
        crop=values.crop,
        num_iterations=values.num_iterations,
        seed=values.seed,
        preset_override=values.preset_override,
        teacher_weights={teacher: str(path) for teacher, path in weights.items()},
        workers=values.workers,
        batch_size=values.batch_size,
        ray=values.ray,
        gpus_per_task=values.gpus_per_task,
        cache_dir=values.cache_dir,
    )


def _entries(names: str | None) -> list[Entry]:
    if not names:
        raise InputError(f"--table is missing; {USAGE}")
    wanted = list(TABLES) if names == "all" else [name for name in names.split(",") if name]
    unknown = [name for name in wanted if name not in TABLES]
    if unknown:
        raise InputError(f"unknown table {', '.join(unknown)}; choose from {', '.join(TABLES)}")
    return [TABLES[name] for name in wanted]


def reproduce(entries: Sequence[Entry], settings: Settings, *, say: Callable[[str], None] = print) -> int:
    """Does what is yet to do for the entries, and writes a folder of tables and figures for each.

    Args:
      entries: which tables and figures.
      settings: see there.
      say: takes lines for people.

    Returns:
      0 if all runs have results, 1 if some are missing.

    Raises:
      InputError: data, presets or settings cannot be used; nothing has been run then.
    """
    if any(entry.figure for entry in entries):
        render.require_matplotlib()
    images = find_images(entries, settings)
    plans = [plan_entry(entry, images, settings) for entry in entries]
    store = Store(settings.output_dir / "results")
    with store.lock():
        try:
            _execute([run for plan in plans for run in plan.runs()], store, settings, say)
        finally:
            # Also after Ctrl-C: what there is so far.
            missing = sum(_report(plan, store, settings, say) for plan in plans)
    return 1 if missing else 0


def _execute(runs: Iterable[Run], store: Store, settings: Settings, say: Callable[[str], None]) -> None:
    """Does those runs that have no result: first those that stand alone, then those that need a kernel of theirs."""
    unique = {run.name: run for run in runs}
    todo = [run for name, run in unique.items() if store.load(name) is None]
    say(f"{len(unique)} runs, {len(unique) - len(todo)} of them done before")
    clock = _Clock(len(todo))
    for wave in ([run for run in todo if run.base is None], [run for run in todo if run.base is not None]):
        able = []
        for run in wave:
            if run.base is None or store.load(run.base.name) is not None:
                able.append(run)
            else:
                store.save_failure(run.name, (f"its kernel is missing, because {run.base.name} failed",))
                say(clock.line(run, "no kernel"))
        # Alike runs one after the other, so that each process compiles each program once.
        able.sort(key=lambda run: (run.image.shape, run.config.kernel_size or 0, run.config.name, run.name))
        _hand_out(able, store, settings, lambda run, text: say(clock.line(run, text)))


def _hand_out(runs: Sequence[Run], store: Store, settings: Settings, tell: Callable[[Run, str], None]) -> None:
    if not runs:
        return
    order: list[Run] = []

    def size(run: Run) -> int:
        return batch_size(settings.batch_size, run.config, run.image.shape, elsewhere=settings.ray is not None)

    def batches() -> Iterator[list[job.Task]]:
        for batch in in_batches(runs, lambda run: (run.image.shape, run.config, run.known_kernel, run.base is None), size):
            order.extend(batch)
            yield [_task(run, store, settings) for run in batch]

    outcomes = map_batches(
        job.run_tasks,
        batches(),
        workers=settings.workers or _default_workers(runs, settings.ray),
        ray_address=settings.ray,
        num_gpus=settings.gpus_per_task,
    )
    with contextlib.closing(outcomes):
        for outcome in outcomes:
            run = order[outcome.index]
            if outcome.value is None:
                store.save_failure(run.name, outcome.errors)
                tell(run, f"FAILED, {outcome.errors[-1]}")
                continue
            arrays = outcome.value.pop("arrays")
            store.save(run.name, {**_description(run), **outcome.value, "errors": outcome.errors}, arrays)
            metrics = outcome.value["metrics"]
            retried = " at the second attempt" if outcome.errors else ""
            psnr, similarity, seconds = (float(metrics[name]) for name in ("psnr", "ssim", "seconds"))
            tell(run, f"{psnr:.2f} dB, {similarity:.3f}, {seconds:.1f} s{retried}")


def _task(run: Run, store: Store, settings: Settings) -> job.Task:
    example = job.load_example(run.image.example, settings.crop)
    kernel = example.true_kernel if run.known_kernel else None
    if run.base is not None:
        kernel = store.array(run.base.name, "kernel")
    return job.Task(example, run.config, run.seed, kernel, run.curve, settings.cache_dir)


def _description(run: Run) -> dict[str, Any]:
    return {
        "version": __version__,
        "dataset": run.image.dataset,
        "image": run.image.example.name,
        "config": repr(run.config),
        "seed": run.seed,
        "known_kernel": run.known_kernel,
        "kernel_of": None if run.base is None else run.base.name,
    }


def _default_workers(runs: Iterable[Run], ray: str | None) -> int:
    """One process where an accelerator does the work; else one for every two cores, as far as the memory goes.

    A single process keeps nearly two cores busy: kernels are guessed, and convolutions computed, on all there are, but what
    lies between uses one.
    """
    if ray is None:  # a cluster's tasks ask for the accelerators themselves
        import jax

        if jax.default_backend() != "cpu":
            return 1
    needed = max(_MEMORY + fit_bytes(run.config, pixels_of(run.image.shape)) for run in runs)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # a system that does not tell
        return 1
    return max(1, min((os.cpu_count() or 1) // 2, int(0.8 * memory / needed)))


class _Clock:
    """Counts runs and reckons how long the rest will take."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._began = total, 0, time.monotonic()

    def line(self, run: Run, text: str) -> str:
        self._done += 1
        left = (time.monotonic() - self._began) / self._done * (self._total - self._done)
        ahead = f"; about {left / 60:.0f} min left" if left > 90 else ""
        seed = f", seed {run.seed}" if run.seed else ""
        return f"[{self._done}/{self._total}] {run.name.rsplit('-', 1)[0]}{seed}: {text}{ahead}"


def _report(plan: Plan, store: Store, settings: Settings, say: Callable[[str], None]) -> int:
    """Writes an entry's tables and figure, prints the table, and returns how many of its runs have no result."""
    known = {image: _score(_values(store, run)) for image, run in plan.known.items()}
    measured = {
        label: [_measured(plan.entry, label, run, store, known.get(run.image)) for run in runs]
        for label, runs in plan.rows.items()
    }
    report = render.Report(plan.entry, measured, plan.not_run, _conditions(plan, settings))
    folder = settings.output_dir / plan.entry.name
    report.write(folder)
    say("")
    say(report.markdown())
    states = [run.state for runs in measured.values() for run in runs]
    failed, missing = states.count("failed"), states.count("missing")
    counts = f"{states.count('done')} of {len(states)} runs done"
    if failed or missing:
        counts += f", {failed} failed (the same command tries them again), {missing} yet to come"
    say(f"{plan.entry.name}: {counts}; {len(plan.not_run)} rows not run; see {folder / 'table.html'}")
    return failed + missing


def _values(store: Store, run: Run) -> dict[str, float]:
    record = store.load(run.name)
    return {} if record is None else {name: float(value) for name, value in record["metrics"].items()}


def _measured(entry: Entry, label: str, run: Run, store: Store, known: protocol.Score | None) -> render.Measured:
    record, values = store.load(run.name), _values(store, run)
    if record is not None and run.base is not None:
        values["seconds"] += _values(store, run.base).get("seconds", 0.0)
    if known is not None:
        ours = _score(values)
        # The first is what the published tables hold.
        ratios = {"error_ratio": protocol.spectral_error_ratio(ours, known), "norm_ratio": protocol.error_ratio(ours, known)}
        values |= {name: ratio for name, ratio in ratios.items() if ratio is not None}
    failures = store.failures(run.name)
    state = "done" if record is not None else "failed" if failures else "missing"
    example = run.image.example
    groups = {
        "all": AVERAGE,
        "category": example.category or AVERAGE,
        "kernel": f"kernel {example.kernel_number}" if example.kernel_number else AVERAGE,
        "image": example.image or AVERAGE,
        "dataset": run.image.dataset,
    }

    def array(which: str) -> np.ndarray:
        return store.array(run.name, which)

    return render.Measured(
        label=label,
        preset=run.config.name if run.base is None else run.base.config.name,
        dataset=run.image.dataset,
        image=example.name,
        category=example.category,
        group=groups[entry.group],
        seed=run.seed,
        values=values,
        state=state,
        remark=record["chosen"] if record is not None else failures[-1] if failures else "",
        curve={} if record is None else record["curve"],
        array=array,
        array_names=[] if record is None else record["arrays"],
    )


def _score(values: Mapping[str, float]) -> protocol.Score:
    missing = math.nan
    errors = values.get("squared_error"), values.get("spectral_error")
    return protocol.Score(values.get("psnr", missing), values.get("ssim", missing), *errors)


def _conditions(plan: Plan, settings: Settings) -> list[str]:
    """What differs from the published experiment, for the reader of the table."""
    lines = []
    if settings.dataset not in (None, *plan.entry.datasets):
        lines.append(f"Ours is on another data set ({settings.dataset}) than the published figures.")
    used = {run.image for runs in plan.rows.values() for run in runs}
    for dataset in sorted({image.dataset for image in used} & set(LAYOUTS)):
        layout, count = LAYOUTS[dataset], sum(image.dataset == dataset for image in used)
        whole = len(plan.entry.images) or len(layout.images) * len(layout.kernel_sizes)
        if count < whole:
            lines.append(f"Ours is over {count} of the {whole} images of {dataset}.")
    if settings.limit is not None and any(row.trials > settings.limit for row in plan.entry.rows):
        lines.append(f"Ours is over {settings.limit} trials only (--limit).")
    if settings.crop is not None:
        lines.append(f"Ours is on the central {settings.crop} pixels a side only (--crop).")
    if settings.num_iterations is not None:
        lines.append(f"Deep priors were fitted for {settings.num_iterations} steps only (--num_iterations).")
    if settings.preset_override:
        lines.append(f"Presets were replaced: --preset_override={settings.preset_override}.")
    if not plan.rows:
        lines.append("No row could be run.")
    return lines
