"""The accelerator pack: measures everything that is claimed about a GPU, the most important first.

    python -m experiments.accelerator --output_dir=measured --data_dir=data --budget_minutes=25
    python -m experiments.accelerator --output_dir=measured --list
    python -m experiments.accelerator --output_dir=/tmp/toy --dry_run

It needs no network, and no data folder either: without one the repository's sample and free images of installed packages are
taken. Every part is a process of its own, so that one that runs out of memory does not end the others, and takes its turn for
at most nine minutes. Each result is stored as soon as it is had, in --output_dir:

    results.json              everything, for programs; this file alone is enough to go on on another machine
    report.md, report.png     everything, for people
    images.png                what the fits restored
    dwdn.msgpack              the weights that were trained
    results/, work/, log.txt  results one by one with their images, checkpoints, what the processes printed

The same command goes on where it ended; what failed is tried again after all that has not been tried. Exit status: 0 if
everything asked for is measured, 1 if something failed or the command is wrong, 2 if there was no time for all of it, 130 after
Ctrl-C.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from experiments.accelerator import plan, report, worker
from experiments.command_line import run_command, start
from experiments.files import write_text
from experiments.generalisation.measure import source_digest
from experiments.runner.store import Store
from jaxdeblur import runtime
from jaxdeblur.errors import InputError

_FAILED, _LATE = 1, 2
_FAILURE = "failed: "
_RESULTS = "results.json"
_LARGEST_BUDGET_MINUTES = 24 * 60.0
# Kept for the report, and for a process to end.
_RESERVE_SECONDS = 10.0
# With less left nothing is begun.
_LEAST_SECONDS = 2.0
_PROBE_SECONDS = 120.0
# A process that has told everything may take so long to end.
_ENDING_SECONDS = 30.0
_SECONDS_BETWEEN_FIGURES = 60.0
# Modules whose toys take longer to run than to compile; the programs of all others are compiled in less time, and run slowly.
_RUN_LONGER_THAN_COMPILED = ("classical", "fits")
# Of a dry run: toys are traced and compiled for most of their time, which keeps one core busy.
_PARTS_AT_ONCE = 2


def run() -> None:
    """The command."""
    # As Ctrl-C: the report is written, and no process is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start(main, interrupted="interrupted; what is measured is kept, the same command goes on")


def main(argv: Sequence[str]) -> int:
    """Runs a command line: the program's name and its arguments. Returns the exit status."""
    values = define_flags()
    return run_command(argv, values, __doc__, lambda: _command(values))


def _command(values: flags.FlagValues) -> int:
    data_dir = _folder("data_dir", values.data_dir)
    _folder("image_dir", values.image_dir)
    if data_dir is not None and not any(plan.has_set(data_dir, name) for name in ("levin", "lai")):
        raise InputError(f"--data_dir={data_dir} holds neither levin nor lai: give the folder that they lie in")
    parts = _chosen(plan.parts(data_dir, toy=values.dry_run), values.part)
    if values.list:
        print(*_listed(parts), sep="\n")
        return 0
    if not values.output_dir:
        raise InputError("--output_dir is missing: give a folder")
    if values.worker:
        _work(values, parts)
        return 0
    return Pack(values, parts).measure()


def define_flags() -> flags.FlagValues:
    """The flags, unparsed."""
    values = flags.FlagValues()

    def string(name: str, text: str) -> None:
        flags.DEFINE_string(name, None, text, flag_values=values)

    def boolean(name: str, text: str) -> None:
        flags.DEFINE_boolean(name, False, text, flag_values=values)

    boolean("list", "Print what would be measured, and stop.")
    string("output_dir", "Folder for the results; the same one goes on.")
    string("data_dir", "Folder with the benchmark sets levin and lai, or one of them.")
    string("image_dir", "Folder of further sharp images to train on.")
    flags.DEFINE_float(
        "budget_minutes",
        25.0,
        "This command ends before so many minutes are over.",
        lower_bound=0.5,
        upper_bound=_LARGEST_BUDGET_MINUTES,
        flag_values=values,
    )
    flags.DEFINE_list("part", [], "Only these parts, see --list.", flag_values=values)
    boolean("again", "Measure again what is there already, of the parts chosen.")
    flags.DEFINE_integer("batch_size", None, "The most images in one program.", lower_bound=1, flag_values=values)
    boolean("dry_run", "Go through everything at toy sizes, on the processor.")
    boolean("allow_cpu", "Measure at full sizes although there is no GPU.")
    string("worker", "A part's name: do its items (used by this command itself).")
    flags.DEFINE_list("items", [], "With --worker: which.", flag_values=values)
    flags.DEFINE_float("seconds", 0.0, "With --worker: until it is ended.", flag_values=values)
    return values


def _folder(flag: str, name: str | None) -> pathlib.Path | None:
    if not name:
        return None
    folder = pathlib.Path(name).expanduser()
    if not folder.is_dir():
        raise InputError(f"--{flag}={folder}: no such folder; check the path")
    return folder


def _chosen(parts: list[plan.Part], names: Sequence[str]) -> list[plan.Part]:
    known = [part.name for part in parts]
    for name in names:
        if name not in known:
            raise InputError(f"--part={name}: no such part; choose from {', '.join(known)}")
    return [part for part in parts if not names or part.name in names]


def _listed(parts: Sequence[plan.Part]) -> Iterator[str]:
    for part in parts:
        seconds = sum(item.seconds for item in part.items)
        yield f"{part.name}: {part.title} ({len(part.items)} items, about {seconds / 60:.0f} min on an H100)"
        yield f"    {', '.join(item.name for item in part.items)}"


def _work(values: flags.FlagValues, parts: Sequence[plan.Part]) -> None:
    """What a worker does: a part's items, or telling what device it has."""
    worker.end_with_parent()
    if values.worker == "probe":
        from experiments.accelerator import device

        worker.tell("probe", **device.describe())
        return
    end = time.monotonic() + values.seconds
    output_dir = pathlib.Path(values.output_dir)
    context = plan.Context(
        output_dir=output_dir,
        data_dir=_folder("data_dir", values.data_dir),
        image_dir=_folder("image_dir", values.image_dir),
        toy=values.dry_run,
        batch_size=values.batch_size,
        seconds_left=lambda: end - time.monotonic(),
    )
    (part,) = (part for part in parts if part.name == values.worker)
    worker.work(part, values.items, context, Store(output_dir / "results"), source_digest())


class Pack:
    """One command's work.

    Args:
      values: the parsed flags.
      parts: that were chosen.

    Raises:
      InputError: the output folder cannot be used.
    """

    def __init__(self, values: flags.FlagValues, parts: Sequence[plan.Part]) -> None:
        self.values, self.parts = values, parts
        self.end = time.monotonic() + 60 * values.budget_minutes - (0.0 if values.dry_run else _RESERVE_SECONDS)
        self.folder = pathlib.Path(values.output_dir).expanduser()
        self.store = Store(self.folder / "results")
        self.about: dict[str, Any] = {}
        self.without: dict[str, str] = {}  # why an item has no result
        self.over: set[str] = set()  # items that this command is through with, well or not
        self.drawn = 0.0
        self.telling = threading.Lock()
        self.processes: set[subprocess.Popen[str]] = set()
        self.interrupted = False

    def measure(self) -> int:
        """Measures what is left. Returns the exit status."""
        with self.store.lock():
            self._adopt()
            self.about = self._probe()
            if self.values.again:
                self._forget()
            try:
                self._all_parts()
            finally:  # after Ctrl-C too
                self._report()
                print(f"see {self.folder / 'report.md'}", flush=True)
        left = [name for part in self.parts for name in self._left(part)]
        if any(self.without.get(name, "").startswith(_FAILURE) for name in left):
            return _FAILED
        return _LATE if left else 0

    def _adopt(self) -> None:
        """Takes over what ``results.json`` holds and the folder does not: it may come from another machine alone."""
        path = self.folder / _RESULTS
        if not path.exists():
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            about, items = dict(content["about"]), dict(content["items"])
            records = {str(name): dict(record) for name, record in items.items()}
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{path} is damaged: delete it, the single results are in {self.folder / 'results'}") from None
        self.about = about
        for name, record in records.items():
            if self.store.load(name) is None:
                self.store.save(name, {key: value for key, value in record.items() if key not in ("schema", "arrays")}, {})

    def _probe(self) -> dict[str, Any]:
        """What device there is.

        Raises:
          InputError: it is none that is worth measuring, or another one than that of the results in the folder.
        """
        toy = self.values.dry_run
        with self._process(plan.Part("probe", "", "", ()), [], _PROBE_SECONDS) as lines:
            found = next(lines, {})
        if "kind" not in found:
            raise InputError(f"jax cannot start here: see {self.folder / 'log.txt'}")
        if found["backend"] == "cpu" and not (toy or self.values.allow_cpu):
            raise InputError(
                "jax sees no GPU here: install jax[cuda13], or go through everything at toy sizes with --dry_run "
                "(--allow_cpu measures a processor at full sizes, which takes days)"
            )
        about = {**{key: value for key, value in found.items() if key != "what"}, "dry_run": toy}
        for key in ("dry_run", "kind"):
            if self.about and self.about.get(key) != about[key]:
                raise InputError(
                    f"{self.folder} holds results of another {'kind of run' if key == 'dry_run' else 'device'} "
                    f"({key} {self.about.get(key)}, here {about[key]}): give another --output_dir"
                )
        print(f"{about['kind']} ({about['backend']}), jax {about['jax']}", flush=True)
        return about

    def _forget(self) -> None:
        for part, item in plan.named(self.parts):
            (self.folder / "results" / part.name / item.name / "result.json").unlink(missing_ok=True)

    def _left(self, part: plan.Part) -> list[str]:
        """The items of a part without a result, as ``part/item``."""
        names = (f"{part.name}/{item.name}" for item in part.items)
        return [name for name in names if self.store.load(name) is None]

    def _seconds(self) -> float:
        return self.end - time.monotonic()

    def _all_parts(self) -> None:
        """Gives every part a turn, and another one as long as there is time; what failed in an earlier command comes last."""
        total = sum(len(part.items) for part in self.parts)
        left = sum(len(self._left(part)) for part in self.parts)
        print(f"{total} items in {len(self.parts)} parts, {total - left} of them measured before", flush=True)
        failed = {name for part in self.parts for name in self._left(part) if self.store.failures(name)}
        for held_back in (failed, set()):
            more = True
            while more:
                more = self._toy_turns(held_back) if self.values.dry_run else self._turns(held_back)
        for part in self.parts:
            for name in self._left(part):
                self.without.setdefault(name, f"not begun: no time left in {self.values.budget_minutes:g} minutes")

    def _turns(self, held_back: set[str]) -> bool:
        """A turn for every part. Returns whether one of them has something left for another turn."""
        turns = [self._turn(part, held_back) for part in self.parts]
        return any(turns)

    def _toy_turns(self, held_back: set[str]) -> bool:
        """The same, several parts at once: no time is measured in a dry run."""
        names = {part.name for part in self.parts}
        needed = {part.after for part in self.parts}
        # Parts that others wait for, and those others, begin first.
        waiting = sorted(self.parts, key=lambda part: part.after not in names and part.name not in needed)
        running: dict[concurrent.futures.Future[bool], plan.Part] = {}
        more = False
        with concurrent.futures.ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            try:
                while waiting or running:
                    unfinished = {part.name for part in (*waiting, *running.values())}
                    ready = [part for part in waiting if part.after not in unfinished]
                    for part in ready[: _PARTS_AT_ONCE - len(running)]:
                        waiting.remove(part)
                        running[pool.submit(self._turn, part, held_back)] = part
                    done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                    for turn in done:
                        del running[turn]
                        more |= turn.result()
            except BaseException:
                self.interrupted = True
                for process in tuple(self.processes):
                    process.kill()
                raise
        return more

    def _turn(self, part: plan.Part, held_back: set[str]) -> bool:
        """A part's turn. Returns whether an item was tried and others are left."""
        toy = self.values.dry_run  # takes as long as the processor does, and nobody ends it
        end = time.monotonic() + (self._seconds() if toy else min(part.most_seconds, self._seconds()))
        expected = {f"{part.name}/{item.name}": 0.0 if toy else item.seconds for item in part.items}
        began = False
        while names := [name for name in self._left(part) if name not in self.over | held_back]:
            seconds = end - time.monotonic()
            if seconds < max(_LEAST_SECONDS, min(expected[name] for name in names)):
                break
            tried, goes_on = self._work_through(part, names, seconds)
            self.over |= tried
            began |= bool(tried)
            if not goes_on or not tried:
                break
        return began and bool(names)

    def _work_through(self, part: plan.Part, names: Sequence[str], seconds: float) -> tuple[set[str], bool]:
        """Has a process do items of a part. Returns those that were tried, and whether the others should be given a new one."""
        with self.telling:
            print(f"{part.name}: {part.title}", flush=True)
        tried: set[str] = set()
        current, told_all, cut = None, False, False
        with self._process(part, [name.partition("/")[2] for name in names], seconds) as lines:
            for line in lines:
                name = f"{part.name}/{line.get('item')}"
                if line["what"] == "begin":
                    current = name
                elif line["what"] == "done":
                    tried.add(name)
                    self._tell(name, "", f"{line['seconds']:.1f} s")
                elif line["what"] == "failed":
                    tried.add(name)
                    self._tell(name, f"{_FAILURE}{line['why']}")
                elif line["what"] == "late":
                    self._tell(name, line["why"])
                told_all |= line["what"] == "end"
                cut |= line["what"] == "cut"
        if not told_all and current is not None and current not in tried and not self.interrupted:
            tried.add(current)
            if cut:
                self._tell(current, "cut off when its time was over; the same command goes on with it")
            else:
                why = "its process ended, for lack of memory perhaps; see log.txt"
                self.store.save_failure(current, (why,))
                self._tell(current, f"{_FAILURE}{why}")
        return tried, not (told_all or cut or self.interrupted)

    def _tell(self, name: str, without: str, line: str = "") -> None:
        """Says what became of an item, and brings the report up to date."""
        with self.telling:
            self.without[name] = without
            print(f"  {name}: {without or line}", flush=True)
            self._report(figures=time.monotonic() - self.drawn > _SECONDS_BETWEEN_FIGURES)

    @contextlib.contextmanager
    def _process(self, part: plan.Part, items: Sequence[str], seconds: float) -> Iterator[Iterator[dict[str, Any]]]:
        """A worker, as the lines that it tells; they end with it or, after a last one that says ``cut``, with its seconds."""
        values = self.values
        given = {name: values[name].value for name in ("data_dir", "image_dir", "batch_size") if values[name].value}
        command = [sys.executable, "-m", "experiments.accelerator", f"--worker={part.name}", f"--output_dir={self.folder}"]
        command += [f"--{name}={value}" for name, value in given.items()]
        command += [f"--items={','.join(items)}", f"--seconds={seconds}", *(["--dry_run"] if values.dry_run else [])]
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"\n=== {part.name} {' '.join(items)}\n")
            log.flush()
            process = subprocess.Popen(
                command,
                env=environment(part, toy=values.dry_run),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            self.processes.add(process)
            if self.interrupted:
                process.kill()
            cut = True
            try:
                end = time.monotonic() + seconds
                lines = _told(process, log, end)
                yield lines
                cut = time.monotonic() >= end
            finally:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.1 if cut else _ENDING_SECONDS)
                process.kill()
                process.wait()
                self.processes.discard(process)
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        stream.close()

    def _report(self, *, figures: bool = True) -> None:
        """Writes ``results.json``, ``report.md`` and the figures, as far as there are results."""
        items = {}
        for path in sorted((self.folder / "results").glob("*/*/result.json")):
            name = f"{path.parent.parent.name}/{path.parent.name}"
            if (record := self.store.load(name)) is not None:
                items[name] = record
        every = plan.parts(_folder("data_dir", self.values.data_dir), toy=self.values.dry_run)
        earlier = {
            f"{part.name}/{item.name}": self.store.failures(f"{part.name}/{item.name}") for part, item in plan.named(every)
        }
        without = {name: f"{_FAILURE}{lines[-1]}" for name, lines in earlier.items() if lines}
        without |= {name: why for name, why in self.without.items() if why}
        without = {name: why for name, why in without.items() if name not in items}
        content = {"about": self.about, "items": items, "without": without}
        write_text(self.folder / _RESULTS, json.dumps(content, indent=1, ensure_ascii=False))
        sources = {f"{record.get('version')} ({record.get('source')})" for record in items.values()}
        figures_by_name = {name: record["figures"] for name, record in items.items()}
        found = report.Results(self.about, figures_by_name, without, tuple(sorted(sources)))
        write_text(self.folder / "report.md", report.markdown(found, every))
        if figures:
            self.drawn = time.monotonic()
            with contextlib.suppress(ImportError):  # without matplotlib there are tables only
                report.draw(found, self.folder / "report.png")
                report.draw_images(self.store, items, self.folder / "images.png")


def environment(part: plan.Part, *, toy: bool) -> dict[str, str]:
    """The environment of a part's process."""
    found = dict(os.environ)
    if toy or part.place != "accelerator":
        found["JAX_PLATFORMS"] = "cpu"
    if toy and part.module not in _RUN_LONGER_THAN_COMPILED:
        found["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    elif not toy and part.place == "cpu":
        found = runtime.huge_pages_environment(found) or found
    return found


def _told(process: subprocess.Popen[str], log: Any, end: float) -> Iterator[dict[str, Any]]:
    """The lines of JSON that a worker prints, until it ends or the time is over; all else goes to the log."""
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()

    def read(stream: Any) -> None:
        with contextlib.suppress(ValueError):  # closed meanwhile
            for line in stream:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            yield {"what": "cut"}
            return
        if line is None:
            return
        if line.startswith(worker.MARK):
            told = json.loads(line.removeprefix(worker.MARK))
            yield told
            if told["what"] == "end":  # a process of its own may hold the pipe open
                return
        else:
            log.write(line)
            log.flush()


if __name__ == "__main__":
    run()
