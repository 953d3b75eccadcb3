import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.classical.compiled import compile_side_by_side, reproducible_jit, run_side_by_side, side_by_side


def test_values_come_in_order_whoever_is_first():
    def slow_first(number):
        time.sleep(0.05 if number == 0 else 0.0)
        return -number

    assert list(side_by_side(slow_first, range(6))) == [0, -1, -2, -3, -4, -5]
    assert list(side_by_side(slow_first, [])) == []


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_at_a_time_than_asked_for(most, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    lock, now, seen = threading.Lock(), [0], []

    def counted(number):
        with lock:
            now[0] += 1
            seen.append(now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return number

    assert list(side_by_side(counted, range(8), at_once=most)) == list(range(8))
    assert max(seen) == most


def test_those_that_have_not_begun_end_with_the_caller(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    begun = []

    def slow(number):
        begun.append(number)
        time.sleep(0.02)
        return number

    values = side_by_side(slow, range(50))
    assert next(values) == 0
    values.close()
    count = len(begun)
    assert count < 10
    time.sleep(0.1)
    assert len(begun) == count


def test_an_error_comes_through():
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda number: 1 // number, [1, 0, 2]))


def test_what_was_compiled_ahead_is_not_traced_again():
    traces = []

    @reproducible_jit
    def program(*, array, number):
        traces.append(array.shape)
        return number * array.sum()

    sides = (3, 4, 5)
    calls = [(program, {"array": jax.ShapeDtypeStruct((side,), jnp.float32), "number": 2.0}) for side in sides]
    compile_side_by_side(calls)
    assert sorted(traces) == [(side,) for side in sides]
    assert [float(program(array=jnp.ones(side), number=0.5)) for side in sides] == [1.5, 2.0, 2.5]
    assert len(traces) == 3


def test_programs_run_side_by_side_compile_once_and_answer_in_order():
    traces = []

    @jax.jit
    def slow(number, *, array):
        traces.append(number)
        return number * jnp.linalg.norm(jax.lax.fori_loop(0, 30, lambda _, a: jnp.tanh(a @ a), array))

    calls = [{"number": float(number), "array": jnp.full((60, 60), 0.02)} for number in range(12)]
    found = run_side_by_side(slow, calls)
    np.testing.assert_allclose(found, [float(slow(**call)) for call in calls])
    assert len(traces) == 1
