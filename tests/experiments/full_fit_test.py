"""experiments.full_fit: curves that go on after an interruption, and the table."""

import json

import numpy as np
import pytest

from experiments import full_fit


class TestCurve:
    def test_measures_where_due_and_goes_on_with_earlier_rows(self, tmp_path):
        sharp = np.random.default_rng(0).random((64, 64), np.float32)
        first = full_fit.Curve(tmp_path / "run.csv", sharp, 100)
        for step in (50, 100, 150, 200):
            first.add(step, sharp if step == 200 else np.full_like(sharp, 0.5), np.ones((1, 1)))
        again = full_fit.Curve(tmp_path / "run.csv", sharp, 100)
        assert again.rows == first.rows
        assert sorted(again.rows) == [100, 200]
        assert again.rows[100][0] < 20 < again.rows[200][0]


def save_run(folder, image, direct, steps=5000):
    pairs = {"blurry": [24.0, 0.7], "direct": [direct, 0.9], "sparse": [direct + 1, 0.95]}
    run = {"preset": "selfdeblur", "image": image, "seed": 0, "steps": steps, "seconds": 1.0, **pairs}
    (folder / f"{image}_{steps}.json").write_text(json.dumps(run))


class TestTable:
    def test_only_whole_runs_are_compared_with_public_results(self, tmp_path):
        save_run(tmp_path, "im1_kernel1", 33.0)
        save_run(tmp_path, "im2_kernel6", 35.0)
        save_run(tmp_path, "im3_kernel4", 20.0, steps=100)
        text = full_fit.table(full_fit.summaries(tmp_path))
        assert "| selfdeblur | im1_kernel1 | 0 | 5000 | 24.00 / 0.700 | 33.00 / 0.900 | 34.00 / 0.950 | 33.47 |" in text
        assert text.count("32.53") == 0
        assert f"{(33.0 - 33.47 + 35.0 - 35.38) / 2:+.2f} dB direct" in text

    def test_nothing_there(self, tmp_path):
        with pytest.raises(full_fit.InputError, match="no finished run"):
            full_fit.summaries(tmp_path)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--image=im1_kernel1"], "--data_dir is missing"),
        (["--data_dir=nowhere", "extra"], "unexpected argument 'extra'"),
        (["--every=0"], "every"),
        (["--table", "--output_dir=nowhere"], "no finished run"),
    ],
)
def test_bad_input_is_one_line(flags, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert full_fit.main(["full_fit", *flags]) == 1
    errors = capsys.readouterr().err
    assert told in errors
    assert list(tmp_path.iterdir()) == []
