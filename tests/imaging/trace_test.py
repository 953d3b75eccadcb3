import numpy as np
import pytest
from PIL import Image

from jaxdeblur.imaging import trace


def _pixels(path, colour):
    return np.argwhere((np.asarray(Image.open(path)) == colour).all(-1))


def test_the_curve_falls_from_left_to_right(tmp_path):
    trace.write_trace(tmp_path / "t.png", [1.0, 0.1, 0.01, 0.001], "error")
    where = _pixels(tmp_path / "t.png", trace._CURVE)
    left, right = (where[where[:, 1] == column][:, 0].mean() for column in (where[:, 1].min(), where[:, 1].max()))
    assert right - left > 250
    assert len(_pixels(tmp_path / "t.png", trace._STOP)) == 0


def test_an_early_end_is_marked_at_its_step(tmp_path):
    trace.write_trace(tmp_path / "t.png", np.geomspace(1, 1e-3, 101), "error", best_step=50, stop_step=80)
    width = trace._RIGHT - trace._LEFT
    for colour, step in ((trace._BEST, 50), (trace._STOP, 80)):
        columns = _pixels(tmp_path / "t.png", colour)[:, 1]
        line = np.bincount(columns).argmax()
        assert line == pytest.approx(trace._LEFT + width * step / 100, abs=1)


@pytest.mark.parametrize("values", [[], [0.5], [np.nan, np.inf, 0.0], [1.0, np.nan, 2.0]])
def test_any_curve_makes_a_figure(tmp_path, values):
    trace.write_trace(tmp_path / "t.png", values, "error")
    assert Image.open(tmp_path / "t.png").size == trace._SIZE
