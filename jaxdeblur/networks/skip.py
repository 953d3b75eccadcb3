"""The image generator of SelfDeblur: a skip-connected encoder-decoder with non-local blocks.

Source: Ren, Zhang, Wang, Hu & Zuo, "Neural blind deconvolution using deep priors", CVPR 2020,
https://arxiv.org/abs/1908.02197; the net is the "skip net" of Ulyanov, Vedaldi & Lempitsky, "Deep image prior", CVPR 2018.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdeblur.config import SkipNetConfig
from jaxdeblur.networks import layers
from jaxdeblur.networks.blocks import Conv, Dropout, Norm, NormGain

# Non-local blocks stand where the image is small enough for them: from this scale (0-based) on.
FIRST_NON_LOCAL_SCALE = 2


class NonLocalBlock(nn.Module):
    """Dot-product attention over all positions, added to the image.

    ``x + norm(W · θ(x) (φ(x)ᵀ g(x)) / N)`` with keys φ and values g pooled 2×2, N their number. There is no softmax, so the
    product is taken from the right and costs ``H·W·C²`` rather than ``(H·W)²·C/4``.

    Attributes:
      channels: inner width.

    Source: Wang, Girshick, Gupta & He, "Non-local neural networks", CVPR 2018, eq. (4), https://arxiv.org/abs/1711.07971.
    """

    channels: int

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """``[..., H, W, C]`` → the same shape."""

        def embed(name: str) -> jax.Array:
            return Conv(self.channels, cancelled_bias=False, name=name)(image)

        def flatten(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:-3], -1, x.shape[-1])

        query = embed("query")
        key_, value = flatten(layers.max_pool2(embed("key"))), flatten(layers.max_pool2(embed("value")))
        context = jnp.swapaxes(key_, -1, -2) @ value / key_.shape[-2]
        attended = (flatten(query) @ context).reshape(query.shape)
        projected = Conv(image.shape[-1], name="project")(attended)
        return image + Norm(zero_scale=True, name="project_norm")(projected)


class SkipNet(nn.Module):
    """Latent ``[H, W, latent_channels]`` → image ``[H, W]`` before its final activation.

    Attributes:
      config: widths and depth.
      flat_start: whether all pixels are alike at first.
    """

    config: SkipNetConfig
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
        features = self._scale(latent, 0, dropout_rate)
        return Conv(1, cancelled_bias=False, zero_start=self.flat_start, name="out_conv")(features)[..., 0]

    def _conv_norm(self, image: jax.Array, name: str, channels: int, size: int = 1, stride: int = 1) -> jax.Array:
        image = Conv(channels, size, stride, name=f"{name}_conv")(image)
        return Norm(self.config.negative_slope, name=f"{name}_norm")(image)

    def _scale(self, image: jax.Array, scale: int, dropout_rate: jax.Array | None) -> jax.Array:
        """One scale and, inside its deeper branch, all coarser ones: ``[H, W, ·]`` → ``[H, W, channels]``."""
        config, prefix = self.config, f"scale{scale}"
        skip = self._conv_norm(image, f"{prefix}_skip", config.skip_channels)
        deeper = self._conv_norm(image, f"{prefix}_down", config.channels, size=3, stride=2)
        if config.non_local and scale >= FIRST_NON_LOCAL_SCALE:
            deeper = NonLocalBlock(config.non_local_channels, name=f"{prefix}_non_local")(deeper)
        deeper = self._conv_norm(deeper, f"{prefix}_deep", config.channels, size=3)
        if scale + 1 < config.num_scales:
            deeper = self._scale(deeper, scale + 1, dropout_rate)
        deeper = Dropout(name=f"{prefix}_dropout")(deeper, dropout_rate)
        joined = jnp.concatenate(layers.crop_to_common(skip, layers.upsample_bilinear(deeper)), axis=-1)
        gain = NormGain(name=f"{prefix}_join_norm")(joined)
        up = Conv(config.channels, 3, name=f"{prefix}_up_conv")(joined, gain)
        up = Norm(config.negative_slope, name=f"{prefix}_up_norm")(up)
        return self._conv_norm(up, f"{prefix}_mix", config.channels)
