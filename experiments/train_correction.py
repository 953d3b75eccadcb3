"""Trains the networks of :mod:`jaxdeblur.classical.correction` on a folder of sharp images.

    python -m experiments.train_correction --data_dir=images --num_estimates=2 --num_spoiled=2 --views=1 --num_steps=4
    python -m experiments.train_correction --data_dir=images --output_dir=correction

The first is a smoke run; the second takes about three hours of one core. First kernels are estimated: crops of the images are
blurred by :func:`jaxdeblur.operators.trajectories.motion_kernel` with noise of 0.1 to 2 %, some are stored as a JPEG, and from
nearly the true kernel, or from what it is at half the size, the usual alternation and descent go on until the kernel has the
faults of an estimate. Then the networks learn to lead these kernels back; to have more examples, the pair of a true and an
estimated kernel goes with further crops too. A third of the examples has a true kernel that was bent, lit unevenly, doubled or
spread, which costs no estimate and is as wrong as a kernel that was missed. In others the blurry image is not quite what the
model says: the blur varies a little over it, or the light went through a camera's tone curve. All depends on the seed and a
number, so a run that is started again in its output folder goes on where it was, and ends as an unbroken one. Written to
``--output_dir``:

    estimates/, examples/     kernels and what a step begins with, NPZ
    correction.msgpack        what the training goes on from
    kernel_correction.npz     the weights (running mean, half precision), for jaxdeblur/classical
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.signal
from absl import flags

from experiments.command_line import run_command, start
from experiments.files import as_jpeg, in_8_bits, written_whole
from experiments.train_prior import Batch, asked, crop, read_images, train_part, training_flags
from jaxdeblur.classical import correction, descent, variational
from jaxdeblur.classical.judge import descent_softness_std
from jaxdeblur.classical.kernel_l0 import drop_faint
from jaxdeblur.config import InitialiserConfig
from jaxdeblur.config.run import COMPRESSED_NOISE_STD
from jaxdeblur.errors import InputError
from jaxdeblur.operators.kernels import resize_kernel
from jaxdeblur.operators.trajectories import motion_kernel

_RATE = 1e-3
_SIZES, _LARGE_SIZES = tuple(range(9, 37, 2)), (37, 41, 43)
_REFINE_ITERATIONS, _SOFTNESSES = 60, (0.4, 0.7, 1.0)
_FAINT = 0.02
# Shares of the kernels: large ones, of blurry images stored as a JPEG, of estimates that begin at half the size.
_LARGE, _JPEG, _COARSE = 0.15, 0.12, 0.5
_JPEG_QUALITIES, _COARSE_ITERATIONS = (75, 96), 40
# Shares of the examples: of spoiled kernels, and, of the others, of images that are not quite what the model says. Of these, of
# images blurred in linear light, to which pixels are related by up to this power.
_SPOILED, _UNLIKE_MODEL, _TONE_CURVE, _LARGEST_GAMMA = 0.35, 0.35, 0.4, 2.2
# Square grid of frequencies on which kernels are compared, and the canvas of the true kernel.
_GRID, _CANVAS = 128, 63
_SUBPIXELS = 8
# Estimates that lie further from the true kernel are no faults of detail.
_LARGEST_SHIFT = 9.0
_NUM_BANDS = 48
# The restoration with which kernels are compared is Wiener's, with a share of the noise: priors are better than it.
_NOISE_SHARE, _NOISE_FLOOR = 0.5, 0.002
# In dB: half of an example's weight is gone where its estimate falls so far behind the true kernel.
_HALF_WEIGHT_GAP = 3.0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      num_estimates: kernels that are estimated.
      num_spoiled: kernels that are spoiled in place of an estimate.
      views: crops that go with each estimate.
      num_steps: of the training.
      batch_size: examples in a step.
      crop: side of a blurry crop in pixels.
      seed: of the start and the examples.
    """

    num_estimates: int = 500
    num_spoiled: int = 2000
    views: int = 6
    num_steps: int = 12000
    batch_size: int = 2
    crop: int = 208
    seed: int = 0


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


def _varying(generator: np.random.Generator, sharp: np.ndarray, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _taken(generator: np.random.Generator, seen: np.ndarray, added_std: float, quality: int) -> np.ndarray:
    """A blurry image ``[H, W]`` with noise, of 8 bits, as a JPEG of that quality if it is not 0."""
    noisy = seen + added_std * generator.normal(size=seen.shape)
    levels = in_8_bits(noisy)
    return (as_jpeg(levels, quality) if quality else levels).astype(np.float32) / np.float32(255.0)


def _noise_std(added_std: float, quality: int) -> float:
    """What the program takes for the noise of such an image."""
    return max(float(np.hypot(added_std, correction.QUANTISED_STD)), COMPRESSED_NOISE_STD if quality else 0.0)


def estimate(config: TrainConfig, images: Sequence[np.ndarray], number: int) -> dict[str, np.ndarray]:
    """One true kernel and what estimation makes of it: ``truth`` and ``kernel``, ``[43, 43]``, ``added_std``, ``quality``."""
    generator = np.random.default_rng([config.seed, 1, number])
    truth, added, quality = _drawn(generator)
    sharp = sharp_crop(generator, images, config.crop + correction.SUPPORT - 1)
    blurry = _taken(generator, scipy.signal.fftconvolve(sharp, truth, "valid"), added, quality)
    usual, noise_std, softness = InitialiserConfig(), _noise_std(added, quality), float(generator.choice(_SOFTNESSES))
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
        side, half = config.crop // 2, (correction.SUPPORT // 4 * 2 + 1,) * 2
        wide = scipy.ndimage.gaussian_filter(truth, generator.uniform(0.8, 2.2))
        coarse = np.asarray(resize_kernel(jnp.asarray(wide), half, scale=0.5))
        coarse = refined(np.asarray(jax.image.resize(blurry, (side, side), "linear")), coarse, _COARSE_ITERATIONS)
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
    kept = np.asarray(drop_faint(jnp.asarray(descended), _FAINT))
    return {"truth": truth, "kernel": kept, **_conditions(added, quality)}


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


def spoil(config: TrainConfig, number: int) -> dict[str, np.ndarray]:
    """What :func:`estimate` gives, of a kernel that is spoiled and still near its true one."""
    generator = np.random.default_rng([config.seed, 3, number])
    while True:
        truth, added, quality = _drawn(generator)
        found = {"truth": truth, "kernel": spoiled(generator, truth), **_conditions(added, quality)}
        if _is_near(found):
            return found


def example(
    config: TrainConfig,
    images: Sequence[np.ndarray],
    seeds: Sequence[int],
    found: Mapping[str, np.ndarray],
    *,
    varying_share: float = 0.0,
) -> dict[str, np.ndarray]:
    """What a step begins with: an estimated or spoiled kernel and a crop that the true one blurred.

    Args:
      config: of the run.
      images: grey, in [0, 1].
      seeds: of the crop.
      found: of :func:`estimate` or :func:`spoil`.
      varying_share: how likely the image is not quite what the model says.

    Returns:
      ``blurry [H, W]``, ``start`` and ``sharp`` of :func:`jaxdeblur.classical.correction.restored`, ``kernel [43, 43]``,
      ``truth [63, 63]``, the true kernel moved onto it, ``noise_std`` and ``power [128, 65]`` of the sharp image.
    """
    generator = np.random.default_rng([config.seed, 2, *seeds])
    sharp = sharp_crop(generator, images, config.crop + correction.SUPPORT - 1)
    added, quality = float(found["added_std"]), int(found["quality"])
    if generator.random() < varying_share:
        seen, truth = _varying(generator, sharp, found["truth"])
    else:
        seen, truth = scipy.signal.fftconvolve(sharp, found["truth"], "valid"), found["truth"]
    blurry, noise_std = _taken(generator, seen, added, quality), _noise_std(added, quality)
    restored = correction.restored(jnp.asarray(blurry), jnp.asarray(found["kernel"]), noise_std=noise_std)
    return {
        "blurry": blurry,
        **{name: np.asarray(image, np.float16) for name, image in zip(("start", "sharp"), restored, strict=True)},
        "kernel": found["kernel"],
        "truth": moved_onto(truth, found["kernel"])[0],
        "noise_std": np.asarray(noise_std, np.float32),
        "power": power(sharp),
    }


def moved_onto(truth: np.ndarray, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The true kernel on a canvas ``[63, 63]`` in whose middle the other one would be, and the shift ``[2]`` in pixels.

    The shift is where their correlation is largest, whose frequencies weigh as in a natural image.
    """
    i, j = _frequencies()
    weight = 1.0 / (i**2 + j**2 + (1 / 64) ** 2)
    weight[0, 0] = 0.0
    true = np.fft.rfft2(truth, (_GRID, _GRID))
    product = np.fft.rfft2(kernel, (_GRID, _GRID)) * np.conj(true) * weight
    fine, half = _GRID * _SUBPIXELS, _GRID // 2
    padded = np.zeros((fine, fine // 2 + 1), complex)
    padded[:half, : half + 1], padded[-half:, : half + 1] = product[:half], product[-half:]
    correlation = np.fft.irfft2(padded, (fine, fine))
    shift = np.array(np.unravel_index(np.argmax(correlation), correlation.shape)) / _SUBPIXELS
    shift = np.where(shift > half, shift - _GRID, shift)
    row, column = shift + (_CANVAS - kernel.shape[0]) // 2
    placed = np.fft.irfft2(true * np.exp(-2j * np.pi * (i * row + j * column)), (_GRID, _GRID))
    return placed[:_CANVAS, :_CANVAS].astype(np.float32), shift


def power(image: np.ndarray) -> np.ndarray:
    """Radial means of an image's power on the grid of frequencies, ``[128, 65]``: white noise of variance v has v."""
    side = image.shape[0]
    window = np.outer(np.hanning(side), np.hanning(side))
    centred = (image - (image * window).sum() / window.sum()) * window
    periodogram = np.abs(np.fft.fft2(centred)) ** 2 / (window**2).sum()
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    edges = np.concatenate([[0.0], np.geomspace(1.5 / _GRID, 0.71, _NUM_BANDS)])
    band, seen = np.digitize(radius.ravel(), edges) - 1, radius.ravel() > 0.0
    counts = np.bincount(band[seen], minlength=_NUM_BANDS)[:_NUM_BANDS]
    sums = np.bincount(band[seen], periodogram.ravel()[seen], minlength=_NUM_BANDS)[:_NUM_BANDS]
    middles, there = 0.5 * (edges[:-1] + edges[1:]), counts > 0
    means = np.log(sums[there] / counts[there] + 1e-12)
    i, j = _frequencies()
    return np.exp(np.interp(np.log(np.maximum(np.hypot(i, j), 1e-3)), np.log(middles[there]), means)).astype(np.float32)


def gap(kernel: jax.Array, truth: jax.Array, power: jax.Array, noise_std: jax.Array) -> jax.Array:
    """By how many dB images restored with a kernel fall behind those restored with the true one.

    The expected error of Wiener's restoration, ``Σ_f S |G T − 1|² + |G|² σ²`` with ``G = conj(K) / (|K|² + σ²/S)``, in which S
    is the image's power, T the true kernel's transform and σ² a share of the noise's variance.

    Args:
      kernel: ``[h, h]``, h at most 63.
      truth: ``[63, 63]``, of :func:`moved_onto`.
      power: ``[128, 65]``, of :func:`power`.
      noise_std: of the image.
    """
    margin = (_CANVAS - kernel.shape[0]) // 2
    variance = _NOISE_SHARE * (noise_std**2 + _NOISE_FLOOR**2)
    i, j = _frequencies()
    twice = np.where((j == 0.0) | (j == 0.5), 1.0, 2.0) * ((i != 0.0) | (j != 0.0))
    true = jnp.fft.rfft2(truth, (_GRID, _GRID))

    def error(tried: jax.Array) -> jax.Array:
        filtering = jnp.conj(tried) / (jnp.abs(tried) ** 2 + variance / (power + 1e-10) + 1e-9)
        return jnp.sum(twice * (power * jnp.abs(filtering * true - 1.0) ** 2 + jnp.abs(filtering) ** 2 * variance))

    return 10.0 * jnp.log10(error(jnp.fft.rfft2(jnp.pad(kernel, margin), (_GRID, _GRID))) / error(true))


def loss(weights: Any, *batch: jax.Array) -> jax.Array:
    """The mean change of :func:`gap` by a step, weighed less where the estimate is far off."""

    def one(
        blurry: jax.Array,
        start: jax.Array,
        sharp: jax.Array,
        kernel: jax.Array,
        truth: jax.Array,
        noise_std: jax.Array,
        power: jax.Array,
    ) -> jax.Array:
        before = gap(kernel, truth, power, noise_std)
        after = gap(correction.step(blurry, start, sharp, kernel, noise_std, weights), truth, power, noise_std)
        return (after - before) * _HALF_WEIGHT_GAP / (_HALF_WEIGHT_GAP + jnp.maximum(before, 0.0))

    return jnp.mean(jax.vmap(one)(*batch))


def _frequencies() -> tuple[np.ndarray, np.ndarray]:
    i, j = np.meshgrid(np.fft.fftfreq(_GRID), np.fft.rfftfreq(_GRID), indexing="ij")
    return i, j


def _kept(path: pathlib.Path, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays from a file, which is written first if there is none."""
    if not path.exists():
        with written_whole(path) as new:
            np.savez(new, allow_pickle=False, **make())
    with np.load(path) as arrays:
        return dict(arrays)


def train(config: TrainConfig, images: Sequence[np.ndarray], folder: pathlib.Path) -> pathlib.Path:
    """Estimates, examples and the training.

    Args:
      config: of the run.
      images: grey, in [0, 1]; see :func:`experiments.train_prior.read_images`.
      folder: of all that is written; made if need be.

    Returns:
      The file of the weights.

    Raises:
      InputError: the checkpoint there cannot be gone on from, or no estimate is near its true kernel.
    """
    for name in ("estimates", "examples"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    estimated = []
    for number in range(config.num_estimates):
        path = folder / "estimates" / f"{number:05d}.npz"
        found = _kept(path, functools.partial(estimate, config, images, number))
        if _is_near(found):
            estimated.append((number, found))
        if (number + 1) % 20 == 0:
            print(f"estimates: {number + 1}/{config.num_estimates}", flush=True)
    if not estimated:
        raise InputError("no estimate came near its true kernel; ask for more by --num_estimates")

    def spoiled_example(number: int) -> dict[str, np.ndarray]:
        return example(config, images, (number, config.views), spoil(config, number))

    examples = folder / "examples"

    def batch(generator: np.random.Generator) -> Batch:
        chosen = []
        for _ in range(config.batch_size):
            if generator.random() < _SPOILED:
                number = int(generator.integers(config.num_spoiled))
                path, make = examples / f"spoiled_{number:05d}.npz", functools.partial(spoiled_example, number)
            else:
                number, found = estimated[generator.integers(len(estimated))]
                view = int(generator.integers(config.views))
                path = examples / f"estimated_{number:05d}_{view}.npz"
                make = functools.partial(example, config, images, (number, view), found, varying_share=_UNLIKE_MODEL)
            arrays = _kept(path, make)
            chosen.append(_turned(arrays, int(generator.integers(8))))
        return tuple(np.stack(parts) for parts in zip(*chosen, strict=True))

    weights = dict(correction.initial_weights(jax.random.key(config.seed)))
    weights = train_part("correction", weights, loss, batch, config.num_steps, _RATE, config.seed, folder)
    path = folder / "kernel_correction.npz"
    with written_whole(path) as new:
        np.savez_compressed(new, allow_pickle=False, **{name: np.asarray(value, np.float16) for name, value in weights.items()})
    return path


def _is_near(found: Mapping[str, np.ndarray]) -> bool:
    return bool(np.abs(moved_onto(found["truth"], found["kernel"])[1]).max() <= _LARGEST_SHIFT)


def _turned(arrays: Mapping[str, np.ndarray], turn: int) -> list[np.ndarray]:
    """The arguments of :func:`loss` for one example, turned by ``turn % 4`` right angles and mirrored from 4 on."""

    def turned(array: np.ndarray) -> np.ndarray:
        around = np.rot90(array, turn % 4)
        return np.ascontiguousarray(around[:, ::-1] if turn >= 4 else around, np.float32)

    images = [turned(arrays[name]) for name in ("blurry", "start", "sharp", "kernel", "truth")]
    return [*images, arrays["noise_std"], arrays["power"]]  # the power is the same in all directions


def define_flags() -> flags.FlagValues:
    """The flags, unparsed."""
    numbers = {
        "num_estimates": ("Kernels that are estimated.", 1),
        "num_spoiled": ("Kernels that are spoiled in place of an estimate.", 1),
        "views": ("Crops that go with each estimate.", 1),
        "num_steps": ("Steps of the training.", 1),
        "batch_size": ("Examples in a step.", 1),
        "crop": ("Side of a crop.", 96),
        "seed": ("Of the start and the examples.", 0),
    }
    return training_flags(TrainConfig(), "correction", "Where estimates, examples, checkpoint and weights go.", numbers)


def main(argv: Sequence[str]) -> int:
    """Runs a command line: the program's name and its arguments. Returns the exit status."""
    values = define_flags()

    def work() -> int:
        config = asked(values, TrainConfig)
        images = read_images(values.data_dir, config.crop + correction.SUPPORT - 1)
        print(train(config, images, pathlib.Path(values.output_dir)))
        return 0

    return run_command(argv, values, __doc__, work)


if __name__ == "__main__":
    start(main, interrupted="interrupted; the same command goes on from where it was")
