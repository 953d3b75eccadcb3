"""How good a restoration is: PSNR, SSIM and error ratio up to a shift, and the likeness of two kernels.

Blind deblurring knows the image only up to a shift (kernel and image move in opposite directions), so every image metric
here is taken after the best shift. The protocol is Levin et al.'s, "Understanding and evaluating blind deconvolution
algorithms" (CVPR 2009), https://doi.org/10.1109/CVPR.2009.5206815: cut a margin off the sharp image, try every shift of the
restored one in quarter-pixel steps by bilinear interpolation, keep the one of smallest squared error. The exception is
Köhler et al.'s set, whose authors have a protocol of their own (:func:`trajectory_metrics`).

All of it is host-side NumPy in float64: metrics are computed once per image, and sums over a million pixels that nearly
cancel want the digits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import chex
import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.ndimage
import scipy.sparse.linalg

from jaxdeblur.errors import InputError

_STEPS_PER_PIXEL = 4
_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
# Below this side not even a margin of a quarter on each side leaves room for one SSIM window.
_SMALLEST_SIDE = 21
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# The coarsest of five scales must hold one SSIM window.
SMALLEST_MULTI_SCALE_SIDE = _SSIM_WINDOW * 2 ** (len(_SCALE_WEIGHTS) - 1)
# Analysis low-pass filter of the biorthogonal 9/7 wavelet, from its centre outwards.
_WAVELET_TAPS = (0.85269867900889, 0.37740285561283, -0.11062440441844, -0.02384946501956, 0.03782845550726)

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class AlignedMetrics:
    """Likeness of a restored image to the sharp one at the best shift.

    Attributes:
      psnr: peak signal-to-noise ratio in dB for a peak of 1, over all channels; infinite for identical images.
      ssim: structural similarity, the mean over channels.
      shift: (rows, columns) in pixels such that ``restored[p + shift]`` matches ``sharp[p]``.
      squared_error: sum of squared differences over the compared region and all channels.
      spectral_error: largest singular value of the difference there (channels side by side): what MATLAB's ``norm`` of a
        matrix is, and so the error in the script behind SelfDeblur's published error ratios.
    """

    psnr: float
    ssim: float
    shift: tuple[float, float]
    squared_error: float
    spectral_error: float


def psnr(restored: npt.ArrayLike, sharp: npt.ArrayLike) -> float:
    """Peak signal-to-noise ratio ``−10·log10(mean((x̂ − x)²))`` in dB of two images in [0, 1], without any alignment.

    Args:
      restored: ``[H, W]`` or ``[H, W, C]``.
      sharp: the same shape.

    Returns:
      dB; infinity for identical images.

    Raises:
      InputError: the images differ in shape.
    """
    first, second = _checked_pair(restored, sharp)
    return _psnr(float(np.sum((first - second) ** 2)), first.size)


def ssim(restored: npt.ArrayLike, sharp: npt.ArrayLike) -> float:
    """Mean structural similarity of two images in [0, 1], without any alignment.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004),
    https://doi.org/10.1109/TIP.2003.819861: 11×11 Gaussian window of σ = 1.5, only windows wholly inside the image, L = 1,
    K = (0.01, 0.03), population statistics. Several channels: the mean of their values.

    Args:
      restored: ``[H, W]`` or ``[H, W, C]``.
      sharp: the same shape.

    Returns:
      The similarity, at most 1.

    Raises:
      InputError: the images differ in shape or are smaller than the window.
    """
    first, second = _checked_pair(restored, sharp)
    if min(first.shape[:2]) < _SSIM_WINDOW:
        raise InputError(f"images of {_size(first)} pixels are too small for SSIM: give at least {_SSIM_WINDOW} per side")
    return _ssim(first, second)


def aligned_metrics(restored: npt.ArrayLike, sharp: npt.ArrayLike, *, crop: int = 15, max_shift: int = 10) -> AlignedMetrics:
    """PSNR, SSIM and squared error at the best of all quarter-pixel shifts within ``±max_shift``.

    An image interpolated bilinearly at a shift is a weighted sum of four whole-pixel shifts of it, so its squared error
    against the sharp image is a quadratic form in the restored image's correlations with the sharp one (one FFT) and with
    itself moved by at most one pixel (sums over a sliding window). All shifts are therefore evaluated exactly, without
    interpolating a single image; only the best one is then interpolated.

    Args:
      restored: ``[H, W]`` or ``[H, W, C]``, in [0, 1]; compared as it is, not clipped.
      sharp: the same shape. All channels share one shift.
      crop: pixels cut from each side of the sharp image; at most a quarter of the shorter side is cut.
      max_shift: largest shift tried along each axis, in pixels; at most ``crop``, so that nothing outside is needed.

    Returns:
      See :class:`AlignedMetrics`.

    Raises:
      InputError: the images differ in shape or are smaller than 21 pixels along a side.
    """
    first, second = _checked_pair(restored, sharp)
    side = min(first.shape[:2])
    if side < _SMALLEST_SIDE:
        raise InputError(f"images of {_size(first)} pixels are too small to compare: give at least {_SMALLEST_SIDE} per side")
    crop = min(crop, side // 4)
    max_shift = min(max_shift, crop)

    inner = second[crop : second.shape[0] - crop, crop : second.shape[1] - crop]
    margin = crop - max_shift
    outer = first[margin : first.shape[0] - margin, margin : first.shape[1] - margin]
    steps = np.arange(-max_shift * _STEPS_PER_PIXEL, max_shift * _STEPS_PER_PIXEL + 1)
    shifts = steps / _STEPS_PER_PIXEL
    errors = _shift_errors(outer, inner, _interpolation_weights(shifts, max_shift))

    # Ties up to rounding (flat images) go to the smallest shift.
    rounding = 1e-12 * inner.size
    distance = np.hypot(*np.meshgrid(shifts, shifts, indexing="ij"))
    row, column = np.unravel_index(np.argmin(np.where(errors <= errors.min() + rounding, distance, np.inf)), errors.shape)
    shift = (float(shifts[row]), float(shifts[column]))
    aligned = _interpolate(outer, (shift[0] + max_shift, shift[1] + max_shift), inner.shape[:2])
    difference = (aligned - inner).reshape(len(inner), -1)
    squared_error = float(np.sum(difference**2))
    return AlignedMetrics(
        psnr=_psnr(squared_error, inner.size),
        ssim=_ssim(aligned, inner),
        shift=shift,
        squared_error=squared_error,
        spectral_error=_largest_singular_value(difference),
    )


@dataclasses.dataclass(frozen=True)
class TrajectoryMetrics:
    """Likeness of a restored image to the best of the sharp ones along the camera's trajectory, each metric by itself.

    Attributes:
      psnr: peak signal-to-noise ratio in dB for a peak of 1.
      ssim: structural similarity.
      mssim: multi-scale structural similarity, what the set's tables call MSSIM.
      best: index of the sharp image of the largest PSNR.
    """

    psnr: float
    ssim: float
    mssim: float
    best: int


def trajectory_metrics(restored: npt.ArrayLike, truths: Iterable[npt.ArrayLike]) -> TrajectoryMetrics:
    """PSNR, SSIM and multi-scale SSIM, the largest over all sharp images that the shaking camera saw.

    Köhler, Hirsch, Mohler, Schölkopf, Harmeling: "Recording and playback of camera shake: benchmarking blind deconvolution
    with a real-world database" (ECCV 2012), https://doi.org/10.1007/978-3-642-33786-4_3, as its evaluation script has it: for
    each sharp image x the restored z is scaled by ``⟨x, z⟩ / ⟨z, z⟩``, moved by the whole-pixel shift of largest circular
    cross-correlation, and what moves in from outside is black in both images.

    Args:
      restored: ``[H, W]`` in [0, 1].
      truths: the sharp images, each of the same shape; taken one at a time.

    Returns:
      See :class:`TrajectoryMetrics`.

    Raises:
      InputError: there is no sharp image, one differs in shape, or a side is below 176 pixels, too small for five scales.
    """
    scores = [_trajectory_scores(*_checked_pair(restored, truth)) for truth in truths]
    if not scores:
        raise InputError("no sharp image to compare with: give at least one")
    psnrs, ssims, mssims = zip(*scores, strict=True)
    return TrajectoryMetrics(psnr=max(psnrs), ssim=max(ssims), mssim=max(mssims), best=int(np.argmax(psnrs)))


def multi_scale_ssim(restored: npt.ArrayLike, sharp: npt.ArrayLike) -> float:
    """Multi-scale structural similarity of two images in [0, 1] over five scales, without any alignment.

    ``l₅^w₅ · Π_s c_s^w_s · r_s^w_s``, w = (.0448, .2856, .3001, .2363, .1333), of the means over the windows of luminance l,
    contrast c and structure r. Wang, Simoncelli, Bovik, "Multi-scale structural similarity for image quality assessment"
    (2003), https://doi.org/10.1109/ACSSC.2003.1292216. From scale to scale every second pixel is taken after the low-pass
    filter of the biorthogonal 9/7 wavelet, as in the MeTriX MuX package, whose MSSIM Köhler et al. use.

    Args:
      restored: ``[H, W]``, at least 176 pixels a side.
      sharp: the same shape.

    Returns:
      The similarity, at most 1; 0 where a scale's mean structure is not positive.

    Raises:
      InputError: the images differ in shape or are too small.
    """
    first, second = _checked_pair(restored, sharp)
    return _multi_scale_ssim(first, second)[1]


def error_ratio(
    restored: npt.ArrayLike,
    restored_known_kernel: npt.ArrayLike,
    sharp: npt.ArrayLike,
    *,
    of_squares: bool = False,
    crop: int = 15,
    max_shift: int = 10,
) -> float:
    """How much larger the error is than with the true kernel: ``‖x̂ − x‖ / ‖x̂_known − x‖``, both at their best shifts.

    Args:
      restored: the blind result, ``[H, W]`` or ``[H, W, C]``.
      restored_known_kernel: the result of a non-blind method given the true kernel, the same shape.
      sharp: the true image, the same shape.
      of_squares: the ratio of sums of squares, as Levin et al. defined it, instead of the ratio of norms.
      crop: as in :func:`aligned_metrics`.
      max_shift: as in :func:`aligned_metrics`.

    Returns:
      The ratio, infinite where only the known-kernel result is exact, 1 where both are.

    Raises:
      InputError: as :func:`aligned_metrics`.
    """
    blind = aligned_metrics(restored, sharp, crop=crop, max_shift=max_shift).squared_error
    known = aligned_metrics(restored_known_kernel, sharp, crop=crop, max_shift=max_shift).squared_error
    return ratio_of_errors(blind, known, of_squares=of_squares)


def ratio_of_errors(blind: float, known: float, *, of_squares: bool = False) -> float:
    """:func:`error_ratio` of two sums of squared differences, :attr:`AlignedMetrics.squared_error`, that are known already."""
    if known == 0.0:
        return 1.0 if blind == 0.0 else math.inf
    return blind / known if of_squares else math.sqrt(blind / known)


def kernel_similarity(kernel: npt.ArrayLike, true_kernel: npt.ArrayLike, *, either_orientation: bool = False) -> float:
    """Largest normalised cross-correlation of two kernels over all whole-pixel shifts, 1 for equal shapes.

    ``max_s Σ_p k(p)·k_true(p + s) / (‖k‖·‖k_true‖)``, Hu and Yang, "Good regions to deblur" (ECCV 2012),
    https://doi.org/10.1007/978-3-642-33715-4_5.

    Args:
      kernel: ``[h, w]``.
      true_kernel: ``[h', w']``; the sizes may differ.
      either_orientation: also try ``true_kernel`` turned by 180° and keep the better. Kernels saved by programs whose
        "convolution" is correlation are turned against true convolution, and Levin's files mix both.

    Returns:
      The similarity, in [0, 1] for non-negative kernels.

    Raises:
      InputError: one kernel is zero everywhere.
    """
    first, second = np.asarray(kernel, np.float64), np.asarray(true_kernel, np.float64)
    chex.assert_rank([first, second], 2)
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    if norm == 0.0:
        raise InputError("a kernel that is zero everywhere cannot be compared: give kernels with some mass")
    rows, columns = (a + b - 1 for a, b in zip(first.shape, second.shape, strict=True))
    shape = (scipy.fft.next_fast_len(rows, real=True), scipy.fft.next_fast_len(columns, real=True))
    candidates = [second, second[::-1, ::-1]] if either_orientation else [second]
    spectrum = np.conj(scipy.fft.rfft2(first, shape))
    return max(float(scipy.fft.irfft2(spectrum * scipy.fft.rfft2(other, shape), shape).max()) for other in candidates) / norm


def _checked_pair(restored: npt.ArrayLike, sharp: npt.ArrayLike) -> tuple[Array, Array]:
    first, second = np.asarray(restored, np.float64), np.asarray(sharp, np.float64)
    chex.assert_rank([first, second], {2, 3})
    if first.shape != second.shape:
        raise InputError(
            f"images of {_size(first)} and {_size(second)} pixels cannot be compared: give a reference of the same size"
        )
    return first, second


def _size(image: Array) -> str:
    return "×".join(str(side) for side in image.shape)


def _largest_singular_value(matrix: Array) -> float:
    """``‖matrix‖₂`` by Lanczos steps from a fixed start: far less work than a whole decomposition."""
    if not matrix.any():
        return 0.0
    start = np.random.default_rng(0).normal(size=min(matrix.shape))
    return float(scipy.sparse.linalg.svds(matrix, k=1, tol=1e-6, v0=start, return_singular_vectors=False)[0])


def _psnr(squared_error: float, count: int) -> float:
    return math.inf if squared_error == 0.0 else -10.0 * math.log10(squared_error / count)


def _ssim(first: Array, second: Array) -> float:
    luminance, contrast, structure = _ssim_maps(first, second)
    return float(np.mean(luminance * contrast * structure))


def _ssim_maps(first: Array, second: Array) -> tuple[Array, Array, Array]:
    """Luminance, contrast and structure in every window that lies wholly inside the images; SSIM is their product."""
    offsets = np.arange(_SSIM_WINDOW) - _SSIM_WINDOW // 2
    taps = np.exp(-0.5 * (offsets / _SSIM_SIGMA) ** 2)
    taps /= taps.sum()
    half = _SSIM_WINDOW // 2

    def window_mean(image: Array) -> Array:
        for axis in (0, 1):
            image = scipy.ndimage.correlate1d(image, taps, axis=axis)
        return image[half:-half, half:-half]

    mean_1, mean_2 = window_mean(first), window_mean(second)
    variance_1 = np.maximum(window_mean(first * first) - mean_1**2, 0.0)
    variance_2 = np.maximum(window_mean(second * second) - mean_2**2, 0.0)
    covariance = window_mean(first * second) - mean_1 * mean_2
    deviations = np.sqrt(variance_1 * variance_2)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_1 * mean_2 + c1) / (mean_1**2 + mean_2**2 + c1)
    contrast = (2 * deviations + c2) / (variance_1 + variance_2 + c2)
    structure = (2 * covariance + c2) / (2 * deviations + c2)
    return luminance, contrast, structure


def _multi_scale_ssim(first: Array, second: Array) -> tuple[float, float]:
    """SSIM and multi-scale SSIM of two images ``[H, W]``."""
    chex.assert_rank([first, second], 2)
    if min(first.shape) < SMALLEST_MULTI_SCALE_SIDE:
        raise InputError(
            f"images of {_size(first)} pixels are too small for five scales: give {SMALLEST_MULTI_SCALE_SIDE} or more per side"
        )
    single, product = 0.0, 1.0
    for scale, weight in enumerate(_SCALE_WEIGHTS):
        luminance, contrast, structure = _ssim_maps(first, second)
        if scale == 0:
            single = float(np.mean(luminance * contrast * structure))
        product *= (float(np.mean(contrast)) * max(float(np.mean(structure)), 0.0)) ** weight
        if scale == len(_SCALE_WEIGHTS) - 1:
            product *= float(np.mean(luminance)) ** weight
        first, second = _halved(first), _halved(second)
    return single, product


def _halved(image: Array) -> Array:
    taps = np.array([*_WAVELET_TAPS[:0:-1], *_WAVELET_TAPS])
    taps /= taps.sum()
    for axis in (0, 1):
        image = scipy.ndimage.correlate1d(image, taps, axis=axis, mode="reflect")
    return image[::2, ::2]


def _trajectory_scores(restored: Array, sharp: Array) -> tuple[float, float, float]:
    """PSNR, SSIM and multi-scale SSIM against one sharp image of a trajectory."""
    energy = float(np.sum(restored * restored))
    scaled = restored * (float(np.sum(sharp * restored)) / energy if energy > 0.0 else 1.0)
    spectrum = np.conj(scipy.fft.rfft2(scaled)) * scipy.fft.rfft2(sharp)
    peak = np.unravel_index(np.argmax(scipy.fft.irfft2(spectrum, sharp.shape)), sharp.shape)
    # Beyond half the image a circular shift is one in the other direction.
    shift = tuple(int((place + side // 2) % side - side // 2) for place, side in zip(peak, sharp.shape, strict=True))
    moved, seen = _moved(scaled, shift), _moved(np.ones_like(sharp), shift) * sharp
    single, multi = _multi_scale_ssim(moved, seen)
    return _psnr(float(np.sum((moved - seen) ** 2)), seen.size), single, multi


def _moved(image: Array, shift: tuple[int, ...]) -> Array:
    """``image`` moved down and right by whole pixels, zeros moving in."""
    moved = np.zeros_like(image)
    source = tuple(slice(max(-step, 0), side - max(step, 0)) for step, side in zip(shift, image.shape, strict=True))
    target = tuple(slice(max(step, 0), side - max(-step, 0)) for step, side in zip(shift, image.shape, strict=True))
    moved[target] = image[source]
    return moved


def _interpolation_weights(shifts: Array, max_shift: int) -> Array:
    """Row i: the weights by which linear interpolation at ``shifts[i]`` sums the whole-pixel shifts −M … M."""
    whole = np.arange(-max_shift, max_shift + 1)
    return np.maximum(0.0, 1.0 - np.abs(shifts[:, None] - whole[None, :]))


def _shift_errors(outer: Array, inner: Array, weights: Array) -> Array:
    """Squared error of ``outer`` interpolated at every pair of shifts, against ``inner``.

    Args:
      outer: restored image with ``2M`` more rows and columns than ``inner``.
      inner: cropped sharp image.
      weights: ``[S, 2M+1]`` of :func:`_interpolation_weights`.

    Returns:
      ``[S, S]`` for row × column shifts.
    """
    # Weights sum to one, so a common constant drops out; without it less is lost to cancellation.
    constant = inner.mean()
    outer, inner = outer - constant, inner - constant
    (rows, columns), count = inner.shape[:2], weights.shape[1]

    # correlation[a, b] = Σ_p inner[p] · outer[p + (a, b)]; wrap-around does not reach these (2M+1)² values.
    shape = (scipy.fft.next_fast_len(outer.shape[0], real=True), scipy.fft.next_fast_len(outer.shape[1], real=True))
    spectrum = np.conj(scipy.fft.rfft2(inner, shape, axes=(0, 1))) * scipy.fft.rfft2(outer, shape, axes=(0, 1))
    spectrum = spectrum.reshape(*spectrum.shape[:2], -1).sum(-1)
    correlation = scipy.fft.irfft2(spectrum, shape)[:count, :count]

    def window_sums(product: Array) -> Array:
        """Sums of ``product`` over every placement of a rows × columns window inside it."""
        product = product.reshape(*product.shape[:2], -1).sum(-1)
        total = np.cumsum(np.pad(product, ((1, 0), (0, 0))), axis=0)
        total = np.cumsum(np.pad(total[rows:] - total[:-rows], ((0, 0), (1, 0))), axis=1)
        return total[:, columns:] - total[:, :-columns]

    # The four whole-pixel shifts behind one interpolation differ by at most one pixel along each axis.
    same = window_sums(outer * outer)
    down = window_sums(outer[:-1] * outer[1:])
    right = window_sums(outer[:, :-1] * outer[:, 1:])
    diagonals = window_sums(outer[:-1, :-1] * outer[1:, 1:] + outer[:-1, 1:] * outer[1:, :-1])
    squares, neighbours = weights**2, weights[:, :-1] * weights[:, 1:]
    energy = squares @ same @ squares.T + 2 * (
        neighbours @ down @ squares.T + squares @ right @ neighbours.T + neighbours @ diagonals @ neighbours.T
    )
    return energy - 2 * weights @ correlation @ weights.T + np.sum(inner**2)


def _interpolate(image: Array, origin: tuple[float, float], shape: tuple[int, ...]) -> Array:
    """Bilinear samples of ``image`` at ``origin + (i, j)`` for ``(i, j)`` in ``shape``; all must lie inside the image."""
    for axis, (start, length) in enumerate(zip(origin, shape, strict=True)):
        whole = math.floor(start)
        fraction = start - whole
        moved = image.take(np.arange(whole, whole + length), axis=axis)
        if fraction > 0.0:
            following = image.take(np.arange(whole + 1, whole + 1 + length), axis=axis)
            moved = (1.0 - fraction) * moved + fraction * following
        image = moved
    return image
