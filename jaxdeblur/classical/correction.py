"""Correcting an estimated kernel by a learned step.

An image that is restored with a slightly wrong kernel has ghosts and ringing, from which a network that has seen many tells
what the sharp image is like, and where it can be relied on. With that image the kernel's change follows by least squares; a
second network, on the kernel's own grid, weighs how far to go. Both are trained together, through the least squares, for images
restored with the new kernel to come close to those restored with the true one.

A network that prepares an image for a kernel step in closed form, trained through it: Schuler, Hirsch, Harmeling, Schölkopf,
"Learning to deblur" (TPAMI 2016), https://doi.org/10.1109/TPAMI.2015.2481418. Trained by ``experiments/train_correction.py``;
data, figures and limits are in the model card beside the weights.
"""

from __future__ import annotations

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.classical import learned, sparse
from jaxdeblur.classical.compiled import reproducible_jit
from jaxdeblur.classical.kernel_l0 import drop_faint
from jaxdeblur.classical.learned import Weights
from jaxdeblur.operators import blur
from jaxdeblur.operators.filter_flow import patch_middles
from jaxdeblur.operators.gradients import gradient
from jaxdeblur.operators.kernels import crop_kernel, pad_kernel

# Support of the kernels that the networks were trained with; smaller ones are given so much room.
SUPPORT = 43
# Of 8 bits' own noise.
QUANTISED_STD = 0.29 / 255
# What the kernel gets wrong in the blurry image, for the restoration that the step begins with.
_KERNEL_STD = 0.002
_FAINT = 0.004
# Where kernels vary: the side of the windows, in pixels and at least in kernels, and the places along each side of the image.
_FIELD_SIDE, _FIELD_KERNELS, _MOST_PLACES = 224, 4, 3
_WIENER_RIDGE = 0.01
_NUM_CG_STEPS = 12
_NUM_RIDGES = 3
# Dilations of the residual blocks of the network on images and of that on kernels.
_IMAGE_DILATIONS = (1, 2, 4, 8, 4, 2, 1)
_KERNEL_DILATIONS = (1, 1, 2, 4, 2, 1, 1)
# Channels that the first takes (five planes of 2×2 pixels, the noise) and gives (three planes), and likewise the second.
_IMAGE_CHANNELS, _KERNEL_CHANNELS = (5 * 4 + 1, 3 * 4), (1 + _NUM_RIDGES + 2, _NUM_RIDGES + 1)


def correct(
    blurry: np.ndarray, kernel: np.ndarray, *, noise_std: float, share: float = 1.0, weights: Weights | None = None
) -> np.ndarray:
    """A kernel that is nearer to the true one than an estimate, in the mean.

    Args:
      blurry: ``[H, W]`` in [0, 1], at least as large as the kernel.
      kernel: ``[h, h]``, odd, non-negative, summing to one.
      noise_std: of the image, in [0, 1] units.
      share: of the way from the estimate to what the networks say, in [0, 1].
      weights: as of :func:`load_weights`, which are taken if left out.

    Returns:
      ``[h, h]`` float32, non-negative, summing to one.
    """
    chex.assert_rank([blurry, kernel], 2)
    size = kernel.shape[0]
    side = max(size, SUPPORT)
    observed, padded = jnp.asarray(blurry, jnp.float32), pad_kernel(jnp.asarray(kernel, jnp.float32), (side, side))
    noise = max(noise_std, QUANTISED_STD)
    start, sharp = restored(observed, padded, noise_std=noise)
    stepped = _compiled_step(observed, start, sharp, padded, noise, weights or load_weights())
    new = crop_kernel(share * stepped + (1.0 - share) * padded, (size, size))
    return np.asarray(drop_faint(new, _FAINT))


def correct_field(blurry: np.ndarray, kernels: np.ndarray, *, noise_std: float, share: float = 1.0) -> np.ndarray:
    """Kernels that vary over the image, all changed by the mean of what :func:`correct` changes in some places.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      kernels: ``[rows, columns, h, h]``, one for each of the parts of the image, each non-negative and summing to one.
      noise_std: of the image, in [0, 1] units.
      share: as of :func:`correct`.

    Returns:
      The shape of ``kernels``, float32, each non-negative and summing to one.
    """
    chex.assert_rank([blurry, kernels], [2, 4])
    side = max(_FIELD_SIDE, _FIELD_KERNELS * kernels.shape[-1])
    shape = [min(length, side) for length in blurry.shape]
    middles = [patch_middles(length, count) for length, count in zip(blurry.shape, kernels.shape[:2], strict=True)]
    places = [_spread(count, _MOST_PLACES) for count in kernels.shape[:2]]
    changes = []
    for place in itertools.product(*places):
        corners = [middle[index] - length // 2 for middle, index, length in zip(middles, place, shape, strict=True)]
        first = [
            int(np.clip(corner, 0, whole - length)) for corner, whole, length in zip(corners, blurry.shape, shape, strict=True)
        ]
        seen = blurry[first[0] : first[0] + shape[0], first[1] : first[1] + shape[1]]
        changes.append(correct(seen, kernels[place], noise_std=noise_std, share=share) - kernels[place])
    changed = np.maximum(kernels + np.mean(changes, axis=0), 0.0)
    return (changed / changed.sum((-2, -1), keepdims=True)).astype(np.float32)


def _spread(count: int, most: int) -> list[int]:
    """At most so many of ``count`` indices, evenly spread."""
    number = min(count, most)
    return [int((index + 0.5) * count / number) for index in range(number)]


def restored(blurry: jax.Array, kernel: jax.Array, *, noise_std: float) -> tuple[jax.Array, jax.Array]:
    """The images from which :func:`step` begins: under the sparse prior, and that one under the learned prior.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      kernel: ``[h, h]``.
      noise_std: of the image, in [0, 1] units.

    Returns:
      Two of ``[H+h-1, W+h-1]``.
    """
    start = sparse.sparse(blurry, kernel, weight=sparse.weight_for_noise(noise_std))
    effective = learned.effective_noise_std(noise_std, _KERNEL_STD)
    return start, learned.improve(start, blurry, kernel, effective, learned.load_weights())


def step(
    blurry: jax.Array, start: jax.Array, sharp: jax.Array, kernel: jax.Array, noise_std: jax.Array | float, weights: Weights
) -> jax.Array:
    """One step from the kernel ``k`` with which ``sharp`` was restored.

    A network gives the image ``x`` and masks ``m``, ``n`` in [0, 2]. For each of three ridges r follows

        ``e_r = argmin_e ‖n ∇(y − k * x) − e * (m ∇x)‖² + r ‖m ∇x‖² ‖e‖²``

    by a few conjugate gradients from zero. Another network, on the kernel's grid, gives shares ``s_r`` in [0, 1] and a rest
    ``d``: the new kernel is ``max(k + Σ_r s_r e_r + d, 0)``, scaled to sum to one.

    Args:
      blurry: ``y``, ``[H, W]``.
      start: ``[H+h-1, W+h-1]``, of :func:`restored`.
      sharp: likewise.
      kernel: ``k``, ``[h, h]``.
      noise_std: of the image, positive.
      weights: as of :func:`load_weights`.

    Returns:
      ``[h, h]``.
    """
    (size, _), (height, width) = kernel.shape, sharp.shape
    level = jnp.log10(jnp.maximum(noise_std, 1e-3)) + 2.5
    unexplained = blurry - blur.blur_valid(sharp, kernel)
    mean = sharp.mean()
    seen = [
        4.0 * (sharp - mean),
        4.0 * (blur.pad_to_latent(blurry, (size, size)) - mean),
        20.0 * (start - sharp),
        10.0 * _wiener(unexplained, kernel),
        0.3 * jnp.pad(unexplained / jnp.sqrt(noise_std**2 + 1e-5), size // 2),
    ]
    planes = jnp.pad(jnp.stack(seen, -1), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    folded = learned.fold(planes[None])
    folded = jnp.concatenate([folded, jnp.full((*folded.shape[:3], 1), level)], -1)
    found = learned.unfold(_network(folded, weights, "image", _IMAGE_DILATIONS))[0, :height, :width]
    image, (trusted, explained) = sharp + 0.1 * found[..., 0], 2.0 * jax.nn.sigmoid(3.0 * jnp.moveaxis(found[..., 1:], -1, 0))
    edges = trusted[:-1, :-1] * gradient(image)
    target = blur.crop_to_blurry(explained, (size, size))[:-1, :-1] * gradient(blurry - blur.blur_valid(image, kernel))

    ridges = 10.0 ** (weights["ridge"] + weights["ridge_by_noise"] * level)
    changes = _least_squares(edges, target, size, ridges)
    largest = kernel.max()
    known = [kernel / largest, *(changes / largest), jnp.full_like(kernel, level)]
    known.append(jnp.full_like(kernel, jnp.log10(largest) + 1.5))
    wanted = jnp.moveaxis(_network(jnp.stack(known, -1)[None], weights, "kernel", _KERNEL_DILATIONS)[0], -1, 0)
    changed = kernel + jnp.sum(jax.nn.sigmoid(wanted[:-1]) * changes, 0) + 0.3 * largest * wanted[-1]
    new = jax.nn.relu(changed) + 1e-6 * kernel
    return new / new.sum()


_compiled_step = reproducible_jit(step)


def load_weights() -> Weights:
    """The weights that come with the package, float32: of both networks, and ``ridge`` and ``ridge_by_noise``, ``[3]`` each."""
    return learned.package_weights("kernel_correction.npz")


def initial_weights(key: jax.Array, *, image: int = 32, kernel: int = 24) -> Weights:
    """Random weights, of networks of ``image`` and ``kernel`` channels, with which a step changes little."""
    weights = {"ridge": jnp.array([-3.0, -2.0, -1.0]), "ridge_by_noise": jnp.zeros(_NUM_RIDGES)}
    networks = (("image", image, _IMAGE_DILATIONS, _IMAGE_CHANNELS), ("kernel", kernel, _KERNEL_DILATIONS, _KERNEL_CHANNELS))
    for name, width, dilations, (entering, leaving) in networks:
        layers = {"head": ((3, 3, entering, width), 1.0), "tail": ((3, 3, width, leaving), 0.01)}
        for index in range(len(dilations)):
            layers |= {f"{index}a": ((3, 3, width, width), 1.0), f"{index}b": ((1, 1, width, width), 0.1)}
        for layer, (shape, gain) in sorted(layers.items()):
            key, own = jax.random.split(key)
            weights[f"{name}_{layer}"] = gain * float(np.prod(shape[:3])) ** -0.5 * jax.random.normal(own, shape)
            weights[f"{name}_{layer}_bias"] = jnp.zeros(shape[-1])
    weights["kernel_tail_bias"] = jnp.array([-3.0, -2.0, -1.0, 0.0])
    return weights


def _network(planes: jax.Array, weights: Weights, name: str, dilations: tuple[int, ...]) -> jax.Array:
    """Residual blocks, ``[N, H, W, C]``."""
    features = _convolve(planes, weights, f"{name}_head")
    for index, dilation in enumerate(dilations):
        inner = _convolve(jax.nn.relu(features), weights, f"{name}_{index}a", dilation)
        features = features + _convolve(jax.nn.relu(inner), weights, f"{name}_{index}b")
    return _convolve(jax.nn.relu(features), weights, f"{name}_tail")


def _convolve(planes: jax.Array, weights: Weights, name: str, dilation: int = 1) -> jax.Array:
    return learned.convolve(planes, weights[name], dilation=dilation) + weights[f"{name}_bias"]


def _wiener(unexplained: jax.Array, kernel: jax.Array) -> jax.Array:
    """``conj(K) R / (|K|² + r)``, ``[H, W]`` to ``[H+h-1, W+h-1]``."""
    size = kernel.shape[0]
    rows, columns = blur.latent_shape((unexplained.shape[0], unexplained.shape[1]), (size, size))
    shape = blur.fast_shape((rows, columns))
    spectrum = blur.kernel_spectrum(kernel, shape)
    placed = jnp.fft.rfft2(jnp.pad(unexplained, (size - 1, 0)), shape)
    filtered = placed * jnp.conj(spectrum) / (jnp.abs(spectrum) ** 2 + _WIENER_RIDGE)
    return jnp.fft.irfft2(filtered, shape)[:rows, :columns]


def _least_squares(edges: jax.Array, target: jax.Array, size: int, ridges: jax.Array) -> jax.Array:
    """``e_r`` of :func:`step` for every ridge, ``[3, h, h]``; ``edges [2, H+h-2, W+h-2]``, ``target [2, H-1, W-1]``."""
    _, adjoint = blur.valid_blur_of(edges, (size, size))
    reach = size // 2
    lags = blur.correlation_lags(edges[:, reach:-reach, reach:-reach], (size, size))
    energy = lags[size - 1, size - 1]
    normal = blur.stationary_blur(lags / energy)

    def solve(ridge: jax.Array) -> jax.Array:
        def damped(kernel: jax.Array) -> jax.Array:
            return normal(kernel) + ridge * kernel

        change, _ = jax.scipy.sparse.linalg.cg(damped, adjoint(target) / energy, tol=0.0, maxiter=_NUM_CG_STEPS)
        return change

    return jax.vmap(solve)(ridges)
