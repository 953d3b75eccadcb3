"""The kernel generators and the registry."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.config import ImageGeneratorConfig, KernelGeneratorConfig
from jaxdeblur.errors import InputError
from jaxdeblur.networks import kernel_mlp, registry

# Of a kind whose programs compile several times faster than the default's.
PARAMS_KEY = jax.random.key(1, impl="unsafe_rbg")


@pytest.mark.parametrize("name", ["mlp", "logits"])
def test_kernels_are_distributions(name):
    generator = registry.kernel_generator(KernelGeneratorConfig(name=name), (5, 7))
    latent = generator.draw_latent(jax.random.key(0))
    kernel = generator.module.apply(jax.jit(generator.module.init)(PARAMS_KEY, latent), latent)
    assert kernel.shape == (5, 7)
    assert float(kernel.min()) > 0
    np.testing.assert_allclose(kernel.sum(), 1.0, rtol=1e-6)


def test_logits_give_the_kernel_back():
    kernel = jax.random.uniform(jax.random.key(0), (2, 7, 7)) ** 4
    kernel = kernel / kernel.sum((1, 2), keepdims=True)
    logits = kernel_mlp.logits_of(kernel)
    restored = jax.nn.softmax(logits.reshape(2, -1)).reshape(kernel.shape)
    np.testing.assert_allclose(restored, kernel, atol=1e-4)


def test_image_generator_keeps_the_shape_and_range():
    config = ImageGeneratorConfig(num_scales=2, channels=4, skip_channels=2)
    generator = registry.image_generator(config, (33, 38))
    latent = generator.draw_latent(jax.random.key(0))
    assert float(latent.min()) >= 0
    assert float(latent.max()) <= config.latent_scale
    image = jax.jit(generator.module.apply)(jax.jit(generator.module.init)(PARAMS_KEY, latent), latent)
    assert image.shape == (33, 38, 1)
    assert float(image.min()) > 0
    assert float(image.max()) < 1


def test_non_local_blocks_say_nothing_at_first():
    with_blocks = ImageGeneratorConfig(num_scales=3, channels=4, skip_channels=2, non_local_channels=2)
    generator = registry.image_generator(with_blocks, (20, 20))
    latent = generator.draw_latent(jax.random.key(0))
    params = jax.jit(generator.module.init)(PARAMS_KEY, latent)
    without = registry.image_generator(dataclasses.replace(with_blocks, non_local=False), (20, 20))
    rest = {name: value for name, value in params["params"].items() if "non_local" not in name}
    np.testing.assert_allclose(
        jax.jit(generator.module.apply)(params, latent),
        jax.jit(without.module.apply)({"params": rest}, latent),
        atol=1e-6,
    )


def test_too_small_an_image_is_refused():
    with pytest.raises(InputError, match="fewer scales"):
        registry.image_generator(ImageGeneratorConfig(), (32, 100))


def test_latent_is_finite_everywhere():
    generator = registry.kernel_generator(KernelGeneratorConfig(name="logits"), (3, 3))
    assert generator.draw_latent(jax.random.key(0)).shape == (0,)
    assert bool(jnp.all(jnp.isfinite(kernel_mlp.logits_of(jnp.eye(3) / 3))))
