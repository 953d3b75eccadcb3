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
import numpy as np
from jax import lax

# Fewer pixels or channels do not repay the sums that minimal filtering needs, nor its compilation (measured on two cores).
_MIN_PIXELS_MINIMAL_FILTERING = 2_000
_MIN_CHANNELS_MINIMAL_FILTERING = 8
# Images of fewer pixels fit the processor's cache: a second pass over them costs nothing.
MIN_PIXELS_ONE_PASS = 10_000

# Winograd's F(4, 3): four outputs of a three-tap filter from six products instead of twelve. Polynomials are multiplied by
# their values at these points and at infinity. With them rounding errors are half of those with the usual 0, ±1, ±2.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
_STEP = 4  # from one window of samples to the next: the outputs of each


def _minimal_filter_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``B [6, 6], G [6, 3], A [4, 6]``: the outputs for samples d and taps g are ``A ((G g) · (B d))``."""
    inputs, taps, outputs = [], [], []
    for point in _POINTS:
        others = [other for other in _POINTS if other != point]
        inputs.append([*np.poly(others)[::-1], 0.0])
        taps.append(point ** np.arange(3) / np.prod([point - other for other in others]))
        outputs.append(point ** np.arange(_STEP))
    at_infinity = np.eye(_STEP)[-1]
    return np.array([*inputs, np.poly(_POINTS)[::-1]]), np.array([*taps, [0.0, 0.0, 1.0]]), np.array([*outputs, at_infinity]).T


_INPUTS, _TAPS, _OUTPUTS = _minimal_filter_tables()
_WINDOW = len(_INPUTS)


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
    return image_grad, _pixel_product(image, cotangent)


def _pixel_product(left: jax.Array, right: jax.Array) -> jax.Array:
    """``[..., C]`` and ``[..., D]`` → ``[C, D]``, summed over all pixels."""
    left, right = left.reshape(-1, left.shape[-1]), right.reshape(-1, right.shape[-1])
    return lax.dot_general(left, right, (((0,), (0,)), ((), ())))


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


def minimal_filtering_pays(image: jax.Array) -> bool:
    """Whether :func:`minimal3x3` filters ``image [..., H, W, C]`` in less time on a CPU than a product of shifted images."""
    *_, height, width, channels = image.shape
    return height * width >= _MIN_PIXELS_MINIMAL_FILTERING and channels >= _MIN_CHANNELS_MINIMAL_FILTERING


def minimal3x3(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Valid 3×3 filtering by Winograd's F(4×4, 3×3): 2¼ multiplications per pixel and channel pair instead of 9.

    Every 4×4 block of outputs comes from a 6×6 window, of which 36 weighted sums are taken; each is multiplied, over all
    windows at once, by one matrix, and weighted sums of the products are the outputs.

    Args:
      image: ``[..., H, W, C]``.
      kernel: ``[3, 3, C, D]``.

    Returns:
      ``[..., H-2, W-2, D]``.

    Source: Lavin & Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, https://arxiv.org/abs/1509.09308.
    """
    *lead, height, width, _ = image.shape
    # Whole blocks of outputs: what is added gives outputs that are cut off.
    added = [(0, (2 - side) % _STEP) for side in (height, width)]
    whole = jnp.pad(image, [*[(0, 0)] * len(lead), *added, (0, 0)])
    taps = jnp.asarray(_TAPS, kernel.dtype)
    factors = jnp.einsum("ai,bj,ijcd->abcd", taps, taps, kernel)
    return _windows_times(whole, factors.reshape(_WINDOW**2, *kernel.shape[2:]))[..., : height - 2, : width - 2, :]


@jax.custom_vjp
def _windows_times(image: jax.Array, factors: jax.Array) -> jax.Array:
    """``image [..., 4r+2, 4c+2, C]`` and ``factors [36, C, D]`` → ``[..., 4r, 4c, D]``.

    The gradient is written out: derived, that of every slice would be an image of zeros but for its own samples.
    """
    return _windows_times_forward(image, factors)[0]


def _windows_times_forward(image: jax.Array, factors: jax.Array) -> tuple[jax.Array, tuple[list[jax.Array], jax.Array]]:
    rows = _split_windows(image, _INPUTS, -3)
    windows = [part for row in rows for part in _split_windows(row, _INPUTS, -2)]
    products = [window @ factor for window, factor in zip(windows, factors, strict=True)]
    lines = [_join_windows(_OUTPUTS, line, -2) for line in _groups(products)]
    return _join_windows(_OUTPUTS, lines, -3), (windows, factors)


def _windows_times_backward(residuals: tuple[list[jax.Array], jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    windows, factors = residuals
    rows = _split_windows(cotangent, _OUTPUTS.T, -3)
    products = [part for row in rows for part in _split_windows(row, _OUTPUTS.T, -2)]
    grads = [product @ factor.T for product, factor in zip(products, factors, strict=True)]
    lines = [_join_windows(_INPUTS.T, line, -2) for line in _groups(grads)]
    factor_grads = [_pixel_product(window, product) for window, product in zip(windows, products, strict=True)]
    return _join_windows(_INPUTS.T, lines, -3), jnp.stack(factor_grads)


_windows_times.defvjp(_windows_times_forward, _windows_times_backward)


def _groups(parts: list[jax.Array]) -> list[list[jax.Array]]:
    return [parts[start : start + _WINDOW] for start in range(0, len(parts), _WINDOW)]


def _split_windows(image: jax.Array, table: np.ndarray, axis: int) -> list[jax.Array]:
    """``table [m, n]`` times the windows of n samples that begin at every fourth along ``axis``: m images of a sample each."""
    span = image.shape[axis] - table.shape[1] + 1
    samples = [lax.slice_in_dim(image, start, start + span, _STEP, axis=axis) for start in range(table.shape[1])]
    return [_weighted_sum(weights, samples) for weights in table]


def _join_windows(table: np.ndarray, parts: list[jax.Array], axis: int) -> jax.Array:
    """The adjoint of :func:`_split_windows` with ``table.T``: windows are laid down again, and added where they overlap."""
    overlap = len(table) - _STEP

    def moved(image: jax.Array, before: int, after: int) -> jax.Array:
        widths = [(0, 0)] * image.ndim
        widths[axis] = (before, after)
        return jnp.pad(image, widths) if overlap else image

    lines = []
    for place, weights in enumerate(table[:_STEP]):
        line = moved(_weighted_sum(weights, parts), 0, 1)
        if place < overlap:
            line = line + moved(_weighted_sum(table[place + _STEP], parts), 1, 0)
        lines.append(line)
    size = _STEP * parts[0].shape[axis] + overlap
    return lax.slice_in_dim(_interleave(lines, axis), 0, size, axis=axis)


def _weighted_sum(weights: np.ndarray, parts: list[jax.Array]) -> jax.Array:
    terms = [part if weight == 1 else float(weight) * part for weight, part in zip(weights, parts, strict=True) if weight]
    return functools.reduce(jnp.add, terms)


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
    return minimal3x3(padded, kernel) if minimal_filtering_pays(image) else gathered3x3(padded, kernel)


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
