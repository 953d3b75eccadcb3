import csv
import dataclasses
import types

import numpy as np
import pytest
from PIL import Image

from experiments import blind_table
from jaxdeblur.errors import InputError
from jaxdeblur.evaluation.datasets import Example
from jaxdeblur.presets import PRESETS


@pytest.fixture
def example(tmp_path):
    sharp = np.random.default_rng(0).integers(0, 256, (48, 52), np.uint8)
    Image.fromarray(sharp).save(tmp_path / "sharp.png")
    Image.fromarray(sharp // 2 + 60).save(tmp_path / "blurry.png")
    return Example("blurry", tmp_path / "blurry.png", tmp_path / "sharp.png", 15)


def test_rows_are_measured_printed_and_written(example, tmp_path, capsys):
    _, sharp = example.load()

    def run(blurry, _, seed):
        assert blurry.shape == sharp.shape
        restored = sharp + 0.01 * (1 + seed) * np.where(sharp > 0.5, -1, 1)
        return types.SimpleNamespace(restored=restored, kernel=np.ones((9, 11)) / 99, chosen="made up")

    path = tmp_path / "rows.csv"
    rows = blind_table._report(blind_table.measure([example], [0, 1], run), str(path))

    assert [row.psnr for row in rows] == pytest.approx([40.0, 33.979], abs=1e-2)
    assert rows[0].input_psnr < 20.0
    assert (rows[0].kernel_side, rows[0].chosen) == (11, "made up")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert "made up" in printed[1]
    with path.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["psnr"]) for row in written] == [row.psnr for row in rows]
    mean, _, smallest, _ = blind_table.summary(rows)
    assert "36.99" in mean
    assert "33.98" in smallest


def test_kernel_size_flag(example):
    config = dataclasses.replace(PRESETS["fast"], kernel_size=9)
    assert blind_table.configured(config, "auto", example).kernel_size is None
    assert blind_table.configured(config, "published", example).kernel_size == 15
    assert blind_table.configured(config, "21", example).kernel_size == 21
    for wrong in ("wide", "8"):
        with pytest.raises(InputError):
            blind_table.configured(config, wrong, example)
