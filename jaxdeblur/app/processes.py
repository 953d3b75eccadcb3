"""A worker process: it stays warm between tasks, tells of its progress, and can be stopped at any time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from jaxdeblur.errors import InputError, describe

# Seconds that a cancelled task gets to notice, which keeps its process warm; then the process is killed.
_PATIENCE = 0.4
_POLL = 0.05
_STOP: tuple[str, dict[str, Any]] = ("stop", {})
_ENOUGH: tuple[str, dict[str, Any]] = ("enough", {})


class Cancelled(Exception):
    """The task was cancelled."""


class WorkerFailed(Exception):
    """The task failed for a reason that its user did not give; the message is one line."""


class Worker:
    """Runs the tasks of :mod:`jaxdeblur.app.tasks` one after the other in a process of its own.

    Args:
      cache_dir: folder of compiled programs, ``off``, or None for the default.
      patient: whether other work on this machine, such as the page's own answers, comes first.
    """

    def __init__(self, cache_dir: str | None = None, *, patient: bool = False) -> None:
        self._cache_dir = cache_dir
        self._patient = patient
        self._context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
        self._lock = threading.Lock()
        self._process: Any = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Starts the process, if it is not running, which takes it some seconds; returns at once."""
        if self._process is not None and self._process.is_alive():
            return
        self._discard()
        ours, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs, self._cache_dir, self._patient), daemon=True)
        self._process.start()
        theirs.close()
        self._connection = ours

    def call(
        self,
        task: str,
        arguments: dict[str, Any],
        *,
        tell: Callable[[str, Any], None] = lambda kind, value: None,
        cancelled: threading.Event | None = None,
        enough: threading.Event | None = None,
        seconds: float | None = None,
    ) -> Any:
        """Runs a task and returns its value. Calls from several threads take turns.

        Args:
          task: name of one of :data:`jaxdeblur.app.tasks.TASKS`.
          arguments: of it.
          tell: given what the task tells on its way, as (kind, value).
          cancelled: set by another thread to end the task; it has then ended well within two seconds.
          enough: set by another thread when what the task has so far will do.
          seconds: after which the task is given up, or None for no limit.

        Raises:
          InputError: what the user gave cannot be used.
          Cancelled: it was cancelled.
          WorkerFailed: anything else.
        """
        with self._lock:
            if cancelled is not None and cancelled.is_set():
                raise Cancelled
            self.start()
            assert self._connection is not None
            try:
                self._connection.send((task, arguments))
                return self._wait(tell, cancelled, enough, seconds)
            except (EOFError, OSError):
                self._discard()
                raise WorkerFailed("the computation was ended from outside, most likely for lack of memory") from None

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._discard()

    def _wait(
        self,
        tell: Callable[[str, Any], None],
        cancelled: threading.Event | None,
        enough: threading.Event | None,
        seconds: float | None,
    ) -> Any:
        connection = self._connection
        assert connection is not None
        began = time.monotonic()
        stopping: float | None = None
        hurried = False
        while True:
            if connection.poll(_POLL):
                kind, value = connection.recv()
                if kind == "done":
                    return value
                if kind == "refused":
                    raise InputError(*value)
                if kind == "failed":
                    raise WorkerFailed(value)
                if kind == "cancelled":
                    raise Cancelled
                tell(kind, value)
            if not hurried and enough is not None and enough.is_set():
                hurried = True
                connection.send(_ENOUGH)
            now = time.monotonic()
            if stopping is None and cancelled is not None and cancelled.is_set():
                stopping = now
                connection.send(_STOP)
            if stopping is not None and now - stopping > _PATIENCE:
                self._discard()
                self.start()  # so that the next one need not wait for it
                raise Cancelled
            if seconds is not None and now - began > seconds:
                self._discard()
                raise WorkerFailed(f"it took longer than {seconds:.0f} seconds and was given up")

    def _discard(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


class _Stopped(BaseException):
    """Raised in the worker's task when it is cancelled; not an Exception, so that nothing takes it for a failure."""


def _serve(connection: Connection, cache_dir: str | None, patient: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends its workers itself
    if patient and hasattr(os, "nice"):
        os.nice(5)
    from jaxdeblur import runtime

    runtime.set_up_cache(cache_dir)
    from jaxdeblur.app import tasks

    hurried = False

    def tell(kind: str, value: Any) -> bool:
        nonlocal hurried
        while connection.poll():  # nothing else is sent meanwhile
            if connection.recv() == _STOP:
                raise _Stopped
            hurried = True
        connection.send((kind, value))
        return hurried

    with contextlib.suppress(EOFError, OSError):  # the server is gone
        while True:
            task, arguments = connection.recv()
            if (task, arguments) in (_STOP, _ENOUGH):  # of a task that had ended already
                continue
            hurried = False
            try:
                answer = ("done", tasks.TASKS[task](tell, **arguments))
            except _Stopped:
                answer = ("cancelled", None)
            except InputError as error:
                answer = ("refused", str(error).splitlines())
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise
                answer = ("failed", describe(error))
            except Exception as error:
                answer = ("failed", describe(error))
            tasks.release_memory()
            connection.send(answer)
