"""The U-Net of the Monte-Carlo method, for the image and, narrower and shallower, for the kernel.

Source: Li, Nan & Ji, "Un-supervised learning for blind image deconvolution via Monte-Carlo sampling", Inverse Problems 2021;
the net is that of Ronneberger, Fischer & Brox, "U-Net: convolutional networks for biomedical image segmentation", MICCAI 2015,
https://arxiv.org/abs/1505.04597.

The paper gives levels, widths, slope and where dropout stands; the list of its layers was in a supplement. Ours is plain:
one 3×3 convolution with normalisation per level on either way, strided on the way down; on the way up features are dropped,
re-scaled bilinearly and joined with those of the same level. With the published widths that makes 2.56 million parameters for
both networks (whatever the kernel's size: they are convolutional), where the paper counts 2.65.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdeblur.config import UNetConfig
from jaxdeblur.networks import layers
from jaxdeblur.networks.blocks import Conv, Dropout, Norm


class UNet(nn.Module):
    """Latent ``[H, W, latent_channels]`` → image ``[H, W]`` before its final activation.

    Attributes:
      config: widths and depth.
      flat_start: whether all pixels are alike at first.
    """

    config: UNetConfig
    flat_start: bool = False

    @nn.compact
    def __call__(self, latent: jax.Array, dropout_rate: jax.Array | None = None) -> jax.Array:
        """Runs the net.

        Args:
          latent: ``[H, W, latent_channels]``; one image at a time, more by ``jax.vmap``.
          dropout_rate: scalar, of the features that are about to be re-scaled; None for no dropout.

        Returns:
          ``[H, W]``.
        """
        levels = [self._block(latent, "encode0")]
        for level in range(1, self.config.num_levels):
            levels.append(self._block(levels[-1], f"encode{level}", stride=2))
        features = levels.pop()
        for level in reversed(range(self.config.num_levels - 1)):
            features = Dropout(name=f"dropout{level}")(features, dropout_rate)
            features = jnp.concatenate(layers.crop_to_common(levels.pop(), layers.upsample_bilinear(features)), axis=-1)
            features = self._block(features, f"decode{level}")
        return Conv(1, cancelled_bias=False, zero_start=self.flat_start, name="out_conv")(features)[..., 0]

    def _block(self, image: jax.Array, name: str, stride: int = 1) -> jax.Array:
        image = Conv(self.config.channels, 3, stride, name=f"{name}_conv")(image)
        return Norm(self.config.negative_slope, name=f"{name}_norm")(image)
