"""The benchmark sets as they are published: which files they are made of, and how to read them.

A set lies in one folder, under the names of its published copies. Any subset of its sharp images will do, but an image that is
there must be there with all its blurry versions: a table over a set with a file lost would be silently wrong.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from jaxdeblur.errors import InputError
from jaxdeblur.imaging.colour import luma
from jaxdeblur.imaging.reading import read_picture


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a set names its files.

    Attributes:
      images: names of the sharp images.
      kernel_sizes: side of each blur kernel, in the order of their numbers from 1; as used for the published tables.
      sharp: path of a sharp image in the folder, with ``{image}``.
      blurry: path of a blurry one, with ``{image}`` and ``{kernel}``.
    """

    images: tuple[str, ...]
    kernel_sizes: tuple[int, ...]
    sharp: str
    blurry: str


# levin: Levin et al., "Understanding and evaluating blind deconvolution algorithms" (CVPR 2009), as PNGs.
# lai: the uniform part of Lai et al., "A comparative study for single image blind deblurring" (CVPR 2016).
LAYOUTS: dict[str, Layout] = {
    "levin": Layout(
        images=("im1", "im2", "im3", "im4"),
        kernel_sizes=(17, 15, 13, 27, 11, 19, 21, 21),
        sharp="gt/{image}.png",
        blurry="{image}_kernel{kernel}_img.png",
    ),
    "lai": Layout(
        images=tuple(
            f"{kind}_{number:02d}" for kind in ("manmade", "natural", "people", "saturated", "text") for number in range(1, 6)
        ),
        kernel_sizes=(31, 51, 55, 75),
        sharp="ground_truth/{image}.png",
        blurry="blurry/{image}_kernel_{kernel:02d}.png",
    ),
}


@dataclasses.dataclass(frozen=True)
class Example:
    """One blurry image of a set and the sharp one behind it.

    Attributes:
      name: of the blurry file, without its ending.
      blurry: its path.
      sharp: path of the sharp image.
      kernel_size: side of the blur kernel as used for the published tables.
    """

    name: str
    blurry: pathlib.Path
    sharp: pathlib.Path
    kernel_size: int

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """The blurry and the sharp image, both ``[H, W]`` in [0, 1].

        Where one is in colour its full-range luma is taken: the blurry images of Lai et al. were published as that, and
        their sharp ones in colour. Alpha is left out.

        Raises:
          InputError: a file is damaged, or the two differ in size.
        """
        blurry, sharp = (_grey(read_picture(path).pixels) for path in (self.blurry, self.sharp))
        if blurry.shape != sharp.shape:
            sizes = " and ".join(f"{image.shape[1]}×{image.shape[0]}" for image in (blurry, sharp))
            raise InputError(f"{self.blurry} and {self.sharp} differ in size ({sizes}): fetch the set again")
        return blurry, sharp


def find_examples(dataset: str, data_dir: pathlib.Path) -> list[Example]:
    """The blurry images of a set that lie in a folder, in the order of images and kernels.

    Args:
      dataset: a key of :data:`LAYOUTS`.
      data_dir: the folder.

    Returns:
      At least one example.

    Raises:
      InputError: the set is unknown, none of its images is in the folder, or some of an image's files are missing (one line
        that lists them all).
    """
    if dataset not in LAYOUTS:
        raise InputError(f"unknown dataset {dataset!r}: choose from {', '.join(sorted(LAYOUTS))}")
    layout = LAYOUTS[dataset]
    examples, missing = [], []
    for image in layout.images:
        sharp = data_dir / layout.sharp.format(image=image)
        paths = [data_dir / layout.blurry.format(image=image, kernel=number + 1) for number in range(len(layout.kernel_sizes))]
        absent = [path for path in (sharp, *paths) if not path.is_file()]
        if len(absent) == 1 + len(paths):
            continue
        missing += absent
        examples += [Example(path.stem, path, sharp, size) for path, size in zip(paths, layout.kernel_sizes, strict=True)]
    if missing:
        names = ", ".join(str(path.relative_to(data_dir)) for path in missing)
        raise InputError(f"{data_dir}: incomplete {dataset} set, fetch these files again: {names}")
    if not examples:
        first = layout.sharp.format(image=layout.images[0])
        raise InputError(f"{data_dir}: no image of the {dataset} set in it (such as {first}); give its folder")
    return examples


def _grey(pixels: np.ndarray) -> np.ndarray:
    return luma(pixels) if pixels.ndim == 3 else pixels
