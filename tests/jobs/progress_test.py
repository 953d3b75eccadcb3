"""Progress lines come at the start and the end of a phase and not too often between."""

import io
import os

import pytest

from jaxdeblur.jobs import progress


@pytest.fixture
def clock():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    return Clock()


def test_lines_are_rare_but_the_ends_of_phases_are_told(clock):
    lines = []
    report = progress.log_lines("a.png", lines.append, clock=clock, every=5.0)
    for phase in ("initialise", "fit"):
        for step in range(101):
            report(phase, step, 100, {"loss": 1.0 - step / 100})
            clock.now += 0.1
    assert lines[0].startswith("a.png: initialise 0/100")
    assert any("initialise 100/100" in line for line in lines)
    assert any("fit 0/100" in line for line in lines)
    assert "fit 100/100" in lines[-1]
    assert "loss 0" in lines[-1]
    assert len(lines) == 2 * 3


def test_time_left_is_extrapolated_within_the_phase(clock):
    lines = []
    report = progress.log_lines("a.png", lines.append, clock=clock, every=0.0)
    clock.now = 100.0
    report("fit", 0, 40, {})
    clock.now = 110.0
    report("fit", 10, 40, {})
    assert lines == ["a.png: fit 0/40", "a.png: fit 10/40, 30 s left"]


def test_the_bar_of_a_terminal_takes_every_report(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with progress.show_progress("[odd] name.png") as report:
        report("initialise", 0, 3, {})
        report("initialise", 3, 3, {"loss": 0.5})
        report("fit", 1, 100, {"loss": float("nan")})
        report("fit", 2, 200, {"loss": 0.25})


def test_a_line_for_nobody_is_no_error():
    """As in ``jaxdeblur ... | head``."""
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "w", encoding="ascii") as stream:
        for _ in range(3):
            progress.write_line("a line", stream)


def test_any_name_can_be_written():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    progress.write_line("\udcff\x1b[2J é\nb", stream)
    assert stream.buffer.getvalue() == b"\\udcff\\x1b[2J \\xe9 b\n"
