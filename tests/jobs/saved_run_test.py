"""Configurations and runs read back from reports."""

import json

import pytest

from jaxdeblur.errors import InputError
from jaxdeblur.jobs.report import to_json
from jaxdeblur.jobs.saved_run import config_from_json, read_saved_run, version_notes
from jaxdeblur.presets import PRESETS
from jaxdeblur.version import __version__

REFUSED = {
    "unknown field": {"foo": 1},
    "unknown network": {"fit": {"image_generator": {"name": "resnet"}}},
    "wrong type": {"kernel_size": "large"},
    "no object": 3,
    "unknown term": {"fit": {"loss_intervals": [{"start": 0, "terms": [["nope", 1.0]]}]}},
    "out of range": {"fit": {"num_iterations": 0}},
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_the_way_through_json(name):
    again = config_from_json(json.loads(json.dumps(to_json(PRESETS[name]))))
    assert again == PRESETS[name]
    assert hash(again) == hash(PRESETS[name])


@pytest.fixture
def report():
    return {
        "config": to_json(PRESETS["mc"]),
        "seed": 5,
        "input": {"path": "../photo.png"},
        "known_kernel": True,
        "version": __version__,
        "jax_version": "0.0.1",
    }


def test_a_report_tells_what_made_its_result(tmp_path, report):
    path = tmp_path / "deblurred" / "photo_report.json"
    path.parent.mkdir()
    path.write_text(json.dumps(report))
    saved = read_saved_run(path)
    assert saved.config == PRESETS["mc"]
    assert saved.seed == 5
    assert saved.image.resolve() == tmp_path / "photo.png"
    assert saved.kernel == path.with_name("photo_kernel.npy")
    notes = version_notes(saved)
    assert len(notes) == 1
    assert "jax 0.0.1" in notes[0]


@pytest.mark.parametrize("reason", REFUSED)
def test_reports_that_make_no_sense_are_refused_in_one_line(tmp_path, report, reason):
    path = tmp_path / "photo_report.json"
    path.write_text(json.dumps(report | {"config": REFUSED[reason]}))
    with pytest.raises(InputError) as caught:
        read_saved_run(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": {}}', "\x00\xff"])
def test_files_that_are_no_reports_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "photo_report.json"
    path.write_text(text)
    with pytest.raises(InputError, match="report") as caught:
        read_saved_run(path)
    assert "\n" not in str(caught.value)


def test_a_missing_report_is_told_of(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_saved_run(tmp_path / "none.json")
