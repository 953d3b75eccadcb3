"""Synthetic images with known sharp image and blur kernel, small enough for tests."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import scipy.ndimage
import scipy.signal

from jaxdeblur.config import InitialiserConfig

# What is needed for clean scenes of a hundred pixels; equal numbers of iterations, so that few programs are compiled.
QUICK = InitialiserConfig(
    gradient_weights=(4e-3, 8e-3),
    support_shares=(1.0, 0.5),
    patient_weights=(),
    guess_iterations=20,
    num_finalists=2,
    finalist_iterations=20,
    num_refined=1,
    refine_iterations=20,
    fine_iterations=20,
    softness_stds=(0.4,),
    vary_iterations=0,
    descents=0,
    correction_share=0.0,
)
NOISE_STD = 0.002


@dataclasses.dataclass(frozen=True)
class Scene:
    """``blurry`` is the valid part of ``kernel`` convolved with an image that shows ``sharp`` in its middle."""

    sharp: np.ndarray
    blurry: np.ndarray
    kernel: np.ndarray


def motion_kernel(size: int) -> np.ndarray:
    """``[size, size]``: a bent path from corner to corner, one pixel off the border, summing to one."""
    kernel = np.zeros((size, size))
    time, reach = np.linspace(0.0, 1.0, 400), size // 2 - 1
    rows = size // 2 + reach * np.sin(2.2 * time - 1.1)
    columns = size // 2 + 0.9 * reach * (2.0 * time - 1.0)
    for row, column in zip(rows, columns, strict=True):
        i, j = int(row), int(column)
        for down in (0, 1):
            for across in (0, 1):
                kernel[i + down, j + across] += abs(1 - down - row + i) * abs(1 - across - column + j)
    return (kernel / kernel.sum()).astype(np.float32)


def dead_leaves(side: int, seed: int) -> np.ndarray:
    """``[side, side]`` in [0, 1]: discs and turned boxes of one grey each that cover one another, as things in the world do."""
    generator = np.random.default_rng(seed)
    image = np.full((side, side), 0.5)
    i, j = np.mgrid[:side, :side]
    for _ in range(60 * side**2 // 100**2):
        radius, angle, level = generator.uniform(4, 18), generator.uniform(0, np.pi), generator.uniform(0.05, 0.95)
        row, column = generator.uniform(0, side, 2)
        along = (i - row) * np.cos(angle) + (j - column) * np.sin(angle)
        aside = (j - column) * np.cos(angle) - (i - row) * np.sin(angle)
        disc = along**2 + aside**2 < radius**2
        box = (np.abs(along) < radius) & (np.abs(aside) < radius * generator.uniform(0.3, 1))
        image[disc if generator.random() < 0.5 else box] = level
    # A lens leaves no step exactly one pixel wide.
    return scipy.ndimage.gaussian_filter(image, 0.4).astype(np.float32)


@functools.cache
def scene(*, side: int = 96, kernel_size: int = 9, seed: int = 2, colour: bool = False) -> Scene:
    """A blurry image ``[side, side]`` (or with 3 channels) with a little noise."""
    kernel = motion_kernel(kernel_size)
    seeds = (seed, seed + 1, seed + 2) if colour else (seed,)
    whole = np.stack([dead_leaves(side + kernel_size - 1, one) for one in seeds], axis=-1)
    if colour:
        # Channels of a photograph share most of their edges.
        whole = 0.75 * whole[..., :1] + 0.25 * whole
    blurry = np.stack(
        [scipy.signal.convolve2d(channel, kernel, mode="valid") for channel in np.moveaxis(whole, -1, 0)], axis=-1
    )
    blurry = np.clip(blurry + np.random.default_rng(seed).normal(0.0, NOISE_STD, blurry.shape), 0.0, 1.0).astype(np.float32)
    half = kernel_size // 2
    sharp = whole[half:-half, half:-half]
    return Scene(sharp if colour else sharp[..., 0], blurry if colour else blurry[..., 0], kernel)
