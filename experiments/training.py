"""What the trainings of the learned parts share: images, the loop with its checkpoint, flags. No command."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import flax
import jax
import numpy as np
import optax
from absl import flags

from experiments import checkpoints
from experiments.files import written_whole
from jaxdeblur.errors import InputError
from jaxdeblur.imaging.colour import luma
from jaxdeblur.imaging.reading import read_image
from jaxdeblur.imaging.selection import find_images

# Shorter side that an image is reduced to: files are seldom sharp at their full size.
_REDUCED_SIDES = (700, 400)
_SMALLEST_DEVIATION = 0.04
_CHECKPOINT_EVERY = 100
_MEAN_DECAY = 0.98

Batch = tuple[np.ndarray, ...]
_Settings = TypeVar("_Settings")


@flax.struct.dataclass
class State:
    """What training goes on from; ``step`` steps of a part are done."""

    step: int
    weights: Any
    mean: Any
    opt_state: Any


def read_images(folder: str, smallest: int) -> list[np.ndarray]:
    """The luma ``[H, W]`` of a folder's images, reduced so that they are sharp.

    Raises:
      InputError: none is large enough.
    """
    images = []
    for path in find_images(folder, print):
        pixels = np.asarray(read_image(path).pixels)
        grey = np.asarray(luma(pixels) if pixels.ndim == 3 else pixels, np.float32)
        for side in _REDUCED_SIDES:
            scale = min(1.0, max(side, smallest) / min(grey.shape))
            shape = tuple(round(length * scale) for length in grey.shape)
            if min(shape) >= smallest and (scale < 1.0 or side == _REDUCED_SIDES[-1]):
                images.append(np.asarray(jax.image.resize(grey, shape, "cubic"), np.float32).clip(0.0, 1.0))
    if not images:
        raise InputError(f"{folder}: no image of {smallest} or more pixels a side; give a folder that holds some")
    return images


def turned(array: np.ndarray, turn: int) -> np.ndarray:
    """An array ``[H, W]`` turned by ``turn % 4`` right angles, and mirrored from 4 on; float32."""
    around = np.rot90(array, turn % 4)
    return np.ascontiguousarray(around[:, ::-1] if turn >= 4 else around, np.float32)


def crop(generator: np.random.Generator, images: Sequence[np.ndarray], side: int) -> np.ndarray:
    """``[side, side]`` of some image, turned and mirrored; flat ones are mostly passed over."""
    sizes = np.sqrt([image.size for image in images])
    while True:
        image = images[generator.choice(len(images), p=sizes / sizes.sum())]
        row, column = (int(generator.integers(length - side + 1)) for length in image.shape)
        cut = image[row : row + side, column : column + side]
        if cut.std() >= _SMALLEST_DEVIATION or generator.random() < 0.2:
            turn = int(generator.integers(4))
            return turned(cut, turn + 4 if generator.random() < 0.5 else turn)


def kept(path: pathlib.Path, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays from a file, which is written first if there is none."""
    if not path.exists():
        with written_whole(path) as new:
            np.savez(new, allow_pickle=False, **make())
    with np.load(path) as arrays:
        return dict(arrays)


def falling(num_steps: int, rate: float) -> optax.GradientTransformation:
    """Adam whose learning rate rises to ``rate`` over the first steps of ``num_steps``, then falls as a cosine."""
    warm_up = max(1, min(100, num_steps // 10))
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warm_up, num_steps + 1, 0.02 * rate)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def train_part(
    part: str,
    weights: Any,
    loss: Callable[..., jax.Array],
    batch: Callable[[np.random.Generator], Batch],
    num_steps: int,
    optimiser: optax.GradientTransformation,
    seed: int,
    folder: pathlib.Path,
) -> Any:
    """One part of a training, from its checkpoint if there is one.

    Args:
      part: its name, that of the checkpoint, and of its examples' random numbers.
      weights: to begin with.
      loss: of the weights and a batch.
      batch: makes one.
      num_steps: of the part.
      optimiser: see :func:`falling`.
      seed: of the examples.
      folder: of the checkpoint.

    Returns:
      The running mean of the weights.

    Raises:
      InputError: the checkpoint cannot be gone on from.
    """
    state = State(0, weights, weights, optimiser.init(weights))
    path = folder / f"{part}.msgpack"
    if path.exists():
        other = "is of a run with other settings: give the same, or another --output_dir"
        state = checkpoints.restored(path, state, other=other)

    @jax.jit
    def step(weights: Any, mean: Any, opt_state: Any, *examples: jax.Array) -> tuple[Any, Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(weights, *examples)
        updates, opt_state = optimiser.update(gradient, opt_state, weights)
        weights = optax.apply_updates(weights, updates)
        mean = jax.tree.map(lambda old, new: _MEAN_DECAY * old + (1.0 - _MEAN_DECAY) * new, mean, weights)
        return weights, mean, opt_state, value

    began, losses = time.monotonic(), []
    for index in range(int(state.step), num_steps):
        examples = batch(np.random.default_rng([seed, len(part), index]))
        weights, mean, opt_state, value = step(state.weights, state.mean, state.opt_state, *examples)
        state = State(index + 1, weights, mean, opt_state)
        losses.append(float(value))
        if (index + 1) % _CHECKPOINT_EVERY == 0 or index + 1 == num_steps:
            checkpoints.save(path, state)
            recent = np.mean(losses[-_CHECKPOINT_EVERY:])
            print(f"{part}: {index + 1}/{num_steps}  loss {recent:.4f}  {time.monotonic() - began:.0f} s", flush=True)
    return state.mean


def training_flags(usual: Any, output_dir: str, written: str, numbers: Mapping[str, tuple[str, int]]) -> flags.FlagValues:
    """The flags of a training, unparsed: ``--data_dir``, ``--output_dir`` and whole numbers.

    Args:
      usual: a dataclass whose fields of those names are the numbers' defaults.
      output_dir: the default.
      written: what is said of it.
      numbers: help and lower bound by name.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("data_dir", None, "Folder of sharp images.", flag_values=values)
    flags.DEFINE_string("output_dir", output_dir, written, flag_values=values)
    for name, (text, lower_bound) in numbers.items():
        flags.DEFINE_integer(name, getattr(usual, name), text, lower_bound=lower_bound, flag_values=values)
    return values


def asked(values: flags.FlagValues, kind: type[_Settings]) -> _Settings:
    """The settings that :func:`training_flags` were given.

    Raises:
      InputError: ``--data_dir`` is missing.
    """
    if not values.data_dir:
        raise InputError("--data_dir is missing: give a folder of sharp images")
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: getattr(values, name) for name in names})
