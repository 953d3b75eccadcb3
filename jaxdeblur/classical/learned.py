"""Non-blind deconvolution with a small learned prior of natural images.

Where a prior on derivatives knows only that edges are rare, a network that was trained to take noise off images knows what
edges and textures look like. It is applied a few times, and in between the image is brought back to what the blurry one allows.

Half-quadratic splitting with a denoiser for its second half: Zoran, Weiss, "From learning models of natural image patches to
whole image restoration" (ICCV 2011), https://doi.org/10.1109/ICCV.2011.6126278 (the splitting); Zhang, Zuo, Gu, Zhang,
"Learning deep CNN denoiser prior for image restoration" (CVPR 2017), https://doi.org/10.1109/CVPR.2017.300 (a network in it);
Zhang, Zuo, Zhang, "FFDNet" (TIP 2018), https://doi.org/10.1109/TIP.2018.2839891 (pixels folded into channels, one network for
all noise levels); Zhang, Van Gool, Timofte, "Deep unfolding network for image super-resolution" (CVPR 2020),
https://doi.org/10.1109/CVPR42600.2020.00328 (stages trained together). Trained by ``experiments/train_prior.py``; data,
figures and limits are in the model card beside the weights.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.classical import saturated, sparse
from jaxdeblur.classical.compiled import reproducible_jit
from jaxdeblur.operators import blur, filter_flow

Weights = Mapping[str, jax.Array]

# No image is better than this: 8 bits alone make up half of it.
SMALLEST_STD = 0.002
# Of the effective noise, at which the stages' deviations are as they were trained.
_REFERENCE_STD = 0.003
# Brings inputs and noise levels to about unit size.
_PIXEL_SCALE, _NOISE_SCALE = 4.0, 20.0
NUM_CG_STEPS = 5
# Of the stages' share where highlights were clipped: by night there are points of light, which the network takes for noise.
_SHARE_BY_NIGHT = 0.5
# Rounds and steps of large images whose highlights were clipped: a quarter of the time. Measured on `tune`: for up to 1.5 dB
# with true kernels, and next to nothing with those that are found.
_FEWER = (8, 20)
# Two times folded by two.
_STRIDE = 4


def effective_noise_std(noise_std: float, kernel_std: float = 0.0) -> float:
    """What the data are trusted to: ``√(max(σ, 0.002)² + σ_k²)``.

    Args:
      noise_std: ``σ`` of the blurry image, in [0, 1] units.
      kernel_std: ``σ_k``, deviation of what an inexact kernel gets wrong in the blurry image, in [0, 1] units.
    """
    return float(np.hypot(max(noise_std, SMALLEST_STD), kernel_std))


def load_weights() -> Weights:
    """The weights that come with the package, float32: the network's, and ``[stages]`` each of ``stage_std``, ``stage_power``
    and ``stage_pull``."""
    return package_weights("learned_prior.npz")


@functools.cache
def package_weights(name: str) -> Weights:
    """Float32 arrays by name, from a file beside this one."""
    source = importlib.resources.files("jaxdeblur.classical").joinpath(name)
    with importlib.resources.as_file(source) as path, np.load(path) as arrays:
        return {array: jnp.asarray(arrays[array], jnp.float32) for array in arrays.files}


def learned(
    blurry: jax.Array,
    kernel: jax.Array,
    *,
    noise_std: float,
    kernel_std: float = 0.0,
    smoothness: float = 1.0,
    fast: bool = False,
    clipped: bool = False,
    weights: Weights | None = None,
) -> jax.Array:
    """Restores the sharp image behind a blurry one whose kernel is known.

    From what :func:`jaxdeblur.classical.sparse.sparse` makes of it, z₀, a few stages t = 1, 2, … go, each

        ``x_t = argmin_x ‖k * x − y‖² + λ_t (σ/β_t)² ‖x − z_{t−1}‖²``,  ``z_t = D(x_t; β_t)``,

    on the whole support (nothing is assumed beyond the blurry image) with ``σ`` the effective noise, ``β_t = b_t (σ/σ₀)^(p_t)``
    and ``D`` a network that takes noise of a given deviation off an image. ``b``, ``p``, ``λ`` and ``D`` were trained
    together. A kernel's faults are no noise, they ring; z_T and z₀ ring differently, so that with an inexact kernel their mean
    is better than either: ``w z_T + (1 − w) z₀`` with ``w`` the noise's share of the effective variance.

    The channels of a colour image share their edges in z₀; in the stages each goes by itself or, if ``fast``, their grey alone,
    ``(R + G + B) / 3``, and the colours remain those of z₀. That is the better of the two on photographs, and the worse where
    edges are of colour alone.

    If highlights were ``clipped``, z₀ is the radiance that :func:`jaxdeblur.classical.saturated.saturated` finds, in each stage
    y is what a sensor that never clips would have seen of z_{t−1} (:func:`jaxdeblur.classical.saturated.unclipped`), and the
    network sees x_t up to white, which is all it knows; what is brighter is kept as it is. Then ``w`` is half of what it is
    without: stars and lamps are rare in what the network was trained on, and z₀ has them.

    Args:
      blurry: ``[H, W]`` or ``[H, W, C]``, in [0, 1].
      kernel: ``[h, w]``, odd sides, non-negative, summing to one; or ``[R, C, h, w]``, one for each of the parts of the
        image, see :func:`jaxdeblur.operators.filter_flow.filter_flow`.
      noise_std: of the blurry image, in [0, 1] units.
      kernel_std: how far the blurry image that the kernel predicts is off for the kernel's own faults, as a deviation in [0, 1]
        units: 0 for a kernel that is exact, some thousandths for an estimated one.
      smoothness: factor on the prior's weight, which is ``σ²`` here: z₀'s prior weighs so much more, and ``σ`` is taken to be
        ``√smoothness`` times as large.
      fast: takes a third of the time: z₀ by :func:`~jaxdeblur.classical.sparse.sparse_fast`, and one image through the stages
        instead of three; if ``clipped``, z₀ in half the rounds, each of half the steps. Measured by experiments/README.md.
      clipped: whether pixels may have been clipped; the channels of a colour image then go through the stages one by one, as
        they are clipped.
      weights: as of :func:`load_weights`, which are taken if left out.

    Returns:
      ``[H+h-1, W+w-1]`` or ``[H+h-1, W+w-1, C]``; not clipped.
    """
    chex.assert_rank(blurry, {2, 3})
    chex.assert_rank(kernel, {2, 4})
    chex.assert_scalar_non_negative(noise_std)
    chex.assert_scalar_non_negative(kernel_std)
    chex.assert_scalar_positive(smoothness)
    weight = smoothness * sparse.weight_for_noise(noise_std)
    if clipped:
        rounds, steps = _FEWER if fast else (saturated.NUM_REWEIGHTINGS, saturated.NUM_CG_STEPS)
        start = saturated.saturated(blurry, kernel, weight=weight, num_reweightings=rounds, num_cg_steps=steps)
    else:
        start = (sparse.sparse_fast if fast else sparse.sparse)(blurry, kernel, weight=weight)
    effective = effective_noise_std(noise_std, kernel_std)
    share = (effective_noise_std(noise_std) / effective) ** 2 * (_SHARE_BY_NIGHT if clipped else 1.0)
    known = weights or load_weights()

    def improved(start: jax.Array, blurry: jax.Array) -> jax.Array:
        return improve(start, blurry, kernel, smoothness**0.5 * effective, known, clipped=clipped)

    if blurry.ndim == 2:
        final = improved(start, blurry)
    elif fast and not clipped:
        grey = start.mean(-1)
        final = start + (improved(grey, blurry.mean(-1)) - grey)[..., None]
    else:  # one after the other: the network's features take more memory than all else
        final = jnp.stack([improved(start[..., c], blurry[..., c]) for c in range(blurry.shape[-1])], axis=-1)
    return share * final + (1.0 - share) * start


def stages(
    start: jax.Array,
    blurry: jax.Array,
    kernel: jax.Array,
    noise_std: jax.Array | float,
    weights: Weights,
    *,
    clipped: bool = False,
) -> list[jax.Array]:
    """What each stage of :func:`learned` gives: z₁, z₂, …

    Args:
      start: z₀, ``[C, H+h-1, W+w-1]``.
      blurry: ``[C, H, W]``.
      kernel: ``[h, w]`` or ``[R, C, h, w]``.
      noise_std: ``σ``, positive.
      weights: of the network and the stages.
      clipped: whether pixels of ``blurry`` may have been clipped.

    Returns:
      One image of the shape of ``start`` for each stage.
    """
    solve = data_step(kernel, (start.shape[-2], start.shape[-1]))
    images = [start]
    for std, power, pull in zip(*(weights[name] for name in ("stage_std", "stage_power", "stage_pull")), strict=True):
        level = std * (noise_std / _REFERENCE_STD) ** power
        observed = saturated.unclipped(blurry, images[-1], kernel) if clipped else blurry
        solved = solve(observed, images[-1], pull * (noise_std / level) ** 2)
        if clipped:
            white = jnp.minimum(solved, 1.0)
            images.append(solved + (denoise(white, level, weights) - white))
        else:
            images.append(denoise(solved, level, weights))
    return images[1:]


@functools.partial(reproducible_jit, static_argnames="clipped")
def improve(
    start: jax.Array,
    blurry: jax.Array,
    kernel: jax.Array,
    noise_std: jax.Array | float,
    weights: Weights,
    *,
    clipped: bool = False,
) -> jax.Array:
    """The last of :func:`stages`, for ``start [H+h-1, W+w-1]`` and ``blurry [H, W]`` or both with channels ``C`` at the end."""
    image, observed = (array[None] if array.ndim == 2 else jnp.moveaxis(array, -1, 0) for array in (start, blurry))
    final = stages(image, observed, kernel, noise_std, weights, clipped=clipped)[-1]
    return final[0] if start.ndim == 2 else jnp.moveaxis(final, 0, -1)


def data_step(
    kernel: jax.Array, support: tuple[int, int], num_cg_steps: int = NUM_CG_STEPS
) -> Callable[[jax.Array, jax.Array, jax.Array | float], jax.Array]:
    """The solver of ``(AᵀA + ρ) x = Aᵀy + ρ z``, A the blur on the valid support.

    Conjugate gradients from z, preconditioned with the inverse ``1 / (|K|² + ρ)`` of what the matrix would be if the image
    went round: the two differ at the border alone, so that a few steps do. Where the kernel varies, ``|K|²`` is its mean.

    Args:
      kernel: ``[h, w]`` or ``[R, C, h, w]``.
      support: ``(H+h-1, W+w-1)``.
      num_cg_steps: 1 or more.

    Returns:
      A function from y ``[C, H, W]``, z ``[C, H+h-1, W+w-1]`` and ρ > 0 to x, of the shape of z.
    """
    forward, adjoint = filter_flow.blur_operator(kernel, support)
    shape = blur.fast_shape(support)
    power = filter_flow.mean_power(kernel, shape)

    def solve(blurry: jax.Array, image: jax.Array, pull: jax.Array | float) -> jax.Array:
        def precondition(residual: jax.Array) -> jax.Array:
            spectrum = jnp.fft.rfft2(residual, shape) / (power + pull)
            return jnp.fft.irfft2(spectrum, shape)[..., : support[0], : support[1]]

        def normal(candidate: jax.Array) -> jax.Array:
            return adjoint(forward(candidate)) + pull * candidate

        # With x = z + u the right side is what z leaves unexplained.
        target = adjoint(blurry - forward(image))
        correction, _ = jax.scipy.sparse.linalg.cg(normal, target, tol=0.0, maxiter=num_cg_steps, M=precondition)
        return image + correction

    return solve


def denoise(noisy: jax.Array, noise_std: jax.Array | float, weights: Weights) -> jax.Array:
    """Takes white noise of a known deviation off images, with a network without biases.

    2×2 pixels become four channels at half the resolution, beside them the noise level; a residual block there, three at a
    quarter of the resolution, one at half again; the output is the noise, in deviations.

    Args:
      noisy: ``[N, H, W]``.
      noise_std: ``β``, positive: one, or ``[N]``.
      weights: of the network.

    Returns:
      The shape of ``noisy``.
    """
    chex.assert_rank(noisy, 3)
    count, height, width = noisy.shape
    padded = jnp.pad(noisy, ((0, 0), (0, -height % _STRIDE), (0, -width % _STRIDE)), mode="edge")[..., None]
    level = jnp.broadcast_to(jnp.reshape(jnp.asarray(noise_std), (-1, 1, 1, 1)), (count, 1, 1, 1))
    folded = fold(_PIXEL_SCALE * (padded - padded.mean((1, 2, 3), keepdims=True)))
    levels = jnp.broadcast_to(_NOISE_SCALE * level, (*folded.shape[:3], 1))

    def block(features: jax.Array, name: str) -> jax.Array:
        return features + convolve(jax.nn.relu(convolve(features, weights[f"{name}a"])), weights[f"{name}b"])

    fine = block(convolve(jnp.concatenate([folded, levels], -1), weights["head"]), "enter")
    coarse = convolve(fine, weights["down"], stride=2)
    for index in range(sum(name.startswith("middle") for name in weights) // 2):
        coarse = block(coarse, f"middle{index}")
    fine = block(fine + unfold(convolve(coarse, weights["up"])), "leave")
    noise = level * unfold(convolve(fine, weights["tail"]))
    return noisy - noise[:, :height, :width, 0]


def initial_weights(key: jax.Array, *, fine: int = 24, coarse: int = 48, num_blocks: int = 3) -> Weights:
    """Random weights of :func:`denoise`'s network, of ``fine`` channels at half the resolution and ``coarse`` at a quarter."""
    shapes = {"head": (3, 3, 5, fine), "down": (2, 2, fine, coarse), "up": (1, 1, coarse, 4 * fine), "tail": (3, 3, fine, 4)}
    shapes |= {f"{name}{part}": (3, 3, fine, fine) for name in ("enter", "leave") for part in "ab"}
    shapes |= {f"middle{index}{part}": (3, 3, coarse, coarse) for index in range(num_blocks) for part in "ab"}
    weights = {}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        # Small at the ends of blocks and of the network, so that it begins by doing little.
        gain = 0.05 if name == "tail" else 0.5 if name.endswith("b") else 1.0
        scale = gain * (2.0 / np.prod(shape[:3])) ** 0.5
        weights[name] = scale * jax.random.normal(jax.random.fold_in(key, index), shape)
    return weights


def convolve(image: jax.Array, weight: jax.Array, *, stride: int = 1, dilation: int = 1) -> jax.Array:
    """``[N, H, W, C]`` by ``[h, w, C, D]``, zeros beyond the border: ``[N, H, W, D]``, or a ``stride``-th of it."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        image, weight, (stride, stride), "SAME", rhs_dilation=(dilation, dilation), dimension_numbers=layout
    )


def fold(image: jax.Array) -> jax.Array:
    """2×2 pixels into channels: ``[N, 2H, 2W, C]`` to ``[N, H, W, 4C]``."""
    count, height, width, channels = image.shape
    pairs = image.reshape(count, height // 2, 2, width // 2, 2, channels)
    return pairs.transpose(0, 1, 3, 2, 4, 5).reshape(count, height // 2, width // 2, 4 * channels)


def unfold(image: jax.Array) -> jax.Array:
    """The inverse of :func:`fold`."""
    count, height, width, channels = image.shape
    pairs = image.reshape(count, height, width, 2, 2, channels // 4)
    return pairs.transpose(0, 1, 3, 2, 4, 5).reshape(count, 2 * height, 2 * width, channels // 4)
