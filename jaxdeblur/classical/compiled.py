"""How the classical programs are compiled and run: so that the same call gives the same bytes, on every core."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

_Item = TypeVar("_Item")
_Value = TypeVar("_Value")

# With several threads XLA:CPU splits the rows of an FFT among them or not, depending on which of its own threads happens to
# reach it, and rows then round differently: conjugate gradients make visible differences of that. One thread costs nothing
# here, measured, and leaves the other cores to another program beside it.
reproducible_jit = functools.partial(jax.jit, compiler_options={"xla_cpu_multi_thread_eigen": False})


def side_by_side(
    function: Callable[[_Item], _Value], items: Sequence[_Item], *, at_once: int | None = None
) -> Iterator[_Value]:
    """``function(item)`` of every item, in order.

    On CPUs, where a program of :data:`reproducible_jit` keeps one core busy, several at a time in threads; elsewhere one after
    the other. A program that is not compiled yet would be compiled in each of the threads.

    Args:
      function: returns when its computation has ended.
      items: its arguments.
      at_once: the most at a time, where each takes memory of its own; None for as many as there are cores.

    Yields:
      The values. If the caller stops, so do those that have not begun.
    """
    cores = os.cpu_count() or 1 if jax.default_backend() == "cpu" else 1
    count = min(at_once or cores, cores, len(items))
    if count <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(count) as pool:
        try:
            yield from pool.map(function, items)
        finally:
            pool.shutdown(cancel_futures=True)


def run_side_by_side(program: jax.stages.Wrapped, calls: Sequence[Mapping[str, Any]]) -> list[Any]:
    """``program(**call)`` for every call, in order; see :func:`side_by_side`.

    Args:
      program: compiled once if not before, so the calls have to agree in shapes and types.
      calls: its keyword arguments.
    """
    if len(calls) > 1:
        program.lower(**calls[0]).compile()  # kept by jax: otherwise every thread would compile it anew
    return list(side_by_side(lambda call: jax.block_until_ready(program(**call)), calls))


def compile_side_by_side(calls: Sequence[tuple[jax.stages.Wrapped, Mapping[str, Any]]]) -> None:
    """Compiles programs before they are called, on CPUs several at a time, where one compilation keeps one core busy.

    Args:
      calls: programs, each with the keyword arguments of a call to come; ``jax.ShapeDtypeStruct`` in place of arrays.
    """

    def compile_one(call: tuple[jax.stages.Wrapped, Mapping[str, Any]]) -> None:
        program, arguments = call
        program.lower(**arguments).compile()  # jax keeps it for calls with arguments of these types

    for _ in side_by_side(compile_one, calls):
        pass
