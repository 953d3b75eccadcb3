"""The images: benchmark sets where there are any, else the repository's sample and free images that packages ship."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import zlib

import numpy as np

from experiments.accelerator import plan, sizes
from experiments.generalisation import scenes
from experiments.make_synthetic import degrade
from experiments.runner.job import LoadedExample, load_example
from jaxdeblur.errors import InputError
from jaxdeblur.evaluation.datasets import Example, find_examples, load_luma
from jaxdeblur.imaging.kernel_files import read_kernel
from jaxdeblur.operators.trajectories import motion_kernel

_SAMPLE = pathlib.Path(__file__).parents[1] / "sample"
_NOISE_STD = 0.005
_MADE_PER_SIZE, _TOYS_PER_SIZE = 3, 2
# Central part of a benchmark image that a toy looks at.
_TOY_CROP = 64


def to_fit(context: plan.Context, kernel_size: int) -> list[LoadedExample]:
    """The images of one kernel size, which fit into one program: Levin et al.'s, or made ones.

    Raises:
      InputError: Levin's folder holds none of that size, or has faults.
    """
    if not plan.has_set(context.data_dir, "levin"):
        count = _TOYS_PER_SIZE if context.toy else _MADE_PER_SIZE
        return [_made(number, kernel_size, toy=context.toy) for number in range(count)]
    found = [one for one in _set(context, "levin") if one.kernel_size == kernel_size]
    if not found:
        raise InputError(f"no image of Levin's set with a kernel of {kernel_size} pixels: give its folder whole")
    return [_loaded(one, context) for one in found]


def one(context: plan.Context, name: str) -> LoadedExample:
    """An image by the name that it has in the plan.

    Raises:
      InputError: the folder has none of that name, or faults.
    """
    if name == "sample":
        return _sample(toy=context.toy)
    if name in plan.MADE_IMAGES:
        number, size = name.removeprefix("made").removesuffix("px").split("_")
        return _made(int(number), int(size), toy=context.toy)
    dataset = "levin" if name in plan.LEVIN_IMAGES else "lai"
    for example in _set(context, dataset):
        if example.name == name:
            return _loaded(example, context)
    raise InputError(f"{name} is not in the {dataset} folder: give the set's folder whole")


def _set(context: plan.Context, dataset: str) -> list[Example]:
    assert context.data_dir is not None
    return find_examples(dataset, context.data_dir / dataset)


def _loaded(example: Example, context: plan.Context) -> LoadedExample:
    return load_example(example, _TOY_CROP if context.toy else None)


def _sample(*, toy: bool) -> LoadedExample:
    example = Example("sample", _SAMPLE / "blurry.png", _SAMPLE / "sharp.png", 21)
    loaded = load_example(example, _TOY_CROP if toy else None)
    return LoadedExample(**{**vars(loaded), "true_kernel": read_kernel(_SAMPLE / "kernel.png")})


def _made(number: int, kernel_size: int, *, toy: bool) -> LoadedExample:
    """A free image blurred by a camera shake of our own; the same every time with the same packages."""
    size = sizes.kernel_size(kernel_size, toy=toy)
    side = sizes.image_side(toy=toy) + size - 1
    choice = [(name, image) for name, image in _free() if min(image.shape) >= side]
    name, image = choice[number % len(choice)] if choice else (f"boxes{number}", boxes(side, number))
    top, left = ((length - side) // 2 for length in image.shape)
    generator = np.random.default_rng(zlib.crc32(f"{name} {kernel_size}".encode()))
    kernel = motion_kernel(generator, size=size)
    blurry, sharp = degrade(
        image[top : top + side, left : left + side],
        kernel,
        margin=size // 2,
        noise_std=_NOISE_STD,
        exposure=1.0,
        generator=generator,
    )
    return LoadedExample(
        name=f"{name}_{kernel_size}px",
        blurry=pathlib.Path(name),
        sharp=None,
        kernel_size=size,
        pixels=blurry.astype(np.float32) / 255,
        truth=sharp.astype(np.float32) / 255,
        true_kernel=kernel,
    )


@functools.cache
def _free() -> tuple[tuple[str, np.ndarray], ...]:
    """Free images that installed packages ship, reduced as the scenes of experiments.generalisation are: name and luma."""
    found = []
    for scene in scenes.read_split():
        path = scenes.find_source(scene, None, None)
        if path is not None:
            with contextlib.suppress(InputError):  # another version of the package has another file
                found.append((scene.name, scenes.read_sharp(scene, path)))
    return tuple(found)


def to_train(context: plan.Context, smallest: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Sharp images ``[H, W]`` in [0, 1] of at least ``smallest`` pixels a side, at full size: to train on, and held out.

    Raises:
      InputError: there are not two.
    """
    found: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    for scene in scenes.read_split():
        path = scenes.find_source(scene, None, None)
        if path is not None and min((image := load_luma(path)).shape) >= smallest:
            found[scene.split == "check"][scene.name] = image
    if context.image_dir is not None:
        from experiments.train_dwdn import read_images

        found[0].update(read_images(str(context.image_dir), smallest))
    training, held_out = found
    if training and not held_out:
        name = next(iter(training))
        held_out[name] = training.pop(name)
    if not training or not held_out:
        raise InputError("no free images to train on: install scikit-image and matplotlib, or give --image_dir")
    return training, held_out


def boxes(side: int, seed: int) -> np.ndarray:
    """``[side, side]``: boxes of one grey each that cover one another, where no package ships an image."""
    generator = np.random.default_rng(seed)
    image = np.full((side, side), 0.5)
    for _ in range(max(60, side * side // 300)):
        top, left = generator.integers(0, side, 2)
        height, width = generator.integers(4, 30, 2)
        image[top : top + height, left : left + width] = generator.uniform(0.05, 0.95)
    return image
