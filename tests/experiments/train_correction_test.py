"""Training of the kernel correction: a run that goes on equals an unbroken one, and the loss is what a kernel costs."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from experiments import train_correction, training_kernels
from jaxdeblur.classical import correction
from jaxdeblur.errors import InputError

CONFIG = train_correction.TrainConfig(num_estimates=1, num_spoiled=1, views=1, num_steps=2, batch_size=1, crop=96)


@pytest.fixture(scope="module")
def images():
    noise = np.random.default_rng(0).random((2, 150, 160))
    return [np.clip(scipy.ndimage.gaussian_filter(one, 1.5) * 4 - 1.5, 0, 1).astype(np.float32) for one in noise]


@pytest.fixture(scope="module")
def truth():
    return training_kernels.true_kernel(np.random.default_rng(5))


@pytest.mark.slow
def test_a_run_that_goes_on_equals_an_unbroken_one(images, tmp_path):
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    written = train_correction.train(CONFIG, images, unbroken)
    shutil.copytree(unbroken / "estimates", resumed / "estimates")
    again = train_correction.train(CONFIG, images, resumed)
    fresh = correction.initial_weights(train_correction.jax.random.key(0))
    with np.load(written) as first, np.load(again) as second:
        assert {name: first[name].shape for name in first} == {name: value.shape for name, value in fresh.items()}
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
    with np.load(next((unbroken / "examples").iterdir())) as example:
        assert example["blurry"].shape == (96, 96)
        assert example["start"].shape == example["sharp"].shape == (138, 138)
        assert example["truth"].shape == (63, 63)
    (unbroken / "correction.msgpack").write_bytes(b"damaged")
    with pytest.raises(InputError, match="another --output_dir"):
        train_correction.train(CONFIG, images, unbroken)


def test_the_true_kernel_is_moved_onto_the_estimate(truth):
    estimate = np.roll(truth, (3, -2), (0, 1))
    moved, shift = training_kernels.moved_onto(truth, estimate)
    np.testing.assert_allclose(shift, [3, -2])
    np.testing.assert_allclose(moved, np.pad(estimate, 10), atol=1e-6)


def test_white_noise_has_its_variance_at_all_frequencies():
    noise = 0.1 * np.random.default_rng(0).normal(size=(300, 300))
    found = train_correction.power(noise)
    assert found.shape == (128, 65)
    np.testing.assert_allclose(np.median(found), 0.01, rtol=0.1)


def test_a_worse_kernel_costs_more(truth):
    power = train_correction.power(scipy.ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(200, 200)), 1.0))
    canvas, noise_std = jnp.pad(jnp.asarray(truth), 10), jnp.float32(0.005)
    wider = [jnp.asarray(scipy.ndimage.gaussian_filter(truth, std) if std else truth) for std in (0.0, 0.5, 1.0)]
    gaps = [float(train_correction.gap(kernel, canvas, jnp.asarray(power), noise_std)) for kernel in wider]
    assert gaps[0] == pytest.approx(0.0, abs=1e-4)
    assert 0.0 < gaps[1] < gaps[2]


def test_true_kernels_fit_their_support(truth):
    for seed in range(20):
        kernel = training_kernels.true_kernel(np.random.default_rng(seed))
        assert kernel.shape == (correction.SUPPORT,) * 2
        assert kernel.min() >= 0.0
        assert kernel.sum() == pytest.approx(1.0, abs=1e-5)


def test_spoiled_kernels_are_kernels_and_cost_something(truth):
    power = train_correction.power(scipy.ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(200, 200)), 1.0))
    gaps = []
    for seed in range(12):
        spoilt = training_kernels.spoiled(np.random.default_rng(seed), truth)
        assert spoilt.shape == truth.shape
        assert spoilt.min() >= 0.0
        assert spoilt.sum() == pytest.approx(1.0, abs=1e-5)
        canvas, _ = training_kernels.moved_onto(truth, spoilt)
        cost = train_correction.gap(jnp.asarray(spoilt), jnp.asarray(canvas), jnp.asarray(power), jnp.float32(0.005))
        gaps.append(float(cost))
    assert min(gaps) > 0.0
    assert 1.0 < np.median(gaps) < 20.0


@pytest.mark.slow
def test_an_estimate_from_a_jpeg_knows_its_quality(images):
    config = train_correction.TrainConfig(crop=96)
    kinds = [training_kernels.spoil(number, seed=config.seed) for number in range(40)]
    qualities = [int(kind["quality"]) for kind in kinds]
    assert 0 in qualities
    compressed = kinds[int(np.argmax(np.array(qualities) > 0))]
    assert 75 <= compressed["quality"] < 96
    made = train_correction.example(config, images, (0, 0), compressed)
    assert made["noise_std"] >= 0.005
    assert made["blurry"].shape == (96, 96)


def test_a_blur_that_varies_keeps_the_kernel_near(images):
    config = train_correction.TrainConfig(crop=96)
    found = training_kernels.spoil(0, seed=config.seed)
    plain, varied = (train_correction.example(config, images, (0, 0), found, varying_share=share) for share in (0.0, 1.0))
    assert varied["truth"].sum() == pytest.approx(1.0, abs=0.02)
    likeness = np.sum(plain["truth"] * varied["truth"]) / np.linalg.norm(plain["truth"]) / np.linalg.norm(varied["truth"])
    assert 0.5 < likeness < 0.9999
    assert np.abs(plain["blurry"] - varied["blurry"]).max() > 1 / 255
