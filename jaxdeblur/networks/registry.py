"""From a generator's config to its network, the shape of its latent input and the range of its output."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax

from jaxdeblur.config import (
    ImageGeneratorConfig,
    KernelGeneratorConfig,
    KernelLogitsConfig,
    KernelMlpConfig,
    SkipNetConfig,
    UNetConfig,
)
from jaxdeblur.errors import InputError
from jaxdeblur.networks.kernel_mlp import KernelLogits, KernelMlp
from jaxdeblur.networks.skip import SkipNet
from jaxdeblur.networks.unet import UNet

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Generator:
    """A network, what to feed it, and what makes an image or a kernel of its output.

    Attributes:
      module: maps one latent to one array ``[H, W]`` of any real numbers.
      latent_shape: of that latent.
      latent_scale: latents are uniform in [0, latent_scale].
      activation: ``sigmoid`` for images, ``softmax`` over all pixels for kernels.
    """

    module: nn.Module
    latent_shape: tuple[int, ...]
    latent_scale: float
    activation: Literal["sigmoid", "softmax"]

    def draw_latent(self, key: jax.Array) -> jax.Array:
        """A random latent ``[*latent_shape]``."""
        return jax.random.uniform(key, self.latent_shape, maxval=self.latent_scale)

    def apply(
        self,
        params: Params,
        latent: jax.Array,
        *,
        dropout_rate: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """One image ``[H, W]`` in (0, 1), or one kernel ``[h, w]`` summing to one.

        Args:
          params: the network's.
          latent: ``[*latent_shape]``.
          dropout_rate: scalar; None for no dropout.
          dropout_key: typed random key of the dropout masks, where there is dropout.
        """
        value: Any
        if dropout_rate is None or dropout_key is None:
            value = self.module.apply({"params": params}, latent)
        else:
            value = self.module.apply({"params": params}, latent, dropout_rate, rngs={"dropout": dropout_key})
        if self.activation == "sigmoid":
            return jax.nn.sigmoid(value)
        return jax.nn.softmax(value.reshape(-1)).reshape(value.shape)


def image_generator(config: ImageGeneratorConfig, shape: tuple[int, int]) -> Generator:
    """The generator of a grey image of ``shape`` (the sharp image's full support).

    Raises:
      InputError: the image is too small to be halved that often.
    """
    return _convolutional(config, shape, "image", "sigmoid")


def kernel_generator(config: KernelGeneratorConfig, kernel_shape: tuple[int, int]) -> Generator:
    """The generator of a kernel of ``kernel_shape``.

    Raises:
      InputError: the kernel is too small to be halved as often as its network wants.
    """
    if isinstance(config, KernelLogitsConfig):
        return Generator(KernelLogits(kernel_shape), (0,), 0.0, "softmax")
    if isinstance(config, KernelMlpConfig):
        return Generator(KernelMlp(config, kernel_shape), (config.latent_size,), config.latent_scale, "softmax")
    return _convolutional(config, kernel_shape, "kernel", "softmax")


def _convolutional(
    config: SkipNetConfig | UNetConfig, shape: tuple[int, int], what: str, activation: Literal["sigmoid", "softmax"]
) -> Generator:
    # The skip net convolves at its coarsest resolution, the U-Net only on the way there.
    depth = config.num_scales if isinstance(config, SkipNetConfig) else config.num_levels - 2
    # Rounded up at every halving, and a reflected border needs two pixels.
    if min(shape) <= 2**depth:
        raise InputError(
            f"the {what} generator halves its resolution too often for {shape[0]}x{shape[1]} pixels: it needs more than "
            f"{2**depth} a side, or fewer scales"
        )
    # A kernel that starts anywhere but flat stays where it happens to be largest, which may be a corner that cuts it off.
    flat = activation == "softmax"
    module = SkipNet(config, flat) if isinstance(config, SkipNetConfig) else UNet(config, flat)
    return Generator(module, (*shape, config.latent_channels), config.latent_scale, activation)
