"""Many images at once: in this process, in processes beside it, or on the machines of a Ray cluster.

Images do not depend on one another, so all that is needed is one loop that hands them out, takes results as they come and
hands out anew what a failing or dying worker lost: :func:`map_tasks`, and :func:`map_batches` for several at a time. A task's
arguments and its result travel by pickle, so the machines need no shared file system.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import connection
from typing import Any, Generic, Protocol, TypeVar

from jaxdeblur.errors import InputError, describe

LOCAL = "local"
_CONNECT_SECONDS = 10

# A worker's end (no memory, a machine taken away) is not the image's fault, so it has more tries than a failure.
_MAX_DEATHS = 3
# How many tasks per slot a cluster is given at a time: the next one is there when a slot falls free, and no more is in flight.
_TASKS_PER_SLOT = 2

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Outcome(Generic[Value]):
    """What became of one item.

    Attributes:
      index: its place among the items.
      value: what the function returned, or None if it failed.
      errors: of its failed attempts, one line each; the item failed if ``value`` did not come in the end.
      failed: whether the attempts are used up without a value.
      trace: the stack trace of the last failed attempt; None if its error is one for the user (InputError) or its worker died.
      starved: whether the last failed attempt's worker was killed for lack of memory.
    """

    index: int
    value: Value | None
    errors: tuple[str, ...]
    failed: bool
    trace: str | None = None
    starved: bool = False


class TaskError(Exception):
    """A task failed unexpectedly in another process. Its cause holds the stack trace from there."""

    @classmethod
    def of(cls, outcome: Outcome[Any]) -> TaskError:
        """The last error of an outcome that failed."""
        error = cls(outcome.errors[-1])
        error.__cause__ = _RemoteTrace(outcome.trace)
        return error


class _RemoteTrace(Exception):
    """Shown by Python above the error that it caused."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def map_tasks(
    function: Callable[[Item], Value],
    items: Iterable[Item],
    *,
    workers: int = 1,
    ray_address: str | None = None,
    num_cpus: float = 1.0,
    num_gpus: float | None = None,
    attempts: int = 2,
    alone: bool = False,
) -> Generator[Outcome[Value], None, None]:
    """Applies ``function`` to every item and yields the outcomes as they come, in any order.

    An item whose function raises, or whose worker is killed for lack of memory, is tried again (``attempts`` in all); one whose
    worker dies otherwise is handed out again, up to three times. Only as many items are drawn from ``items`` as there is room
    for, so they may be loaded on the way. Close the iterator (``contextlib.closing``) to stop early: running tasks are then
    abandoned and their processes ended.

    Args:
      function: of one item; defined at the top level of a module. With Ray it is sent by value unless it is part of this
        package, which every machine must have installed.
      items: arguments, to be pickled where they leave this process.
      workers: without Ray, processes to use; 1 is this process itself. With ``local`` Ray, CPUs of the cluster that is started.
      ray_address: of a Ray cluster (such as ``10.0.0.1:6379`` or ``auto``), or ``local`` to start one on this machine.
      num_cpus: CPUs that Ray shall reserve for a task.
      num_gpus: GPUs that Ray shall reserve for a task, fractions allowed; None for one if the cluster has any.
      attempts: see above, 1 or more.
      alone: whether only one item is worked on at a time, with no idle process beside it that takes memory.

    Yields:
      One outcome per item.

    Raises:
      InputError: Ray is not installed or its cluster cannot be reached.
    """
    team = _team(function, workers, ray_address, num_cpus, num_gpus, alone)
    source = (_Task(index, item) for index, item in enumerate(items))
    again: deque[_Task] = deque()
    running: dict[Any, _Task] = {}
    try:
        while True:
            while team.has_room(len(running)) and not (alone and running):
                task = again.popleft() if again else next(source, None)
                if task is None:
                    break
                running[team.submit(task.item)] = task
            if not running:
                return
            handle = team.wait(list(running))
            task = running.pop(handle)
            starved = False
            try:
                value, failure = team.result(handle)
            except _WorkerDiedError as death:
                value, failure, starved = None, _Failure(f"its worker died ({death})"), death.starved
                task.deaths += 1
                task.attempts += starved
            else:
                task.attempts += 1
            if failure is None:
                yield Outcome(task.index, value, tuple(task.errors), failed=False)
                continue
            task.errors.append(failure.message)
            if task.attempts < attempts and task.deaths < _MAX_DEATHS:
                again.append(task)
            else:
                yield Outcome(task.index, None, tuple(task.errors), True, failure.trace, starved)
    finally:
        team.close()


def map_batches(
    function: Callable[[list[Item]], list[Value]], batches: Iterable[list[Item]], **how: Any
) -> Generator[Outcome[Value], None, None]:
    """:func:`map_tasks` for a function of several items at once.

    What was in a batch that failed is tried once more, each item by itself, so that one bad item costs the others nothing. If
    memory ran out, nothing else runs beside it.

    Args:
      function: of a list of items; one value for each.
      batches: of items.
      **how: the arguments of :func:`map_tasks` that say where the work is done.

    Yields:
      One outcome per item; its index counts the items of all batches.

    Raises:
      InputError: as :func:`map_tasks`.
    """
    numbers = itertools.count()
    handed_out: dict[int, list[tuple[int, Item]]] = {}

    def numbered() -> Iterator[list[Item]]:
        for place, batch in enumerate(batches):
            handed_out[place] = [(next(numbers), item) for item in batch]
            yield batch

    failed: dict[bool, list[tuple[int, Item, tuple[str, ...]]]] = {False: [], True: []}  # True: for lack of memory
    with contextlib.closing(map_tasks(function, numbered(), attempts=1, **how)) as outcomes:
        for outcome in outcomes:
            batch = handed_out.pop(outcome.index)
            if outcome.value is None:
                failed[outcome.starved] += [(index, item, outcome.errors) for index, item in batch]
                continue
            for (index, _), value in zip(batch, outcome.value, strict=True):
                yield Outcome(index, value, outcome.errors, failed=False)
    for alone, again in failed.items():
        if not again:
            continue
        single = ([item] for _, item, _ in again)
        with contextlib.closing(map_tasks(function, single, attempts=1, alone=alone, **how)) as outcomes:
            for outcome in outcomes:
                index, _, errors = again[outcome.index]
                single_value = None if outcome.value is None else outcome.value[0]
                every = (*errors, *outcome.errors)
                yield Outcome(index, single_value, every, outcome.failed, outcome.trace, outcome.starved)


@dataclasses.dataclass
class _Task:
    index: int
    item: Any
    attempts: int = 0
    deaths: int = 0
    errors: list[str] = dataclasses.field(default_factory=list)


class _WorkerDiedError(Exception):
    """The process that had the task is gone."""

    def __init__(self, how: str, *, starved: bool = False) -> None:
        super().__init__(how)
        self.starved = starved


@dataclasses.dataclass(frozen=True)
class _Failure:
    """Why a task failed: one line, and the stack trace of what nobody expected."""

    message: str
    trace: str | None = None


_Answer = tuple[Any, _Failure | None]  # what the function returned, and the failure if it raised an error


class _Team(Protocol):
    """Whoever does the work. Handles stand for tasks that were submitted."""

    def has_room(self, running: int) -> bool: ...

    def submit(self, item: Any) -> Any: ...

    def wait(self, handles: list[Any]) -> Any: ...

    def result(self, handle: Any) -> _Answer: ...

    def close(self) -> None: ...


def _team(
    function: Callable[[Any], Any],
    workers: int,
    ray_address: str | None,
    num_cpus: float,
    num_gpus: float | None,
    alone: bool,
) -> _Team:
    if ray_address is not None:
        return _Ray(function, ray_address, workers, num_cpus, num_gpus)
    return _Processes(function, 1 if alone else workers) if workers > 1 else _Here(function)


def _attempt(function: Callable[[Any], Any], item: Any) -> _Answer:
    try:
        return function(item), None
    except InputError as error:
        return None, _Failure(str(error))
    except Exception as error:
        return None, _Failure(describe(error), traceback.format_exc())


class _Here:
    """This very process, one task at a time."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._handles = itertools.count()
        self._answers: dict[int, _Answer] = {}

    def has_room(self, running: int) -> bool:
        return running == 0

    def submit(self, item: Any) -> int:
        handle = next(self._handles)
        self._answers[handle] = _attempt(self._function, item)
        return handle

    def wait(self, handles: list[int]) -> int:
        return handles[0]

    def result(self, handle: int) -> _Answer:
        return self._answers.pop(handle)

    def close(self) -> None:
        self._answers.clear()


class _Processes:
    """Processes of this machine, each with a pipe. They are started afresh, because a fork of a process that uses jax hangs."""

    def __init__(self, function: Callable[[Any], Any], workers: int) -> None:
        self._function = function
        self._context = multiprocessing.get_context("spawn")
        self._free = [self._start() for _ in range(workers)]
        self._busy: dict[connection.Connection, Any] = {}

    def _start(self) -> tuple[connection.Connection, Any]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._function), daemon=True)
        process.start()
        theirs.close()  # so that the worker's end is seen as the end of the pipe
        return ours, process

    def has_room(self, running: int) -> bool:
        return bool(self._free)

    def submit(self, item: Any) -> connection.Connection:
        pipe, process = self._free.pop()
        self._busy[pipe] = process
        with contextlib.suppress(OSError):  # a worker that has died meanwhile is noticed when its answer is looked for
            pipe.send(item)
        return pipe

    def wait(self, handles: list[connection.Connection]) -> connection.Connection:
        ready = connection.wait(handles)[0]
        assert isinstance(ready, connection.Connection)
        return ready

    def result(self, handle: connection.Connection) -> _Answer:
        process = self._busy.pop(handle)
        try:
            answer: _Answer = handle.recv()
        except (EOFError, OSError):
            handle.close()
            process.join()
            self._free.append(self._start())
            raise _death(process.exitcode) from None
        self._free.append((handle, process))
        return answer

    def close(self) -> None:
        for pipe, process in (*self._free, *self._busy.items()):
            process.kill()
            process.join()
            pipe.close()


def _death(exit_code: int) -> _WorkerDiedError:
    if exit_code >= 0:
        return _WorkerDiedError(f"exit code {exit_code}")
    name = signal.Signals(-exit_code).name
    if name == "SIGKILL":
        return _WorkerDiedError("killed by SIGKILL, as the system does when memory runs out", starved=True)
    return _WorkerDiedError(f"killed by {name}")


def _serve(pipe: connection.Connection, function: Callable[[Any], Any]) -> None:
    """A worker's life: answers items until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to see to
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(_attempt(function, pipe.recv()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)  # even if the parent was killed, nobody goes on working for it


def _require_reachable(address: str) -> None:
    """Raises InputError if nobody answers at ``host:port``; Ray itself would go on trying for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return  # a name that Ray knows what to make of
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--ray={address}: nobody answers there ({error}); start the cluster, or give --ray=local") from None


class _Ray:
    """A Ray cluster; see https://docs.ray.io."""

    def __init__(
        self, function: Callable[[Any], Any], address: str, workers: int, num_cpus: float, num_gpus: float | None
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for reports to third parties
        try:
            import ray
        except ImportError:
            raise InputError(f"--ray={address} needs Ray: install jaxdeblur's extra 'cluster', or leave --ray out") from None
        _require_reachable(address)
        own: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address == LOCAL else {}
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:150]
            raise InputError(
                f"--ray={address}: cannot join this Ray cluster ({reason}); start it, or give --ray=local"
            ) from None
        if threading.current_thread() is threading.main_thread():
            # Ray has put its own in its place, which ends the process on the spot.
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        self._ray = ray
        if num_gpus is None:
            num_gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
        self._needs = {"CPU": num_cpus, "GPU": num_gpus}
        options: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": 0}
        if 0 < num_gpus < 1:
            # Several tasks share a GPU: each process may only take its share of the memory.
            options["runtime_env"] = {"env_vars": {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 * num_gpus:.3f}"}}
        module = sys.modules[function.__module__]
        if module.__name__.split(".")[0] != __name__.split(".")[0]:
            ray.cloudpickle.register_pickle_by_value(module)
        self._run = ray.remote(_attempt).options(**options)
        self._function = ray.put(function)

    def has_room(self, running: int) -> bool:
        have = self._ray.cluster_resources()  # asked each time: machines may join and leave
        slots = min(int(have.get(name, 0) / need) for name, need in self._needs.items() if need > 0)
        return running < _TASKS_PER_SLOT * max(slots, 1)

    def submit(self, item: Any) -> Any:
        return self._run.remote(self._function, item)

    def wait(self, handles: list[Any]) -> Any:
        ready, _ = self._ray.wait(handles, num_returns=1)
        return ready[0]

    def result(self, handle: Any) -> _Answer:
        try:
            answer: _Answer = self._ray.get(handle)
        except self._ray.exceptions.RayError as error:
            starved = isinstance(error, self._ray.exceptions.OutOfMemoryError)
            raise _WorkerDiedError(type(error).__name__, starved=starved) from None
        return answer

    def close(self) -> None:
        self._ray.shutdown()
