"""The generators and the registry: shapes, ranges, dropout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.config import KernelLogitsConfig, KernelMlpConfig, SkipNetConfig, UNetConfig
from jaxdeblur.errors import InputError
from jaxdeblur.networks import kernel_mlp, registry
from jaxdeblur.networks.blocks import Dropout

pytestmark = pytest.mark.usefixtures("light_compilation")

# Of a kind whose programs compile several times faster than the default's.
PARAMS_KEY = jax.random.key(1, impl="unsafe_rbg")
SKIP = SkipNetConfig(num_scales=2, channels=4, skip_channels=2)
UNET = UNetConfig(num_levels=3, channels=4)


@functools.cache
def _image(config):
    """An image generator of odd sides, its first parameters and its latent."""
    return _started(registry.image_generator(config, (20, 21)))


@functools.cache
def _kernel(config, shape=(5, 7)):
    return _started(registry.kernel_generator(config, shape))


def _started(generator):
    latent = generator.draw_latent(jax.random.key(0))
    return generator, jax.jit(generator.module.init)(PARAMS_KEY, latent)["params"], latent


@pytest.mark.parametrize("config", [KernelMlpConfig(), KernelLogitsConfig(), SKIP, UNET], ids=lambda config: config.name)
def test_kernels_are_distributions(config):
    generator, params, latent = _kernel(config)
    kernel = jax.jit(generator.apply)(params, latent)
    assert kernel.shape == (5, 7)
    assert float(kernel.min()) > 0
    np.testing.assert_allclose(kernel.sum(), 1.0, rtol=1e-6)


def test_logits_give_the_kernel_back():
    kernel = jax.random.uniform(jax.random.key(0), (2, 7, 7)) ** 4
    kernel = kernel / kernel.sum((1, 2), keepdims=True)
    logits = kernel_mlp.logits_of(kernel)
    restored = jax.nn.softmax(logits.reshape(2, -1)).reshape(kernel.shape)
    np.testing.assert_allclose(restored, kernel, atol=1e-4)


@pytest.mark.parametrize("config", [SKIP, UNET], ids=lambda config: config.name)
def test_image_generators_keep_the_shape_and_range(config):
    generator, params, latent = _image(config)
    assert float(latent.min()) >= 0
    assert float(latent.max()) <= config.latent_scale
    image = jax.jit(generator.apply)(params, latent)
    assert image.shape == (20, 21)
    assert float(image.min()) > 0
    assert float(image.max()) < 1


def _halvings(shape, count):
    sizes = [shape]
    for _ in range(count):
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    return sizes


@pytest.mark.parametrize("shape", [(271, 271), (271, 300), (285, 316)])
@pytest.mark.parametrize("config", [SkipNetConfig(), UNetConfig()], ids=lambda config: config.name)
def test_every_layer_has_the_shape_of_its_scale(config, shape):
    """Odd sides are rounded up at every halving and cut back on the way up."""
    generator = registry.image_generator(config, shape)
    latent = jax.ShapeDtypeStruct(generator.latent_shape, jnp.float32)
    variables = jax.eval_shape(generator.module.init, PARAMS_KEY, latent)
    image, state = jax.eval_shape(
        lambda variables, latent: generator.module.apply(variables, latent, capture_intermediates=True), variables, latent
    )
    assert image.shape == shape
    found = {name: value["__call__"][0].shape for name, value in state["intermediates"].items() if isinstance(value, dict)}
    channels = config.channels
    if isinstance(config, SkipNetConfig):
        sizes = _halvings(shape, config.num_scales)
        for scale in range(config.num_scales):
            here, below = sizes[scale], sizes[scale + 1]
            assert found[f"scale{scale}_skip_norm"] == (*here, config.skip_channels)
            assert found[f"scale{scale}_down_norm"] == found[f"scale{scale}_deep_norm"] == (*below, channels)
            assert found[f"scale{scale}_up_norm"] == found[f"scale{scale}_mix_norm"] == (*here, channels)
    else:
        sizes = _halvings(shape, config.num_levels - 1)
        for level, size in enumerate(sizes):
            assert found[f"encode{level}_norm"] == (*size, channels)
        for level, size in enumerate(sizes[:-1]):
            assert found[f"decode{level}_norm"] == (*size, channels)
            assert found[f"dropout{level}"] == (*sizes[level + 1], channels)


DEEP = UNetConfig(num_levels=4, channels=4)


@pytest.mark.parametrize("size", [5, 11, 13, 17, 27, 75])
def test_convolutional_kernel_generators_take_every_kernel_size(size):
    generator = registry.kernel_generator(DEEP, (size, size))
    latent = jax.ShapeDtypeStruct(generator.latent_shape, jnp.float32)
    params = jax.eval_shape(generator.module.init, PARAMS_KEY, latent)["params"]
    assert jax.eval_shape(generator.apply, params, latent).shape == (size, size)


@pytest.mark.parametrize("size", [5, 17, *(pytest.param(size, marks=pytest.mark.slow) for size in (11, 13, 27, 75))])
def test_convolutional_kernel_generators_serve_every_kernel_size(size):
    generator, params, latent = _kernel(DEEP, (size, size))
    kernel = jax.jit(generator.apply)(params, latent)
    assert kernel.shape == (size, size)
    assert bool(jnp.isfinite(kernel).all())


@pytest.mark.parametrize("config", [SKIP, UNET], ids=lambda config: config.name)
def test_convolutional_kernel_generators_start_flat(config):
    """Otherwise a kernel grows where chance has put its largest pixel, and may be cut off in a corner."""
    generator, params, latent = _kernel(config)
    np.testing.assert_allclose(jax.jit(generator.apply)(params, latent), 1 / 35, rtol=1e-5)
    generator, params, latent = _image(config)
    assert float(jnp.std(jax.jit(generator.apply)(params, latent))) > 1e-3


def _count(generator):
    latent = jax.ShapeDtypeStruct(generator.latent_shape, jnp.float32)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(generator.module.init, PARAMS_KEY, latent)))


def test_numbers_of_parameters():
    """SelfDeblur's is the public code's. The Monte-Carlo paper counts 2.65 million for its two nets and lists no layers."""
    assert _count(registry.image_generator(SkipNetConfig(), (271, 271))) == 2_365_521
    assert _count(registry.kernel_generator(KernelMlpConfig(), (17, 17))) == 200 * 1000 + 1000 + 1000 * 289 + 289
    image = _count(registry.image_generator(UNetConfig(), (271, 271)))
    kernel = _count(registry.kernel_generator(UNetConfig(num_levels=4, channels=64), (17, 17)))
    assert (image, kernel) == (2_225_409, 337_793)
    assert image + kernel == pytest.approx(2.65e6, rel=0.04)


@pytest.mark.parametrize("rate", [0.001, 0.3, 0.5])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate):
    dropped = Dropout().apply({}, jnp.ones((100, 100, 8)), rate, rngs={"dropout": jax.random.key(0)})
    share = float(jnp.mean(dropped == 0))
    assert share == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 80_000) ** 0.5)
    np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("config", [SKIP, UNET], ids=lambda config: config.name)
def test_dropout_depends_on_its_key_and_is_absent_at_evaluation(config):
    generator, params, latent = _image(config)
    apply = jax.jit(generator.apply)
    first, again, other = (
        apply(params, latent, dropout_rate=jnp.float32(0.5), dropout_key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-4)
    plain = apply(params, latent)
    np.testing.assert_allclose(
        apply(params, latent, dropout_rate=jnp.float32(0.0), dropout_key=jax.random.key(0)), plain, atol=1e-6
    )
    assert not np.allclose(first, plain, atol=1e-4)


@pytest.mark.slow
def test_non_local_blocks_say_nothing_at_first():
    with_blocks = SkipNetConfig(num_scales=3, channels=4, skip_channels=2, non_local_channels=2)
    generator, params, latent = _image(with_blocks)
    without = registry.image_generator(dataclasses.replace(with_blocks, non_local=False), (20, 21))
    rest = {name: value for name, value in params.items() if "non_local" not in name}
    assert len(rest) < len(params)
    np.testing.assert_allclose(jax.jit(generator.apply)(params, latent), jax.jit(without.apply)(rest, latent), atol=1e-6)


def test_too_small_an_image_or_kernel_is_refused():
    with pytest.raises(InputError, match="fewer scales"):
        registry.image_generator(SkipNetConfig(), (32, 100))
    with pytest.raises(InputError, match="fewer scales"):
        registry.kernel_generator(UNetConfig(num_levels=4), (3, 3))
    with pytest.raises(InputError, match="kernel generator halves"):
        registry.kernel_generator(SkipNetConfig(num_scales=3), (7, 7))


def test_latent_is_finite_everywhere():
    generator = registry.kernel_generator(KernelLogitsConfig(), (3, 3))
    assert generator.draw_latent(jax.random.key(0)).shape == (0,)
    assert bool(jnp.all(jnp.isfinite(kernel_mlp.logits_of(jnp.eye(3) / 3))))
