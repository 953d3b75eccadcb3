import pytest
from PIL import Image
from scenes import QUICK

from experiments import scaling
from experiments.scaling import Point, Series
from jaxdeblur import runtime
from jaxdeblur.config import Config

SERIES = Series("made up: side", "side", (Point("fast", 128), Point("fast", 256), Point("fast", 512)))
FIGURES = [
    {"seconds": s, "cpu_s": 2 * s, "first_s": 9.0, "peak_mb": 100 + m, "base_mb": 100} for s, m in ((1, 10), (4, 20), (16, 40))
]


def test_growth_is_the_exponent():
    assert scaling.growth([1, 2, 4], [3, 12, 48]) == pytest.approx(2.0)
    assert scaling.growth([128, 256, 512], [5, 5, 5]) == pytest.approx(0.0)
    assert scaling.growth([1, 2], [0, 4]) is None


def test_table_and_figure(tmp_path):
    text = scaling.table(SERIES, FIGURES)
    assert "| 256 | 4.00 | 8.00 | 9.0 | 120 |" in text
    assert "| growth | ^2.00 | ^2.00 | | ^1.00 |" in text
    assert "| 512 | – | – | – | – |" in scaling.table(SERIES, [*FIGURES[:2], None])
    scaling.draw([(SERIES, [*FIGURES[:2], None])], tmp_path / "scaling.png")
    with Image.open(tmp_path / "scaling.png") as figure:
        assert min(figure.size) > 200


def test_every_point_differs_in_its_axis_alone():
    whole = scaling.all_series("fast", "selfdeblur_small", quick=False)
    assert {series.axis for series in whole} == {"side", "kernel", "restarts", "images", "workers"}
    for series, short in zip(whole, scaling.all_series("fast", "selfdeblur_small", quick=True), strict=True):
        assert short.points == series.points[:3]
        values = [getattr(point, series.axis) for point in series.points]
        assert values == sorted(set(values))
        others = [name for name in ("preset", "side", "kernel", "images", "workers") if name != series.axis]
        assert len({tuple(getattr(point, name) for name in others) for point in series.points}) == 1
        assert all(point.kernel < point.side for point in series.points)


def test_images_are_blurry_and_repeatable():
    one = scaling.blurry_scene(96, 15)
    assert one.shape == (96, 96)
    assert 0 <= one.min() < one.max() <= 1
    assert (one == scaling.blurry_scene(96, 15)).all()
    assert (
        abs(one[:, 1:] - one[:, :-1]).mean()
        < abs(scaling.blurry_scene(96, 1)[:, 1:] - scaling.blurry_scene(96, 1)[:, :-1]).mean()
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_point_is_measured(workers, monkeypatch):
    monkeypatch.setattr(scaling, "PRESETS", {"fast": Config(initialiser=QUICK)})
    monkeypatch.setattr(runtime, "set_up_cache", lambda setting: None)
    found = scaling.measure(Point("fast", side=96, kernel=11, images=workers, workers=workers), steps=1)
    assert set(found) == {"first_s", "seconds", "cpu_s", "peak_mb", "base_mb"}
    assert found["seconds"] > 0
    assert found["cpu_s"] > 0
    assert 0 < workers * found["base_mb"] <= found["peak_mb"]


def test_an_image_that_fails_gives_no_figure(monkeypatch):
    monkeypatch.setattr(scaling, "run_tasks", lambda tasks: 1 / 0)
    with pytest.raises(RuntimeError, match="division"):
        scaling.measure(Point("fast", side=96, kernel=11), steps=1)
