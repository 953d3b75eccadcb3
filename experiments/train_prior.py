"""Trains the prior of :mod:`jaxdeblur.classical.learned` on a folder of sharp images.

    python -m experiments.train_prior --data_dir=images --output_dir=prior --denoiser_steps=20 --stage_steps=4 --crop=32
    python -m experiments.train_prior --data_dir=images --output_dir=prior

The first is a smoke run, the second takes about twenty minutes of one core. First the network learns to take white noise off
crops (deviation 0.7 to 20 grey levels); then it and the stages' settings are trained together, through all stages, on crops
blurred by :func:`jaxdeblur.operators.trajectories.motion_kernel` with noise of 0.1 to 2.2 %. To a share of these examples the
blur varies over the frame, or the kernel that is handed over is not quite the true one, as with measured and estimated kernels.
Examples depend on the seed and the step alone, so a run that is started again in its output folder goes on from its last
checkpoint and ends as an unbroken one. Written to ``--output_dir``:

    denoiser.msgpack, stages.msgpack   what a run goes on from
    learned_prior.npz                  the weights (running mean), for jaxdeblur/classical
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.ndimage
import scipy.signal
from absl import flags

from experiments.command_line import run_command, start
from experiments.files import written_whole
from experiments.training import Batch, asked, crop, falling, read_images, train_part, training_flags
from jaxdeblur.classical import learned, sparse
from jaxdeblur.errors import InputError
from jaxdeblur.operators.trajectories import motion_kernel

_DENOISER_RATE, _STAGE_RATE, _SETTING_RATE = 2e-3, 4e-4, 2e-2
_SETTINGS = ("stage_std", "stage_power", "stage_pull")
_LARGEST_MISMATCH = 0.012


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      denoiser_steps: of the first part.
      stage_steps: of the second part.
      num_stages: of the restoration.
      batch_size: crops in a denoiser's step.
      stage_batch_size: crops in a stages' step.
      crop: side of a denoiser's crop in pixels; the stages' are 1.8 times that.
      kernel_size: largest odd side of a kernel.
      seed: of the start and the examples.
    """

    denoiser_steps: int = 1600
    stage_steps: int = 900
    num_stages: int = 3
    batch_size: int = 12
    stage_batch_size: int = 2
    crop: int = 64
    kernel_size: int = 27
    seed: int = 0


def noisy_batch(generator: np.random.Generator, images: Sequence[np.ndarray], count: int, side: int) -> Batch:
    """Sharp crops ``[N, S, S]``, deviations ``[N]`` and noisy crops."""
    sharp = np.stack([crop(generator, images, side) for _ in range(count)])
    small = np.exp(generator.uniform(np.log(0.7), np.log(20.0), count))
    std = np.where(generator.random(count) < 0.5, small, generator.uniform(0.7, 20.0, count)) / 255.0
    noisy = sharp + std[:, None, None] * generator.normal(size=sharp.shape)
    return sharp, std.astype(np.float32), noisy.astype(np.float32)


def blurred_example(generator: np.random.Generator, images: Sequence[np.ndarray], side: int, size: int) -> Batch:
    """Sharp ``[S+h-1, S+h-1]``, blurry ``[S, S]``, kernel handed over ``[h, h]``, effective noise, start of the stages."""
    sharp = crop(generator, images, side + size - 1)
    kernel = _kernel(generator, size)
    seen = scipy.signal.fftconvolve(sharp, kernel, "valid")
    if generator.random() < 0.4:
        seen = _varying_blur(generator, sharp, kernel)
    handed = _inexact(generator, kernel) if generator.random() < 0.4 else kernel
    mismatch = float(np.std(scipy.signal.fftconvolve(sharp, handed, "valid") - seen))
    if mismatch > _LARGEST_MISMATCH:
        handed, mismatch, seen = kernel, 0.0, scipy.signal.fftconvolve(sharp, kernel, "valid")
    std = float(np.exp(generator.uniform(np.log(0.0012), np.log(0.022))))
    blurry = np.clip(seen + generator.normal(size=seen.shape) * std, 0.0, 1.0)
    if generator.random() < 0.7:
        blurry = np.round(blurry * 255.0) / 255.0
    # The user may know of the mismatch or not.
    known = mismatch if generator.random() < 0.7 else 0.0
    effective = learned.effective_noise_std(std, known) * float(np.exp(generator.normal() * 0.12))
    arrays = [np.asarray(array, np.float32) for array in (sharp, blurry, handed, effective)]
    weight = sparse.weight_for_noise(effective)
    start = sparse.sparse(jnp.asarray(arrays[1]), jnp.asarray(arrays[2]), weight=weight, num_reweightings=2, num_cg_steps=25)
    return (*arrays, np.asarray(start))


def _kernel(generator: np.random.Generator, size: int) -> np.ndarray:
    side = int(generator.choice(np.arange(9, size + 1, 2)))
    persistence = float(generator.choice([0.97, 0.985, 0.99, 0.995]))
    kernel = np.pad(motion_kernel(generator, size=side, num_points=600, persistence=persistence), (size - side) // 2)
    if generator.random() < 0.6:
        kernel = scipy.ndimage.gaussian_filter(kernel, generator.uniform(0.3, 0.9))
    return kernel / kernel.sum()


def _inexact(generator: np.random.Generator, kernel: np.ndarray) -> np.ndarray:
    """A kernel with faults of an estimated one, centred as the true one is."""
    pattern = scipy.ndimage.gaussian_filter(generator.normal(size=kernel.shape), 1.0)
    wrong = kernel * np.exp(generator.uniform(0.1, 1.2) * pattern)
    if generator.random() < 0.5:
        specks = scipy.ndimage.gaussian_filter(generator.normal(size=kernel.shape), 0.7)
        wrong += generator.uniform(0.0, 0.05) * wrong.max() * np.maximum(specks, 0.0) * (generator.random(kernel.shape) < 0.3)
    if generator.random() < 0.5:
        wrong = np.where(wrong < generator.uniform(0.01, 0.06) * wrong.max(), 0.0, wrong)
    centre = scipy.ndimage.center_of_mass
    wrong = np.maximum(scipy.ndimage.shift(wrong, np.subtract(centre(kernel), centre(wrong)), order=1), 0.0)
    return wrong / wrong.sum()


def _varying_blur(generator: np.random.Generator, sharp: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A blur by the kernel that turns and grows a little over the frame, a little brighter or darker too."""
    angle = np.deg2rad(generator.normal() * generator.uniform(0.3, 2.5))
    growth = 1.0 + generator.normal() * generator.uniform(0.0, 0.02)
    centre = np.full(2, kernel.shape[0] // 2)
    blurred = []
    for sign in (1, -1):
        cosine, sine = np.cos(sign * angle), np.sin(sign * angle)
        matrix = np.array([[cosine, -sine], [sine, cosine]]) / growth**sign
        turned = np.maximum(scipy.ndimage.affine_transform(kernel, matrix, centre - matrix @ centre, order=1), 0.0)
        blurred.append(scipy.signal.fftconvolve(sharp, turned / turned.sum(), "valid"))
    rows, columns = (np.linspace(-1.0, 1.0, length) for length in blurred[0].shape)
    direction = generator.uniform(0.0, 2.0 * np.pi)
    ramp = rows[:, None] * np.cos(direction) + columns * np.sin(direction)
    share = (ramp - ramp.min()) / np.ptp(ramp)
    return (share * blurred[0] + (1.0 - share) * blurred[1]) * (1.0 + generator.normal() * 0.004)


def denoiser_loss(weights: Any, sharp: jax.Array, std: jax.Array, noisy: jax.Array) -> jax.Array:
    error = learned.denoise(noisy, std, weights) - sharp
    return jnp.mean(jnp.abs(error) / jnp.sqrt(std)[:, None, None])


def stage_loss(
    weights: Any, sharp: jax.Array, blurry: jax.Array, kernel: jax.Array, std: jax.Array, start: jax.Array
) -> jax.Array:
    """Smoothed absolute error of the last stage, and a tenth of the others', where the blurry image shows the scene."""
    natural = _natural(weights)
    margin = kernel.shape[-1] // 2

    def one(sharp: jax.Array, *problem: jax.Array) -> jax.Array:
        start, blurry, kernel, std = problem
        images = learned.stages(start[None], blurry[None], kernel, std, natural)
        errors = jnp.stack([(image[0] - sharp)[margin:-margin, margin:-margin] for image in images])
        shares = jnp.where(jnp.arange(len(images)) == len(images) - 1, 1.0, 0.1)
        return jnp.sum(shares * jnp.sqrt(errors**2 + 1e-6).mean((1, 2))) / jnp.sqrt(std)

    return jnp.mean(jax.vmap(one)(sharp, start, blurry, kernel, std))


def _natural(weights: Any) -> Any:
    """The settings that must be positive are trained as logarithms."""
    return {name: jnp.exp(value) if name in ("stage_std", "stage_pull") else value for name, value in weights.items()}


def _optimiser(num_steps: int, rate: float) -> optax.GradientTransformation:
    def labels(weights: Any) -> Any:
        return {name: "settings" if name in _SETTINGS else "network" for name in weights}

    settings = falling(num_steps, _SETTING_RATE)
    return optax.multi_transform({"network": falling(num_steps, rate), "settings": settings}, labels)


def train(config: TrainConfig, images: Sequence[np.ndarray], folder: pathlib.Path) -> pathlib.Path:
    """Both parts.

    Args:
      config: of the run.
      images: grey, in [0, 1]; see :func:`experiments.training.read_images`.
      folder: of the checkpoints and the weights; made if need be.

    Returns:
      The file of the weights, of which the network's are half precision.

    Raises:
      InputError: a checkpoint there cannot be gone on from.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def noisy(generator: np.random.Generator) -> Batch:
        return noisy_batch(generator, images, config.batch_size, config.crop)

    def blurred(generator: np.random.Generator) -> Batch:
        examples = [
            blurred_example(generator, images, _stage_crop(config), config.kernel_size) for _ in range(config.stage_batch_size)
        ]
        return tuple(np.stack(arrays) for arrays in zip(*examples, strict=True))

    weights = dict(learned.initial_weights(jax.random.key(config.seed)))
    steps, seed = config.denoiser_steps, config.seed
    weights = train_part("denoiser", weights, denoiser_loss, noisy, steps, _optimiser(steps, _DENOISER_RATE), seed, folder)
    count = config.num_stages
    weights |= {
        "stage_std": jnp.log(jnp.geomspace(8.0, 3.0, count) / 255.0),
        "stage_power": jnp.full(count, 0.5),
        "stage_pull": jnp.log(jnp.full(count, 0.3)),
    }
    steps = config.stage_steps
    weights = train_part("stages", weights, stage_loss, blurred, steps, _optimiser(steps, _STAGE_RATE), seed, folder)
    path = folder / "learned_prior.npz"
    natural = {name: np.asarray(value, np.float32) for name, value in _natural(weights).items()}
    stored = {name: value if name in _SETTINGS else value.astype(np.float16) for name, value in natural.items()}
    with written_whole(path) as new:
        np.savez_compressed(new, allow_pickle=False, **stored)
    return path


def _stage_crop(config: TrainConfig) -> int:
    return 2 * round(0.9 * config.crop)


def define_flags() -> flags.FlagValues:
    """The flags, unparsed."""
    numbers = {
        "denoiser_steps": ("Steps of the first part.", 1),
        "stage_steps": ("Steps of the second part.", 1),
        "num_stages": ("Stages.", 1),
        "batch_size": ("Crops in a denoiser's step.", 1),
        "stage_batch_size": ("Crops in a stages' step.", 1),
        "crop": ("Side of a denoiser's crop; the stages' are 1.8 times that.", 32),
        "kernel_size": ("Largest odd side of a kernel.", 9),
        "seed": ("Of the start and the examples.", 0),
    }
    return training_flags(TrainConfig(), "prior", "Where the checkpoints and the weights go.", numbers)


def main(argv: Sequence[str]) -> int:
    """Runs a command line: the program's name and its arguments. Returns the exit status."""
    values = define_flags()

    def work() -> int:
        config = asked(values, TrainConfig)
        if config.kernel_size % 2 == 0:
            raise InputError(f"--kernel_size={config.kernel_size} is even: give an odd number")
        images = read_images(values.data_dir, _stage_crop(config) + config.kernel_size - 1)
        print(train(config, images, pathlib.Path(values.output_dir)))
        return 0

    return run_command(argv, values, __doc__, work)


if __name__ == "__main__":
    start(main, interrupted="interrupted; the same command goes on from the last checkpoint")
