"""From a generator's config to its network and the shape of its latent input."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from jaxdeblur.config import ImageGeneratorConfig, KernelGeneratorConfig
from jaxdeblur.errors import InputError
from jaxdeblur.networks.kernel_mlp import KernelLogits, KernelMlp
from jaxdeblur.networks.skip import SkipGenerator


@dataclasses.dataclass(frozen=True)
class Generator:
    """A network and what to feed it.

    Attributes:
      module: maps one latent to one image ``[H, W, 1]`` or one kernel ``[h, w]``.
      latent_shape: of that latent.
      latent_scale: latents are uniform in [0, latent_scale].
    """

    module: nn.Module
    latent_shape: tuple[int, ...]
    latent_scale: float

    def draw_latent(self, key: jax.Array) -> jax.Array:
        """A random latent ``[*latent_shape]``."""
        return jax.random.uniform(key, self.latent_shape, maxval=self.latent_scale)


def image_generator(config: ImageGeneratorConfig, shape: tuple[int, int]) -> Generator:
    """The generator of a grey image of ``shape`` (the sharp image's full support).

    Raises:
      InputError: the image is too small to be halved that often.
    """
    if min(shape) <= 2**config.num_scales:
        raise InputError(
            f"an image generator of {config.num_scales} scales needs more than {2**config.num_scales} pixels a side, "
            f"got {shape[0]}x{shape[1]}: use fewer scales"
        )
    return Generator(SkipGenerator(config), (*shape, config.latent_channels), config.latent_scale)


def kernel_generator(config: KernelGeneratorConfig, kernel_shape: tuple[int, int]) -> Generator:
    """The generator of a kernel of ``kernel_shape``."""
    if config.name == "logits":
        return Generator(KernelLogits(kernel_shape), (0,), config.latent_scale)
    return Generator(KernelMlp(config, kernel_shape), (config.latent_size,), config.latent_scale)
