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
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.signal
from absl import flags

from experiments import training_kernels
from experiments.command_line import run_command, start
from experiments.files import written_whole
from experiments.training import Batch, asked, falling, kept, read_images, train_part, training_flags, turned
from experiments.training_kernels import CANVAS, GRID, frequencies
from jaxdeblur.classical import correction

_RATE = 1e-3
# Shares of the examples: of spoiled kernels, and, of the others, of images that are not quite what the model says.
_SPOILED, _UNLIKE_MODEL = 0.35, 0.35
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
      found: of :func:`experiments.training_kernels.estimate` or ``spoil`` there.
      varying_share: how likely the image is not quite what the model says.

    Returns:
      ``blurry [H, W]``, ``start`` and ``sharp`` of :func:`jaxdeblur.classical.correction.restored`, ``kernel [43, 43]``,
      ``truth [63, 63]``, the true kernel moved onto it, ``noise_std`` and ``power [128, 65]`` of the sharp image.
    """
    generator = np.random.default_rng([config.seed, 2, *seeds])
    sharp = training_kernels.sharp_crop(generator, images, config.crop + correction.SUPPORT - 1)
    added, quality = float(found["added_std"]), int(found["quality"])
    if generator.random() < varying_share:
        seen, truth = training_kernels.varying(generator, sharp, found["truth"])
    else:
        seen, truth = scipy.signal.fftconvolve(sharp, found["truth"], "valid"), found["truth"]
    blurry, noise_std = training_kernels.taken(generator, seen, added, quality), training_kernels.noise_std_of(added, quality)
    restored = correction.restored(jnp.asarray(blurry), jnp.asarray(found["kernel"]), noise_std=noise_std)
    return {
        "blurry": blurry,
        **{name: np.asarray(image, np.float16) for name, image in zip(("start", "sharp"), restored, strict=True)},
        "kernel": found["kernel"],
        "truth": training_kernels.moved_onto(truth, found["kernel"])[0],
        "noise_std": np.asarray(noise_std, np.float32),
        "power": power(sharp),
    }


def power(image: np.ndarray) -> np.ndarray:
    """Radial means of an image's power on the grid of frequencies, ``[128, 65]``: white noise of variance v has v."""
    side = image.shape[0]
    window = np.outer(np.hanning(side), np.hanning(side))
    centred = (image - (image * window).sum() / window.sum()) * window
    periodogram = np.abs(np.fft.fft2(centred)) ** 2 / (window**2).sum()
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    edges = np.concatenate([[0.0], np.geomspace(1.5 / GRID, 0.71, _NUM_BANDS)])
    band, seen = np.digitize(radius.ravel(), edges) - 1, radius.ravel() > 0.0
    counts = np.bincount(band[seen], minlength=_NUM_BANDS)[:_NUM_BANDS]
    sums = np.bincount(band[seen], periodogram.ravel()[seen], minlength=_NUM_BANDS)[:_NUM_BANDS]
    middles, there = 0.5 * (edges[:-1] + edges[1:]), counts > 0
    means = np.log(sums[there] / counts[there] + 1e-12)
    i, j = frequencies()
    return np.exp(np.interp(np.log(np.maximum(np.hypot(i, j), 1e-3)), np.log(middles[there]), means)).astype(np.float32)


def gap(kernel: jax.Array, truth: jax.Array, power: jax.Array, noise_std: jax.Array) -> jax.Array:
    """By how many dB images restored with a kernel fall behind those restored with the true one.

    The expected error of Wiener's restoration, ``Σ_f S |G T − 1|² + |G|² σ²`` with ``G = conj(K) / (|K|² + σ²/S)``, in which S
    is the image's power, T the true kernel's transform and σ² a share of the noise's variance.

    Args:
      kernel: ``[h, h]``, h at most 63.
      truth: ``[63, 63]``, of :func:`experiments.training_kernels.moved_onto`.
      power: ``[128, 65]``, of :func:`power`.
      noise_std: of the image.
    """
    margin = (CANVAS - kernel.shape[0]) // 2
    variance = _NOISE_SHARE * (noise_std**2 + _NOISE_FLOOR**2)
    i, j = frequencies()
    twice = np.where((j == 0.0) | (j == 0.5), 1.0, 2.0) * ((i != 0.0) | (j != 0.0))
    true = jnp.fft.rfft2(truth, (GRID, GRID))

    def error(tried: jax.Array) -> jax.Array:
        filtering = jnp.conj(tried) / (jnp.abs(tried) ** 2 + variance / (power + 1e-10) + 1e-9)
        return jnp.sum(twice * (power * jnp.abs(filtering * true - 1.0) ** 2 + jnp.abs(filtering) ** 2 * variance))

    return 10.0 * jnp.log10(error(jnp.fft.rfft2(jnp.pad(kernel, margin), (GRID, GRID))) / error(true))


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


def train(config: TrainConfig, images: Sequence[np.ndarray], folder: pathlib.Path) -> pathlib.Path:
    """Estimates, examples and the training.

    Args:
      config: of the run.
      images: grey, in [0, 1]; see :func:`experiments.training.read_images`.
      folder: of all that is written; made if need be.

    Returns:
      The file of the weights.

    Raises:
      InputError: the checkpoint there cannot be gone on from, or no estimate is near its true kernel.
    """
    examples = folder / "examples"
    estimated = training_kernels.estimates(
        images, config.num_estimates, folder / "estimates", seed=config.seed, side=config.crop
    )

    def spoiled_example(number: int) -> dict[str, np.ndarray]:
        return example(config, images, (number, config.views), training_kernels.spoil(number, seed=config.seed))

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
            arrays = kept(path, make)
            chosen.append(_turned(arrays, int(generator.integers(8))))
        return tuple(np.stack(parts) for parts in zip(*chosen, strict=True))

    weights = dict(correction.initial_weights(jax.random.key(config.seed)))
    optimiser = falling(config.num_steps, _RATE)
    weights = train_part("correction", weights, loss, batch, config.num_steps, optimiser, config.seed, folder)
    path = folder / "kernel_correction.npz"
    with written_whole(path) as new:
        np.savez_compressed(new, allow_pickle=False, **{name: np.asarray(value, np.float16) for name, value in weights.items()})
    return path


def _turned(arrays: Mapping[str, np.ndarray], turn: int) -> list[np.ndarray]:
    """The arguments of :func:`loss` for one example, turned."""
    images = [turned(arrays[name], turn) for name in ("blurry", "start", "sharp", "kernel", "truth")]
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
