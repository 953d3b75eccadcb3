import pathlib

import chex
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from PIL import Image

from jaxdeblur.classical import hyper_laplacian as module
from jaxdeblur.classical.hyper_laplacian import hyper_laplacian, shrink, weight_for_noise
from jaxdeblur.evaluation.metrics import psnr

LEVIN = pathlib.Path(__file__).parents[2] / "../shared/data/levin/gt"


def motion_kernel(seed, size):
    """A camera-shake path: smooth random velocity, integrated and drawn with linear weights."""
    velocity = scipy.ndimage.gaussian_filter1d(np.random.default_rng(seed).normal(size=(400, 2)), 40, axis=0)
    path = np.cumsum(velocity, axis=0)
    path -= path.mean(0)
    path = path / np.abs(path).max() * (size // 2 - 1) + size // 2
    distance = np.abs(path[:, :, None] - np.arange(size))
    weights = np.maximum(0, 1 - distance)
    kernel = np.einsum("ni,nj->ij", weights[:, 0], weights[:, 1])
    return kernel / kernel.sum()


def scene(seed, shape):
    """Discs and bars of random grey over a soft background."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = 0.4 + 0.3 * scipy.ndimage.gaussian_filter(generator.normal(size=shape), 12) * 12
    for _ in range(60):
        r, c, size = generator.integers(0, shape[0]), generator.integers(0, shape[1]), generator.integers(4, 25)
        inside = (
            (rows - r) ** 2 + (columns - c) ** 2 < size**2
            if generator.random() < 0.5
            else ((abs(rows - r) < size) & (abs(columns - c) < size // 3 + 1))
        )
        image = np.where(inside, generator.random(), image)
    return np.clip(scipy.ndimage.gaussian_filter(image, 0.5), 0, 1)


def blurred_case(sharp, kernel, std, seed=0):
    """The noisy valid blur of ``sharp`` and the part of ``sharp`` it shows."""
    h, w = kernel.shape
    blurry = scipy.signal.fftconvolve(sharp, kernel, mode="valid")
    blurry += np.random.default_rng(seed).normal(scale=std, size=blurry.shape)
    return blurry, sharp[h // 2 : -(h // 2), w // 2 : -(w // 2)]


@pytest.mark.parametrize(("std", "gain"), [(0.003, 8.0), (0.01, 5.0), (0.03, 2.0)])
def test_improves_a_motion_blur(std, gain):
    gains = []
    for seed in range(2):
        blurry, sharp = blurred_case(scene(seed, (160, 180)), motion_kernel(seed, 17), std)
        restored = hyper_laplacian(blurry, motion_kernel(seed, 17), weight=weight_for_noise(std))
        gains.append(psnr(restored, sharp) - psnr(blurry, sharp))
    assert np.mean(gains) > gain


@pytest.mark.skipif(not LEVIN.is_dir(), reason="needs the sharp images of Levin's set in ../shared/data/levin/gt")
def test_improves_photographs():
    for name, size in [("im1", 15), ("im2", 21)]:
        sharp = np.asarray(Image.open(LEVIN / f"{name}.png"), np.float64) / 255
        kernel = motion_kernel(3, size)
        blurry, sharp = blurred_case(sharp, kernel, 0.01)
        restored = hyper_laplacian(blurry, kernel, weight=weight_for_noise(0.01))
        assert psnr(restored, sharp) > psnr(blurry, sharp) + 5.0


def periodic_wiener(blurry, kernel, noise_to_signal):
    """Deconvolution that takes the image for periodic: the ringing to be avoided."""
    h, w = kernel.shape
    centred = np.roll(np.pad(kernel, ((0, blurry.shape[0] - h), (0, blurry.shape[1] - w))), (-(h // 2), -(w // 2)), (0, 1))
    spectrum = np.fft.fft2(centred)
    return np.fft.ifft2(np.fft.fft2(blurry) * spectrum.conj() / (np.abs(spectrum) ** 2 + noise_to_signal)).real


def test_borders_do_not_ring():
    border, inside, naive_border = [], [], []
    for seed in range(3):
        kernel = motion_kernel(seed, 17)
        # A strong ramp makes opposite edges differ, the case in which a periodic model rings.
        sharp = 0.7 * scene(seed, (170, 170)) + 0.3 * np.linspace(0, 1, 170)[None, :]
        blurry, sharp = blurred_case(sharp, kernel, 0.005)
        edge = np.pad(np.zeros((120, 120), bool), 17, constant_values=True)
        error = (np.asarray(hyper_laplacian(blurry, kernel, weight=weight_for_noise(0.005))) - sharp) ** 2
        border.append(error[edge].mean())
        inside.append(error[~edge].mean())
        naive_border.append(((periodic_wiener(blurry, kernel, 1e-2) - sharp) ** 2)[edge].mean())
    # A border pixel was seen through fewer blurry ones, so it cannot quite keep up.
    assert np.mean(border) < 3.0 * np.mean(inside)
    assert np.mean(border) < 0.1 * np.mean(naive_border)


def test_a_delta_kernel_returns_the_image():
    image = scene(4, (60, 71))
    kernel = np.zeros((5, 7))
    kernel[2, 3] = 1.0
    np.testing.assert_allclose(hyper_laplacian(image, kernel, weight=1e-7), image, atol=2e-3)


def test_colour_equals_its_channels():
    kernel = motion_kernel(5, 9)
    image = np.stack([blurred_case(scene(seed, (70, 64)), kernel, 0.01)[0] for seed in range(3)], -1)
    restored = hyper_laplacian(image, kernel)
    chex.assert_shape(restored, image.shape)
    assert restored.dtype == jnp.float32
    for c in range(3):
        np.testing.assert_allclose(restored[..., c], hyper_laplacian(image[..., c], kernel), atol=1e-4)


def test_kernel_wider_than_half_the_image():
    image = scene(6, (40, 36))
    restored = hyper_laplacian(image, motion_kernel(6, 31))
    chex.assert_shape(restored, image.shape)
    chex.assert_tree_all_finite(restored)


def test_weights_share_one_compiled_program():
    image, kernel = scene(7, (48, 48)), motion_kernel(7, 7)
    hyper_laplacian(image, kernel, weight=1e-4)
    before = hyper_laplacian._cache_size()
    smooth = hyper_laplacian(image, kernel, weight=1e-2)
    assert hyper_laplacian._cache_size() == before
    assert np.abs(np.diff(smooth)).sum() < np.abs(np.diff(hyper_laplacian(image, kernel, weight=1e-4))).sum()


@pytest.mark.parametrize("exponent", [0.5, 2 / 3, 0.8, 1.0])
@pytest.mark.parametrize("weight", [0.01, 0.3])
def test_shrink_is_the_minimiser(exponent, weight):
    values = np.linspace(-3, 3, 61)
    got = np.asarray(shrink(jnp.asarray(values, jnp.float32), weight, exponent=exponent))

    def objective(w, v):
        return 0.5 * (w - v) ** 2 + weight * np.abs(w) ** exponent

    for v, w in zip(values, got, strict=True):
        grid = np.linspace(-3.2, 3.2, 6401)
        assert objective(w, v) <= objective(grid, v).min() + 1e-5
        # Beyond the threshold it is a stationary point.
        if w != 0.0:
            assert abs(w - v + weight * exponent * np.abs(w) ** (exponent - 1) * np.sign(w)) < 1e-4


def test_extension_is_continuous_round_the_torus():
    image = jnp.asarray(scene(8, (50, 60)), jnp.float32)[None]
    extended = module._extend_periodically(image, (75, 90))
    np.testing.assert_array_equal(extended[:, :50, :60], image)
    for axis in (-2, -1):
        steps = jnp.abs(jnp.roll(extended, -1, axis) - extended)
        inside = jnp.abs(jnp.diff(image, axis=axis)).max()
        assert float(steps.max()) < float(inside) * 1.5


def test_bad_options_are_refused():
    image, kernel = np.zeros((40, 40)), np.full((5, 5), 0.04)
    with pytest.raises(ValueError, match="odd"):
        hyper_laplacian(image, np.full((4, 5), 0.05))
    with pytest.raises(ValueError, match="exponent"):
        hyper_laplacian(image, kernel, exponent=1.5)
    with pytest.raises(AssertionError):
        hyper_laplacian(image[0], kernel)
