"""Computations that wait for their turn."""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from jaxdeblur.app.processes import Cancelled, Worker, WorkerFailed
from jaxdeblur.config import HIGHLIGHTS_PHASE, SEARCH_PHASE, WITHOUT_CLIPPED
from jaxdeblur.errors import InputError, describe

# More than this is not taken on: nobody would wait for it.
_MOST_WAITING = 20
_PHASES = {
    "kernel": "Estimating the blur",
    HIGHLIGHTS_PHASE: "Looking whether highlights mislead the estimate",
    f"kernel {WITHOUT_CLIPPED}": "Estimating the blur again, without the highlights",
    "fit": "Fitting the deep prior",
    "final image": "Restoring the photograph",
}
_ENDED = ("done", "failed", "cancelled")


@dataclasses.dataclass(eq=False)
class Job:
    """A computation that was asked for.

    Attributes:
      owner: the session that asked.
      arguments: of the task ``restore``.
      finished: called with its value when it is done, before others see that it is.
      dropped: called when it ends without one.
      identity: by which the page asks for it.
      state: ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``.
      phase: what it does at present.
      step: how much of that is done.
      total: of so much.
      phase_began: when, in seconds of ``time.monotonic``.
      step_ended: when the last step ended.
      value: what the page gets when it is done.
      error: one line, if it failed.
      snapshot: the picture as it forms, a JPEG.
      num_snapshots: so far.
      cancelled: set to end it.
      enough: set to end a search and take the best so far.
    """

    owner: str
    arguments: dict[str, Any]
    finished: Callable[[dict[str, Any]], dict[str, Any]]
    dropped: Callable[[], None]
    identity: str = dataclasses.field(default_factory=lambda: secrets.token_urlsafe(12))
    state: str = "waiting"
    phase: str = ""
    step: int = 0
    total: int = 0
    phase_began: float = 0.0
    step_ended: float = 0.0
    value: dict[str, Any] | None = None
    error: str | None = None
    snapshot: bytes | None = None
    num_snapshots: int = 0
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)
    enough: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.state in _ENDED

    def account(self, place: int) -> dict[str, Any]:
        """What the page is told; ``place`` is its place in the queue, 0 if it does not wait."""
        seconds_left = None
        if self.state == "running" and self.step and self.total:
            left = (self.step_ended - self.phase_began) / self.step * (self.total - self.step)
            # Counted down; the last steps take longer than the first.
            seconds_left = round(max(left - (time.monotonic() - self.step_ended), 0.0), 1)
        return {
            "id": self.identity,
            "state": self.state,
            "place": place,
            "phase": _PHASES.get(self.phase, self.phase.capitalize()),
            "share": self.step / self.total if self.total else None,
            "seconds_left": seconds_left,
            "snapshots": self.num_snapshots,
            "searching": self.phase.startswith(SEARCH_PHASE) and not self.enough.is_set(),
            "error": self.error,
            "result": self.value,
        }


class JobQueue:
    """Runs jobs in the order in which they came, so many at a time as there are workers."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        self._open = True
        self._threads = [threading.Thread(target=self._run, args=(worker,), daemon=True) for worker in workers]
        for thread in self._threads:
            thread.start()

    def add(self, job: Job) -> None:
        """Takes a job on.

        Raises:
          InputError: too many are waiting.
        """
        with self._changed:
            if len(self._waiting) >= _MOST_WAITING:
                raise InputError(f"{_MOST_WAITING} computations are waiting already; try again later")
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Ends a job: at once if it waits, else within two seconds."""
        job.cancelled.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.dropped()
                job.state = "cancelled"

    def place(self, job: Job) -> int:
        """How many it has to wait for, itself included: 1 for the next one, 0 if it does not wait."""
        with self._changed:
            return self._waiting.index(job) + 1 if job in self._waiting else 0

    def close(self) -> None:
        """Ends everything."""
        with self._changed:
            self._open = False
            for job in self._waiting:
                job.state = "cancelled"
            self._waiting.clear()
            self._changed.notify_all()
        for worker in self._workers:
            worker.close()

    def _run(self, worker: Worker) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or not self._open)
                if not self._open:
                    return
                job = self._waiting.pop(0)
                job.state, job.phase, job.phase_began = "running", "starting", time.monotonic()
            self._finish(job, worker)

    def _finish(self, job: Job, worker: Worker) -> None:
        def tell(kind: str, value: Any) -> None:
            if kind == "snapshot":
                job.snapshot, job.num_snapshots = value, job.num_snapshots + 1
                return
            phase, step, total = value
            job.step_ended = time.monotonic()
            if phase != job.phase:
                job.phase_began = job.step_ended
            job.phase, job.step, job.total = phase, step, total

        try:
            value = worker.call("restore", job.arguments, tell=tell, cancelled=job.cancelled, enough=job.enough)
            job.value = job.finished(value)
            job.state = "done"
            return
        except Cancelled:
            state = "cancelled"
        except InputError as error:
            job.error, state = str(error), "failed"
        except WorkerFailed as error:
            job.error, state = f"This did not work: {error}", "failed"
        except Exception as error:  # the thread lives on
            job.error, state = f"This did not work: {describe(error)}", "failed"
        job.dropped()
        job.state = state
