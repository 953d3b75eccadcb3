"""Kernels as trainings meet them: true ones, estimated ones, spoiled ones, and blurry images they make. No command."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.signal

from experiments.files import as_jpeg, in_8_bits
from experiments.training import crop, kept
from jaxdeblur.classical import correction, descent, variational
from jaxdeblur.classical.judge import descent_softness_std
from jaxdeblur.classical.kernel_l0 import drop_faint
from jaxdeblur.config import InitialiserConfig
from jaxdeblur.config.run import COMPRESSED_NOISE_STD
from jaxdeblur.errors import InputError
from jaxdeblur.operators.kernels import resize_kernel
from jaxdeblur.operators.trajectories import motion_kernel

_SIZES, _LARGE_SIZES = tuple(range(9, 37, 2)), (37, 41, 43)
_REFINE_ITERATIONS, _SOFTNESSES = 60, (0.4, 0.7, 1.0)
_FAINT = 0.02
# Shares of the kernels: large ones, of blurry images stored as a JPEG, of estimates that begin at half the size.
_LARGE, _JPEG, _COARSE = 0.15, 0.12, 0.5
_JPEG_QUALITIES, _COARSE_ITERATIONS = (75, 96), 40
# Share of images blurred in linear light, among those that are not quite what the model says; up to this power.
_TONE_CURVE, _LARGEST_GAMMA = 0.4, 2.2
# Square grid of frequencies on which kernels are compared, and the canvas of the true kernel.
GRID, CANVAS = 128, 63
_SUBPIXELS = 8
# Estimates that lie further from the true kernel are no faults of detail.
_LARGEST_SHIFT = 9.0


def true_kernel(generator: np.random.Generator) -> np.ndarray:
    """``[43, 43]``: camera shake of 9 to 43 pixels, now and then a little wider, or resting somewhere."""
    sizes, side = _LARGE_SIZES if generator.random() < _LARGE else _SIZES, correction.SUPPORT
    size = int(generator.choice(sizes))
    persistence = float(generator.choice([0.97, 0.98, 0.985, 0.99, 0.995, 0.998]))
    kernel = np.pad(motion_kernel(generator, size=size, persistence=persistence).astype(np.float64), (side - size) // 2)
    if generator.random() < 0.2:
        kernel = scipy.ndimage.gaussian_filter(kernel, generator.uniform(0.2, 0.5), mode="constant")
    if generator.random() < 0.3:
        places = np.argwhere(kernel > 0.2 * kernel.max())
        rest = np.zeros_like(kernel)
        rest[tuple(places[generator.integers(len(places))])] = 1.0
        spot = scipy.ndimage.gaussian_filter(rest, generator.uniform(0.5, 1.0))
        kernel = kernel / kernel.sum() + generator.uniform(0.03, 0.15) * spot
    return (kernel / kernel.sum()).astype(np.float32)


def sharp_crop(generator: np.random.Generator, images: Sequence[np.ndarray], side: int) -> np.ndarray:
    """The most textured of a few crops ``[side, side]``, sometimes softer or darker than it was."""
    tried = [crop(generator, images, side) for _ in range(int(generator.integers(2, 7)))]
    best = max(tried, key=lambda one: np.sqrt(np.hypot(*np.gradient(one))).mean() * min(1.0, one.std() / 0.1))
    if generator.random() < 0.25:
        best = scipy.ndimage.gaussian_filter(best, generator.uniform(0.3, 0.7))
    return best * generator.uniform(0.3, 0.8) if generator.random() < 0.2 else best


def _drawn(generator: np.random.Generator) -> tuple[np.ndarray, float, int]:
    """A true kernel ``[43, 43]``, the standard deviation of the noise, and the quality of the JPEG, or 0 for none."""
    kernel = true_kernel(generator)
    noise_std = float(np.exp(generator.uniform(np.log(0.0005), np.log(0.02)))) if generator.random() < 0.8 else 0.0
    return kernel, noise_std, int(generator.integers(*_JPEG_QUALITIES)) if generator.random() < _JPEG else 0


def varying(generator: np.random.Generator, sharp: np.ndarray, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image ``[H, W]`` that a kernel blurs which varies a little over it, and the mean of that kernel, ``[h, h]``."""
    moved = generator.uniform(0.1, 0.8) * _field(generator, kernel.shape, generator.uniform(4.0, 9.0))
    ends = [_displaced(kernel, sign * moved) for sign in (1.0, -1.0)]
    gamma = generator.uniform(1.0, _LARGEST_GAMMA) if generator.random() < _TONE_CURVE else 1.0
    one, other = (scipy.signal.fftconvolve(np.clip(sharp, 0.0, 1.0) ** gamma, end, "valid") for end in ends)
    angle, side = generator.uniform(0.0, 2.0 * np.pi), np.linspace(-0.5, 0.5, one.shape[0])
    share = np.clip(0.5 + np.sin(angle) * side[:, None] + np.cos(angle) * side[None], 0.0, 1.0)
    seen = np.maximum(share * one + (1.0 - share) * other, 0.0) ** (1.0 / gamma)
    return seen, np.mean(ends, axis=0).astype(np.float32)


def _displaced(kernel: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """A kernel ``[h, h]`` whose mass is taken from places moved by ``pixels [2, h, h]``, summing to one."""
    moved = scipy.ndimage.map_coordinates(kernel, np.indices(kernel.shape) + pixels, order=1, mode="constant")
    return moved / moved.sum()


def _field(generator: np.random.Generator, shape: tuple[int, ...], std: float) -> np.ndarray:
    """Two smooth random fields, ``[2, *shape]``, of which the larger one has standard deviation one."""
    fields = np.stack([scipy.ndimage.gaussian_filter(generator.normal(size=shape), std) for _ in range(2)])
    return fields / fields.std((1, 2)).max()


def taken(generator: np.random.Generator, seen: np.ndarray, added_std: float, quality: int) -> np.ndarray:
    """A blurry image ``[H, W]`` with noise, of 8 bits, as a JPEG of that quality if it is not 0."""
    noisy = seen + added_std * generator.normal(size=seen.shape)
    levels = in_8_bits(noisy)
    return (as_jpeg(levels, quality) if quality else levels).astype(np.float32) / np.float32(255.0)


def noise_std_of(added_std: float, quality: int) -> float:
    """What the program takes for the noise of such an image."""
    return max(float(np.hypot(added_std, correction.QUANTISED_STD)), COMPRESSED_NOISE_STD if quality else 0.0)


def estimate(images: Sequence[np.ndarray], number: int, *, seed: int, side: int) -> dict[str, np.ndarray]:
    """One true kernel and what estimation makes of it: ``truth`` and ``kernel``, ``[43, 43]``, ``added_std``, ``quality``."""
    generator = np.random.default_rng([seed, 1, number])
    truth, added, quality = _drawn(generator)
    sharp = sharp_crop(generator, images, side + correction.SUPPORT - 1)
    blurry = taken(generator, scipy.signal.fftconvolve(sharp, truth, "valid"), added, quality)
    usual, noise_std, softness = InitialiserConfig(), noise_std_of(added, quality), float(generator.choice(_SOFTNESSES))
    variance = variational.noise_variance(noise_std, smallest=usual.noise_variance)

    def refined(image: np.ndarray, kernel: np.ndarray, iterations: int) -> np.ndarray:
        found, _ = variational.refine_kernel(
            blurry=jnp.asarray(image),
            kernel=drop_faint(jnp.asarray(kernel, jnp.float32), _FAINT),
            support=jnp.ones(kernel.shape),
            iterations=iterations,
            noise_variance=variance,
            first_noise_variance=variance,
            image_softness_std=softness,
            thinness=usual.thinness,
            measured=None,
        )
        return np.asarray(found)

    if generator.random() < _COARSE:
        reduced, half = (side // 2,) * 2, (correction.SUPPORT // 4 * 2 + 1,) * 2
        wide = scipy.ndimage.gaussian_filter(truth, generator.uniform(0.8, 2.2))
        coarse = np.asarray(resize_kernel(jnp.asarray(wide), half, scale=0.5))
        coarse = refined(np.asarray(jax.image.resize(blurry, reduced, "linear")), coarse, _COARSE_ITERATIONS)
        began = np.asarray(resize_kernel(jnp.asarray(coarse), truth.shape, scale=2.0))
    else:
        began = scipy.ndimage.gaussian_filter(truth, generator.uniform(0.4, 1.4))
    descended = descent.descend(
        descent.halves(blurry),
        [None, None],
        scipy.ndimage.gaussian_filter(refined(blurry, began, _REFINE_ITERATIONS).astype(np.float64), 0.5, mode="constant"),
        np.ones(truth.shape),
        steps=usual.descents,
        noise_variance=variance,
        image_softness_std=descent_softness_std(usual, noise_std=noise_std),
        thinness=usual.descent_thinness,
    )
    found = np.asarray(drop_faint(jnp.asarray(descended), _FAINT))
    return {"truth": truth, "kernel": found, **_conditions(added, quality)}


def _conditions(added_std: float, quality: int) -> dict[str, np.ndarray]:
    return {"added_std": np.asarray(added_std, np.float32), "quality": np.asarray(quality)}


def spoiled(generator: np.random.Generator, kernel: np.ndarray) -> np.ndarray:
    """A true kernel ``[h, h]`` that is bent, unevenly lit, doubled along a line or spread along one, little or much."""
    much = generator.random() < 0.5
    spoilt = np.asarray(kernel, np.float64)

    def happens(share: float) -> bool:
        return bool(generator.random() < (share if much else 0.5 * share))

    def along_a_line(longest: float) -> np.ndarray:
        angle, length = generator.uniform(0.0, np.pi), generator.uniform(1.0, longest)
        return length * np.array([np.sin(angle), np.cos(angle)])

    if generator.random() < 0.85:
        least, most = (0.2, 2.0) if much else (0.06, 0.7)
        smoothness, pixels = generator.uniform(3.0, 7.0), least * (most / least) ** generator.random()
        spoilt = _displaced(spoilt, pixels * _field(generator, kernel.shape, smoothness))
    if happens(0.6):
        uneven, _ = _field(generator, kernel.shape, generator.uniform(1.5, 4.0))
        spoilt = spoilt * np.exp(generator.uniform(*((0.3, 1.2) if much else (0.05, 0.4))) * uneven)
    if happens(0.35):
        line, weight = along_a_line(9.0), generator.uniform(*((0.1, 0.5) if much else (0.02, 0.2)))
        spoilt = (1.0 - weight) * spoilt + weight * scipy.ndimage.shift(spoilt, line, order=1)
    if happens(0.3):
        line, weight = along_a_line(4.0), generator.uniform(0.2, 0.7)
        spread = np.mean([scipy.ndimage.shift(spoilt, part * line, order=1) for part in np.linspace(-1.0, 1.0, 9)], axis=0)
        spoilt = (1.0 - weight) * spoilt + weight * spread
    spoilt = scipy.ndimage.gaussian_filter(np.maximum(spoilt, 0.0), generator.uniform(0.3, 0.8))
    rough = 1.0 + generator.uniform(0.0, 0.3 if much else 0.15) * generator.normal(size=kernel.shape)
    return np.asarray(drop_faint(jnp.asarray(spoilt * np.maximum(rough, 0.0), jnp.float32), _FAINT))


def spoil(number: int, *, seed: int) -> dict[str, np.ndarray]:
    """What :func:`estimate` gives, of a kernel that is spoiled and still near its true one."""
    generator = np.random.default_rng([seed, 3, number])
    while True:
        truth, added, quality = _drawn(generator)
        found = {"truth": truth, "kernel": spoiled(generator, truth), **_conditions(added, quality)}
        if _is_near(found):
            return found


def moved_onto(truth: np.ndarray, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The true kernel on a canvas ``[63, 63]`` in whose middle the other one would be, and the shift ``[2]`` in pixels.

    The shift is where their correlation is largest, whose frequencies weigh as in a natural image.
    """
    i, j = frequencies()
    weight = 1.0 / (i**2 + j**2 + (1 / 64) ** 2)
    weight[0, 0] = 0.0
    true = np.fft.rfft2(truth, (GRID, GRID))
    product = np.fft.rfft2(kernel, (GRID, GRID)) * np.conj(true) * weight
    fine, half = GRID * _SUBPIXELS, GRID // 2
    padded = np.zeros((fine, fine // 2 + 1), complex)
    padded[:half, : half + 1], padded[-half:, : half + 1] = product[:half], product[-half:]
    correlation = np.fft.irfft2(padded, (fine, fine))
    shift = np.array(np.unravel_index(np.argmax(correlation), correlation.shape)) / _SUBPIXELS
    shift = np.where(shift > half, shift - GRID, shift)
    row, column = shift + (CANVAS - kernel.shape[0]) // 2
    placed = np.fft.irfft2(true * np.exp(-2j * np.pi * (i * row + j * column)), (GRID, GRID))
    return placed[:CANVAS, :CANVAS].astype(np.float32), shift


def _is_near(found: Mapping[str, np.ndarray]) -> bool:
    return bool(np.abs(moved_onto(found["truth"], found["kernel"])[1]).max() <= _LARGEST_SHIFT)


def estimates(
    images: Sequence[np.ndarray], count: int, folder: pathlib.Path, *, seed: int, side: int
) -> list[tuple[int, dict[str, np.ndarray]]]:
    """Those of so many estimates that came near their true kernels, each with its number; kept in ``folder``.

    Raises:
      InputError: none did.
    """
    near = []
    for number in range(count):
        found = kept(folder / f"{number:05d}.npz", functools.partial(estimate, images, number, seed=seed, side=side))
        if _is_near(found):
            near.append((number, found))
        if (number + 1) % 20 == 0:
            print(f"estimates: {number + 1}/{count}", flush=True)
    if not near:
        raise InputError("no estimate came near its true kernel; ask for more by --num_estimates")
    return near


def frequencies() -> tuple[np.ndarray, np.ndarray]:
    """Of the grid, ``[128, 65]`` each, in cycles a pixel: down and across."""
    i, j = np.meshgrid(np.fft.fftfreq(GRID), np.fft.rfftfreq(GRID), indexing="ij")
    return i, j
