"""Training of the learned prior: a run that goes on equals an unbroken one, and what it writes is a prior."""

import dataclasses
import shutil

import numpy as np
import pytest
import scipy.ndimage

from experiments import train_prior, training
from jaxdeblur.errors import InputError

CONFIG = train_prior.TrainConfig(
    denoiser_steps=2, stage_steps=2, num_stages=1, batch_size=2, stage_batch_size=1, crop=32, kernel_size=9
)


@pytest.fixture(scope="module")
def images():
    noise = np.random.default_rng(0).random((2, 80, 90))
    return [np.clip(scipy.ndimage.gaussian_filter(one, 1.5) * 4 - 1.5, 0, 1).astype(np.float32) for one in noise]


@pytest.mark.slow
def test_a_run_that_goes_on_equals_an_unbroken_one(images, tmp_path):
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    written = train_prior.train(CONFIG, images, unbroken)
    resumed.mkdir()
    shutil.copy(unbroken / "denoiser.msgpack", resumed)
    again = train_prior.train(CONFIG, images, resumed)
    with np.load(written) as first, np.load(again) as second:
        assert set(first) == set(second)
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
        assert first["stage_std"].shape == (CONFIG.num_stages,)
        assert 0 < first["stage_std"][0] < 1
    with pytest.raises(InputError, match="other settings"):
        train_prior.train(dataclasses.replace(CONFIG, num_stages=2), images, unbroken)
    (unbroken / "denoiser.msgpack").write_bytes(b"damaged")
    with pytest.raises(InputError, match="another --output_dir"):
        train_prior.train(CONFIG, images, unbroken)


def test_examples_show_what_the_kernel_makes_of_the_sharp_image(images):
    sharp, blurry, kernel, std, start = train_prior.blurred_example(np.random.default_rng(3), images, 40, CONFIG.kernel_size)
    assert sharp.shape == (48, 48)
    assert blurry.shape == (40, 40)
    assert start.shape == sharp.shape
    assert kernel.shape == (9, 9)
    assert kernel.sum() == pytest.approx(1.0, abs=1e-5)
    assert 0 < std < 0.1
    assert np.std(blurry - sharp[4:-4, 4:-4]) > std


def test_images_that_are_too_small_are_a_one_line_error(tmp_path):
    import imageio.v3 as iio

    iio.imwrite(tmp_path / "small.png", np.zeros((40, 40), np.uint8))
    with pytest.raises(InputError, match="no image of 64 or more pixels"):
        training.read_images(str(tmp_path), 64)
    assert len(training.read_images(str(tmp_path), 32)) == 1
