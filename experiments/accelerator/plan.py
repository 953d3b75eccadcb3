"""What the pack measures, as data: parts in the order of their importance, each a process of its own that does its items."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxdeblur.evaluation.datasets import LAYOUTS
from jaxdeblur.presets import PRESETS

# A command on a lent machine may be ended after ten minutes.
MOST_SECONDS = 540.0
DEEP_PRIORS = ("selfdeblur", "mc", "staged", "weak_dmphn")
# Those that estimate a kernel without a network of its own to begin with.
CLASSICAL = ("fast", "deep")
FITTED = ("selfdeblur", "mc", "staged")
RESTARTS = (1, 8, 2, 4, 16)
PRECISIONS = ("highest", "default", "bfloat16")
WEAK = (
    "weak_dwdn",
    "weak_none",
    "weak_dwdn_beta",
    *(name for name in PRESETS if name.startswith("weak_dwdn_a") and not name.endswith("_small")),
)
# Kernels of Levin's set in the order of what they are worth: the first three hold the images with published results.
LEVIN_SIZES = (17, 19, 27, *sorted(set(LAYOUTS["levin"].kernel_sizes) - {17, 19, 27}, reverse=True))
MADE_SIZES = (17, 27)
LEVIN_IMAGES = ("im1_kernel1_img", "im2_kernel6_img", "im3_kernel4_img")
LAI_IMAGES = ("natural_01_kernel_02", "text_01_kernel_02")
MADE_IMAGES = ("sample", "made1_17px", "made2_27px")


@dataclasses.dataclass(frozen=True)
class Item:
    """What is measured and stored at once.

    Attributes:
      name: within its part.
      seconds: about how long it takes on an H100; with less time left it is not begun.
    """

    name: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Part:
    """Items that share a process.

    Attributes:
      name: as ``--part`` takes it.
      title: what it tells.
      module: of this package, whose ``measure`` does an item.
      items: in the order of their importance.
      place: where it runs: the accelerator, the processor, or PyTorch on the accelerator.
      most_seconds: after which the next part has its turn.
      toys: names of the items that a dry run does; the others go through the same code once more.
      after: name of the part whose results it needs.
    """

    name: str
    title: str
    module: str
    items: tuple[Item, ...]
    place: Literal["accelerator", "cpu", "torch"] = "accelerator"
    most_seconds: float = MOST_SECONDS
    toys: tuple[str, ...] = ()
    after: str = ""


@dataclasses.dataclass(frozen=True)
class Context:
    """What an item is given.

    Attributes:
      output_dir: of the pack.
      data_dir: folder with ``levin`` and ``lai``, or None.
      image_dir: folder of further sharp images to train on, or None.
      toy: everything as small as it goes, and on the processor.
      batch_size: the most images in one program; None for as many as the memory holds.
      seconds_left: until the item is cut off.
    """

    output_dir: pathlib.Path
    data_dir: pathlib.Path | None
    image_dir: pathlib.Path | None
    toy: bool
    batch_size: int | None
    seconds_left: Callable[[], float]

    @property
    def work_dir(self) -> pathlib.Path:
        """For checkpoints, from which an item that was cut goes on."""
        folder = self.output_dir / "work"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclasses.dataclass(frozen=True)
class Found:
    """What an item found: figures that JSON can hold, and arrays ``[H, W]`` by name to look at."""

    figures: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def has_set(data_dir: pathlib.Path | None, name: str) -> bool:
    """Whether a benchmark set lies in the data folder."""
    return data_dir is not None and (data_dir / name).is_dir()


def parts(data_dir: pathlib.Path | None = None, *, toy: bool = False) -> list[Part]:
    """All parts, the most important first; a data folder decides which images there are, a dry run leaves repetitions out."""
    levin, lai = has_set(data_dir, "levin"), has_set(data_dir, "lai")
    sizes = LEVIN_SIZES if levin else MADE_SIZES
    images = (LEVIN_IMAGES if levin else MADE_IMAGES) + (LAI_IMAGES if lai else ())
    classical = tuple(f"{preset}_{image}" for preset in CLASSICAL for image in images)

    def items(seconds: float, *names: str) -> tuple[Item, ...]:
        return tuple(Item(name, seconds) for name in names)

    def torch_items(plain: float, compiled: float) -> tuple[Item, ...]:
        pairs = (items(plain, name) + items(compiled, f"{name}_compiled") for name in DEEP_PRIORS)
        return tuple(item for pair in pairs for item in pair)

    fits = (Item(f"{preset}_{size}px", 120 if preset == "mc" else 75) for size in sizes for preset in FITTED)
    found = [
        Part(
            "numerics",
            "The card's limits; parity and gradients by precision",
            "numerics",
            items(20, "card", "operators") + items(45, "generators", "gradients"),
        ),
        Part("steps", "Steps at 255×255", "speed", items(45, *DEEP_PRIORS), toys=("selfdeblur", "mc", "weak_dmphn")),
        Part(
            "steps_torch",
            "PyTorch's steps at 255×255",
            "speed",
            torch_items(15, 70),
            "torch",
            toys=("selfdeblur", "selfdeblur_compiled", "mc"),
        ),
        Part(
            "fits",
            "Fits at published settings",
            "fits",
            tuple(fits),
            most_seconds=400,
            toys=(f"selfdeblur_{sizes[0]}px",),
        ),
        Part(
            "restarts",
            "Restarts of one image",
            "fits",
            items(60, *(f"selfdeblur_x{count}" for count in RESTARTS)),
            toys=("selfdeblur_x2",),
        ),
        Part(
            "classical",
            "Without a deep prior, or with a small one",
            "classical",
            items(30, *classical),
            toys=(f"deep_{images[0]}",),
        ),
        Part(
            "classical_cpu",
            "The same on this machine's processor",
            "classical",
            items(40, *classical),
            "cpu",
            toys=(f"fast_{images[0]}",),
        ),
        Part(
            "precision",
            "What precision costs in dB",
            "fits",
            items(60, *(f"selfdeblur_{name}" for name in PRECISIONS)),
            toys=("selfdeblur_bfloat16",),
        ),
        Part("steps_large", "Steps at 1024×768", "speed", items(60, *DEEP_PRIORS), toys=("selfdeblur",)),
        Part(
            "steps_large_torch",
            "PyTorch's steps at 1024×768",
            "speed",
            torch_items(30, 90),
            "torch",
            toys=("selfdeblur",),
        ),
        Part("training", "DWDN trained on free images", "training", items(300, "train") + items(30, "compare")),
        Part("weak", "Weak supervision by that DWDN", "fits", items(90, *WEAK), toys=("weak_dwdn_beta",), after="training"),
    ]
    return [_as_toy(part) for part in found] if toy else found


def _as_toy(part: Part) -> Part:
    return dataclasses.replace(part, items=tuple(item for item in part.items if item.name in part.toys)) if part.toys else part


def named(found: Sequence[Part]) -> Iterator[tuple[Part, Item]]:
    """Every item with its part."""
    return ((part, item) for part in found for item in part.items)
