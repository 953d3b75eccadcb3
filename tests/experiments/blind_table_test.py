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
    rows = blind_table._report(blind_table.measure([example], [0, 1], run), path)

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


def test_a_stopped_run_goes_on(example, tmp_path):
    _, sharp = example.load()
    seeds = []

    def run(blurry, _, seed):
        seeds.append(seed)
        return types.SimpleNamespace(restored=0.9 * sharp, kernel=np.ones((3, 3)) / 9, chosen="made up, again")

    path = tmp_path / "rows.csv"
    assert blind_table.read_rows(path) == []
    first = blind_table._report(blind_table.measure([example], [0], run), path)
    known = blind_table.read_rows(path)
    assert known == first
    rows = blind_table._report(blind_table.measure([example], [0, 1], run, done=known), path, known)
    assert seeds == [0, 1]
    assert blind_table.read_rows(path) == rows
    blind_table._report(blind_table.measure([example], [1], run, preset="deep", done=rows), path, rows)
    assert seeds == [0, 1, 1]  # another preset is measured, and no row is lost
    assert len(blind_table.read_rows(path)) == 3


def test_a_file_that_is_no_table_is_left_alone(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="not a table of this command"):
        blind_table.read_rows(path)
    assert path.read_text() == "a,b\n1,2\n"


def test_means_of_categories():
    def row(name, psnr):
        return blind_table.Row(name, 0, 20.0, 0.5, psnr, 0.9, 60.0, 31, "made up", "fast", "auto", 10)

    lines = blind_table.category_means([row("text_01_kernel_01", 24.0), row("text_02_kernel_01", 26.0), row("people_01", 30.0)])
    assert [line.split(",")[0] for line in lines] == ["text", "people"]
    assert "25.00" in lines[0]
    assert "30.00" in lines[1]


def test_kernel_size_flag(example):
    config = dataclasses.replace(PRESETS["fast"], kernel_size=9)
    assert blind_table.configured(config, "auto", example).kernel_size is None
    assert blind_table.configured(config, "published", example).kernel_size == 15
    assert blind_table.configured(config, "21", example).kernel_size == 21
    for wrong in ("wide", "8"):
        with pytest.raises(InputError):
            blind_table.configured(config, wrong, example)
