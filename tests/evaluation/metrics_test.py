import math
import time

import numpy as np
import pytest
import scipy.ndimage
import skimage.metrics

from jaxdeblur.errors import InputError
from jaxdeblur.evaluation import metrics


def smooth_image(seed, shape, sigma=1.5):
    noise = np.random.default_rng(seed).normal(size=shape)
    image = scipy.ndimage.gaussian_filter(noise, (sigma, sigma, 0)[: len(shape)])
    return (image - image.min()) / (image.max() - image.min())


def slow_protocol(restored, sharp, crop, max_shift):
    """The protocol word for word: interpolate at each quarter-pixel shift, keep the smallest squared error."""
    rows, columns = sharp.shape[:2]
    inner = sharp[crop : rows - crop, crop : columns - crop]
    best = (math.inf, None, None)
    for dy in np.arange(-max_shift, max_shift + 0.25, 0.25):
        for dx in np.arange(-max_shift, max_shift + 0.25, 0.25):
            grid = np.mgrid[crop : rows - crop, crop : columns - crop].astype(float)
            grid += np.array([dy, dx])[:, None, None]
            channels = np.atleast_3d(restored)
            moved = np.stack(
                [scipy.ndimage.map_coordinates(channels[..., c], grid, order=1) for c in range(channels.shape[-1])], -1
            ).reshape(inner.shape)
            error = float(np.sum((moved - inner) ** 2))
            if error < best[0]:
                best = (error, (float(dy), float(dx)), moved)
    return best[0], best[1], best[2], inner


def reference_ssim(x, y):
    return skimage.metrics.structural_similarity(
        x,
        y,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=-1 if x.ndim == 3 else None,
    )


@pytest.mark.parametrize("shape", [(45, 52), (44, 41, 3)])
@pytest.mark.parametrize("true_shift", [(1.3, -2.1), (-3.0, 2.75)])
def test_equals_slow_protocol(shape, true_shift):
    sharp = smooth_image(0, shape)
    offset = (*true_shift, 0.0)[: len(shape)]
    restored = scipy.ndimage.shift(sharp, offset, order=3, mode="nearest")
    restored = restored + np.random.default_rng(1).normal(scale=0.02, size=shape)
    error, shift, moved, inner = slow_protocol(restored, sharp, 8, 4)

    got = metrics.aligned_metrics(restored, sharp, crop=8, max_shift=4)

    assert got.shift == shift
    np.testing.assert_allclose(got.squared_error, error, rtol=1e-9)
    np.testing.assert_allclose(got.psnr, skimage.metrics.peak_signal_noise_ratio(inner, moved, data_range=1.0), rtol=1e-9)
    np.testing.assert_allclose(got.ssim, reference_ssim(moved, inner), atol=1e-6)


def test_all_shift_errors_are_exact():
    sharp, restored = smooth_image(2, (20, 23)), smooth_image(3, (26, 29))
    shifts = np.arange(-12, 13) / 4
    errors = metrics._shift_errors(restored, sharp, metrics._interpolation_weights(shifts, 3))
    for i, dy in enumerate(shifts):
        for j, dx in enumerate(shifts):
            grid = np.mgrid[0:20, 0:23] + np.array([dy + 3, dx + 3])[:, None, None]
            moved = scipy.ndimage.map_coordinates(restored, grid, order=1)
            np.testing.assert_allclose(errors[i, j], np.sum((moved - sharp) ** 2), rtol=1e-9)


def test_identical_images_have_infinite_psnr():
    image = smooth_image(4, (64, 70, 3))
    got = metrics.aligned_metrics(image, image)
    assert (got.psnr, got.shift, got.squared_error) == (math.inf, (0.0, 0.0), 0.0)
    assert got.ssim == pytest.approx(1.0)
    assert metrics.psnr(image, image) == math.inf
    assert metrics.error_ratio(image, image, image) == 1.0


@pytest.mark.parametrize("shift", [(0.25, 0.0), (-9.75, 10.0), (10.0, -10.0), (3.5, 7.25)])
def test_known_shift_is_recovered_to_a_quarter_pixel(shift):
    big = smooth_image(5, (120, 130), sigma=2.5)
    rows, columns = np.mgrid[20:100, 20:110].astype(float)
    sharp = scipy.ndimage.map_coordinates(big, [rows, columns], order=3)
    restored = scipy.ndimage.map_coordinates(big, [rows - shift[0], columns - shift[1]], order=3)
    assert metrics.aligned_metrics(restored, sharp).shift == shift


def test_flat_restoration_stays_unshifted():
    assert metrics.aligned_metrics(np.full((60, 60), 0.5), smooth_image(6, (60, 60))).shift == (0.0, 0.0)


def test_unaligned_metrics_equal_the_reference():
    x, y = smooth_image(7, (40, 37, 3)), smooth_image(8, (40, 37, 3))
    assert metrics.psnr(x, y) == pytest.approx(skimage.metrics.peak_signal_noise_ratio(x, y, data_range=1.0))
    assert metrics.ssim(x, y) == pytest.approx(reference_ssim(x, y), abs=1e-6)


def test_small_images_get_a_smaller_margin():
    sharp = smooth_image(9, (32, 32))
    restored = np.roll(sharp, (1, 2), (0, 1))
    got = metrics.aligned_metrics(restored, sharp)
    assert got.shift == (1.0, 2.0)
    assert got.psnr == math.inf


def test_bad_pairs_are_refused_in_one_line():
    for first, second in [((40, 40), (40, 41)), ((40, 40), (40, 40, 3)), ((20, 40), (20, 40))]:
        with pytest.raises(InputError) as error:
            metrics.aligned_metrics(np.zeros(first), np.zeros(second))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError):
        metrics.ssim(np.zeros((10, 40)), np.zeros((10, 40)))


def test_error_ratio_of_norms_and_of_squares():
    sharp = smooth_image(10, (80, 80))
    pattern = np.random.default_rng(11).normal(size=sharp.shape)
    ratio = metrics.error_ratio(sharp + 0.02 * pattern, sharp + 0.01 * pattern, sharp)
    assert ratio == pytest.approx(2.0)
    squares = metrics.error_ratio(sharp + 0.02 * pattern, sharp + 0.01 * pattern, sharp, of_squares=True)
    assert squares == pytest.approx(4.0)
    assert metrics.error_ratio(sharp + 0.1 * pattern, sharp, sharp) == math.inf


def test_kernel_similarity_ignores_shift_scale_and_padding():
    kernel = np.random.default_rng(12).random((7, 5))
    padded = np.pad(3.0 * kernel, ((4, 1), (0, 6)))
    assert metrics.kernel_similarity(kernel, padded) == pytest.approx(1.0)
    turned = padded[::-1, ::-1]
    assert metrics.kernel_similarity(kernel, turned) < 0.999
    assert metrics.kernel_similarity(kernel, turned, either_orientation=True) == pytest.approx(1.0)
    with pytest.raises(InputError):
        metrics.kernel_similarity(kernel, np.zeros((3, 3)))


@pytest.mark.parametrize(("shape", "seconds"), [((255, 255), 0.1), ((1024, 700, 3), 2.0)])
def test_speed(shape, seconds):
    first, second = smooth_image(13, shape), smooth_image(14, shape)
    # The best of a few, as the machine may be busy with something else.
    took = []
    for _ in range(3):
        start = time.perf_counter()
        metrics.aligned_metrics(first, second)
        took.append(time.perf_counter() - start)
    assert min(took) < seconds
