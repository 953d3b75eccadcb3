import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from jaxdeblur.errors import InputError
from jaxdeblur.jobs.cluster import map_batches, map_tasks

WAYS = [
    pytest.param({"workers": 1}, id="here"),
    pytest.param({"workers": 2}, id="processes"),
    pytest.param({"workers": 2, "ray_address": "local"}, id="ray", marks=pytest.mark.slow),
]


@pytest.fixture(autouse=True)
def _ray_where_asked_for(request):
    if "ray" in request.node.name:
        pytest.importorskip("ray", reason="Ray is not installed (extra 'cluster')")


def square(item):
    return item * item


def square_or_raise(item):
    folder, number, failures = item
    mark = pathlib.Path(folder, f"{number}-{len(list(pathlib.Path(folder).glob(f'{number}-*')))}")
    mark.touch()
    if int(mark.name.split("-")[1]) < failures:
        raise RuntimeError(f"no luck\nwith {number}")
    return number * number


def square_unless_killed(item):
    """Waits, on its first attempt at number 1, for somebody to kill it."""
    folder, number = item
    begun = pathlib.Path(folder, str(number))
    first = not begun.exists()
    begun.write_text(str(os.getpid()))
    if number == 1 and first:
        time.sleep(120)
    return number * number


@pytest.mark.parametrize("way", WAYS)
def test_every_item_once_with_failures_retried_once(way, tmp_path):
    items = [(str(tmp_path), number, {2: 1, 4: 9}.get(number, 0)) for number in range(6)]
    outcomes = {outcome.index: outcome for outcome in map_tasks(square_or_raise, iter(items), **way)}
    assert sorted(outcomes) == list(range(6))
    for number in (0, 1, 2, 3, 5):
        assert (outcomes[number].value, outcomes[number].failed) == (number * number, False)
    assert outcomes[2].errors == ("RuntimeError: no luck with 2",)
    assert outcomes[4].failed
    assert len(outcomes[4].errors) == 2
    assert "in square_or_raise" in outcomes[4].trace
    assert len(list(tmp_path.glob("4-*"))) == 2


def squares_or_raise(batch):
    return [square_or_raise(item) for item in batch]


@pytest.mark.parametrize("way", WAYS)
def test_one_bad_item_costs_its_batch_nothing(way, tmp_path):
    items = [(str(tmp_path), number, {1: 1, 4: 9}.get(number, 0)) for number in range(6)]
    batches = [items[:3], items[3:]]
    outcomes = {outcome.index: outcome for outcome in map_batches(squares_or_raise, iter(batches), **way)}
    assert {index: outcome.value for index, outcome in outcomes.items()} == {0: 0, 1: 1, 2: 4, 3: 9, 4: None, 5: 25}
    assert [outcomes[index].failed for index in range(6)] == [False] * 4 + [True, False]
    assert len(outcomes[4].errors) == 2
    assert "with 4" in outcomes[4].errors[1]


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_killed_workers_task_is_done_by_another(way, tmp_path):
    victim = tmp_path / "1"

    def kill_when_begun():
        while not (victim.exists() and victim.read_text()):
            time.sleep(0.02)
        os.kill(int(victim.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill_when_begun, daemon=True)
    killer.start()
    items = [(str(tmp_path), number) for number in range(5)]
    outcomes = {outcome.index: outcome for outcome in map_tasks(square_unless_killed, items, **way)}
    killer.join(timeout=1)
    assert not killer.is_alive()
    assert {index: outcome.value for index, outcome in outcomes.items()} == {n: n * n for n in range(5)}
    assert len(outcomes[1].errors) == 1
    assert "worker died" in outcomes[1].errors[0]


def squares_if_fed(items):
    """Dies a few times as if memory had run out."""
    for folder, number, deaths in items:
        tries = len(list(pathlib.Path(folder).glob(f"{number}-*")))
        pathlib.Path(folder, f"{number}-{tries}").write_text(str(time.monotonic_ns()))
        if tries < deaths:
            os.kill(os.getpid(), signal.SIGKILL)
    return [number * number for _, number, _ in items]


def test_an_item_whose_worker_is_killed_is_tried_alone(tmp_path):
    items = [(str(tmp_path), number, {1: 1, 3: 9}.get(number, 0)) for number in range(5)]
    outcomes = {outcome.index: outcome for outcome in map_batches(squares_if_fed, [[item] for item in items], workers=2)}
    assert {index: outcome.value for index, outcome in outcomes.items()} == {0: 0, 1: 1, 2: 4, 3: None, 4: 16}
    assert "killed by SIGKILL" in outcomes[1].errors[0]
    assert (outcomes[3].failed, outcomes[3].starved, outcomes[3].trace) == (True, True, None)
    assert len(list(tmp_path.glob("3-*"))) == 2
    times = {path.name: int(path.read_text()) for path in tmp_path.iterdir()}
    assert min(times["1-1"], times["3-1"]) > max(times[f"{number}-0"] for number in range(5))  # after all others


def test_items_are_drawn_as_there_is_room():
    drawn = []

    def items():
        for number in range(50):
            drawn.append(number)
            yield number

    with contextlib.closing(map_tasks(square, items(), workers=1)) as outcomes:
        assert next(outcomes).value == 0
    assert drawn == [0]


def test_closing_ends_the_processes(tmp_path):
    items = [(str(tmp_path), 0), (str(tmp_path), 1)]
    with contextlib.closing(map_tasks(square_unless_killed, items, workers=2)) as outcomes:
        assert next(outcomes).index == 0
        while not (tmp_path / "1").exists():
            time.sleep(0.02)
    assert _gone(int((tmp_path / "1").read_text()))


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = f"""
        import sys
        sys.path[:0] = [{str(pathlib.Path(__file__).parent)!r}]
        import cluster_test
        from jaxdeblur.jobs.cluster import map_batches, map_tasks
        if __name__ == "__main__":
            list(map_tasks(cluster_test.square_unless_killed, [({str(tmp_path)!r}, 1)], workers=2))
    """
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(script))
    with subprocess.Popen([sys.executable, str(program)]) as parent:
        begun = tmp_path / "1"
        while not (begun.exists() and begun.read_text()):
            assert parent.poll() is None
            time.sleep(0.02)
        parent.kill()
    worker, until = int(begun.read_text()), time.monotonic() + 10
    while not _gone(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert _gone(worker)


def test_a_cluster_that_is_not_there_is_one_line():
    pytest.importorskip("ray", reason="Ray is not installed (extra 'cluster')")
    # Not "auto", which finds the cluster of a test that runs beside this one.
    with pytest.raises(InputError, match="nobody answers there") as caught:
        list(map_tasks(square, [1], ray_address="127.0.0.1:1"))
    assert "\n" not in str(caught.value)


def test_ray_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="extra 'cluster'"):
        list(map_tasks(square, [1], ray_address="local"))


def _gone(pid):
    """Whether no such process runs; one that only waits to be reaped does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True
