"""Configurations and runs read back from reports."""

import json

import pytest

from jaxdeblur.config import SkipNetConfig, StoppingConfig
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


# As version 0.1.0 wrote them, before the code was laid out in rooms: `fast` with a softness of its own, and a deep prior.
OLD_REPORT = """
{
  "input": {"file": "photo.png", "path": "../photo.png", "width": 128, "height": 112, "channels": 1,
            "sample_type": "uint8", "alpha": false},
  "outputs": ["photo_deblurred.png"],
  "version": "0.1.0",
  "jax_version": "0.10.2",
  "seed": 3,
  "config": {
    "name": "fast",
    "kernel_size": 21,
    "initialiser": {
      "gradient_weights": [0.002, 0.004], "support_shares": [1.0, 0.7], "kernel_ridge": 2.0, "level_iterations": 5,
      "guess_iterations": 20, "num_finalists": 3, "finalist_iterations": 60, "refine_iterations": 120, "fine_iterations": 40,
      "noise_variance": 1e-05, "first_noise_variance": 3e-05, "camera_blur_std": 0.5, "thinness_weight": 0.7,
      "guess_side": 300, "refine_side": 512,
      "image_side": 1280
    },
    "fit": {
      "image_generator": {
        "name": "skip", "num_scales": 5, "channels": 32, "skip_channels": 16, "latent_channels": 8, "latent_scale": 0.1,
        "non_local": true, "non_local_channels": 64, "negative_slope": 0.2
      },
      "kernel_generator": {"name": "mlp", "latent_size": 200, "latent_scale": 0.1, "hidden_sizes": [1000]},
      "num_iterations": 600,
      "loss_intervals": [{"start": 0, "terms": [["mse", 1.0]]}, {"start": 60, "terms": [["one_minus_ssim", 1.0]]}],
      "num_samples": 1, "input_noise_std": [[0, 0.001]], "dropout_rate": [[0, 0.0]], "kernel_input_noise_std": [[0, 0.0]],
      "kernel_dropout_rate": [[0, 0.0]], "image_learning_rate": 0.01, "kernel_learning_rate": 0.0001,
      "decay_steps": [240, 360, 480], "decay_rate": 0.5, "update": "joint",
      "stopping": {"criterion": "error", "patience": 30, "from_step": 150, "window": 100}, "chunk_size": 50
    },
    "num_restarts": 2,
    "teacher": {"name": "dmphn", "weights": null, "kernel_source": "classical"},
    "final": "sparse",
    "nonblind": {"sparse_weight": 0.0001, "tile_side": 1280},
    "num_posterior_samples": 0,
    "smallest_noise_std": 0.005
  },
  "known_kernel": false
}
"""


def test_a_report_of_the_old_layout_still_tells_its_run(tmp_path):
    path = tmp_path / "photo_report.json"
    path.write_text(OLD_REPORT)
    saved = read_saved_run(path)
    assert saved.seed == 3
    assert saved.config.kernel_size == 21
    assert saved.config.initialiser.softness_stds == (0.5,)
    assert saved.config.initialiser.gradient_weights == (2e-3, 4e-3)
    assert saved.config.fit.image_generator == SkipNetConfig(channels=32)
    assert saved.config.fit.loss_intervals[1].terms == (("one_minus_ssim", 1.0),)
    assert saved.config.fit.stopping == StoppingConfig(patience=30, from_step=150)
    assert saved.config.nonblind.tile_side == 1280
    assert saved.config.teacher.name == "dmphn"
    assert saved.config.smallest_noise_std == 0.005
    assert config_from_json(to_json(saved.config)) == saved.config


def test_a_field_under_both_of_its_names_is_refused(tmp_path, report):
    both = to_json(PRESETS["fast"])
    both["initialiser"]["camera_blur_std"] = 0.4
    path = tmp_path / "photo_report.json"
    path.write_text(json.dumps(report | {"config": both}))
    with pytest.raises(InputError, match="camera_blur_std"):
        read_saved_run(path)


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
