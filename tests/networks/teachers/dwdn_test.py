"""DWDN: parity with a PyTorch twin, its Wiener layer and noise estimate apart; any size, grey and colour; its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxdeblur.errors import InputError
from jaxdeblur.networks.teachers import dwdn
from jaxdeblur.networks.teachers.weights import load_teacher
from jaxdeblur.operators.blur import blur_valid, crop_to_blurry
from jaxdeblur.operators.trajectories import motion_kernel

CONFIG = dwdn.DwdnConfig(features=4, widths=(6, 8, 10), num_residual_blocks=2)
SMALL = dwdn.DwdnConfig(features=3, widths=(4, 6), num_residual_blocks=1, filter_size=3)
TOLERANCE = 1e-4

pytestmark = pytest.mark.usefixtures("light_compilation")


@functools.cache
def _params(config, *, scale=0.0):
    """Fresh parameters, and noise added to them."""
    init = jax.jit(dwdn.Dwdn(config).init)
    params = init(jax.random.key(0), jnp.zeros((16, 16)), jnp.ones((3, 3)) / 9)["params"]
    generator = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + generator.normal(0, scale, leaf.shape).astype(np.float32), params)


def _kernel(rows, columns):
    """Without any symmetry."""
    kernel = np.random.default_rng(3).random((rows, columns), np.float32) ** 4
    return kernel / kernel.sum()


@pytest.fixture(scope="module")
def twins():
    pytest.importorskip("torch", reason="parity needs torch (the dev extra)")
    return pytest.importorskip("tests.networks.teachers.torch_teachers")


@pytest.mark.parametrize(("shape", "kernel_shape"), [((37, 45), (7, 3)), ((48, 40), (5, 5))])
@pytest.mark.slow
def test_agrees_with_the_twin(twins, tmp_path, shape, kernel_shape):
    import torch

    torch.manual_seed(0)
    twin = twins.Dwdn(CONFIG)
    torch.save(twin.state_dict(), tmp_path / "dwdn.pth")
    params = load_teacher("dwdn", tmp_path / "dwdn.pth")
    assert dwdn.config_of(params) == CONFIG
    image, kernel = np.random.default_rng(0).random((*shape, 3), np.float32), _kernel(*kernel_shape)
    with torch.no_grad():
        expected = [twin(torch.from_numpy(image[..., c].copy()), torch.from_numpy(kernel)).numpy() for c in range(3)]
    assert np.std(expected) > 1e-3
    restore = jax.jit(dwdn.restore)
    np.testing.assert_allclose(restore(params, image, kernel), np.stack(expected, -1), atol=TOLERANCE)
    np.testing.assert_allclose(restore(params, image[..., 1], kernel), expected[1], atol=TOLERANCE)


def test_wiener_layer_and_noise_estimate_agree_with_the_twins(twins):
    import torch

    features, kernel = np.random.default_rng(0).normal(size=(21, 30, 3)), _kernel(5, 7)
    channels = features.transpose(2, 0, 1).copy()
    expected = twins.wiener(torch.from_numpy(channels)[None], torch.from_numpy(kernel).double())[0].numpy()
    ours = dwdn.deconvolve_features(jnp.asarray(features), jnp.asarray(kernel))
    np.testing.assert_allclose(ours, expected.transpose(1, 2, 0), atol=TOLERANCE)
    ratios = [float(twins.noise_to_signal(torch.from_numpy(channel))) for channel in channels]
    np.testing.assert_allclose(dwdn.noise_to_signal(jnp.asarray(channels))[:, 0, 0], ratios, rtol=1e-4)


def test_noise_estimate_is_that_of_a_library_median():
    channel = np.random.default_rng(0).random((20, 31))
    residual = scipy.ndimage.median_filter(channel, 3, mode="mirror") - channel
    expected = 8 / 30 * residual.var(ddof=1) / channel.std(ddof=1)
    np.testing.assert_allclose(dwdn.noise_to_signal(jnp.asarray(channel))[0, 0], expected, rtol=1e-4)


@pytest.mark.slow
def test_an_untrained_network_undoes_a_true_convolution():
    generator = np.random.default_rng(0)
    sharp = scipy.ndimage.gaussian_filter(generator.random((90, 90)), 1.0).astype(np.float32)
    sharp = (sharp - sharp.min()) / np.ptp(sharp)
    kernel = motion_kernel(1, size=9)
    blurry, inner = blur_valid(sharp, kernel), crop_to_blurry(sharp, kernel.shape)[12:-12, 12:-12]
    params, restore = _params(SMALL), jax.jit(dwdn.restore)

    def error(image):
        return float(np.mean((image[12:-12, 12:-12] - inner) ** 2))

    restored, turned = restore(params, blurry, kernel), restore(params, blurry, kernel[::-1, ::-1])
    assert error(restored) < 0.3 * error(blurry) < error(turned)


@pytest.mark.slow
def test_convolutions_written_out_for_loops_change_nothing():
    image, kernel = jax.random.uniform(jax.random.key(0), (21, 26)), _kernel(5, 3)
    params = _params(SMALL, scale=0.1)
    restore = jax.jit(dwdn.restore, static_argnames="in_loop")
    results = [restore(params, image, kernel, in_loop=in_loop) for in_loop in (False, True)]
    np.testing.assert_allclose(*results, atol=1e-5)


def test_mapped_over_restarts_it_equals_single_calls():
    images, kernels = jax.random.uniform(jax.random.key(0), (2, 21, 26)), np.stack([_kernel(5, 3), _kernel(5, 3)[::-1]])
    params = _params(SMALL, scale=0.1)
    together = jax.jit(jax.vmap(dwdn.restore, (None, 0, 0)))(params, images, kernels)
    single = jax.jit(dwdn.restore)
    np.testing.assert_allclose(together, [single(params, *pair) for pair in zip(images, kernels, strict=True)], atol=1e-5)


@pytest.mark.slow
def test_gradient_of_the_regression_term_is_that_of_finite_differences():
    generator, kernel = np.random.default_rng(1), _kernel(5, 3)
    observed, reblurred, direction = generator.random((3, 16, 18))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), _params(SMALL, scale=0.1))
    # In double precision a step can be so short that it passes no kink of a rectifier or the median.
    with jax.enable_x64(True):
        answer = jax.jit(dwdn.restore)(params, observed, kernel)
        regression = jax.jit(jax.value_and_grad(lambda image: jnp.linalg.norm(answer - dwdn.restore(params, image, kernel))))
        step = 1e-7
        above, below = (float(regression(reblurred + sign * step * direction)[0]) for sign in (1, -1))
        slope = np.vdot(regression(reblurred)[1], direction)
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-4)


def test_a_constant_image_stays_finite():
    params, kernel = _params(SMALL, scale=0.1), _kernel(5, 3)
    total = jax.jit(jax.value_and_grad(lambda image: jnp.sum(dwdn.restore(params, image, kernel))))
    value, gradient = total(jnp.full((16, 16), 0.5))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "config", [CONFIG, SMALL, dwdn.DwdnConfig(num_scales=3, widths=(4,), features=2, num_residual_blocks=1)]
)
def test_sizes_are_read_from_the_parameters(config):
    shapes = jax.eval_shape(dwdn.Dwdn(config).init, jax.random.key(0), jnp.zeros((16, 16)), jnp.zeros((3, 3)))
    assert dwdn.config_of(shapes["params"]) == config


@pytest.mark.parametrize("bad", [{"widths": ()}, {"features": 0}, {"filter_size": 4}, {"num_scales": 0}])
def test_impossible_sizes_are_refused(bad):
    with pytest.raises(InputError):
        dwdn.DwdnConfig(**bad)


def test_parameters_of_another_network_are_refused():
    with pytest.raises(InputError, match="not of a DWDN"):
        dwdn.config_of({"encoder_lv1": {}})
