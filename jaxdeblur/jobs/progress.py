"""How a run shows that it is getting somewhere: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TextIO

from jaxdeblur.errors import printable

_SECONDS_BETWEEN_LINES = 5.0


class ProgressCallback(Protocol):
    """What :func:`jaxdeblur.deblur` calls from time to time."""

    def __call__(self, phase: str, step: int, total: int, metrics: Mapping[str, float]) -> None: ...


def write_line(text: str, stream: TextIO | None = None) -> None:
    """Writes ``text`` as one line to ``stream``, by default the standard output.

    A terminal that is gone, a pipe that nobody reads or a log file on a full disk is no reason to stop: nothing more is then
    written to it.
    """
    stream = sys.stdout if stream is None else stream
    encoding = getattr(stream, "encoding", None) or "utf-8"
    line = printable(text).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(line, file=stream, flush=True)
    except OSError:
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


@contextlib.contextmanager
def show_progress(name: str) -> Iterator[ProgressCallback]:
    """Lends a callback that shows phase, step, metrics and time left of the image called ``name``."""
    if sys.stdout.isatty():
        with _bar(name) as callback:
            yield callback
    else:
        yield log_lines(name, write_line)


def log_lines(
    name: str,
    write: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    every: float = _SECONDS_BETWEEN_LINES,
) -> ProgressCallback:
    """A callback that writes a line when a phase begins and ends, and not more often than ``every`` seconds in between."""
    phase_now, began, written = "", 0.0, 0.0

    def report(phase: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        nonlocal phase_now, began, written
        now = clock()
        if phase != phase_now:
            phase_now, began = phase, now
        elif step < total and now - written < every:
            return
        written = now
        left = (now - began) / step * (total - step) if step else 0.0
        parts = [f"{name}: {phase} {step}/{total}", *_shown(metrics), *([f"{left:.0f} s left"] if left >= 1 else [])]
        write(", ".join(parts))

    return report


@contextlib.contextmanager
def _bar(name: str) -> Iterator[ProgressCallback]:
    from rich import progress

    columns = (
        progress.TextColumn("{task.fields[name]}", markup=False),
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[metrics]}", markup=False),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, transient=True) as display:
        tasks: dict[str, progress.TaskID] = {}

        def report(phase: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
            if phase not in tasks:
                for finished in tasks.values():
                    display.update(finished, visible=False)
                tasks[phase] = display.add_task(phase, total=total, name=name, metrics="")
            display.update(tasks[phase], completed=step, total=total, visible=True, metrics=" ".join(_shown(metrics)))

        yield report


def _shown(metrics: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in metrics.items()]
