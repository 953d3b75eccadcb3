"""The image generator of SelfDeblur: a skip-connected encoder-decoder with non-local blocks.

Source: Ren, Zhang, Wang, Hu & Zuo, "Neural blind deconvolution using deep priors", CVPR 2020,
https://arxiv.org/abs/1908.02197; the net is the "skip net" of Ulyanov, Vedaldi & Lempitsky, "Deep image prior", CVPR 2018.

Biases before a normalisation: the published networks carry one in every convolution, the normalisation that follows
cancels it. They are kept as parameters, so that weights map one to one and counts agree, and left out of the computation.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxdeblur.config import ImageGeneratorConfig
from jaxdeblur.networks import layers

# Non-local blocks stand where the image is small enough for them: from this scale (0-based) on.
FIRST_NON_LOCAL_SCALE = 2
_EPSILON = 1e-5


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in ±1/√fan_in: the default of the published networks' framework, for weights and biases alike."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """1×1 or 3×3 convolution of ``[..., H, W, C]`` images.

    Attributes:
      channels: of the output.
      size: 1 or 3.
      stride: 1, or 2 with size 3.
      cancelled_bias: whether the bias is cancelled by what follows, and need not be added.
    """

    channels: int
    size: int = 1
    stride: int = 1
    cancelled_bias: bool = True

    @nn.compact
    def __call__(self, image: jax.Array, input_gain: jax.Array | None = None) -> jax.Array:
        """Convolves ``image``, whose channels are first multiplied by ``input_gain [..., 1, 1, C]`` if given."""
        in_channels = image.shape[-1]
        init = uniform_fan_in(in_channels * self.size**2)
        shape = (in_channels, self.channels) if self.size == 1 else (self.size, self.size, in_channels, self.channels)
        kernel = self.param("kernel", init, shape)
        bias = self.param("bias", init, (self.channels,))
        if input_gain is not None:
            # On the weights, not on the image: the same product for a thousandth of the work.
            kernel = kernel * input_gain.reshape(in_channels, 1)
        if self.size == 1:
            result = layers.conv1x1(image, kernel)
        else:
            result = (layers.conv3x3 if self.stride == 1 else layers.conv3x3_stride2)(image, kernel)
        return result if self.cancelled_bias else result + bias


class Norm(nn.Module):
    """Per-channel spatial normalisation with learned scale and bias, then LeakyReLU (slope 1: none).

    Attributes:
      negative_slope: of the LeakyReLU.
      zero_scale: start from scale 0, so that the branch says nothing at first.
    """

    negative_slope: float = 1.0
    zero_scale: bool = False

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """``[..., H, W, C]`` → the same shape."""
        channels = image.shape[-1]
        scale = self.param("scale", nn.initializers.zeros if self.zero_scale else nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return layers.normalise_activate(image, scale, bias, self.negative_slope, _EPSILON)


class NormGain(nn.Module):
    """The gain ``scale / √(var + ε)`` of a normalisation that a convolution and another normalisation follow.

    Its shift (mean and bias) is cancelled by the second normalisation, reflected borders included, so only the gain is left,
    and that can be applied to the convolution's weights: the normalised image is never made.
    """

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """``[H, W, C]`` → ``[1, 1, C]``."""
        scale = self.param("scale", nn.initializers.ones, (image.shape[-1],))
        self.param("bias", nn.initializers.zeros, (image.shape[-1],))
        _, variance = layers.spatial_moments(image)
        return scale * lax.rsqrt(variance + _EPSILON)


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


class SkipGenerator(nn.Module):
    """Latent ``[H, W, latent_channels]`` → image ``[H, W, out_channels]`` in (0, 1).

    Attributes:
      config: widths and depth.
      out_channels: of the image.
    """

    config: ImageGeneratorConfig
    out_channels: int = 1

    @nn.compact
    def __call__(self, latent: jax.Array) -> jax.Array:
        """Runs the net.

        Args:
          latent: ``[H, W, latent_channels]``; one image at a time, more by ``jax.vmap``.

        Returns:
          ``[H, W, out_channels]``.
        """
        features = self._scale(latent, 0)
        return nn.sigmoid(Conv(self.out_channels, cancelled_bias=False, name="out_conv")(features))

    def _conv_norm(self, image: jax.Array, name: str, channels: int, size: int = 1, stride: int = 1) -> jax.Array:
        image = Conv(channels, size, stride, name=f"{name}_conv")(image)
        return Norm(self.config.negative_slope, name=f"{name}_norm")(image)

    def _scale(self, image: jax.Array, scale: int) -> jax.Array:
        """One scale and, inside its deeper branch, all coarser ones: ``[H, W, ·]`` → ``[H, W, channels]``."""
        config, prefix = self.config, f"scale{scale}"
        skip = self._conv_norm(image, f"{prefix}_skip", config.skip_channels)
        deeper = self._conv_norm(image, f"{prefix}_down", config.channels, size=3, stride=2)
        if config.non_local and scale >= FIRST_NON_LOCAL_SCALE:
            deeper = NonLocalBlock(config.non_local_channels, name=f"{prefix}_non_local")(deeper)
        deeper = self._conv_norm(deeper, f"{prefix}_deep", config.channels, size=3)
        if scale + 1 < config.num_scales:
            deeper = self._scale(deeper, scale + 1)
        joined = jnp.concatenate(layers.crop_to_common(skip, layers.upsample_bilinear(deeper)), axis=-1)
        gain = NormGain(name=f"{prefix}_join_norm")(joined)
        up = Conv(config.channels, 3, name=f"{prefix}_up_conv")(joined, gain)
        up = Norm(config.negative_slope, name=f"{prefix}_up_norm")(up)
        return self._conv_norm(up, f"{prefix}_mix", config.channels)
