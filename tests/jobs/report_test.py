"""The report is JSON that any reader takes, whatever the run put into it."""

import dataclasses
import json
import pathlib

import numpy as np

from jaxdeblur.jobs.report import to_json, write_report


@dataclasses.dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)
    path: pathlib.Path = pathlib.Path("x")


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    name: str = "[\n  1\n] é"


def test_everything_becomes_plain():
    found = to_json({"config": Outer(), "array": np.eye(2, dtype=np.float32), "scalar": np.float32(0.5), 3: None, "flag": True})
    assert found == {
        "config": {"inner": {"sizes": [1, 2], "path": "x"}, "name": "[\n  1\n] é"},
        "array": [[1.0, 0.0], [0.0, 1.0]],
        "scalar": 0.5,
        "3": None,
        "flag": True,
    }


def test_what_is_not_finite_becomes_null():
    assert to_json([float("nan"), np.inf, np.float32("nan")]) == [None, None, None]


def test_numbers_share_a_line_and_text_is_untouched(tmp_path):
    report = {"losses": [1.0, 2.5e-7, float("nan"), -3], "empty": [], "config": Outer(), "names": ["a", "b"]}
    write_report(tmp_path / "r.json", report)
    text = (tmp_path / "r.json").read_text(encoding="utf-8")
    assert "[1.0, 2.5e-07, null, -3]" in text
    assert text.endswith("}\n")
    assert json.loads(text) == to_json(report)
