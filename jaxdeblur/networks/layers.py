"""The layers that the generators are made of, on images ``[..., H, W, C]``.

Why convolutions are written out here: XLA runs convolutions slowly on CPUs when weights carry a restart axis (``vmap`` makes
them grouped) or when their gradient sits inside a loop. Written as matrix products over shifted slices neither happens, so
one code path serves single runs, restarts and scanned steps. A GPU's library convolutions have no such trouble and are used
there.
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
from jax import lax

# Images of fewer pixels do not repay the sums that minimal filtering needs (measured on two cores).
MIN_PIXELS_MINIMAL_FILTERING = 2_000
# Images of fewer pixels fit the processor's cache: a second pass over them costs nothing.
MIN_PIXELS_ONE_PASS = 10_000

# Winograd's F(2, 3): two outputs of a three-tap filter from four products instead of six. ``_INPUTS[p]`` holds the
# (position in the window of four, sign) of the samples summed for product p, ``_OUTPUTS[o]`` the (product, sign) of the
# products summed for output o; row p of ``_FILTERS`` times the taps is the factor of product p.
Terms = tuple[tuple[int, int], ...]
_INPUTS: tuple[Terms, ...] = (((0, 1), (2, -1)), ((1, 1), (2, 1)), ((2, 1), (1, -1)), ((1, 1), (3, -1)))
_OUTPUTS: tuple[Terms, ...] = (((0, 1), (1, 1), (2, 1)), ((1, 1), (2, -1), (3, -1)))
_FILTERS = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def use_library_convolutions() -> bool:
    """Whether 3×3 convolutions go to the device's own library: everywhere but on CPUs."""
    return jax.default_backend() != "cpu"


def pad_reflect(image: jax.Array) -> jax.Array:
    """Adds one mirrored row or column on each side of ``image [..., H, W, C]`` (the edge itself is not repeated)."""
    lead = [(0, 0)] * (image.ndim - 3)
    return jnp.pad(image, [*lead, (1, 1), (1, 1), (0, 0)], mode="reflect")


@jax.custom_vjp
def channel_product(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """``image [..., C] @ matrix [C, D]`` → ``[..., D]``.

    The gradient is written out so that the image stands on the left in the matrix's: the other way round, XLA's CPU
    compiler writes a transposed copy of the whole cotangent first, which takes longer than the product.
    """
    return image @ matrix


def _channel_product_backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    image, matrix = residuals
    image_grad = cotangent @ matrix.T
    left, right = image.reshape(-1, image.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
    return image_grad, lax.dot_general(left, right, (((0,), (0,)), ((), ())))


channel_product.defvjp(lambda image, matrix: (image @ matrix, (image, matrix)), _channel_product_backward)


def conv1x1(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Mixes channels: ``image [..., H, W, C]``, ``kernel [C, D]`` → ``[..., H, W, D]``."""
    return channel_product(image, kernel)


def _library_conv(padded: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    *lead, height, width, channels = padded.shape
    result = lax.conv_general_dilated(
        padded.reshape(-1, height, width, channels),
        kernel,
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return result.reshape(*lead, *result.shape[1:])


def _signed_sum(parts: list[tuple[jax.Array, int]]) -> jax.Array:
    (total, sign), *rest = parts
    total = total if sign > 0 else -total
    for part, sign in rest:
        total = total + part if sign > 0 else total - part
    return total


def gathered3x3(image: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Valid 3×3 filtering as one matrix product, the nine shifted images side by side along the channels.

    Args:
      image: ``[..., H, W, C]``.
      kernel: ``[3, 3, C, D]``.
      stride: between outputs.

    Returns:
      ``[..., ⌈(H-2)/stride⌉, ⌈(W-2)/stride⌉, D]``.
    """
    *_, height, width, channels = image.shape
    shifted = [
        image[..., row : height - 2 + row : stride, column : width - 2 + column : stride, :]
        for row in range(3)
        for column in range(3)
    ]
    return channel_product(jnp.concatenate(shifted, axis=-1), kernel.reshape(9 * channels, -1))


def minimal3x3(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Valid 3×3 filtering by Winograd's F(2×2, 3×3): 4 multiplications per pixel and channel pair instead of 9.

    Every 2×2 block of outputs comes from a 4×4 window of which 16 signed sums are taken; each is multiplied, over all
    windows at once, by one matrix, and signed sums of the products are the outputs. The image is split by the parity of row and
    column and each part flattened: the samples at one position of all windows are then one contiguous slice of one
    part, so nothing is gathered. The last window of each row reaches over its end; it is junk and cut off.

    Args:
      image: ``[..., H, W, C]``.
      kernel: ``[3, 3, C, D]``.

    Returns:
      ``[..., H-2, W-2, D]``.

    Source: Lavin & Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, https://arxiv.org/abs/1509.09308.
    """
    *lead, height, width, channels = image.shape
    spare = [(0, 0)] * len(lead)
    rows, columns = (height + 1) // 2, (width + 1) // 2
    even = jnp.pad(image, [*spare, (0, height % 2), (0, width % 2), (0, 0)])
    parts = [[part.reshape(*lead, rows * columns, channels) for part in line] for line in _split_by_parity(even)]
    windows = (rows - 1) * columns - 1

    def samples(row: int, column: int) -> jax.Array:
        start = (row // 2) * columns + column // 2
        return lax.slice_in_dim(parts[row % 2][column % 2], start, start + windows, axis=-2)

    filters = jnp.asarray(_FILTERS, kernel.dtype)
    factors = jnp.einsum("ai,bj,ijcd->abcd", filters, filters, kernel)
    products = [
        [
            channel_product(
                _signed_sum([(samples(row, column), p * q) for row, p in upright for column, q in level]), factors[a, b]
            )
            for b, level in enumerate(_INPUTS)
        ]
        for a, upright in enumerate(_INPUTS)
    ]

    def output(upright: Terms, level: Terms) -> jax.Array:
        flat = _signed_sum([(products[a][b], p * q) for a, p in upright for b, q in level])
        flat = jnp.pad(flat, [*spare, (0, 1), (0, 0)])
        return flat.reshape(*lead, rows - 1, columns, -1)[..., : columns - 1, :]

    lines = [_interleave([output(upright, level) for level in _OUTPUTS], -2) for upright in _OUTPUTS]
    return _interleave(lines, -3)[..., : height - 2, : width - 2, :]


@jax.custom_vjp
def _split_by_parity(image: jax.Array) -> list[list[jax.Array]]:
    """``parts[row parity][column parity]``, each ``[..., H/2, W/2, C]``, of an even-sized image.

    The gradient is written out as the weaving that it is; derived, it would be a sum of four full-sized images.
    """
    return [[image[..., a::2, b::2, :] for b in (0, 1)] for a in (0, 1)]


_split_by_parity.defvjp(
    lambda image: (_split_by_parity(image), None),
    lambda _, parts: (_interleave([_interleave(line, -2) for line in parts], -3),),
)


def _interleave(images: list[jax.Array], axis: int) -> jax.Array:
    """Weaves images of one shape together along ``axis`` (negative)."""
    shape = list(images[0].shape)
    shape[axis] *= len(images)
    return jnp.stack(images, axis=axis).reshape(shape)


def conv3x3(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """3×3 convolution (in the networks' sense: no flip) with reflected borders.

    Args:
      image: ``[..., H, W, C]``, H and W at least 2.
      kernel: ``[3, 3, C, D]``.

    Returns:
      ``[..., H, W, D]``.
    """
    chex.assert_shape(kernel, (3, 3, image.shape[-1], None))
    padded = pad_reflect(image)
    if use_library_convolutions():
        return _library_conv(padded, kernel, 1)
    if image.shape[-3] * image.shape[-2] < MIN_PIXELS_MINIMAL_FILTERING:
        return gathered3x3(padded, kernel)
    return minimal3x3(padded, kernel)


def conv3x3_stride2(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """3×3 convolution with reflected borders, every second row and column: ``[..., H, W, C]`` → ``[..., ⌈H/2⌉, ⌈W/2⌉, D]``.

    Args:
      image: ``[..., H, W, C]``, H and W at least 2.
      kernel: ``[3, 3, C, D]``.
    """
    chex.assert_shape(kernel, (3, 3, image.shape[-1], None))
    padded = pad_reflect(image)
    if use_library_convolutions():
        return _library_conv(padded, kernel, 2)
    return gathered3x3(padded, kernel, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise_activate(
    image: jax.Array, scale: jax.Array, bias: jax.Array, negative_slope: float, epsilon: float = 1e-5
) -> jax.Array:
    """Per-channel spatial normalisation, then LeakyReLU.

    ``z = lrelu(scale · (x − mean) / √(var + ε) + bias)``, mean and (biased) variance over the pixels of each channel of each
    image: what batch normalisation in training mode does to a batch of one. The gradient is written out because it
    then takes two passes over memory instead of many.

    Args:
      image: ``[..., H, W, C]``.
      scale: ``[C]``.
      bias: ``[C]``.
      negative_slope: slope of the LeakyReLU below zero, in (0, 1]; 1 leaves the activation out.
      epsilon: added to the variance.

    Source: Ioffe & Szegedy, "Batch normalization", ICML 2015.
    """
    return _normalise_activate_forward(image, scale, bias, negative_slope, epsilon)[0]


def spatial_moments(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance ``[..., 1, 1, C]`` over the pixels of ``image [..., H, W, C]``.

    Of large images as ``E[x²] − E[x]²``, for the sake of one pass over memory. Of small ones as ``E[(x − E[x])²]``: a few
    pixels at the bottom of the net can be nearly equal, and the difference of two large numbers would lose their variance.
    """
    mean = jnp.mean(image, axis=(-3, -2), keepdims=True)
    if image.shape[-3] * image.shape[-2] < MIN_PIXELS_ONE_PASS:
        return mean, jnp.mean(jnp.square(image - mean), axis=(-3, -2), keepdims=True)
    square = jnp.mean(jnp.square(image), axis=(-3, -2), keepdims=True)
    return mean, jnp.maximum(square - jnp.square(mean), 0.0)


_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def _normalise_activate_forward(
    image: jax.Array, scale: jax.Array, bias: jax.Array, negative_slope: float, epsilon: float
) -> tuple[jax.Array, _Residuals]:
    mean, variance = spatial_moments(image)
    inverse = lax.rsqrt(variance + epsilon)
    gain = inverse * scale
    value = image * gain + (bias - mean * gain)
    activated = jnp.maximum(value, negative_slope * value) if negative_slope < 1 else value
    return activated, (image, activated, mean, inverse, scale)


def _normalise_activate_backward(
    negative_slope: float, epsilon: float, residuals: _Residuals, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon
    image, activated, mean, inverse, scale = residuals
    # The activation keeps the sign, so its output tells where it was on the slope.
    through = jnp.where(activated >= 0, cotangent, negative_slope * cotangent) if negative_slope < 1 else cotangent
    pixels = image.shape[-3] * image.shape[-2]
    sum_bias = jnp.sum(through, axis=(-3, -2), keepdims=True)
    sum_scale = inverse * (jnp.sum(through * image, axis=(-3, -2), keepdims=True) - mean * sum_bias)
    # dx = γ r (t − Σt / N − x̂ Σ(t x̂) / N) with x̂ = (x − m) r, gathered into one gain each for t and x.
    gain = scale * inverse
    image_gain = -gain * inverse * sum_scale / pixels
    image_grad = gain * through + image_gain * image - (gain * sum_bias / pixels + image_gain * mean)
    axes = tuple(range(image.ndim - 1))
    return image_grad, jnp.sum(sum_scale, axis=axes), jnp.sum(sum_bias, axis=axes)


normalise_activate.defvjp(_normalise_activate_forward, _normalise_activate_backward)


def _shifted(image: jax.Array, first: jax.Array | None, last: jax.Array | None, axis: int) -> jax.Array:
    """``image`` moved by one sample along ``axis``: one is let in at the front (``first``) or at the back (``last``)."""
    size = image.shape[axis]
    if first is not None:
        return jnp.concatenate([first, lax.slice_in_dim(image, 0, size - 1, axis=axis)], axis=axis)
    assert last is not None
    return jnp.concatenate([lax.slice_in_dim(image, 1, size, axis=axis), last], axis=axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _double(image: jax.Array, axis: int) -> jax.Array:
    """Doubles one axis (negative): new samples lie a quarter of a pixel left and right of the old ones, edges repeated."""
    size = image.shape[axis]
    before = _shifted(image, lax.slice_in_dim(image, 0, 1, axis=axis), None, axis)
    after = _shifted(image, None, lax.slice_in_dim(image, size - 1, size, axis=axis), axis)
    return _interleave([0.25 * before + 0.75 * image, 0.75 * image + 0.25 * after], axis)


def _double_backward(axis: int, _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    size = cotangent.shape[axis]
    even = lax.slice_in_dim(cotangent, 0, size, stride=2, axis=axis)
    odd = lax.slice_in_dim(cotangent, 1, size, stride=2, axis=axis)
    half = size // 2
    # The repeated edges send their share back to the edge itself.
    after = _shifted(odd, lax.slice_in_dim(even, 0, 1, axis=axis), None, axis)
    before = _shifted(even, None, lax.slice_in_dim(odd, half - 1, half, axis=axis), axis)
    return (0.75 * (even + odd) + 0.25 * (after + before),)


_double.defvjp(lambda image, axis: (_double(image, axis), None), _double_backward)


def upsample_bilinear(image: jax.Array) -> jax.Array:
    """Bilinear ×2, pixel areas aligned (not corners): ``[..., H, W, C]`` → ``[..., 2H, 2W, C]``."""
    return _double(_double(image, -3), -2)


def crop_to_common(*images: jax.Array) -> list[jax.Array]:
    """Cuts images ``[..., H, W, C]`` centrally to the smallest height and width among them."""
    height = min(image.shape[-3] for image in images)
    width = min(image.shape[-2] for image in images)
    cropped = []
    for image in images:
        top, left = (image.shape[-3] - height) // 2, (image.shape[-2] - width) // 2
        cropped.append(image[..., top : top + height, left : left + width, :])
    return cropped


def max_pool2(image: jax.Array) -> jax.Array:
    """Maximum over 2×2 blocks, an odd last row or column dropped: ``[..., H, W, C]`` → ``[..., ⌊H/2⌋, ⌊W/2⌋, C]``."""
    *lead, height, width, channels = image.shape
    rows, columns = height // 2, width // 2
    blocks = image[..., : 2 * rows, : 2 * columns, :].reshape(*lead, rows, 2, columns, 2, channels)
    return jnp.max(blocks, axis=(-4, -2))
