import math
import time

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
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
    difference = (moved - inner).reshape(len(inner), -1)
    np.testing.assert_allclose(got.spectral_error, np.linalg.norm(difference, 2), rtol=1e-4)


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
    assert got.spectral_error == 0.0
    assert metrics.error_ratio(image, image, image) == 1.0
    assert metrics.error_ratio(image, image, image, of_squares=True) == 1.0


@pytest.mark.parametrize("shift", [(0.25, 0.0), (-9.75, 10.0), (10.0, -10.0), (3.5, 7.25)])
def test_known_shift_is_recovered_to_a_quarter_pixel(shift):
    big = smooth_image(5, (120, 130), sigma=2.5)
    rows, columns = np.mgrid[20:100, 20:110].astype(float)
    sharp = scipy.ndimage.map_coordinates(big, [rows, columns], order=3)
    restored = scipy.ndimage.map_coordinates(big, [rows - shift[0], columns - shift[1]], order=3)
    assert metrics.aligned_metrics(restored, sharp).shift == shift


@pytest.mark.parametrize("shift", [(0.6, -1.9), (2.13, 0.38), (-7.7, 5.45)])
def test_any_shift_is_recovered_to_within_a_quarter_pixel(shift):
    big = smooth_image(15, (120, 130), sigma=2.5)
    rows, columns = np.mgrid[20:100, 20:110].astype(float)
    sharp = scipy.ndimage.map_coordinates(big, [rows, columns], order=3)
    restored = scipy.ndimage.map_coordinates(big, [rows - shift[0], columns - shift[1]], order=3)
    found = metrics.aligned_metrics(restored, sharp).shift
    assert max(abs(a - b) for a, b in zip(found, shift, strict=True)) <= 0.25


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


def slow_ssim_parts(x, y):
    """Means of luminance, contrast and structure over the windows, each window by itself."""
    offsets = np.arange(11) - 5
    window = np.exp(-0.5 * (offsets[:, None] ** 2 + offsets[None, :] ** 2) / 1.5**2)
    window /= window.sum()

    def statistics(image):
        blocks = np.lib.stride_tricks.sliding_window_view(image, (11, 11))
        mean = np.einsum("ijkl,kl->ij", blocks, window)
        centred = blocks - mean[..., None, None]
        return mean, centred

    (mean_x, centred_x), (mean_y, centred_y) = statistics(x), statistics(y)
    spread_x = np.sqrt(np.einsum("ijkl,kl->ij", centred_x**2, window))
    spread_y = np.sqrt(np.einsum("ijkl,kl->ij", centred_y**2, window))
    together = np.einsum("ijkl,kl->ij", centred_x * centred_y, window)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast = (2 * spread_x * spread_y + c2) / (spread_x**2 + spread_y**2 + c2)
    structure = (together + c2 / 2) / (spread_x * spread_y + c2 / 2)
    return luminance.mean(), contrast.mean(), structure.mean()


def slow_multi_scale_ssim(x, y):
    taps = np.array([0.0378284555, -0.0238494650, -0.1106244044, 0.3774028556, 0.8526986790])
    taps = np.concatenate([taps, taps[-2::-1]])
    filter_2d = np.outer(taps, taps) / taps.sum() ** 2
    result = 1.0
    for weight in (0.0448, 0.2856, 0.3001, 0.2363, 0.1333):
        luminance, contrast, structure = slow_ssim_parts(x, y)
        result *= (contrast * structure) ** weight
        x, y = (
            scipy.signal.convolve2d(np.pad(image, 4, mode="symmetric"), filter_2d, mode="valid")[::2, ::2] for image in (x, y)
        )
    return result * luminance**0.1333


def slow_trajectory_protocol(restored, truths):
    """Köhler et al.'s protocol with the whole-pixel shift found by trying all of them in turn."""
    psnrs, mssims = [], []
    for truth in truths:
        scaled = restored * np.sum(truth * restored) / np.sum(restored * restored)
        shifts = [(dy, dx) for dy in range(-10, 11) for dx in range(-10, 11)]
        dy, dx = max(shifts, key=lambda shift: np.sum(np.roll(scaled, shift, (0, 1)) * truth))
        mask = np.roll(np.ones_like(truth), (dy, dx), (0, 1))
        for axis, step in enumerate((dy, dx)):
            gone = np.s_[:step] if step >= 0 else np.s_[step:]
            mask[(slice(None),) * axis + (gone,)] = 0.0
        moved, seen = np.roll(scaled, (dy, dx), (0, 1)) * mask, truth * mask
        psnrs.append(skimage.metrics.peak_signal_noise_ratio(seen, moved, data_range=1.0))
        mssims.append(slow_multi_scale_ssim(seen, moved))
    return max(psnrs), max(mssims), int(np.argmax(psnrs))


def test_trajectory_metrics_equal_the_slow_protocol():
    big = smooth_image(16, (200, 205))
    noise = np.random.default_rng(17).normal(size=(180, 190))
    truths = [big[i : i + 180, j : j + 190] for i, j in [(3, 4), (9, 7), (10, 11)]]
    restored = 0.8 * big[12:192, 4:194] + 0.02 * noise
    got = metrics.trajectory_metrics(restored, iter(truths))
    best, multi, index = slow_trajectory_protocol(restored, truths)
    assert got.psnr == pytest.approx(best, rel=1e-9)
    assert got.mssim == pytest.approx(multi, abs=1e-6)
    assert got.best == index
    assert got.ssim < got.mssim
    assert metrics.multi_scale_ssim(restored, truths[0]) == pytest.approx(slow_multi_scale_ssim(restored, truths[0]), abs=1e-6)


def test_a_truth_of_the_trajectory_itself_is_perfect():
    truths = [smooth_image(seed, (176, 180)) for seed in (18, 19, 20)]
    got = metrics.trajectory_metrics(truths[1], truths)
    assert (got.psnr, got.best) == (math.inf, 1)
    assert got.mssim == pytest.approx(1.0)
    assert metrics.trajectory_metrics(np.zeros((176, 180)), truths).psnr < 20.0


def test_trajectories_that_cannot_be_compared_are_refused():
    with pytest.raises(InputError, match="at least one"):
        metrics.trajectory_metrics(np.zeros((180, 180)), [])
    with pytest.raises(InputError, match="five scales"):
        metrics.trajectory_metrics(np.zeros((175, 180)), [np.zeros((175, 180))])
    with pytest.raises(InputError, match="same size"):
        metrics.trajectory_metrics(np.zeros((180, 180)), [np.zeros((180, 181))])


@pytest.mark.parametrize(("shape", "seconds"), [((255, 255), 0.1), ((1024, 700, 3), 2.0)])
def test_speed(shape, seconds):
    first, second = smooth_image(13, shape), smooth_image(14, shape)
    # The processor's time and the best of a few, as the machine may be busy with something else.
    took = []
    for _ in range(3):
        start = time.process_time()
        metrics.aligned_metrics(first, second)
        took.append(time.process_time() - start)
    assert min(took) < seconds
