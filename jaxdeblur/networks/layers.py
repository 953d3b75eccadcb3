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

# Winograd's F(2, 3): two outputs of a three-tap filter from four products. ``_INPUT[k]`` lists (offset, sign) of the inputs
# summed for product k, ``_OUTPUT[o]`` (product, sign) of those summed for output o; ``_FILTER @ taps`` are the filter's parts.
_INPUT = (((0, 1), (2, -1)), ((1, 1), (2, 1)), ((2, 1), (1, -1)), ((1, 1), (3, -1)))
_OUTPUT = (((0, 1), (1, 1), (2, 1)), ((1, 1), (2, -1), (3, -1)))
_FILTER = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def use_library_convolutions() -> bool:
    """Whether 3×3 convolutions go to the device's own library: everywhere but on CPUs."""
    return jax.default_backend() != "cpu"


def pad_reflect(image: jax.Array) -> jax.Array:
    """Adds one mirrored row or column on each side of ``image [..., H, W, C]`` (the edge itself is not repeated)."""
    lead = [(0, 0)] * (image.ndim - 3)
    return jnp.pad(image, [*lead, (1, 1), (1, 1), (0, 0)], mode="reflect")


def conv1x1(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Mixes channels: ``image [..., H, W, C]``, ``kernel [C, D]`` → ``[..., H, W, D]``."""
    return image @ kernel


def _even(image: jax.Array) -> jax.Array:
    """Fills ``image [..., H, W, C]`` with zeros to even height and width."""
    lead = [(0, 0)] * (image.ndim - 3)
    return jnp.pad(image, [*lead, (0, image.shape[-3] % 2), (0, image.shape[-2] % 2), (0, 0)])


def _phases(image: jax.Array) -> tuple[list[list[jax.Array]], tuple[int, int]]:
    """Splits an even-sized image by the parity of row and column.

    Returns:
      ``phases[row parity][column parity]``, each flattened to ``[..., (H/2)·(W/2), C]``, and ``(H/2, W/2)``.
    """
    *lead, height, width, channels = image.shape
    rows, columns = height // 2, width // 2
    split = image.reshape(*lead, rows, 2, columns, 2, channels)
    flat = (*lead, rows * columns, channels)
    return [[split[..., :, a, :, b, :].reshape(flat) for b in (0, 1)] for a in (0, 1)], (rows, columns)


def _unflatten(flat: jax.Array, rows: int, columns: int, keep: int) -> jax.Array:
    """Turns ``flat [..., n, D]`` (n ≤ rows·columns) into ``[..., rows, keep, D]``, dropping each row's junk columns."""
    *lead, length, channels = flat.shape
    full = jnp.pad(flat, [*[(0, 0)] * len(lead), (0, rows * columns - length), (0, 0)])
    return full.reshape(*lead, rows, columns, channels)[..., :keep, :]


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


def conv3x3(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """3×3 convolution (in the networks' sense: no flip) with reflected borders.

    On CPUs by Winograd's minimal filtering F(2×2, 3×3): of every 4×4 window 16 signed sums are taken, each is one matrix
    product over all windows, and signed sums of the products are the 2×2 outputs: 4 products per pixel instead of 9. The
    windows of one kind are contiguous in the image's four parity phases, flattened, so nothing is gathered; the
    last window of each row is junk and cut off.

    Args:
      image: ``[..., H, W, C]``, H and W at least 2.
      kernel: ``[3, 3, C, D]``.

    Returns:
      ``[..., H, W, D]``.

    Source: Lavin & Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, https://arxiv.org/abs/1509.09308.
    """
    chex.assert_shape(kernel, (3, 3, image.shape[-1], None))
    *lead, height, width, _ = image.shape
    padded = pad_reflect(image)
    if use_library_convolutions():
        return _library_conv(padded, kernel, 1)
    phases, (rows, columns) = _phases(_even(padded))
    windows = (rows - 1) * columns - 1

    def sample(row: int, column: int) -> jax.Array:
        start = (row // 2) * columns + column // 2
        return lax.slice_in_dim(phases[row % 2][column % 2], start, start + windows, axis=-2)

    parts = jnp.asarray(_FILTER, kernel.dtype)
    filters = jnp.einsum("ai,bj,ijcd->abcd", parts, parts, kernel)
    products = [
        [
            _signed_sum([(sample(row, column), p * q) for row, p in _INPUT[a] for column, q in _INPUT[b]]) @ filters[a, b]
            for b in range(4)
        ]
        for a in range(4)
    ]

    def output(row: int, column: int) -> jax.Array:
        flat = _signed_sum([(products[a][b], p * q) for a, p in _OUTPUT[row] for b, q in _OUTPUT[column]])
        return _unflatten(flat, rows - 1, columns, columns - 1)

    interleaved = [jnp.stack([output(row, 0), output(row, 1)], axis=-2) for row in (0, 1)]
    result = jnp.stack(interleaved, axis=-4)
    result = result.reshape(*lead, 2 * (rows - 1), 2 * (columns - 1), kernel.shape[-1])
    return result[..., :height, :width, :]


def conv3x3_stride2(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """3×3 convolution with reflected borders, every second row and column: ``[..., H, W, C]`` → ``[..., ⌈H/2⌉, ⌈W/2⌉, D]``.

    Args:
      image: ``[..., H, W, C]``, H and W at least 2.
      kernel: ``[3, 3, C, D]``.
    """
    chex.assert_shape(kernel, (3, 3, image.shape[-1], None))
    *_, height, width, _ = image.shape
    padded = pad_reflect(image)
    if use_library_convolutions():
        return _library_conv(padded, kernel, 2)
    out_rows, out_columns = (height + 1) // 2, (width + 1) // 2
    phases, (_, columns) = _phases(_even(padded))
    length = (out_rows - 1) * columns + out_columns
    total = None
    for row in range(3):
        for column in range(3):
            start = (row // 2) * columns + column // 2
            part = lax.slice_in_dim(phases[row % 2][column % 2], start, start + length, axis=-2) @ kernel[row, column]
            total = part if total is None else total + part
    assert total is not None
    return _unflatten(total, out_rows, columns, out_columns)


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
      negative_slope: slope of the LeakyReLU below zero; 1 leaves the activation out.
      epsilon: added to the variance.

    Source: Ioffe & Szegedy, "Batch normalization", ICML 2015.
    """
    return _normalise_activate_forward(image, scale, bias, negative_slope, epsilon)[0]


def spatial_moments(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance ``[..., 1, 1, C]`` over the pixels of ``image [..., H, W, C]``."""
    mean = jnp.mean(image, axis=(-3, -2), keepdims=True)
    return mean, jnp.mean(jnp.square(image - mean), axis=(-3, -2), keepdims=True)


def _activate(value: jax.Array, negative_slope: float) -> jax.Array:
    return jnp.where(value >= 0, value, negative_slope * value)


_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def _normalise_activate_forward(
    image: jax.Array, scale: jax.Array, bias: jax.Array, negative_slope: float, epsilon: float
) -> tuple[jax.Array, _Residuals]:
    mean, variance = spatial_moments(image)
    inverse = lax.rsqrt(variance + epsilon)
    value = (image - mean) * (inverse * scale) + bias
    return _activate(value, negative_slope), (image, mean, inverse, scale, bias)


def _normalise_activate_backward(
    negative_slope: float, epsilon: float, residuals: _Residuals, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon
    image, mean, inverse, scale, bias = residuals
    normalised = (image - mean) * inverse
    through = jnp.where(normalised * scale + bias >= 0, cotangent, negative_slope * cotangent)
    pixels = image.shape[-3] * image.shape[-2]
    sum_bias = jnp.sum(through, axis=(-3, -2), keepdims=True)
    sum_scale = jnp.sum(through * normalised, axis=(-3, -2), keepdims=True)
    grad_image = (scale * inverse) * (through - sum_bias / pixels - normalised * (sum_scale / pixels))
    axes = tuple(range(image.ndim - 1))
    return grad_image, jnp.sum(sum_scale, axis=axes), jnp.sum(sum_bias, axis=axes)


normalise_activate.defvjp(_normalise_activate_forward, _normalise_activate_backward)


def _double(image: jax.Array, axis: int) -> jax.Array:
    """Doubles one axis: new samples lie a quarter of a pixel left and right of the old ones, edges repeated."""
    size = image.shape[axis]
    first = lax.slice_in_dim(image, 0, 1, axis=axis)
    last = lax.slice_in_dim(image, size - 1, size, axis=axis)
    before = jnp.concatenate([first, lax.slice_in_dim(image, 0, size - 1, axis=axis)], axis=axis)
    after = jnp.concatenate([lax.slice_in_dim(image, 1, size, axis=axis), last], axis=axis)
    doubled = jnp.stack([0.25 * before + 0.75 * image, 0.75 * image + 0.25 * after], axis=axis + 1)
    return doubled.reshape(*image.shape[:axis], 2 * size, *image.shape[axis + 1 :])


def upsample_bilinear(image: jax.Array) -> jax.Array:
    """Bilinear ×2, pixel areas aligned (not corners): ``[..., H, W, C]`` → ``[..., 2H, 2W, C]``."""
    return _double(_double(image, image.ndim - 3), image.ndim - 2)


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
