"""Our networks against their PyTorch twins: same weights, same input, same output and gradient.

The twins run in double precision: PyTorch's own single-precision gradient is further from that than ours is.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.config import KernelMlpConfig, SkipNetConfig, UNetConfig
from jaxdeblur.networks import registry

torch = pytest.importorskip("torch", reason="parity needs torch (the dev extra)")
torch_twin = pytest.importorskip("experiments.torch_twin")

TOLERANCE = 1e-4

pytestmark = pytest.mark.usefixtures("light_compilation")


def _randomise(module):
    """Default starts have zero and one scales, which would hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))


def _assert_close(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE * scale, rtol=0, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("shape", "num_scales", "non_local", "slope"),
    # Among many features some lie so close to zero that rounding decides their slope. A single one moves the gradient by a
    # thousandth, so the large image (large enough for every way that a layer has) is compared with a weak kink and the real one
    # on small images.
    [
        pytest.param((47, 40), 3, True, 0.2, marks=pytest.mark.slow),
        ((47, 40), 2, False, 0.2),
        pytest.param((64, 67), 5, True, 0.2, marks=pytest.mark.slow),
        pytest.param((131, 158), 3, True, 0.9, marks=pytest.mark.slow),
    ],
)
def test_skip_generator_agrees(shape, num_scales, non_local, slope):
    torch.manual_seed(0)
    config = SkipNetConfig(
        num_scales=num_scales, channels=8, skip_channels=4, non_local=non_local, non_local_channels=8, negative_slope=slope
    )
    twin = torch_twin.SkipNet(config)
    _randomise(twin)
    latent = torch.rand(1, config.latent_channels, *shape)
    target = torch.rand(1, 1, *shape)
    params = jax.tree.map(jnp.asarray, torch_twin.to_flax(twin))
    expected = twin.double()(latent.double())
    torch.nn.functional.mse_loss(expected, target.double()).backward()

    generator = registry.image_generator(config, shape)
    ours = jnp.asarray(latent.numpy()[0].transpose(1, 2, 0))

    def loss_and_image(params):
        image = generator.apply(params, ours)
        return jnp.mean(jnp.square(image - target.numpy()[0, 0])), image

    gradient, image = jax.jit(jax.grad(loss_and_image, has_aux=True))(params)
    np.testing.assert_allclose(image, expected.detach().numpy()[0, 0], atol=TOLERANCE)
    _assert_close(gradient, torch_twin.to_flax(twin, gradients=True))


@pytest.mark.parametrize("hidden_sizes", [(), (1000,), (50, 60)])
def test_kernel_mlp_agrees(hidden_sizes):
    torch.manual_seed(0)
    config = KernelMlpConfig(hidden_sizes=hidden_sizes)
    twin = torch_twin.KernelMlp(config, (15, 17))
    latent, weights = torch.rand(200), torch.randn(15, 17)
    expected = twin(latent)
    (expected * weights).sum().backward()

    generator = registry.kernel_generator(config, (15, 17))
    params = jax.tree.map(jnp.asarray, torch_twin.to_flax(twin))

    def loss(params):
        kernel = generator.apply(params, jnp.asarray(latent.numpy()))
        return jnp.sum(kernel * weights.numpy()), kernel

    gradient, kernel = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(kernel, expected.detach().numpy(), atol=TOLERANCE)
    _assert_close(gradient, torch_twin.to_flax(twin, gradients=True))


@pytest.mark.parametrize(("shape", "num_levels"), [((47, 40), 3), pytest.param((64, 67), 5, marks=pytest.mark.slow)])
def test_unet_agrees(shape, num_levels):
    torch.manual_seed(0)
    config = UNetConfig(num_levels=num_levels, channels=8)
    twin = torch_twin.UNet(config)
    _randomise(twin)
    latent = torch.rand(1, config.latent_channels, *shape)
    params = jax.tree.map(jnp.asarray, torch_twin.to_flax(twin))
    expected = twin.double()(latent.double()).detach().numpy()[0, 0]
    generator = registry.image_generator(config, shape)
    image = jax.jit(generator.apply)(params, jnp.asarray(latent.numpy()[0].transpose(1, 2, 0)))
    np.testing.assert_allclose(image, expected, atol=TOLERANCE)


def test_the_twin_has_the_published_number_of_parameters_too():
    twin = torch_twin.SkipNet(SkipNetConfig())
    assert sum(parameter.numel() for parameter in twin.parameters()) == 2_365_521
