"""Measures a method on scenes that it was not tuned on, beside the restorations with the true kernels.

    python -m experiments.generalisation --make --output_dir=data/generalisation --image_dir=data/packages --data_dir=data
    python -m experiments.generalisation --split=tune --quick --output_dir=measured
    python -m experiments.generalisation --split=check --output_dir=measured
    python -m experiments.generalisation --split=check --preset=deep --compare=measured/fast.json --output_dir=measured

Settings are chosen on `tune`; `check` shows whether they generalise. The same command resumes a run that was stopped; results
of other code, settings or images are recomputed. Exit status: 0 if every case was measured, 1 if one failed or the command is
invalid, 130 after Ctrl-C.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from experiments.command_line import run_command, start
from experiments.generalisation import report
from experiments.generalisation.cases import Case, read_cases
from experiments.generalisation.measure import SCHEMA, Task, known_kernel_config, measure, source_digest
from experiments.generalisation.scenes import SPLITS, make_set, read_split
from experiments.runner.store import Store, digest
from jaxdeblur import runtime
from jaxdeblur.config import FINALS, Config
from jaxdeblur.errors import InputError
from jaxdeblur.jobs.cluster import map_tasks
from jaxdeblur.presets import PRESETS
from jaxdeblur.version import __version__

_SET_DIR = "data/generalisation"


def run() -> None:
    """The command."""
    runtime.relaunch_with_huge_pages()
    start(main, interrupted="interrupted; finished cases are kept, the same command resumes")


def main(argv: Sequence[str]) -> int:
    """Runs a command line: the program's name and its arguments. Returns the exit status."""
    values = define_flags()
    return run_command(argv, values, __doc__, lambda: _command(values))


def _command(values: flags.FlagValues) -> int:
    if not values.output_dir:
        raise InputError("--output_dir is missing: give a folder")
    if values.make:
        _make(values)
        return 0
    return _evaluate(values)


def define_flags() -> flags.FlagValues:
    """The flags, unparsed."""
    values = flags.FlagValues()

    def string(name: str, default: str | None, text: str) -> None:
        flags.DEFINE_string(name, default, text, flag_values=values)

    flags.DEFINE_boolean("make", False, "Make the set of images in --output_dir, and stop.", flag_values=values)
    string("image_dir", None, "With --make: folder with one subfolder per unpacked package, named after it.")
    string("data_dir", None, "With --make: folder of the benchmark sets levin and lai; without it their scenes are omitted.")
    string("output_dir", None, "Folder for the set, or for results and tables.")
    string("set_dir", _SET_DIR, "Folder of the set.")
    flags.DEFINE_enum("split", "both", (*SPLITS, "both"), "Which scenes.", flag_values=values)
    string("preset", "fast", "The method.")
    flags.DEFINE_enum("final", None, FINALS, "Another last step than the preset's.", flag_values=values)
    flags.DEFINE_list(
        "override",
        [],
        "Settings that differ from the preset's, such as initialiser.kernel_ridge=1.",
        flag_values=values,
    )
    flags.DEFINE_boolean("quick", False, "Only the quick subset: 12 cases of each split.", flag_values=values)
    flags.DEFINE_list("only", [], "Only these categories or prefixes of case names.", flag_values=values)
    flags.DEFINE_integer("limit", None, "At most this many cases of each split.", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean(
        "regret", False, "Also restore with every candidate kernel, and report the regret of the choice.", flag_values=values
    )
    string("compare", None, "Results (.json) of an earlier run to compare with.")
    string("name", None, "Name of the results files (default: the preset and its overrides).")
    flags.DEFINE_integer("seed", 0, "Of the random key.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("workers", 1, "Processes side by side.", lower_bound=1, flag_values=values)
    string("cache_dir", None, "Folder for compiled programs, or 'off' (default: a folder of the user's cache).")
    return values


def _make(values: flags.FlagValues) -> None:
    folders = [_folder(values[name].value) for name in ("image_dir", "data_dir")]
    for line in make_set(pathlib.Path(values.output_dir).expanduser(), read_split(), *folders):
        print(line, flush=True)


def _folder(name: str | None) -> pathlib.Path | None:
    if not name:
        return None
    folder = pathlib.Path(name).expanduser()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check the path")
    return folder


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
    """The blind or the known-kernel run of a case."""

    case: Case
    config: Config
    known: bool
    shape: tuple[int, ...]
    name: str


def _evaluate(values: flags.FlagValues) -> int:
    splits = SPLITS if values.split == "both" else (values.split,)
    config = _config(values)
    before = report.read_results(pathlib.Path(values.compare).expanduser()) if values.compare else None
    cases = read_cases(
        pathlib.Path(values.set_dir).expanduser(), splits, quick=values.quick, only=values.only, limit=values.limit
    )
    source = source_digest()
    pairs = [_pair(case, config, values, source) for case in cases]
    output_dir = pathlib.Path(values.output_dir).expanduser()
    store = Store(output_dir / "results")
    stem = output_dir / (values.name or _label(config, values))
    with store.lock():
        try:
            _execute(pairs, store, values)
        finally:  # partial results too, after Ctrl-C
            rows = [line for pair in pairs if (line := _row(pair, store)) is not None]
            tables = report.summary(rows)
            if before is not None:
                tables += ["", *report.comparison(rows, before)]
            report.write(stem, rows, tables)
            print("", *tables, "", sep="\n")
            print(f"{len(rows)} of {len(pairs)} cases measured; see {stem}.md and {stem}.json")
    return 0 if len(rows) == len(pairs) else 1


def _config(values: flags.FlagValues) -> Config:
    if values.preset not in PRESETS:
        raise InputError(f"--preset={values.preset}: no such preset; choose from {', '.join(PRESETS)}")
    config: Config = PRESETS[values.preset]
    if values.final:
        config = dataclasses.replace(config, final=values.final)
    for text in values.override:
        path, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--override={text}: give FIELD=VALUE")
        config = _replaced(config, path.split("."), value, text)
    return config


def _replaced(settings: Any, path: Sequence[str], value: str, text: str) -> Any:
    """A copy of a dataclass with one (nested) field changed. Values are Python literals; anything else is a string."""
    name, *rest = path
    if not dataclasses.is_dataclass(settings) or name not in {field.name for field in dataclasses.fields(settings)}:
        raise InputError(f"--override={text}: there is no setting {name!r}")
    if rest:
        new = _replaced(getattr(settings, name), rest, value, text)
    else:
        try:
            new = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            new = value
    return dataclasses.replace(settings, **{name: new})  # type: ignore[type-var]


def _label(config: Config, values: flags.FlagValues) -> str:
    parts = [config.name, *([values.final] if values.final else []), *values.override]
    return "-".join(part.replace("/", "_") for part in parts)


def _pair(case: Case, config: Config, values: flags.FlagValues, source: str) -> tuple[_Run, _Run]:
    """The blind and the known-kernel run of a case, under names derived from everything that the results depend on."""
    blurry, sharp, kernel = case.load()
    blind = config if case.jpeg is None else config.for_compressed()
    runs = []
    for known, settings in ((False, blind), (True, known_kernel_config(blind))):
        parts = (SCHEMA, __version__, source, settings, values.seed, known, values.regret and not known, blurry, sharp, kernel)
        runs.append(_Run(case, settings, known, blurry.shape, f"{case.name}/{settings.name}-{digest(*parts)}"))
    return runs[0], runs[1]


def _execute(pairs: Sequence[tuple[_Run, _Run]], store: Store, values: flags.FlagValues) -> None:
    """Does the runs that have no result yet, ordered by shape because images of one shape share compiled executables."""
    todo = [run for pair in sorted(pairs, key=lambda pair: pair[0].shape) for run in pair if store.load(run.name) is None]
    whole = {run.name: pair for pair in pairs for run in pair}
    print(f"{2 * len(pairs)} runs, {2 * len(pairs) - len(todo)} done before", flush=True)

    def tasks() -> Iterator[Task]:
        for run in todo:
            blurry, sharp, kernel = run.case.load()
            regret = values.regret and not run.known
            yield Task(blurry, sharp, kernel, run.config, run.known, values.seed, regret, values.cache_dir)

    began = time.monotonic()
    with contextlib.closing(map_tasks(measure, tasks(), workers=values.workers)) as outcomes:
        for done, outcome in enumerate(outcomes, start=1):
            run = todo[outcome.index]
            if outcome.value is None:
                store.save_failure(run.name, outcome.errors)
                print(f"{run.name}: FAILED, {outcome.errors[-1]}", flush=True)
                continue
            arrays = outcome.value.pop("arrays")
            about = {"version": __version__, "case": run.case.name, "config": repr(run.config), "known_kernel": run.known}
            store.save(run.name, {**about, **outcome.value}, arrays)
            left = (time.monotonic() - began) / done * (len(todo) - done)
            if (line := _row(whole[run.name], store)) is not None:
                ahead = f"; about {left / 60:.0f} min left" if left > 90 else ""
                print(f"[{done}/{len(todo)}] {line.line()}{ahead}", flush=True)


def _row(pair: tuple[_Run, _Run], store: Store) -> report.Row | None:
    blind, known = (store.load(run.name) for run in pair)
    if blind is None or known is None:
        return None
    case = pair[0].case
    return report.row(case.name, case.split, case.category, blind, known)


if __name__ == "__main__":
    run()
